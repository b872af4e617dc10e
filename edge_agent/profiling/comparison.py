"""What changed between two profiles, by kernel.

Each profile knows an interval for each of its times. The interval of their ratio follows from both by the method of
variance estimates recovery (G. Y. Zou and A. Donner, Statistics in Medicine 27, 2008), on logarithms. So it needs
neither single runs nor a distribution.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final, NamedTuple

from device_profiles.rounds import CONFIDENCE
from device_profiles.schema import DeviceProfile, Interval, Kernel
from edge_agent.bench.statistics import ERROR, verdict

#: The least change in per cent that counts: two processes on an idle machine differ by up to this.
LEAST: Final = 5.0


class Change(NamedTuple):
    """A kernel in two profiles: the change of its time in per cent, and the interval that contains it.

    ``verdict``: "slower", "faster", "no change", or "not comparable" with the reason.
    """

    name: str
    threads: int
    percent: float
    low: float
    high: float
    verdict: str


def compare(old: DeviceProfile, new: DeviceProfile, least: float = LEAST) -> list[Change]:
    """The changes from ``old`` to ``new``, for each kernel of either.

    All rows together call noise a change with a probability of `ERROR`. ``least``: the least per cent that count.
    """
    before, after = ({(row.name, row.threads): row for row in one.kernels} for one in (old, new))
    keys = list(dict.fromkeys([*before, *after]))
    both = [key for key in keys if key in before and key in after]
    wider = _quantile(1 - ERROR / max(1, len(both))) / _quantile(CONFIDENCE)
    found = []
    for key in keys:
        if key not in both:
            found.append(_incomparable(key, "only in the " + ("first" if key in before else "second")))
        else:
            found.append(_change(key, before[key], after[key], wider, least))
    return found


def _change(key: tuple[str, int], old: Kernel, new: Kernel, wider: float, least: float) -> Change:
    if old.interval is None or new.interval is None:
        which = "first" if old.interval is None else "second"
        return _incomparable(key, f"the {which} has no interval")
    middle = math.log(new.time_us / old.time_us)
    (old_low, old_high), (new_low, new_high) = _reach(old.time_us, old.interval), _reach(new.time_us, new.interval)
    low = middle - wider * math.hypot(new_low, old_high)
    high = middle + wider * math.hypot(new_high, old_low)
    low, middle, high = (100 * math.expm1(value) for value in (low, middle, high))
    return Change(*key, middle, low, high, verdict(low, middle, high, least))


def _reach(us: float, interval: Interval) -> tuple[float, float]:
    """How far the interval reaches below and above the time, in logarithms."""
    return max(0.0, math.log(us / interval.low_us)), max(0.0, math.log(interval.high_us / us))


def _quantile(confidence: float) -> float:
    """Half the width of the interval of a standard normal distribution."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _incomparable(key: tuple[str, int], why: str) -> Change:
    return Change(*key, math.nan, math.nan, math.nan, f"not comparable: {why}")
