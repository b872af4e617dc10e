"""The link as an agent sees it: round trip by tiny requests, rates by growing ones."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Awaitable, Callable
from typing import Final

from splitedge import limits
from splitedge.protocol.messages import LinkEstimate

#: Seconds that one request took which sent ``up`` bytes and brought ``down`` bytes, on a connection that stays open.
Probe = Callable[[int, int], Awaitable[float]]

_TRIPS: Final = 20
_TRIPS_S: Final = 0.7  # after so long the round trip is known well enough
_SHARE_S: Final = 1.0  # after so long no further request begins in the same direction
_FIRST_BYTES: Final = 4096  # 0.3 s at 0.1 Mbit/s
_MOST_BYTES: Final = (
    256 * 1024
)  # as much as a large frame: a slow processor sends a few MB at a greater rate than one frame after another
_GROWTH: Final = 16  # the second transfer is of 65 kB: on a distant link there is no time for a third
_WINDOW_BYTES: Final = 10 * 1448  # which TCP sends before the first acknowledgement
_STARTING: Final = 0.1  # of a transfer's time, slow start's round trips that do not matter
_AGAIN: Final = 2  # times that a transfer is repeated, the second where there is time
#: A transfer that is shorter than the spread of round trips, or than these, says nothing finer.
_LEAST_S: Final = 1e-4
_LEAST_SHARE: Final = 0.01  # of a round trip


async def measure(probe: Probe) -> LinkEstimate:
    """Measure with ``probe``: about a second, two on a slow link, three or four on a distant one.

    The reported round trip is the median, and the smallest one is taken off each transfer.
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
    """Mbit/s of transfers that grow until one takes `limits.PROBE_TIME` beyond its round trip: of the last, none being shorter than ``spread_s``, or
    of a faster one before it that took longer than two round trips, of which no more than one may be an error.

    TCP starts slowly: a transfer on a connection that has not carried as much yet spends a round trip for each doubling, whatever the rate. Where
    those may be a good part of its time it is done again, with the window that it left; frames of a stream find such a window too.
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
        # Not far beyond what is enough at the rate seen so far.
        wanted = int(size * 1.5 * limits.PROBE_TIME / seconds)
        size = min(max(2 * size, min(_GROWTH * size, wanted)), _MOST_BYTES)


def _starting_s(size: int, trip_s: float) -> float:
    """Seconds that slow start may have spent on a first transfer of ``size`` bytes."""
    return trip_s * max(0, math.ceil(math.log2(size / _WINDOW_BYTES + 1)) - 1)


async def timed(work: Awaitable[object]) -> float:
    """Seconds that ``work`` took."""
    time = asyncio.get_running_loop().time
    start = time()
    await work
    return time() - start
