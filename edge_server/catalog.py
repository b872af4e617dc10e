"""The bundles of a store, opened once and opened again when another process has replaced one."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TypeAlias

from calibration.bundle import Bundle
from edge_agent import errors
from edge_agent.head import upgrade
from edge_agent.protocol.messages import Cut, ModelInfo, SegmentRef
from edge_server.store import Store
from edge_server.tails import Tail

_log = logging.getLogger(__name__)
_Mark: TypeAlias = tuple[int, int]  # inode and time of a bundle's folder: a new bundle is a new folder


class Catalog:
    """Open bundles and their segments. Calls block; safe from several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._open: dict[str, tuple[_Mark, Bundle]] = {}
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

    def segment(self, bundle: Bundle, cut: int, weight_bits: int) -> SegmentRef:
        """The segment of ``bundle`` for this cut and these weights, built where it is not in the store yet."""
        with self._building:
            known = self.store.known_segments(bundle.sha256).get((cut, weight_bits))
            if known is not None:
                return known
            return self.store.put_segment(bundle.segment(cut, weight_bits), bundle.sha256, cut, weight_bits)

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
        return Tail(model, cut.shape)
