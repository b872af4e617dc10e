"""The state of a service, from systemd and from the program's status line."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitedge import limits
from splitedge.errors import PlatformError
from splitedge.service import notify
from splitedge.service.unit import NO_CREDENTIAL, Service

_SHOWN = (
    "UnitFileState,ActiveState,SubState,MainPID,NRestarts,StateChangeTimestamp,StatusText,Result,ExecMainStatus,Job"
)
_RESULTS = {
    "signal": "a signal ended it",
    "core-dump": "it crashed",
    "watchdog": "it hung and the watchdog ended it",
    "timeout": "it exceeded the time limit for its start or stop",
    "oom-kill": "it ran out of memory",
}
_STATUSES = {
    NO_CREDENTIAL: (
        "systemd cannot read the {credential} of LoadCredential=; restore it, or run `{program} service install` again"
    ),
    203: "systemd cannot run {program}; run `{program} service install` again from its current location",
}
_LINES = 50  # of the journal, which are searched for the last error


@dataclass(frozen=True)
class ServiceStatus:
    """The state of the service; ``active`` and ``state`` are systemd's terms (active/running, failed/failed,
    inactive/dead ...).
    """

    enabled: bool
    active: str
    state: str
    pid: int  # 0: not running
    restarts: int
    since: str  # when ``state`` began, or an empty string
    says: str  # the program's own status line
    result: str  # "success", or the reason why the last run ended
    exit_status: int  # of the last run
    job: int  # a pending job of systemd; 0: none

    @property
    def ready(self) -> bool:
        """Whether frames are served."""
        return self.active == "active" and self.says.startswith(notify.READY)

    @property
    def waiting(self) -> bool:
        """Whether it runs and waits for its server."""
        return self.active == "active" and self.says.startswith(notify.WAITING)

    @property
    def ended(self) -> bool:
        """Whether it does not run, or the server refuses it, so that a person must act."""
        if self.active == "active":
            return self.says.startswith(notify.REFUSED)
        return self.active == "failed" or self.state == "auto-restart" or (self.active == "inactive" and not self.job)

    @property
    def doing(self) -> str:
        """A short description of its activity."""
        if self.active == "activating" and self.state == "start-pre":
            return "compiling kernels as the service user (once; takes minutes on a small board)"
        return self.says if self.active == "active" and self.says else f"{self.active} ({self.state})"


def query(service: Service) -> ServiceStatus:
    """The current state. Raises `PlatformError` if systemd does not run."""
    require_systemd(service)
    return parse(systemctl(service, "show", f"--property={_SHOWN}", service.unit))


def parse(shown: str) -> ServiceStatus:
    """The state in the ``NAME=value`` lines of `systemctl show`. Missing lines give empty values."""
    found = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def number(name: str) -> int:
        return int(found[name]) if found.get(name, "").isdecimal() else 0

    return ServiceStatus(
        enabled=found.get("UnitFileState", "").startswith("enabled"),
        active=found.get("ActiveState", "unknown"),
        state=found.get("SubState", "unknown"),
        pid=number("MainPID"),
        restarts=number("NRestarts"),
        since=found.get("StateChangeTimestamp", ""),
        says=found.get("StatusText", ""),
        result=found.get("Result", ""),
        exit_status=number("ExecMainStatus"),
        job=number("Job"),
    )


def watch(
    service: Service,
    say: Callable[[str], object],
    *,
    limit: float | None = None,
    waiting: bool = True,
) -> ServiceStatus:
    """Follow a start until the service is ready, ended, or waits for its server (with ``waiting``); at most ``limit``
    seconds, by default `limits.SERVICE_START`.

    ``say`` receives its activity at each change, and again every `limits.SERVICE_TOLD`.
    """
    began = told_at = time.monotonic()
    told, most = "", limits.SERVICE_START if limit is None else limit
    while True:
        found, now = query(service), time.monotonic()
        if found.ready or (waiting and found.waiting) or found.ended or now - began > most:
            return found
        if found.doing != told or now - told_at > limits.SERVICE_TOLD:
            say(found.doing if found.doing != told else f"{found.doing} ({now - began:.0f} s)")
            told, told_at = found.doing, now
        time.sleep(limits.SERVICE_LOOK)


def last_error(service: Service, found: ServiceStatus) -> str:
    """The error that ended the service or its last run; an empty string without one."""
    if found.active == "active" and not found.restarts:
        return found.says if found.ended else ""
    if found.result in _RESULTS:
        return _RESULTS[found.result]
    if found.exit_status in _STATUSES:
        return _STATUSES[found.exit_status].format(program=service.program, credential=service.credential)
    if found.ended and found.result == "exit-code" and found.says:
        return found.says  # the program leaves its error there
    return in_journal(service, _journal(service)) if found.restarts or found.active == "failed" else ""


def describe(service: Service, found: ServiceStatus) -> list[str]:
    """Lines that show the state and the last error."""
    enabled = "enabled" if found.enabled else "not enabled"
    lines = [f"{service.unit}: {found.active} ({found.state}), {enabled}, {found.restarts} restarts"]
    lines += [f"process {found.pid} since {found.since}"] if found.pid else []
    error = last_error(service, found)
    lines += [found.says] if found.active == "active" and found.says and found.says != error else []
    return [*lines, f"last error: {error}"] if error else lines


def exit_status(found: ServiceStatus) -> int:
    """0 if the program is ready, 1 if it runs and is not ready, 3 if it does not run."""
    if found.active != "active":
        return 3
    return 0 if found.ready else 1


def in_journal(service: Service, lines: Sequence[str]) -> str:
    """The last error in ``lines`` of the journal: the program's last message if it ended itself, else systemd's."""
    ends = [i for i, line in enumerate(lines) if "Main process exited" in line]
    if not ends:
        return ""
    end = lines[ends[-1]]
    prefix = f"{service.program}: "
    said = [line.removeprefix(prefix) for line in lines[: ends[-1]] if line.startswith(prefix)]
    return said[-1] if said and "code=exited" in end else end.removeprefix(f"{service.unit}: ")


def journal_command(service: Service, *, lines: int, follow: bool) -> list[str]:
    """The command that prints the last ``lines`` of the service in the journal, and with ``follow`` new ones as they
    come. Raises `PlatformError` without journalctl.
    """
    program = shutil.which("journalctl")
    if program is None:
        raise PlatformError(
            "this machine has no journalctl, which reads the journal of systemd; look where its service manager keeps "
            f"the output of {service.program}",
            reason="no-journalctl",
        )
    return [program, "--unit", service.unit, f"--lines={lines}", "--no-pager", *(["--follow"] if follow else [])]


def require_systemd(service: Service) -> None:
    """Raise `PlatformError` if systemd does not run."""
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        raise PlatformError(
            f"systemd does not run on this machine; start `{service.program} {service.command}` from another service manager",
            reason="no-systemd",
        )


def systemctl(service: Service, *arguments: str, check: bool = True) -> str:
    """The output of `systemctl`. Raises `PlatformError` if it fails and ``check``."""
    done = _run(service, "systemctl", *arguments)
    if check and done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0][:200].rstrip(".")
        raise PlatformError(
            f"`systemctl {arguments[0]}` failed ({reason}); see `journalctl -u {service.name} -n 50`",
            reason="systemctl",
        )
    return done.stdout


def _journal(service: Service) -> list[str]:
    """The last lines of the service in the journal that this user can read."""
    if shutil.which("journalctl") is None:
        return []
    command = ("journalctl", "--unit", service.unit, "--output=cat", f"--lines={_LINES}", "--no-pager")
    return _run(service, *command).stdout.splitlines()


def _run(service: Service, *command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limits.SERVICE_TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PlatformError(
            f"`{' '.join(command[:2])}` did not finish; see `journalctl -u {service.name} -n 50`",
            reason="timeout",
        ) from error
