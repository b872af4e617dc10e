"""The versions of splitedge on a board, as `install-agent` lays them out.

``/opt/splitedge/VERSION`` is the virtual environment of a version. It contains the file `COMPLETE` once everything is on
the disk. The symbolic link ``/opt/splitedge/current`` names the version in use, and is the only thing that a change of
the version changes. So a power cut leaves either version working.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from splitedge import files, limits
from splitedge.errors import StoreError, UsageError

PREFIX: Final = Path("/opt/splitedge")
COMPLETE: Final = ".complete"
KEPT: Final = 2  # versions
_VERSION: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,5}", re.ASCII)
_ARCHIVE: Final = re.compile(rf"splitedge-agent-({_VERSION.pattern})-(\w+)\.tar", re.ASCII)


_T = TypeVar("_T", bound=msgspec.Struct)


class Trial(msgspec.Struct):
    """An upgrade that is under way. It is in a file, so that it survives a power cut.

    ``unit``: the unit of the old version. ``was_ready``: the old version served frames. ``failure``: why the new version
    does not work, once the board returns to the old one. ``limit_s``: how long a version may take until it is ready.
    ``fresh``: this upgrade installed the new version. ``attempts``: how often it was started.
    """

    old: str
    new: str
    unit: str
    was_ready: bool
    limit_s: float = limits.UPGRADE_READY
    failure: str = ""
    fresh: bool = False
    attempts: int = 0


class Outcome(msgspec.Struct):
    """How an upgrade ended: the version in use; if the new one failed, its name, why, and how long the board took to
    return to the old version.
    """

    version: str
    failed: str = ""
    failure: str = ""
    rollback_s: float = 0.0


def order(version: str) -> tuple[int, ...]:
    """A key that sorts versions. Raises `UsageError` for text that is not a version."""
    if not _VERSION.fullmatch(version):
        raise UsageError(f"{version[:60]!r} is not a version such as 0.2.0", reason="not-a-version")
    numbers = [int(part) for part in version.split(".")]
    while numbers[1:] and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def of_archive(name: str) -> tuple[str, str]:
    """Version and machine in the ``name`` of a release archive. Raises `UsageError` for another name."""
    found = _ARCHIVE.fullmatch(name)
    if found is None:
        raise UsageError(
            f"{name[:60]!r} is not the name of a release archive, splitedge-agent-VERSION-MACHINE.tar",
            reason="not-an-archive",
        )
    return found[1], found[2]


class Versions:
    """The versions in the folder ``prefix``. Methods that write raise `StoreError`."""

    def __init__(self, prefix: Path = PREFIX) -> None:
        self.prefix = prefix
        self.link = prefix / "current"
        self._trial, self._outcome = prefix / "upgrade.json", prefix / "outcome.json"

    def program(self, version: str) -> Path:
        """The `edge-agent` of a version."""
        return self.prefix / version / "bin/edge-agent"

    def installed(self) -> list[str]:
        """The versions that are installed completely, oldest first."""
        return [name for name in self._names() if (self.prefix / name / COMPLETE).is_file()]

    def _names(self) -> list[str]:
        """The folders of versions, also of incomplete ones, oldest first."""
        with suppress(OSError):
            found = [one.name for one in self.prefix.iterdir() if _VERSION.fullmatch(one.name) and one.is_dir()]
            return sorted(found, key=order)
        return []

    def current(self) -> str | None:
        """The version in use, or None."""
        with suppress(OSError):
            name = str(self.link.readlink())
            return name if _VERSION.fullmatch(name) else None
        return None

    def switch(self, version: str) -> None:
        """Make ``version`` the one in use: at any moment the link names the old or the new one."""
        temporary = self.prefix / f"{files.PARTIAL}current"
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(version)
            files.rename(temporary, self.link)
        except OSError as error:
            raise _unwritable(self.link, error) from error

    def prune(self, previous: str | None = None) -> list[str]:
        """Remove all but the version in use, the ``previous`` one and the newest other ones, `KEPT` in all, and what
        installations left that were interrupted. Returns what was removed.
        """
        current, installed = self.current(), self.installed()
        others = sorted((one for one in installed if one != current), key=lambda one: (one == previous, order(one)))
        gone = others[: max(0, len(others) - (KEPT - 1))]
        with self._locked(".lock") as busy:  # of install-agent
            gone += [name for name in self._names() if name not in installed and name != current and not busy]
            for version in gone:
                self.remove(version)
        return gone

    @contextmanager
    def upgrading(self) -> Iterator[None]:
        """No other upgrade begins in this block. Raises `UsageError` if one is under way."""
        with self._locked(".upgrade-lock") as busy:
            if busy:
                raise UsageError("another upgrade is under way; wait until it ends", reason="busy")
            yield

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """No other process is in such a block; waits for the end of theirs."""
        with self._locked(".begin-lock", wait=True):
            yield

    @contextmanager
    def _locked(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Whether another process has the lock ``name``; never with ``wait``. If not, it cannot get it in this block."""
        path = self.prefix / name
        try:
            lock = path.open("w")
        except OSError as error:
            raise _unwritable(path, error) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield True
            else:
                yield False

    def remove(self, version: str) -> None:
        """Remove a version that is not in use."""
        place = self.prefix / version
        try:
            (place / COMPLETE).unlink(missing_ok=True)  # so that a half-removed version does not count as installed
            shutil.rmtree(place)
        except OSError as error:
            raise _unwritable(place, error) from error

    def trial(self) -> Trial | None:
        """The upgrade that is under way. Raises `StoreError` if its file is damaged."""
        return _read(self._trial, Trial)

    def outcome(self) -> Outcome | None:
        """How the last upgrade ended. Raises `StoreError` if its file is damaged."""
        return _read(self._outcome, Outcome)

    def begin(self, trial: Trial) -> None:
        """Record that an upgrade is under way, or has failed."""
        self._write(self._trial, trial)

    def end(self, outcome: Outcome) -> None:
        """Record that the upgrade ended."""
        self._write(self._outcome, outcome)
        try:
            self._trial.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self._trial, error) from error

    def _write(self, path: Path, value: msgspec.Struct) -> None:
        try:
            files.replace(path, msgspec.json.encode(value))
        except OSError as error:
            raise _unwritable(path, error) from error


def linked(path: Path, prefix: Path = PREFIX) -> Path:
    """``path`` through the link, if it is in the version in use, so that it stays right after an upgrade."""
    versions = Versions(prefix)
    current = versions.current()
    if current is not None and path.is_relative_to(prefix / current):
        return versions.link / path.relative_to(prefix / current)
    return path


def own(prefix: Path = PREFIX) -> str:
    """The version that runs this program. Raises `UsageError` if `install-agent` did not install it."""
    place = Path(sys.prefix)
    if place.parent != prefix or not _VERSION.fullmatch(place.name):
        raise UsageError(
            f"this edge-agent is in {sys.prefix}, where install-agent did not install it; upgrade it as it was installed",
            reason="not-managed",
        )
    return place.name


def _read(path: Path, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{path} is unreadable ({error}); remove it and try again", reason="unreadable") from error


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} cannot be changed ({error.strerror}); free some space and run the command as root",
        reason="cannot-write",
    )
