"""Upgrade the service to another version, and return to the old one if the new one does not work.

`upgrade` installs the new version beside the old one and records a `Trial`. A second unit, `SETTLE`, then does the rest
(`settle`): it switches the link, installs the new version's unit, waits until the agent is ready, and otherwise returns
to the old version. The unit belongs to the old version, is not part of the user's session, and starts again after a
crash or a power cut, so the board always ends with a version that works. Every step can be repeated.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.service.unit import SERVICE, UNIT_PATH, named
from edge_agent.service.versions import Outcome, Trial, Versions, of_archive, order, own
from splitedge import limits
from splitedge.errors import SplitEdgeError, StoreError, UsageError
from splitedge.service.install import remove, require_root, restart, write
from splitedge.service.status import ServiceStatus, last_error, query, systemctl, watch
from splitedge.service.unit import Service, absolute, word

INSTALLER: Final = Path(__file__).with_name("install-agent")
SETTLE: Final = Service("edge-agent", "service settle", "splitedge-agent-upgrade")
AUTO: Final = Service("edge-agent", "service upgrade", "splitedge-agent-auto-upgrade")
TIMER: Final = AUTO.path.with_suffix(".timer")
_FOUND: Final = "version="
_ATTEMPTS: Final = 2  # of a new version, if power cuts or crashes of the board end them

_SETTLE_UNIT: Final = """\
# Written by `edge-agent service upgrade` for the time of an upgrade. It continues an upgrade that a power cut ended.
[Unit]
Description=splitedge agent: an upgrade that is under way
After=network-online.target

[Service]
Type=oneshot
ExecStart={executable} service settle
Restart=on-failure
RestartSec=5
TimeoutStartSec={limit:.0f}

[Install]
WantedBy=multi-user.target
"""
_AUTO_UNIT: Final = """\
# Written by `edge-agent service auto-upgrade on`
[Unit]
Description=splitedge agent: look for a new version
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={executable} service upgrade
"""
_AUTO_TIMER: Final = """\
# Written by `edge-agent service auto-upgrade on`
[Unit]
Description=splitedge agent: look for a new version once a day

[Timer]
OnCalendar=daily
RandomizedDelaySec=6h
Persistent=yes

[Install]
WantedBy=timers.target
"""


def upgrade(
    wanted: str | None,
    say: Callable[[str], object],
    *,
    limit_s: float = limits.UPGRADE_READY,
    versions: Versions | None = None,
) -> Outcome:
    """Upgrade to ``wanted``: a version, the file of a release archive, or None for the newest version.

    ``limit_s``: how long the new version may take until it is ready, in seconds. ``say`` receives status messages.
    Raises `UsageError` for an installation that `install-agent` did not make or a version that is not there;
    `SplitEdgeError` with the reason "rolled-back" if the new version does not work and the old one serves again;
    `PlatformError`, `StoreError`.
    """
    versions = versions or Versions()
    own(versions.prefix)
    require_root(SERVICE)
    with versions.upgrading():
        if versions.trial() is not None:
            say("finishing an upgrade that was interrupted")
            _start_settle()
            _follow(versions, say)
        old = versions.current()
        if old is None:
            raise UsageError(
                f"{versions.link} names no version; run install-agent again, which repairs it", reason="no-current"
            )
        there = versions.installed()
        new = _prepare(wanted, old, versions, say)
        if new == old:
            return Outcome(old)
        if not UNIT_PATH.is_file():
            versions.switch(new)
            versions.prune(previous=old)
            return Outcome(new)
        executable = word(absolute(versions.program(old)))
        trial = Trial(old, new, _read_unit(), query(SERVICE).ready, limit_s, fresh=new not in there)
        with versions.beginning():  # wherever this program is killed, an upgrade that began has a unit that ends it
            write(SETTLE.path, _SETTLE_UNIT.format(executable=executable, limit=_most(limit_s)))
            _start_settle()
            versions.begin(trial)
        return _follow(versions, say)


def settle(say: Callable[[str], object], versions: Versions | None = None) -> None:
    """Bring an upgrade that is under way to its end. Raises `PlatformError`, `StoreError`; then it can be repeated."""
    versions = versions or Versions()
    with versions.beginning():  # `upgrade` may still be recording the trial
        trial = versions.trial()
    if trial is not None:
        if not trial.failure:
            trial.attempts += 1
            versions.begin(trial)
            again = trial.attempts > _ATTEMPTS
            trial.failure = "it does not get as far as an answer" if again else _try(trial, versions, say)
        if not trial.failure:
            versions.end(Outcome(trial.new))
            versions.prune(previous=trial.old)
        else:
            versions.begin(trial)  # after a power cut, do not try the new version again
            seconds = _return(trial, versions, say)
            versions.end(Outcome(trial.old, trial.new, trial.failure, seconds))
            if trial.fresh:
                versions.remove(trial.new)
    forget(SETTLE.path)


def automatic(*, on: bool) -> None:
    """Switch the daily upgrade on or off. Raises `UsageError` if `install-agent` did not install this version."""
    own()
    require_root(SERVICE)
    if not on:
        forget(TIMER)
        forget(AUTO.path)
        return
    write(AUTO.path, _AUTO_UNIT.format(executable=word(absolute(Versions().link / "bin/edge-agent"))))
    write(TIMER, _AUTO_TIMER)
    systemctl(AUTO, "daemon-reload")
    systemctl(AUTO, "enable", "--now", TIMER.name)


def forget(path: Path) -> None:
    """Remove a unit that only upgrades need, if it is there; it is not stopped. Raises `StoreError`, `PlatformError`."""
    if not path.is_file():
        return
    systemctl(SETTLE, "disable", *(["--now"] if path == TIMER else []), path.name)
    remove(path)
    systemctl(SETTLE, "daemon-reload")


# --- the new version


def _prepare(wanted: str | None, old: str, versions: Versions, say: Callable[[str], object]) -> str:
    """Install the files of the wanted version beside the old one. Returns the version."""
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    arguments = ["--python", str(base)] if base.is_file() else []
    least = old
    if wanted is None:
        outcome = versions.outcome()
        if outcome is not None and outcome.failed:  # not again, unless it is named
            least = max(old, outcome.failed, key=order)
        arguments += ["--newer-than", least]
    elif "/" in wanted or wanted.endswith(".tar"):
        path = Path(wanted).absolute()
        if not path.is_file():
            raise UsageError(f"{wanted} is not a file", reason="no-file")
        arguments += ["--offline", str(path.parent), "--version", of_archive(path.name)[0]]
    else:
        order(wanted)
        if wanted in versions.installed():
            return wanted
        arguments += ["--version", wanted]
    process = subprocess.Popen(  # noqa: S603
        ["/bin/sh", str(INSTALLER), "--files-only", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    found = last = ""
    with process:
        assert process.stdout is not None
        for line in map(str.rstrip, process.stdout):
            if line.startswith(_FOUND):
                found = line.removeprefix(_FOUND)
            else:
                last = line or last
                say(line)
    if process.returncode == 0 and wanted is None and found == least:
        return old
    if process.returncode != 0 or found not in versions.installed():
        cause = last.removeprefix("install-agent: ")
        raise SplitEdgeError(
            f"the new version is not installed and the old one still runs: {cause}", reason="not-installed", cause=cause
        )
    return found


# --- the trial


def _start_settle() -> None:
    """Let the unit `SETTLE` run `settle`, now and after a power cut."""
    systemctl(SETTLE, "daemon-reload")
    systemctl(SETTLE, "enable", SETTLE.unit)
    systemctl(SETTLE, "start", "--no-block", SETTLE.unit)


def _follow(versions: Versions, say: Callable[[str], object]) -> Outcome:
    """Wait for the end of `settle` in its unit and return the outcome. Raises as `upgrade`."""
    trial = versions.trial()
    deadline, told = time.monotonic() + _ATTEMPTS * _most(trial.limit_s if trial else 0.0), ""
    while versions.trial() is not None or SETTLE.path.exists():
        if time.monotonic() > deadline:
            raise SplitEdgeError(f"the upgrade does not end; see `journalctl -u {SETTLE.name} -n 50`", reason="timeout")
        state = query(SERVICE)
        doing = f"{versions.current()}: {state.doing}"
        if doing != told:
            say(doing)
            told = doing
        time.sleep(limits.SERVICE_LOOK)
    outcome = versions.outcome()
    assert outcome is not None  # `settle` writes it before the trial ends
    if outcome.failure:
        raise SplitEdgeError(
            f"the new version does not work, so {outcome.version} runs again after {outcome.rollback_s:.1f} s: "
            f"{outcome.failure}",
            reason="rolled-back",
            **msgspec.to_builtins(outcome),
        )
    return outcome


def _most(limit_s: float) -> float:
    """The seconds that `settle` may take: both versions may take ``limit_s``, and both are stopped."""
    return 2 * limit_s + 120


def _try(trial: Trial, versions: Versions, say: Callable[[str], object]) -> str:
    """Start the new version. Returns why it does not work, or an empty string."""
    deadline = time.monotonic() + trial.limit_s
    try:
        versions.switch(trial.new)
        done = subprocess.run(  # noqa: S603
            [str(versions.program(trial.new)), "service", "install", *_arguments(trial.unit)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=trial.limit_s,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return lines[-1].removeprefix("edge-agent: ")
        return (
            ""
            if not trial.was_ready
            else _not_ready(watch(SERVICE, say, limit=deadline - time.monotonic(), waiting=False))
        )
    except subprocess.TimeoutExpired:
        return f"it is not ready within {trial.limit_s:.0f} s"
    except OSError as error:
        return f"it cannot be started ({error.strerror})"
    except SplitEdgeError as error:
        return error.message


def _return(trial: Trial, versions: Versions, say: Callable[[str], object]) -> float:
    """Start the old version. Returns the seconds until it is ready, or as far as it was."""
    began = time.monotonic()
    say(f"returning to {trial.old}: {trial.failure}")
    versions.switch(trial.old)
    write(UNIT_PATH, trial.unit)
    restart(SERVICE)
    if trial.was_ready:
        watch(SERVICE, say, limit=trial.limit_s, waiting=False)
    return time.monotonic() - began


def _not_ready(state: ServiceStatus) -> str:
    return "" if state.ready else last_error(SERVICE, state) or f"it is not ready, but {state.doing}"


def _arguments(unit: str) -> list[str]:
    """The options of `service install` that the text of a ``unit`` came from."""
    return [word for option, path in named(unit) for word in (option, str(path))]


def _read_unit() -> str:
    try:
        return UNIT_PATH.read_text("utf-8", "replace")
    except OSError as error:
        raise StoreError(f"{UNIT_PATH} cannot be read ({error.strerror})", reason="cannot-read") from error
