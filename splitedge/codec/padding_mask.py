"""Which tokens of a text are padding, told behind the codes of a frame: a bit for each token, the first the least significant one of its byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitedge import errors

Buffer = bytes | bytearray | memoryview


def size(tokens: int) -> int:
    """Bytes that the marks of so many tokens take."""
    return -(-tokens // 8)


def pack(ids: NDArray[np.int32], padding: int) -> bytes:
    """The marks of token ``ids`` [T]: 1 where the id is not ``padding``."""
    return np.packbits(ids != padding, bitorder="little").tobytes()


def split(payload: Buffer, tokens: int) -> tuple[memoryview, NDArray[np.bool_]]:
    """The codes before the marks, and which of the ``tokens`` are not padding. Raises `errors.CodecError` where the marks do not fit."""
    view, end = memoryview(payload), len(payload) - size(tokens)
    bits = np.unpackbits(np.frombuffer(view[max(end, 0) :], np.uint8), bitorder="little")
    if end < 0 or bits[tokens:].any():
        raise errors.CodecError(f"the frame does not tell of {tokens} tokens which are padding: ask for a new plan")
    return view[:end], bits[:tokens].astype(bool)
