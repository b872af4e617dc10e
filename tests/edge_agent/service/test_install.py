"""Installing the service below another root, and the refusals on this one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from edge_agent.service import check
from edge_agent.service import install as service
from edge_agent.service.unit import NAME, UnitOptions, render
from splitedge import limits
from splitedge.errors import ConfigError, PlatformError, StoreError, UsageError
from tests.raising import raises

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


def test_a_dry_run_says_what_the_real_install_would_refuse(monkeypatch):
    missing, said = UnitOptions(Path("/opt/splitedge/bin/edge-agent"), Path("/etc/nothing-of-this-name.toml")), []
    assert service.install(missing, dry_run=True, say=said.append) == render(missing)
    assert any("/opt/splitedge/bin/edge-agent" in line for line in said)
    monkeypatch.setattr(check, "unreachable", lambda path: "gone" if path == missing.config else "")
    monkeypatch.setattr(service, "require_root", lambda _: None)
    with raises(ConfigError, reason="problems") as caught:
        service.install(missing)
    assert [str(missing.config) in problem for problem in caught.value.data["problems"]] == [True]


@pytest.fixture
def installed(tmp_path):
    """An image with the service and everything that it leaves behind in a life."""
    service.install(UnitOptions(Path("/opt/a"), Path("/srv/agent.toml"), Path("/srv/token")), root=tmp_path)
    for name in (
        "etc/splitedge/agent.toml", "etc/splitedge/token", "etc/splitedge/agent.env", "etc/splitedge/ca.pem", "srv/agent.toml", "srv/token",
        f"etc/systemd/system/{NAME}.d/override.conf", "var/lib/private/splitedge/x", "var/cache/private/splitedge/kernels-1/y",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for name in ("lib", "cache"):
        (tmp_path / "var" / name / "splitedge").symlink_to("private/splitedge")
    return tmp_path


def names(paths, root):
    return sorted(str(path.relative_to(root)) for path in paths)


def test_uninstall_removes_the_unit_and_lists_all_that_stays(installed):
    found = service.uninstall(root=installed)
    assert names(found.gone, installed) == [f"etc/systemd/system/{NAME}"]
    assert names(found.kept, installed) == [
        "etc/splitedge/agent.env", "etc/splitedge/agent.toml", "etc/splitedge/ca.pem", "etc/splitedge/token", f"etc/systemd/system/{NAME}.d",
        "srv/agent.toml", "srv/token", "var/cache/private/splitedge", "var/lib/private/splitedge",
    ]  # fmt: skip
    assert all(path.exists() for path in found.kept)


def test_purge_removes_what_is_the_services_own_and_nothing_else(installed):
    found = service.uninstall(purge=True, root=installed)
    assert names(found.kept, installed) == ["etc/splitedge/ca.pem", "srv/agent.toml", "srv/token"]
    left = [path for path in installed.rglob("*") if not path.is_dir()]
    assert names(left, installed) == names(found.kept, installed)
    assert not any(path.exists() or path.is_symlink() for path in found.gone)


def test_what_a_removal_left_can_be_purged_later_once(installed):
    service.uninstall(root=installed)
    (installed / "etc/splitedge/ca.pem").unlink()
    service.uninstall(purge=True, root=installed)
    assert not (installed / "etc/splitedge").exists()
    with pytest.raises(UsageError):
        service.uninstall(purge=True, root=installed)


@pytest.mark.parametrize("action", [service.uninstall, service.status])
def test_without_a_unit_the_way_to_install_is_named(tmp_path, action):
    with raises(UsageError, reason="not-installed"):
        action(root=tmp_path)


def test_a_start_is_followed_for_longer_than_the_unit_allows_it_to_take():
    unit = render(OPTIONS)
    start, stop = (int(re.findall(rf"^Timeout{of}Sec=(\d+)$", unit, re.MULTILINE)[0]) for of in ("Start", "Stop"))
    commands = len(re.findall(r"^ExecStart(?:Pre)?=", unit, re.MULTILINE))
    assert commands == 2
    assert stop < limits.SERVICE_TIMEOUT
    assert commands * start < limits.SERVICE_START


def test_a_root_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "etc").write_text("a file where the folder should be")
    with raises(StoreError, reason="cannot-write"):
        service.install(OPTIONS, root=tmp_path)


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd runs here: the refusal cannot be seen")
@pytest.mark.parametrize("action", [lambda: service.install(OPTIONS), service.uninstall])
def test_without_systemd_or_root_nothing_is_changed(action):
    with pytest.raises(PlatformError) as caught:
        action()
    assert caught.value.data["reason"] in ("no-systemd", "not-root")


def test_only_root_may_install(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with raises(PlatformError, reason="not-root"):
        service.install(OPTIONS)


def test_the_default_unit_runs_this_installation():
    options = service.default_options()
    assert options.executable.name == "edge-agent"
    assert options.executable.is_absolute()


@pytest.mark.parametrize(
    "text", ["", "token_file = '{}/own'", "token_file = '~/own'", "token_file = '{}/absent'", "token_file = 1"]
)
def test_the_token_that_the_configuration_names_is_handed_over_by_systemd(tmp_path, monkeypatch, text):
    monkeypatch.setattr(service, "TOKEN_PATH", tmp_path / "token")
    for name in ("own", "token", "given"):
        (tmp_path / name).write_text("")
    (tmp_path / "agent.toml").write_text(text.format(tmp_path))
    expected = {"": "token", "token_file = 1": "token", "token_file = '{}/own'": "own"}.get(text)
    options = service.default_options(tmp_path / "agent.toml")
    assert options.token_file == (expected and tmp_path / expected)
    given = service.default_options(tmp_path / "agent.toml", token_file=tmp_path / "given")
    assert given.token_file == tmp_path / "given"


def test_drop_ins_are_written_kept_and_removed(tmp_path):
    folder = tmp_path / "etc/systemd/system" / f"{NAME}.d"

    def after(**changes):
        service.install(UnitOptions(Path("/opt/a"), **changes), root=tmp_path)
        return sorted(path.name for path in folder.iterdir())

    assert after(camera=True, threads=2) == ["camera.conf", "limits.conf"]
    assert after() == ["camera.conf", "limits.conf"]
    assert after(camera=False) == ["limits.conf"]
    assert after(threads=0) == []
