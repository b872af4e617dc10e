"""The agent's frames in flight, over any number of sessions: numbers, deadlines and counts. No I/O, no clock.

Every accepted frame ends in exactly one of answered, refused, aged, failed; `Stats` states this as a sum. A reply to a
frame that has already ended is late: it is counted and dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from splitedge import limits
from splitedge.protocol.frames import Answer, Buffer, Frame, Refusal


@dataclass(slots=True)
class Stats:
    """Counts since the start of the stream. Invariant: accepted == answered + refused + aged + failed + in_flight."""

    accepted: int = 0
    in_flight: int = 0
    answered: int = 0
    refused: int = 0  # the server sent an error instead of an answer
    aged: int = 0  # not answered in time
    failed: int = 0  # the stream ended, or the server was unreachable for too long
    sent: int = 0  # frames written to a connection, with repetitions
    resent: int = 0  # repetitions
    late: int = 0  # replies to frames that had aged or failed
    reconnects: int = 0
    payload_bytes_up: int = 0  # payloads of all frames sent
    rtt_ms: float | None = None  # smoothed time of a frame on the link in both directions, with its transmission


@dataclass(slots=True)
class Parcel:
    """One frame in flight. Times in seconds of the caller's clock."""

    seq: int
    codec: int
    payload: Buffer
    deadline: float
    sent_at: float = 0.0
    times_sent: int = 0


class Flight:
    """At most ``window`` frames and `limits.MAX_INFLIGHT_BYTES` bytes of payload, oldest first."""

    def __init__(self, window: int) -> None:
        self.stats = Stats()
        self._window = window
        self._bytes = 0
        self._next_seq = 0
        self._parcels: dict[int, Parcel] = {}

    def __len__(self) -> int:
        return len(self._parcels)

    def __iter__(self) -> Iterator[int]:
        """The numbers in flight, ascending."""
        return iter(self._parcels)

    def has_room(self, size: int) -> bool:
        """Whether a frame with ``size`` bytes of payload may be accepted now."""
        return len(self._parcels) < self._window and self._bytes + size <= limits.MAX_INFLIGHT_BYTES

    def accept(self, payload: Buffer, codec: int, deadline: float) -> int:
        """Accept a frame that must be answered by ``deadline``, and return its number. Check `has_room` first."""
        seq = self._next_seq
        self._next_seq += 1
        self._parcels[seq] = Parcel(seq, codec, payload, deadline)
        self._bytes += len(payload)
        self.stats.accepted += 1
        self.stats.in_flight += 1
        return seq

    def size(self, seq: int) -> int | None:
        """Payload bytes of frame ``seq``, or None if it is no longer in flight."""
        parcel = self._parcels.get(seq)
        return None if parcel is None else len(parcel.payload)

    def frame(self, seq: int, now: float) -> Frame:
        """Frame ``seq`` for sending now, with its remaining time (at least 1 ms)."""
        parcel = self._parcels[seq]
        self.stats.sent += 1
        self.stats.resent += parcel.times_sent > 0
        self.stats.payload_bytes_up += len(parcel.payload)
        parcel.times_sent += 1
        parcel.sent_at = now
        wait_ms = int((parcel.deadline - now) * 1000)
        return Frame(seq, parcel.codec, min(max(1, wait_ms), 0xFFFFFFFF), parcel.payload)

    def settle(self, reply: Answer | Refusal, now: float) -> bool:
        """Accept a reply. False if it is late."""
        parcel = self._parcels.get(reply.seq)
        if parcel is None:
            self.stats.late += 1
            return False
        if isinstance(reply, Answer):
            self.stats.answered += 1
            self._smooth(parcel, reply, now)
        else:
            self.stats.refused += 1
        self._remove(parcel)
        return True

    def expire(self, now: float) -> list[int]:
        """Remove the frames that aged out, and return their numbers."""
        aged = [parcel for parcel in self._parcels.values() if parcel.deadline <= now]
        self.stats.aged += len(aged)
        return [self._remove(parcel) for parcel in aged]

    def fail_all(self) -> list[int]:
        """Fail and remove every frame in flight, and return their numbers."""
        self.stats.failed += len(self._parcels)
        return [self._remove(parcel) for parcel in list(self._parcels.values())]

    def next_deadline(self) -> float:
        """When the first frame ages out; infinity if none is in flight."""
        return min((parcel.deadline for parcel in self._parcels.values()), default=math.inf)

    def _remove(self, parcel: Parcel) -> int:
        del self._parcels[parcel.seq]
        self._bytes -= len(parcel.payload)
        self.stats.in_flight -= 1
        return parcel.seq

    def _smooth(self, parcel: Parcel, answer: Answer, now: float) -> None:
        if parcel.times_sent != 1:  # Karn's algorithm: the answer may belong to either transmission
            return
        link_ms = max(0.0, (now - parcel.sent_at) * 1e3 - (answer.queue_us + answer.tail_us) / 1e3)
        old = self.stats.rtt_ms
        self.stats.rtt_ms = link_ms if old is None else old + (link_ms - old) / 8
