"""Places activations in memory: tensors that are not alive at the same time share bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from splitedge.head.segment import roundup


@dataclass(frozen=True)
class Extent:
    """A block of ``size`` bytes, in use from step ``first`` to step ``last`` inclusive."""

    size: int
    first: int
    last: int


def plan(extents: Sequence[Extent]) -> tuple[list[int], int]:
    """An offset for each extent, a multiple of `segment.ALIGN`, and the arena size in bytes.

    Greedy by size, like TFLite's planner: the largest block first, each in the smallest gap between blocks alive at the
    same time.
    """
    offsets = [0] * len(extents)
    placed: list[int] = []
    for index in sorted(range(len(extents)), key=lambda i: (-extents[i].size, i)):
        block = extents[index]
        others = sorted(
            (offsets[o], offsets[o] + roundup(extents[o].size))
            for o in placed
            if extents[o].first <= block.last and block.first <= extents[o].last
        )
        offsets[index] = _best_gap(others, roundup(block.size))
        placed.append(index)
    return offsets, max((o + roundup(e.size) for o, e in zip(offsets, extents, strict=True)), default=0)


def _best_gap(taken: list[tuple[int, int]], size: int) -> int:
    """Start of the smallest gap of at least ``size`` bytes between the sorted intervals ``taken``.

    Without such a gap: the end of all intervals.
    """
    best, room, end = -1, math.inf, 0
    for start, stop in taken:
        if size <= start - end < room:
            best, room = end, start - end
        end = max(end, stop)
    return end if best < 0 else best
