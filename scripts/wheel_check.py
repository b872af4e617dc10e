"""Check a wheel of splitedge: metadata that an index accepts, required files, unexpected files, and libraries of kernels
that load on the wheel's machine.

python scripts/wheel_check.py WHEEL
"""

from __future__ import annotations

import struct
import sys
import zipfile
from pathlib import Path
from typing import Final

from packaging.metadata import Metadata
from packaging.utils import parse_wheel_filename

#: Tag of the platform of a wheel with libraries, before the name of the machine.
GLIBC: Final = "manylinux_2_17_"
#: The largest page of a system that loads the libraries.
PAGE: Final = 64 << 10
#: Machines by their number in an ELF header.
MACHINES: Final = {62: "x86_64", 183: "aarch64"}
PACKAGES: Final = {"calibration", "device_profiles", "edge_agent", "edge_server", "kernels", "splitedge"}
DATA: Final = ("device_profiles/known/pi5.json", *(f"{name}/py.typed" for name in sorted(PACKAGES)))


def main() -> None:
    wheel = Path(sys.argv[1])
    found = problems(wheel)
    for problem in found:
        print(f"{wheel.name}: {problem}", file=sys.stderr)
    sys.exit(bool(found))


def problems(wheel: Path) -> list[str]:
    """Return the faults of ``wheel``. Raises `packaging.metadata.InvalidMetadata` for metadata that indexes reject."""
    name, version, _, tags = parse_wheel_filename(wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        info = f"{name}-{version}.dist-info"
        metadata = Metadata.from_email(archive.read(f"{info}/METADATA"), validate=True)
        libraries = {file: archive.read(file) for file in sorted(files) if file.endswith(".so")}
    tops = {file.split("/")[0] for file in files} - {info}
    checks = {
        f"its packages are {sorted(tops)}": tops == PACKAGES,
        f"its tags are {sorted(map(str, tags))}": [tag.interpreter + "-" + tag.abi for tag in tags] == ["py3-none"],
        "its platform does not match its libraries": {file.split("/")[2] for file in libraries}
        == {tag.platform.removeprefix(GLIBC) for tag in tags} - {"any"},
        "its description is empty": bool(metadata.description),
        f"its description is {metadata.description_content_type}": metadata.description_content_type == "text/markdown",
        f"its licence is {metadata.license_expression}": metadata.license_expression == "Apache-2.0",
        "it has no licence text": f"{info}/licenses/LICENSE" in files,
        "it has no commands": f"{info}/entry_points.txt" in files,
    } | {f"{file} is missing": file in files for file in DATA}
    for file, data in libraries.items():
        checks[f"{file} is for {machine(data)}"] = machine(data) == file.split("/")[2]
        checks[f"{file} does not load on pages of 64 KiB"] = loads_on_large_pages(data)
    return [problem for problem, fine in checks.items() if not fine]


def machine(library: bytes) -> str:
    """The machine that a 64-bit ELF file is for."""
    (number,) = struct.unpack_from("<H", library, 18)
    return MACHINES.get(number, f"ELF machine {number}")


def loads_on_large_pages(library: bytes) -> bool:
    """Whether a system with pages of `PAGE` bytes, or smaller ones, can map each segment of a 64-bit ELF file."""
    (start,) = struct.unpack_from("<Q", library, 32)
    size, count = struct.unpack_from("<HH", library, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", library, start + i * size) for i in range(count)]
    loaded = [header for header in headers if header[0] == 1]
    return bool(loaded) and all(
        align >= PAGE and (address - offset) % PAGE == 0 for _, _, offset, address, _, _, _, align in loaded
    )


if __name__ == "__main__":
    main()
