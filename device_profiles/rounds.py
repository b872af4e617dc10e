"""Times in rounds: the median of each round, and the interval that contains the median of all.

Runs that follow each other share the state of the machine, so an interval of single runs is too small. The medians of
rounds that are seconds apart come close to independent draws. Their order statistics give an interval without an
assumption on their distribution (H. A. David, Order Statistics, 1970, section 2.5). A row stops as soon as its interval
is tight; in simulations that lowers the level from 95 % to 93 % at worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from statistics import median
from typing import Final

from device_profiles.schema import TIGHT, Interval

CONFIDENCE: Final = 0.95
#: The fewest medians whose range contains the true median with `CONFIDENCE`: 1 - 2 / 2^6 = 0.97.
LEAST: Final = 6
MOST: Final = 40


def interval(medians: Sequence[float]) -> Interval:
    """The interval of the median of at least `LEAST` ``medians`` in microseconds."""
    ordered, rank = sorted(medians), _rank(len(medians))
    low, middle, high = ordered[rank], median(ordered), ordered[-1 - rank]
    tight = low >= (1 - TIGHT) * middle and high <= (1 + TIGHT) * middle
    return Interval(low, high, len(ordered), tight)


def _rank(count: int) -> int:
    """The most values to leave out at either end; the rest contains the median with `CONFIDENCE`.

    The true median is below the value at ``rank`` if at most ``rank`` of ``count`` draws are below it.
    """
    rank, outside = 0, 2 / 2**count
    while (outside := outside + 2 * comb(count, rank + 1) / 2**count) <= 1 - CONFIDENCE:
        rank += 1
    return rank
