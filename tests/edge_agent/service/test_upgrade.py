"""Upgrades that are killed at every step. tests/systemd does the same with a real service."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from edge_agent.service import upgrade, versions
from edge_agent.service.versions import Versions
from splitedge import limits
from splitedge.errors import PlatformError, SplitEdgeError, UsageError
from splitedge.service import install as service_install
from splitedge.service import status as service_status
from splitedge.service.status import parse
from tests.raising import raises

OLD, NEW = "1.0.0", "1.1.0"
PREPARE = upgrade._prepare


class Killed(BaseException):
    """A power cut, or a signal that ends the program."""


class Board:
    """A board with systemd: what it runs, and a countdown to a power cut.

    ``settling``: systemd runs the unit that ends the upgrade.
    """

    def __init__(self, folder, monkeypatch, *, broken=(), fresh=True):
        self.prefix, self.unit, self.broken = folder / "opt", folder / "agent.service", set(broken)
        self.steps_left, self.enabled, self.running, self.settling = -1, {upgrade.SERVICE.unit}, OLD, False
        for version in (OLD, NEW):
            (self.prefix / version).mkdir(parents=True)
            (self.prefix / version / versions.COMPLETE).touch()
        self.versions = Versions(self.prefix)
        self.versions.switch(OLD)
        self.unit.write_text(f"ExecStart=/x run --config {folder}/agent.toml\n# {OLD}\n")
        settle = SimpleNamespace(path=folder / "settle.service", unit="settle.service", name="settle")
        monkeypatch.setattr(sys, "prefix", str(self.prefix / OLD))
        for name, value in {
            "SETTLE": settle, "UNIT_PATH": self.unit, "require_root": lambda _: None, "systemctl": self.systemctl,
            "query": lambda _: self.state(), "write": self.write, "_follow": self.follow,
        }.items():  # fmt: skip
            monkeypatch.setattr(upgrade, name, value)
        monkeypatch.setattr(service_install, "systemctl", self.systemctl)
        monkeypatch.setattr(service_status, "query", lambda _: self.state())
        if fresh:  # the installer brings the new version
            (self.prefix / NEW / versions.COMPLETE).unlink()
            monkeypatch.setattr(upgrade, "_prepare", self.prepare)
        monkeypatch.setattr(upgrade.subprocess, "run", self.install)
        for name in ("switch", "begin", "end", "remove"):
            monkeypatch.setattr(self.versions, name, self.step(getattr(self.versions, name)))
        monkeypatch.setattr(limits, "SERVICE_LOOK", 0.0)

    def prepare(self, wanted, old, *others):
        if wanted == NEW:
            (self.prefix / NEW).mkdir(exist_ok=True)
            (self.prefix / NEW / versions.COMPLETE).touch()
            return NEW
        return PREPARE(wanted, old, *others)

    def step(self, function):
        """``function``, which a power cut may prevent."""

        def call(*arguments):
            self.tick()
            return function(*arguments)

        return call

    def tick(self):
        if self.steps_left == 0:
            self.steps_left = -1
            raise Killed
        self.steps_left -= 1

    def systemctl(self, _, verb, *arguments, check=True):
        self.tick()
        if verb == "start" and arguments[-1] == upgrade.SETTLE.unit:
            self.settling = True
        elif verb == "start":
            self.start()
        if verb in ("enable", "disable"):
            (self.enabled.add if verb == "enable" else self.enabled.discard)(arguments[-1])
        return ""

    def write(self, path, text):
        self.tick()
        path.write_text(text)

    def install(self, command, **_):
        """`edge-agent service install` of the new version."""
        self.tick()
        self.unit.write_text(self.unit.read_text().replace(f"# {OLD}", f"# {NEW}"))
        self.tick()
        self.start()
        return subprocess.CompletedProcess(command, 1 if NEW in self.broken else 0, "", "edge-agent: it is broken\n")

    def start(self):
        """systemd starts the service."""
        current = self.versions.current()
        self.running = current if current not in self.broken else None

    def state(self):
        active = "activating" if self.running is None else "active"
        return parse(f"ActiveState={active}\nSubState=auto-restart\nStatusText=ready: serving\nResult=exit-code\n")

    def follow(self, board_versions, say):
        self.settle(say)
        return board_versions.outcome()

    def settle(self, say=lambda _: None):
        """What systemd does with the unit of the upgrade: it runs once it was started, until it succeeds."""
        if self.settling:
            upgrade.settle(say, self.versions)
            self.settling = False

    def boot(self):
        """The board starts again after a power cut."""
        self.settling = upgrade.SETTLE.unit in self.enabled and upgrade.SETTLE.path.exists()
        self.start()

    def upgrade_until(self, steps):
        """Upgrade until ``steps`` are over; returns whether there were as many."""
        self.steps_left = steps
        try:
            upgrade.upgrade(NEW, lambda _: None, versions=self.versions)
        except Killed:
            return True
        return False

    def check(self):
        """The board works, and nothing is left of the upgrade."""
        current = self.versions.current()
        assert self.running == current
        assert f"# {current}" in self.unit.read_text()
        assert self.versions.trial() is None
        assert not upgrade.SETTLE.path.exists()
        assert self.enabled == {upgrade.SERVICE.unit}


def test_an_upgrade(tmp_path, monkeypatch):
    board = Board(tmp_path, monkeypatch)
    outcome = upgrade.upgrade(NEW, lambda _: None, versions=board.versions)
    assert (outcome.version, outcome.failure) == (NEW, "")
    board.check()
    assert board.versions.installed() == [OLD, NEW]


def test_a_version_that_does_not_work_is_rolled_back(tmp_path, monkeypatch):
    board = Board(tmp_path, monkeypatch, broken=[NEW])
    outcome = upgrade.upgrade(NEW, lambda _: None, versions=board.versions)
    assert (outcome.version, outcome.failure) == (OLD, "it is broken")
    board.check()
    assert board.versions.installed() == [OLD]


@pytest.mark.parametrize("broken", [(), (NEW,)], ids=["good", "broken"])
@pytest.mark.parametrize("power", [True, False], ids=["power-cut", "signal"])
def test_an_upgrade_that_ends_at_any_step_leaves_a_version_that_works(tmp_path, monkeypatch, broken, power):
    for steps in range(100):
        folder = tmp_path / str(steps)
        folder.mkdir()
        board = Board(folder, monkeypatch, broken=broken)
        ended = board.upgrade_until(steps)
        if power:
            board.boot()
        if board.running is None:  # only while the unit that continues the upgrade runs
            assert board.settling
        board.settle()
        assert board.versions.trial() is None
        assert board.running == board.versions.current()
        assert board.versions.current() == OLD or not broken
        if upgrade.SETTLE.path.exists():  # it waits for the next boot or upgrade, which removes it
            upgrade.upgrade(NEW, lambda _: None, versions=board.versions)
        board.enabled.discard(upgrade.SETTLE.unit)
        board.check()
        if not ended:
            assert steps > 5
            return
    pytest.fail("the upgrade has no end")


def test_a_second_power_cut_during_the_rollback(tmp_path, monkeypatch):
    for first in (6, 8, 11):
        for second in range(8):
            folder = tmp_path / f"{first}-{second}"
            folder.mkdir()
            board = Board(folder, monkeypatch, broken=[NEW])
            assert board.upgrade_until(first)
            board.boot()
            board.steps_left = second
            try:
                board.settle()
            except Killed:
                board.boot()
            board.steps_left = -1
            board.settle()
            board.enabled.discard(upgrade.SETTLE.unit)
            board.check()
            assert board.versions.current() == OLD


def test_the_end_of_an_upgrade_waits_for_its_beginning(tmp_path, monkeypatch):
    board = Board(tmp_path, monkeypatch)
    seen, record = [], board.versions.begin

    def begin(trial):
        thread.start()
        thread.join(0.2)
        seen.append(thread.is_alive())
        record(trial)

    thread = threading.Thread(target=upgrade.settle, args=(lambda _: None, Versions(board.prefix)))
    monkeypatch.setattr(board.versions, "begin", begin)
    monkeypatch.setattr(upgrade, "_follow", lambda *_: thread.join())
    upgrade.upgrade(NEW, lambda _: None, versions=board.versions)
    assert seen == [True]
    board.check()
    assert board.versions.current() == NEW


def test_a_version_that_was_there_before_stays_after_a_rollback(tmp_path, monkeypatch):
    board = Board(tmp_path, monkeypatch, broken=[NEW], fresh=False)
    upgrade.upgrade(NEW, lambda _: None, versions=board.versions)
    assert board.versions.installed() == [OLD, NEW]


def test_a_version_that_ends_every_attempt_is_given_up(tmp_path, monkeypatch):
    board = Board(tmp_path, monkeypatch)
    for steps in (8, 6, 6):  # within the first, second and third attempt
        board.steps_left = steps
        with pytest.raises(Killed):
            upgrade.upgrade(NEW, lambda _: None, versions=board.versions)
    outcome = upgrade.upgrade(OLD, lambda _: None, versions=board.versions)
    assert (outcome.version, board.versions.outcome().failed) == (OLD, NEW)
    board.check()


def test_a_version_that_failed_is_not_tried_again_unless_it_is_named(tmp_path, monkeypatch):
    board = Board(tmp_path, monkeypatch, broken=[NEW])
    upgrade.upgrade(NEW, lambda _: None, versions=board.versions)
    monkeypatch.setattr(upgrade, "INSTALLER", tmp_path / "install-agent")
    upgrade.INSTALLER.write_text('shift $(($# - 1)); echo "version=$1"')  # nothing is newer than --newer-than
    assert upgrade.upgrade(None, lambda _: None, versions=board.versions).version == OLD
    board.check()


def test_an_upgrade_to_the_version_in_use_changes_nothing(tmp_path, monkeypatch):
    board = Board(tmp_path, monkeypatch)
    board.steps_left = 0
    assert upgrade.upgrade(OLD, lambda _: None, versions=board.versions).version == OLD
    board.steps_left = -1
    board.check()


def test_without_a_service_only_the_link_changes(tmp_path, monkeypatch):
    board = Board(tmp_path, monkeypatch)
    board.unit.unlink()
    assert upgrade.upgrade(NEW, lambda _: None, versions=board.versions).version == NEW
    assert board.versions.current() == NEW
    assert not upgrade.SETTLE.path.exists()


def test_what_is_no_archive_is_refused(tmp_path, monkeypatch):
    board = Board(tmp_path, monkeypatch)
    (tmp_path / "other.tar").touch()
    for wanted, reason in (
        ("x/none.tar", "no-file"),
        (str(tmp_path / "other.tar"), "not-an-archive"),
        ("new", "not-a-version"),
    ):
        with raises(UsageError, reason=reason):
            upgrade.upgrade(wanted, lambda _: None, versions=board.versions)
    board.check()


def test_an_archive_that_cannot_be_installed_changes_nothing(tmp_path, monkeypatch):
    board = Board(tmp_path, monkeypatch)
    monkeypatch.setattr(upgrade, "INSTALLER", tmp_path / "install-agent")
    upgrade.INSTALLER.write_text("echo looking; echo 'install-agent: the signature is wrong' >&2; exit 1")
    said = []
    with raises(SplitEdgeError, reason="not-installed") as caught:
        upgrade.upgrade("1.2.0", said.append, versions=board.versions)
    assert caught.value.data["cause"] == "the signature is wrong"
    assert said[0] == "looking"
    board.check()


def test_an_installation_without_install_agent_is_not_upgraded():
    with raises(UsageError, reason="not-managed"):
        upgrade.upgrade(None, print)


def test_an_ordinary_user_cannot_upgrade(tmp_path, monkeypatch):
    require_root = upgrade.require_root
    board = Board(tmp_path, monkeypatch)
    monkeypatch.setattr(upgrade, "require_root", require_root)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with raises(PlatformError, reason="not-root"):
        upgrade.upgrade(None, print, versions=board.versions)


def test_the_options_of_the_old_unit_are_kept():
    unit = 'ExecStart=/opt/a/edge-agent run --config "/etc/my config.toml"\nLoadCredential=token:/srv/to%%ken\n'
    assert upgrade._arguments(unit) == ["--config", "/etc/my config.toml", "--token-file", "/srv/to%ken"]
    assert upgrade._arguments("[Service]\n") == []
