"""Where each activation lies: tensors that are never needed at the same time share bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from splitedge.head.segment import roundup


@dataclass(frozen=True)
class Extent:
    """A block of ``size`` bytes that is in use from step ``first`` to step ``last``, both included."""

    size: int
    first: int
    last: int


def plan(extents: Sequence[Extent]) -> tuple[list[int], int]:
    """An offset for each extent, a multiple of `segment.ALIGN`, and the bytes of the whole arena.

    Greedy by size, as TFLite's planner does it: the largest first, each into the smallest gap between those that live with it.
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
    """Start of the smallest gap between the intervals ``taken`` (sorted) that holds ``size`` bytes; else the end of all."""
    best, room, end = -1, math.inf, 0
    for start, stop in taken:
        if size <= start - end < room:
            best, room = end, start - end
        end = max(end, stop)
    return end if best < 0 else best
