"""Installing the service below another root, and the refusals on this one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from edge_agent import limits
from edge_agent.errors import ConfigError, PlatformError, SplitEdgeError, StoreError, UsageError
from edge_agent.service import install as service
from edge_agent.service.unit import NAME, TOKEN_PATH, UnitOptions, render

OPTIONS = UnitOptions(Path("/opt/splitedge/bin/edge-agent"))


def test_install_writes_the_unit_and_nothing_else(tmp_path):
    text = service.install(OPTIONS, root=tmp_path)
    unit = tmp_path / "etc/systemd/system" / NAME
    assert unit.read_text() == text
    assert unit.stat().st_mode & 0o777 == 0o644
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [unit]


def test_install_again_replaces_the_unit(tmp_path):
    service.install(OPTIONS, root=tmp_path)
    service.install(UnitOptions(Path("/usr/bin/edge-agent")), root=tmp_path)
    assert "/usr/bin/edge-agent" in (tmp_path / "etc/systemd/system" / NAME).read_text()


def test_a_dry_run_touches_nothing(tmp_path):
    assert service.install(OPTIONS, dry_run=True, root=tmp_path) == render(OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_checks_the_files_that_it_names_as_the_real_install_does(monkeypatch):
    missing = UnitOptions(Path("/opt/splitedge/bin/edge-agent"), Path("/etc/nothing-of-this-name.toml"))
    with pytest.raises(ConfigError, match="cannot use /opt/splitedge/bin/edge-agent"):
        service.install(missing, dry_run=True)
    monkeypatch.setattr(service, "unreachable", lambda path: "gone" if path == missing.config else "")
    with pytest.raises(ConfigError, match=r"cannot read the configuration /etc/nothing-of-this-name\.toml"):
        service.install(missing, dry_run=True)


def test_uninstall_removes_the_unit_and_keeps_the_token(tmp_path):
    service.install(OPTIONS, root=tmp_path)
    token = tmp_path / TOKEN_PATH.relative_to("/")
    token.parent.mkdir(parents=True)
    token.write_text("sesame")
    service.uninstall(root=tmp_path)
    assert not (tmp_path / "etc/systemd/system" / NAME).exists()
    assert token.exists()


@pytest.mark.parametrize("action", [service.uninstall, service.status])
def test_without_a_unit_the_way_to_install_is_named(tmp_path, action):
    with pytest.raises(UsageError, match="edge-agent service install"):
        action(root=tmp_path)


def test_systemctl_is_given_longer_than_the_unit_takes_to_stop_and_start():
    unit = render(OPTIONS)
    start, stop = (int(re.findall(rf"^Timeout{of}Sec=(\d+)$", unit, re.MULTILINE)[0]) for of in ("Start", "Stop"))
    commands = len(re.findall(r"^ExecStart(?:Pre)?=", unit, re.MULTILINE))
    assert commands == 2
    assert stop + commands * start < limits.SERVICE_TIMEOUT


def test_a_root_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "etc").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot be written"):
        service.install(OPTIONS, root=tmp_path)


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd runs here: the refusal cannot be seen")
@pytest.mark.parametrize("action", [lambda: service.install(OPTIONS), service.uninstall])
def test_without_systemd_or_root_nothing_is_changed(action):
    with pytest.raises(PlatformError, match=r"systemd does not run|root only"):
        action()


def test_only_root_may_install(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PlatformError, match="sudo"):
        service.install(OPTIONS)


def test_the_default_unit_runs_this_installation():
    options = service.default_options()
    assert options.executable.name == "edge-agent"
    assert options.executable.is_absolute()


def test_reach_is_judged_by_the_permission_bits():
    assert service.unreachable(Path("/etc/passwd")) == ""
    assert service.unreachable(Path("/etc/shadow")) == "its permissions"
    assert service.unreachable(Path("/etc/nothing-of-this-name")) == "No such file or directory"
    assert "own /tmp" in service.unreachable(Path("/tmp"))


def test_systemctl_s_answer_becomes_a_status():
    shown = (
        "Result=success\nNRestarts=2\nMainPID=4711\nActiveState=active\nSubState=running\nUnitFileState=enabled\n"
        "StatusText=lite0: 12 frames/s, a=b\nStateChangeTimestamp=Sat 2026-01-03 10:00:00 UTC\n"
    )
    status = service.parse_status(shown)
    assert (status.enabled, status.active, status.state, status.pid, status.restarts) == (
        True,
        "active",
        "running",
        4711,
        2,
    )
    assert status.says == "lite0: 12 frames/s, a=b"


def test_an_empty_answer_is_an_unknown_status():
    assert service.parse_status("").active == "unknown"


def test_a_systemctl_that_fails_is_one_sentence(tmp_path, monkeypatch):
    fake = tmp_path / "systemctl"
    fake.write_text("#!/bin/sh\necho 'Unit splitedge-agent.service has a bad setting.' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SplitEdgeError, match=r"'systemctl enable' failed \(Unit .* bad setting\): look at 'journalctl"):
        service._systemctl("enable", NAME)
