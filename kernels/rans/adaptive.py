"""Adaptive rANS for the constants of a segment file: arrays of small symbols, coded with one state. Twin:
`reference.adaptive_rans_encode`.

The frequency of a symbol follows from its count so far, so that the file holds only the state and the words.
Frequencies are updated after `FIRST` symbols, and then each time the number of symbols has grown by a quarter. Between
updates (an epoch) the tables stay the same, and decoding a symbol takes one look-up and one product. Counts depend on a
context, a small number for each symbol that both sides know; ``contexts`` has one entry for each symbol, or one for
all.

``start`` [contexts, symbols] int64 are the initial counts, each at least 1; each occurrence of a symbol adds `COUNT`.
``state`` [2] int64 is the number of the coder and its place in ``words`` (uint32). The encoder starts with (`SEED`,
len(words)), takes the arrays from the last to the first, and writes downwards. The decoder starts with the encoder's
final state and must end with (`SEED`, len(words)). For any words the decoder writes only symbols of the alphabet: words
beyond the end count as 0, and the place tells how many were read.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.define import inline, kernel

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
Array = NDArray[Any]

FIRST: Final = 16
COUNT: Final = 32
SEED: Final = 1 << 31
SCALE: Final = 16  # frequencies sum to 2^16
_LOOK: Final = 12  # bits of the look-up; a linear search finds the rest


@kernel
def encode(codes: U8, contexts: U8, start: I64, state: I64, words: U32) -> None:
    """Encode ``codes`` below the words written so far: at most one word for two symbols, and one more."""
    width = start.shape[1] + 1
    counts, sums = start.copy(), np.empty(start.shape[0] * width, np.int64)
    _count(codes, contexts, 0, codes.size, counts, COUNT)
    x, place, stop = state[0], state[1], codes.size
    begin = _last_epoch(stop)
    while stop > 0:
        _count(codes, contexts, begin, stop, counts, -COUNT)
        _sum_up(counts, sums)
        for i in range(stop - 1, begin - 1, -1):
            context, symbol = np.int64(contexts[i if contexts.size > 1 else 0]), np.int64(codes[i])
            at = context * width + symbol
            low = sums[at]
            frequency = sums[at + 1] - low
            if x >> np.int64(63 - SCALE) >= frequency:
                place -= 1
                words[place] = np.uint32(x & np.int64(0xFFFFFFFF))
                x >>= np.int64(32)
            whole = x // frequency
            x = (whole << np.int64(SCALE)) + x - whole * frequency + low
        stop, begin = begin, _last_epoch(begin)
    state[0], state[1] = x, place


@kernel
def decode(words: U32, contexts: U8, start: I64, state: I64, codes: U8) -> None:
    """Decode ``codes``. Accepts any words; the final state tells whether they were valid."""
    width = start.shape[1] + 1
    counts, lows = start.copy(), np.empty(start.shape[0] * width, np.int64)
    symbols = np.empty(start.shape[0] << _LOOK, np.uint8)
    context = np.int64(contexts[0]) if contexts.size == 1 else np.int64(0)
    x, place, begin, size = state[0], state[1], 0, words.size
    while begin < codes.size:
        stop = min(codes.size, _epoch_end(begin))
        _sum_up(counts, lows)
        _fill(lows, width, symbols)
        for i in range(begin, stop):
            if contexts.size > 1:
                context = np.int64(contexts[i])
            row, slot = context * np.int64(width), x & np.int64((1 << SCALE) - 1)
            at = row + np.int64(symbols[(context << np.int64(_LOOK)) + (slot >> np.int64(SCALE - _LOOK))])
            low, high = lows[at], lows[at + 1]
            while high <= slot:
                at += 1
                low, high = high, lows[at + 1]
            x = (high - low) * (x >> np.int64(SCALE)) + slot - low
            if x < SEED:
                x = (x << np.int64(32)) | (np.int64(words[place]) if place < size else np.int64(0))
                place += 1
            codes[i] = np.uint8(at - row)
        _count(codes, contexts, begin, stop, counts, COUNT)
        begin = stop
    state[0], state[1] = x, place


@inline
def _epoch_end(begin: int) -> int:
    return begin + max(FIRST, begin >> 2)


@inline
def _last_epoch(size: int) -> int:
    """The start of the last epoch of ``size`` symbols."""
    begin, end = 0, _epoch_end(0)
    while end < size:
        begin, end = end, _epoch_end(end)
    return begin


@inline
def _count(codes: U8, contexts: U8, begin: int, stop: int, counts: I64, by: int) -> None:
    for i in range(begin, stop):
        counts[contexts[i if contexts.size > 1 else 0], codes[i]] += by


@inline
def _sum_up(counts: I64, sums: I64) -> None:
    """Cumulative frequencies, 0 to 2^`SCALE`, in proportion to ``counts`` and at least 1 each, row after row; the most
    frequent symbol gets the remainder.
    """
    symbols = counts.shape[1]
    spare = (1 << SCALE) - symbols
    for c in range(counts.shape[0]):
        total, most = np.int64(0), 0
        for s in range(symbols):
            total += counts[c, s]
            most = s if counts[c, s] > counts[c, most] else most
        left = np.int64(spare)
        for s in range(symbols):
            left -= counts[c, s] * spare // total
        at, row = np.int64(0), c * (symbols + 1)
        for s in range(symbols):
            sums[row + s] = at
            at += 1 + counts[c, s] * spare // total + (left if s == most else 0)
        sums[row + symbols] = at


@inline
def _fill(sums: I64, width: int, look: U8) -> None:
    """The symbol at the start of each of the 2^`_LOOK` parts of the range, for each row of ``width`` sums."""
    for c in range(sums.size // width):
        part, row = 0, c << _LOOK
        for s in range(width - 1):
            end = (sums[c * width + s + 1] + (1 << (SCALE - _LOOK)) - 1) >> np.int64(SCALE - _LOOK)
            while part < end:
                look[row + part] = np.uint8(s)
                part += 1
