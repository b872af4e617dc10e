"""Installing the server's service below another root, its defaults, and the refusals on this one."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_server import certificate
from edge_server.cli import app
from edge_server.commands import service as command
from edge_server.config import ServeConfig
from edge_server.service import install as service
from edge_server.service.unit import SERVICE, STATE, UnitOptions, render
from edge_server.store import folders
from edge_server.store.store import Store
from splitedge import limits
from splitedge.errors import ConfigError, PlatformError, UsageError
from splitedge.service import install as steps
from splitedge.service import status
from tests.raising import raises

OPTIONS = UnitOptions(Path("/opt/splitedge/bin/edge-server"))
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "SPLITEDGE_STORE", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_install_writes_the_unit_and_nothing_else(tmp_path: Path) -> None:
    text = service.install(OPTIONS, root=tmp_path)
    unit = tmp_path / "etc/systemd/system" / SERVICE.unit
    assert unit.read_text() == text == render(OPTIONS)
    assert unit.stat().st_mode & 0o777 == 0o644
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [unit]


def test_the_certificate_of_init_is_the_default(tmp_path: Path) -> None:
    assert service.default_options(ServeConfig(), None, None).serve == ServeConfig()
    made = certificate.make(certificate.default_folder(), ["server.example"])
    found = service.default_options(ServeConfig("0.0.0.0"), None, None).serve
    assert (found.host, found.cert, found.key) == ("0.0.0.0", str(made.cert), str(made.key))
    other = certificate.make(tmp_path / "other", ["server.example"])
    assert service.default_options(ServeConfig(), None, tmp_path / "other").serve.cert == str(other.cert)
    given = service.default_options(ServeConfig(cert="~/a.pem", key="b.key"), None, None).serve
    assert (given.cert, given.key) == (str(tmp_path / "a.pem"), str(Path("b.key").absolute()))


def test_sudo_looks_for_the_certificate_of_its_caller(tmp_path: Path) -> None:
    home = Path(pwd.getpwuid(0).pw_dir)
    assert service.default_folder({"SUDO_USER": "root", "HOME": "/x"}) == home / ".config/splitedge"
    assert service.default_folder({"SUDO_USER": "nobody-of-this-name"}) == tmp_path / ".config/splitedge"


def test_a_dry_run_prints_the_unit_and_the_problems_and_changes_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["service", "install", "--host", "0.0.0.0", "--dry-run"], catch_exceptions=False)
    assert result.exit_code == 0
    assert f"--store {STATE} --host 0.0.0.0" in result.stdout
    assert "--cert" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_faults_are_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "unreachable", lambda _: "")
    assert list(service.problems(OPTIONS)) == []
    made = certificate.make(tmp_path / "c", ["server.example"])
    good = ServeConfig("0.0.0.0", cert=str(made.cert), key=str(made.key))
    assert list(service.problems(UnitOptions(OPTIONS.executable, good))) == []
    for bad in (
        ServeConfig("0.0.0.0"),
        ServeConfig(cert=str(made.cert)),
        ServeConfig(cert=str(made.cert), key=str(made.cert)),
        ServeConfig("0.0.0.0", auth=False, cert=str(made.cert), key=str(made.key)),
    ):
        assert len(list(service.problems(UnitOptions(OPTIONS.executable, bad)))) == 1
    monkeypatch.setattr(service, "require_root", lambda _: None)
    with raises(ConfigError, reason="problems"):
        service.install(UnitOptions(OPTIONS.executable, ServeConfig("0.0.0.0")))
    monkeypatch.setattr(service, "unreachable", lambda _: "gone")
    assert len(list(service.problems(OPTIONS))) == 1
    assert list(service.problems(UnitOptions(OPTIONS.executable, store=tmp_path, user="anna"))) == []


@needs_root
def test_a_given_store_is_served_by_its_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    assert service.default_options(ServeConfig(), tmp_path, None).user == "nobody"
    (tmp_path / "of-root").mkdir()
    with raises(ConfigError, reason="store-of-root"):
        service.default_options(ServeConfig(), tmp_path / "of-root", None)


def test_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with raises(ConfigError, reason="no-store"):
        service.default_options(ServeConfig(), tmp_path / "nothing", None)


@needs_root
def test_what_root_adds_to_a_store_belongs_to_its_owner(tmp_path: Path) -> None:
    place = tmp_path / "store"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    outside = tmp_path / "outside"
    outside.write_text("of root")
    with Store(place) as store:
        store.tokens.add("board")
        with store.bundles.create("model") as work:
            work.mkdir()
            (work / "file").write_text("")
        (place / "link").symlink_to(outside)
        (place / "second-name").hardlink_to(outside)
    owners = {path.name: path.lstat().st_uid for path in place.rglob("*")}
    assert owners.pop("second-name") == 0
    assert set(owners.values()) == {NOBODY}
    assert {"store.sqlite", "model", "file", "link"} <= set(owners)
    assert outside.stat().st_uid == 0
    folders.hand_over(tmp_path)  # root's own folder: nothing to do
    assert outside.stat().st_uid == 0


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """An image with a service on a given store, and everything that a service with its own store leaves behind."""
    serve = ServeConfig(cert="/srv/100%/server.pem", key="/srv/100%/server.key")
    service.install(UnitOptions(Path("/opt/s"), serve, store=Path("/srv/my store"), user="anna"), root=tmp_path)
    for name in (
        "srv/100%/server.pem", "srv/100%/server.key", "srv/my store/store.sqlite", f"etc/systemd/system/{SERVICE.unit}.d/override.conf",
        "var/lib/private/splitedge-server/store.sqlite", "var/cache/private/splitedge-server/kernels-1/y", "etc/splitedge/agent.toml",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for name in ("lib", "cache"):
        (tmp_path / "var" / name / "splitedge-server").symlink_to("private/splitedge-server")
    return tmp_path


KEPT = ["srv/100%/server.key", "srv/100%/server.pem", "srv/my store"]


def names(paths: list[Path], root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in paths)


def test_uninstall_removes_the_unit_and_lists_all_that_stays(installed: Path) -> None:
    found = service.uninstall(root=installed)
    assert names(found.gone, installed) == [f"etc/systemd/system/{SERVICE.unit}"]
    assert names(found.kept, installed) == [
        f"etc/systemd/system/{SERVICE.unit}.d", *KEPT, "var/cache/private/splitedge-server", "var/lib/private/splitedge-server",
    ]  # fmt: skip
    assert all(path.exists() for path in found.kept)


def test_purge_removes_what_is_the_services_own_and_nothing_else(installed: Path) -> None:
    found = service.uninstall(purge=True, root=installed)
    assert names(found.kept, installed) == KEPT
    left = [path for path in installed.rglob("*") if path.is_file()]
    assert names(left, installed) == ["etc/splitedge/agent.toml", *KEPT[:2], "srv/my store/store.sqlite"]
    with raises(UsageError, reason="not-installed"):
        service.uninstall(purge=True, root=installed)


@pytest.mark.parametrize("action", [service.uninstall, service.status])
def test_without_a_unit_the_way_to_install_is_named(tmp_path: Path, action: Callable[..., object]) -> None:
    with raises(UsageError, reason="not-installed"):
        action(root=tmp_path)


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd runs here: the refusal cannot be seen")
@pytest.mark.parametrize("action", [lambda: service.install(OPTIONS), service.uninstall])
def test_without_systemd_or_root_nothing_is_changed(action: Callable[[], object]) -> None:
    with pytest.raises(PlatformError) as caught:
        action()
    assert caught.value.data["reason"] in ("no-systemd", "not-root")


def test_only_root_may_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with raises(PlatformError, reason="not-root"):
        service.install(OPTIONS)


@pytest.mark.parametrize(
    ("shown", "code"),
    [
        ("ActiveState=active\nStatusText=ready: https://0.0.0.0:8470", 0),
        ("ActiveState=active", 1),
        ("ActiveState=failed", 3),
    ],
)
def test_an_installation_waits_for_the_port_and_status_tells_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: str, code: int
) -> None:
    for name, text in (("systemctl", f"echo '{shown}'"), ("journalctl", "exit 0")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{text}\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(status, "require_systemd", lambda _: None)
    monkeypatch.setattr(steps, "require_systemd", lambda _: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(service, "unreachable", lambda _: "")
    monkeypatch.setattr(service, "ROOT", tmp_path)
    monkeypatch.setattr(limits, "SERVICE_LOOK", 0.0)
    if code == 0:
        service.install(OPTIONS, root=tmp_path)
        calls = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
        assert calls == ["daemon-reload", "reset-failed", "enable", "stop", "start", "show"]
    else:
        steps.write(steps.below(tmp_path, SERVICE.path), "")
    monkeypatch.setattr(command.service, "status", partial(service.status, root=tmp_path))
    assert command.status() == code
    assert SERVICE.unit in capsys.readouterr().out
