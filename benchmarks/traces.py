"""Traces of changing links: bandwidth over time from stated parameters, and the oracle that knows it in advance.

A trace is a list of (seconds from its beginning, rate), each valid until the next. The unit of rate is the required
frame rate times the cheapest codec's frame size, so that every trace binds for any network. The only random trace is a
walk with a fixed seed.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

Points = list[tuple[float, float]]

UNLIMITED: Final = 20.0
STEP_S: Final = 0.1  # step of a smooth change
SPARE: Final = 0.95  # share of a link's capacity that TCP carries as frames


def quantpipe(seconds: float) -> Points:
    """QuantPipe's schedule in tenths of the run, scaled so that 50 Mbit/s is 1.3 units.

    Unlimited, then 500 Mbit/s from 1, 50 from 3, 250 from 5, and unlimited from 7.
    """
    scale = 1.3 / 50
    shares = ((0.0, UNLIMITED), (0.1, 500 * scale), (0.3, 50 * scale), (0.5, 250 * scale), (0.7, UNLIMITED))
    return [(share * seconds, rate) for share, rate in shares]


def wifi_fade(seconds: float) -> Points:
    """A moving receiver: 6 units, with a fade to a fifth every 7 s and a shallower one every 2.3 s, in decibels."""

    def rate(at: float) -> float:
        deep = max(0.0, math.cos(2 * math.pi * (at / 7 - 0.5))) ** 4
        return 6.0 * 10 ** (-0.68 * deep - 0.12 * (1 - math.cos(2 * math.pi * at / 2.3)) / 2)

    return _smooth(rate, seconds)


def drive_4g(seconds: float) -> Points:
    """A drive through 4G cells: a random walk of the logarithm in steps of 0.5 s, clamped to 0.8 to 9 units."""
    draw = random.Random(4)
    rate, points = 4.0, []
    for i in range(math.ceil(seconds / 0.5)):
        points.append((0.5 * i, rate))
        rate = min(9.0, max(0.8, rate * math.exp(draw.gauss(0.0, 0.35))))
    return points


def step_down(seconds: float) -> Points:
    """8 units, then 1.3 from a third of the run on, and 2.4 from two thirds on."""
    return [(0.0, 8.0), (seconds / 3, 1.3), (2 * seconds / 3, 2.4)]


def saw_tooth(seconds: float) -> Points:
    """From 6 units to 1.3, linearly in 8 s, then back at once."""
    return _smooth(lambda at: 6.0 - 4.7 * (at % 8.0) / 8.0, seconds)


def outage(seconds: float) -> Points:
    """5 units, then 0 for 1.5 s from a third of the run on, then 2, and 5 from two thirds on."""
    return [(0.0, 5.0), (seconds / 3, 0.0), (seconds / 3 + 1.5, 2.0), (2 * seconds / 3, 5.0)]


TRACES: Final[dict[str, Callable[[float], Points]]] = {
    "quantpipe": quantpipe,
    "wifi_fade": wifi_fade,
    "drive_4g": drive_4g,
    "step_down": step_down,
    "saw_tooth": saw_tooth,
    "outage": outage,
}


def _smooth(rate: Callable[[float], float], seconds: float) -> Points:
    return [(STEP_S * i, rate(STEP_S * i)) for i in range(math.ceil(seconds / STEP_S))]


@dataclass(frozen=True)
class Trace:
    """A trace; ``points`` have rates in bytes per second."""

    points: Points

    @classmethod
    def of(cls, name: str, seconds: float, unit: float) -> Trace:
        """Return the trace ``name`` with a unit of ``unit`` bytes per second."""
        return cls([(at, rate * unit) for at, rate in TRACES[name](seconds)])

    def rate(self, at: float) -> float:
        """Return the bytes per second at ``at`` seconds."""
        return self.points[max(0, bisect_right(self.points, (at, math.inf)) - 1)][1]

    def carried(self, start: float, end: float) -> float:
        """Return the bytes that the link carries from ``start`` to ``end``."""
        times = [start, *(at for at, _ in self.points if start < at < end), end]
        return sum((b - a) * self.rate(a) for a, b in pairwise(times))


def oracle(trace: Trace, sizes: Sequence[float], fps: float, windows: int, window_s: float) -> list[int | None]:
    """Return for each window the most accurate rung that the link carries; None if it carries no rung.

    ``sizes``: bytes on the wire of each rung, most accurate first.
    """
    found: list[int | None] = []
    for k in range(windows):
        most = SPARE * trace.carried(k * window_s, (k + 1) * window_s) / (fps * window_s)
        found.append(next((i for i, size in enumerate(sizes) if size <= most), None))
    return found
