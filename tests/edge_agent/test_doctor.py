"""`edge-agent doctor`: what it says of boards in good and in bad order, and what a process of it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_agent import doctor
from edge_agent.commands.doctor import report, summary
from edge_agent.config import Settings
from edge_agent.doctor import Check
from kernels import isa
from splitedge import limits
from tests.small_server import TOKEN, SmallServer

CPU = "sys/devices/system/cpu/cpu0/cpufreq/"


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "verdict"),
    [
        ({}, "ok"),
        ({CPU + "scaling_governor": "ondemand\n", CPU + "scaling_driver": "cpufreq-dt\n"}, "ok"),
        ({CPU + "scaling_governor": "powersave\n", CPU + "scaling_driver": "cpufreq-dt\n"}, "warn"),
        ({CPU + "scaling_governor": "powersave\n", CPU + "scaling_driver": "intel_pstate\n"}, "ok"),
    ],
)
def test_a_governor_that_keeps_the_lowest_clock_is_noted(tmp_path: Path, files: dict[str, str], verdict: str) -> None:
    found = doctor.clock(lay_out(tmp_path, files))
    assert found.verdict == verdict
    assert ("scaling_governor" in found.advice) == (verdict == "warn")


@pytest.mark.parametrize(
    ("flags", "verdict", "words"),
    [("0x0", "ok", "no throttling"), ("0x50005", "warn", "under-voltage"), ("0x40000", "warn", "throttled since boot")],
)
def test_a_pi_that_is_or_was_slowed_down_is_noted(tmp_path: Path, flags: str, verdict: str, words: str) -> None:
    found = doctor.heat(lay_out(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": flags}))
    assert (found.verdict, bool(found.advice)) == (verdict, verdict == "warn")
    assert words in found.found


def test_a_system_that_shows_nothing_fails_nothing(tmp_path: Path) -> None:
    checks = (doctor.cores, doctor.memory, doctor.clock, doctor.heat, doctor.sensor)
    assert {check(tmp_path).verdict for check in checks} == {"ok"}


@pytest.mark.parametrize(("quota", "verdict"), [("150000", "ok"), ("50000", "warn")])
def test_a_quota_is_told_and_one_under_a_core_is_noted(tmp_path: Path, quota: str, verdict: str) -> None:
    files = {"sys/fs/cgroup/cpu.max": f"{quota} 100000\n", "proc/self/cgroup": "0::/\n"}
    found = doctor.cores(lay_out(tmp_path, files))
    assert found.verdict == verdict
    assert f"quota {int(quota) / 100000:g} cores" in found.found
    assert "at most 1" in found.found


def test_memory_must_do_for_heads_and_before_that_for_compiling(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"proc/meminfo": "MemTotal:  1000000 kB\nMemAvailable:  400000 kB\n"})
    assert doctor.memory(root).verdict == "ok"
    assert "compiling" in doctor.memory(root, compiled=False).advice
    lay_out(tmp_path, {"proc/meminfo": "MemTotal:  1000000 kB\nMemAvailable:  200000 kB\n"})
    assert "large heads" in doctor.memory(root).advice


@pytest.mark.skipif(len(isa.ISAS) == 1, reason="there is no lower instruction set here")
def test_a_lower_instruction_set_than_could_be_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPLITEDGE_ISA", raising=False)
    assert doctor.instructions().verdict == "ok"
    monkeypatch.setenv("SPLITEDGE_ISA", "portable")
    found = doctor.instructions()
    assert found.verdict == "warn"
    assert "SPLITEDGE_ISA" in found.advice


def test_a_configuration_that_is_not_valid_fails_and_the_server_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("modle = 'x'\n")
    last = asyncio.run(doctor.examine(tmp_path / "agent.toml", {}))[-1]
    assert (last.name, last.verdict) == ("configuration", "fail")
    assert "`modle`" in last.advice


async def test_a_server_that_answers_is_asked_for_the_model() -> None:
    async with SmallServer() as small:
        good = await doctor.server(Settings(server=small.url, token=TOKEN, model="small"))
        absent = await doctor.server(Settings(server=small.url, token=TOKEN, model="absent"))
        refused = await doctor.server(Settings(server=small.url, token="wrong", model="small"))
    assert (good.verdict, good.advice) == ("ok", "")
    assert "small" in good.found
    assert absent.verdict == refused.verdict == "fail"
    assert "no model 'absent'" in absent.advice
    assert "token" in refused.advice


async def test_a_server_that_is_silent_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DOCTOR_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are made, and nobody takes them
        found = await doctor.server(Settings(server=f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert found.verdict == "fail"
    assert "0.1 s" in found.advice


async def test_a_server_that_nobody_configured_need_not_be_there() -> None:
    assert (await doctor.server(Settings())).verdict == "ok"


def test_each_check_is_a_line_and_what_is_not_ok_has_advice() -> None:
    checks = [
        Check("cores", "ok", "4"),
        Check("memory", "warn", "low", "stop programs"),
        Check("server", "fail", "x", "go"),
    ]
    lines = report(checks, 80).plain.splitlines()
    assert lines[:3] == ["ok    cores   4", "warn  memory  low", "              -> stop programs"]
    assert summary(checks).plain == "1 ok, 1 to check, 1 failed"


# --- as a process


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPLITEDGE_")}
    command = [sys.executable, "-W", "error", "-m", "edge_agent", "doctor", *arguments]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False)


def checks(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.mark.slow
def test_it_compiles_nothing_and_says_that_the_cache_is_cold(tmp_path: Path) -> None:
    done = run("--json", SPLITEDGE_CACHE_DIR=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))
    found = checks(done)
    assert done.returncode == 0, done.stderr
    assert found["kernel cache"]["verdict"] == "warn"
    assert "edge-agent warm" in found["kernel cache"]["advice"]
    assert isa.best(isa.host_features()) in found["instructions"]["found"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_cache_that_cannot_be_used_is_a_warning_and_a_bad_configuration_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    done = run("--json", "--config", str(tmp_path / "absent.toml"), SPLITEDGE_CACHE_DIR=str(tmp_path / "file"))
    found = checks(done)
    assert done.returncode == 1
    assert not json.loads(done.stdout)["ok"]
    assert found["kernel cache"]["verdict"] == "warn"
    assert "SPLITEDGE_CACHE_DIR" in found["kernel cache"]["advice"]
    assert found["configuration"]["verdict"] == "fail"
