"""The store's SQLite file, and one sentence for every failure of disk or database."""

from __future__ import annotations

import contextlib
import errno
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from splitedge import errors

_VERSION: Final = 6
#: A new version drops plans, patterns and segments: the server makes them again on request.
_SCHEMA: Final = """
DROP TABLE IF EXISTS plans;
DROP TABLE IF EXISTS patterns;
DROP TABLE IF EXISTS segments;
CREATE TABLE IF NOT EXISTS tokens (name TEXT PRIMARY KEY, hash BLOB NOT NULL, created REAL NOT NULL);
CREATE TABLE plans (id TEXT PRIMARY KEY, expires REAL NOT NULL, body BLOB NOT NULL);
CREATE INDEX plans_expires ON plans (expires);
CREATE TABLE patterns (bundle TEXT PRIMARY KEY, made REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE segments (
    bundle TEXT NOT NULL, start INTEGER NOT NULL, cut INTEGER NOT NULL, bits BLOB NOT NULL,
    sha256 TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (bundle, start, cut, bits)
);
"""


class Database:
    """``store.sqlite`` in ``folder``, in WAL mode. Safe to use from several threads and processes."""

    def __init__(self, folder: Path, busy_timeout_s: float) -> None:
        """Open or create the folder and the file. Raises `errors.StoreError`."""
        self.folder = folder
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        with self.guard():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                folder / "store.sqlite", timeout=busy_timeout_s, check_same_thread=False, isolation_level=None
            )

    def close(self) -> None:
        """Close the file; later calls raise `errors.StoreError`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def upgrade(self) -> bool:
        """Create or upgrade the tables; True if that dropped older segments. Raises `errors.StoreError`."""
        with self.guard(), self._lock:
            db = self._open()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise errors.StoreError(
                    f"the store in {self.folder} has version {version}, newer than {_VERSION}: upgrade splitedge",
                    reason="newer-store",
                )
            db.execute("PRAGMA journal_mode = WAL")
            if version == _VERSION:
                return False
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
            return True

    def read(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of ``query``."""
        with self.guard(), self._lock:
            return self._open().execute(query, values).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: commits at the end of the block, rolls back if the block raises."""
        with self.guard(), self._lock:
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turn failures of disk and database into `errors.StoreError`, with a ``reason`` for programs."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            reason, message = _describe(self.folder, error)
            raise errors.StoreError(message, folder=str(self.folder), reason=reason) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise errors.StoreError(f"the store in {self.folder} is closed: open it again", reason="closed")
        return self._connection


def _full(folder: Path) -> bool:
    """Whether the disk lacks 64 KiB: SQLite reports a full disk under its shared memory as an I/O error."""
    try:
        return shutil.disk_usage(folder).free < 1 << 16
    except OSError:
        return False


def _describe(folder: Path, error: OSError | sqlite3.Error) -> tuple[str, str]:
    """The reason, a word for programs, and the message."""
    number, text = getattr(error, "errno", None), str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in text or ("disk I/O" in text and _full(folder)):
        return "full", f"the disk of the store {folder} is full: free some space and try again"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or "readonly" in text or "unable to open" in text:
        return "unwritable", (
            f"the store {folder} cannot be written: check its owner and mode, or choose another folder with --store"
        )
    if number in (errno.ENOTDIR, errno.EEXIST):
        return "not-a-folder", f"the store {folder} is not a folder: choose another with --store"
    if "locked" in text:
        return "locked", (f"another process holds the store {folder}: try again, and end that process if this persists")
    if "not a database" in text or "malformed" in text:
        return "damaged", (
            f"{folder / 'store.sqlite'} is damaged: restore a backup, or delete it and create new tokens"
        )
    return "failed", (
        f"the store {folder} failed ({text[:200]}): check the disk, or choose another folder with --store"
    )
