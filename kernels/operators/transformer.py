"""The operators of a transformer on float32 tensors, put together from `float_gemm` and `float_rows`.

Tensors and constants are addresses; scratch memory and some tensors are offsets into the arena. Each operator equals
its twin in `kernels.reference`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from kernels.define import inline, macro
from kernels.emit import address, read_float32
from kernels.operators import float_rows
from kernels.operators.float_gemm import Columns, QuantizedRows, Source, float_gemm, pack
from kernels.operators.gemm import GROUP, LANES, WEIGHT_BYTES

#: Rows of a product that are finished (GELU, residual) while they lie in the second-level cache; a multiple of the tile
#: heights.
BLOCK: Final = 48


def linear_scratch(row_count: int, k: int) -> int:
    """Bytes of scratch that `linear` needs."""
    return row_count * (-(-k // 64) * 64) + 2 * (-(-row_count // 16) * 64)


def attention_scratch(tokens: int, channels: int, heads: int) -> int:
    """Bytes of scratch that `attention` needs."""
    return int(_scratch(tokens, channels, heads).size)


@inline
def _roundup(n):
    """``n`` rounded up to whole cache lines."""
    return (n + 63) // 64 * 64


@inline
def linear(x, m, k, columns, n, gelu, residual, y, scratch):
    """y [m, n] from x [m, k] and `Columns`; ``residual`` is 0 if there is none; ``scratch``: address of
    `linear_scratch` bytes.
    """
    step = _roundup(k)
    row_scale = scratch + m * step
    row_zero = row_scale + _roundup(4 * m)
    float_rows.quantize_rows(x, 4 * k, m, k, scratch, step, row_scale, row_zero)
    for first in range(0, m, BLOCK):
        count = min(BLOCK, m - first)
        target = y + 4 * first * n
        rows = QuantizedRows(scratch + first * step, step, row_scale + 4 * first, row_zero + 4 * first)
        float_gemm(rows, count, k, columns, n, target, 4 * n)
        if gelu:
            float_rows.gelu_row(target, count * n, target)
        if residual != 0:
            float_rows.add_row(target, residual + 4 * first * n, count * n)


@inline
def norm(x, m, n, gamma, beta, epsilon, y):
    """Layer norm of the rows of x [m, n]."""
    for r in range(m):
        float_rows.norm_row(x + 4 * r * n, n, gamma, beta, epsilon, y + 4 * r * n)


@inline
def embed(ids, count, w, vocabulary, n, scales, position, y):
    """y [count, n] from ids int32 (an array) and w int8 [vocabulary, n]; ``scales``: a float32 array [vocabulary]."""
    for t in range(count):
        row = min(max(np.int64(ids[t]), 0), vocabulary - 1)
        float_rows.embed_row(w + row * n, n, scales[row], position + 4 * t * n, y + 4 * t * n)


@inline
def patches(arena, x, first, last, columns, channels, size, y):
    """Rows ``first`` to ``last`` of y: squares of an image with ``columns`` squares in a row; ``x`` and ``y`` are
    offsets of ``arena``.
    """
    step = 4 * size * channels
    for t in range(first, last):
        corner = x + (t // columns * size * columns + t % columns) * step
        for line in range(size):
            source = arena[corner + line * columns * step :][:step]
            target = arena[y + (t * size + line) * step :][:step]
            for i in range(step):
                target[i] = source[i]


@inline
def position(arena, x, first, last, ahead, n, table, y):
    """Rows ``first`` to ``last`` of y [..., n]: those of ``table``, plus x from row ``ahead`` on; ``x`` and ``y`` are
    offsets of ``arena``.
    """
    base = address(arena)
    for t in range(first, last):
        target = arena[y + 4 * t * n :][: 4 * n].view(np.float32)
        source = table[t * n :][:n]
        for i in range(n):
            target[i] = source[i]
        if t >= ahead:
            float_rows.add_row(base + y + 4 * t * n, base + x + 4 * (t - ahead) * n, n)


@inline
def mean(arena, x, count, n, y):
    """y [n] = mean of the rows of x [count, n]; ``x`` and ``y`` are offsets of ``arena``."""
    base = address(arena)
    source, target = arena[x : x + 4 * n].view(np.float32), arena[y : y + 4 * n].view(np.float32)
    for i in range(n):
        target[i] = source[i]
    for t in range(1, count):
        float_rows.add_row(base + y, base + x + 4 * t * n, n)
    for i in range(n):
        target[i] = target[i] / np.float32(count)


@inline
def gate(x, m, n, kind, y):
    """y [m, n] = a function of the first half of the columns of x [m, 2 n], times the second half."""
    for r in range(m):
        row, target = x + 8 * r * n, y + 4 * r * n
        float_rows.function_row(kind, row, n, target)
        float_rows.mul_row(target, row + 4 * n, n)


@inline
def rms_norm(x, m, n, gamma, epsilon, y):
    """Norm without a mean of the rows of x [m, n]."""
    for r in range(m):
        float_rows.rms_row(x + 4 * r * n, n, gamma, epsilon, y + 4 * r * n)


@inline
def rotary(arena, x, first, last, n, heads, size, table, tokens, y):
    """Rows ``first`` to ``last`` of `reference.rotary`; ``x`` and ``y`` are offsets of ``arena`` of rows of n columns,
    ``table`` the address of [tokens, 2, size].
    """
    base, half = address(arena), size // 2
    for r in range(first, last):
        source, target = x + 4 * r * n, y + 4 * r * n
        own = table + 8 * (r % tokens) * size
        other = own + 4 * size
        for head in range(heads):
            low = base + source + 4 * head * size
            into = base + target + 4 * head * size
            float_rows.turn_row(low, low + 4 * half, half, own, other, into)
            float_rows.turn_row(low + 4 * half, low, half, own + 4 * half, other + 4 * half, into + 4 * half)
        done, end = 4 * heads * size, 4 * n
        kept, copied = arena[source + done : source + end], arena[target + done : target + end]
        for i in range(end - done):
            copied[i] = kept[i]


@inline
def gather(arena, x, first, last, row_bytes, rows, y):
    """Rows ``first`` to ``last`` of y: those of x that the int32 array ``rows`` names; zeros for -1."""
    for r in range(first, last):
        target = arena[y + r * row_bytes :][:row_bytes]
        if rows[r] < 0:
            target[:] = np.uint8(0)
        else:
            source = arena[x + np.int64(rows[r]) * row_bytes :][:row_bytes]
            for i in range(row_bytes):
                target[i] = source[i]


@inline
def strided(arena, x, first, last, sizes, steps, y):
    """Rows ``first`` to ``last`` of y [sizes] (4 axes; a row is the last one) from x: `reference.view` of 4-byte words."""
    words, width = arena.view(np.uint32), sizes[3]
    for r in range(first, last):
        a, b, c = r // (sizes[1] * sizes[2]), r // sizes[2] % sizes[1], r % sizes[2]
        source, target = x // 4 + a * steps[0] + b * steps[1] + c * steps[2], y // 4 + r * width
        for d in range(width):
            words[target + d] = words[source + d * steps[3]]


# --- attention --------------------------------------------------------------------------------------------------------


class Scratch(NamedTuple):
    """Where each part of the scratch of `attention` starts, and the size of all; multiples of 16 bytes."""

    counted: int  # the tokens that count, int32
    key_scale: int
    key_sum: int
    zeros: int
    query_scale: int
    query_zero: int
    queries: int
    keys: int
    values: int
    value_scale: int
    value_sum: int
    value_inverse: int
    key_panels: int
    value_panels: int
    scores: int
    weights: int
    weight_scale: int
    size: int


def _scratch(tokens: int, channels: int, heads: int) -> Scratch:
    """The layout of the scratch.

    A list has 4 bytes for each token. Parts by column have 4 bytes for each channel. Each is padded by at least 16
    elements.
    """
    size, list_bytes = channels // heads, (tokens + 31) // 16 * 64
    head_bytes, column_bytes = (size + 15) // 16 * 16, (channels + 31) // 16 * 64
    key_panel = (tokens + LANES - 1) // LANES * LANES * ((size + GROUP - 1) // GROUP) * GROUP * WEIGHT_BYTES
    value_panel = (size + LANES - 1) // LANES * LANES * ((tokens + GROUP - 1) // GROUP) * GROUP * WEIGHT_BYTES
    key_scale = list_bytes
    key_sum = key_scale + list_bytes
    zeros = key_sum + list_bytes
    query_scale = zeros + max(list_bytes, column_bytes)
    query_zero = query_scale + list_bytes
    queries = query_zero + list_bytes
    keys = queries + tokens * head_bytes
    values = keys + tokens * head_bytes
    value_scale = values + (tokens + GROUP) * column_bytes // 4
    value_sum = value_scale + column_bytes
    value_inverse = value_sum + column_bytes
    key_panels = value_inverse + column_bytes
    value_panels = key_panels + (key_panel + 63) // 64 * 64
    scores = value_panels + (value_panel + 63) // 64 * 64
    weights = scores + BLOCK * list_bytes
    weight_scale = weights + BLOCK * list_bytes // 4 + 64
    return Scratch(
        counted=0,
        key_scale=key_scale,
        key_sum=key_sum,
        zeros=zeros,
        query_scale=query_scale,
        query_zero=query_zero,
        queries=queries,
        keys=keys,
        values=values,
        value_scale=value_scale,
        value_sum=value_sum,
        value_inverse=value_inverse,
        key_panels=key_panels,
        value_panels=value_panels,
        scores=scores,
        weights=weights,
        weight_scale=weight_scale,
        size=weight_scale + 4 * BLOCK + 64,
    )


_scratch_places = inline(_scratch)


@inline
def _count_tokens(words, tokens, ids, pad, counted):
    """List the tokens whose id is not ``pad``, or all if ``ids`` < 0; return how many. Places count 4-byte words."""
    count = 0
    for t in range(tokens):
        if ids < 0 or words[ids + t] != pad:
            words[counted + count] = np.uint32(t)
            count += 1
    return count


@inline
def _quantize_values(words, counted, count, x, row_bytes, columns, place, scratch, step, done):
    """The values of several heads at once, columns from ``done`` on: one scale and one sum per column over the tokens
    that count.
    """
    scale, inverse = place + scratch.value_scale + 4 * done, place + scratch.value_inverse + 4 * done
    codes, totals = place + scratch.values + done, place + scratch.value_sum + 4 * done
    for i in range(count):
        float_rows.widen_columns(x + np.int64(words[counted + i]) * row_bytes, columns, scale)
    float_rows.column_scales(scale, columns, inverse)
    for i in range(count):
        float_rows.quantize_value(
            x + np.int64(words[counted + i]) * row_bytes, columns, inverse, codes + i * step, totals
        )


class Attention(NamedTuple):
    """x [windows * tokens, 3 * channels] and y [windows * tokens, channels] as arena offsets, and the parameters."""

    x: int
    y: int
    tokens: int
    channels: int
    heads: int
    factor: np.float32
    ids: int  # offset of int32 [tokens]; -1: every token counts
    pad: int  # the id of tokens that do not count
    bias: np.int64  # address of float32 [heads, tokens, tokens], added to the scores; 0 for none
    mask: np.int64  # address of float32 [windows, tokens, tokens], added after it; 0 for none


@inline
def attention(arena, a, first, last, scratch):
    """Some heads of y; ``a`` is an `Attention`, ``scratch`` the offset of `attention_scratch` bytes.

    The heads of the first window come first, then those of the second.
    """
    for window in range(first // a.heads, (last + a.heads - 1) // a.heads):
        rows, table = window * a.tokens, 4 * window * a.tokens * a.tokens
        own = Attention(
            a.x + 12 * rows * a.channels,
            a.y + 4 * rows * a.channels,
            a.tokens,
            a.channels,
            a.heads,
            a.factor,
            a.ids,
            a.pad,
            a.bias,
            a.mask + table if a.mask != 0 else np.int64(0),
        )
        first_head, last_head = max(first - window * a.heads, 0), min(last - window * a.heads, a.heads)
        _window(arena, own, first_head, last_head, scratch)


@inline
def _window(arena, a, first_head, last_head, scratch):
    """Some heads of one window.

    Keys and values are packed once per head. Scores pass in blocks of rows that stay in the first-level cache.
    """
    words, size = arena.view(np.uint32), a.channels // a.heads
    places = _scratch_places(a.tokens, a.channels, a.heads)
    base, value_bytes = address(arena), (a.channels + 31) // 16 * 16
    place, counted = base + scratch, (scratch + places.counted) // 4
    count = _count_tokens(words, a.tokens, a.ids // 4 if a.ids >= 0 else -1, np.uint32(a.pad), counted)
    if count == 0:
        arena[a.y : a.y + 4 * a.tokens * a.channels] = np.uint8(0)
        return
    arena[scratch + places.zeros : scratch + places.query_scale] = np.uint8(0)
    arena[scratch + places.value_scale : scratch + places.value_inverse] = np.uint8(0)
    after = scratch + places.values + count * value_bytes
    arena[after : after + GROUP * value_bytes] = np.uint8(0)  # codes beyond the last token, as `pack` requires
    done = first_head * size
    values, columns = base + a.x + 8 * a.channels + 4 * done, (last_head - first_head) * size
    _quantize_values(words, counted, count, values, 12 * a.channels, columns, place, places, value_bytes, done)
    for head in range(first_head, last_head):
        _pack_head(arena, words, a, head, count, scratch, places, value_bytes)
        _attend(arena, words, a, head, count, scratch, places)


@inline
def _add_table(arena, words, counted, count, tokens, scores, step, first, some, table):
    """Add rows ``first`` to ``first + some`` of a ``table`` [tokens, tokens], at the tokens that count, to scores.

    ``scores``: offset of rows of float32, ``step`` bytes apart.
    """
    for r in range(some):
        row, place = table + 4 * (first + r) * tokens, scores + r * step
        if count == tokens:
            float_rows.add_row(address(arena) + place, row, count)
        else:
            values = arena[place : place + 4 * count].view(np.float32)
            for i in range(count):
                values[i] = values[i] + read_float32(row + 4 * np.int64(words[counted + i]))


@macro
def _pack_head(arena, words, a, head, count, scratch, places, value_bytes):
    """Quantize the queries and keys of one head; pack its keys and values."""
    size, place, codes = a.channels // a.heads, address(arena) + scratch, arena.view(np.int8)
    column, row_bytes, head_bytes = address(arena) + a.x + 4 * head * size, 12 * a.channels, (size + 15) // 16 * 16
    keys, queries = place + places.keys, place + places.queries
    key_scale, key_sum = place + places.key_scale, place + places.key_sum
    query_scale, query_zero = place + places.query_scale, place + places.query_zero
    tokens, first_key = place + places.counted, column + 4 * a.channels
    float_rows.quantize_keys(first_key, row_bytes, tokens, count, size, a.factor, keys, head_bytes, key_scale, key_sum)
    float_rows.quantize_rows(column, row_bytes, a.tokens, size, queries, head_bytes, query_scale, query_zero)
    key_source = Source(scratch + places.keys, head_bytes, 1)
    pack(codes, key_source, count, size, words, (scratch + places.key_panels) // 4)
    value_source = Source(scratch + places.values + head * size, 1, value_bytes)
    pack(codes, value_source, size, count, words, (scratch + places.value_panels) // 4)


@macro
def _attend(arena, words, a, head, count, scratch, places):
    """The products of one head: scores, softmax, and the weighted sum of the values."""
    base = address(arena)
    size, place = a.channels // a.heads, base + scratch
    list_bytes, head_bytes, zeros = (a.tokens + 31) // 16 * 64, (size + 15) // 16 * 16, place + places.zeros
    scores, weights, weight_scale = place + places.scores, place + places.weights, place + places.weight_scale
    keys = Columns(place + places.key_panels, place + places.key_sum, place + places.key_scale, zeros)
    own = 4 * head * size
    values = Columns(
        place + places.value_panels, place + places.value_sum + own, place + places.value_scale + own, zeros
    )
    counted, table = (scratch + places.counted) // 4, 4 * head * a.tokens * a.tokens
    for first in range(0, a.tokens, BLOCK):
        some = min(BLOCK, a.tokens - first)
        query_scale, query_zero = place + places.query_scale + 4 * first, place + places.query_zero + 4 * first
        queries = QuantizedRows(place + places.queries + first * head_bytes, head_bytes, query_scale, query_zero)
        float_gemm(queries, some, size, keys, count, scores, list_bytes)
        if a.bias != 0:
            at = scratch + places.scores
            _add_table(arena, words, counted, count, a.tokens, at, list_bytes, first, some, a.bias + table)
        if a.mask != 0:
            at = scratch + places.scores
            _add_table(arena, words, counted, count, a.tokens, at, list_bytes, first, some, a.mask)
        float_rows.softmax_rows(scores, list_bytes, some, count, weights, list_bytes // 4, weight_scale)
        rows = QuantizedRows(weights, list_bytes // 4, weight_scale, zeros)
        float_gemm(rows, some, count, values, size, base + a.y + 4 * (head * size + first * a.channels), 4 * a.channels)
