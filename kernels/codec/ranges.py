"""Quantization to unpacked codes, for ranges that change from row to row and for entropy coding; and the measurement of
such ranges.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kernels.define import inline, kernel
from kernels.reference import F32, U8

#: 2^23: adding and subtracting it rounds 0 .. 2^22 half to even, and vectorizes on every instruction set.
ROUND: Final = np.float32(1 << 23)
_LANES: Final = 16  # of sums, on every instruction set


@kernel
def quantize(x: F32, lo: F32, scale: F32, top: F32, thresholds: F32, side: F32, each: int, codes: U8) -> bool:
    """Quantize x [n] to unpacked codes, row by row; return whether every value is finite.

    ``top`` [C]: the greatest code of each channel. ``side`` [rows, 2]: offset and size of each row of ``each`` values,
    see `measure`. The range of a row is offset + size * lo and size * scale.
    """
    channels = lo.size
    lows, invs = np.empty(channels, np.float32), np.empty(channels, np.float32)
    bad = np.uint32(0)
    for row in range(x.size // each):
        stretch(lo, scale, side[row, 0], side[row, 1], lows, invs)
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
        stretch(lo, scale, side[row, 0], side[row, 1], lows, scales)
        for start in range(row * each, (row + 1) * each, channels):
            _dequantize(codes[start : start + channels], lows, scales, levels, out[start : start + channels])


@kernel
def measure(x: F32, by_range: bool, side: F32) -> None:
    """Measure each row of x [rows, n] to ``side`` [rows, 2]: offset and size, float32 with 8 significant bits.

    ``by_range``: the offset is the minimum, rounded down, and the size the maximum minus the offset, rounded up.
    Otherwise the offset is 0 and the size the mean magnitude, rounded up, with its sum in 16 lanes.
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


@inline
def _quantize_row(x: F32, lows: F32, invs: F32, top: F32, thresholds: F32, codes: U8) -> np.uint32:
    """As `quantize_block`, but each channel has its own greatest code."""
    if thresholds.size:
        return quantize_block(x, lows, invs, np.float32(thresholds.size), thresholds, codes)
    bad = np.uint32(0)
    for i in range(x.size):
        bad |= np.float32(x[i] - x[i]).view(np.uint32)
        v = (x[i] - lows[i]) * invs[i]
        v = v if v > np.float32(0) else np.float32(0)
        v = v if v < top[i] else top[i]
        codes[i] = np.uint8(np.float32(v + ROUND).view(np.uint32))
    return bad


@inline
def stretch(lo: F32, scale: F32, offset: np.float32, size: np.float32, lows: F32, scales: F32) -> None:
    """The range of one row: offset + size * lo to ``lows``, size * scale to ``scales``."""
    for c in range(lo.size):
        lows[c] = offset + size * lo[c]
        scales[c] = size * scale[c]


@inline
def _round_up(value: np.float32) -> np.float32:
    """``value`` rounded up to 8 significant bits."""
    word = np.float32(value).view(np.uint32)
    if word >> np.uint32(31) == 0 and word & np.uint32(0xFFFF):
        word += np.uint32(0x10000)
    return np.uint32(word & np.uint32(0xFFFF0000)).view(np.float32)


@inline
def _extremes(x: F32, least: F32, greatest: F32) -> None:
    """The minimum and the maximum of ``x`` to least[0] and greatest[0]."""
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
    """The sum of the magnitudes in 16 lanes, as `reference.lane_sum`."""
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
def quantize_block(x: F32, lows: F32, invs: F32, top: np.float32, thresholds: F32, codes: U8) -> np.uint32:
    """Quantize one block to codes. The result is not 0 if a value was NaN or infinite."""
    bad = np.uint32(0)
    if thresholds.size:
        for i in range(x.size):
            bad |= np.float32(x[i] - x[i]).view(np.uint32)
            codes[i] = 0
        for k in range(thresholds.size):  # one pass for each, because a nested loop does not vectorize
            threshold = thresholds[k]
            for i in range(x.size):
                codes[i] += np.uint8((x[i] - lows[i]) * invs[i] > threshold)
        return bad
    for i in range(x.size):
        bad |= np.float32(x[i] - x[i]).view(np.uint32)
        v = (x[i] - lows[i]) * invs[i]
        v = v if v > np.float32(0) else np.float32(0)  # NaN becomes 0 too, because its conversion is undefined
        v = v if v < top else top
        codes[i] = np.uint8(np.float32(v + ROUND).view(np.uint32))
    return bad
