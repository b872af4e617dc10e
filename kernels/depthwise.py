"""Depthwise convolution, u8 x s8 -> int32 -> u8, any window, stride, dilation and padding.

Channels run along the vector. The bytes (or words) of ``group`` taps are interleaved so that one dot step adds them all; the window is a table of
offsets, and a tap outside the plane points into a row of zero points. A block covers `BLOCKS`[i] channels; the last block of a row overlaps
the one before instead of being cut, and writes the same bytes again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels import emit, reference
from kernels.emit import FLOAT, I8, I32, I64, PTR, TARGET, Target
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


def pack_weights(w: S8) -> U8:
    """w [C, taps] int8 to bytes: for each block, each group of taps, each accumulator, [lanes, group]; zeros for missing taps.

    With fewer channels than `SMALLEST`: [taps, C] as it is.
    """
    channels, taps = w.shape
    if channels < SMALLEST:
        return np.ascontiguousarray(w.T).reshape(-1).view(np.uint8)
    padded = np.zeros((channels, -(-taps // GROUP) * GROUP), np.int8 if GROUP == 4 else np.int16)
    padded[:, :taps] = w
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
    """GROUP vectors of ``size`` channels (bytes, or words) to GROUP operands whose lanes hold one channel's GROUP taps."""
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


#: Groups of taps of the windows 3 x 3 and 5 x 5: their loops are unrolled, and the weights of the first stay in registers.
UNROLLED = [-(-taps // GROUP) for taps in (9, 25)]


def _run_body(size: int, unrolled: int | None) -> Any:
    """IR of a run of output pixels for one block: base, taps, groups, w, bias, multiplier, y, pixels, step of x, step of y, lo, hi, zero."""
    lanes = size // GROUP
    target: Target = replace(TARGET, bits=lanes * 32)

    def body(b: ir.IRBuilder, args: list[ir.Value]) -> None:
        base, taps, groups, w, bias, multiplier, y, pixels, step_x, step_y, lo, hi, zero = args
        ints, operand, width = emit.vector(I32, lanes), emit.vector(target.element, lanes * GROUP), target.bits // 8
        bounds = emit.code_bounds(b, lo, hi, zero)
        factors = [emit.load(b, emit.vector(FLOAT, lanes), multiplier, j * lanes * 4) for j in range(GROUP)]
        start = [emit.load(b, ints, bias, j * lanes * 4) for j in range(GROUP)]

        def offsets_of(g: ir.Value) -> list[ir.Value]:
            return [emit.load(b, I64, taps, b.add(b.mul(g, I64(GROUP * 8)), I64(t * 8))) for t in range(GROUP)]

        def weights_of(g: ir.Value) -> list[ir.Value]:
            panel = emit.at(b, w, b.mul(g, I64(GROUP * width)))
            return [emit.load(b, operand, panel, j * width) for j in range(GROUP)]

        def step(
            acc: list[ir.Value], origin: ir.Value, offsets: list[ir.Value], weights: list[ir.Value]
        ) -> list[ir.Value]:
            cells = _interleave(b, [emit.load(b, emit.vector(I8, size), origin, at) for at in offsets], size)
            return [emit.dot(b, acc[j], cells[j], weights[j]) for j in range(GROUP)]

        known = [offsets_of(I64(g)) for g in range(unrolled or 0)]
        kept = [weights_of(I64(g)) for g in range(unrolled or 0)] if unrolled == UNROLLED[0] else []
        with emit.loop(b, pixels) as (pixel, _, _):
            origin = emit.at(b, base, b.mul(pixel, step_x))
            acc = start
            if unrolled:
                for g in range(unrolled):
                    acc = step(acc, origin, known[g], kept[g] if kept else weights_of(I64(g)))
            else:
                with emit.loop(b, groups, *start) as (index, before, acc):
                    acc += step(before, origin, offsets_of(index), weights_of(index))
            (codes,) = emit.requantize(b, [acc], factors, bounds, interleaved=True, branch=False)
            emit.store(b, codes, y, b.mul(pixel, step_y))

    return body


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
        done, general = b.append_basic_block("run.done"), b.append_basic_block("run.general")
        known = b.switch(b.add(b.mul(a[17], I64(256)), a[3]), general)
        b.position_at_end(general)
        other = b.switch(a[17], done)
        for i, size in enumerate(BLOCKS):
            for unrolled in (*UNROLLED, None):
                name = f"splitedge_depthwise_{size}_{unrolled or 'n'}"
                block = b.append_basic_block(name)
                (other if unrolled is None else known).add_case(
                    I64(i if unrolled is None else i * 256 + unrolled), block
                )
                b.position_at_end(block)
                b.call(emit.private_function(b, name, _RUN_ARGS, _run_body(size, unrolled)), arguments)
                b.branch(done)
        b.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


_OFFSET = np.int32(TARGET.offset)
_BLOCK_SIZES = np.array(BLOCKS, np.int64)


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
        left = channels - start
        block = 0
        while block + 1 < len(_BLOCK_SIZES) and (_BLOCK_SIZES[block] > channels or _BLOCK_SIZES[block + 1] >= left):
            block += 1
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
    count = kernel_h * kernel_w
    first = min(out_width, (left + stride_w - 1) // stride_w)
    last = (
        (width - 1 - (kernel_w - 1) * dilation_w + left) // stride_w + 1
        if width + left > (kernel_w - 1) * dilation_w
        else 0
    )
    last = max(first, min(out_width, last))
    begin, end = share(out_height, part, parts)
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
