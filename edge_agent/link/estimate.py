"""What the link carries, from the answers to frames that were sent anyway: no probes. No I/O, no clock; times in seconds, sizes in bytes.

A frame's own passage is measured: from when the link was free for it (it was sent and a round trip passed, or the frame before it arrived) to its
answer, without what the server took. So the estimate is true even where the link is idle between frames. It is the median of the last samples, but
no more than both of the last two say, and no more than the frame that is on its way leaves possible: a link that slows down is noticed
before the first slow frame has arrived.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Final

from edge_agent.link.tcp import TcpSample

SAMPLES: Final = 9  # frames that the estimate is the median of
FRESH_S: Final = 3.0  # older samples go, but for the last
_LEAST_S: Final = 50e-6  # a passage shorter than the clocks' and the event loop's grain
_SLACK_S: Final = 0.02  # an answer may be so late, by a busy processor, before it says anything about the link

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


class Estimator:
    """Told of each frame sent and answered. ``trip_s`` and ``rate`` (bytes a second) are what is thought before the first answer."""

    def __init__(self, trip_s: float, rate: float | None = None) -> None:
        self.trip_s = trip_s
        self._prior = rate
        self._way: dict[int, _Passage] = {}  # by number, in the order in which they were sent
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)  # when, bytes a second
        self._free = -math.inf  # when the last frame was done
        self.bytes_acked = 0
        self.busy_s = 0.0  # passages together: bytes_acked / busy_s is the mean goodput

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
        start = max(passage.sent + self.trip_s, self._free)
        took = max(_LEAST_S, done - start)
        self._samples.append((now, passage.size / took))
        self._free = max(self._free, done)
        self.bytes_acked += passage.size
        self.busy_s += took

    def lost(self, seq: int) -> None:
        """The frame ended without an answer; it says nothing."""
        self._way.pop(seq, None)

    def cut(self) -> None:
        """The connection ended: nothing is on its way."""
        self._way.clear()

    def tcp(self, sample: TcpSample, now: float) -> None:
        """What the kernel knows: an answer that is late although all was acknowledged is the server's doing."""
        if sample.trip_s is not None:
            self.trip_s = min(self.trip_s, sample.trip_s)
        if sample.idle:
            for passage in self._way.values():
                passage.done = min(passage.done, now)

    def rate(self, now: float) -> float | None:
        """Bytes a second that the link carries now; None before anything is known."""
        while len(self._samples) > 1 and self._samples[0][0] < now - FRESH_S:
            self._samples.popleft()
        if not self._samples:
            return self._prior if self._prior is None else min(self._prior, self._possible(now))
        rates = [rate for _, rate in self._samples]
        return min(median(rates), max(rates[-2:]), self._possible(now))

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
