"""Install and remove the systemd service.

A ``root`` other than ``/`` prepares a system image: files are written or removed below it, and nothing is started or
checked.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import edge_agent
from edge_agent import config
from edge_agent.service import check, upgrade, versions
from edge_agent.service.unit import (
    CACHE,
    CONFIG_PATH,
    DROP_INS,
    ENVIRONMENT_PATH,
    HANDED_OVER,
    NAME,
    SERVICE,
    STATE,
    TOKEN_PATH,
    UNIT_PATH,
    UnitOptions,
    drop_ins,
    named,
    render,
)
from kernels import native
from splitedge.errors import ConfigError, PlatformError
from splitedge.service import install as steps
from splitedge.service.install import ROOT, Removed, below, require_root, start, write
from splitedge.service.status import ServiceStatus, query, systemctl


def default_options(
    config_path: Path = CONFIG_PATH,
    *,
    token_file: Path | None = None,
    camera: bool | None = None,
    limits: bool | None = None,
) -> UnitOptions:
    """Options for this installation.

    Without ``token_file``: the file in the configuration, else `TOKEN_PATH`, if it exists. ``limits``: the service gets
    the cores that the configuration or the board gives it, and no more.
    """
    if token_file is None:
        named = _configured_token(config_path)
        place = Path(named) if named else TOKEN_PATH
        token_file = place if place.is_absolute() and place.is_file() else None
    executable = versions.linked(Path(sys.executable).parent / "edge-agent")
    seen = [executable.resolve(), Path(sys.executable).resolve(), config_path, Path(edge_agent.__file__).resolve()]
    home = any(path.is_relative_to(place) for path in seen for place in ("/home", "/root"))
    threads = None if limits is None else (_threads(config_path) if limits else 0)
    return UnitOptions(
        executable,
        config_path,
        token_file,
        home_visible=home,
        compiles=native.LIBRARY is None,
        camera=camera,
        threads=threads,
    )


def install(
    options: UnitOptions | None = None,
    *,
    dry_run: bool = False,
    root: Path = ROOT,
    say: Callable[[str], object] = lambda _: None,
) -> str:
    """Check the settings, write the unit, enable it and (re)start it. Returns the text of the unit when the service is
    ready or waits for its server; with ``dry_run``, of its drop-ins too.

    If the package has no kernels for this processor, the first command of the unit compiles them, as the service user.
    This takes minutes on a small board; ``say`` receives status messages. With ``dry_run``, nothing changes and ``say``
    receives the problems.

    Raises `PlatformError` without root or systemd; `ConfigError` for settings that cannot work (``data["problems"]``
    lists all; nothing is changed); `SplitEdgeError` with the last error of a service that started and does not run;
    `StoreError` for a file that cannot be written.
    """
    if options is None:
        options = default_options()
    text = render(options)
    if root == ROOT:
        if not dry_run:
            require_root(SERVICE)
        _check(options, say, refuse=not dry_run)
    beside = drop_ins(options)
    if dry_run:
        return text + "".join(f"\n# --- {DROP_INS / name}\n{one}" for name, one in beside.items() if one)
    write(below(root, UNIT_PATH), text)
    for name, one in beside.items():
        place = below(root, DROP_INS / name)
        if one is None:
            steps.remove(place)
        else:
            write(place, one)
    if root == ROOT:
        start(SERVICE, say)
    return text


def uninstall(*, purge: bool = False, root: Path = ROOT) -> Removed:
    """Stop and remove the service. Configuration, token, state and cache remain, unless ``purge``.

    ``purge`` also removes configuration, variables and token in /etc/splitedge, changes made by `systemctl edit`, state
    and compiled kernels. Files elsewhere that the unit names, and other files in /etc/splitedge, remain. Raises
    `UsageError` if there is nothing to remove.
    """
    if root == ROOT:
        require_root(SERVICE)
        for unit in (upgrade.SETTLE.path, upgrade.TIMER, upgrade.AUTO.path):
            upgrade.forget(unit)
    return steps.uninstall(SERVICE, _own(root), _named(root), purge=purge, root=root)


def status(*, root: Path = ROOT) -> ServiceStatus:
    """The state of the service. Raises `UsageError` if it is not installed, `PlatformError` if systemd does not run."""
    require_installed(root=root)
    return query(SERVICE)


#: Raises `UsageError` if the service is not installed below ``root``.
require_installed = partial(steps.require_installed, SERVICE)


# --- install


def _configured_token(path: Path) -> str:
    """`token_file` in the configuration, or an empty string. `check.examine` reports a file that is not valid."""
    try:
        return config.load(path, environ={}).token_file
    except ConfigError:
        return ""


def _threads(path: Path) -> int:
    """`threads` in the configuration, else the cores that this process may use."""
    from device_profiles.machine import usable_threads  # loads the kernels

    try:
        return config.load(path, environ={}).threads or usable_threads()
    except ConfigError:
        return usable_threads()


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
        shown = systemctl(SERVICE, "show", "--property=Environment", "--value", NAME)
    except PlatformError:
        return {}
    found = dict(pair.split("=", 1) for pair in shlex.split(shown) if "=" in pair)
    return {name: value for name, value in found.items() if (name, value) not in HANDED_OVER.items()}


# --- uninstall


def _own(root: Path) -> list[Path]:
    """The files and folders that belong to the service alone, which ``purge`` removes."""
    own = (CONFIG_PATH, ENVIRONMENT_PATH, TOKEN_PATH, DROP_INS, *steps.dynamic(STATE, CACHE))
    return [below(root, path) for path in own]


def _named(root: Path) -> list[Path]:
    """The configuration and token files in the text of the unit, and the other files beside the configuration."""
    unit, folder = below(root, UNIT_PATH), below(root, CONFIG_PATH.parent)
    text = unit.read_text("utf-8", "replace") if unit.is_file() else ""
    return [*(below(root, path) for _, path in named(text)), *(folder.iterdir() if folder.is_dir() else [])]
