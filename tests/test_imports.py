"""The layers of docs/architecture/index.md, and what a running agent has loaded."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

PACKAGES = ("splitedge", "edge_agent", "edge_server", "kernels", "calibration", "device_profiles")
ON_THE_BOARD = ("splitedge", "edge_agent", "device_profiles", "kernels")
NEVER_IN_THE_AGENT = {"torch", "onnx", "onnxruntime", "edge_server", "calibration", "benchmarks", "tokenizers"}
# Third-party packages that a layer may import; the arrows between our own packages are the contracts in pyproject.toml.
OUTSIDE = {
    "splitedge.errors": set(),
    "splitedge.limits": set(),
    "kernels": {"msgspec", "numpy", "numba", "llvmlite"},
    "splitedge.protocol": {"msgspec"},
}
IMPORT_NAMES = {
    "pillow": "PIL",
    "ai-edge-litert": "ai_edge_litert",
    "tflite-runtime": "tflite_runtime",
}  # where a distribution is imported under another name
BROUGHT = {"llvmlite", "yarl"}  # by numba and aiohttp, whose interfaces they are a part of


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, "benchmarks", include_external_packages=True, cache_dir=None)


def outside(graph: grimp.ImportGraph, package: str) -> set[str]:
    """The third-party packages that ``package`` and its modules import."""
    modules = {package} | graph.find_descendants(package)
    found = {target for module in modules for target in graph.find_modules_directly_imported_by(module)}
    return {t for t in found if graph.is_module_squashed(t)} - sys.stdlib_module_names - {"__future__"}


def test_imports_follow_the_arrows(root: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as main; main()",
        "--no-logo",
        "--no-cache",
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", OUTSIDE)
def test_the_low_layers_import_only_what_they_may(graph: grimp.ImportGraph, package: str) -> None:
    assert outside(graph, package) <= OUTSIDE[package]


def test_only_the_kernels_compiler_imports_numba(graph: grimp.ImportGraph) -> None:
    """A board with libraries of kernels has none (`kernels.define`)."""
    compilers = {one for name in ("numba", "llvmlite") for one in graph.find_modules_that_directly_import(name)}
    known = {"kernels.build", "kernels.define", "kernels.isa", "kernels.jit", "benchmarks.arm_cycles"}
    assert compilers <= known


def test_the_agent_imports_only_what_its_install_brings(graph: grimp.ImportGraph, root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project[
        "optional-dependencies"
    ]  # text: when a text's model is used; jit: without libraries of kernels; plot: --plot
    lines = project["dependencies"] + extras["text"] + extras["jit"] + extras["plot"]
    default = {re.split(r"[<>=\[; ]", line)[0] for line in lines}
    allowed = {IMPORT_NAMES.get(name, name) for name in default} | BROUGHT
    assert set().union(*(outside(graph, name) for name in ON_THE_BOARD)) <= allowed


def test_the_demo_imports_only_what_its_extra_brings(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["server"], *extras["torch"], *extras["demo"]]
    names = {re.split(r"[<>=\[; ]", line)[0] for line in lines}
    allowed = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names} | set(PACKAGES) | {"benchmarks"}
    tree = ast.parse((root / "scripts/demo.py").read_text())
    imports = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imports += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in imports} - sys.stdlib_module_names <= allowed


def test_what_listens_loads_no_kernels(root: Path) -> None:
    """`edge-agent run` answers before it imports them, which takes seconds on a board."""
    script = "import sys, edge_agent.commands.run as r; print(*{n.split('.')[0] for n in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "aiohttp" in loaded
    assert not loaded & {"numba", "llvmlite", "kernels", "device_profiles", "PIL", "rich"}


def test_no_module_of_the_agent_loads_the_server_or_its_libraries(root: Path) -> None:
    script = """
import importlib, json, pkgutil, sys
import device_profiles, edge_agent, splitedge
for package in (edge_agent, device_profiles, splitedge):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not NEVER_IN_THE_AGENT & set(json.loads(done.stdout))
