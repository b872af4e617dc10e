"""What the link carries, from the answers to frames that were sent anyway: no probes. No I/O, no clock; times in seconds, sizes in bytes.

A frame's own passage is measured: from when the link was free for it (it was sent and a round trip passed, or the frame before it arrived) to its
answer, without what the server took. So the estimate is true even where the link is idle between frames. Frames that followed one another without a
pause are taken together, for one that is answered late makes the next look quick. A processor that is busy elsewhere only ever makes a passage
longer, so the estimate is near the upper end of what was seen, but no more than the last few frames say, and no more than the frame that is on its way leaves
possible: a link that slows down is noticed before the first slow frame has arrived.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from splitedge.link.tcp import TcpSample

SAMPLES: Final = 16  # frames that the estimate is made of
LAST: Final = 6  # frames that it must not exceed
FRESH_S: Final = 3.0  # older frames go, but for the last
SHARE: Final = 0.85  # of the frames, so many passed at the estimate or slower
_LEAST_S: Final = 50e-6  # a passage shorter than the clocks' and the event loop's grain
_SLACK_S: Final = 0.03  # an answer may be so late, by a busy processor, before it says anything about the link

#: What one packet carries of a connection, what it adds (IP and TCP with timestamps), and a WebSocket's header from an agent.
_SEGMENT, _PACKET, _MESSAGE = 1448, 52, 8


def wire_bytes(message: int) -> int:
    """Bytes of IP that a message of so many bytes takes, on a path of Ethernet's usual packet size; TLS adds a little more."""
    size = message + _MESSAGE
    return size + _PACKET * -(-size // _SEGMENT)


@dataclass(slots=True)
class _Passage:
    size: int
    sent: float
    done: float = math.inf  # when the kernel is known to have had all acknowledged


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    size: int
    took: float
    run: int  # frames of one run followed one another without a pause


class Estimator:
    """Told of each frame sent and answered. ``trip_s`` and ``rate`` (bytes a second) are what is thought before the first answer."""

    def __init__(self, trip_s: float, rate: float | None = None) -> None:
        self.trip_s = trip_s
        self._prior = rate
        self._way: dict[int, _Passage] = {}  # by number, in the order in which they were sent
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES)
        self._free = -math.inf  # when the last frame was done
        self._run = 0

    def sent(self, seq: int, size: int, now: float) -> None:
        """Frame ``seq`` of ``size`` bytes on the wire was written to the connection."""
        self._way.pop(seq, None)
        self._way[seq] = _Passage(size, now)

    def acked(self, seq: int, now: float, server_s: float = 0.0) -> None:
        """Its answer came, of whose time the server claims ``server_s``."""
        passage = self._way.pop(seq, None)
        if passage is None:
            return
        done = min(now - max(0.0, server_s), passage.done)
        reached = passage.sent + self.trip_s
        self._run += reached > self._free
        took = max(_LEAST_S, done - max(reached, self._free))
        self._samples.append(_Sample(now, passage.size, took, self._run))
        self._free = max(self._free, done)

    def lost(self, seq: int) -> None:
        """The frame ended without an answer; it says nothing."""
        self._way.pop(seq, None)

    def cut(self) -> None:
        """The connection ended: nothing is on its way."""
        self._way.clear()

    def tcp(self, sample: TcpSample, now: float) -> None:
        """What the kernel knows: an answer that is late although all was acknowledged is the server's doing."""
        if sample.trip_s is not None:
            self.trip_s = sample.trip_s
        if sample.idle:
            for passage in self._way.values():
                passage.done = min(passage.done, now)

    def rate(self, now: float) -> float | None:
        """Bytes a second that the link carries now; None before anything is known."""
        while len(self._samples) > 1 and self._samples[0].at < now - FRESH_S:
            self._samples.popleft()
        if not self._samples:
            return None if self._prior is None else min(self._prior, self._possible(now))
        samples = list(self._samples)
        last = max(rate for rate, _ in _runs(samples[-LAST:]))
        return min(_quantile(_runs(samples), SHARE), last, self._possible(now))

    def backlog(self, now: float) -> float:
        """Bytes on their way beyond those that fill the round trip."""
        on_way = sum(passage.size for passage in self._way.values() if passage.done > now)
        rate = self.rate(now)
        return max(0.0, on_way - (rate * self.trip_s if rate else 0.0))

    def _possible(self, now: float) -> float:
        """What the oldest frame on its way leaves possible; infinity while it is not late."""
        oldest = next((p for p in self._way.values() if p.done > now), None)
        if oldest is None:
            return math.inf
        took = now - max(oldest.sent + self.trip_s, self._free) - _SLACK_S
        return oldest.size / took if took > 0 else math.inf


def _runs(samples: Sequence[_Sample]) -> list[tuple[float, int]]:
    """Of each run its rate and its number of frames."""
    runs = [list(run) for _, run in itertools.groupby(samples, key=lambda sample: sample.run)]
    return [(sum(one.size for one in run) / sum(one.took for one in run), len(run)) for run in runs]


def _quantile(weighed: Sequence[tuple[float, int]], share: float) -> float:
    """The least value at which so large a share of the weight is reached."""
    ordered, whole = sorted(weighed), sum(weight for _, weight in weighed)
    passed = itertools.accumulate(weight for _, weight in ordered)
    return next(value for (value, _), sofar in zip(ordered, passed, strict=True) if sofar >= share * whole)
