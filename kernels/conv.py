"""General convolution as matrix products without im2col: any window, stride, dilation, padding and group count.

Of a window each row of cells is one run of bytes, so a tile of `kernels.gemm` reads its activations where they lie (`gemm.gemm`). Where windows
reach beyond the plane they lie in a padded copy of some of its rows, made in scratch just before. What is not made of runs (groups, dilated
columns) is gathered: `WINDOWS` output pixels at a time. `plan` decides, for the packing of weights and for the kernel.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from kernels import emit, gemm
from kernels.emit import I8
from kernels.jit import inline
from kernels.reference import S8, U8
from kernels.team import share

WINDOWS: Final = 48  # gathered at a time; a multiple of the tile heights 6 and 12
#: Bytes of a padded copy, unless a single row of windows wants more: it stays in the first two levels of cache.
COPY: Final = 1 << 16
#: Runs are padded to whole dot groups; where that makes more than this many times the products, gathered windows are faster.
WASTE: Final = 1.5
SLACK: Final = 64  # gathering writes whole vectors: so far beyond what it wants
IN_PLACE, GATHERED = 0, -1

Pair = tuple[int, int]


class Plan(NamedTuple):
    """How `conv` finds its windows. ``turn``: rows of windows in one padded copy, or `IN_PLACE`, or `GATHERED`; ``lines``: runs of a window."""

    turn: int
    lines: int
    scratch_bytes: int


def plan(
    size: tuple[int, int, int], out: Pair, kernel: Pair, stride: Pair, dilation: Pair, pad: Pair, groups: int
) -> Plan:  # fmt: skip
    """For x [H, W, C] ``size`` and [OH, OW] ``out``; ``pad``: above and to the left.

    A copy never moves more bytes than the products read: it is not made where strides leave out cells.
    """
    run = kernel[1] * size[2]
    high, wide = ((n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(out, stride, kernel, dilation, strict=True))
    if groups == 1 and dilation[1] == 1 and kernel[0] * _roundup(run) <= WASTE * _roundup(kernel[0] * run):
        if not any(pad) and high <= size[0] and wide <= size[1]:
            return Plan(IN_PLACE, kernel[0], 0)
        if dilation[0] == 1 and stride[0] <= kernel[0] and stride[1] <= kernel[1]:
            line = wide * size[2]
            turn = min(max((COPY // line - kernel[0]) // stride[0] + 1, 1), out[0])
            return Plan(turn, kernel[0], ((turn - 1) * stride[0] + kernel[0]) * line)
    return Plan(GATHERED, 1, WINDOWS * _roundup(math.prod(kernel) * size[2] // groups) + SLACK)


def _roundup(n: int) -> int:
    """To whole dot groups."""
    return -(-n // gemm.GROUP) * gemm.GROUP


def pack_weights(w: S8, groups: int, lines: int) -> U8:
    """w [OC, KH, KW, C / groups] int8 to the panels of each group, one after the other; each of ``lines`` runs padded to whole dot groups."""
    runs = w.reshape(len(w), lines, -1)
    padded = np.pad(runs, ((0, 0), (0, 0), (0, -runs.shape[2] % gemm.GROUP)))
    return np.concatenate([gemm.pack_weights(part.reshape(len(part), -1)) for part in np.split(padded, groups)])


def pack_columns(values: Any, groups: int) -> Any:
    """A per-output-channel vector, each group padded to whole vectors."""
    return np.concatenate([gemm.pack_columns(part) for part in np.split(values, groups)])


def _mover(size: int) -> Any:
    """A move of ``size`` bytes from arena[source:] to arena[target:]."""

    @intrinsic
    def move(typingctx, arena, target, source):
        def codegen(context, b, sig, a):
            base = emit.array_pointer(context, b, sig.args[0], a[0])
            emit.store(b, emit.load(b, emit.vector(I8, size), base, a[2]), base, a[1])
            return context.get_dummy_value()

        return types.void(arena, types.int64, types.int64), codegen

    return move


_move16, _move64 = _mover(16), _mover(64)


@inline
def _copy(arena, target, source, n):
    """n bytes, up to 15 more read and written: whatever follows is written later, or is slack."""
    for i in range(0, n, 16):
        _move16(arena, target + i, source + i)


@inline
def _copy_exactly(arena, target, source, n):
    """n bytes and no more; the last vector takes some of the bytes before it again."""
    if n >= 64:
        for i in range(0, n - 64, 64):
            _move64(arena, target + i, source + i)
        _move64(arena, target + n - 64, source + n - 64)
    else:
        for i in range(n):
            arena[target + i] = arena[source + i]


@inline
def _copy_rows(arena, x, height, width, pitch, y0, left, target, rows, line, zero_x):
    """Rows of the plane from number ``y0`` on to arena[target:], ``line`` bytes apart, ``left`` cells from their start: what lies beside them is there."""
    inner = min(width * pitch, line - left * pitch)
    for iy in range(y0, y0 + rows):
        if 0 <= iy < height:
            _copy_exactly(arena, target + left * pitch, x + iy * width * pitch, inner)
        else:
            arena[target : target + line] = zero_x
        target += line


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
    stride_h, stride_w, dilation_h, dilation_w, top, left, groups, zero_x, lo, hi, zero, scratch, turn, part, parts,
):  # fmt: skip
    """y [OH, OW, OC] from x [H, W, pitch], as `plan` said; ``scratch``: arena offset of `Plan.scratch_bytes` of scratch.

    Computes one of ``parts``: of the output's rows (its pixels, where windows are gathered), or, where they are few, of each product.
    """
    channels, outs = pitch // groups, out_channels // groups
    source, line, rows, pixels = scratch, ((out_width - 1) * stride_w + kernel_w) * pitch, turn, out_width
    ldx, row_step, lines, run = stride_w * pitch, stride_h * line, kernel_h, kernel_w * channels
    if turn == IN_PLACE:
        source, line, rows = x, dilation_h * width * pitch, out_height
        row_step = stride_h * width * pitch
    elif turn == GATHERED:
        rows, pixels, lines, run = WINDOWS, 1, 1, kernel_h * run
        ldx = (run + gemm.GROUP - 1) // gemm.GROUP * gemm.GROUP
        row_step = ldx
    across = pixels
    if pixels == 1:
        ldx = row_step
    if row_step == across * ldx:  # from each pixel to the next it is equally far
        across = out_height * out_width
    columns = (outs + gemm.LANES - 1) // gemm.LANES * gemm.LANES
    panels = columns * lines * ((run + gemm.GROUP - 1) // gemm.GROUP) * gemm.GROUP * gemm.WIDTH
    begin, end = 0, out_height * out_width // pixels
    if end >= rows * parts:
        begin, end = share(end, part, parts)
        part, parts = 0, 1
    if turn > 0:
        arena[scratch : scratch + ((min(turn, end - begin) - 1) * stride_h + kernel_h) * line] = zero_x
    for first in range(begin, end, rows):
        count = min(rows, end - first)
        for g in range(groups):
            if turn > 0:
                _copy_rows(arena, x, height, width, pitch, first * stride_h - top, left, scratch, (count - 1) * stride_h + kernel_h, line,
                           zero_x)  # fmt: skip
            elif turn == GATHERED:
                for i in range(count):
                    oy, ox = (first + i) // out_width, (first + i) % out_width
                    _gather(arena, x + g * channels, height, width, pitch, channels, oy * stride_h - top, ox * stride_w - left, kernel_h,
                            kernel_w, dilation_h, dilation_w, zero_x, scratch + i * ldx)  # fmt: skip
            gemm.gemm(arena, source, ldx, across, row_step, lines, line, count * pixels, run, weights, w + g * panels, outs, bias,
                        bias_at + g * columns, multiplier, mul_at + g * columns, y + first * pixels * out_channels + g * outs, out_channels, lo,
                        hi, zero, part, parts)  # fmt: skip
