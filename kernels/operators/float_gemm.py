"""The integer matrix product of `gemm` with a float32 result, for transformers: x is quantized row by row, w column by
column.

y[r, n] = float32(sum over k of (x[r, k] - row_zero[r]) * w[n, k]) * row_scale[r] * scale[n] + bias[n], as
`reference.product`. This module also packs weights that exist only at run time: the keys and values of attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from kernels import emit
from kernels.define import inline, ir, macro
from kernels.emit import FLOAT, I8, I32, I64, TARGET, Address
from kernels.operators import gemm
from kernels.operators.gemm import GROUP, LANES, WEIGHT_BYTES

#: Products whose weights share one 4-byte word of a panel.
_PER_WORD: Final = 4 // WEIGHT_BYTES
#: Words of one column in a dot group.
_WORDS: Final = GROUP // _PER_WORD
_PAIRS: Final = TARGET.pairs


class Columns(NamedTuple):
    """The right matrix: addresses of panels, of the int32 sums of each column's weights, and of float32 scales and
    biases.
    """

    weights: Address
    sums: Address
    scale: Address
    bias: Address


class QuantizedRows(NamedTuple):
    """The left matrix: addresses of uint8 codes, ``step`` bytes from row to row, and of each row's float32 scale and
    int32 zero point.
    """

    codes: Address
    step: int
    scale: Address
    zero: Address


class Tile(NamedTuple):
    """Arguments of the micro-kernel. Steps are in bytes."""

    x: Address
    x_step: int
    groups: int  # dot groups of K
    weights: Address
    sums: Address
    scale: Address
    bias: Address
    row_scale: Address
    row_zero: Address
    y: Address
    y_step: int
    columns: int  # columns to store


def _tile_body(height: int, vectors: int) -> Callable[[ir.IRBuilder, Tile], None]:
    """A generator of the IR for a tile of ``height`` rows and ``vectors`` vectors of columns."""

    def body(b: ir.IRBuilder, t: Any) -> None:
        zeros = [ir.Constant(emit.vector(I32, LANES), [0] * LANES)] * vectors
        rows = gemm.row_pointers(b, t.x, t.x_step, height)
        acc = gemm.accumulate(b, rows, vectors, t.weights, zeros, t.groups)
        with b.if_else(b.icmp_signed(">=", t.columns, I64(vectors * LANES)), likely=True) as (whole, ragged):
            with whole:
                _finish(b, t, acc, vectors, lambda real, target, _: emit.store(b, real, target))
            with ragged:
                _finish(b, t, acc, vectors, lambda real, target, v: _store_columns(b, real, target, t.columns, v))

    return body


def _finish(b: ir.IRBuilder, t: Any, acc: list[ir.Value], vectors: int, put: Callable[..., None]) -> None:
    """Convert the accumulators to float32; ``put``(values, address, vector) stores them."""
    ints, floats = emit.vector(I32, LANES), emit.vector(FLOAT, LANES)
    sources = ((ints, t.sums), (floats, t.scale), (floats, t.bias))
    per_column = [[emit.load(b, kind, base, v * LANES * 4) for kind, base in sources] for v in range(vectors)]
    for r in range(len(acc) // vectors):
        factor = emit.splat(b, emit.load(b, FLOAT, t.row_scale, 4 * r), LANES)
        # The dot step saw codes minus `Target.offset`.
        zero = emit.splat(b, b.sub(emit.load(b, I32, t.row_zero, 4 * r), I32(TARGET.offset)), LANES)
        target = emit.at(b, t.y, b.mul(t.y_step, I64(r)))
        for v, (total, column, offset) in enumerate(per_column):
            centred = b.sub(acc[r * vectors + v], b.mul(total, zero))
            real = b.fadd(b.fmul(b.fmul(b.sitofp(centred, floats), factor), column), offset)
            put(real, emit.at(b, target, v * LANES * 4), v)


def _store_columns(b: ir.IRBuilder, real: ir.Value, target: ir.Value, columns: ir.Value, v: int) -> None:
    """Store only the lanes that are columns of the matrix."""
    with b.if_else(b.icmp_signed(">=", columns, I64((v + 1) * LANES))) as (then, otherwise):
        with then:
            emit.store(b, real, target)
        with otherwise, b.if_then(b.icmp_signed(">", columns, I64(v * LANES))):
            data = b.bitcast(real, emit.vector(I8, 4 * LANES))
            emit.store_first(b, data, target, b.mul(b.sub(columns, I64(v * LANES)), I64(4)))


_run_tile = emit.dispatcher(
    Tile,
    {
        gemm.tile_number(vectors, height): (f"splitedge_float_tile_{height}x{vectors}", _tile_body(height, vectors))
        for vectors, heights in TARGET.tiles.items()
        for height in heights
    },
)


@inline
def float_gemm(rows, m, k, columns, n, y, y_step):
    """Compute y [m, n] float32, ``y_step`` bytes from row to row, from `QuantizedRows` [m, k] and `Columns` [k, n].

    Reads up to `GROUP` - 1 bytes beyond each row and multiplies them by zero weights; reads whole vectors of the sums,
    scales and biases. Writes only y.
    """
    groups = gemm.dot_groups(k)
    weights, left, start = columns.weights, (n + LANES - 1) // LANES, 0
    while left > 0:
        vectors = gemm.next_tile(left)
        row = 0
        while row < m:
            height = gemm.tile_height(vectors, m - row)
            tile = Tile(
                x=rows.codes + row * rows.step,
                x_step=rows.step,
                groups=groups,
                weights=weights,
                sums=columns.sums + 4 * start,
                scale=columns.scale + 4 * start,
                bias=columns.bias + 4 * start,
                row_scale=rows.scale + 4 * row,
                row_zero=rows.zero + 4 * row,
                y=y + row * y_step + 4 * start,
                y_step=y_step,
                columns=n - start,
            )
            _run_tile(tile, gemm.choice_of(vectors, height))
            row += height
        weights += vectors * LANES * groups * GROUP * WEIGHT_BYTES
        start += vectors * LANES
        left -= vectors


# --- packing at run time ----------------------------------------------------------------------------------------------


@inline
def _byte(codes, at):
    return np.uint32(codes[at]) & np.uint32(0xFF)


@inline
def _word(codes, at, step):
    """The weights of one column that share a word of a panel, ``step`` elements apart."""
    if WEIGHT_BYTES == 1:
        low = _byte(codes, at) | (_byte(codes, at + step) << np.uint32(8))
        high = _byte(codes, at + 2 * step) | (_byte(codes, at + 3 * step) << np.uint32(8))
        return low | (high << np.uint32(16))
    return (np.uint32(codes[at]) & np.uint32(0xFFFF)) | (np.uint32(codes[at + step]) << np.uint32(16))


@inline
def _put(words, place, word, column):
    """Store the word of ``column`` of a group at words[place:], or its halves apart for `Target.pairs`."""
    if _PAIRS:
        halves = words.view(np.uint16)
        at = 2 * (place + column // LANES * LANES) + column % LANES
        halves[at], halves[at + LANES] = np.uint16(word & np.uint32(0xFFFF)), np.uint16(word >> np.uint32(16))
    else:
        words[place + column * _WORDS] = word


class Source(NamedTuple):
    """int8 codes to pack: the index of the first, and the steps from column to column and along K, in elements."""

    first: int
    column_step: int
    k_step: int


@inline
def pack(codes, source, n, k, words, target):
    """Pack n columns of k codes (a `Source`) into panels at words[target:].

    ``codes`` int8 and ``words`` uint32 are views of one array. The panels are those of `gemm.pack_panels`, except that
    columns beyond n keep their old contents. Codes beyond k, up to a multiple of `GROUP`, must be zeros.
    """
    groups = gemm.dot_groups(k)
    left, start = (n + LANES - 1) // LANES, 0
    while left > 0:
        vectors = gemm.next_tile(left)
        width = vectors * LANES
        count = min(width, n - start)
        for g in range(groups * _WORDS):
            place = target + g // _WORDS * width * _WORDS + g % _WORDS
            first = source.first + start * source.column_step + g * _PER_WORD * source.k_step
            _pack_word(codes, source, first, count, words, place)
        target += groups * width * _WORDS
        start += width
        left -= vectors


@macro
def _pack_word(codes, source, first, count, words, place):
    """One word of each of ``count`` columns."""
    side_by_side = source.k_step == 1 and (first | source.column_step) % 4 == 0
    if WEIGHT_BYTES == 1 and not _PAIRS and side_by_side:  # the four codes are a word already
        for c in range(count):
            words[place + c * _WORDS] = words[(first + c * source.column_step) >> 2]
    else:
        for c in range(count):
            _put(words, place, _word(codes, first + c * source.column_step, source.k_step), c)
