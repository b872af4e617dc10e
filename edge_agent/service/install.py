"""Install, remove and query the systemd service.

``root`` other than ``/`` prepares a system image: files are written below it and nothing is started.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import edge_agent
from edge_agent import limits
from edge_agent.errors import ConfigError, PlatformError, StoreError, UsageError
from edge_agent.service.unit import CONFIG_PATH, NAME, TOKEN_PATH, UNIT_PATH, UnitOptions, render

ROOT = Path("/")


@dataclass(frozen=True)
class ServiceStatus:
    """What systemd says of the service; ``active`` and ``state`` are its words (active/running, failed/failed, inactive/dead ...)."""

    enabled: bool
    active: str
    state: str
    pid: int  # 0: not running
    restarts: int
    since: str  # when ``state`` began, or an empty string
    says: str  # the agent's own status line
    result: str  # "success", or why the last run ended


def default_options(config_path: Path = CONFIG_PATH, *, token_file: Path | None = None) -> UnitOptions:
    """The unit of this very installation. ``token_file`` None: `TOKEN_PATH`, if there is such a file."""
    if token_file is None and TOKEN_PATH.is_file():
        token_file = TOKEN_PATH
    executable = Path(sys.executable).parent / "edge-agent"
    seen = [executable.resolve(), Path(sys.executable).resolve(), config_path, Path(edge_agent.__file__).resolve()]
    home = any(path.is_relative_to(place) for path in seen for place in ("/home", "/root"))
    return UnitOptions(executable, config_path, token_file, home_visible=home)


def install(
    options: UnitOptions | None = None,
    *,
    dry_run: bool = False,
    root: Path = ROOT,
    say: Callable[[str], object] = lambda _: None,
) -> str:
    """Write the unit, enable it, and (re)start it; returns the unit's text once the agent's local API listens.

    By then every kernel is compiled, by the unit's first command and as the service's user: minutes on a small board, which ``say`` hears before.
    Frames are answered later, when the server gave a plan: `status` tells. With ``dry_run`` the same files are checked and nothing is touched.
    Raises `PlatformError` (not root, no systemd, it did not start), `ConfigError` (a path that is missing or that the service's user cannot
    read), `StoreError` (a file that cannot be written).
    """
    if options is None:
        options = default_options()
    text = render(options)
    if root == ROOT and not dry_run:
        _require_systemd()
    if root == ROOT:
        _check_paths(options)
    if dry_run:
        return text
    _write(_below(root, UNIT_PATH), text)
    if root == ROOT:
        _systemctl("daemon-reload")
        _systemctl("reset-failed", NAME, check=False)
        _systemctl("enable", NAME)
        say("compiling kernels as the service's user and starting it: minutes on a small board, the first time")
        _systemctl("restart", NAME)
    return text


def uninstall(*, root: Path = ROOT) -> None:
    """Stop and remove the service. Configuration, token and state stay. Raises `UsageError` if it is not installed."""
    path = _below(root, UNIT_PATH)
    if root == ROOT:
        _require_systemd()
    _require_unit(path)
    if root == ROOT:
        _systemctl("disable", "--now", NAME)
    try:
        path.unlink()
    except OSError as error:
        raise StoreError(f"{path} cannot be removed ({error.strerror}): remove it by hand") from error
    if root == ROOT:
        _systemctl("daemon-reload")


def status(*, root: Path = ROOT) -> ServiceStatus:
    """What systemd says of the service. Raises `UsageError` if it is not installed, `PlatformError` where systemd does not run."""
    _require_unit(_below(root, UNIT_PATH))
    _require_running_systemd()
    names = "UnitFileState,ActiveState,SubState,MainPID,NRestarts,StateChangeTimestamp,StatusText,Result"
    return parse_status(_systemctl("show", f"--property={names}", NAME))


def parse_status(shown: str) -> ServiceStatus:
    """The status in the ``NAME=value`` lines of `systemctl show`; what is absent is empty."""
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
    )


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _require_systemd() -> None:
    if os.geteuid() != 0:
        raise PlatformError("the service can be changed by root only: run the same command with sudo")
    _require_running_systemd()


def _require_running_systemd() -> None:
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        raise PlatformError("systemd does not run on this machine: start 'edge-agent run' from its own service manager")


def _require_unit(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"the service is not installed ({path} is not there): run 'edge-agent service install' first")


def _check_paths(options: UnitOptions) -> None:
    """The service runs as a user of its own that owns nothing: all it needs must be readable by everyone."""
    advice = "install splitedge where every user may read, for instance in a virtual environment in /opt/splitedge"
    for path in (options.executable, Path(sys.executable), Path(edge_agent.__file__)):
        if why := unreachable(path):
            raise ConfigError(f"the service's user cannot use {path} ({why}): {advice}")
    if why := unreachable(options.config):
        raise ConfigError(
            f"the service's user cannot read the configuration {options.config} ({why}): put it right first"
        )
    if options.token_file is not None and options.token_file != TOKEN_PATH and not options.token_file.is_file():
        raise ConfigError(f"the token file {options.token_file} is not there: make a token with 'edge-server token'")


def unreachable(path: Path) -> str:
    """Why a user who owns nothing cannot read the file ``path``, by the permission bits; an empty string if such a user can."""
    try:
        real = path.resolve(strict=True)
        if any(real.is_relative_to(place) for place in ("/tmp", "/var/tmp")):  # noqa: S108
            return "the service has its own /tmp and /var/tmp"
        closed = next((parent for parent in reversed(real.parents) if not parent.stat().st_mode & 0o001), None)
        if closed is not None:
            return f"{closed} is closed to other users"
        return "" if real.stat().st_mode & 0o004 else "its permissions"
    except OSError as error:
        return error.strerror or str(error)


def _write(path: Path, text: str) -> None:
    """Write ``path``, readable by everyone, whole or not at all; its folder is made if it is not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}): free space or make the folder writable"
        ) from error


def _systemctl(*arguments: str, check: bool = True) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            ["systemctl", *arguments],  # noqa: S607
            capture_output=True, text=True, timeout=limits.SERVICE_TIMEOUT, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PlatformError(
            f"'systemctl {arguments[0]}' did not finish: look at 'journalctl -u splitedge-agent -n 50'"
        ) from error
    if check and done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0][:200].rstrip(".")
        raise PlatformError(
            f"'systemctl {arguments[0]}' failed ({reason}): look at 'journalctl -u splitedge-agent -n 50'"
        )
    return done.stdout
