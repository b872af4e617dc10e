"""General convolution as matrix products without im2col: any window, stride, dilation, padding and group count.

Each row of a window is one run of bytes, so `gemm.gemm` reads the activations where they lie. If windows reach beyond
the plane, they are read from a padded copy of some rows in scratch memory. Windows that are not made of runs (groups,
dilated columns) are gathered, `WINDOWS` output pixels at a time. `layout` decides between the three for the packing of
weights and for the kernel.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from kernels import emit
from kernels.define import inline, intrinsic, macro, types
from kernels.emit import I8, address
from kernels.operators import gemm
from kernels.operators.arguments import Constants
from kernels.reference import S8, U8
from kernels.team import Part, share

WINDOWS: Final = 48  # gathered at a time; a multiple of the tile heights 6 and 12
#: Largest padded copy in bytes, so that it stays in the first two levels of cache. A single row of windows may need
#: more.
COPY: Final = 1 << 16
#: Runs are padded to whole dot groups. If that multiplies the products by more than this factor, gathered windows are
#: faster.
WASTE: Final = 1.5
SLACK: Final = 64  # gathering writes whole vectors, up to this many bytes too many
#: Special values of `Layout.rows_per_copy`.
IN_PLACE, GATHERED = 0, -1

Pair = tuple[int, int]


class Layout(NamedTuple):
    """Where `conv` finds its windows.

    ``rows_per_copy``: rows of windows in one padded copy, or `IN_PLACE`, or `GATHERED`. ``lines``: runs of bytes in a
    window.
    """

    rows_per_copy: int
    lines: int
    scratch_bytes: int


def layout(
    size: tuple[int, int, int], out: Pair, kernel: Pair, stride: Pair, dilation: Pair, pad: Pair, groups: int
) -> Layout:
    """Choose the layout for x [H, W, C] = ``size`` and y [OH, OW] = ``out``; ``pad``: above and to the left.

    A padded copy never moves more bytes than the products read: strides that skip cells exclude it.
    """
    run = kernel[1] * size[2]
    high, wide = ((n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(out, stride, kernel, dilation, strict=True))
    if groups == 1 and dilation[1] == 1 and kernel[0] * _roundup(run) <= WASTE * _roundup(kernel[0] * run):
        if not any(pad) and high <= size[0] and wide <= size[1]:
            return Layout(IN_PLACE, kernel[0], 0)
        if dilation[0] == 1 and stride[0] <= kernel[0] and stride[1] <= kernel[1]:
            line = wide * size[2]
            rows = min(max((COPY // line - kernel[0]) // stride[0] + 1, 1), out[0])
            return Layout(rows, kernel[0], ((rows - 1) * stride[0] + kernel[0]) * line)
    return Layout(GATHERED, 1, WINDOWS * _roundup(math.prod(kernel) * size[2] // groups) + SLACK)


def _roundup(n: int) -> int:
    """``n`` rounded up to whole dot groups."""
    return -(-n // gemm.GROUP) * gemm.GROUP


def pack_weights(w: S8, groups: int, lines: int) -> U8:
    """w [OC, KH, KW, C / groups] int8 to panels, group by group, each of ``lines`` runs padded to whole dot groups."""
    runs = w.reshape(len(w), lines, -1)
    padded = np.pad(runs, ((0, 0), (0, 0), (0, -runs.shape[2] % gemm.GROUP)))
    return np.concatenate([gemm.pack_weights(part.reshape(len(part), -1)) for part in np.split(padded, groups)])


def pack_columns(values: Any, groups: int) -> Any:
    """A vector per output channel; each group is padded to whole vectors."""
    return np.concatenate([gemm.pack_columns(part) for part in np.split(values, groups)])


# --- copies into scratch memory ---------------------------------------------------------------------------------------


def _mover(size: int) -> Any:
    """An intrinsic that moves ``size`` bytes from arena[source:] to arena[target:]."""

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
    """Copy n bytes and up to 15 more: the bytes after them are slack or are written later."""
    for i in range(0, n, 16):
        _move16(arena, target + i, source + i)


@inline
def _copy_exactly(arena, target, source, n):
    """Copy exactly n bytes. The last vector copies some bytes a second time."""
    if n >= 64:
        for i in range(0, n - 64, 64):
            _move64(arena, target + i, source + i)
        _move64(arena, target + n - 64, source + n - 64)
    else:
        for i in range(n):
            arena[target + i] = arena[source + i]


@inline
def _copy_rows(arena, x, window, pitch, y0, target, rows, line, zero_x):
    """Copy rows of the plane from row ``y0`` on to arena[target:], ``line`` bytes apart. The padding at their sides is
    there already.
    """
    inner = min(window.width * pitch, line - window.left * pitch)
    for iy in range(y0, y0 + rows):
        if 0 <= iy < window.height:
            _copy_exactly(arena, target + window.left * pitch, x + iy * window.width * pitch, inner)
        else:
            arena[target : target + line] = zero_x
        target += line


@inline
def _gather(arena, x, window, channels, pixel, zero_x, target):
    """Copy the window of the output pixel ``pixel``, ``channels`` bytes of each cell, to arena[target:]."""
    y0 = pixel // window.out_width * window.stride_h - window.top
    x0 = pixel % window.out_width * window.stride_w - window.left
    for ky in range(window.kernel_h):
        iy = y0 + ky * window.dilation_h
        for kx in range(window.kernel_w):
            ix = x0 + kx * window.dilation_w
            if iy < 0 or iy >= window.height or ix < 0 or ix >= window.width:
                arena[target : target + channels] = zero_x
            else:
                _copy(arena, target, x + (iy * window.width + ix) * window.channels, channels)
            target += channels


# --- the convolution --------------------------------------------------------------------------------------------------


@macro
def _rows_in_place(x, window):
    """The windows as `gemm.Rows` if they lie inside the plane at address ``x``."""
    pitch, line = window.channels, window.width * window.channels
    step, plane_step = window.stride_w * pitch, window.stride_h * line
    return gemm.Rows(
        x, step, window.out_width, plane_step, window.kernel_h, window.dilation_h * line, window.kernel_w * pitch
    )


@macro
def _rows_of_copy(scratch, window):
    """The windows as `gemm.Rows` in a padded copy at address ``scratch``."""
    pitch = window.channels
    line = ((window.out_width - 1) * window.stride_w + window.kernel_w) * pitch
    step, plane_step = window.stride_w * pitch, window.stride_h * line
    return gemm.Rows(scratch, step, window.out_width, plane_step, window.kernel_h, line, window.kernel_w * pitch)


@macro
def _gathered_rows(scratch, window, channels):
    """Gathered windows as `gemm.Rows`, one after the other at address ``scratch``."""
    run = window.kernel_h * window.kernel_w * channels
    step = gemm.dot_groups(run) * gemm.GROUP
    return gemm.Rows(scratch, step, 1, step, 1, run, run)


@macro
def _joined(rows, pixels):
    """``rows`` as one line of ``pixels`` rows if the step from each to the next is the same everywhere."""
    step = rows.plane_step if rows.width == 1 else rows.step
    width = pixels if rows.plane_step == rows.width * step else rows.width
    return gemm.Rows(rows.x, step, width, rows.plane_step, rows.lines, rows.line_step, rows.run)


@inline
def conv(arena, x, window, groups, rows_per_copy, zero_x, constants, y, output, scratch, part):
    """Compute one part of y [OH, OW, OC] from x [H, W, C]; ``x``, ``y`` and ``scratch`` are offsets into the arena.

    ``rows_per_copy`` is that of `layout`, with `Layout.scratch_bytes` of scratch. Parts are ranges of output rows (or
    of output pixels if windows are gathered); if there are few, each product is divided instead.
    """
    base, channels, outs = address(arena), window.channels // groups, window.out_channels // groups
    pixels = window.out_width
    if rows_per_copy == IN_PLACE:
        rows, at_once = _rows_in_place(base + x, window), window.out_height
    elif rows_per_copy == GATHERED:
        rows, at_once, pixels = _gathered_rows(base + scratch, window, channels), WINDOWS, 1
    else:
        rows, at_once = _rows_of_copy(base + scratch, window), rows_per_copy
    line, step = rows.line_step, rows.step
    rows = _joined(rows, window.out_height * window.out_width)
    begin, end = 0, window.out_height * window.out_width // pixels
    if end >= at_once * part.total:
        begin, end = share(end, part)
        part = Part(0, 1)
    if rows_per_copy > 0:
        copied = (min(rows_per_copy, end - begin) - 1) * window.stride_h + window.kernel_h
        arena[scratch : scratch + copied * line] = zero_x
    columns = (outs + gemm.LANES - 1) // gemm.LANES * gemm.LANES
    panels = columns * rows.lines * gemm.dot_groups(rows.run) * gemm.GROUP * gemm.WEIGHT_BYTES
    for first in range(begin, end, at_once):
        count = min(at_once, end - first)
        for g in range(groups):
            if rows_per_copy > 0:
                y0, copied = first * window.stride_h - window.top, (count - 1) * window.stride_h + window.kernel_h
                _copy_rows(arena, x, window, window.channels, y0, scratch, copied, line, zero_x)
            elif rows_per_copy == GATHERED:
                for i in range(count):
                    _gather(arena, x + g * channels, window, channels, first + i, zero_x, scratch + i * step)
            own = Constants(
                constants.weights + g * panels, constants.bias + 4 * g * columns, constants.multiplier + 4 * g * columns
            )
            target = base + y + first * pixels * window.out_channels + g * outs
            gemm.gemm(rows, count * pixels, own, outs, target, window.out_channels, output, part)
