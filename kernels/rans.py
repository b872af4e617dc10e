"""The entropy stage of the codec at the cut: rANS with `LANES` states that take turns, so that they do not wait for each other. Twins in `kernels.reference`.

Value i belongs to state i mod the number of states. A symbol of frequency f among 2^`SCALE` and of the sum s of those before it takes a state x to
(x // f << `SCALE`) + x % f + s; before that, its 16 lower bits go out where it would pass 2^31. What came out last is read first.
Frequencies are those of calibration, carried by the codec. ``base[c]`` is where channel c's table begins among all tables, one after the other.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inline, kernel

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

SCALE: Final = 12
LEAST: Final = 1 << 15  # a state is in LEAST .. 2^31 - 1
LANES: Final = 16
#: Values below which one state is enough: sixteen would cost more than they gain.
FEW: Final = 4096
_RECIPROCAL: Final = 44  # x * ceil(2^44 / f) >> 44 is x // f for all f <= 2^12 and x < f * 2^19


@kernel
def encode(codes: U8, base: I64, starts: U32, reciprocals: U64, states: U32, words: U16) -> int:
    """``codes`` [n, C] flat to the final ``states`` [lanes] and to the end of ``words``: how many, in the order in which they are read.

    ``starts``: for each symbol of each table the sum before it, with the sum behind the last; ``reciprocals`` as `_RECIPROCAL` says.
    """
    lanes, channels = states.size, base.size
    mask, place = lanes - 1, words.size
    held = np.full(LANES, np.uint64(LEAST), np.uint64)
    for row in range(codes.size - channels, -1, -channels):
        for c in range(channels - 1, -1, -1):
            at = base[c] + np.int64(codes[row + c])
            start = np.uint64(starts[at])
            f = np.uint64(starts[at + 1]) - start
            lane = (row + c) & mask
            x = held[lane]
            full = x >= f << np.uint64(19)
            if full:
                place -= 1
                words[place] = np.uint16(x)
                x >>= np.uint64(16)
            quotient = (x * reciprocals[at]) >> np.uint64(_RECIPROCAL)
            held[lane] = x + quotient * (np.uint64(1 << SCALE) - f) + start
    for lane in range(lanes):
        states[lane] = np.uint32(held[lane])
    return words.size - place


@kernel
def decode(states: U32, words: U16, base: I64, starts: U32, rows: I64, look: U8, codes: U8) -> bool:
    """The inverse, to ``codes`` [n, C] flat. ``look`` [tables, 2^`SCALE`]: the symbol at each place of a table; ``rows[c]``: where channel c's begins.

    Returns whether the words were neither too few nor too many, and every state what it was at the start; nothing beyond ``words`` is read.
    """
    lanes, channels = states.size, base.size
    mask, place = lanes - 1, 0
    held = np.full(LANES, np.uint64(LEAST), np.uint64)
    for lane in range(lanes):
        held[lane] = np.uint64(states[lane])
    for row in range(0, codes.size, channels):
        for c in range(channels):
            lane = (row + c) & mask
            x = held[lane]
            slot = x & np.uint64((1 << SCALE) - 1)
            symbol = look[rows[c] + np.int64(slot)]
            at = base[c] + np.int64(symbol)
            start = np.uint64(starts[at])
            x = (np.uint64(starts[at + 1]) - start) * (x >> np.uint64(SCALE)) + slot - start
            if x < np.uint64(LEAST):
                x = (x << np.uint64(16)) | _word(words, place)
                place += 1
            held[lane] = x
            codes[row + c] = symbol
    whole = place == words.size
    for lane in range(lanes):
        whole = whole and held[lane] == np.uint64(LEAST)
    return whole


@inline
def _word(words: U16, place: int) -> np.uint64:
    return np.uint64(words[place]) if place < words.size else np.uint64(0)
