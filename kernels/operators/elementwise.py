"""Integer operators without matrix products: tables, sums, pooling, moving bytes, softmax.

Tensors are offsets into one uint8 arena. Each operator writes y and reads only its inputs. Float32 steps are those of
`kernels.reference`, one IEEE operation at a time.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from kernels import emit
from kernels.define import inline, intrinsic, ir, types
from kernels.emit import FLOAT, I8, I32, I64, TARGET, Address, address
from kernels.team import share

_ROUND: Final = np.float32(emit.ROUND)  # adding and subtracting it rounds half to even
_LANES: Final = 16  # of the sum in `softmax`


@inline
def _code(real, output):
    clamped = min(max(real, output.lo), output.hi)
    return np.uint8(np.int32((clamped + _ROUND) - _ROUND) + output.zero)


@inline
def lut(arena, x, y, n, tables, table):
    """y[i] = table[x[i]]; ``table``: offset of 256 entries in ``tables``."""
    source, target, entries = arena[x : x + n], arena[y : y + n], tables[table : table + 256]
    for i in range(n):
        target[i] = entries[source[i]]


# --- sums and products of two tensors ---------------------------------------------------------------------------------

_GROUP: Final = 4 * TARGET.lanes


class Sum(NamedTuple):
    """Arguments of the vectorized sum: whole groups of `_GROUP` codes."""

    a: Address
    b: Address
    y: Address
    groups: int
    zero_a: np.float32
    zero_b: np.float32
    multiplier_a: np.float32
    multiplier_b: np.float32
    lo: np.float32
    hi: np.float32
    zero: np.int32


def _sum_body(b: ir.IRBuilder, s: Any) -> None:
    lanes = TARGET.lanes
    floats, ints = emit.vector(FLOAT, lanes), emit.vector(I32, lanes)
    bounds, most = emit.code_bounds(b, s.lo, s.hi, s.zero), emit.splat(b, s.hi, lanes)
    sides = [
        (s.a, emit.splat(b, s.zero_a, lanes), emit.splat(b, s.multiplier_a, lanes)),
        (s.b, emit.splat(b, s.zero_b, lanes), emit.splat(b, s.multiplier_b, lanes)),
    ]
    with emit.loop(b, s.groups) as (index, _, _):
        place = b.mul(index, I64(_GROUP))
        terms = []
        for base, point, factor in sides:
            codes = emit.load(b, emit.vector(I8, _GROUP), base, place)
            for v in range(4):
                own = emit.shuffle(b, codes, codes, range(v * lanes, (v + 1) * lanes))
                terms.append(b.fmul(b.fsub(b.sitofp(b.zext(own, ints), floats), point), factor))
        emit.store(b, emit.quantized(b, [b.fadd(terms[v], terms[4 + v]) for v in range(4)], most, bounds), s.y, place)


_add_groups = emit.dispatcher(Sum, {0: ("splitedge_add", _sum_body)})


class Pair(NamedTuple):
    """The inputs of `add` and `mul`: a [n], and b [period], which repeats; offsets into the arena."""

    a: int
    b: int
    n: int
    period: int
    zero_a: int
    zero_b: int


@inline
def add(arena, pair, y, multiplier_a, multiplier_b, output):
    """y = a + b; the multipliers are scale_a / scale_y and scale_b / scale_y."""
    base, period = address(arena), pair.period
    zero_a, zero_b = np.float32(pair.zero_a), np.float32(pair.zero_b)
    whole = period // _GROUP * _GROUP
    for start in range(0, pair.n, period):
        groups = Sum(
            a=base + pair.a + start,
            b=base + pair.b,
            y=base + y + start,
            groups=period // _GROUP,
            zero_a=zero_a,
            zero_b=zero_b,
            multiplier_a=multiplier_a,
            multiplier_b=multiplier_b,
            lo=output.lo,
            hi=output.hi,
            zero=output.zero,
        )
        _add_groups(groups, 0)
        for i in range(whole, period):
            first = (np.float32(arena[pair.a + start + i]) - zero_a) * multiplier_a
            second = (np.float32(arena[pair.b + i]) - zero_b) * multiplier_b
            arena[y + start + i] = _code(first + second, output)


@inline
def mul(arena, pair, y, multiplier, output):
    """y = a * b; ``multiplier``: scale_a * scale_b / scale_y."""
    period, zero_a, zero_b = pair.period, np.int32(pair.zero_a), np.int32(pair.zero_b)
    right = arena[pair.b : pair.b + period]
    for start in range(0, pair.n, period):
        left, target = arena[pair.a + start : pair.a + start + period], arena[y + start : y + start + period]
        for i in range(period):
            product = (np.int32(left[i]) - zero_a) * (np.int32(right[i]) - zero_b)
            target[i] = _code(np.float32(product) * multiplier, output)


# --- pooling ----------------------------------------------------------------------------------------------------------


@intrinsic
def _max16(typingctx, arena, target, source):
    """16 bytes at arena[target:] become the maximum of themselves and those at arena[source:]."""

    def codegen(context, b, sig, a):
        base, kind = emit.array_pointer(context, b, sig.args[0], a[0]), emit.vector(I8, 16)
        best, cell = emit.load(b, kind, base, a[1]), emit.load(b, kind, base, a[2])
        emit.store(b, b.select(b.icmp_unsigned(">", cell, best), cell, best), base, a[1])
        return context.get_dummy_value()

    return types.void(arena, types.int64, types.int64), codegen


@inline
def _inside(place, stride, before, kernel, size):
    """The part of a window that lies inside the plane, along one axis: first cell, and behind the last."""
    first = place * stride - before
    return max(first, 0), min(first + kernel, size)


@inline
def max_pool(arena, x, window, y, part):
    """Compute one part of y [OH, OW, C]; parts are ranges of output rows."""
    channels = window.channels
    whole = channels // 16 * 16
    begin, end = share(window.out_height, part)
    for oy in range(begin, end):
        y0, y1 = _inside(oy, window.stride_h, window.top, window.kernel_h, window.height)
        for ox in range(window.out_width):
            x0, x1 = _inside(ox, window.stride_w, window.left, window.kernel_w, window.width)
            target = y + (oy * window.out_width + ox) * channels
            arena[target : target + channels] = np.uint8(0)
            for iy in range(y0, y1):
                for ix in range(x0, x1):
                    cell = x + (iy * window.width + ix) * channels
                    for c in range(0, whole, 16):
                        _max16(arena, target + c, cell + c)
                    for c in range(whole, channels):
                        arena[target + c] = max(arena[target + c], arena[cell + c])


@inline
def avg_pool(arena, x, window, y, count_pad, zero_x, multiplier, output, sums):
    """y [OH, OW, C]; ``count_pad``: whether padding counts in the divisor; ``sums``: int32 scratch [C]."""
    channels = window.channels
    for oy in range(window.out_height):
        y0, y1 = _inside(oy, window.stride_h, window.top, window.kernel_h, window.height)
        for ox in range(window.out_width):
            x0, x1 = _inside(ox, window.stride_w, window.left, window.kernel_w, window.width)
            sums[:channels] = 0
            for iy in range(y0, y1):
                for ix in range(x0, x1):
                    cell = arena[x + (iy * window.width + ix) * channels :][:channels]
                    for c in range(channels):
                        sums[c] += np.int32(cell[c])
            inside = max(y1 - y0, 0) * max(x1 - x0, 0)
            factor = multiplier / np.float32(window.kernel_h * window.kernel_w if count_pad else inside)
            target = arena[y + (oy * window.out_width + ox) * channels :][:channels]
            for c in range(channels):
                target[c] = _code(np.float32(sums[c] - np.int32(inside) * zero_x) * factor, output)


# --- moving bytes -----------------------------------------------------------------------------------------------------


@inline
def copy_columns(arena, x, y, rows, columns, step, tables, table):
    """Rows of x [rows, columns] into y, ``step`` bytes from row to row, through a table unless ``table`` < 0: one input
    of Concat.
    """
    for r in range(rows):
        source, target = arena[x + r * columns :][:columns], arena[y + r * step :][:columns]
        if table < 0:
            for c in range(columns):
                target[c] = source[c]
        else:
            for c in range(columns):
                target[c] = tables[table + source[c]]


@inline
def pad2d(arena, x, height, width, channels, y, padding, value):
    """Pad x [height, width, channels] with the code ``value``; ``padding``: cells above, left, below and right."""
    top, left, bottom, right = padding
    row = (width + left + right) * channels
    arena[y : y + top * row] = value
    arena[y + (top + height) * row : y + (top + height + bottom) * row] = value
    for h in range(height):
        start = y + (top + h) * row
        arena[start : start + left * channels] = value
        source = arena[x + h * width * channels :][: width * channels]
        target = arena[start + left * channels :][: width * channels]
        for i in range(width * channels):
            target[i] = source[i]
        arena[start + (left + width) * channels : start + row] = value


@inline
def transpose(arena, x, y, sizes, steps):
    """y [sizes] (4 axes, written in order) from x; ``steps``: bytes in x from one element to the next along each axis
    of y.
    """
    i = y
    for a in range(sizes[0]):
        for b in range(sizes[1]):
            for c in range(sizes[2]):
                source = x + a * steps[0] + b * steps[1] + c * steps[2]
                for d in range(sizes[3]):
                    arena[i] = arena[source + d * steps[3]]
                    i += 1


# --- softmax ----------------------------------------------------------------------------------------------------------


@inline
def exp(x):
    """`reference.exp` of one float32; 2^n is a product of exact powers of two, n in -126..0."""
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
def softmax(arena, x, y, rows, columns, scale_x, scale_y, output, exps):
    """Softmax over the last axis; ``exps``: float32 scratch [columns + 16], whose last 16 are the lanes of the sum."""
    lanes = exps[columns : columns + _LANES]
    for r in range(rows):
        source, target = arena[x + r * columns :][:columns], arena[y + r * columns :][:columns]
        top = np.uint8(0)
        for c in range(columns):
            top = max(top, source[c])
        lanes[:] = np.float32(0.0)
        for c in range(columns):
            exps[c] = exp((np.float32(source[c]) - np.float32(top)) * scale_x)
            lanes[c % _LANES] += exps[c]
        total = lanes[0]
        for lane in range(1, _LANES):
            total = total + lanes[lane]
        for c in range(columns):
            target[c] = _code(exps[c] / total / scale_y, output)


# --- norms and resizing -----------------------------------------------------------------------------------------------


class Blocks(NamedTuple):
    """The blocks of `normalize` over x [R, channels]: ``rows`` rows each, and ``groups`` groups of channels."""

    x: int
    y: int
    rows: int
    channels: int
    groups: int


@inline
def normalize(arena, blocks, first, last, gamma, beta, epsilon, output):
    """Normalize the groups ``first`` to ``last``, counted through all blocks."""
    width, channels = blocks.channels // blocks.groups, blocks.channels
    n = np.int64(blocks.rows * width)
    for i in range(first, last):
        start = i // blocks.groups * blocks.rows * channels + i % blocks.groups * width
        column = i % blocks.groups * width
        total, squares = np.int64(0), np.int64(0)
        for r in range(blocks.rows):
            source = arena[blocks.x + start + r * channels :][:width]
            own, square = np.int32(0), np.int64(0)
            for c in range(width):
                own += np.int32(source[c])
                square += np.int64(np.int32(source[c]) * np.int32(source[c]))
            total += np.int64(own)
            squares += square
        inverse = np.float32(1.0) / np.sqrt(np.float32(n * squares - total * total) + epsilon)
        for r in range(blocks.rows):
            source = arena[blocks.x + start + r * channels :][:width]
            target = arena[blocks.y + start + r * channels :][:width]
            for c in range(width):
                scaled = np.float32(n * np.int64(source[c]) - total) * inverse
                target[c] = _code(scaled * gamma[column + c] + beta[column + c], output)


@inline
def resample(arena, x, window, y, places, weights, part):
    """Compute one part of y [OH, OW, C]; ``places`` and ``weights``: of the rows, then of the columns."""
    channels, tall, wide = window.channels, window.out_height, window.out_width
    first, last = share(tall, part)
    for oy in range(first, last):
        row, next_row = np.int64(places[oy]), min(np.int64(places[oy]) + 1, window.height - 1)
        v = weights[oy]
        for ox in range(wide):
            column = np.int64(places[tall + ox])
            next_column, u = min(column + 1, window.width - 1), weights[tall + ox]
            a = arena[x + (row * window.width + column) * channels :][:channels]
            b = arena[x + (row * window.width + next_column) * channels :][:channels]
            c = arena[x + (next_row * window.width + column) * channels :][:channels]
            d = arena[x + (next_row * window.width + next_column) * channels :][:channels]
            target = arena[y + (oy * wide + ox) * channels :][:channels]
            for i in range(channels):
                above = np.float32(a[i]) + (np.float32(b[i]) - np.float32(a[i])) * u
                below = np.float32(c[i]) + (np.float32(d[i]) - np.float32(c[i])) * u
                value = above + (below - above) * v
                target[i] = np.uint8(np.int32((value + _ROUND) - _ROUND))
