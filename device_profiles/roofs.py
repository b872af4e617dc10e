"""What bounds a kernel: memory bandwidth, products on registers, and what a board keeps up under load."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from threading import Barrier
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from device_profiles import power
from device_profiles.schema import Bandwidth, Machine, Peak
from kernels import peak
from splitedge import limits
from splitedge.head import Head

U8 = NDArray[np.uint8]

_BYTES_LEAST, _BYTES_MOST = 32 * limits.MiB, 256 * limits.MiB
_TURNS: Final = 5
_PEAK_TURNS: Final = 20
_BURSTS: Final = 20  # of one thread in one turn
_SAMPLE_S: Final = 0.25  # between two readings of a power sensor
_SECOND: Final = 1.0


def bandwidths(found: Machine, counts: Sequence[int]) -> list[Bandwidth]:
    """Copy and read on each number of threads, over four times the last cache; empty if memory is too small."""
    wanted = 4 * (found.last_cache_bytes or _BYTES_LEAST // 4)
    size = min(max(wanted, _BYTES_LEAST), _BYTES_MOST)
    if 4 * size > found.memory_available_bytes:
        return []
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    return [bandwidth for threads in counts for bandwidth in _bandwidth(source, target, threads)]


def _bandwidth(source: U8, target: U8, threads: int) -> list[Bandwidth]:
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    work: dict[Literal["copy", "read"], list[Callable[[], object]]] = {
        "copy": [lambda x=x, y=y: np.copyto(y, x) for x, y in parts],  # type: ignore[misc]
        "read": [lambda x=x: x.max() for x, _ in parts],  # type: ignore[misc]
    }
    seconds = {kind: median(_together(each)) for kind, each in work.items()}
    moved = {"copy": 2 * source.size, "read": source.size}
    return [Bandwidth(kind, threads, moved[kind] / taken / 1e9) for kind, taken in seconds.items()]


def peaks(counts: Sequence[int]) -> list[Peak]:
    """The peak of products on each number of threads, the best of some turns."""

    def work() -> None:
        for _ in range(_BURSTS):
            peak.burst()

    peak.burst()
    found: list[Peak] = []
    for threads in sorted(counts):
        gops = threads * _BURSTS * peak.BURST / min(_together([work] * threads, _PEAK_TURNS)) / 1e9
        found.append(Peak(threads, max([gops, *(one.gops for one in found)])))  # the other threads could stay idle
    return found


def _together(work: Sequence[Callable[[], object]], turns: int = _TURNS) -> list[float]:
    """Seconds of each turn, in which all of ``work`` runs at once, each on a thread of its own."""
    start = Barrier(len(work))

    def run(one: Callable[[], object]) -> tuple[float, float]:
        start.wait()
        began = time.perf_counter()
        one()
        return began, time.perf_counter()

    times = []
    with ThreadPoolExecutor(len(work)) as pool:
        for _ in range(turns):
            ends = list(pool.map(run, work))
            times.append(max(end for _, end in ends) - min(began for began, _ in ends))
    return times


def speed(head: Head, codes: U8, seconds: float, last: float = _SECOND, meter: power.PowerMeter | None = None) -> float:
    """Runs a second in the ``last`` seconds of a load of at least this many ``seconds``. Counts power with ``meter``."""
    ends: list[float] = [time.perf_counter()]
    sampled = began = ends[0]
    while ends[-1] < began + seconds:
        head.run(codes)
        ends.append(time.perf_counter())
        if meter is not None and ends[-1] >= sampled + _SAMPLE_S:
            meter.sample()
            sampled = time.perf_counter()
    late = [end for end in ends if end >= ends[-1] - last]
    late = late if len(late) > 1 else ends[-2:]
    return (len(late) - 1) / (late[-1] - late[0])
