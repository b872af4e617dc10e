"""Measured times of tails, in ms. Each server process measures for itself."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Final, TypeAlias

from calibration.bundle.bundle import Bundle
from device_profiles import predict

_WINDOW: Final = 50  # runs in a median, and waits in the mean
_FRESH_S: Final = 10.0  # older waits do not describe the queue now

TailKey: TypeAlias = tuple[str, int]  # a bundle's SHA-256 and the index of the cut


class TailTimes:
    """Times of tails in this process, with decoding and the answer, and how long frames waited for a thread.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[TailKey, deque[float]] = {}
        self._waits: deque[tuple[float, float]] = deque(maxlen=_WINDOW)

    def add_run(self, key: TailKey, ms: float) -> None:
        """Record that the tail ``key`` took ``ms`` for a frame."""
        with self._lock:
            self._runs.setdefault(key, deque(maxlen=_WINDOW)).append(ms)

    def add_wait(self, ms: float) -> None:
        """Record that a frame waited ``ms`` for a thread."""
        with self._lock:
            self._waits.append((time.monotonic(), ms))

    def queue_ms(self) -> float:
        """The expected wait of a frame: the mean of recent waits, 0 if there are none."""
        now = time.monotonic()
        with self._lock:
            fresh = [ms for when, ms in self._waits if now - when < _FRESH_S]
        return fmean(fresh) if fresh else 0.0

    def predict(self, bundle: Bundle, cuts: Sequence[int], measure: Callable[[int], None]) -> tuple[float, ...]:
        """Milliseconds of the tail behind each of ``cuts``; 0 behind the output.

        A measured tail counts with its median. The others count with the bundle's figure, corrected by the measured
        ones. If no tail of the bundle was measured, ``measure(cut)`` is called with the first cut; it runs that tail
        and calls `add_run`.
        """
        found = self._medians(bundle.sha256)
        if not found and bundle.cuts[cuts[0]].kind != "output":
            measure(cuts[0])
            found = self._medians(bundle.sha256)
        measured = {i: found[cut] for i, cut in enumerate(cuts) if cut in found}
        return predict.refined([bundle.tail_ms[cut] for cut in cuts], measured)

    def _medians(self, sha256: str) -> dict[int, float]:
        with self._lock:
            return {cut: median(runs) for (bundle, cut), runs in self._runs.items() if bundle == sha256}
