"""Measures the link: the round trip by empty requests, the rates by growing ones."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Awaitable, Callable
from typing import Final

from splitedge import limits
from splitedge.protocol.messages import LinkEstimate

#: ``probe(up, down)`` sends ``up`` bytes, receives ``down`` bytes and returns the seconds this took, on a connection
#: that stays open.
Probe = Callable[[int, int], Awaitable[float]]

_TRIPS: Final = 20
_TRIPS_S: Final = 0.7  # total time of the round trips
_SHARE_S: Final = 1.0  # after this no further transfer starts in the same direction
_FIRST_BYTES: Final = 4096  # 0.3 s at 0.1 Mbit/s
#: The size of a large frame. A slow processor sends a few MB at a higher rate than one frame after another.
_MOST_BYTES: Final = 256 * 1024
_GROWTH: Final = 16  # the second transfer has 65 kB: on a distant link there is no time for a third
_WINDOW_BYTES: Final = 10 * 1448  # TCP's initial congestion window
_STARTING: Final = 0.1  # share of a transfer's time that slow start may take
_AGAIN: Final = 2  # repetitions of a transfer that slow start dominates; the second only if there is time
#: Least duration of a transfer: the clock, and the share of a round trip, below which differences are noise.
_LEAST_S: Final = 1e-4
_LEAST_SHARE: Final = 0.01


async def measure(probe: Probe) -> LinkEstimate:
    """Measure with ``probe``. Takes about one second, two on a slow link, three or four on a distant one.

    The estimate has the median round trip. The smallest round trip is subtracted from each transfer.
    """
    await probe(0, 0)  # opens the connection
    trips: list[float] = []
    while len(trips) < _TRIPS and sum(trips) < _TRIPS_S:
        trips.append(await probe(0, 0))
    trip = min(trips)
    spread = max(statistics.median(trips) - trip, _LEAST_SHARE * trip)
    up = await _rate(lambda size: probe(size, 0), trip, spread)
    down = await _rate(lambda size: probe(0, size), trip, spread)
    return LinkEstimate(rtt_ms=statistics.median(trips) * 1e3, uplink_mbps=up, downlink_mbps=down)


async def _rate(transfer: Callable[[int], Awaitable[float]], trip_s: float, spread_s: float) -> float:
    """The rate in Mbit/s. Transfers grow until one takes `limits.PROBE_TIME` beyond its round trip.

    The result is the rate of the last transfer, or of a faster earlier one that took at least two round trips. No
    transfer counts as shorter than ``spread_s``, the noise of the round trip.

    In slow start TCP spends one round trip for each doubling of its window, at any rate. A transfer that slow start may
    dominate is therefore repeated on the window that it opened. Frames of a stream find such a window too.
    """
    size, spent, rate = _FIRST_BYTES, 0.0, 0.0
    while True:
        whole = await transfer(size)
        spent += whole
        for again in range(_AGAIN):
            if _starting_s(size, trip_s) > _STARTING * (whole - trip_s) and (not again or spent < _SHARE_S):
                warm = await transfer(size)
                spent += warm
                whole = min(whole, warm)
        seconds = max(_LEAST_S, spread_s, whole - trip_s)
        found = size * 8e-6 / seconds
        if seconds >= limits.PROBE_TIME or size >= _MOST_BYTES or spent >= _SHARE_S:
            return max(rate, found)
        rate = max(rate, found) if seconds > trip_s else rate
        # Little more than enough at the rate measured so far.
        wanted = int(size * 1.5 * limits.PROBE_TIME / seconds)
        size = min(max(2 * size, min(_GROWTH * size, wanted)), _MOST_BYTES)


def _starting_s(size: int, trip_s: float) -> float:
    """Seconds that slow start may take in a first transfer of ``size`` bytes."""
    return trip_s * max(0, math.ceil(math.log2(size / _WINDOW_BYTES + 1)) - 1)


async def timed(work: Awaitable[object]) -> float:
    """The duration of ``work`` in seconds."""
    time = asyncio.get_running_loop().time
    start = time()
    await work
    return time() - start
