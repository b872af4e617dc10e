"""Summaries of times, and what changed between two results beyond noise.

The noise between two runs of a program is larger than the noise within one: each process gets other memory and another
moment. So the unit of a comparison is the round, which has a process of its own. Other load only adds time, so the
fastest run of a round varies least: on a shared machine by 0.6 % between processes, where the median varied by 1.9 %.
Two configurations are compared by the logarithms of these, with Welch's interval (B. L. Welch, Biometrika 34, 1947).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev, variance
from typing import Final, NamedTuple

import numpy as np

from edge_agent.bench.results import Result, Times

#: MLPerf Inference rules, single stream: the least queries, or the least seconds.
QUERIES, SECONDS = 1024, 60.0
#: Of all rows together: the probability to call noise a change.
ERROR: Final = 0.02
#: The least change in per cent that counts.
LEAST: Final = 2.0


def times(rounds: Sequence[Sequence[float]]) -> Times:
    """The summary of the milliseconds of runs, by round."""
    runs = sorted(ms for one in rounds for ms in one)
    mean = fmean(runs)
    return Times(
        runs=len(runs),
        mean_ms=mean,
        sd_ms=pstdev(runs),
        least_ms=runs[0],
        p50_ms=nearest_rank(runs, 50),
        p90_ms=nearest_rank(runs, 90),
        p95_ms=nearest_rank(runs, 95),
        p99_ms=nearest_rank(runs, 99),
        p999_ms=nearest_rank(runs, 99.9),
        per_second=1000 / mean,
        rounds_ms=[min(one) for one in rounds],
        single_stream=single_stream(runs),
    )


def nearest_rank(ascending: Sequence[float], per_cent: float) -> float:
    """The smallest value that at least ``per_cent`` of all do not exceed."""
    return ascending[max(0, math.ceil(round(per_cent / 100 * len(ascending), 9)) - 1)]


def single_stream(ms: Sequence[float]) -> str:
    """Which rule of MLPerf's single stream the runs meet."""
    if len(ms) >= QUERIES:
        return f"{QUERIES:,} queries"
    return f"{SECONDS:.0f} s" if sum(ms) >= 1000 * SECONDS else ""


class Change(NamedTuple):
    """A configuration in two results: the change of its time in per cent, and the interval that contains it.

    ``verdict``: "slower", "faster", "no change", or "not comparable" with the reason.
    """

    key: tuple[str, str, str, int]
    percent: float
    low: float
    high: float
    verdict: str


def compare(old: Result, new: Result, least: float = LEAST) -> list[Change]:
    """The changes from ``old`` to ``new``, for each configuration of either. ``least``: the least per cent that count."""
    before, after = ({row.key: row for row in result.rows} for result in (old, new))
    keys = list(dict.fromkeys([*before, *after]))
    usable = [key for key in keys if key in before and key in after and before[key].times and after[key].times]
    found = []
    for key in keys:
        one, two = before.get(key), after.get(key)
        if one is None or two is None:
            found.append(_incomparable(key, "only in the " + ("first" if two is None else "second")))
        elif one.times is None or two.times is None:
            broken = one if one.times is None else two
            found.append(_incomparable(key, f"failed: {broken.failure}"))
        else:
            found.append(_change(key, one.times.rounds_ms, two.times.rounds_ms, ERROR / len(usable), least))
    return found


def _change(
    key: tuple[str, str, str, int], old: Sequence[float], new: Sequence[float], error: float, least: float
) -> Change:
    if min(len(old), len(new)) < 2:
        return _incomparable(key, "one round has no interval; measure with --rounds 8")
    low, middle, high = (100 * math.expm1(x) for x in welch(np.log(old).tolist(), np.log(new).tolist(), error))
    return Change(key, middle, low, high, verdict(low, middle, high, least))


def verdict(low: float, middle: float, high: float, least: float) -> str:
    """ "slower", "faster" or "no change", for a change of a time in per cent with its interval."""
    if low > 0 and middle >= least:
        return "slower"
    if high < 0 and -middle >= least:
        return "faster"
    return "no change"


def _incomparable(key: tuple[str, str, str, int], why: str) -> Change:
    return Change(key, math.nan, math.nan, math.nan, f"not comparable: {why}")


def welch(old: Sequence[float], new: Sequence[float], error: float) -> tuple[float, float, float]:
    """Low end, middle and high end of the difference of the means, new - old, at the level 1 - ``error``."""
    parts = [(variance(one) / len(one), len(one) - 1) for one in (old, new)]
    total = sum(part for part, _ in parts)
    middle = fmean(new) - fmean(old)
    if total == 0:
        return middle, middle, middle
    freedom = total**2 / sum(part**2 / count for part, count in parts)
    reach = student_quantile(1 - error / 2, freedom) * math.sqrt(total)
    return middle - reach, middle, middle + reach


def student_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's distribution for a ``probability`` above 1/2, from its integral.

    The substitution t = sqrt(freedom) tan(a) turns the density into cos(a)^(freedom - 1) on a finite range.
    """
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = float(np.interp(2 * probability - 1, below / below[-1], angles))
    return math.sqrt(freedom) * math.tan(angle)
