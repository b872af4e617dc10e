"""Install and remove the systemd service.

A ``root`` other than ``/`` prepares a system image: files are written or removed below it, and nothing is started or
checked.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import edge_agent
from edge_agent import config
from edge_agent.service import check, notify
from edge_agent.service.status import ServiceStatus, last_error, query, require_systemd, systemctl, watch
from edge_agent.service.unit import (
    CACHE,
    CONFIG_PATH,
    DROP_INS,
    ENVIRONMENT_PATH,
    HANDED_OVER,
    NAME,
    STATE,
    TOKEN_PATH,
    UNIT_PATH,
    UnitOptions,
    render,
)
from kernels import native
from splitedge import files
from splitedge.errors import ConfigError, PlatformError, SplitEdgeError, StoreError, UsageError

ROOT = Path("/")


@dataclass(frozen=True)
class Removed:
    """Files that `uninstall` removed, and files of the service that remain."""

    gone: list[Path]
    kept: list[Path]


def default_options(config_path: Path = CONFIG_PATH, *, token_file: Path | None = None) -> UnitOptions:
    """Options for this installation. Without ``token_file``: the file in the configuration, else `TOKEN_PATH`, if it
    exists.
    """
    if token_file is None:
        named = _configured_token(config_path)
        place = Path(named) if named else TOKEN_PATH
        token_file = place if place.is_absolute() and place.is_file() else None
    executable = Path(sys.executable).parent / "edge-agent"
    seen = [executable.resolve(), Path(sys.executable).resolve(), config_path, Path(edge_agent.__file__).resolve()]
    home = any(path.is_relative_to(place) for path in seen for place in ("/home", "/root"))
    return UnitOptions(executable, config_path, token_file, home_visible=home, compiles=native.LIBRARY is None)


def install(
    options: UnitOptions | None = None,
    *,
    dry_run: bool = False,
    root: Path = ROOT,
    say: Callable[[str], object] = lambda _: None,
) -> str:
    """Check the settings, write the unit, enable it and (re)start it. Returns the text of the unit when the service is
    ready or waits for its server.

    If the package has no kernels for this processor, the first command of the unit compiles them, as the service user.
    This takes minutes on a small board; ``say`` receives status messages. With ``dry_run``, nothing changes and ``say`` receives the problems.

    Raises `PlatformError` without root or systemd; `ConfigError` for settings that cannot work (``data["problems"]``
    lists all; nothing is changed); `SplitEdgeError` with the last error of a service that started and does not run;
    `StoreError` for a file that cannot be written.
    """
    if options is None:
        options = default_options()
    text = render(options)
    if root == ROOT:
        if not dry_run:
            _require_root()
        _check(options, say, refuse=not dry_run)
    if dry_run:
        return text
    _write(_below(root, UNIT_PATH), text)
    if root == ROOT:
        _start(say)
    return text


def uninstall(*, purge: bool = False, root: Path = ROOT) -> Removed:
    """Stop and remove the service. Configuration, token, state and cache remain, unless ``purge``.

    ``purge`` also removes configuration, variables and token in /etc/splitedge, changes made by `systemctl edit`, state
    and compiled kernels. Files elsewhere that the unit names, and other files in /etc/splitedge, remain. Raises
    `UsageError` if there is nothing to remove.
    """
    path = _below(root, UNIT_PATH)
    if root == ROOT:
        _require_root()
    own = _own(root)
    named = _named(path)
    if not path.is_file() and not (purge and any(map(_there, own))):
        raise _not_installed(path)
    if root == ROOT and path.is_file():
        systemctl("disable", "--now", NAME)
    gone = [one for one in [path, *(own if purge else [])] if _there(one)]
    for one in gone:
        _remove(one)
    if root == ROOT:
        systemctl("daemon-reload")
        systemctl("reset-failed", NAME, check=False)  # it fails where there is nothing to forget
    return Removed(gone, [one for one in _kept(root, named, own) if _there(one)])


def status(*, root: Path = ROOT) -> ServiceStatus:
    """The state of the service. Raises `UsageError` if it is not installed, `PlatformError` if systemd does not run."""
    require_installed(root=root)
    return query()


def require_installed(*, root: Path = ROOT) -> None:
    """Raise `UsageError` if the service is not installed."""
    path = _below(root, UNIT_PATH)
    if not path.is_file():
        raise _not_installed(path)


# --- install


def _configured_token(path: Path) -> str:
    """`token_file` in the configuration, or an empty string. `check.examine` reports a file that is not valid."""
    try:
        return config.load(path, environ={}).token_file
    except ConfigError:
        return ""


def _check(options: UnitOptions, say: Callable[[str], object], *, refuse: bool) -> None:
    found = check.examine(options, _variables() | check.environment())
    if found.problems and refuse:
        raise ConfigError(found.problems[0], reason="problems", problems=found.problems)
    for problem in found.problems:
        say(f"problem: {problem}")
    for note in found.notes:
        say(f"note: {note}")


def _variables() -> dict[str, str]:
    """The variables that drop-ins of the service set, without those of the installed unit; empty if systemd does not
    run.
    """
    try:
        shown = systemctl("show", "--property=Environment", "--value", NAME)
    except PlatformError:
        return {}
    found = dict(pair.split("=", 1) for pair in shlex.split(shown) if "=" in pair)
    return {name: value for name, value in found.items() if (name, value) not in HANDED_OVER.items()}


def _start(say: Callable[[str], object]) -> None:
    systemctl("daemon-reload")
    systemctl("reset-failed", NAME, check=False)
    systemctl("enable", NAME)
    systemctl("stop", NAME)  # later status lines are then from the new process
    systemctl("start", "--no-block", NAME)
    found = watch(say)
    if found.ready or found.waiting:
        say(found.says)
        return
    cause = (last_error(found) or f"still {found.doing}").removeprefix(f"{notify.REFUSED}: ")
    raise SplitEdgeError(
        f"the service is installed but does not work: {cause}; correct this and "
        "run the same command again, or remove the service with `edge-agent service uninstall`",
        reason="cannot-serve",
        cause=cause,
    )


def _require_root() -> None:
    if os.geteuid() != 0:
        raise PlatformError("only root can change the service; run the same command with sudo", reason="not-root")
    require_systemd()


def _not_installed(path: Path) -> UsageError:
    return UsageError(
        f"the service is not installed ({path} does not exist); run `edge-agent service install` first",
        reason="not-installed",
    )


# --- uninstall


def _own(root: Path) -> list[Path]:
    """The files and folders that belong to the service alone, which ``purge`` removes."""
    private = [
        path.parent / "private" / path.name for path in (STATE, CACHE)
    ]  # of a dynamic user; STATE and CACHE are links
    return [
        _below(root, path) for path in (CONFIG_PATH, ENVIRONMENT_PATH, TOKEN_PATH, DROP_INS, STATE, CACHE, *private)
    ]


def _named(unit: Path) -> list[Path]:
    """The configuration and token files in the text of ``unit``."""
    text = unit.read_text("utf-8", "replace") if unit.is_file() else ""
    found = re.findall(r'^(?:ExecStart=.* --config "?([^"\n]+)"?|LoadCredential=[\w-]+:(.+))$', text, re.MULTILINE)
    return [Path((settings or token).replace("%%", "%").replace("$$", "$")) for settings, token in found]


def _kept(root: Path, named: list[Path], own: list[Path]) -> list[Path]:
    """Files of the service that may remain, without links."""
    folder = _below(root, CONFIG_PATH.parent)
    others = sorted(folder.iterdir()) if folder.is_dir() else []
    kept = [*own, *others, *(_below(root, path) for path in named)]
    return sorted(path for path in set(kept) if not path.is_symlink())


def _there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, and then /etc/splitedge if it is empty."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.parent.name == CONFIG_PATH.parent.name and not any(path.parent.iterdir()):
            path.parent.rmdir()
    except OSError as error:
        raise StoreError(
            f"cannot remove {path} ({error.strerror}); remove it manually", reason="cannot-remove"
        ) from error


# --- files


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _write(path: Path, text: str) -> None:
    """Write ``path``, readable by everyone, whole or not at all; its folder is made if it is not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, text.encode())
        path.chmod(0o644)  # whatever the umask: the service reads it as another user
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}): free space or make the folder writable",
            reason="cannot-write",
        ) from error
