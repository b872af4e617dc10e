"""Estimates the rate of the link from answered frames, without probes. No I/O and no clock; times in seconds, sizes in
bytes.

The transfer time of a frame starts when the link is free for it: after its own round trip, or when the frame before it
arrived. It ends with the answer, less the server's time. So the estimate is right even if the link idles between
frames. Frames without a pause between them form one run and are measured together, because a late answer makes the next
frame look fast.

A busy processor only lengthens transfers. The estimate is therefore a high quantile of the runs, bounded by the last
few frames and by the frame in transit. The second bound detects a slower link before the first slow frame arrives.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from splitedge.link.tcp import TcpSample

SAMPLES: Final = 16  # frames in the estimate
LAST: Final = 6  # last frames whose best rate bounds it
FRESH_S: Final = 3.0  # older frames are forgotten, except the last
SHARE: Final = 0.85  # share of the frames at or below the estimate
_LEAST_S: Final = 50e-6  # resolution of the clocks and the event loop
_SLACK_S: Final = 0.03  # delay of an answer that a busy processor alone can cause

#: Payload of a packet, its headers (IP, and TCP with timestamps), and the WebSocket header of an agent's message.
_SEGMENT, _PACKET, _MESSAGE = 1448, 52, 8


def wire_bytes(message: int) -> int:
    """Bytes on the wire of a ``message`` of this size, in Ethernet packets. TLS adds a little more."""
    size = message + _MESSAGE
    return size + _PACKET * -(-size // _SEGMENT)


@dataclass(slots=True)
class _Transfer:
    size: int
    sent: float
    done: float = math.inf  # when the kernel had everything acknowledged


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    size: int
    took: float
    run: int  # frames without a pause between them have the same number


class Estimator:
    """Call its methods for each frame sent and answered.

    ``trip_s`` and ``rate`` (bytes per second) apply until the first answer.
    """

    def __init__(self, trip_s: float, rate: float | None = None) -> None:
        self.trip_s = trip_s
        self._prior = rate
        self._transit: dict[int, _Transfer] = {}  # by number, in the order of sending
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES)
        self._free = -math.inf  # when the last frame was done
        self._run = 0

    def sent(self, seq: int, size: int, now: float) -> None:
        """Frame ``seq`` was written to the connection, with ``size`` bytes on the wire."""
        self._transit.pop(seq, None)
        self._transit[seq] = _Transfer(size, now)

    def acked(self, seq: int, now: float, server_s: float = 0.0) -> None:
        """The answer to frame ``seq`` arrived; ``server_s`` of its time was spent on the server."""
        transfer = self._transit.pop(seq, None)
        if transfer is None:
            return
        done = min(now - max(0.0, server_s), transfer.done)
        reached = transfer.sent + self.trip_s
        self._run += reached > self._free
        took = max(_LEAST_S, done - max(reached, self._free))
        self._samples.append(_Sample(now, transfer.size, took, self._run))
        self._free = max(self._free, done)

    def lost(self, seq: int) -> None:
        """Frame ``seq`` ended without an answer, and is not measured."""
        self._transit.pop(seq, None)

    def disconnected(self) -> None:
        """The connection ended: nothing is in transit."""
        self._transit.clear()

    def tcp(self, sample: TcpSample, now: float) -> None:
        """Take the kernel's state.

        If everything is acknowledged, a late answer is due to the server and not to the link.
        """
        if sample.trip_s is not None:
            self.trip_s = sample.trip_s
        if sample.idle:
            for transfer in self._transit.values():
                transfer.done = min(transfer.done, now)

    def rate(self, now: float) -> float | None:
        """The rate in bytes a second; None before anything is known."""
        while len(self._samples) > 1 and self._samples[0].at < now - FRESH_S:
            self._samples.popleft()
        if not self._samples:
            return None if self._prior is None else min(self._prior, self._possible(now))
        samples = list(self._samples)
        last = max(rate for rate, _ in _runs(samples[-LAST:]))
        return min(_quantile(_runs(samples), SHARE), last, self._possible(now))

    def backlog(self, now: float) -> float:
        """Bytes in transit beyond the bandwidth-delay product."""
        in_transit = sum(transfer.size for transfer in self._transit.values() if transfer.done > now)
        rate = self.rate(now)
        return max(0.0, in_transit - (rate * self.trip_s if rate else 0.0))

    def _possible(self, now: float) -> float:
        """The highest rate at which the oldest frame in transit could still be missing; infinity while it is not
        late.
        """
        oldest = next((p for p in self._transit.values() if p.done > now), None)
        if oldest is None:
            return math.inf
        took = now - max(oldest.sent + self.trip_s, self._free) - _SLACK_S
        return oldest.size / took if took > 0 else math.inf


def _runs(samples: Sequence[_Sample]) -> list[tuple[float, int]]:
    """The rate and the number of frames of each run."""
    runs = [list(run) for _, run in itertools.groupby(samples, key=lambda sample: sample.run)]
    return [(sum(one.size for one in run) / sum(one.took for one in run), len(run)) for run in runs]


def _quantile(weighed: Sequence[tuple[float, int]], share: float) -> float:
    """The weighted quantile of ``weighed`` at ``share``."""
    ordered, whole = sorted(weighed), sum(weight for _, weight in weighed)
    passed = itertools.accumulate(weight for _, weight in ordered)
    return next(value for (value, _), sofar in zip(ordered, passed, strict=True) if sofar >= share * whole)
