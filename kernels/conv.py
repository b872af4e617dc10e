"""General convolution as matrix products over blocks of gathered windows: any window, stride, dilation, padding and group count.

No full im2col: `WINDOWS` output pixels are gathered at a time into scratch that stays in cache, then multiplied by `kernels.gemm`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from kernels import emit, gemm
from kernels.emit import I8
from kernels.jit import inline
from kernels.reference import S8, U8
from kernels.team import share

WINDOWS = 48  # a multiple of the tile heights 6 and 12; 48 x 576 bytes stay in a first-level cache


def window_bytes(kernel_h: int, kernel_w: int, channels: int) -> int:
    """Bytes of one gathered window (``channels`` of one group), padded to whole dot groups."""
    return -(-kernel_h * kernel_w * channels // gemm.GROUP) * gemm.GROUP


def scratch_bytes(kernel_h: int, kernel_w: int, channels: int) -> int:
    """Arena bytes that `conv` wants: the windows, and slack for copies of 16 bytes."""
    return WINDOWS * window_bytes(kernel_h, kernel_w, channels) + 64


def pack_weights(w: S8, groups: int) -> U8:
    """w [OC, KH, KW, C / groups] int8 to the panels of each group, one after the other."""
    return np.concatenate([gemm.pack_weights(part.reshape(part.shape[0], -1)) for part in np.split(w, groups)])


def pack_columns(values: Any, groups: int) -> Any:
    """A per-output-channel vector, each group padded to whole vectors."""
    return np.concatenate([gemm.pack_columns(part) for part in np.split(values, groups)])


@intrinsic
def _copy16(typingctx, arena, target, source):
    """16 bytes from arena[source:] to arena[target:]."""

    def codegen(context, b, sig, a):
        base = emit.array_pointer(context, b, sig.args[0], a[0])
        emit.store(b, emit.load(b, emit.vector(I8, 16), base, a[2]), base, a[1])
        return context.get_dummy_value()

    return types.void(arena, types.int64, types.int64), codegen


@inline
def _copy(arena, target, source, n):
    """n bytes, up to 15 more read and written: whatever follows is written later, or is slack."""
    for i in range(0, n, 16):
        _copy16(arena, target + i, source + i)


@inline
def _gather(
    arena, x, height, width, pitch, channels, y0, x0, kernel_h, kernel_w, dilation_h, dilation_w, zero_x, target
):
    """The window from cell (y0, x0) on, ``channels`` of each cell (cells are ``pitch`` bytes apart), to arena[target:]."""
    for ky in range(kernel_h):
        iy = y0 + ky * dilation_h
        for kx in range(kernel_w):
            ix = x0 + kx * dilation_w
            if iy < 0 or iy >= height or ix < 0 or ix >= width:
                arena[target : target + channels] = zero_x
            else:
                _copy(arena, target, x + (iy * width + ix) * pitch, channels)
            target += channels


@inline
def conv(
    arena, x, height, width, pitch, weights, w, bias, bias_at, multiplier, mul_at, y, out_height, out_width, out_channels, kernel_h, kernel_w,
    stride_h, stride_w, dilation_h, dilation_w, top, left, groups, zero_x, lo, hi, zero, windows, part, parts,
):  # fmt: skip
    """y [OH, OW, OC] from x [H, W, pitch]; ``windows``: arena offset of `scratch_bytes` of scratch.

    Computes one of ``parts``: of the output pixels, or, where they are few, of each product.
    """
    channels, outs = pitch // groups, out_channels // groups
    size = kernel_h * kernel_w * channels
    stride = (size + gemm.GROUP - 1) // gemm.GROUP * gemm.GROUP
    vectors = (outs + gemm.LANES - 1) // gemm.LANES
    panel = vectors * gemm.LANES * stride * gemm.WIDTH
    total = out_height * out_width
    run = kernel_w * channels
    line = dilation_h * width * pitch
    plain = dilation_w == 1 and pitch == channels
    begin, end = 0, total
    if total >= 2 * WINDOWS * parts:
        begin, end = share(total, part, parts)
        part, parts = 0, 1
    for first in range(begin, end, WINDOWS):
        count = min(WINDOWS, end - first)
        for g in range(groups):
            oy, ox = first // out_width, first % out_width
            target = windows
            for _ in range(count):
                y0, x0 = oy * stride_h - top, ox * stride_w - left
                if (
                    plain
                    and y0 >= 0
                    and y0 + (kernel_h - 1) * dilation_h < height
                    and x0 >= 0
                    and x0 + kernel_w <= width
                ):
                    source, into = x + (y0 * width + x0) * pitch, target
                    for _ in range(kernel_h):
                        _copy(arena, into, source, run)
                        into += run
                        source += line
                else:
                    _gather(arena, x + g * channels, height, width, pitch, channels, y0, x0, kernel_h, kernel_w,
                            dilation_h, dilation_w, zero_x, target)  # fmt: skip
                target += stride
                ox += 1
                if ox == out_width:
                    ox = 0
                    oy += 1
            columns = g * vectors * gemm.LANES
            gemm.gemm(arena, windows, stride, count, size, weights, w + g * panel, outs, bias, bias_at + columns, multiplier, mul_at + columns,
                      y + first * out_channels + g * outs, out_channels, lo, hi, zero, part, parts)  # fmt: skip
