"""A dry run: time a model's operators on this device before any of its weights are downloaded.

A head's time depends on its operators' shapes, not on its weights. So the server sends only the header of the longest
head, a few kB. The board runs that head with zeros as constants. All heads of a network are prefixes of the longest
one, so one run gives the times of all. A profile times operators in isolation and estimates others from them; a dry run
times the sequence that frames run.
"""

from __future__ import annotations

import time
from itertools import accumulate
from statistics import fmean, median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from splitedge import errors
from splitedge.head import Head
from splitedge.head import segment as seg
from splitedge.protocol.messages import DryRun, Outline

SECONDS: Final = 0.5  # of whole runs, and again of runs that time each operator
MIN_RUNS, MAX_RUNS = 5, 50
GROUPS: Final = 5  # the runs are split into groups,
PAUSE_S: Final = 0.25  # with pauses: on a shared processor, interference lasts for about a second
#: Copies of a head's constants in memory: as in the file, unpacked, and packed for the kernels.
_COPIES: Final = 4


def memory_bytes(outline: Outline) -> int:
    """An upper bound of the memory that `time_operators` needs. Raises `errors.SegmentError` for an invalid outline."""
    header = _header(outline)
    return _COPIES * header.blob_bytes + header.arena_bytes + sum(seg.spread_bytes(header, op) for op in header.ops)


def time_operators(outline: Outline, threads: int) -> DryRun:
    """Run the head of ``outline`` on ``threads``.

    Takes about two seconds, or ten runs of a slow head. Blocks; compiles kernels that are not cached.

    Raises `errors.SegmentError` for an invalid outline.
    """
    header = _header(outline)
    head = Head(seg.Segment(header, np.zeros(header.blob_bytes, np.uint8)), check_golden=False, threads=threads)
    frame = seg.golden_frame(header)
    head.run(frame)
    groups: list[float] = []
    profiled: list[list[float]] = []
    for group in range(GROUPS):
        time.sleep(PAUSE_S if group else 0.0)
        groups.append(_whole_ms(head, frame))
        runs = max(MIN_RUNS, min(MAX_RUNS, int(1e3 * SECONDS / max(groups[-1], 1e-3)))) // GROUPS
        profiled += [[one.us for one in head.profile(frame, 1)] for _ in range(runs)]
    whole, shares = sorted(groups)[GROUPS // 4], _shares(profiled)
    return DryRun(outline.bundle, [whole * share for share in accumulate(shares)])


def _whole_ms(head: Head, frame: NDArray[Any]) -> float:
    """Median milliseconds of one group of runs."""
    times: list[float] = []
    while len(times) < MIN_RUNS // GROUPS or (sum(times) < 1e3 * SECONDS / GROUPS and len(times) < MAX_RUNS // GROUPS):
        start = time.perf_counter()
        head.run(frame)
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


def _shares(runs: list[list[float]]) -> list[float]:
    """Each operator's share of the whole time: the mean over the faster half of ``runs``.

    A mean, not a median: where processes share a core in time slices, a short operator mostly runs within one slice,
    and its median misses the slices of other processes.
    """
    fast = sorted(runs, key=sum)[: (len(runs) + 1) // 2]
    means = [fmean(times) for times in zip(*fast, strict=True)]
    total = max(sum(means), 1e-9)
    return [mean / total for mean in means]


def _header(outline: Outline) -> seg.Header:
    header, end = seg.parse_header(outline.header)
    if end != len(outline.header):
        raise errors.SegmentError(
            "the model's outline has bytes behind its header; upgrade the server", reason="outline-bytes"
        )
    return header
