"""`edge-agent doctor` as a process: its report, its exit status, and what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edge_agent.commands.doctor import repairs, report, summary
from edge_agent.doctor import Check
from edge_agent.doctor.fixes import Fixed
from kernels import isa

EVERYWHERE = {"board", "platform", "instructions", "kernels", "cores", "clock", "heat", "power", "load", "memory"}
EVERYWHERE |= {"storage", "date", "configuration"}


def test_each_check_is_a_line_and_what_is_not_ok_has_advice() -> None:
    checks = [
        Check("cores", "ok", "4"),
        Check("memory", "warn", "low", "stop programs"),
        Check("server", "fail", "x", "go"),
    ]
    lines = report(checks, 80).plain.splitlines()
    assert lines[:3] == ["ok    cores   4", "warn  memory  low", "              -> stop programs"]
    assert summary(checks).plain == "1 ok, 1 to check, 1 failed"


def test_each_fix_up_is_a_line() -> None:
    lines = repairs([Fixed("kernels", False, "no memory"), Fixed("folder modes", True, "x")], 80).plain.splitlines()
    assert lines == ["left  kernels       no memory", "done  folder modes  x"]
    assert repairs([], 80).plain == "nothing to fix"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPLITEDGE_")}
    command = [sys.executable, "-W", "error", "-m", "edge_agent", "doctor", *arguments]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False)


def checks(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.mark.slow
def test_it_compiles_and_changes_nothing(tmp_path: Path) -> None:
    done = run("--json", SPLITEDGE_CACHE_DIR=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path), SPLITEDGE_KERNELS="jit")
    found = checks(done)
    assert done.returncode == 0, done.stderr
    assert found.keys() >= EVERYWHERE
    assert all(check.keys() == {"name", "verdict", "found", "advice"} for check in found.values())
    assert found["kernels"]["verdict"] == "warn"
    assert isa.best(isa.host_features()) in found["instructions"]["found"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_crash_of_numpy_and_a_bad_configuration_do_not_end_it(tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy/__init__.py").write_text("import os\nos.kill(os.getpid(), 4)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    archive = tmp_path / "report.zip"
    done = run("--bundle", str(archive), "--json", "--config", str(tmp_path / "absent.toml"), PYTHONPATH=path)
    found = checks(done)
    assert done.returncode == 1, done.stderr
    assert not json.loads(done.stdout)["ok"]
    assert {name for name, check in found.items() if check["verdict"] == "fail"} == {"kernels", "configuration"}
    assert "SIGILL" in found["kernels"]["found"]
    assert found.keys() >= EVERYWHERE
    with zipfile.ZipFile(archive) as opened:
        assert json.loads(opened.read("report.json")) == json.loads(done.stdout)


@pytest.mark.slow
def test_it_fits_80_columns_and_fixes_before_it_checks(tmp_path: Path) -> None:
    (tmp_path / "splitedge").write_text("where a folder should be")  # so nothing is compiled
    (tmp_path / "agent.toml").write_text(f"cache_dir = '{tmp_path}/made'\n")
    environment = {"XDG_CACHE_HOME": str(tmp_path), "SPLITEDGE_KERNELS": "jit"}
    done = run("--fix", "--config", str(tmp_path / "agent.toml"), **environment)
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "made").is_dir()
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["done", "cache", "folder", "created", *lines[0].split()[4:]]
    assert [line for line in lines if len(line) > 80 and str(tmp_path) not in line] == []


def test_a_bundle_that_exists_is_refused_before_any_check(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("mine")
    done = run("--bundle", str(tmp_path / "x.zip"))
    assert (done.returncode, done.stdout) == (2, "")
    assert (tmp_path / "x.zip").read_text() == "mine"
