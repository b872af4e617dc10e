"""The models of a store, opened once, and opened again when another process replaced one."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from calibration.bundle.bundle import Bundle
from device_profiles import predict
from edge_server.planner import Table
from edge_server.planning.pattern_tables import load_or_build_table
from edge_server.store.store import Store
from edge_server.tails.pool import LoadedTail
from splitedge import errors
from splitedge.head import segment, upgrade
from splitedge.protocol.messages import Cut, ModelInfo, Outline, SegmentRef

_log = logging.getLogger(__name__)

#: Tables in memory; the table of a deep network takes a few MB.
MAX_TABLES: Final = 32

_FolderId: TypeAlias = tuple[int, int]  # inode and modification time: a new bundle is a new folder


class PlanningTable(NamedTuple):
    """A model's table for the planner, and the heads of its cuts as work to predict times of."""

    table: Table
    heads: predict.Heads


class Catalog:
    """Open models, their tables and their segments. Calls block; safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._open: dict[str, tuple[_FolderId, Bundle]] = {}
        self._tables: OrderedDict[str, PlanningTable] = OrderedDict()
        self._building = threading.Lock()

    def bundle(self, name: str) -> Bundle:
        """The bundle ``name``. Raises `errors.UnknownModelError`, or `errors.ModelError` for a damaged bundle."""
        path = self.store.bundles.path(name)
        try:
            status = path.stat()
        except FileNotFoundError as error:  # another process just removed it
            raise errors.UnknownModelError(
                f"the model {name!r} was removed: choose another one", reason="model-gone"
            ) from error
        folder_id = status.st_ino, status.st_mtime_ns
        with self._lock:
            held = self._open.get(name)
            if held is None or held[0] != folder_id:
                self._open[name] = held = folder_id, Bundle.open(path)
            return held[1]

    def models(self) -> list[ModelInfo]:
        """Every model that opens. A damaged one is logged and left out, as is one that another process removes."""
        found = []
        for name in self.store.bundles.names():
            try:
                found.append(self.bundle(name).info())
            except errors.UnknownModelError:
                continue
            except errors.ModelError as error:
                _log.warning("%s is not listed: %s", name, error)
        return found

    def outline(self, name: str) -> Outline:
        """The operators of a model's longest head. Raises as `bundle` does."""
        bundle = self.bundle(name)
        longest = max((bundle.header(cut) for cut in bundle.offered), key=lambda header: len(header.ops))
        return Outline(bundle=bundle.sha256, header=segment.frame(longest))

    def table(self, bundle: Bundle) -> PlanningTable:
        """The table of ``bundle``. The first call reads or builds it, which may take seconds.

        The catalog keeps the `MAX_TABLES` most recently used tables.
        """
        with self._building:
            found = self._tables.pop(bundle.sha256, None) or self._build_table(bundle)
            self._tables[bundle.sha256] = found
            while len(self._tables) > MAX_TABLES:
                self._tables.popitem(last=False)
            return found

    def _build_table(self, bundle: Bundle) -> PlanningTable:
        table = load_or_build_table(self.store, bundle)
        return PlanningTable(table, predict.Heads([bundle.header(option.cut.index) for option in table.options]))

    def segment(self, bundle: Bundle, cut: int, bits: tuple[int, ...], start: int = 0) -> SegmentRef:
        """The segment of ``bundle`` from cut ``start`` to ``cut`` with ``bits`` for its layers; built if missing."""
        with self._building:
            known = self.store.segments.find(bundle.sha256, cut, bits, start)
            if known is not None:
                return known
            data = bundle.segment(cut, dict(zip(bundle.weight_layers(cut, start), bits, strict=True)), start)
            return self.store.segments.put(data, bundle.sha256, cut, bits, start)

    def upgrade(self, wanted: str, held: str) -> Path | None:
        """The file that turns the segment ``held`` into ``wanted``; built if missing. None if either is unknown."""
        new, old = (self.store.segments.path(sha256) for sha256 in (wanted, held))
        if new is None or old is None:
            return None
        with self._building:
            known = self.store.segments.upgrade_path(wanted, held)
            if known is not None:
                return known
            return self.store.segments.put_upgrade(upgrade.make(old.read_bytes(), new.read_bytes()), wanted, held)

    def tail(self, bundle: Bundle, cut: Cut) -> LoadedTail:
        """Load the tail behind ``cut``. Raises `errors.UnknownPlanError` if the bundle was removed meanwhile."""
        try:
            model = bundle.tail(cut.index)
        except FileNotFoundError as error:
            raise errors.UnknownPlanError(
                f"the model {bundle.name!r} was removed: request a new plan", reason="removed"
            ) from error
        if model is None:
            raise errors.ProtocolError(
                f"a plan that cuts after {cut.layer[:80]!r} sends nothing to the server: run it on the device",
                reason="sends-nothing",
            )
        return LoadedTail(model, cut.shape, cut.padding)
