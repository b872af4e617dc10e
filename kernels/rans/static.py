"""The entropy stage of the codec at the cut: rANS with `LANES` states that take turns, so that they do not wait for each other. Twins in `kernels.reference`.

Value i belongs to state i mod the number of states. A symbol of frequency f among 2^`SCALE` and of the sum s of those before it takes a state x to
(x // f << `SCALE`) + x % f + s; before that, its 16 lower bits go out where it would pass 2^31. What came out last is read first.
Frequencies are those of calibration, carried by the codec. ``base[c]`` is where channel c's table begins among all tables, one after the other.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel

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
_ONE: Final = np.uint64(1)
_RECIPROCAL: Final = 44  # x * ceil(2^44 / f) >> 44 is x // f for all f <= 2^12 and x < f * 2^19


@kernel
def encode(codes: U8, base: I64, starts: U32, reciprocals: U64, states: U32, words: U16) -> int:
    """``codes`` [n, C] flat to the final ``states`` [lanes] and to the end of ``words`` [n * C + 1]: how many, in the order in which they are read.

    ``starts``: for each symbol of each table the sum before it, with the sum behind the last; ``reciprocals`` as `_RECIPROCAL` says. A word is
    written for each value and counts only where it is due: a branch would be guessed wrongly too often.
    """
    channels, mask = np.uint64(base.size), np.uint64(states.size - 1)
    place, left = np.uint64(words.size - 1), np.uint64(codes.size)
    held = np.full(LANES, np.uint64(LEAST), np.uint64)
    while left:
        c = channels
        while c:
            c, left = np.uint64(c - _ONE), np.uint64(left - _ONE)
            at = np.uint64(base[c]) + np.uint64(codes[left])
            start = np.uint64(starts[at])
            f = np.uint64(starts[at + _ONE]) - start
            lane = left & mask
            x = held[lane]
            words[place] = np.uint16(x)
            full = np.uint64(x >= f << np.uint64(19))
            place = np.uint64(place - full)
            x >>= full << np.uint64(4)
            quotient = (x * reciprocals[at]) >> np.uint64(_RECIPROCAL)
            held[lane] = x + quotient * (np.uint64(1 << SCALE) - f) + start
    for k in range(states.size):
        states[k] = np.uint32(held[k])
    return int(words.size - 1 - np.int64(place))


@kernel
def decode(states: U32, words: U16, base: I64, starts: U32, rows: I64, look: U8, codes: U8) -> bool:
    """The inverse, to ``codes`` [n, C] flat. ``look`` [tables, 2^`SCALE`]: the symbol at each place of a table; ``rows[c]``: where channel c's begins.

    ``words`` are those of `encode` and one more, which may be anything. Returns whether the words were neither too few nor too many, and every state what
    it was at the start; nothing beyond ``words`` is read.
    """
    channels, mask = np.uint64(base.size), np.uint64(states.size - 1)
    place, at_code, last, size = np.uint64(0), np.uint64(0), np.uint64(words.size - 1), np.uint64(codes.size)
    held = np.full(LANES, np.uint64(LEAST), np.uint64)
    for k in range(states.size):
        held[k] = np.uint64(states[k])
    while at_code < size:
        c = np.uint64(0)
        while c < channels:
            lane = at_code & mask
            x = held[lane]
            slot = x & np.uint64((1 << SCALE) - 1)
            symbol = look[np.uint64(rows[c]) + slot]
            at = np.uint64(base[c]) + np.uint64(symbol)
            start = np.uint64(starts[at])
            x = (np.uint64(starts[at + _ONE]) - start) * (x >> np.uint64(SCALE)) + slot - start
            short = np.uint64(x < np.uint64(LEAST))
            word = np.uint64(words[place if place < last else last])
            place = np.uint64(place + short)
            held[lane] = (x << (short << np.uint64(4))) | (word & (np.uint64(0) - short))
            codes[at_code] = symbol
            at_code, c = np.uint64(at_code + _ONE), np.uint64(c + _ONE)
    whole = bool(place == last)
    for k in range(states.size):
        whole = whole and bool(held[k] == np.uint64(LEAST))
    return whole
