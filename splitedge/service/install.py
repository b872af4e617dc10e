"""Steps of every installation and removal of a service."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from splitedge import files
from splitedge.errors import PlatformError, SplitEdgeError, StoreError, UsageError
from splitedge.service import notify
from splitedge.service.status import last_error, require_systemd, systemctl, watch
from splitedge.service.unit import Service

ROOT: Final = Path("/")


@dataclass(frozen=True)
class Removed:
    """Files that a removal deleted, and files of the service that remain."""

    gone: list[Path]
    kept: list[Path]

    def lines(self, *, purge: bool) -> list[str]:
        """Both lists, to print."""
        rest = "remaining files:" if purge else "remaining files (--purge removes those of the service):"
        titled = (("stopped and removed the service:", self.gone), (rest, self.kept))
        return [line for title, paths in titled if paths for line in (title, *(f"  {path}" for path in paths))]


def start(service: Service, say: Callable[[str], object]) -> None:
    """Enable the service, (re)start it, and wait until it is ready or waits for its server.

    ``say`` receives status messages. Raises `SplitEdgeError` with the last error of a service that does not run.
    """
    restart(service)
    found = watch(service, say)
    if found.ready or found.waiting:
        say(found.says)
        return
    cause = (last_error(service, found) or f"still {found.doing}").removeprefix(f"{notify.REFUSED}: ")
    raise SplitEdgeError(
        f"the service is installed but does not work: {cause}; correct this and "
        f"run the same command again, or remove the service with `{service.program} service uninstall`",
        reason="cannot-serve",
        cause=cause,
    )


def restart(service: Service) -> None:
    """Let systemd read the unit, enable the service, and begin a (re)start."""
    systemctl(service, "daemon-reload")
    systemctl(service, "reset-failed", service.unit, check=False)
    systemctl(service, "enable", service.unit)
    systemctl(service, "stop", service.unit)  # later status lines are then from the new process
    systemctl(service, "start", "--no-block", service.unit)


def uninstall(service: Service, own: Sequence[Path], named: Sequence[Path], *, purge: bool, root: Path) -> Removed:
    """Stop and remove the service; nothing is stopped below a ``root`` other than ``/``.

    ``own``: what belongs to the service alone, which ``purge`` removes. ``named``: other files of it, which remain. All
    are below ``root``. Raises `UsageError` if there is nothing to remove, `PlatformError`, `StoreError`.
    """
    path = below(root, service.path)
    if root == ROOT:
        require_root(service)
    if not path.is_file() and not (purge and any(map(_there, own))):
        raise _not_installed(service, path)
    if root == ROOT and path.is_file():
        systemctl(service, "disable", "--now", service.unit)
    gone = [one for one in [path, *(own if purge else [])] if _there(one)]
    for one in gone:
        remove(one)
    if root == ROOT:
        systemctl(service, "daemon-reload")
        systemctl(service, "reset-failed", service.unit, check=False)  # it fails where there is nothing to forget
    return Removed(gone, sorted(one for one in {*own, *named} if one.exists() and not one.is_symlink()))


def dynamic(*folders: Path) -> list[Path]:
    """``folders`` of a service with a dynamic user, which are links, and the folders that they lead to."""
    return [*folders, *(one.parent / "private" / one.name for one in folders)]


def require_root(service: Service) -> None:
    """Raise `PlatformError` without root or systemd."""
    if os.geteuid() != 0:
        raise PlatformError("only root can change the service; run the same command with sudo", reason="not-root")
    require_systemd(service)


def require_installed(service: Service, root: Path = ROOT) -> None:
    """Raise `UsageError` if the service is not installed."""
    path = below(root, service.path)
    if not path.is_file():
        raise _not_installed(service, path)


def _not_installed(service: Service, path: Path) -> UsageError:
    return UsageError(
        f"the service is not installed ({path} does not exist); run `{service.program} service install` first",
        reason="not-installed",
    )


def below(root: Path, path: Path) -> Path:
    """The absolute ``path`` in the system image at ``root``."""
    return root / path.relative_to("/")


def _there(path: Path) -> bool:
    """Whether ``path`` exists, be it as a dangling link."""
    return path.is_symlink() or path.exists()


def write(path: Path, text: str) -> None:
    """Write ``path``, readable by everyone, whole or not at all; its folder is made if it is not there.

    Raises `StoreError`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, text.encode())
        path.chmod(0o644)  # whatever the umask: the service reads it as another user
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}): free space or make the folder writable",
            reason="cannot-write",
        ) from error


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, and then /etc/splitedge if it is empty. Raises `StoreError`."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.parent.name == "splitedge" and path.parent.parent.name == "etc" and not any(path.parent.iterdir()):
            path.parent.rmdir()
    except OSError as error:
        raise StoreError(
            f"cannot remove {path} ({error.strerror}); remove it manually", reason="cannot-remove"
        ) from error
