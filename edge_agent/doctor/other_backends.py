"""The check of other backends: whether one is faster than our kernels, by the stored profile."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from device_profiles import schema
from device_profiles.render import NATIVE
from device_profiles.schema import BackendTime, DeviceProfile
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.doctor import storage
from edge_agent.doctor.check import Check, ok
from splitedge import errors

#: A smaller difference is within that of two processes, or of two networks.
_FASTER: Final = 1.25


def other_backends(settings: Settings) -> Check | None:
    """The fastest backend on the reference network; None without a profile that has backends."""
    profile = _stored(settings)
    if profile is None or not profile.backends:
        return None
    times = {one.name: one.ms for one in profile.backends if one.ms is not None}
    parts = [_fastest(times), *(_failed(one) for one in profile.backends if one.failure)]
    return ok("backends", "; ".join(parts))


def _fastest(times: dict[str, float]) -> str:
    own, best = times.get(NATIVE), min(times, key=times.__getitem__, default=NATIVE)
    if own is None or best == NATIVE or own < _FASTER * times[best]:
        others = ", ".join(name for name in times if name != NATIVE) or "no other"
        return f"none is much faster than our kernels on the reference network (measured: {others})"
    return (
        f"{best} runs the reference network {own / times[best]:.1f} times as fast as our kernels ({times[best]:.3g} "
        f"against {own:.3g} ms); plans use our kernels, `edge-agent bench -m MODEL` compares yours"
    )


def _failed(one: BackendTime) -> str:
    return f"{one.name} fails: {one.failure}"


def _stored(settings: Settings) -> DeviceProfile | None:
    """The profile that the settings name, else the newest that is kept. Asks no kernels for their build."""
    try:
        if settings.profile:
            return schema.load(config.path_of(settings.profile))
        found = [path for folder in storage.own_folders(settings) for path in folder.glob("profile-*.json")]
        return schema.load(max(found, key=_age)) if found else None
    except (errors.ConfigError, OSError):  # `plan` says what is wrong with it
        return None


def _age(path: Path) -> float:
    return path.stat().st_mtime
