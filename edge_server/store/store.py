"""The server's only state: one folder, which several processes may share.

    store.sqlite          tokens (hashed), plans, patterns of bundles, index of segments
    bundles/NAME/         calibrated models
    segments/SHA.segment  quantized heads, by content; SHA-SHA.upgrade turns the second into the first
    cache/                intermediate results of calibrations (`calibration.bundle.cache`)

Calls are short and block: on an event loop use ``asyncio.to_thread``. Every failure of disk or database is a
`errors.StoreError`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from edge_server.store import folders
from edge_server.store.bundles import Bundles
from edge_server.store.database import Database
from edge_server.store.plans import Patterns, Plans
from edge_server.store.segments import Segments
from edge_server.store.tokens import Tokens
from splitedge import limits


class Store:
    """An open store. Safe to use from several threads; close it, or use it in ``with``."""

    def __init__(
        self, folder: Path, *, busy_timeout_s: float = limits.STORE_BUSY, clock: Callable[[], float] = time.time
    ) -> None:
        """Open ``folder``, or create it. Raises `errors.StoreError`."""
        self.folder = folder
        self._database = Database(folder, busy_timeout_s)
        self.tokens = Tokens(self._database, clock)
        self.plans = Plans(self._database, clock)
        self.patterns = Patterns(self._database, clock)
        self.segments = Segments(self._database, folder / "segments")
        self.bundles = Bundles(self._database, folder / "bundles")
        try:
            self._prepare()
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the database; later calls that need it raise `errors.StoreError`.

        What root added belongs to the owner of the store then, such as the user of the service.
        """
        self._database.close()
        if os.geteuid() == 0:
            with self._database.guard():
                folders.hand_over(self.folder)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def forget(self, bundle: str) -> None:
        """Delete the patterns of ``bundle`` (a SHA-256), and the segments that no other bundle uses."""
        self.patterns.forget(bundle)
        self.segments.forget(bundle)

    def _prepare(self) -> None:
        with self._database.guard():
            self.bundles.folder.mkdir(exist_ok=True)
            self.segments.folder.mkdir(exist_ok=True)
        if self._database.upgrade():
            self.segments.delete_files()
        self.bundles.sweep()
        self.segments.sweep()
