"""Depthwise convolution, u8 x s8 -> int32 -> u8, any window, stride, dilation and padding.

Channels run along the vector, `BLOCKS`[i] of them in a block; the last block of a row overlaps the one before instead of being cut, and writes
the same bytes again. The bytes (or words) of ``group`` taps are interleaved so that one dot step adds them all. A tap outside the plane reads
zero points.

The windows of almost all networks (`slides`) walk along a row: a column of the window is loaded and interleaved once, and added to every pixel
that it belongs to; those pixels' accumulators stay in registers. Any other window is a table of offsets, looked up again for each pixel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels import emit, reference
from kernels.emit import FLOAT, I8, I32, I64, PTR, TARGET
from kernels.jit import inline
from kernels.reference import F32, S8, U8
from kernels.team import share

GROUP = TARGET.group
#: Vector widths in bits, widest first; narrow ones serve layers of few channels.
_WIDTHS = [bits for bits in (512, 256, 128) if bits <= TARGET.bits]
#: Channels in a block at each width: GROUP vectors of int32 accumulators.
BLOCKS = [bits // 32 * GROUP for bits in _WIDTHS]
SMALLEST = BLOCKS[-1]


def blocks(channels: int) -> list[tuple[int, int]]:
    """(first channel, index into `BLOCKS`) of each block; empty where there are fewer channels than the smallest block."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < channels and channels >= SMALLEST:
        left = channels - start
        fitting = [i for i, size in enumerate(BLOCKS) if size <= left]
        # One wider block that overlaps the last is cheaper than several narrow ones.
        covering = [i for i, size in enumerate(BLOCKS) if left <= size <= channels]
        index = covering[-1] if covering else fitting[0]
        size = BLOCKS[index]
        start = min(start, channels - size)
        found.append((start, index))
        start += size
    return found


def _channel_order(index: int) -> Any:
    """Channel, within its block, of lane i of accumulator j, as [GROUP, lanes]: interleaving stays within 128-bit quarters."""
    quarters = _WIDTHS[index] // 128
    q, j, e = np.meshgrid(np.arange(quarters), np.arange(GROUP), np.arange(4), indexing="ij")
    return (q * 4 * GROUP + j * 4 + e).transpose(1, 0, 2).reshape(GROUP, quarters * 4)


def slides(channels: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> bool:
    """Whether the sliding kernel takes this window; `pack_weights` and `depthwise` must agree."""
    same = kernel[0] == kernel[1] and stride[0] == stride[1]
    return channels >= SMALLEST and same and kernel[0] in (3, 5) and stride[0] in (1, 2) and dilation == (1, 1)


_slides = inline(slides)


class TapGroup(NamedTuple):
    """(row, column) of the taps that one dot step adds, None where there is none; the column at which it is complete; whether it runs along a row."""

    taps: list[tuple[int, int] | None]
    column: int
    along: bool


def tap_groups(kernel: int) -> list[TapGroup]:
    """All taps of a square window in the order of the packed weights.

    Groups run down a column, so do two or three rows that are left. A single row that is left is taken along: 5 x 5 are 7 groups of 4, not 10.
    """
    along = kernel % GROUP == 1
    groups = []
    for column in range(kernel):
        for row in range(0, kernel - 1 if along else kernel, GROUP):
            taps = [(r, column) if r < kernel else None for r in range(row, row + GROUP)]
            groups.append(TapGroup(taps, column, False))
    for first in range(0, kernel if along else 0, GROUP):
        last = min(first + GROUP, kernel) - 1
        taps = [(kernel - 1, c) if c >= first else None for c in range(last - GROUP + 1, last + 1)]
        groups.append(TapGroup(taps, last, True))
    return groups


def pack_weights(w: S8, stride: tuple[int, int], dilation: tuple[int, int]) -> U8:
    """w [C, KH, KW] int8 to bytes: for each block, each group of taps, each accumulator, [lanes, group]; zeros for missing taps.

    Groups of taps: `tap_groups` where the window `slides`, else of all taps. With fewer channels than `SMALLEST`: [taps, C] as it is.
    """
    channels, kernel_h, kernel_w = w.shape
    if channels < SMALLEST:
        return np.ascontiguousarray(w.reshape(channels, -1).T).reshape(-1).view(np.uint8)
    if slides(channels, (kernel_h, kernel_w), stride, dilation):
        taps = [tap for group in tap_groups(kernel_h) for tap in group.taps]
        order = np.array([-1 if tap is None else tap[0] * kernel_w + tap[1] for tap in taps])
    else:
        order = np.arange(-(-kernel_h * kernel_w // GROUP) * GROUP)
        order[kernel_h * kernel_w :] = -1
    padded = np.where(order >= 0, w.reshape(channels, -1)[:, order], 0).astype(np.int8 if GROUP == 4 else np.int16)
    parts = []
    for start, index in blocks(channels):
        ordered = padded[start + _channel_order(index)]  # [GROUP, lanes, taps]
        grouped = ordered.reshape(*ordered.shape[:2], -1, GROUP).transpose(2, 0, 1, 3)
        parts.append(emit.pair_order(np.ascontiguousarray(grouped)).reshape(-1))
    return np.concatenate(parts).view(np.uint8)


def pack_channels(values: F32 | reference.I32) -> Any:
    """A per-channel vector in the order of the blocks' accumulators."""
    if len(values) < SMALLEST:
        return values
    return np.concatenate([values[start + _channel_order(index)].reshape(-1) for start, index in blocks(len(values))])


def _unpack_order(lanes: int, high: int, width: int) -> list[int]:
    """Mask that interleaves elements of two vectors within 128-bit quarters (x86 unpack low / high); ``width`` elements a quarter."""
    total = lanes
    half = width // 2
    return [
        i
        for q in range(0, total, width)
        for e in range(half)
        for i in (q + high * half + e, total + q + high * half + e)
    ]


def _interleave(b: ir.IRBuilder, taps: list[ir.Value], size: int) -> list[Any]:
    """Up to GROUP vectors of ``size`` channels (bytes) to GROUP operands whose lanes hold one channel's GROUP taps; what is missing is anything."""
    if len(taps) == 1 and GROUP == 4 and not TARGET.pairs:
        (tap,) = taps
        tap = emit.as_operand(b, tap)
        return [
            emit.shuffle(b, tap, tap, [q + j * 4 + e for q in range(0, size, 16) for e in range(4) for _ in range(4)])
            for j in range(4)
        ]
    taps = [*taps, *[taps[0]] * (GROUP - len(taps))]
    if GROUP == 2:
        words = [b.zext(tap, emit.vector(TARGET.element, size)) for tap in taps]
        return [emit.shuffle(b, words[0], words[1], _unpack_order(size, high, 8)) for high in (0, 1)]
    taps = [emit.as_operand(b, tap) for tap in taps]
    pairs = [[emit.shuffle(b, taps[i], taps[i + 1], _unpack_order(size, high, 16)) for high in (0, 1)] for i in (0, 2)]
    if TARGET.pairs:  # of 4 channels each: taps 0 and 1, then 2 and 3
        return [
            [emit.shuffle(b, v, v, range(half, half + 8)) for v in (first, second)]
            for first, second in zip(*pairs, strict=True)
            for half in (0, 8)
        ]
    halves = [[b.bitcast(v, emit.vector(ir.IntType(16), size // 2)) for v in pair] for pair in pairs]
    quads = [
        emit.shuffle(b, halves[0][i], halves[1][i], _unpack_order(size // 2, high, 8))
        for i in (0, 1)
        for high in (0, 1)
    ]
    return [b.bitcast(quad, emit.vector(I8, size)) for quad in quads]


_RUN_ARGS = [PTR, PTR, I64, PTR, PTR, PTR, PTR, I64, I64, I64, FLOAT, FLOAT, I32]


def _run_body(size: int) -> Any:
    """IR of a run of output pixels for one block: base, taps, groups, w, bias, multiplier, y, pixels, step of x, step of y, lo, hi, zero."""

    def body(b: ir.IRBuilder, args: list[ir.Value]) -> None:
        base, taps, groups, w, bias, multiplier, y, pixels, step_x, step_y, lo, hi, zero = args
        block = _Block(b, size, w, bias, multiplier, lo, hi, zero)
        with emit.loop(b, pixels) as (pixel, _, _):
            origin = emit.at(b, base, b.mul(pixel, step_x))
            with emit.loop(b, groups, *block.start()) as (index, before, acc):
                places = [
                    emit.load(b, I64, taps, b.add(b.mul(index, I64(GROUP * 8)), I64(t * 8))) for t in range(GROUP)
                ]
                cells = _interleave(b, [emit.load(b, emit.vector(I8, size), origin, place) for place in places], size)
                acc += block.step(before, cells, block.weights(index))
            block.finish(acc, emit.at(b, y, b.mul(pixel, step_y)))

    return body


class _Block:
    """What the pixels of one block of channels share, loaded once."""

    def __init__(
        self,
        b: ir.IRBuilder,
        size: int,
        w: ir.Value,
        bias: ir.Value,
        multiplier: ir.Value,
        lo: ir.Value,
        hi: ir.Value,
        zero: ir.Value,
    ) -> None:
        self.b, self.w = b, w
        lanes = size // GROUP
        self.operand = emit.vector(TARGET.element, lanes * GROUP)
        self.width = lanes * 4
        self.bounds = emit.code_bounds(b, lo, hi, zero)
        self.bias, self.multiplier, self.lanes = bias, multiplier, lanes

    def start(self) -> list[ir.Value]:
        """The accumulators of a new pixel. Loaded anew each time: registers are for weights and accumulators."""
        return [emit.load(self.b, emit.vector(I32, self.lanes), self.bias, j * self.width) for j in range(GROUP)]

    def weights(self, group: ir.Value) -> list[ir.Value]:
        """Operands of one group of taps, one for each accumulator."""
        panel = emit.at(self.b, self.w, self.b.mul(group, I64(GROUP * self.width)))
        return [emit.load(self.b, self.operand, panel, j * self.width) for j in range(GROUP)]

    def step(self, acc: list[ir.Value], cells: list[Any], weights: list[ir.Value]) -> list[ir.Value]:
        """``acc`` and one group of taps."""
        return [emit.dot(self.b, *operands) for operands in zip(acc, cells, weights, strict=True)]

    def finish(self, acc: list[ir.Value], y: ir.Value) -> None:
        """One pixel's codes to ``y``."""
        kind = emit.vector(FLOAT, self.lanes)
        factors = [emit.load(self.b, kind, self.multiplier, j * self.width) for j in range(GROUP)]
        (codes,) = emit.requantize(self.b, [acc], factors, self.bounds, interleaved=True, branch=False)
        emit.store(self.b, codes, y)


_SLIDE_ARGS = [PTR, PTR, PTR, PTR, PTR, PTR, *[I64] * 8, FLOAT, FLOAT, I32]
WINDOWS = ((3, 1), (3, 2), (5, 1), (5, 2))


def _slide_body(size: int, kernel: int, stride: int) -> Any:
    """IR of some output rows of one block: x, zeros, w, bias, multiplier, y (of the first row), height, width, channels, output width, first row,
    rows, top, left, lo, hi, zero. ``zeros``: zero points, as many as channels.

    Before pixel p all columns of the window but the last ``stride`` are in the accumulators of the pixels that they belong to: p and those after it.
    """
    groups = tap_groups(kernel)
    along = any(group.along for group in groups)
    waiting = (kernel - 1) // stride  # pixels that were begun before

    def body(b: ir.IRBuilder, args: list[ir.Value]) -> None:
        x, zeros, w, bias, multiplier, y, height, width, channels, out_width, first, rows, top, left, *rest = args
        block = _Block(b, size, w, bias, multiplier, *rest)
        kept = [block.weights(I64(g)) for g in range(len(groups))] if kernel == 3 else []

        def row_of(row: ir.Value, r: int) -> tuple[ir.Value, ir.Value]:
            """Tap row r of an output row: its column 0 and the step to the next, or zeros and no step."""
            iy = b.add(b.sub(b.mul(row, I64(stride)), top), I64(r))
            inside = b.icmp_unsigned("<", iy, height)
            place = emit.at(b, x, b.mul(iy, b.mul(width, channels)))
            return b.select(inside, place, zeros), b.select(inside, channels, I64(0))

        def load(places: list[tuple[ir.Value, ir.Value]], ix: ir.Value) -> list[ir.Value]:
            """The taps of column ``ix``."""
            inside = b.icmp_unsigned("<", ix, width)
            at = [b.select(inside, emit.at(b, place, b.mul(ix, step)), zeros) for place, step in places]
            return [emit.load(b, emit.vector(I8, size), place) for place in at]

        def add(state: _Walk, taps: list[ir.Value], offset: int) -> _Walk:
            """A column, ``offset`` to the right of the first pixel's window, to every pixel that it belongs to."""
            pixels = [*state.pixels, block.start()] if offset == len(state.pixels) * stride else state.pixels
            recent = [*state.recent, taps[-1]][-GROUP:] if along else []
            down = [_interleave(b, taps[r : r + GROUP], size) for r in range(0, kernel - len(recent[:1]), GROUP)]
            wanted = [
                (n, i) for i in range(len(pixels)) for n, g in enumerate(groups) if g.column == offset - i * stride
            ]
            reach = max((GROUP - groups[n].taps.count(None) for n, _ in wanted if groups[n].along), default=0)
            row = _interleave(b, recent[-1:] if reach == 1 else recent, size) if reach else []
            for number, i in wanted:
                cells = row if groups[number].along else down[number % len(down)]
                weights = kept[number] if kept else block.weights(I64(number))
                pixels = [*pixels[:i], block.step(pixels[i], cells, weights), *pixels[i + 1 :]]
            return _Walk(pixels, recent[-(GROUP - 1) :])

        with emit.loop(b, rows) as (index, _, _):
            row = b.add(first, index)
            places = [row_of(row, r) for r in range(kernel)]
            origin = b.sub(I64(0), left)
            state = _Walk([], [])
            for offset in range(kernel - stride):
                state = add(state, load(places, b.add(origin, I64(offset))), offset)
            target = emit.at(b, y, b.mul(index, b.mul(out_width, channels)))
            with emit.loop(b, out_width, *state.values()) as (pixel, before, following):
                state = _Walk([before[i * GROUP : (i + 1) * GROUP] for i in range(waiting)], before[waiting * GROUP :])
                ix = b.add(origin, b.mul(pixel, I64(stride)))
                for offset in range(kernel - stride, kernel):
                    state = add(state, load(places, b.add(ix, I64(offset))), offset)
                block.finish(state.pixels[0], emit.at(b, target, b.mul(pixel, channels)))
                following += _Walk(state.pixels[1:], state.recent).values()

    return body


class _Walk(NamedTuple):
    """What is carried from column to column: accumulators of the pixels that were begun, and the last row's taps of the columns before."""

    pixels: list[list[ir.Value]]
    recent: list[ir.Value]

    def values(self) -> list[ir.Value]:
        return [v for acc in self.pixels for v in acc] + self.recent


@intrinsic
def _run(
    typingctx,
    arena,
    base,
    taps,
    groups,
    weights,
    w,
    bias,
    bias_at,
    multiplier,
    mul_at,
    y,
    pixels,
    step_x,
    step_y,
    lo,
    hi,
    zero,
    block,
):
    signature = types.void(arena, types.int64, taps, types.int64, weights, types.int64, bias, types.int64, multiplier, types.int64, types.int64,
                           types.int64, types.int64, types.int64, types.float32, types.float32, types.int32, types.int64)  # fmt: skip

    def codegen(context, b, sig, a):
        def pointer(array: int, offset: int | None) -> ir.Value:
            return emit.array_pointer(context, b, sig.args[array], a[array], None if offset is None else a[offset])

        arguments = [
            pointer(0, 1),
            pointer(2, None),
            a[3],
            pointer(4, 5),
            pointer(6, 7),
            pointer(8, 9),
            pointer(0, 10),
            *a[11:17],
        ]
        emit.choose(
            b,
            a[17],
            {i: (f"splitedge_depthwise_{size}", _RUN_ARGS, _run_body(size)) for i, size in enumerate(BLOCKS)},
            arguments,
        )
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _slide(
    typingctx, arena, x, zeros, weights, w, bias, bias_at, multiplier, mul_at, y, height, width, channels, out_width, first, rows, top, left, lo, hi,
    zero, choice,
):  # fmt: skip
    """`_slide_body` number ``choice``: of block i and window j of `WINDOWS` it is 4 i + j."""
    signature = types.void(arena, types.int64, types.int64, weights, types.int64, bias, types.int64, multiplier, types.int64,
                           *[types.int64] * 9, types.float32, types.float32, types.int32, types.int64)  # fmt: skip

    def codegen(context, b, sig, a):
        places = [(0, 1), (0, 2), (3, 4), (5, 6), (7, 8), (0, 9)]
        pointers = [emit.array_pointer(context, b, sig.args[array], a[array], a[offset]) for array, offset in places]
        bodies = {
            i * len(WINDOWS) + j: (
                f"splitedge_slide_{size}_{kernel}_{stride}",
                _SLIDE_ARGS,
                _slide_body(size, kernel, stride),
            )
            for i, size in enumerate(BLOCKS)
            for j, (kernel, stride) in enumerate(WINDOWS)
        }
        emit.choose(b, a[21], bodies, [*pointers, *a[10:21]])
        return context.get_dummy_value()

    return signature, codegen


_OFFSET = np.int32(TARGET.offset)
_BLOCK_SIZES = np.array(BLOCKS, np.int64)


@inline
def _block(channels, start):
    """The index into `BLOCKS` of the block that begins at ``start`` or, for the last one, before; as `blocks` has it."""
    block = 0
    while block + 1 < len(_BLOCK_SIZES) and (
        _BLOCK_SIZES[block] > channels or _BLOCK_SIZES[block + 1] >= channels - start
    ):
        block += 1
    return block


@inline
def _run_row(
    arena, base, taps, count, weights, w, bias, bias_at, multiplier, mul_at, y, pixels, step_x, channels, lo, hi, zero
):
    """A run of output pixels, all channels; ``taps`` are byte offsets from ``base`` for the first pixel, padded to whole groups."""
    groups = (count + GROUP - 1) // GROUP
    if channels < SMALLEST:
        for p in range(pixels):
            for c in range(channels):
                acc = bias[bias_at + c]
                for t in range(count):
                    acc += (np.int32(arena[base + taps[t] + p * step_x + c]) - _OFFSET) * np.int32(
                        np.int8(weights[w + t * channels + c])
                    )
                real = min(max(np.float32(acc) * multiplier[mul_at + c], lo), hi)
                arena[y + p * channels + c] = np.uint8(np.int32(np.rint(real)) + zero)
        return
    start = 0
    while start < channels:
        block = _block(channels, start)
        size = _BLOCK_SIZES[block]
        start = min(start, channels - size)
        _run(
            arena,
            base + start,
            taps,
            groups,
            weights,
            w,
            bias,
            bias_at,
            multiplier,
            mul_at,
            y + start,
            pixels,
            step_x,
            channels,
            lo,
            hi,
            zero,
            block,
        )
        w += groups * size * GROUP * (1 if GROUP == 4 else 2)
        bias_at += size
        mul_at += size
        start += size


_GROUPS = np.array([len(tap_groups(kernel)) for kernel in range(6)])
#: Pixels of a block of channels that are finished before the next block: few, so that their cells stay in the first-level cache.
_TURN = 64


@inline
def _slide_rows(
    arena, x, height, width, channels, weights, w, bias, bias_at, multiplier, mul_at, y, out_width, begin, end, kernel, stride, top, left, lo, hi, zero,
    zeros,
):  # fmt: skip
    """Output rows ``begin`` to ``end``, all channels."""
    groups = _GROUPS[kernel]
    window = (kernel - 3) + stride - 1  # index into `WINDOWS`
    turn = max(1, _TURN // out_width)
    for first in range(begin, end, turn):
        rows = min(turn, end - first)
        start = done = panel = 0
        while start < channels:
            block = _block(channels, start)
            size = _BLOCK_SIZES[block]
            start = min(start, channels - size)
            _slide(arena, x + start, zeros + start, weights, w + panel, bias, bias_at + done, multiplier, mul_at + done,
                   y + first * out_width * channels + start, height, width, channels, out_width, first, rows, top, left, lo, hi, zero,
                   block * len(WINDOWS) + window)  # fmt: skip
            panel += groups * size * GROUP * (1 if GROUP == 4 else 2)
            done += size
            start += size


@inline
def depthwise(
    arena, x, height, width, channels, weights, w, bias, bias_at, multiplier, mul_at, y, out_height, out_width, kernel_h, kernel_w,
    stride_h, stride_w, dilation_h, dilation_w, top, left, zero_x, lo, hi, zero, zeros, taps, part, parts,
):  # fmt: skip
    """y [OH, OW, C] from x [H, W, C]. ``zeros``: arena offset of a scratch row of W x C + slack bytes; ``taps``: scratch int64 [>= window + group]."""
    if (
        top > 0
        or left > 0
        or (out_height - 1) * stride_h + (kernel_h - 1) * dilation_h >= height
        or (out_width - 1) * stride_w + (kernel_w - 1) * dilation_w >= width
    ):
        arena[zeros : zeros + width * channels] = zero_x
    begin, end = share(out_height, part, parts)
    if _slides(channels, (kernel_h, kernel_w), (stride_h, stride_w), (dilation_h, dilation_w)):
        _slide_rows(arena, x, height, width, channels, weights, w, bias, bias_at, multiplier, mul_at, y, out_width, begin, end, kernel_h, stride_h, top,
                    left, lo, hi, zero, zeros)  # fmt: skip
        return
    count = kernel_h * kernel_w
    first = min(out_width, (left + stride_w - 1) // stride_w)
    last = (
        (width - 1 - (kernel_w - 1) * dilation_w + left) // stride_w + 1
        if width + left > (kernel_w - 1) * dilation_w
        else 0
    )
    last = max(first, min(out_width, last))
    for oy in range(begin, end):
        ox = 0
        while ox < out_width:
            inside = first <= ox < last
            pixels = last - ox if inside else 1
            for ky in range(kernel_h):
                iy = oy * stride_h - top + ky * dilation_h
                for kx in range(kernel_w):
                    ix = ox * stride_w - left + kx * dilation_w
                    tap = x + (iy * width + ix) * channels
                    if iy < 0 or iy >= height:
                        tap = zeros + (ix * channels if inside else 0)
                    elif ix < 0 or ix >= width:
                        tap = zeros
                    taps[ky * kernel_w + kx] = tap
            for t in range(count, count + GROUP):
                taps[t] = taps[0]
            _run_row(arena, 0, taps, count, weights, w, bias, bias_at, multiplier, mul_at, y + (oy * out_width + ox) * channels, pixels,
                     stride_w * channels, channels, lo, hi, zero)  # fmt: skip
            ox += pixels
