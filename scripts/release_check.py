"""Check that a folder of wheels is all that the agent needs on a machine, for each version of Python.

python scripts/release_check.py --machine MACHINE FOLDER PYTHON...
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import NormalizedName, canonicalize_name, parse_wheel_filename
from packaging.version import Version

#: The minor version of the oldest C library on a board (docs/howto/jetson.md).
GLIBC: Final = 27
#: What only a board without libraries of kernels needs.
COMPILER: Final = {"numba", "llvmlite"}


@dataclass(frozen=True)
class Wheel:
    """A wheel in the folder."""

    name: NormalizedName
    version: Version
    tags: frozenset[Tag]
    requires: tuple[Requirement, ...]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--machine", required=True)
    options.add_argument("folder", type=Path)
    options.add_argument("pythons", nargs="+")
    given = options.parse_args()
    found = problems(given.folder, given.machine, given.pythons)
    for problem in found:
        print(f"{given.folder.name}: {problem}", file=sys.stderr)
    sys.exit(bool(found))


def problems(folder: Path, machine: str, pythons: list[str]) -> list[str]:
    """What is missing in ``folder`` for one of ``pythons``, and what should not be there."""
    wheels = [read(path) for path in sorted(folder.glob("*.whl"))]
    found = [f"{path.name} is no wheel" for path in sorted(folder.iterdir()) if path.suffix != ".whl"]
    found += [f"{name} is there, which compiles kernels" for name in sorted(COMPILER & {one.name for one in wheels})]
    found += sorted(
        f"{one.name} is there in two versions"
        for one in wheels
        if any(other.name == one.name and other.version < one.version for other in wheels)
    )
    for python in pythons:
        found += [f"Python {python} lacks {requirement}" for requirement in missing(wheels, machine, python)]
    return found


def missing(wheels: list[Wheel], machine: str, python: str) -> list[str]:
    """The requirements of splitedge and of what it requires that no wheel meets; pip, which installs the wheels."""
    tags = frozenset(tags_of(machine, python))
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    found, seen = [], set()
    waiting = [Requirement("splitedge"), Requirement("pip")]
    while waiting:
        wanted = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate(environment):
            continue
        fits = [
            one
            for one in wheels
            if one.name == canonicalize_name(wanted.name)
            and wanted.specifier.contains(one.version)
            and not tags.isdisjoint(one.tags)
        ]
        if not fits:
            found.append(str(wanted))
        elif fits[0].name not in seen:
            seen.add(fits[0].name)
            waiting += fits[0].requires
    return sorted(found)


def tags_of(machine: str, python: str) -> Iterator[Tag]:
    """The tags that this Python installs on the oldest board."""
    version = tuple(map(int, python.split(".")))
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, 4, -1)]
    platforms += [f"{name}_{machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    yield from cpython_tags(version, platforms=platforms)
    yield from compatible_tags(version, f"cp{python.replace('.', '')}", platforms)


def read(path: Path) -> Wheel:
    """The wheel at ``path``."""
    name, version, _, tags = parse_wheel_filename(path.name)
    with zipfile.ZipFile(path) as archive:
        (file,) = (one for one in archive.namelist() if one.count("/") == 1 and one.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(file), validate=False)
    return Wheel(name, version, tags, tuple(metadata.requires_dist or ()))


if __name__ == "__main__":
    main()
