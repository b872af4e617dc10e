"""The server's only state: one folder that several processes may share.

    store.sqlite          tokens (hashed), plans, patterns of bundles, which segment belongs to which bundle; WAL
    bundles/NAME/         calibrated models
    segments/SHA.segment  quantized heads, by content; SHA-SHA.upgrade: what makes the first of the second
    cache/                what calibrations keep for the next ones (`calibration.bundle.cache`)

Calls are short and block: on an event loop use ``asyncio.to_thread``. Every failure of disk or database is a `StoreError`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from calibration.samples.labels import NAMES
from splitedge import errors, files, limits
from splitedge.protocol.messages import Plan, SegmentRef

NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{limits.MAX_NAME - 1}}}")
_SHA: Final = re.compile(r"[0-9a-f]{64}")
_VERSION: Final = 6
#: Plans, patterns and segments of older versions are dropped: they are made anew when asked for.
_SCHEMA: Final = """
DROP TABLE IF EXISTS plans;
DROP TABLE IF EXISTS patterns;
DROP TABLE IF EXISTS segments;
CREATE TABLE IF NOT EXISTS tokens (name TEXT PRIMARY KEY, hash BLOB NOT NULL, created REAL NOT NULL);
CREATE TABLE plans (id TEXT PRIMARY KEY, expires REAL NOT NULL, body BLOB NOT NULL);
CREATE INDEX plans_expires ON plans (expires);
CREATE TABLE patterns (bundle TEXT PRIMARY KEY, made REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE segments (
    bundle TEXT NOT NULL, start INTEGER NOT NULL, cut INTEGER NOT NULL, bits BLOB NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (bundle, start, cut, bits)
);
"""


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token: never the token itself."""

    name: str
    created_unix: float


class Store:
    """An open store. Safe to use from several threads; close it, or use it in ``with``."""

    def __init__(
        self, folder: Path, *, busy_timeout_s: float = limits.STORE_BUSY, clock: Callable[[], float] = time.time
    ) -> None:
        """Opens ``folder``, made where it is missing. Raises `errors.StoreError`."""
        self.folder = folder
        self.bundles = folder / "bundles"
        self.segments = folder / "segments"
        self._clock = clock
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        with self._guard():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.bundles.mkdir(exist_ok=True)
            self.segments.mkdir(exist_ok=True)
            self._db = sqlite3.connect(
                folder / "store.sqlite", timeout=busy_timeout_s, check_same_thread=False, isolation_level=None
            )
            try:
                self._prepare(self._db)
                self._sweep()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- tokens

    def add_token(self, name: str) -> str:
        """A new bearer token called ``name``; this is the only time it can be read. Raises `errors.UsageError` if the name is taken."""
        check_name(name, "token")
        token = "se_" + secrets.token_urlsafe(32)
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM tokens WHERE name = ?", (name,)).fetchone():
                raise errors.UsageError(f"a token named {name!r} exists: give another name, or revoke it first")
            db.execute("INSERT INTO tokens VALUES (?, ?, ?)", (name, _token_hash(token), self._clock()))
        return token

    def revoke_token(self, name: str) -> None:
        """Raises `errors.UsageError` if there is no such token."""
        with self._transaction() as db:
            if db.execute("DELETE FROM tokens WHERE name = ?", (name,)).rowcount == 0:
                raise errors.UsageError(f"there is no token named {name!r}: `edge-server token --list` shows them")

    def tokens(self) -> list[Token]:
        return [Token(*row) for row in self._read("SELECT name, created FROM tokens ORDER BY name")]

    def holder(self, token: str) -> str | None:
        """The name of ``token``, None where it is none of ours; the time taken does not depend on how much of it is right."""
        offered = _token_hash(token)
        found = None
        for name, known in self._read("SELECT name, hash FROM tokens"):
            if hmac.compare_digest(offered, known):
                found = name
        return found

    # --- plans

    def put_plan(self, plan: Plan) -> None:
        """Keeps ``plan`` until a while after it expires; the oldest go where there are too many."""
        with self._transaction() as db:
            db.execute("DELETE FROM plans WHERE expires < ?", (self._clock() - limits.PLAN_GRACE,))
            body = msgspec.json.encode(plan)
            db.execute("INSERT OR REPLACE INTO plans VALUES (?, ?, ?)", (plan.id, plan.expires_unix, body))
            db.execute(
                "DELETE FROM plans WHERE id IN (SELECT id FROM plans ORDER BY expires DESC LIMIT -1 OFFSET ?)",
                (limits.MAX_PLANS,),
            )

    def plan(self, plan_id: str) -> Plan:
        """The plan ``plan_id``, up to `limits.PLAN_GRACE` seconds after its expiry. Raises `errors.UnknownPlanError`."""
        oldest = self._clock() - limits.PLAN_GRACE
        rows = self._read("SELECT body FROM plans WHERE id = ? AND expires >= ?", (plan_id, oldest))
        if not rows:
            raise errors.UnknownPlanError("the server does not know this plan or it expired: ask for a new one")
        return msgspec.json.decode(rows[0][0], type=Plan)

    # --- patterns

    def put_patterns(self, bundle: str, body: bytes) -> None:
        """Keeps what the planner found for ``bundle``, unless it is over `limits.MAX_PATTERN_BYTES`; the oldest go where there are too many."""
        if len(body) > limits.MAX_PATTERN_BYTES:
            return
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO patterns VALUES (?, ?, ?)", (bundle, self._clock(), body))
            db.execute(
                "DELETE FROM patterns WHERE bundle IN (SELECT bundle FROM patterns ORDER BY made DESC LIMIT -1 OFFSET ?)",
                (limits.KEPT_PATTERNS,),
            )

    def patterns(self, bundle: str) -> bytes | None:
        """What `put_patterns` was given for ``bundle``; whoever wrote it proves that it is whole."""
        query = "SELECT body FROM patterns WHERE bundle = ? AND length(body) <= ?"
        return next((body for (body,) in self._read(query, (bundle, limits.MAX_PATTERN_BYTES))), None)

    # --- segments

    def put_segment(self, data: bytes, bundle: str, cut: int, bits: tuple[int, ...], start: int = 0) -> SegmentRef:
        """Writes a segment under its content's hash, whole or not at all, and remembers what it belongs to: the cuts where it ends and begins, and the
        bits of its layers."""
        ref = SegmentRef(hashlib.sha256(data).hexdigest(), len(data))
        with self._guard():
            files.replace(self.segments / f"{ref.sha256}.segment", data, mode=0o600)
        with self._transaction() as db:
            row = (bundle, start, cut, bytes(bits), ref.sha256, ref.size)
            db.execute("INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?)", row)
        return ref

    def segment(self, bundle: str, cut: int, bits: tuple[int, ...], start: int = 0) -> SegmentRef | None:
        """The segment of ``bundle`` from the cut ``start`` to ``cut`` with these bits of its layers, if it was built and is still on disk."""
        query = "SELECT sha256, size FROM segments WHERE bundle = ? AND start = ? AND cut = ? AND bits = ?"
        for sha, size in self._read(query, (bundle, start, cut, bytes(bits))):
            if self.segment_path(sha) is not None:
                return SegmentRef(sha, size)
        return None

    def segments_named(self, bundle: str, hashes: Iterable[str]) -> dict[str, tuple[int, int, tuple[int, ...]]]:
        """Of those segments by these SHA-256 that were built of ``bundle``: the cuts where each begins and ends, and the bits of its layers."""
        query = "SELECT sha256, start, cut, bits FROM segments WHERE bundle = ? AND sha256 IN (SELECT value FROM json_each(?))"
        rows = self._read(query, (bundle, json.dumps([*hashes])))
        return {sha: (start, cut, tuple(bits)) for sha, start, cut, bits in rows}

    def segment_path(self, sha256: str) -> Path | None:
        """The file of the segment ``sha256``, or None where there is none (or that is not a SHA-256)."""
        if not _SHA.fullmatch(sha256):
            return None
        path = self.segments / f"{sha256}.segment"
        return path if path.is_file() else None

    def upgrade_path(self, wanted: str, held: str) -> Path | None:
        """The file that makes the segment ``wanted`` of ``held``, or None where it was not made yet."""
        path = self._upgrade(wanted, held)
        return path if path.is_file() else None

    def put_upgrade(self, data: bytes, wanted: str, held: str) -> Path:
        """Writes the way from ``held`` to ``wanted``, both segments that are here, whole or not at all."""
        path = self._upgrade(wanted, held)
        with self._guard():
            files.replace(path, data, mode=0o600)
        return path

    def _upgrade(self, wanted: str, held: str) -> Path:
        return self.segments / f"{wanted}-{held}.upgrade"

    # --- bundles

    def bundle_names(self) -> list[str]:
        with self._guard():
            return sorted(p.name for p in self.bundles.iterdir() if NAME.fullmatch(p.name) and p.is_dir())

    def bundle_path(self, name: str) -> Path:
        """The folder of the bundle ``name``. Raises `errors.UnknownModelError`."""
        path = self.bundles / name
        if not NAME.fullmatch(name) or not path.is_dir():
            names = ", ".join(self.bundle_names()[:10]) or "none yet: `edge-server add` makes one"
            raise errors.UnknownModelError(f"there is no model named {name[:80]!r}: the server has {names}")
        return path

    def check_free(self, name: str, *, replace: bool) -> None:
        """Raises `errors.UsageError` where there is a model ``name`` already, unless it is to be replaced."""
        if not replace and (self.bundles / name).exists():
            raise errors.UsageError(
                f"there is a model named {name!r} already: give --replace to replace it, or another --name"
            )

    @contextlib.contextmanager
    def new_bundle(self, name: str, *, replace: bool = True) -> Iterator[Path]:
        """A path that does not exist, to build a bundle in; it takes the place of ``name`` when the block ends without an error.

        Its folder is locked meanwhile, so that others see that it is in use (`_sweep`).
        """
        check_name(name, "model")
        with self._guard():
            work, lock = locked_folder(self.bundles, ".new-")
        try:
            yield work / name
            self.check_free(name, replace=replace)
            with self._guard(), self._set_aside(self.bundles / name, ".old-") as old:
                try:
                    (work / name).rename(self.bundles / name)
                except BaseException:
                    if (old / name).exists():
                        (old / name).rename(self.bundles / name)
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
            os.close(lock)

    def set_names(self, name: str, names: list[str]) -> None:
        """Writes the class names of the model ``name`` beside its bundle, which stays as it is; whole or not at all."""
        with self._guard():
            files.replace(self.bundle_path(name) / NAMES, msgspec.json.encode(names), mode=0o600)

    def remove_bundle(self, name: str) -> None:
        """Removes the folder of the bundle ``name``; what was made from it is `forget`'s work."""
        path = self.bundle_path(name)
        with self._guard(), self._set_aside(path, ".gone-"):
            pass

    def forget(self, bundle: str) -> None:
        """Forgets patterns and segments of ``bundle`` and deletes the segments that no other bundle uses."""
        with self._transaction() as db:
            db.execute("DELETE FROM patterns WHERE bundle = ?", (bundle,))
            ours = {sha for (sha,) in db.execute("SELECT sha256 FROM segments WHERE bundle = ?", (bundle,))}
            db.execute("DELETE FROM segments WHERE bundle = ?", (bundle,))
            others = {sha for (sha,) in db.execute("SELECT sha256 FROM segments")}
        with self._guard():
            for sha in ours - others:
                for path in (self.segments / f"{sha}.segment", *self.segments.glob(f"*{sha}*.upgrade")):
                    path.unlink(missing_ok=True)

    # --- inside

    def _prepare(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise errors.StoreError(f"the store in {self.folder} was written by a newer splitedge: upgrade this one")
        db.execute("PRAGMA journal_mode = WAL")
        if version < _VERSION:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
            for left in [*self.segments.glob("*.segment"), *self.segments.glob("*.upgrade")]:
                left.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Deletes what a process that was killed left behind: folders that nobody holds locked, and files after a day. What was taken away to be replaced,
        and was not, comes back."""
        for prefix in (".old-", ".gone-", ".new-"):
            for left in self.bundles.glob(f"{prefix}*"):
                with (
                    contextlib.suppress(FileNotFoundError),
                    unlocked(left) as free,
                ):  # another sweeps, or its import ended
                    if not free:
                        continue
                    for kept in left.iterdir() if prefix == ".old-" else ():
                        if not (self.bundles / kept.name).exists():
                            kept.rename(self.bundles / kept.name)
                    shutil.rmtree(left)
        for left in [*self.segments.glob(".new-*"), *self._names_in_making()]:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                if left.stat().st_mtime < time.time() - limits.LEFTOVER_AGE:
                    left.unlink()

    def _names_in_making(self) -> Iterator[Path]:
        """Files of class names that are not whole. A folder that another process takes away meanwhile holds none."""
        for bundle in self.bundles.iterdir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                yield from [path for path in bundle.iterdir() if path.name.startswith(".new-")]

    @contextlib.contextmanager
    def _set_aside(self, path: Path, prefix: str) -> Iterator[Path]:
        """Takes ``path``, if it is there, away in one step, into a locked folder that goes with it when the block ends without an error."""
        trash, lock = locked_folder(self.bundles, prefix)
        try:
            if path.exists():
                path.rename(trash / path.name)
            yield trash
            shutil.rmtree(trash)
        except BaseException:
            with contextlib.suppress(OSError):
                trash.rmdir()
            raise
        finally:
            os.close(lock)

    def _read(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._guard(), self._lock:
            return self._open().execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guard(), self._lock:
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            raise errors.StoreError(f"the store in {self.folder} is closed: open it again")
        return self._db

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turns failures of disk and database into one sentence."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise errors.StoreError(_sentence(self.folder, error), folder=str(self.folder)) from error


def locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new folder in ``parent`` and the open descriptor that locks it until it is closed or this process ends, however that ends."""
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
def unlocked(folder: Path) -> Iterator[bool]:
    """Whether nobody else holds ``folder`` locked, which this block does then; where locks do not work, whether it is a day old."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            free = folder.stat().st_mtime < time.time() - limits.LEFTOVER_AGE
        else:
            free = True
        yield free
    finally:
        os.close(lock)


def default_folder() -> Path:
    """Where the store lies if nobody says: ``$SPLITEDGE_STORE``, else below ``$XDG_DATA_HOME``."""
    try:
        if named := os.environ.get("SPLITEDGE_STORE"):
            return Path(named).expanduser()
        data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    except RuntimeError as error:  # as of a service's user
        raise errors.StoreError(
            "there is no home directory to keep the store in: name its folder with --store or SPLITEDGE_STORE"
        ) from error
    return Path(data) / "splitedge" / "server"


def check_name(name: str, what: str) -> None:
    """Raises `errors.UsageError` unless ``name`` can be a file's name everywhere."""
    if not NAME.fullmatch(name):
        raise errors.UsageError(
            f"{name[:80]!r} cannot be the name of a {what}: use up to {limits.MAX_NAME} letters, digits, '.', '_' and '-', "
            "starting with a letter or digit"
        )


def _token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _full(folder: Path) -> bool:
    """Whether the disk has no room for a page of SQLite's shared memory, which it calls an I/O error."""
    try:
        return shutil.disk_usage(folder).free < 1 << 16
    except OSError:
        return False


def _sentence(folder: Path, error: OSError | sqlite3.Error) -> str:
    number, text = getattr(error, "errno", None), str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in text or ("disk I/O" in text and _full(folder)):
        return f"the disk that holds the store {folder} is full: free some space and try again"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or "readonly" in text or "unable to open" in text:
        return f"the store {folder} cannot be written: check its owner and mode, or name another folder with --store"
    if number in (errno.ENOTDIR, errno.EEXIST):
        return f"the store {folder} is not a folder: name another with --store"
    if "locked" in text:
        return f"the store {folder} is held by another process: try again, and end that process if this persists"
    if "not a database" in text or "malformed" in text:
        return f"{folder / 'store.sqlite'} is damaged: restore it from a copy, or remove it and make new tokens"
    return f"the store {folder} failed ({text[:200]}): check the disk, or name another folder with --store"
