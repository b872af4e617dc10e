"""The systemd unit: accepted by systemd itself, hardened, and safe against odd paths."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.service.unit import NAME, TOKEN_PATH, UnitOptions, drop_ins, render
from splitedge.errors import ConfigError
from tests.raising import raises

EXPOSURE = 20  # systemd-analyze's tenths: at most 2.0 of 10, where 10 is a service without any protection
EXPOSURE_CAMERA = 25

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not installed: the unit is not checked by systemd",
)


def _analyze(unit: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = folder / NAME
    path.write_text(unit)
    command = ["systemd-analyze", *arguments, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _options(folder: Path, **changes) -> UnitOptions:
    executable = folder / "edge-agent"
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    return UnitOptions(executable, token_file=TOKEN_PATH, **changes)


@needs_systemd_analyze
@pytest.mark.parametrize("folder", ["plain", "with a space", "100%", "dollar$HOME", "tilde~ümlaut"])
def test_systemd_accepts_the_unit(tmp_path, folder):
    place = tmp_path / folder
    place.mkdir()
    options = _options(place, config=place / "agent.toml")
    done = _analyze(render(options), tmp_path, "verify", "--man=no")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd_analyze
def test_the_unit_is_hardened_below_the_stated_exposure(tmp_path):
    done = _analyze(
        render(_options(tmp_path)), tmp_path, "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}"
    )
    assert done.returncode == 0, done.stdout


@needs_systemd_analyze
def test_with_kernels_in_the_package_no_memory_becomes_code(tmp_path):
    unit = render(_options(tmp_path, compiles=False))
    assert "\nMemoryDenyWriteExecute=yes\n" in unit
    assert "ExecStartPre" not in unit
    assert "\nMemoryDenyWriteExecute=no\n" in render(_options(tmp_path))
    done = _analyze(unit, tmp_path, "verify", "--man=no")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = _analyze(unit, tmp_path, "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE - 1}")
    assert done.returncode == 0, done.stdout


def test_it_notifies_restarts_and_runs_as_a_user_of_its_own(tmp_path):
    unit = render(_options(tmp_path))
    for line in (
        "Type=notify", "Restart=on-failure", "StartLimitIntervalSec=0", "RestartSec=2", "WatchdogSec=30", "DynamicUser=yes",
        "StateDirectory=splitedge", "CacheDirectory=splitedge", "ConfigurationDirectory=splitedge",
        "After=network-online.target", "RestartPreventExitStatus=2 4 243",
        f"ExecStartPre=-{tmp_path}/edge-agent warm",
        f"ExecStart={tmp_path}/edge-agent run --config /etc/splitedge/agent.toml",
        "LoadCredential=splitedge-token:/etc/splitedge/token",
        "Environment=SPLITEDGE_TOKEN_FILE=/run/credentials/splitedge-agent.service/splitedge-token",
    ):  # fmt: skip
        assert line in unit.splitlines()


def test_nothing_in_it_stops_the_just_in_time_compiler(tmp_path):
    lines = render(_options(tmp_path)).splitlines()
    assert "MemoryDenyWriteExecute=yes" not in lines
    assert "ProcSubset=pid" not in lines
    assert not [line for line in lines if line.startswith("SystemCallFilter") and "@resources" in line]


def test_home_is_hidden_unless_the_agent_lives_there(tmp_path):
    assert "ProtectHome=yes" in render(_options(tmp_path)).splitlines()
    assert "ProtectHome=read-only" in render(_options(tmp_path, home_visible=True)).splitlines()


def test_without_a_token_file_no_credential_is_loaded():
    assert "LoadCredential" not in render(UnitOptions(Path("/opt/splitedge/bin/edge-agent")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (UnitOptions(Path("bin/edge-agent")), "not-absolute"),
        (UnitOptions(Path("/bin/a\nUser=root")), "control-character"),
        (UnitOptions(Path("/bin/a"), config=Path("/etc/a\\")), "quotes"),
    ],
)
def test_what_a_unit_cannot_hold_is_refused(options, message):
    with raises(ConfigError, reason=message):
        render(options)


@given(name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_no_path_adds_a_line_to_the_unit(name):
    plain = render(UnitOptions(Path("/bin/agent"))).count("\n")
    try:
        unit = render(UnitOptions(Path("/bin/agent"), config=Path("/etc") / name))
    except ConfigError:
        return
    assert unit.count("\n") == plain
    assert len(re.findall(r"^ExecStart=", unit, re.MULTILINE)) == 1


@needs_systemd_analyze
def test_drop_ins_let_the_service_use_cameras_and_limit_it(tmp_path):
    options = _options(tmp_path, compiles=False, camera=True, threads=3)
    beside = drop_ins(options)
    assert set(beside) == {"camera.conf", "limits.conf"}
    folder = tmp_path / f"{NAME}.d"
    folder.mkdir()
    for name, text in beside.items():
        (folder / name).write_text(text)
    done = _analyze(render(options), tmp_path, "verify", "--man=no")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "CPUQuota=300%" in beside["limits.conf"]
    # systemd-analyze does not read drop-ins of a file, so the camera's lines come after those of the unit
    unit = render(options).replace("\n[Install]", beside["camera.conf"].partition("[Service]")[2] + "\n[Install]")
    done = _analyze(unit, tmp_path, "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE_CAMERA}")
    assert done.returncode == 0, done.stdout


def test_drop_ins_stay_unless_they_are_asked_for(tmp_path):
    assert drop_ins(_options(tmp_path)) == {}
    assert drop_ins(_options(tmp_path, camera=False, threads=0)) == {"camera.conf": None, "limits.conf": None}
