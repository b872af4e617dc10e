"""The codec at the cut: clip, quantize and pack in one pass over memory, and back. Twins: the codec's part of `kernels.reference`.

`GROUP` codes at a time stay in registers from float32 to packed bits, in LLVM IR (`kernels.packing`); what is left at the end takes
plain loops. ``lo``, ``inv``, ``scale`` and ``tables`` have C entries, C = 1 for a range per tensor, else the length of the last axis; they are repeated
once a call, so that a channel count of 3 runs as fast as one of 1,024: to a block's length, or, where channels are whole groups, to that of a row. Decoding
takes such rows one below the other.

``bits`` is 2..8 and never checked here; the output's length is the caller's promise.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inline, kernel
from kernels.packing import CODEBOOK, GROUP, QUICK, QUICKS, decode_groups, encode_groups
from kernels.rotation import LANES, SIZES, rotate_blocks

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]
Array = NDArray[Any]

BLOCK: Final = 2048  # codes: 8 KiB of float32; a multiple of 8, so that a block is a whole number of bytes at any width
TILE: Final = 8192  # codes at a time where ranges stay in registers from row to row
SLACK: Final = 8  # bytes behind a group that its words may reach into, whatever the width

_LINE: Final = 64  # bytes, of a cache
_LANES: Final = 16  # of sums, on every instruction set
_ROUND: Final = np.float32(
    1 << 23
)  # adding and subtracting it rounds 0 .. 2^22 half to even, and vectorizes on every instruction set


@kernel
def encode(x: F32, lo: F32, inv: F32, thresholds: F32, rotation: int, bits: int, out: U8) -> bool:
    """Rotate, clip, quantize and pack x [n]; ``inv`` is 1 / scale, 0 where scale is 0. Returns whether every value is finite.

    code = rint(clamp((x - lo) * inv, 0, 2^bits - 1)), or how many of the ``thresholds`` (2^bits - 1 of a codebook, or none) (x - lo) * inv is
    above; each step one float32 operation. ``rotation``: the block of `rotate`, which divides n, or 0. ``out`` [ceil(n * bits / 8)].
    """
    top, exact = np.float32((1 << bits) - 1), bits + (CODEBOOK if thresholds.size else 0)
    words, stream = np.empty(BLOCK // 8, np.uint64), np.empty(BLOCK + SLACK, np.uint8)
    codes, finite = words.view(np.uint8), np.zeros(1, np.uint32)
    turned = np.empty(BLOCK, np.float32)
    whole = _whole(x.size, bits)
    each = _span(lo.size)
    rows = 0 if rotation or not each else whole // each
    done = rows * each
    spread = max(each, x.size - done)  # of all that goes by rows one row suffices, and leaves the nearest cache to x
    lows, invs = _repeat(lo, spread), _repeat(inv, spread)
    ways = 2 if QUICK and exact in QUICKS else 1  # the quick one gives up where a value, or its code, is too large
    for way in range(ways):
        kind = exact if way == ways - 1 else QUICK + bits
        finite[0] = 0
        encode_groups(x, 0, lows, invs, 0, top, thresholds, kind, out, 0, each // GROUP, rows, finite)
        for start in range(done, x.size, BLOCK):
            n, phase, at = min(BLOCK, x.size - start), start % lo.size, start * bits // 8
            grouped = min(max(whole - start, 0), n)
            if rotation:
                _turn(x, start, turned, 0, n, rotation, np.float32(1))
                encode_groups(turned, 0, lows, invs, phase, top, thresholds, kind, out, at, grouped // GROUP, 1, finite)
            else:
                encode_groups(x, start, lows, invs, phase, top, thresholds, kind, out, at, grouped // GROUP, 1, finite)
            if grouped < n:
                rest = turned[grouped:n] if rotation else x[start + grouped : start + n]
                lows_left, invs_left = lows[phase + grouped : phase + n], invs[phase + grouped : phase + n]
                finite[0] |= _quantize(rest, lows_left, invs_left, top, thresholds, codes)
                _pack_block(words, n - grouped, bits, stream, out[at + grouped * bits // 8 :])
        if finite[0] == np.uint32(0):
            return True
    return False


@kernel
def rotate(x: F32, size: int, factor: np.float32, out: F32) -> None:
    """Each ``size`` (8, 16, 32, 64 or 128) of x [n] through the Hadamard matrix, times ``factor``: see `reference.codec_rotate`."""
    _turn(x, 0, out, 0, x.size, size, factor)


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
def decode(data: U8, lo: F32, scale: F32, levels: F32, side: F32, rotation: int, bits: int, out: F32) -> None:
    """Unpack and dequantize to ``out`` [n]: lo + scale * code, or scale * levels[code] of a codebook, two float32 operations; then rotate back.

    ``data`` [ceil(n * bits / 8)]. ``side`` [rows, 2] as `measure` gives it, or [0, 2]: the range of each n / rows values is offset + size * lo and size *
    scale; of several rows each must be whole bytes and hold every channel once.
    """
    if side.shape[0] > 1:
        _decode_rows(data, lo, scale, levels, side, rotation, bits, out)
        return
    if side.shape[0]:
        own_lo, own_scale = np.empty_like(lo), np.empty_like(scale)
        _stretch(lo, scale, side[0, 0], side[0, 1], own_lo, own_scale)
        lo, scale = own_lo, own_scale
    kind, back = bits + (CODEBOOK if levels.size else 0), np.float32(1) / np.float32(max(rotation, 1))
    whole = _whole(out.size, bits)
    each, unit, tile = _rows(lo.size)
    done = whole // unit * unit
    spread = max(each, out.size - done)  # of all that goes by rows one row suffices
    lows, scales = _repeat(lo, spread), _repeat(scale, spread)
    last = np.empty(GROUP + SLACK, np.uint8)
    for start in range(0, done, tile):
        n, at = min(tile, done - start), start * bits // 8
        decode_groups(data, at, lows, scales, 0, levels, kind, out, start, each // GROUP, n // each, each)
        if rotation:
            _turn(out, start, out, start, n, rotation, back)
    for start in range(done, out.size, BLOCK):
        n, phase, at = min(BLOCK, out.size - start), start % lo.size, start * bits // 8
        grouped = min(max(whole - start, 0), n)
        decode_groups(data, at, lows, scales, phase, levels, kind, out, start, grouped // GROUP, 1, 0)
        if n - grouped >= GROUP:  # the last group, with room for what its words reach into
            _copy(data[at + grouped * bits // 8 :], last, GROUP * bits // 8)
            decode_groups(last, 0, lows, scales, phase + grouped, levels, kind, out, start + grouped, 1, 1, 0)
            grouped += GROUP
        for i in range(grouped, n):
            out[start + i] = lows[phase + i] + scales[phase + i] * _real(data, start + i, levels, bits)
        if rotation:
            _turn(out, start, out, start, n, rotation, back)


@kernel
def quantize(x: F32, lo: F32, scale: F32, top: F32, thresholds: F32, side: F32, each: int, codes: U8) -> bool:
    """The codes of x [n], unpacked, for ranges that change within a tensor and for an entropy stage. Returns whether every value is finite.

    ``top`` [C]: the greatest code of each channel. ``side`` [rows, 2] as `measure` gives it, for each ``each`` values: their range is
    offset + size * lo and size * scale.
    """
    channels = lo.size
    lows, invs = np.empty(channels, np.float32), np.empty(channels, np.float32)
    bad = np.uint32(0)
    for row in range(x.size // each):
        _stretch(lo, scale, side[row, 0], side[row, 1], lows, invs)
        for c in range(channels):
            invs[c] = np.float32(1) / invs[c] if invs[c] > np.float32(0) else np.float32(0)
        for start in range(row * each, (row + 1) * each, channels):
            bad |= _quantize_row(
                x[start : start + channels], lows, invs, top, thresholds, codes[start : start + channels]
            )
    return bool(bad == np.uint32(0))


@kernel
def dequantize(codes: U8, lo: F32, scale: F32, levels: F32, side: F32, each: int, out: F32) -> None:
    """The inverse of `quantize`, to ``out`` [n]."""
    channels = lo.size
    lows, scales = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for row in range(out.size // each):
        _stretch(lo, scale, side[row, 0], side[row, 1], lows, scales)
        for start in range(row * each, (row + 1) * each, channels):
            _dequantize(codes[start : start + channels], lows, scales, levels, out[start : start + channels])


@kernel
def measure(x: F32, by_range: bool, side: F32) -> None:
    """What each of the rows of x [rows, n] spans, to ``side`` [rows, 2]: offset and size, float32 with 8 significant bits.

    ``by_range``: least value, rounded down, and greatest less that, rounded up; else 0 and the mean magnitude, rounded up, its sum in 16 lanes.
    """
    least, greatest = np.empty(_LANES, np.float32), np.empty(_LANES, np.float32)
    for row in range(side.shape[0]):
        if by_range:
            _extremes(x[row], least, greatest)
            side[row, 0] = -_round_up(-least[0])
            side[row, 1] = _round_up(greatest[0] - side[row, 0])
        else:
            side[row, 0] = np.float32(0)
            side[row, 1] = _round_up(_magnitudes(x[row], least) / np.float32(x.shape[1]))


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
def _decode_rows(data: U8, lo: F32, scale: F32, levels: F32, side: F32, rotation: int, bits: int, out: F32) -> None:
    """`decode` with a range for each row. Calls no function of arrays for a row but where it must: counting references takes as long as its values."""
    kind, back = bits + (CODEBOOK if levels.size else 0), np.float32(1) / np.float32(max(rotation, 1))
    each = out.size // side.shape[0]
    lows, scales = _aligned(each, np.float32), _aligned(each, np.float32)
    for row in range(side.shape[0]):
        offset, size, start = side[row, 0], side[row, 1], row * each
        if lo.size == 1:
            low, step = offset + size * lo[0], size * scale[0]
            for c in range(each):
                lows[c] = low
                scales[c] = step
        else:
            for c in range(each):
                lows[c] = offset + size * lo[c]
                scales[c] = size * scale[c]
        grouped = min(_whole(out.size - start, bits), each // GROUP * GROUP)
        decode_groups(data, start * bits // 8, lows, scales, 0, levels, kind, out, start, grouped // GROUP, 1, 0)
        for i in range(grouped, each):
            out[start + i] = lows[i] + scales[i] * _real(data, start + i, levels, bits)
        if rotation:
            _turn(out, start, out, start, each, rotation, back)


@inline
def _real(data: U8, place: int, levels: F32, bits: int) -> np.float32:
    """What the one code at ``place`` stands for, before its range."""
    bit = place * bits
    word, used = np.int64(data[bit >> 3]), bit & 7
    if used + bits > 8:
        word |= np.int64(data[(bit >> 3) + 1]) << 8
    code = (word >> used) & ((1 << bits) - 1)
    return levels[code] if levels.size else np.float32(code)


@inline
def _repeat(values: Array, count: int) -> Array:
    """``values`` over and over, so long that a block of a tensor of ``count`` may begin at any of them; at a cache line's start."""
    out = _aligned(min(BLOCK, count) + values.size, values.dtype)
    filled = values.size
    _copy(values, out, filled)
    while filled < out.size:  # twice as many each time
        _copy(out, out[filled:], min(filled, out.size - filled))
        filled *= 2
    return out


@inline
def _aligned(count: int, kind: Any) -> Array:
    """An array that starts with a cache line: loads of whole lines that do not take half as long again."""
    room = np.empty(count + _LINE, kind)
    return room[-room.ctypes.data % _LINE // room.itemsize :][:count]


@inline
def _rows(channels: int) -> tuple[int, int, int]:
    """How a tensor with ranges for so many channels goes by rows, each with the same ranges: values of a row, those that it takes at once, and those
    of `TILE`. Where channels are no whole groups nothing does: the second is beyond any length."""
    if channels > 1 and channels % GROUP:
        return GROUP, 1 << 62, 1
    unit = channels if channels > 1 else SIZES[-1]
    return (channels if channels > 1 else GROUP), unit, max(1, TILE // unit) * unit


@inline
def _span(channels: int) -> int:
    """Values after which the ranges of so many channels begin anew at a group, about a quarter of a block at least; 0 where nothing does."""
    if channels > 1 and channels % GROUP:
        return 0
    return channels * max(1, BLOCK // 4 // channels) // GROUP * GROUP


@inline
def _whole(count: int, bits: int) -> int:
    """How many of ``count`` codes go by groups: at 3, 5, 6 and 7 bits the last words of a group reach into what must follow it."""
    spare = 0 if bits == 2 or bits == 4 or bits == 8 else 2 * SLACK
    return max(count - spare, 0) // GROUP * GROUP


@inline
def _quantize(x: F32, lows: F32, invs: F32, top: np.float32, thresholds: F32, codes: U8) -> np.uint32:
    """One block to codes. The answer is not 0 if a value was NaN or infinite."""
    bad = np.uint32(0)
    if thresholds.size:
        for i in range(x.size):
            bad |= np.float32(x[i] - x[i]).view(np.uint32)
            codes[i] = 0
        for k in range(thresholds.size):  # a pass for each: a loop within the loop would not vectorize
            threshold = thresholds[k]
            for i in range(x.size):
                codes[i] += np.uint8((x[i] - lows[i]) * invs[i] > threshold)
        return bad
    for i in range(x.size):
        bad |= np.float32(x[i] - x[i]).view(np.uint32)
        v = (x[i] - lows[i]) * invs[i]
        v = v if v > np.float32(0) else np.float32(0)  # NaN becomes 0 too: converting it would be undefined
        v = v if v < top else top
        codes[i] = np.uint8(np.float32(v + _ROUND).view(np.uint32))
    return bad


@inline
def _quantize_row(x: F32, lows: F32, invs: F32, top: F32, thresholds: F32, codes: U8) -> np.uint32:
    """As `_quantize`, each channel with its own greatest code."""
    if thresholds.size:
        return _quantize(x, lows, invs, np.float32(thresholds.size), thresholds, codes)
    bad = np.uint32(0)
    for i in range(x.size):
        bad |= np.float32(x[i] - x[i]).view(np.uint32)
        v = (x[i] - lows[i]) * invs[i]
        v = v if v > np.float32(0) else np.float32(0)
        v = v if v < top[i] else top[i]
        codes[i] = np.uint8(np.float32(v + _ROUND).view(np.uint32))
    return bad


@inline
def _stretch(lo: F32, scale: F32, offset: np.float32, size: np.float32, lows: F32, scales: F32) -> None:
    for c in range(lo.size):
        lows[c] = offset + size * lo[c]
        scales[c] = size * scale[c]


@inline
def _round_up(value: np.float32) -> np.float32:
    """To 8 significant bits, not below ``value``."""
    word = np.float32(value).view(np.uint32)
    if word >> np.uint32(31) == 0 and word & np.uint32(0xFFFF):
        word += np.uint32(0x10000)
    return np.uint32(word & np.uint32(0xFFFF0000)).view(np.float32)


@inline
def _extremes(x: F32, least: F32, greatest: F32) -> None:
    """The least and the greatest of ``x`` to least[0] and greatest[0]."""
    least[:], greatest[:] = x[0], x[0]
    whole = x.size // _LANES * _LANES
    for start in range(0, whole, _LANES):
        for k in range(_LANES):
            v = x[start + k]
            least[k] = v if v < least[k] else least[k]
            greatest[k] = v if v > greatest[k] else greatest[k]
    for i in range(whole, x.size):
        least[0], greatest[0] = min(least[0], x[i]), max(greatest[0], x[i])
    for k in range(1, _LANES):
        least[0], greatest[0] = min(least[0], least[k]), max(greatest[0], greatest[k])


@inline
def _magnitudes(x: F32, lanes: F32) -> np.float32:
    """Sum of the magnitudes in 16 lanes, as `reference.lane_sum`."""
    lanes[:] = np.float32(0)
    whole = x.size // _LANES * _LANES
    for start in range(0, whole, _LANES):
        for k in range(_LANES):
            lanes[k] += np.float32(abs(x[start + k]))
    for i in range(whole, x.size):
        lanes[i - whole] += np.float32(abs(x[i]))
    distance = _LANES // 2
    while distance:
        for k in range(distance):
            lanes[k] += lanes[k + distance]
        distance //= 2
    return np.float32(lanes[0])


@inline
def _dequantize(codes: U8, lows: F32, scales: F32, levels: F32, out: F32) -> None:
    if levels.size:
        for i in range(out.size):
            out[i] = levels[0]
        for k in range(1, levels.size):
            level = levels[k]
            for i in range(out.size):
                out[i] = level if codes[i] >= k else out[i]
        for i in range(out.size):
            out[i] = lows[i] + scales[i] * out[i]
    else:
        for i in range(out.size):
            out[i] = lows[i] + scales[i] * np.float32(codes[i])


@inline
def _turn(x: F32, start: int, out: F32, at: int, count: int, size: int, factor: np.float32) -> None:
    """``count`` values of x[start:], in blocks of ``size``, to out[at:], which may be the same place."""
    together = max(size, LANES)
    rotate_blocks(x, start, size, factor, out, at, count // together)
    done = count // together * together
    for i in range(done, count):
        out[at + i] = x[start + i]
    h = 1
    while h < size and done < count:
        for first in range(at + done, at + count, 2 * h):
            for i in range(first, first + h):
                a, b = out[i], out[i + h]
                out[i], out[i + h] = a + b, a - b
        h *= 2
    for i in range(at + done, at + count):
        out[i] *= factor


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
