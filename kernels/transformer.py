"""The operators of a transformer's head. Tensors and constants come as addresses, scratch as an offset into the arena.

All equal their twins in `kernels.reference`; the steps on one row are in `kernels.rows`.
"""

from __future__ import annotations

import numpy as np

from kernels import rows
from kernels.float_gemm import float_gemm, pack
from kernels.gemm import GROUP, LANES, WIDTH
from kernels.jit import inline

BLOCK = 48  # rows of a product that are finished (GELU, residual) while they lie in the second-level cache; a multiple of the tile heights


def linear_scratch(row_count: int, k: int) -> int:
    """Bytes of scratch that `linear` wants."""
    return row_count * (-(-k // 64) * 64) + 2 * (-(-row_count // 16) * 64)


def attention_scratch(tokens: int, channels: int, heads: int) -> int:
    """Bytes of scratch that `attention` wants."""
    return int(_layout(tokens, channels, heads)[-1])


@inline
def _pitch(n):
    return (n + 63) // 64 * 64


@inline
def linear(x, m, k, w, n, sums, scale, bias, gelu, residual, y, scratch):
    """y [m, n] = linear of x [m, k]; ``residual`` 0 where there is none; ``scratch``: address of `linear_scratch` bytes."""
    step = _pitch(k)
    row_scale = scratch + m * step
    row_zero = row_scale + _pitch(4 * m)
    rows.quantize_rows(x, 4 * k, m, k, scratch, step, row_scale, row_zero)
    for first in range(0, m, BLOCK):
        count = min(BLOCK, m - first)
        target = y + 4 * first * n
        float_gemm(scratch + first * step, step, count, k, w, n, sums, scale, bias, row_scale + 4 * first,
                   row_zero + 4 * first, target, 4 * n)  # fmt: skip
        if gelu:
            rows.gelu_row(target, count * n)
        if residual != 0:
            rows.add_row(target, residual + 4 * first * n, count * n)


@inline
def norm(x, m, n, gamma, beta, epsilon, y):
    """Layer norm of the rows of x [m, n]."""
    for r in range(m):
        rows.norm_row(x + 4 * r * n, n, gamma, beta, epsilon, y + 4 * r * n)


@inline
def embed(ids, count, w, vocabulary, n, scales, position, y):
    """y [count, n] from ids int32 (an array) and w int8 [vocabulary, n]; ``scales``: float32 array [vocabulary]."""
    for t in range(count):
        row = min(max(np.int64(ids[t]), 0), vocabulary - 1)
        rows.embed_row(w + row * n, n, scales[row], position + 4 * t * n, y + 4 * t * n)


@inline
def patches(arena, x, first, last, columns, channels, size, y):
    """Rows ``first`` to ``last`` of y, the squares of a picture of ``columns`` squares a row; ``x`` and ``y`` are offsets of ``arena``."""
    step = 4 * size * channels
    for t in range(first, last):
        corner = x + (t // columns * size * columns + t % columns) * step
        for line in range(size):
            source = arena[corner + line * columns * step :][:step]
            target = arena[y + (t * size + line) * step :][:step]
            for i in range(step):
                target[i] = source[i]


@inline
def position(arena, x, first, last, ahead, n, multipliers, table, y):
    """Rows ``first`` to ``last`` of y [..., n]: the table's, and x's added from row ``ahead`` on; ``x`` and ``y`` are offsets of ``arena``."""
    base = rows.address(arena)
    for t in range(first, last):
        target = arena[y + 4 * t * n :][: 4 * n].view(np.float32)
        source = multipliers[table + t * n :][:n]
        for i in range(n):
            target[i] = source[i]
        if t >= ahead:
            rows.add_row(base + y + 4 * t * n, base + x + 4 * (t - ahead) * n, n)


@inline
def mean(arena, x, count, n, y):
    """y [n] = mean of the rows of x [count, n]; ``x`` and ``y`` are offsets of ``arena``."""
    base = rows.address(arena)
    source, target = arena[x : x + 4 * n].view(np.float32), arena[y : y + 4 * n].view(np.float32)
    for i in range(n):
        target[i] = source[i]
    for t in range(1, count):
        rows.add_row(base + y, base + x + 4 * t * n, n)
    for i in range(n):
        target[i] = target[i] / np.float32(count)


def _layout(tokens, channels, heads):
    """Where in the scratch of `attention` each part starts, all multiples of 16; the last number is the size of all.

    A list has 4 bytes for each token, ``column`` parts 4 for each channel, and all are padded by a block of 16 elements at least.
    """
    size, list_bytes = channels // heads, (tokens + 31) // 16 * 64
    head_bytes, column_bytes = (size + 15) // 16 * 16, (channels + 31) // 16 * 64
    key_panel = (tokens + LANES - 1) // LANES * LANES * ((size + GROUP - 1) // GROUP) * GROUP * WIDTH
    value_panel = (size + LANES - 1) // LANES * LANES * ((tokens + GROUP - 1) // GROUP) * GROUP * WIDTH
    counted = 0
    key_scale = counted + list_bytes
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
    return (counted, key_scale, key_sum, zeros, query_scale, query_zero, queries, keys, values, value_scale, value_sum, value_inverse,
            key_panels, value_panels, scores, weights, weight_scale, weight_scale + 4 * BLOCK + 64)  # fmt: skip


_places = inline(_layout)


@inline
def _count_tokens(words, tokens, ids, pad, counted):
    """List the tokens whose id is not ``pad``, all where ``ids`` < 0; returns their number. Places are in words of 4 bytes."""
    count = 0
    for t in range(tokens):
        if ids < 0 or words[ids + t] != pad:
            words[counted + count] = np.uint32(t)
            count += 1
    return count


@inline
def _quantize_values(words, counted, count, x, row_bytes, columns, scale, inverse, codes, step, totals):
    """The values of several heads at once: one scale and one sum for each column over the tokens that count."""
    for i in range(count):
        rows.widen_columns(x + np.int64(words[counted + i]) * row_bytes, columns, scale)
    rows.column_scales(scale, columns, inverse)
    for i in range(count):
        rows.quantize_value(x + np.int64(words[counted + i]) * row_bytes, columns, inverse, codes + i * step, totals)


@inline
def attention(arena, x, tokens, channels, heads, first_head, last_head, factor, ids, pad, y, scratch):
    """The columns of some heads of y [tokens, channels] from x [tokens, 3 * channels]; ``x``, ``y``, ``scratch`` and ``ids`` (-1: every token counts) are offsets of ``arena``.

    ``ids`` int32 [tokens]. Keys and values are packed once for each head; scores pass in blocks of rows that stay in the first-level cache.
    """
    base, words, codes = rows.address(arena), arena.view(np.uint32), arena.view(np.int8)
    row_bytes, size = 12 * channels, channels // heads
    list_bytes, head_bytes, value_bytes = (tokens + 31) // 16 * 64, (size + 15) // 16 * 16, (channels + 31) // 16 * 16
    (counted, key_scale, key_sum, zeros, query_scale, query_zero, queries, keys, values, value_scale, value_sum, value_inverse,
     key_panels, value_panels, scores, weights, weight_scale, _) = _places(tokens, channels, heads)  # fmt: skip
    place = base + scratch
    counted_at = (scratch + counted) // 4
    count = _count_tokens(words, tokens, ids // 4 if ids >= 0 else -1, np.uint32(pad), counted_at)
    if count == 0:
        arena[y : y + 4 * tokens * channels] = np.uint8(0)
        return
    arena[scratch + zeros : scratch + query_scale] = np.uint8(0)
    arena[scratch + value_scale : scratch + value_inverse] = np.uint8(0)
    after = scratch + values + count * value_bytes
    arena[after : after + GROUP * value_bytes] = np.uint8(0)  # the products beyond the last token
    done = first_head * size
    _quantize_values(words, counted_at, count, base + x + 8 * channels + 4 * done, row_bytes, (last_head - first_head) * size,
                     place + value_scale + 4 * done, place + value_inverse + 4 * done, place + values + done, value_bytes,
                     place + value_sum + 4 * done)  # fmt: skip
    for head in range(first_head, last_head):
        column = base + x + 4 * head * size
        rows.quantize_keys(column + 4 * channels, row_bytes, place + counted, count, size, factor, place + keys, head_bytes,
                           place + key_scale, place + key_sum)  # fmt: skip
        rows.quantize_rows(
            column, row_bytes, tokens, size, place + queries, head_bytes, place + query_scale, place + query_zero
        )
        pack(codes, scratch + keys, head_bytes, 1, count, size, words, (scratch + key_panels) // 4)
        pack(codes, scratch + values + head * size, 1, value_bytes, size, count, words, (scratch + value_panels) // 4)
        for first in range(0, tokens, BLOCK):
            some = min(BLOCK, tokens - first)
            float_gemm(place + queries + first * head_bytes, head_bytes, some, size, place + key_panels, count, place + key_sum,
                       place + key_scale, place + zeros, place + query_scale + 4 * first, place + query_zero + 4 * first,
                       place + scores, list_bytes)  # fmt: skip
            rows.softmax_rows(
                place + scores, list_bytes, some, count, place + weights, list_bytes // 4, place + weight_scale
            )
            float_gemm(place + weights, list_bytes // 4, some, count, place + value_panels, size, place + value_sum + 4 * head * size,
                       place + value_scale + 4 * head * size, place + zeros, place + weight_scale, place + zeros,
                       base + y + 4 * (head * size + first * channels), 4 * channels)  # fmt: skip
