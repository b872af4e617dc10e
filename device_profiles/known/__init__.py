"""Profiles of boards that are not here, for what-if planning: from what their makers publish and from instruction counts, never measured.

The JSON files are made by `python -m benchmarks.known_boards`; each value's origin is in `DeviceProfile.origins`.
"""

from __future__ import annotations

from pathlib import Path

from device_profiles import schema
from device_profiles.schema import DeviceProfile
from splitedge import errors

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The names that `load` knows, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> DeviceProfile:
    """The profile of the board ``name``. Raises `errors.UsageError` naming those that there are."""
    if name not in names():
        raise errors.UsageError(f"no board is known as {name[:80]!r}: name one of {', '.join(names())}", boards=names())
    return schema.load(FOLDER / f"{name}.json")
