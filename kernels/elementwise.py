"""Everything that is not a product: tables, sums, pooling, moving bytes, softmax. Offsets are into one uint8 arena.

Each writes y and reads only its inputs; float32 steps are those of `kernels.reference`, one operation at a time.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from kernels import emit
from kernels.jit import inline
from kernels.team import share

_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds half to even


@inline
def _code(real, lo, hi, zero):
    clamped = min(max(real, lo), hi)
    return np.uint8(np.int32((clamped + _ROUND) - _ROUND) + zero)


@inline
def lut(arena, x, y, n, tables, table):
    """y[i] = table[x[i]]."""
    source, target, entries = arena[x : x + n], arena[y : y + n], tables[table : table + 256]
    for i in range(n):
        target[i] = entries[source[i]]


_GROUP = 4 * emit.TARGET.lanes
_ADD_ARGS = [emit.PTR, emit.PTR, emit.PTR, emit.I64, *[emit.FLOAT] * 6, emit.I32]


def _add_body(b, args):
    """IR: a, b, y, groups of `_GROUP` codes, za, zb, ma, mb, lo, hi, zero."""
    left, right, y, groups, za, zb, ma, mb, lo, hi, zero = args
    lanes = emit.TARGET.lanes
    floats, ints = emit.vector(emit.FLOAT, lanes), emit.vector(emit.I32, lanes)
    bounds, most = emit.code_bounds(b, lo, hi, zero), emit.splat(b, hi, lanes)
    sides = [
        (left, emit.splat(b, za, lanes), emit.splat(b, ma, lanes)),
        (right, emit.splat(b, zb, lanes), emit.splat(b, mb, lanes)),
    ]
    with emit.loop(b, groups) as (index, _, _):
        place = b.mul(index, emit.I64(_GROUP))
        terms = []
        for base, point, factor in sides:
            codes = emit.load(b, emit.vector(emit.I8, _GROUP), base, place)
            for v in range(4):
                own = emit.shuffle(b, codes, codes, range(v * lanes, (v + 1) * lanes))
                terms.append(b.fmul(b.fsub(b.sitofp(b.zext(own, ints), floats), point), factor))
        emit.store(b, emit.quantized(b, [b.fadd(terms[v], terms[4 + v]) for v in range(4)], most, bounds), y, place)


@intrinsic
def _add_groups(typingctx, arena, a, b, y, groups, za, zb, ma, mb, lo, hi, zero):
    """`_add_body`; a, b and y are offsets into the arena."""
    signature = types.void(arena, *[types.int64] * 4, *[types.float32] * 6, types.int32)

    def codegen(context, builder, sig, args):
        pointers = [emit.array_pointer(context, builder, sig.args[0], args[0], args[i]) for i in (1, 2, 3)]
        builder.call(emit.private_function(builder, "splitedge_add", _ADD_ARGS, _add_body), [*pointers, *args[4:]])
        return context.get_dummy_value()

    return signature, codegen


@inline
def add(arena, a, b, y, n, period, za, zb, ma, mb, lo, hi, zero):
    """``b`` repeats every ``period`` values: n for the same shape, the channels for a per-channel b."""
    for start in range(0, n, period):
        groups = period // _GROUP
        _add_groups(arena, a + start, b, y + start, groups, za, zb, ma, mb, lo, hi, zero)
        for i in range(groups * _GROUP, period):
            first = (np.float32(arena[a + start + i]) - za) * ma
            second = (np.float32(arena[b + i]) - zb) * mb
            arena[y + start + i] = _code(first + second, lo, hi, zero)


@inline
def mul(arena, a, b, y, n, period, za, zb, m, lo, hi, zero):
    for start in range(0, n, period):
        left, right, target = (
            arena[a + start : a + start + period],
            arena[b : b + period],
            arena[y + start : y + start + period],
        )
        for i in range(period):
            product = (np.int32(left[i]) - za) * (np.int32(right[i]) - zb)
            target[i] = _code(np.float32(product) * m, lo, hi, zero)


@intrinsic
def _max16(typingctx, arena, target, source):
    """The greater of 16 bytes at arena[target:] and at arena[source:], to the former."""

    def codegen(context, b, sig, a):
        base, kind = emit.array_pointer(context, b, sig.args[0], a[0]), emit.vector(emit.I8, 16)
        best, cell = emit.load(b, kind, base, a[1]), emit.load(b, kind, base, a[2])
        emit.store(b, b.select(b.icmp_unsigned(">", cell, best), cell, best), base, a[1])
        return context.get_dummy_value()

    return types.void(arena, types.int64, types.int64), codegen


@inline
def max_pool(
    arena, x, height, width, channels, y, out_height, out_width, kernel_h, kernel_w, stride_h, stride_w, top, left, part, parts
):  # fmt: skip
    """One of ``parts`` of y [OH, OW, C]."""
    whole = channels // 16 * 16
    begin, end = share(out_height, part, parts)
    for oy in range(begin, end):
        y0, y1 = max(oy * stride_h - top, 0), min(oy * stride_h - top + kernel_h, height)
        for ox in range(out_width):
            x0, x1 = max(ox * stride_w - left, 0), min(ox * stride_w - left + kernel_w, width)
            target = y + (oy * out_width + ox) * channels
            arena[target : target + channels] = np.uint8(0)
            for iy in range(y0, y1):
                for ix in range(x0, x1):
                    cell = x + (iy * width + ix) * channels
                    for c in range(0, whole, 16):
                        _max16(arena, target + c, cell + c)
                    for c in range(whole, channels):
                        arena[target + c] = max(arena[target + c], arena[cell + c])


@inline
def avg_pool(
    arena, x, height, width, channels, y, out_height, out_width, kernel_h, kernel_w, stride_h, stride_w, top, left, count_pad, zero_x, m, lo, hi,
    zero, sums,
):  # fmt: skip
    """``sums``: int32 scratch [channels]."""
    for oy in range(out_height):
        y0, y1 = max(oy * stride_h - top, 0), min(oy * stride_h - top + kernel_h, height)
        for ox in range(out_width):
            x0, x1 = max(ox * stride_w - left, 0), min(ox * stride_w - left + kernel_w, width)
            sums[:channels] = 0
            for iy in range(y0, y1):
                for ix in range(x0, x1):
                    cell = arena[x + (iy * width + ix) * channels :][:channels]
                    for c in range(channels):
                        sums[c] += np.int32(cell[c])
            inside = max(y1 - y0, 0) * max(x1 - x0, 0)
            factor = m / np.float32(kernel_h * kernel_w if count_pad else inside)
            target = arena[y + (oy * out_width + ox) * channels :][:channels]
            for c in range(channels):
                target[c] = _code(np.float32(sums[c] - np.int32(inside) * zero_x) * factor, lo, hi, zero)


@inline
def copy_columns(arena, x, y, rows, columns, step, tables, table):
    """Rows of x [rows, columns] into y with ``step`` bytes from row to row, through a table unless ``table`` < 0 (one input of Concat)."""
    for r in range(rows):
        source, target = arena[x + r * columns :][:columns], arena[y + r * step :][:columns]
        if table < 0:
            for c in range(columns):
                target[c] = source[c]
        else:
            for c in range(columns):
                target[c] = tables[table + source[c]]


@inline
def pad2d(arena, x, height, width, channels, y, top, left, bottom, right, value):
    row = (width + left + right) * channels
    arena[y : y + top * row] = value
    arena[y + (top + height) * row : y + (top + height + bottom) * row] = value
    for h in range(height):
        start = y + (top + h) * row
        arena[start : start + left * channels] = value
        source, target = (
            arena[x + h * width * channels :][: width * channels],
            arena[start + left * channels :][: width * channels],
        )
        for i in range(width * channels):
            target[i] = source[i]
        arena[start + (left + width) * channels : start + row] = value


@inline
def transpose(arena, x, y, sizes, steps):
    """y [sizes] (4 axes, written in order) from x with ``steps`` bytes from one to the next along each axis of y."""
    i = y
    for a in range(sizes[0]):
        for b in range(sizes[1]):
            for c in range(sizes[2]):
                source = x + a * steps[0] + b * steps[1] + c * steps[2]
                for d in range(sizes[3]):
                    arena[i] = arena[source + d * steps[3]]
                    i += 1


@inline
def exp(x):
    """`reference.exp` of one float32; 2^n is built by repeated squaring of exact powers, n in -126..0."""
    x = max(x, np.float32(-87.0))
    n = (x * np.float32(1.44269504) + _ROUND) - _ROUND
    r = x - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * (r * r) + r + np.float32(1.0)
    scale, half, left = np.float32(1.0), np.float32(0.5), -np.int32(n)
    while left > 0:
        if left & 1:
            scale = scale * half
        half = half * half
        left >>= 1
    return p * scale


@inline
def softmax(arena, x, y, rows, columns, scale_x, scale_y, lo, hi, zero, exps):
    """Over the last axis; ``exps``: float32 scratch [columns + 16], the last 16 are the lanes of the sum."""
    lanes = exps[columns : columns + 16]
    for r in range(rows):
        source, target = arena[x + r * columns :][:columns], arena[y + r * columns :][:columns]
        top = np.uint8(0)
        for c in range(columns):
            top = max(top, source[c])
        lanes[:] = np.float32(0.0)
        for c in range(columns):
            exps[c] = exp((np.float32(source[c]) - np.float32(top)) * scale_x)
            lanes[c % 16] += exps[c]
        total = lanes[0]
        for lane in range(1, 16):
            total = total + lanes[lane]
        for c in range(columns):
            target[c] = _code(exps[c] / total / scale_y, lo, hi, zero)
