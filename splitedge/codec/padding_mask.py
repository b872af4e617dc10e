"""The padding mask behind the codes of a text frame: one bit for each token, least significant bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitedge import errors

Buffer = bytes | bytearray | memoryview


def size(tokens: int) -> int:
    """Bytes of the mask of ``tokens`` tokens."""
    return -(-tokens // 8)


def pack(ids: NDArray[np.int32], padding: int) -> bytes:
    """The mask of token ``ids`` [T]: 1 where the id is not ``padding``."""
    return np.packbits(ids != padding, bitorder="little").tobytes()


def split(payload: Buffer, tokens: int) -> tuple[memoryview, NDArray[np.bool_]]:
    """The codes before the mask, and the mask [tokens] as booleans.

    Raises `errors.CodecError` if the mask is too short or has extra bits.
    """
    view, end = memoryview(payload), len(payload) - size(tokens)
    bits = np.unpackbits(np.frombuffer(view[max(end, 0) :], np.uint8), bitorder="little")
    if end < 0 or bits[tokens:].any():
        raise errors.CodecError(
            f"the frame has no padding mask for {tokens} tokens; request a new plan",
            reason="padding-mask",
            tokens=tokens,
        )
    return view[:end], bits[:tokens].astype(bool)
