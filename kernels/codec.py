"""The codec at the cut: clip, quantize and pack in one pass over memory, and back. Twins: the codec's part of `kernels.reference`.

`GROUP` codes at a time stay in registers from float32 to packed bits, in LLVM IR (`kernels.packing`); what is left at the end takes
plain loops. ``lo``, ``inv``, ``scale`` and ``tables`` have C entries, C = 1 for a range per tensor, else the length of the last axis; they are repeated
to a block's length once a call, so that a channel count of 3 runs as fast as one of 1,024.

``bits`` is 2..8 and never checked here; the output's length is the caller's promise.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inline, kernel
from kernels.packing import GROUP, decode_groups, encode_groups

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]
Array = NDArray[Any]

BLOCK: Final = 2048  # codes: 8 KiB of float32; a multiple of 8, so that a block is a whole number of bytes at any width
SLACK: Final = 8  # a group of 8 codes is stored and loaded as one 64-bit word, whatever its width

_ROUND: Final = np.float32(
    1 << 23
)  # adding and subtracting it rounds 0 .. 2^22 half to even, and vectorizes on every instruction set


@kernel
def encode(x: F32, lo: F32, inv: F32, bits: int, out: U8) -> bool:
    """Clip, quantize and pack x [n]; ``inv`` is 1 / scale, 0 where scale is 0. Returns whether every value is finite.

    code = rint(clamp((x - lo) * inv, 0, 2^bits - 1)), each step one float32 operation. ``out`` [ceil(n * bits / 8)].
    """
    top = np.float32((1 << bits) - 1)
    lows, invs = _repeat(lo, x.size), _repeat(inv, x.size)
    words, stream = np.empty(BLOCK // 8, np.uint64), np.empty(BLOCK + SLACK, np.uint8)
    codes, finite = words.view(np.uint8), np.zeros(1, np.uint32)
    whole, start = _whole(x.size, bits), 0
    while start < x.size:
        n, phase = min(BLOCK, x.size - start), start % lo.size
        if start < whole:
            n = min(n, whole - start)
            encode_groups(x, start, lows, invs, phase, top, bits, out, start * bits // 8, n // GROUP, finite)
        else:
            finite[0] |= _quantize(x[start : start + n], lows[phase : phase + n], invs[phase : phase + n], top, codes)
            _pack_block(words, n, bits, stream, out[start * bits // 8 :])
        start += n
    return bool(finite[0] == np.uint32(0))


@kernel
def encode_codes(x: U8, tables: U8, bits: int, out: U8) -> None:
    """The same from 8-bit codes x [n] through ``tables`` [C * 256]: the code at the cut of each code of channel c is at c * 256."""
    offsets = _repeat(np.arange(0, tables.size, 256).astype(np.uint32), x.size)
    words, stream = np.empty(BLOCK // 8, np.uint64), np.empty(BLOCK + SLACK, np.uint8)
    codes = words.view(np.uint8)
    for start in range(0, x.size, BLOCK):
        n, phase = min(BLOCK, x.size - start), start % (tables.size // 256)
        _look_up(x[start : start + n], tables, offsets[phase:], codes)
        _pack_block(words, n, bits, stream, out[start * bits // 8 :])


@kernel
def decode(data: U8, lo: F32, scale: F32, bits: int, out: F32) -> None:
    """Unpack and dequantize to ``out`` [n]: lo + scale * code, two float32 operations. ``data`` [ceil(n * bits / 8)]."""
    lows, scales = _repeat(lo, out.size), _repeat(scale, out.size)
    words, stream = np.empty(BLOCK // 8, np.uint64), np.empty(BLOCK + SLACK, np.uint8)
    codes = words.view(np.uint8)
    whole, start = _whole(out.size, bits), 0
    while start < out.size:
        n, phase = min(BLOCK, out.size - start), start % lo.size
        if start < whole:
            n = min(n, whole - start)
            decode_groups(data, start * bits // 8, lows, scales, phase, bits, out, start, n // GROUP)
        else:
            _unpack_block(data[start * bits // 8 :], n, bits, stream, words)
            _dequantize(codes, lows[phase:], scales[phase:], out[start : start + n])
        start += n


@kernel
def pack(codes: U8, bits: int, out: U8) -> None:
    """Codes [n], each < 2^bits, to the tight bit stream ``out`` [ceil(n * bits / 8)]."""
    words, stream = np.empty(BLOCK // 8, np.uint64), np.empty(BLOCK + SLACK, np.uint8)
    block = words.view(np.uint8)
    for start in range(0, codes.size, BLOCK):
        n = min(BLOCK, codes.size - start)
        _copy(codes[start:], block, n)
        _pack_block(words, n, bits, stream, out[start * bits // 8 :])


@kernel
def unpack(data: U8, bits: int, out: U8) -> None:
    """The codes in ``data`` [ceil(n * bits / 8)] to ``out`` [n]."""
    words, stream = np.empty(BLOCK // 8, np.uint64), np.empty(BLOCK + SLACK, np.uint8)
    codes = words.view(np.uint8)
    for start in range(0, out.size, BLOCK):
        n = min(BLOCK, out.size - start)
        _unpack_block(data[start * bits // 8 :], n, bits, stream, words)
        _copy(codes, out[start:], n)


@inline
def _repeat(values: Array, count: int) -> Array:
    """``values`` over and over, so long that a block of a tensor of ``count`` may begin at any of them."""
    out = np.empty(min(BLOCK, count) + values.size, values.dtype)
    filled = values.size
    _copy(values, out, filled)
    while filled < out.size:  # twice as many each time
        _copy(out, out[filled:], min(filled, out.size - filled))
        filled *= 2
    return out


@inline
def _whole(count: int, bits: int) -> int:
    """How many of ``count`` codes go by groups: at 3, 5, 6 and 7 bits the last words of a group reach into what must follow it."""
    spare = 0 if bits == 2 or bits == 4 or bits == 8 else 2 * SLACK
    return max(count - spare, 0) // GROUP * GROUP


@inline
def _quantize(x: F32, lows: F32, invs: F32, top: np.float32, codes: U8) -> np.uint32:
    """One block to codes. The answer is not 0 if a value was NaN or infinite."""
    bad = np.uint32(0)
    for i in range(x.size):
        bad |= np.float32(x[i] - x[i]).view(np.uint32)
        v = (x[i] - lows[i]) * invs[i]
        v = v if v > np.float32(0) else np.float32(0)  # NaN becomes 0 too: converting it would be undefined
        v = v if v < top else top
        codes[i] = np.uint8(np.float32(v + _ROUND).view(np.uint32))
    return bad


@inline
def _dequantize(codes: U8, lows: F32, scales: F32, out: F32) -> None:
    for i in range(out.size):
        out[i] = lows[i] + scales[i] * np.float32(codes[i])


@inline
def _look_up(x: U8, tables: U8, offsets: U32, codes: U8) -> None:
    for i in range(x.size):
        codes[i] = tables[np.uint64(offsets[i]) + np.uint64(x[i])]


@inline
def _copy(source: Array, target: Array, n: int) -> None:
    """A loop that LLVM makes a memcpy of: numba's own slice assignment takes a byte at a time."""
    for i in range(n):
        target[i] = source[i]


@inline
def _pack_block(words: U64, n: int, bits: int, stream: U8, out: U8) -> None:
    """The first ``n`` codes, 8 to a word, to ``out``; ``stream`` is scratch."""
    codes = words.view(np.uint8)
    groups, size = (n + 7) // 8, (n * bits + 7) // 8
    for i in range(n, groups * 8):
        codes[i] = 0
    if bits == 8:
        _copy(codes, out, size)
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
        _copy(stream, out, size)


@inline
def _unpack_block(data: U8, n: int, bits: int, stream: U8, words: U64) -> None:
    """The first ``n`` codes of ``data``, 8 to a word; ``stream`` is scratch. Codes beyond ``n`` are not defined."""
    groups, size = (n + 7) // 8, (n * bits + 7) // 8
    if bits == 8:
        _copy(data, words.view(np.uint8), size)
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
        _copy(data, stream, size)
        for i in range(groups):
            words[i] = _load(stream, i * bits)
        _spread(words, groups, bits)


@inline
def _squeeze(words: U64, groups: int, bits: int) -> None:
    """Each word's 8 bytes of ``bits`` bits to one run of 8 * bits: bytes to pairs, pairs to fours, fours to eight."""
    by1, by2, by4 = np.uint64(8 - bits), np.uint64(16 - 2 * bits), np.uint64(32 - 4 * bits)
    for i in range(groups):
        w = words[i]
        w = (w & np.uint64(0x00FF00FF00FF00FF)) | ((w & np.uint64(0xFF00FF00FF00FF00)) >> by1)
        w = (w & np.uint64(0x0000FFFF0000FFFF)) | ((w & np.uint64(0xFFFF0000FFFF0000)) >> by2)
        words[i] = (w & np.uint64(0x00000000FFFFFFFF)) | ((w & np.uint64(0xFFFFFFFF00000000)) >> by4)


@inline
def _spread(words: U64, groups: int, bits: int) -> None:
    """The inverse of `_squeeze`; bits above the run are dropped."""
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
    """8 bytes, little-endian, at any address: LLVM makes one store of them."""
    for k in range(8):
        stream[np.uint64(at) + np.uint64(k)] = np.uint8(word >> np.uint64(8 * k))


@inline
def _load(stream: U8, at: int) -> np.uint64:
    """8 bytes, little-endian, from any address."""
    word = np.uint64(0)
    for k in range(8):
        word |= np.uint64(stream[np.uint64(at) + np.uint64(k)]) << np.uint64(8 * k)
    return word
