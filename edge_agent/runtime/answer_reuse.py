"""Answers that serve twice: a frame whose tensor at the cut is nearly that of a frame which the server answered gets that frame's answer, and is not sent.

How near is a `distance`: the share of what the tensor says that has changed. Rules, so that nothing goes unnoticed:

- A frame is compared with the frame whose answer it would get, never with one that got an answer so: slow drift adds up until it is seen.
- An answer serves for a while and so many times, then the next frame is sent whatever it looks like.
- One answer is kept: of the frames that were answered the one that passed the head last, in whatever order answers come. Refused and lost frames leave
  nothing.
- A plan has its own `Reuse`, and `forget` ends what a session with the server has said: frames that were on their way then are not kept either.

The comparison is made on the head's own tensor, before the codec, so the bits of either frame do not matter. It is integer arithmetic, the same everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.config import ReuseConfig
from splitedge import codec
from splitedge.head.answers import Answered
from splitedge.protocol.messages import Codec

U8 = NDArray[np.uint8]

#: For the stream of a transformer: codes for 8 mean magnitudes of a row to either side, so that the few tokens and channels that are many times as
#: large as the others do not outweigh them.
_ROWS: Final = Codec("reuse", 8, (-8.0,), (16 / 255,), dynamic="token", span="mean")


@dataclass(eq=False)
class Kept:
    """An ``answer`` that may serve again, and the ``codes`` of its frame, which passed the head at ``at`` and took
    ``sent_bytes``."""

    codes: U8
    answer: Answered
    sent_bytes: int
    at: float
    served: int = 0

    @cached_property
    def deviation(self) -> float:
        return deviation(self.codes)


class Seen(NamedTuple):
    """What `Reuse.look` found of frame ``number``: its ``distance`` from the frame whose answer is kept, None without one; ``kept`` is that answer if
    it serves this frame too, which then is not to be sent."""

    number: int
    at: float
    codes: U8
    distance: float | None = None
    kept: Kept | None = None


class Reuse:
    """The answers of one plan. `look` is for the head's thread, `keep` and `forget` for the event loop's: each writes what the other only reads."""

    def __init__(self, config: ReuseConfig) -> None:
        self._config = config
        self._count = 0  # frames that were looked at
        self._oldest = 0  # the first whose answer may still be kept
        self._kept: Kept | None = None

    def look(self, tensor: NDArray[Any], now: float) -> Seen:
        """Compare ``tensor`` (the head's output: uint8 codes, or float32 [..., C]) of the frame that has passed the head ``now``, in seconds."""
        codes, kept = coded(tensor), self._kept
        number, self._count = self._count, self._count + 1
        if kept is None:
            return Seen(number, now, codes)
        far = distance(codes, kept.codes, kept.deviation)
        fresh = now - kept.at <= self._config.max_age_s and kept.served < self._config.max_run
        if not fresh or far > self._config.threshold:
            return Seen(number, now, codes, far)
        kept.served += 1
        return Seen(number, now, codes, far, kept)

    def keep(self, seen: Seen, answer: Answered, sent_bytes: int) -> None:
        """The server answered the frame ``seen`` with ``answer``; it took ``sent_bytes``."""
        if seen.number >= self._oldest:
            self._oldest = seen.number + 1
            self._kept = Kept(seen.codes, answer, sent_bytes, seen.at)

    def forget(self) -> None:
        """Keep nothing that was said so far, nor what is still to come for frames that have passed the head."""
        self._kept, self._oldest = None, self._count


def coded(tensor: NDArray[Any]) -> U8:
    """8-bit codes in the shape of ``tensor``: its own if it is uint8, else (float32) multiples of each row's mean magnitude, from -8 to 8."""
    if tensor.dtype == np.uint8:
        return tensor
    payload = np.frombuffer(codec.encode(tensor, _ROWS), np.uint8)
    return payload[codec.side_bytes(_ROWS, tensor.shape) :].reshape(tensor.shape)


def distance(codes: U8, kept: U8, spread: float) -> float:
    """Sum of squared differences of ``codes`` and those ``kept``, of the same shape, over ``spread``, the `deviation` of the latter.

    0: equal; 1: as far off as a frame of nothing but each channel's mean; infinite where the kept frame is that itself and this one is not.
    """
    gap = np.maximum(codes, kept) - np.minimum(codes, kept)
    changed = int(np.square(gap, dtype=np.uint16).sum(dtype=np.int64))
    if not changed:
        return 0.0
    return changed / spread if spread else math.inf


def deviation(codes: U8) -> float:
    """Sum of the squared deviations of ``codes`` [..., C] from their channel's mean, or, where each channel has one code only, from the mean of all.

    The only sum of floats is rounded once, so all processors agree.
    """
    rows = codes.reshape(-1, codes.shape[-1]).astype(np.int64)
    if len(rows) == 1:
        rows = rows.T
    sums = rows.sum(axis=0).astype(np.float64)
    return max(0.0, float(np.square(rows).sum()) - math.fsum(np.square(sums)) / len(rows))
