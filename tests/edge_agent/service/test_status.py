"""What is told of the service: by the words of systemd and of the journal, and by a stand-in for systemctl whose answers follow each other."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from edge_agent.commands import service as command
from edge_agent.config import CREDENTIAL
from edge_agent.service import check, install
from edge_agent.service.unit import CREDENTIALS, NAME, SERVICE, UNIT_PATH, UnitOptions
from splitedge import limits
from splitedge.errors import ConfigError, PlatformError, SplitEdgeError, UsageError
from splitedge.service import install as steps
from splitedge.service import notify, status
from tests.raising import raises

RUNNING = "UnitFileState=enabled\nActiveState=active\nSubState=running\nMainPID=4711\nResult=success\nStatusText="
FAILED = "UnitFileState=enabled\nActiveState=failed\nSubState=failed\nMainPID=0\nResult=exit-code\nExecMainStatus=2\nStatusText="
START_PRE = "ActiveState=activating\nSubState=start-pre\nResult=success\nJob=7\n"
AGAIN = "ActiveState=activating\nSubState=auto-restart\nNRestarts=1\nResult={}\nExecMainStatus={}\nStatusText={}\n"
ERROR = "the server's certificate is odd"


def test_systemctl_s_answer_becomes_a_status():
    found = status.parse(
        "Result=success\nNRestarts=2\nMainPID=4711\nActiveState=active\nSubState=running\nUnitFileState=enabled\nJob=3\n"
        "StatusText=lite0: 12 frames/s, a=b\nStateChangeTimestamp=Sat 2026-01-03 10:00:00 UTC\nExecMainStatus=9\n"
    )
    assert (found.enabled, found.active, found.state, found.pid, found.restarts) == (True, "active", "running", 4711, 2)
    assert (found.says, found.job, found.exit_status) == ("lite0: 12 frames/s, a=b", 3, 9)


def test_an_empty_answer_is_an_unknown_status():
    assert status.parse("").active == "unknown"


@pytest.mark.parametrize(
    ("shown", "ready", "waiting", "ended"),
    [
        (RUNNING + "ready", True, False, False),
        (RUNNING + "ready: measuring the link", True, False, False),
        (RUNNING + f"{notify.WAITING}: nothing answers", False, True, False),
        (RUNNING + f"{notify.REFUSED}: the token", False, False, True),
        (RUNNING + "measuring this machine", False, False, False),
        (START_PRE, False, False, False),
        (FAILED + "ready", False, False, True),
        (AGAIN.format("signal", 9, "ready"), False, False, True),
        ("ActiveState=inactive\nSubState=dead\nJob=7", False, False, False),
        ("ActiveState=inactive\nSubState=dead\nJob=0", False, False, True),
        ("ActiveState=deactivating\nSubState=stop-sigterm\nStatusText=ready", False, False, False),
    ],
)
def test_a_service_serves_waits_or_has_ended(shown, ready, waiting, ended):
    found = status.parse(shown)
    assert (found.ready, found.waiting, found.ended) == (ready, waiting, ended)


JOURNAL = [
    "edge-agent: the local API listens on http://127.0.0.1:8471", f"edge-agent: {ERROR}",
    f"{NAME}: Main process exited, code=exited, status=2/INVALIDARGUMENT", f"{NAME}: Failed with result 'exit-code'.",
]  # fmt: skip


def test_the_last_error_is_what_the_agent_said_last_before_it_ended():
    assert status.in_journal(SERVICE, JOURNAL) == ERROR
    assert status.in_journal(SERVICE, [*JOURNAL, "edge-agent: the local API listens on http://127.0.0.1:8471"]) == ERROR
    killed = f"{NAME}: Main process exited, code=killed, status=9/KILL"
    assert status.in_journal(SERVICE, [JOURNAL[0], killed]) == "Main process exited, code=killed, status=9/KILL"
    assert status.in_journal(SERVICE, JOURNAL[:1]) == status.in_journal(SERVICE, []) == ""


@pytest.mark.parametrize(
    ("shown", "error"),
    [
        (RUNNING + "ready", ""),
        (RUNNING + f"{notify.REFUSED}: the token", f"{notify.REFUSED}: the token"),
        (FAILED + ERROR, ERROR),
        (FAILED, ERROR),  # in the journal
        (AGAIN.format("watchdog", 0, "ready"), status._RESULTS["watchdog"]),
        (
            AGAIN.format("exit-code", 243, ""),
            status._STATUSES[243].format(program="edge-agent", credential="token file"),
        ),
        (RUNNING + "ready\nNRestarts=3", ERROR),
    ],
)
def test_the_last_error_comes_from_systemd_the_agent_or_the_journal(monkeypatch, shown, error):
    monkeypatch.setattr(status, "_journal", lambda _: JOURNAL)
    assert status.last_error(SERVICE, status.parse(shown)) == error


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``systemd(shown, ...)``: a systemctl that answers `show` by ``shown`` in turn, the last for ever, and notes how it was called; a journal too."""
    folder = tmp_path / "systemd"
    folder.mkdir()
    (folder / "journal").write_text("\n".join(JOURNAL))
    script = f"""#!/bin/sh
cd '{folder}'
echo "$@" >> calls
case "$1 $2" in
"show --property=Environment") cat environment 2>/dev/null; exit 0 ;;
show*) ;;
*) exit 0 ;;
esac
cat $(ls show.* | head -n 1)
[ $(ls show.* | wc -l) -gt 1 ] && rm $(ls show.* | head -n 1)
exit 0
"""
    for name, text in (("systemctl", script), ("journalctl", f"#!/bin/sh\ncat '{folder}/journal'\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(status, "require_systemd", lambda _: None)
    monkeypatch.setattr(steps, "require_systemd", lambda _: None)
    monkeypatch.setattr(install, "ROOT", tmp_path / "root")
    monkeypatch.setattr(limits, "SERVICE_LOOK", 0.0)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(check, "unreachable", lambda path: "" if path.is_file() else "no such file or directory")

    def answers(*shown: str) -> Path:
        for i, text in enumerate(shown):
            (folder / f"show.{i}").write_text(text)
        return folder / "calls"

    return answers


@pytest.fixture
def options(tmp_path: Path) -> UnitOptions:
    """Of a service whose server is away."""
    (tmp_path / "agent.toml").write_text('server = "http://127.0.0.1:9"\nmodel = "m"\n')
    (tmp_path / "edge-agent").write_text("")
    return UnitOptions(tmp_path / "edge-agent", tmp_path / "agent.toml")


def test_an_installation_follows_the_start_until_the_server_is_waited_for(systemd, options, tmp_path):
    waits = f"{notify.WAITING}: nothing answers"
    calls = systemd(
        "ActiveState=inactive\nJob=7", START_PRE, START_PRE, RUNNING + "measuring this machine", RUNNING + waits
    )
    said: list[str] = []
    install.install(options, root=tmp_path / "root", say=said.append)
    assert (tmp_path / "root" / UNIT_PATH.relative_to("/")).is_file()
    assert said[0].startswith("note: ")
    assert said[1:] == ["inactive (unknown)", status.parse(START_PRE).doing, "measuring this machine", waits]
    done = [line.split()[0] for line in calls.read_text().splitlines() if not line.startswith("show")]
    assert done == ["daemon-reload", "reset-failed", "enable", "stop", "start"]


@pytest.mark.parametrize(
    "ends", [FAILED + ERROR, AGAIN.format("exit-code", 7, ERROR), RUNNING + f"{notify.REFUSED}: {ERROR}"]
)
def test_a_service_that_does_not_come_to_serve_fails_the_installation_with_its_error(systemd, options, tmp_path, ends):
    systemd(START_PRE, ends)
    with raises(SplitEdgeError, reason="cannot-serve") as caught:
        install.install(options, root=tmp_path / "root")
    assert ERROR in caught.value.data["cause"]


def test_a_start_without_an_end_fails_the_installation(systemd, options, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SERVICE_START", 0.05)
    systemd(RUNNING + "measuring this machine")
    with raises(SplitEdgeError, reason="cannot-serve") as caught:
        install.install(options, root=tmp_path / "root")
    assert "measuring this machine" in caught.value.data["cause"]


def test_settings_that_cannot_work_change_nothing_and_are_all_told(systemd, options, tmp_path, capsys, monkeypatch):
    calls = systemd(RUNNING + "ready")
    options.config.write_text('model = "m"\nca = "~/ca.pem"\n[chain]\nca = "ca.pem"\n')
    monkeypatch.setattr(command.service, "default_options", lambda **_: options)
    monkeypatch.setattr(command.service, "install", partial(install.install, root=tmp_path / "root"))
    with raises(ConfigError, reason="problems") as caught:
        command.install(None, None, dry_run=False)
    assert ["`ca`" in problem for problem in caught.value.data["problems"]] == [True, False]
    assert "`chain.ca`" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()
    assert all(line.startswith("show") for line in calls.read_text().splitlines())


def test_variables_of_a_drop_in_count(systemd, options, tmp_path):
    calls = systemd(RUNNING + "ready")
    options.config.write_text('server = "http://127.0.0.1:9"\n')
    (calls.parent / "environment").write_text(
        f"PYTHONUNBUFFERED=1 'SPLITEDGE_MODEL=a b' SPLITEDGE_TOKEN_FILE={CREDENTIALS}/{CREDENTIAL}\n"
    )
    (tmp_path / "token").write_text("sesame")
    install.install(
        replace(options, token_file=tmp_path / "token"), root=tmp_path / "root"
    )  # over one that has a token already
    (calls.parent / "environment").write_text("")
    with raises(ConfigError, reason="problems") as caught:
        install.install(options, root=tmp_path / "root")
    assert ["`model`" in problem for problem in caught.value.data["problems"]] == [True]


@pytest.mark.parametrize(
    ("shown", "code", "words"),
    [
        (RUNNING + "ready", 0, "ready"),
        (RUNNING + f"{notify.WAITING}: nothing answers", 1, "nothing answers"),
        (FAILED + ERROR, 3, ERROR),
        (AGAIN.format("oom-kill", 0, "ready"), 3, "memory"),
    ],
)
def test_the_exit_status_of_status_tells_the_truth(systemd, tmp_path, capsys, monkeypatch, shown, code, words):
    systemd(shown)
    unit = tmp_path / "root" / UNIT_PATH.relative_to("/")
    unit.parent.mkdir(parents=True)
    unit.write_text("")
    monkeypatch.setattr(command.service, "status", partial(install.status, root=tmp_path / "root"))
    assert command.status() == code
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(("follow", "more"), [(False, []), (True, ["--follow"])])
def test_logs_are_those_that_journalctl_prints(tmp_path, follow, more):
    """In a process, which becomes journalctl: its arguments, output and exit status."""
    unit = tmp_path / "root" / UNIT_PATH.relative_to("/")
    unit.parent.mkdir(parents=True)
    unit.write_text("")
    (tmp_path / "journalctl").write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    (tmp_path / "journalctl").chmod(0o755)
    code = (
        "from functools import partial\nfrom pathlib import Path\nfrom edge_agent.commands import service\n"
        "from edge_agent.service import install\n"
        f"service.service.require_installed = partial(install.require_installed, root=Path({str(tmp_path / 'root')!r}))\n"
        f"service.logs(lines=5, follow={follow})"
    )
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.split() == ["--unit", NAME, "--lines=5", "--no-pager", *more]


def test_logs_need_journalctl_and_the_service(tmp_path, monkeypatch):
    with raises(UsageError, reason="not-installed"):
        install.require_installed(root=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with raises(PlatformError, reason="no-journalctl"):
        status.journal_command(SERVICE, lines=5, follow=False)


def test_a_systemctl_that_fails_is_one_sentence(tmp_path, monkeypatch):
    fake = tmp_path / "systemctl"
    fake.write_text("#!/bin/sh\necho 'Unit splitedge-agent.service has a bad setting.' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with raises(PlatformError, reason="systemctl"):
        status.systemctl(SERVICE, "enable", NAME)
