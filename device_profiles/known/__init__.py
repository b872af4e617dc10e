"""Profiles of well-known boards for what-if planning, from their makers' figures and from instruction counts.

They are not measured. `python -m benchmarks.known_boards` writes the JSON files; `DeviceProfile.origins` has the origin
of each value.
"""

from __future__ import annotations

from pathlib import Path

from device_profiles import schema
from device_profiles.schema import DeviceProfile
from splitedge import errors

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The names that `load` accepts, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> DeviceProfile:
    """The profile of the board ``name``. Raises `errors.UsageError`, which lists the names."""
    if name not in names():
        raise errors.UsageError(
            f"no board is named {name[:80]!r}: choose one of {', '.join(names())}",
            boards=names(),
            reason="unknown-board",
        )
    return schema.load(FOLDER / f"{name}.json")
