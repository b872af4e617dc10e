"""The bundles of a store, opened once and opened again when another process has replaced one."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final, TypeAlias

from calibration.bundle.bundle import Bundle
from device_profiles import predict
from edge_server.planner import Table
from edge_server.planning.pattern_tables import kept_table
from edge_server.store.store import Store
from edge_server.tails.pool import Tail
from splitedge import errors
from splitedge.head import segment, upgrade
from splitedge.protocol.messages import Cut, ModelInfo, Outline, SegmentRef

_log = logging.getLogger(__name__)

#: Tables that are kept in memory: one of a deep network takes a few MB.
MOST_TABLES: Final = 32

_Mark: TypeAlias = tuple[int, int]  # inode and time of a bundle's folder: a new bundle is a new folder


class Catalog:
    """Open bundles, their tables of patterns and their segments. Calls block; safe from several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._open: dict[str, tuple[_Mark, Bundle]] = {}
        self._tables: dict[str, tuple[Table, predict.Heads]] = {}
        self._building = threading.Lock()

    def bundle(self, name: str) -> Bundle:
        """Raises `errors.UnknownModelError`, or `errors.ModelError` for a bundle that is damaged."""
        path = self.store.bundle_path(name)
        try:
            status = path.stat()
        except FileNotFoundError as error:  # another process removed it since
            raise errors.UnknownModelError(f"there is no model named {name!r} any more: choose another") from error
        mark = status.st_ino, status.st_mtime_ns
        with self._lock:
            held = self._open.get(name)
            if held is None or held[0] != mark:
                self._open[name] = held = mark, Bundle.open(path)
            return held[1]

    def models(self) -> list[ModelInfo]:
        """Every model that opens. One that another process removes meanwhile is left out, and so is, with a warning, a damaged one."""
        found = []
        for name in self.store.bundle_names():
            try:
                found.append(self.bundle(name).info())
            except errors.UnknownModelError:
                continue
            except errors.ModelError as error:
                _log.warning("%s is not listed: %s", name, error)
        return found

    def outline(self, name: str) -> Outline:
        """What the longest head of a model computes. Raises as `bundle` does."""
        bundle = self.bundle(name)
        longest = max((bundle.header(cut) for cut in bundle.offered), key=lambda header: len(header.ops))
        return Outline(bundle.sha256, segment.frame(longest))

    def table(self, bundle: Bundle) -> tuple[Table, predict.Heads]:
        """The patterns of ``bundle`` and the heads of their places: read or made at the first call, which may take seconds, and held for the last
        `MOST_TABLES` bundles."""
        with self._building:
            if bundle.sha256 not in self._tables:
                while len(self._tables) >= MOST_TABLES:
                    self._tables.pop(next(iter(self._tables)))
                table = kept_table(self.store, bundle)
                heads = predict.Heads([bundle.header(place.cut.index) for place in table.places])
                self._tables[bundle.sha256] = table, heads
            return self._tables[bundle.sha256]

    def segment(self, bundle: Bundle, cut: int, bits: tuple[int, ...], start: int = 0) -> SegmentRef:
        """The segment of ``bundle`` from the cut ``start`` to ``cut`` with these bits of its layers, built where it is not in the store yet."""
        with self._building:
            known = self.store.segment(bundle.sha256, cut, bits, start)
            if known is not None:
                return known
            data = bundle.segment(cut, dict(zip(bundle.weight_layers(cut, start), bits, strict=True)), start)
            return self.store.put_segment(data, bundle.sha256, cut, bits, start)

    def upgrade(self, wanted: str, held: str) -> Path | None:
        """The file that makes the segment ``wanted`` of ``held``, made where it is not in the store yet; None where one of them is not."""
        paths = [self.store.segment_path(sha) for sha in (wanted, held)]
        if None in paths:
            return None
        with self._building:
            made = self.store.upgrade_path(wanted, held)
            if made is None:
                new, old = (path.read_bytes() for path in paths if path is not None)
                made = self.store.put_upgrade(upgrade.make(old, new), wanted, held)
            return made

    def tail(self, bundle: Bundle, cut: Cut) -> Tail:
        """The tail behind ``cut``, ready to run. Raises `errors.UnknownPlanError` if the bundle was removed since it was opened."""
        try:
            model = bundle.tail(cut.index)
        except FileNotFoundError as error:
            raise errors.UnknownPlanError(f"{bundle.name} was removed from the server: ask for a new plan") from error
        if model is None:
            raise errors.ProtocolError(
                "this plan sends nothing to the server: run it on the device, or ask for a new one"
            )
        return Tail(model, cut.shape, cut.padding)
