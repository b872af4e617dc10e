"""Answer reuse: a frame whose tensor at the cut is close to that of an answered frame gets that frame's answer and is
not sent.

Closeness is a `distance`: the share of the tensor's variation that has changed. The rules:

- A frame is compared with the frame that the server answered, never with one that reused an answer. So slow drift adds
  up until it exceeds the threshold.
- An answer is reused for a limited time and a limited number of frames. Then the next frame is sent in any case.
- One answer is kept: of the answered frames, the latest in the order of the head, not of the answers. Refused
  and lost frames leave no answer.
- Each plan has its own `AnswerReuse`. `forget` ends it with the server session, for frames on their way too.

The comparison uses the head's own tensor, before the codec, so the bit width of either frame does not matter. It is
integer arithmetic, the same on every processor.
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

#: For a transformer's residual stream: 8-bit codes over 8 mean magnitudes of a row to either side. The scale follows
#: the mean, so that the few tokens and channels with much larger values do not hide the others.
_ROWS: Final = Codec("reuse", 8, (-8.0,), (16 / 255,), dynamic="token", span="mean")


@dataclass(eq=False)
class KeptAnswer:
    """An ``answer`` to reuse, the ``codes`` of its frame, the time ``at`` which that frame left the head, and the bytes
    it sent.
    """

    codes: U8
    answer: Answered
    sent_bytes: int
    at: float
    reuses: int = 0

    @cached_property
    def deviation(self) -> float:
        return deviation(self.codes)


class Comparison(NamedTuple):
    """The comparison of frame ``number`` with the kept answer's frame: its ``distance``, None if no answer is kept.

    ``reused`` is the kept answer if it serves this frame, which then is not sent.
    """

    number: int
    at: float
    codes: U8
    distance: float | None = None
    reused: KeptAnswer | None = None


class AnswerReuse:
    """The kept answer of one plan.

    `compare` runs in the head's thread, `keep` and `forget` in the event loop: each writes what the other only reads.
    """

    def __init__(self, config: ReuseConfig) -> None:
        self._config = config
        self._count = 0  # frames compared
        self._oldest = 0  # the first frame whose answer may still be kept
        self._kept: KeptAnswer | None = None

    def compare(self, tensor: NDArray[Any], now: float) -> Comparison:
        """Compare ``tensor`` (the head's output: uint8 codes, or float32 [..., C]) of the frame that left the head at
        ``now``, in seconds.
        """
        codes, kept = coded(tensor), self._kept
        number, self._count = self._count, self._count + 1
        if kept is None:
            return Comparison(number, now, codes)
        far = distance(codes, kept.codes, kept.deviation)
        fresh = now - kept.at <= self._config.max_age_s and kept.reuses < self._config.max_run
        if not fresh or far > self._config.threshold:
            return Comparison(number, now, codes, far)
        kept.reuses += 1
        return Comparison(number, now, codes, far, kept)

    def keep(self, frame: Comparison, answer: Answered, sent_bytes: int) -> None:
        """Keep the server's ``answer`` to ``frame``, unless a later frame's is kept already."""
        if frame.number >= self._oldest:
            self._oldest = frame.number + 1
            self._kept = KeptAnswer(frame.codes, answer, sent_bytes, frame.at)

    def forget(self) -> None:
        """Drop the kept answer, and keep none for frames that have left the head already."""
        self._kept, self._oldest = None, self._count


def coded(tensor: NDArray[Any]) -> U8:
    """8-bit codes in the shape of ``tensor``: the tensor itself if it is uint8, else (float32) multiples of each row's
    mean magnitude, -8 to 8.
    """
    if tensor.dtype == np.uint8:
        return tensor
    payload = np.frombuffer(codec.encode(tensor, _ROWS), np.uint8)
    return payload[codec.side_bytes(_ROWS, tensor.shape) :].reshape(tensor.shape)


def distance(codes: U8, kept: U8, spread: float) -> float:
    """Sum of squared differences of ``codes`` and ``kept``, of the same shape, over ``spread``, the `deviation` of
    ``kept``.

    0: equal. 1: as far as a frame that holds only each channel's mean. Infinite if ``kept`` is such a frame and
    ``codes`` differs.
    """
    gap = np.maximum(codes, kept) - np.minimum(codes, kept)
    changed = int(np.square(gap, dtype=np.uint16).sum(dtype=np.int64))
    if not changed:
        return 0.0
    return changed / spread if spread else math.inf


def deviation(codes: U8) -> float:
    """Sum of the squared deviations of ``codes`` [..., C] from their channel's mean, or from the overall mean where
    each channel has one code.

    The only float sum is correctly rounded, so all processors agree.
    """
    rows = codes.reshape(-1, codes.shape[-1]).astype(np.int64)
    if len(rows) == 1:
        rows = rows.T
    sums = rows.sum(axis=0).astype(np.float64)
    return max(0.0, float(np.square(rows).sum()) - math.fsum(np.square(sums)) / len(rows))
