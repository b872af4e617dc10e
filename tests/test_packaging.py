"""What is published: the wheel, the versions, the words in the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

PACKAGES = {"splitedge", "edge_agent", "edge_server", "kernels", "calibration", "device_profiles"}
# Paths of one machine, and hosts that serve packages: in pieces, so that this file does not hold them.
PLACES = re.compile(
    "|".join(
        [
            "/" + "work/",
            "/" + "root/",
            "/" + "home/[a-z]",
            r"py" + r"pi\.",
            "python" + "hosted",
            "download" + r"\.pytorch",
            "index" + "[-_]url",
        ]
    ),
    re.I,
)


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[Path]:
    """The files that a commit of this working tree would hold."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git working tree")
    return [root / name for name in done.stdout.split("\0") if name and (root / name).is_file()]


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def requirements(project: dict[str, Any]) -> list[Requirement]:
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


@pytest.fixture(scope="module")
def constraints(root: Path) -> dict[str, str]:
    """Exact version by distribution."""
    lines = (root / "constraints.txt").read_text().splitlines()
    return {
        canonical(name): version for name, version in (line.split("==") for line in lines if line and line[0] != "#")
    }


@pytest.fixture(scope="module")
def wheel(root: Path, tracked: list[Path], tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tracked:
        copy = source / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(target),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(target.glob("splitedge-*.whl")))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_wheel_holds_the_five_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_the_wheel_holds_every_module_of_the_tree(wheel: zipfile.ZipFile, root: Path, tracked: list[Path]) -> None:
    names = {path.relative_to(root).as_posix() for path in tracked}
    ours = {name for name in names if name.split("/")[0] in PACKAGES}
    assert ours - set(wheel.namelist()) == set()


def test_the_wheel_is_typed_and_licensed(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_tested_versions_satisfy_the_project(requirements: list[Requirement], constraints: dict[str, str]) -> None:
    wanted = [r for r in requirements if r.name != "splitedge" and (r.marker is None or r.marker.evaluate())]
    # tflite-runtime is the other choice where ai-edge-litert does not install.
    unmet = [
        str(r)
        for r in wanted
        if r.name != "tflite-runtime" and not r.specifier.contains(constraints.get(canonical(r.name), "0"))
    ]
    assert unmet == []


def test_every_constraint_is_one_exact_release(constraints: dict[str, str]) -> None:
    assert [
        version for version in constraints.values() if not re.fullmatch(r"[0-9.]+(rc\d+|\.?post\d+)?", version)
    ] == []
    assert constraints["torch"] == "2.13.0"


def test_the_default_install_holds_no_library_of_the_server(project: dict[str, Any]) -> None:
    names = {Requirement(line).name for line in project["dependencies"]}
    assert not names & {"torch", "onnx", "onnxruntime", "onnxscript", "tflite-runtime", "ai-edge-litert"}


def test_numba_is_an_extra_of_everything_that_compiles_in_a_checkout(project: dict[str, Any]) -> None:
    extras = {
        name: {str(Requirement(line)) for line in lines} for name, lines in project["optional-dependencies"].items()
    }
    assert "numba" not in {Requirement(line).name for line in project["dependencies"]}
    assert {Requirement(line).name for line in extras["jit"]} == {"numba"}

    def reached(name: str) -> set[str]:
        inner = {extra for line in extras[name] if (r := Requirement(line)).name == "splitedge" for extra in r.extras}
        return {name}.union(*map(reached, inner))

    assert [
        name for name in ("server", "bench", "bench-tflite", "demo", "test", "test-all") if "jit" not in reached(name)
    ] == []


def test_no_file_names_a_machine_or_a_package_index(tracked: list[Path], root: Path) -> None:
    found = []
    for path in tracked:
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if PLACES.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()}")
    assert found == []


def test_nobody_is_told_to_install_another_projects_package(tracked: list[Path]) -> None:
    wrong = re.compile(r"(?<!never run `)(?<!never `)pip install (-\S+ )*edge-(agent|server)\b", re.I)
    told = [str(p) for p in tracked if p.suffix in {".md", ".py", ".sh"} and wrong.search(p.read_text())]
    assert told == []
