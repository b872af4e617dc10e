"""Locked folders, for several processes that share a store."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from splitedge import limits


def create_locked(parent: Path, prefix: str) -> tuple[Path, int]:
    """Create a folder in ``parent``, and return it with the descriptor that locks it.

    The lock ends when the descriptor is closed or the process ends, even if it is killed.
    """
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = os.open(made, os.O_RDONLY)
        except FileNotFoundError:  # another process swept it before it was locked
            continue
        with contextlib.suppress(OSError):  # a file system without locks: the folder's age protects it
            fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():  # not swept before it was locked
            return made, lock
        os.close(lock)


@contextlib.contextmanager
def try_lock(folder: Path) -> Iterator[bool]:
    """Lock ``folder`` for the block and yield True, or yield False if another process holds the lock.

    On a file system without locks: True if the folder is older than `limits.LEFTOVER_AGE`.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            free = _is_old(folder)
        else:
            free = True
        yield free
    finally:
        os.close(lock)


def delete_old(paths: Iterable[Path]) -> None:
    """Delete the files among ``paths`` older than `limits.LEFTOVER_AGE`; younger ones may still be in use."""
    for path in list(paths):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            if _is_old(path):
                path.unlink()


def hand_over(folder: Path) -> None:
    """Give what belongs to root in ``folder`` to the owner of ``folder``. Only root may call this.

    No link is followed, and no file with a second name is given away: the owner may not be trusted. Raises `OSError`.
    """
    try:
        owner = folder.stat()
    except FileNotFoundError:
        return
    if owner.st_uid == 0:
        return
    for _, folders, names, handle in os.fwalk(folder.resolve()):
        for name in (*folders, *names):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                found = os.stat(name, dir_fd=handle, follow_symlinks=False)
                if found.st_uid == 0 and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1):
                    os.chown(name, owner.st_uid, owner.st_gid, dir_fd=handle, follow_symlinks=False)


def _is_old(path: Path) -> bool:
    return path.stat().st_mtime < time.time() - limits.LEFTOVER_AGE
