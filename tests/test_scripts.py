"""The shell scripts, and the commands that the reference lists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = (
    "scripts/common.sh",
    "scripts/demo",
    "scripts/libraries.sh",
    "scripts/release",
    "scripts/sample",
    "scripts/test",
    "scripts/test-arm",
    "scripts/test-systemd",
    "scripts/wheels",
    ".ci/run",
)
MAINTAINER = ("postinst", "prerm", "postrm")  # of the Debian package


def documented_commands() -> list[str]:
    """The commands of docs/reference/commands.md."""
    return re.findall(r"^## (edge-.*)$", (ROOT / "docs/reference/commands.md").read_text(), re.MULTILINE)


def bash(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` in a shell that knows nothing but ``environment``; scripts/common.sh is sourced first."""
    text = f"set -euo pipefail; source {ROOT}/scripts/common.sh; {script}"
    bare = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(["bash", "-c", text, "scripts/test"], env=bare, capture_output=True, text=True, cwd="/")


def fake_python(folder: Path, says: str) -> str:
    """A program that answers the interpreter probe with ``says``."""
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\necho {says}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_bash(script: str) -> None:
    done = subprocess.run(["bash", "-n", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", [s for s in SCRIPTS if not s.endswith(".sh")])
def test_scripts_are_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize("script", MAINTAINER)
def test_maintainer_scripts_are_valid_for_any_shell(script: str) -> None:
    done = subprocess.run(["sh", "-n", f"packaging/deb/{script}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_needs_no_set_up() -> None:
    done = subprocess.run(
        ["scripts/test", "--help"], cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--fast" in done.stdout


def test_a_processor_that_cannot_be_emulated_is_refused_before_anything_is_built() -> None:
    bare = {"PATH": "/usr/bin:/bin", "SPLITEDGE_PYTHON": "none"}
    done = subprocess.run(["scripts/test-arm", "cortex-m4"], cwd=ROOT, env=bare, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "test-arm: no such processor: cortex-m4; name some of cortex-a72, cortex-a76 and max\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give the folder"),
        (["{out}"], "openssl ecparam -genkey -name prime256v1 -noout -out KEY.pem"),
        (["--key", "{none}", "{out}"], "cannot read the key"),
        (["--key", "{rsa}", "{out}"], "no private ECDSA key"),
        (["--key", "{public}", "{out}"], "no private ECDSA key"),
        (["--machine", "armv7l", "{out}"], "no such machine: armv7l"),
        (["{out}", "{none}"], "give one folder"),
        (["--kye", "{out}"], "unknown option --kye"),
        (["--key", "{ec}", "--url", "boards'; x", "{out}"], "is not a URL"),
    ],
)
def test_a_release_that_cannot_be_made_is_refused_before_anything_is_built(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    places = {name: str(tmp_path / name) for name in ("out", "none", "rsa", "ec", "public")}
    make = [
        ["openssl", "genrsa", "-out", places["rsa"], "2048"],
        ["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", places["ec"]],
        ["openssl", "pkey", "-in", places["ec"], "-pubout", "-out", places["public"]],
    ]
    for command in make:
        subprocess.run(command, check=True, capture_output=True)
    bare = {"PATH": "/usr/bin:/bin", "SPLITEDGE_PYTHON": "none"}
    command = ["scripts/release", *(one.format(**places) for one in arguments)]
    done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert sentence in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_good_python_is_found() -> None:
    done = bash("find_python", SPLITEDGE_PYTHON=sys.executable)
    assert done.stdout.strip() == sys.executable


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        ("old 3.9.2", "splitedge needs Python 3.11 or newer and this is 3.9.2"),
        ("narrow", "32-bit Python"),
        ("bare", "sudo apt install python3-venv"),
        ("", "none was found"),
    ],
)
def test_a_python_that_will_not_do_is_refused_in_one_sentence(tmp_path: Path, says: str, sentence: str) -> None:
    done = bash("find_python", SPLITEDGE_PYTHON=fake_python(tmp_path, says))
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_python_that_will_not_do_is_passed_over_for_one_that_will(tmp_path: Path) -> None:
    done = bash("find_python", SPLITEDGE_PYTHON=f"{fake_python(tmp_path, 'bare')} {sys.executable}")
    assert done.stdout.strip() == sys.executable


def test_set_up_installs_once_and_grows_by_what_is_missing(tmp_path: Path) -> None:
    script = f"""
        VENV={tmp_path}/venv CACHE={tmp_path} STAMP={tmp_path}/stamp
        make_venv() {{ :; }}
        fingerprint() {{ echo "$KEY"; }}
        install() {{ echo "install$1"; }}
        KEY=one; setup demo; setup demo; setup test; setup demo; setup demo test; KEY=two; setup demo
    """
    done = bash(script)
    assert done.stdout.split("\n")[:-1] == ["install demo", "installdemo test", "install demo"], done.stderr


def test_a_failed_installation_leaves_no_stamp(tmp_path: Path) -> None:
    script = f"""
        VENV={tmp_path}/venv CACHE={tmp_path} STAMP={tmp_path}/stamp
        make_venv() {{ :; }}
        fingerprint() {{ echo one; }}
        pip() {{ echo "no space left"; return 1; }}
        setup demo
    """
    done = bash(script)
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert "the installation failed" in done.stderr
    assert not (tmp_path / "stamp").exists()


def checkout(folder: Path, **fails: str) -> Path:
    """A working tree that is set up, with the real scripts/test, and tools that print their name; those in ``fails`` print that and fail."""
    (folder / "scripts").mkdir()
    for name in ("test", "common.sh"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts" / name)
    tools = folder / ".venv" / "bin"
    tools.mkdir(parents=True)
    (folder / ".venv" / ".splitedge-installed").write_text("python\ntest test-all\n")
    for tool in ("python", "ruff", "mypy", "lint-imports", "mkdocs", "edge-agent", "pytest", "coverage"):
        said = fails.get(tool, tool)
        (tools / tool).write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\nexit {int(tool in fails)}\n")
        (tools / tool).chmod(0o755)
    return folder


def run_checks(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["scripts/test", *arguments]
    return subprocess.run(command, cwd=folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [[], ["--all"], ["--fast"], ["--long"], ["tests/edge_agent", "-k", "link"]])
def test_checks_that_pass_are_summed_up(tmp_path: Path, arguments: list[str]) -> None:
    done = run_checks(checkout(tmp_path), *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("all passed\n")
    assert not list((tmp_path / ".cache").glob("test.*"))


def test_checks_that_fail_come_last(tmp_path: Path) -> None:
    report = "dots\n===== FAILURES =====\nwhat failed\n===== short test summary ====="
    done = run_checks(checkout(tmp_path, mypy="a wrong type", pytest=report), "--all")
    assert done.returncode == 1
    assert done.stderr == "test: failed: types tests; the messages are above\n"
    repeated = done.stdout[done.stdout.index("== types failed:") :]
    assert "a wrong type" in repeated
    assert "what failed" in repeated[repeated.index("== tests failed:") :]
    assert "dots" not in repeated
    *_, last = done.stdout.splitlines()
    assert last.split()[:2] == ["coverage", "ok"]


@pytest.mark.parametrize("command", documented_commands())
def test_a_documented_command_explains_itself(command: str) -> None:
    program, *rest = command.split()
    module = program.replace("-", "_")
    done = subprocess.run([sys.executable, "-m", module, *rest, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
