"""Frames whose header is whole and whose payload is not what their plan says, as a peer that is broken or hostile may send them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from splitedge import codec

_NAN, _INFINITE, _NEGATIVE, _HUGE = (
    np.uint16(word).tobytes() for word in (0x7FC0, 0x7F80, 0xBF80, 0x7F7F)
)  # upper halves
PLAIN, CODED, TOKEN, FRAME, MEAN, HALF, SINGLE = range(7)


def ladder(shape: Sequence[int]) -> list[codec.Codec]:
    """A codec of each kind for a tensor of ``shape``, where the names above say."""
    samples = _values(16, *shape)
    kinds = ("mse", 4), ("entropy", 3), ("minmax-token", 4), ("minmax-frame", 4), ("aciq-token", 4)
    floats = [codec.Codec(f"float{bits}", bits, (0.0,), (1.0,)) for bits in (16, 32)]
    return [*(codec.fit_samples(samples, family, bits) for family, bits in kinds), *floats]


def good(shape: Sequence[int], index: int) -> bytes:
    """A payload that fits."""
    return codec.encode(_values(*shape), ladder(shape)[index])


def bad(kind: str, shape: Sequence[int]) -> list[tuple[int, bytes]]:
    """Codec and payload of all frames of ``kind``, one of `KINDS`, for a plan with that `ladder`."""
    return [(index, change(good(shape, min(index, SINGLE)))) for index, change in KINDS[kind]]


def _values(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def _with(at: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda payload: payload[:at] + new + payload[at + len(new) :]


def _inverted(at: int) -> Callable[[bytes], bytes]:
    return lambda payload: _with(at % len(payload), bytes([payload[at] ^ 0xFF]))(payload)


Change = Callable[[bytes], bytes]
KINDS: Final[dict[str, list[tuple[int, Change]]]] = {
    "no such codec": [(SINGLE + 1, bytes), (255, bytes)],
    "length": [
        *((index, lambda payload: payload[:-1]) for index in (PLAIN, CODED, TOKEN, HALF)),
        *((index, lambda payload: payload + b"\0") for index in (PLAIN, CODED, FRAME, SINGLE)),
        (PLAIN, lambda _: b""),
    ],
    "entropy-coded": [
        (CODED, _inverted(0)),  # a state
        (CODED, _inverted(-1)),  # the last word
        (CODED, _inverted(-20)),
        (CODED, lambda payload: payload[:-2]),  # a word too few
        (CODED, lambda payload: payload + payload[-2:]),  # and one too many
        (CODED, lambda payload: bytes(len(payload))),
        (CODED, lambda payload: b"\xff" * len(payload)),
    ],
    "own ranges": [
        *((index, _with(0, word)) for index in (TOKEN, FRAME) for word in (_NAN, _INFINITE)),  # offsets
        *((index, _with(2, word)) for index in (TOKEN, FRAME) for word in (_NAN, _INFINITE, _NEGATIVE)),  # sizes
        *((MEAN, _with(0, word)) for word in (_NAN, _INFINITE, _NEGATIVE)),
        *((index, _with(0, 2 * _HUGE)) for index in (TOKEN, FRAME)),  # each finite, and their sum is not
    ],
    "ranges of another codec": [
        (TOKEN, lambda payload: payload[4:]),  # of a row too few
        (FRAME, lambda payload: payload[:4] + payload),
        (MEAN, lambda payload: payload[:2] + payload),
    ],
    "no numbers": [
        *((HALF, _with(0, np.float16(value).tobytes())) for value in (np.nan, np.inf, -np.inf)),
        *((SINGLE, _with(0, np.float32(value).tobytes())) for value in (np.nan, np.inf)),
    ],
}
