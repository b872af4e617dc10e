"""What a board can do: the profile's schema, its measurement, predictions from it, and a table of it.

`measure` is imported on first use, because it loads numpy and the kernels: facts about the machine must be readable
where these do not run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from device_profiles.render import table
from device_profiles.schema import DeviceProfile, from_dict, load, save, to_dict

if TYPE_CHECKING:
    from device_profiles.measurement import measure

__all__ = ["DeviceProfile", "from_dict", "load", "measure", "save", "table", "to_dict"]


def __getattr__(name: str) -> Any:
    if name != "measure":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from device_profiles.measurement import measure

    return measure
