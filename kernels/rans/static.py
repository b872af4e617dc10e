"""Static rANS for the tensor at the cut, with `LANES` interleaved states that do not wait for each other. Twin:
`reference.static_rans_encode`.

Value i belongs to state i mod the number of states. A symbol with frequency f of 2^`SCALE` and cumulative frequency s
takes the state x to (x // f << `SCALE`) + x % f + s. Before that, the lower 16 bits of x are written if the result
would exceed 2^31. The decoder reads the words in the reverse order. The frequencies come from calibration and are part
of the codec. ``base[c]`` is the start of channel c's table among all tables.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernels.define import kernel

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

SCALE: Final = 12
LEAST: Final = 1 << 15  # a state is in LEAST .. 2^31 - 1
LANES: Final = 16
#: Below this number of values one state is better, because the final states of all lanes are sent.
FEW: Final = 4096
_ONE: Final = np.uint64(1)
_RECIPROCAL: Final = 44  # x * ceil(2^44 / f) >> 44 is x // f for all f <= 2^12 and x < f * 2^19


@kernel
def encode(codes: U8, base: I64, starts: U32, reciprocals: U64, states: U32, words: U16) -> int:
    """Encode ``codes`` [n, C] (flat) to the final ``states`` [lanes] and to the end of ``words`` [n * C + 1]; return
    the number of words.

    ``starts``: the cumulative frequencies of each table, with the total at the end; ``reciprocals``: see `_RECIPROCAL`.
    Each value writes a word but advances only if it is needed, because a branch would be mispredicted too often.
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
    """Decode to ``codes`` [n, C] (flat).

    ``look`` [tables, 2^`SCALE`]: the symbol at each place of a table; ``rows[c]``: the start of channel c's row.
    ``words`` are those of `encode` and one more of any value. Returns whether the number of words was right and every
    state ends with its initial value. Reads nothing beyond ``words``.
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
