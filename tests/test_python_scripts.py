"""Python scripts: the recording of a terminal, and the check of a wheel."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
METADATA = "Metadata-Version: 2.4\nName: splitedge\nVersion: 1.0\n"


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / "scripts" / name, *arguments], capture_output=True, text=True)


def test_a_recording_holds_what_remains_on_the_terminal_and_no_font_of_another_host(tmp_path: Path) -> None:
    out = tmp_path / "demo.svg"
    shown = r"printf 'work\n\033[1A\033[2Kdone\n\033[31mred\033[0m\n'"
    done = script("record_demo.py", "--out", str(out), "--title", "a title", "--", "sh", "-c", shown)
    text = out.read_text()
    assert done.returncode == 0
    assert "done" in text
    assert "red" in text
    assert "a&#160;title" in text or "a title" in text
    assert "work" not in text
    assert "font-face" not in text


def test_a_command_that_fails_leaves_no_recording(tmp_path: Path) -> None:
    out = tmp_path / "demo.svg"
    assert script("record_demo.py", "--out", str(out), "--", "sh", "-c", "exit 3").returncode == 3
    assert not out.exists()


def test_a_wheel_without_its_packages_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "splitedge-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("splitedge-1.0.dist-info/METADATA", METADATA)
        archive.writestr("splitedge/__init__.py", "")
    done = script("wheel_check.py", str(wheel))
    assert done.returncode == 1
    assert "edge_agent/py.typed" in done.stderr


def wheel_of(folder: Path, name: str, *requires: str) -> None:
    """A wheel with this file name, and these requirements in its metadata."""
    project, version = name.split("-")[:2]
    lines = [f"Name: {project}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in requires)]
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr(f"{project}-{version}.dist-info/METADATA", "\n".join(["Metadata-Version: 2.4", *lines, ""]))


def test_a_release_needs_each_package_for_each_python(tmp_path: Path) -> None:
    def problems() -> list[str]:
        done = script("release_check.py", "--machine", "aarch64", str(tmp_path), "3.11", "3.13")
        assert done.returncode == bool(done.stderr)
        return [line.removeprefix(f"{tmp_path.name}: ") for line in done.stderr.splitlines()]

    needs = ("numpy>=2", 'old; python_version < "3.13"', 'numba; extra == "jit"', "abi", "pure")
    wheel_of(tmp_path, "splitedge-1.0-py3-none-manylinux_2_17_aarch64.whl", *needs)
    wheel_of(tmp_path, "numpy-2.1-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl")
    wheel_of(tmp_path, "abi-1.0-cp310-abi3-manylinux_2_17_aarch64.whl")
    wheel_of(tmp_path, "pure-1.0-py3-none-any.whl", "numpy<3")
    wheel_of(tmp_path, "pip-26.0-py3-none-any.whl")
    assert problems() == [
        'Python 3.11 lacks old; python_version < "3.13"',
        "Python 3.13 lacks numpy<3",
        "Python 3.13 lacks numpy>=2",
    ]
    wheel_of(tmp_path, "old-1.0-py3-none-any.whl")
    wheel_of(tmp_path, "numpy-2.1-cp313-cp313-manylinux_2_28_aarch64.whl")  # for a newer C library
    assert len(problems()) == 2
    wheel_of(tmp_path, "numpy-2.1-cp313-cp313-manylinux_2_27_aarch64.whl")
    assert problems() == []
    wheel_of(tmp_path, "old-2.0-py3-none-any.whl")
    wheel_of(tmp_path, "numba-1.0-py3-none-any.whl")
    (tmp_path / "old-1.0.tar.gz").touch()
    assert problems() == [
        "old-1.0.tar.gz is no wheel",
        "numba is there, which compiles kernels",
        "old is there in two versions",
    ]


def elf(machine: int, *segments: tuple[int, int, int]) -> bytes:
    """The headers of a 64-bit library with segments (offset, address, alignment)."""
    front = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 3, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    headers = [
        struct.pack("<IIQQQQQQ", 1, 5, offset, address, address, 1, 1, align) for offset, address, align in segments
    ]
    return front + b"".join(headers)


@pytest.mark.parametrize(
    ("library", "problem"),
    [
        (elf(183, (0, 0, 0x10000), (0x5E4C0, 0x6E4C0, 0x10000)), ""),
        (elf(62, (0, 0, 0x10000)), "is for x86_64"),
        (elf(40, (0, 0, 0x10000)), "is for ELF machine 40"),
        (elf(183, (0, 0, 0x10000), (0x5E4C0, 0x5F4C0, 0x1000)), "does not load on pages of 64 KiB"),
        (elf(183), "does not load on pages of 64 KiB"),
    ],
)
def test_a_library_of_a_wheel_fits_its_machine_and_large_pages(tmp_path: Path, library: bytes, problem: str) -> None:
    wheel = tmp_path / "splitedge-1.0-py3-none-manylinux_2_17_aarch64.whl"
    name = "kernels/libraries/aarch64/neon.so"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("splitedge-1.0.dist-info/METADATA", METADATA)
        archive.writestr(name, library)
    about = [line for line in script("wheel_check.py", str(wheel)).stderr.splitlines() if name in line]
    assert about == ([f"{wheel.name}: {name} {problem}"] if problem else [])
