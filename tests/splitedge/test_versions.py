"""What `edge-agent version` and `edge-server version` print."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import splitedge
from kernels import isa, native
from splitedge import versions


def test_the_facts_are_those_of_this_process() -> None:
    found = versions.facts("edge-agent")
    assert (found["program"], found["version"]) == ("edge-agent", splitedge.__version__)
    assert (found["python"], found["machine"], found["isa"]) == (
        platform.python_version(),
        platform.machine(),
        isa.ISA,
    )
    assert found["libraries"]["numpy"] == np.__version__
    assert found["kernels"]["source"] == ("compiled" if native.LIBRARY is None else "library")


def test_kernels_of_the_package_are_named_by_their_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = native.Library.__new__(native.Library)  # a library cannot be built without a compiler
    library.path, library.sha256 = tmp_path / "avx2.so", "a" * 64
    monkeypatch.setattr(native, "LIBRARY", library)
    found = versions.facts("edge-agent")["kernels"]
    assert found == {"source": "library", "path": str(tmp_path / "avx2.so"), "sha256": "a" * 64}


def test_a_library_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "EXTRAS", ("no-library-of-this-name",))
    assert versions.facts("edge-agent")["libraries"]["no-library-of-this-name"] is None


def test_the_installation_is_told_without_loading_numpy_or_kernels() -> None:
    code = "import sys\nfrom splitedge import versions\nversions.installation('x')\nprint({'numpy', 'kernels'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_all_libraries_of_the_default_install_are_listed(root: Path) -> None:
    named = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [re.split(r"[^\w-]", one)[0] for one in named] == list(versions.LIBRARIES)


@pytest.mark.parametrize("program", ["edge-agent", "edge-server"])
def test_both_programs_print_them_and_import_neither_numba_nor_aiohttp(program: str) -> None:
    module = program.replace("-", "_")
    code = (
        f"import sys\nfrom {module}.__main__ import main\n"
        "try:\n main()\nfinally:\n print(sorted({m.split('.')[0] for m in sys.modules} & {'numba', 'aiohttp', 'torch'}))"
    )

    def run(*arguments: str) -> list[str]:
        command = [sys.executable, "-c", code, "version", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    shown, loaded = run("--json")
    assert loaded == "[]"
    assert json.loads(shown)["program"] == program
    *lines, loaded = run()
    assert lines[0].split() == [program, splitedge.__version__]
    assert max(map(len, lines)) <= 80 or " " not in max(lines, key=len).split("  ")[-1]
    assert loaded == "[]"
