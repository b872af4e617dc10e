"""Segment files by their SHA-256, the upgrades between them, and an index by bundle, cut and bits."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from edge_server.store import folders
from edge_server.store.database import Database
from splitedge import files
from splitedge.protocol.messages import SegmentRef

_SHA: Final = re.compile(r"[0-9a-f]{64}")


class SegmentKey(NamedTuple):
    """The contents of a segment: the cuts where it starts and ends, and the bits of its weight layers."""

    start: int
    cut: int
    bits: tuple[int, ...]


class Segments:
    """The segment files of one store, in ``folder``."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self.folder = folder

    def put(self, data: bytes, bundle: str, cut: int, bits: tuple[int, ...], start: int = 0) -> SegmentRef:
        """Write a segment of ``bundle`` (a SHA-256) from cut ``start`` to ``cut``, atomically, and index it."""
        ref = SegmentRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        with self._database.guard():
            files.replace(self.folder / f"{ref.sha256}.segment", data, mode=0o600)
        with self._database.transaction() as db:
            row = (bundle, start, cut, bytes(bits), ref.sha256, ref.size)
            db.execute("INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?)", row)
        return ref

    def find(self, bundle: str, cut: int, bits: tuple[int, ...], start: int = 0) -> SegmentRef | None:
        """The segment of ``bundle`` from cut ``start`` to ``cut`` with ``bits``, if its file exists."""
        query = "SELECT sha256, size FROM segments WHERE bundle = ? AND start = ? AND cut = ? AND bits = ?"
        for sha256, size in self._database.read(query, (bundle, start, cut, bytes(bits))):
            if self.path(sha256) is not None:
                return SegmentRef(sha256=sha256, size=size)
        return None

    def known(self, bundle: str, hashes: Iterable[str]) -> dict[str, SegmentKey]:
        """The segments among ``hashes`` that were built from ``bundle``, with their contents."""
        query = (
            "SELECT sha256, start, cut, bits FROM segments"
            " WHERE bundle = ? AND sha256 IN (SELECT value FROM json_each(?))"
        )
        rows = self._database.read(query, (bundle, json.dumps([*hashes])))
        return {sha256: SegmentKey(start, cut, tuple(bits)) for sha256, start, cut, bits in rows}

    def path(self, sha256: str) -> Path | None:
        """The file of the segment ``sha256``, or None if it is not a SHA-256 or has no file."""
        if not _SHA.fullmatch(sha256):
            return None
        path = self.folder / f"{sha256}.segment"
        return path if path.is_file() else None

    def upgrade_path(self, wanted: str, held: str) -> Path | None:
        """The file that turns the segment ``held`` into ``wanted``, or None if it was not built yet."""
        path = self._upgrade(wanted, held)
        return path if path.is_file() else None

    def put_upgrade(self, data: bytes, wanted: str, held: str) -> Path:
        """Write the upgrade from ``held`` to ``wanted``, two segments of this store, whole or not at all."""
        path = self._upgrade(wanted, held)
        with self._database.guard():
            files.replace(path, data, mode=0o600)
        return path

    def forget(self, bundle: str) -> None:
        """Delete the index entries of ``bundle``, and the files that no other bundle uses."""
        with self._database.transaction() as db:
            ours = {sha for (sha,) in db.execute("SELECT sha256 FROM segments WHERE bundle = ?", (bundle,))}
            db.execute("DELETE FROM segments WHERE bundle = ?", (bundle,))
            others = {sha for (sha,) in db.execute("SELECT sha256 FROM segments")}
        with self._database.guard():
            for sha in ours - others:
                for path in (self.folder / f"{sha}.segment", *self.folder.glob(f"*{sha}*.upgrade")):
                    path.unlink(missing_ok=True)

    def delete_files(self) -> None:
        """Delete all segment and upgrade files: the index that named them is gone."""
        with self._database.guard():
            for path in [*self.folder.glob("*.segment"), *self.folder.glob("*.upgrade")]:
                path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete partial files that a killed process left behind."""
        with self._database.guard():
            folders.delete_old(self.folder.glob(f"{files.PARTIAL}*"))

    def _upgrade(self, wanted: str, held: str) -> Path:
        return self.folder / f"{wanted}-{held}.upgrade"
