"""The operators of a transformer on float32 tensors, put together from `float_gemm` and `float_rows`.

Tensors and constants are addresses; scratch memory and some tensors are offsets into the arena. Each operator equals
its twin in `kernels.reference`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from kernels.define import inline, macro
from kernels.emit import address
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
            float_rows.gelu_row(target, count * n)
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
    """x [tokens, 3 * channels] and y [tokens, channels] as arena offsets, and the parameters of the attention."""

    x: int
    y: int
    tokens: int
    channels: int
    heads: int
    factor: np.float32
    ids: int  # offset of int32 [tokens]; -1: every token counts
    pad: int  # the id of tokens that do not count


@inline
def attention(arena, a, first_head, last_head, scratch):
    """The columns of some heads of y; ``a`` is an `Attention`, ``scratch`` the offset of `attention_scratch` bytes.

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
        _attend(base, a, head, count, place, places)


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
def _attend(base, a, head, count, place, places):
    """The products of one head: scores, softmax, and the weighted sum of the values."""
    size = a.channels // a.heads
    list_bytes, head_bytes, zeros = (a.tokens + 31) // 16 * 64, (size + 15) // 16 * 16, place + places.zeros
    scores, weights, weight_scale = place + places.scores, place + places.weights, place + places.weight_scale
    keys = Columns(place + places.key_panels, place + places.key_sum, place + places.key_scale, zeros)
    own = 4 * head * size
    values = Columns(
        place + places.value_panels, place + places.value_sum + own, place + places.value_scale + own, zeros
    )
    for first in range(0, a.tokens, BLOCK):
        some = min(BLOCK, a.tokens - first)
        query_scale, query_zero = place + places.query_scale + 4 * first, place + places.query_zero + 4 * first
        queries = QuantizedRows(place + places.queries + first * head_bytes, head_bytes, query_scale, query_zero)
        float_gemm(queries, some, size, keys, count, scores, list_bytes)
        float_rows.softmax_rows(scores, list_bytes, some, count, weights, list_bytes // 4, weight_scale)
        rows = QuantizedRows(weights, list_bytes // 4, weight_scale, zeros)
        float_gemm(rows, some, count, values, size, base + a.y + 4 * (head * size + first * a.channels), 4 * a.channels)
