"""The band of times of a board that was not measured. Loads no numpy."""

from __future__ import annotations

from typing import NamedTuple

from device_profiles.schema import DeviceProfile, is_measured


def pace_factor(profile: DeviceProfile) -> float:
    """The factor of the profile's times that predictions count on; 1 if they were measured or have no band."""
    if profile.band is None or is_measured(profile):
        return 1.0
    return {"fast": profile.band.fast, "middle": 1.0, "slow": profile.band.slow}[profile.pace]


class Times(NamedTuple):
    """A predicted time in ms: a tenth of boards is faster than ``fast``, a tenth slower than ``slow``."""

    fast: float
    middle: float
    slow: float


def times(ms: float, profile: DeviceProfile) -> Times | None:
    """The band of the time ``ms`` of a head that was predicted at the profile's pace; None without a band."""
    if profile.band is None:
        return None
    middle = ms / pace_factor(profile)
    return Times(middle * profile.band.fast, middle, middle * profile.band.slow)
