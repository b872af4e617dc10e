"""Tight bit streams: pack and unpack codes of 2 to 8 bits, least significant bit first. Twins: `reference.pack_bits`,
`reference.unpack_bits`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.define import inline, kernel
from kernels.reference import U8

U64 = NDArray[np.uint64]
Array = NDArray[Any]

#: Codes in a block: 8 KiB of float32. A multiple of 8, so that a block is a whole number of bytes at any width.
BLOCK: Final = 2048
#: Bytes behind a group of codes that its last word may touch, at any width.
SLACK: Final = 8


@kernel
def pack(codes: U8, bits: int, out: U8) -> None:
    """Pack codes [n], each < 2^bits, into the tight bit stream ``out`` [ceil(n * bits / 8)]."""
    words, stream = np.empty(BLOCK // 8, np.uint64), np.empty(BLOCK + SLACK, np.uint8)
    block = words.view(np.uint8)
    for start in range(0, codes.size, BLOCK):
        n = min(BLOCK, codes.size - start)
        copy(codes[start:], block, n)
        pack_block(words, n, bits, stream, out[start * bits // 8 :])


@kernel
def unpack(data: U8, bits: int, out: U8) -> None:
    """Unpack the codes in ``data`` [ceil(n * bits / 8)] to ``out`` [n]."""
    words, stream = np.empty(BLOCK // 8, np.uint64), np.empty(BLOCK + SLACK, np.uint8)
    codes = words.view(np.uint8)
    for start in range(0, out.size, BLOCK):
        n = min(BLOCK, out.size - start)
        unpack_block(data[start * bits // 8 :], n, bits, stream, words)
        copy(codes, out[start:], n)


@inline
def pack_block(words: U64, n: int, bits: int, stream: U8, out: U8) -> None:
    """Pack the first ``n`` codes, 8 in a word, into ``out``; ``stream`` is scratch."""
    codes = words.view(np.uint8)
    groups, size = (n + 7) // 8, (n * bits + 7) // 8
    for i in range(n, groups * 8):
        codes[i] = 0
    if bits == 8:
        copy(codes, out, size)
    elif bits == 4:
        pairs = words.view(np.uint16)
        for i in range(size):
            out[i] = np.uint8(pairs[i] | (pairs[i] >> np.uint16(4)))
    elif bits == 2:
        quads = words.view(np.uint32)
        for i in range(size):
            two = quads[i] | (quads[i] >> np.uint32(6))
            out[i] = np.uint8(two | (two >> np.uint32(12)))
    else:
        _squeeze(words, groups, bits)
        for i in range(groups):
            _store(stream, i * bits, words[i])
        copy(stream, out, size)


@inline
def unpack_block(data: U8, n: int, bits: int, stream: U8, words: U64) -> None:
    """Unpack ``n`` codes of ``data``, 8 in a word; ``stream`` is scratch. Codes beyond ``n`` are undefined."""
    groups, size = (n + 7) // 8, (n * bits + 7) // 8
    if bits == 8:
        copy(data, words.view(np.uint8), size)
    elif bits == 4:
        pairs = words.view(np.uint16)
        for i in range(size):
            byte = np.uint16(data[i])
            pairs[i] = (byte | (byte << np.uint16(4))) & np.uint16(0x0F0F)
    elif bits == 2:
        quads = words.view(np.uint32)
        for i in range(size):
            four = np.uint32(data[i])
            two = four | (four << np.uint32(12))
            quads[i] = (two | (two << np.uint32(6))) & np.uint32(0x03030303)
    else:
        copy(data, stream, size)
        for i in range(groups):
            words[i] = _load(stream, i * bits)
        _spread(words, groups, bits)


@inline
def _squeeze(words: U64, groups: int, bits: int) -> None:
    """The 8 codes of each word to one run of 8 * bits bits: first pairs, then fours, then eights."""
    by1, by2, by4 = np.uint64(8 - bits), np.uint64(16 - 2 * bits), np.uint64(32 - 4 * bits)
    for i in range(groups):
        w = words[i]
        w = (w & np.uint64(0x00FF00FF00FF00FF)) | ((w & np.uint64(0xFF00FF00FF00FF00)) >> by1)
        w = (w & np.uint64(0x0000FFFF0000FFFF)) | ((w & np.uint64(0xFFFF0000FFFF0000)) >> by2)
        words[i] = (w & np.uint64(0x00000000FFFFFFFF)) | ((w & np.uint64(0xFFFFFFFF00000000)) >> by4)


@inline
def _spread(words: U64, groups: int, bits: int) -> None:
    """The inverse of `_squeeze`; drops the bits above the run."""
    by1, by2, by4 = np.uint64(8 - bits), np.uint64(16 - 2 * bits), np.uint64(32 - 4 * bits)
    four = (np.uint64(1) << np.uint64(4 * bits)) - np.uint64(1)
    two = np.uint64((1 << (2 * bits)) - 1) * np.uint64(0x0000000100000001)
    one = np.uint64((1 << bits) - 1) * np.uint64(0x0001000100010001)
    for i in range(groups):
        w = words[i]
        w = (w & four) | ((w & (four << np.uint64(4 * bits))) << by4)
        w = (w & two) | ((w & (two << np.uint64(2 * bits))) << by2)
        words[i] = (w & one) | ((w & (one << np.uint64(bits))) << by1)


@inline
def _store(stream: U8, at: int, word: np.uint64) -> None:
    """Store 8 bytes, little-endian, at any address: one instruction after optimization."""
    for k in range(8):
        stream[np.uint64(at) + np.uint64(k)] = np.uint8(word >> np.uint64(8 * k))


@inline
def _load(stream: U8, at: int) -> np.uint64:
    """Load 8 bytes, little-endian, from any address."""
    word = np.uint64(0)
    for k in range(8):
        word |= np.uint64(stream[np.uint64(at) + np.uint64(k)]) << np.uint64(8 * k)
    return word


@inline
def copy(source: Array, target: Array, n: int) -> None:
    """Copy n elements. LLVM turns the loop into a memcpy; Numba's slice assignment copies byte by byte."""
    for i in range(n):
        target[i] = source[i]
