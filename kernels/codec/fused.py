"""The codec at the cut in one pass over memory: clip, quantize and pack, and back. Twins: the codec's part of
`kernels.reference`.

`GROUP` codes at a time stay in registers between float32 and packed bits, in LLVM IR (`kernels.codec.fused_ir`); the
rest at the end takes plain loops.

``lo``, ``inv``, ``scale`` and ``tables`` have C entries: C = 1 for one range per tensor, else the length of the last
axis. They are repeated once per call, so that 3 channels run as fast as 1,024: up to a block, or to one row if channels
are whole groups. Decoding handles such rows one below the other.

``bits`` is 2 to 8 and not checked here. The caller guarantees the length of the output.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.codec.bits import BLOCK, SLACK, Array, copy, pack_block
from kernels.codec.fused_ir import CODEBOOK, GROUP, QUICK, QUICKS, decode_groups, encode_groups
from kernels.codec.hadamard import SIZES, transform
from kernels.codec.ranges import quantize_block, stretch
from kernels.define import inline, kernel
from kernels.emit import CACHE_LINE
from kernels.reference import F32, U8

U32 = NDArray[np.uint32]

TILE: Final = 8192  # codes at a time if ranges stay in registers from row to row


@kernel
def encode(x: F32, lo: F32, inv: F32, thresholds: F32, rotation: int, bits: int, out: U8) -> bool:
    """Rotate, clip, quantize and pack x [n]; return whether every value is finite.

    code = rint(clamp((x - lo) * inv, 0, 2^bits - 1)), or with a codebook how many of its ``thresholds`` (2^bits - 1, or
    none) are below (x - lo) * inv. Each step is one float32 operation. ``inv`` is 1 / scale, or 0 if scale is 0.
    ``rotation``: the block size of `rotate`, which divides n, or 0. ``out`` [ceil(n * bits / 8)].
    """
    top, exact = np.float32((1 << bits) - 1), bits + (CODEBOOK if thresholds.size else 0)
    words, stream = np.empty(BLOCK // 8, np.uint64), np.empty(BLOCK + SLACK, np.uint8)
    codes, finite = words.view(np.uint8), np.zeros(1, np.uint32)
    rotated = np.empty(BLOCK, np.float32)
    whole = _whole_groups(x.size, bits)
    each = _encoded_row(lo.size)
    rows = 0 if rotation or not each else whole // each
    done = rows * each
    spread = max(each, x.size - done)  # one row of ranges is enough for all rows, and leaves the nearest cache to x
    lows, invs = _repeat(lo, spread), _repeat(inv, spread)
    ways = 2 if QUICK and exact in QUICKS else 1  # the quick way gives up at a value, or a code, that is too large
    for way in range(ways):
        kind = exact if way == ways - 1 else QUICK + bits
        finite[0] = 0
        encode_groups(x, 0, lows, invs, 0, top, thresholds, kind, out, 0, each // GROUP, rows, finite)
        for start in range(done, x.size, BLOCK):
            n, phase, at = min(BLOCK, x.size - start), start % lo.size, start * bits // 8
            grouped = min(max(whole - start, 0), n)
            groups = grouped // GROUP
            if rotation:
                transform(x, start, rotated, 0, n, rotation, np.float32(1))
                encode_groups(rotated, 0, lows, invs, phase, top, thresholds, kind, out, at, groups, 1, finite)
            else:
                encode_groups(x, start, lows, invs, phase, top, thresholds, kind, out, at, groups, 1, finite)
            if grouped < n:
                rest = rotated[grouped:n] if rotation else x[start + grouped : start + n]
                lows_left, invs_left = lows[phase + grouped : phase + n], invs[phase + grouped : phase + n]
                finite[0] |= quantize_block(rest, lows_left, invs_left, top, thresholds, codes)
                pack_block(words, n - grouped, bits, stream, out[at + grouped * bits // 8 :])
        if finite[0] == np.uint32(0):
            return True
    return False


@kernel
def rotate(x: F32, size: int, factor: np.float32, out: F32) -> None:
    """`reference.codec_rotate`: blocks of ``size`` (8, 16, 32, 64 or 128) values of x [n] times a Hadamard matrix."""
    transform(x, 0, out, 0, x.size, size, factor)


@kernel
def encode_codes(x: U8, tables: U8, bits: int, out: U8) -> None:
    """Encode 8-bit codes x [n] through ``tables`` [C * 256]: the codes at the cut of channel c start at c * 256."""
    offsets = _repeat(np.arange(0, tables.size, 256).astype(np.uint32), x.size)
    words, stream = np.empty(BLOCK // 8, np.uint64), np.empty(BLOCK + SLACK, np.uint8)
    codes = words.view(np.uint8)
    for start in range(0, x.size, BLOCK):
        n, phase = min(BLOCK, x.size - start), start % (tables.size // 256)
        _look_up(x[start : start + n], tables, offsets[phase:], codes)
        pack_block(words, n, bits, stream, out[start * bits // 8 :])


@kernel
def decode(data: U8, lo: F32, scale: F32, levels: F32, side: F32, rotation: int, bits: int, out: F32) -> None:
    """Unpack and dequantize ``data`` [ceil(n * bits / 8)] to ``out`` [n], then rotate back.

    value = lo + scale * code, or lo + scale * levels[code] with a codebook: two float32 operations. ``side`` [rows, 2]:
    offset and size of each n / rows values as `measure` gives them, or [0, 2] for none; their range is offset + size *
    lo and size * scale. With several rows, each must be whole bytes and hold every channel once.
    """
    if side.shape[0] > 1:
        _decode_rows(data, lo, scale, levels, side, rotation, bits, out)
        return
    if side.shape[0]:
        own_lo, own_scale = np.empty_like(lo), np.empty_like(scale)
        stretch(lo, scale, side[0, 0], side[0, 1], own_lo, own_scale)
        lo, scale = own_lo, own_scale
    kind, back = bits + (CODEBOOK if levels.size else 0), np.float32(1) / np.float32(max(rotation, 1))
    whole = _whole_groups(out.size, bits)
    row = _decoded_row(lo.size)
    done = whole // row.unit * row.unit
    spread = max(row.size, out.size - done)  # one row of ranges is enough for all rows
    lows, scales = _repeat(lo, spread), _repeat(scale, spread)
    last = np.empty(GROUP + SLACK, np.uint8)
    for start in range(0, done, row.tile):
        n, at = min(row.tile, done - start), start * bits // 8
        groups = row.size // GROUP
        decode_groups(data, at, lows, scales, 0, levels, kind, out, start, groups, n // row.size, row.size)
        if rotation:
            transform(out, start, out, start, n, rotation, back)
    for start in range(done, out.size, BLOCK):
        n, phase, at = min(BLOCK, out.size - start), start % lo.size, start * bits // 8
        grouped = min(max(whole - start, 0), n)
        decode_groups(data, at, lows, scales, phase, levels, kind, out, start, grouped // GROUP, 1, 0)
        if n - grouped >= GROUP:  # the last group, from a copy with room for what its last word touches
            copy(data[at + grouped * bits // 8 :], last, GROUP * bits // 8)
            decode_groups(last, 0, lows, scales, phase + grouped, levels, kind, out, start + grouped, 1, 1, 0)
            grouped += GROUP
        for i in range(grouped, n):
            out[start + i] = lows[phase + i] + scales[phase + i] * _level(data, start + i, levels, bits)
        if rotation:
            transform(out, start, out, start, n, rotation, back)


@inline
def _decode_rows(data: U8, lo: F32, scale: F32, levels: F32, side: F32, rotation: int, bits: int, out: F32) -> None:
    """`decode` with a range for each row.

    Passes few arrays to functions, because counting their references takes as long as a row.
    """
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
        grouped = min(_whole_groups(out.size - start, bits), each // GROUP * GROUP)
        decode_groups(data, start * bits // 8, lows, scales, 0, levels, kind, out, start, grouped // GROUP, 1, 0)
        for i in range(grouped, each):
            out[start + i] = lows[i] + scales[i] * _level(data, start + i, levels, bits)
        if rotation:
            transform(out, start, out, start, each, rotation, back)


@inline
def _level(data: U8, place: int, levels: F32, bits: int) -> np.float32:
    """The level of the one code at ``place``, before its range."""
    bit = place * bits
    word, used = np.int64(data[bit >> 3]), bit & 7
    if used + bits > 8:
        word |= np.int64(data[(bit >> 3) + 1]) << 8
    code = (word >> used) & ((1 << bits) - 1)
    return levels[code] if levels.size else np.float32(code)


@inline
def _look_up(x: U8, tables: U8, offsets: U32, codes: U8) -> None:
    for i in range(x.size):
        codes[i] = tables[np.uint64(offsets[i]) + np.uint64(x[i])]


# --- rows of ranges ---------------------------------------------------------------------------------------------------


@inline
def _repeat(values: Array, count: int) -> Array:
    """``values``, repeated so that a block of at most ``count`` values may begin at any of them; aligned to a line."""
    out = _aligned(min(BLOCK, count) + values.size, values.dtype)
    filled = values.size
    copy(values, out, filled)
    while filled < out.size:  # doubles each time
        copy(out, out[filled:], min(filled, out.size - filled))
        filled *= 2
    return out


@inline
def _aligned(count: int, kind: Any) -> Array:
    """An array that starts at a cache line. Loads across cache lines take 1.5 times as long."""
    room = np.empty(count + CACHE_LINE, kind)
    return room[-room.ctypes.data % CACHE_LINE // room.itemsize :][:count]


@inline
def _by_rows(channels: int) -> bool:
    """Whether rows of ranges are whole groups, so that several rows share the ranges that are loaded once."""
    return channels == 1 or channels % GROUP == 0


class Row(NamedTuple):
    """A row of ranges, counted in values."""

    size: int
    unit: int  # decoding by rows takes a multiple of it
    tile: int  # decoded at a time


@inline
def _decoded_row(channels: int) -> Row:
    """The row of ranges for decoding. If no row fits, the unit is longer than any tensor."""
    if not _by_rows(channels):
        return Row(GROUP, 1 << 62, 1)
    unit = channels if channels > 1 else SIZES[-1]
    return Row(channels if channels > 1 else GROUP, unit, max(1, TILE // unit) * unit)


@inline
def _encoded_row(channels: int) -> int:
    """Values in the row of ranges for encoding, about a quarter of a block at least; 0 if no row fits."""
    if not _by_rows(channels):
        return 0
    return channels * max(1, BLOCK // 4 // channels) // GROUP * GROUP


@inline
def _whole_groups(count: int, bits: int) -> int:
    """How many of ``count`` codes are processed in groups.

    At 3, 5, 6 and 7 bits the last words of a group touch the bytes after it, which must exist.
    """
    spare = 0 if bits == 2 or bits == 4 or bits == 8 else 2 * SLACK
    return max(count - spare, 0) // GROUP * GROUP
