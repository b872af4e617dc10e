"""The matrix product of `kernels.gemm` with a float32 epilogue: rows quantized one by one, columns with a scale of their own.

y[r, n] = float32(sum (x[r, k] - row_zero[r]) * w[n, k]) * row_scale[r] * scale[n] + bias[n]; `reference.product`. Also the packing of weights
that exist only at run time: the keys and values of attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels import emit, gemm
from kernels.emit import FLOAT, I8, I32, I64, PTR, TARGET
from kernels.gemm import GROUP, LANES, WIDEST, WIDTH
from kernels.jit import inline

STEP = 4 // WIDTH  # products whose weights share 4 bytes of a panel
WORDS = GROUP // STEP  # such words of one column in a group
PAIRS = TARGET.pairs


def panel_bytes(n: int, k: int) -> int:
    """Bytes of the panels of n columns and k products."""
    return -(-n // LANES) * LANES * (-(-k // GROUP)) * GROUP * WIDTH


_ARGS = [PTR, I64, PTR, I64, PTR, PTR, PTR, PTR, PTR, PTR, I64, I64]


def _tile_body(height: int, vectors: int) -> Any:
    """IR of one tile: x, ldx, w, groups of K, sums of the weights, scale, bias, row scale, row zero, y, ldy in bytes, columns that are stored."""

    def body(b: ir.IRBuilder, args: list[ir.Value]) -> None:
        x, ldx, w, groups, sums, scale, bias, row_scale, row_zero, y, ldy, columns = args
        ints, floats = emit.vector(I32, LANES), emit.vector(FLOAT, LANES)
        zeros = [ir.Constant(ints, [0] * LANES)] * vectors
        acc = gemm.accumulate(b, gemm.row_pointers(b, x, ldx, height), vectors, w, groups, zeros)

        def finish(put: Callable[[ir.Value, ir.Value, int], None]) -> None:
            per_column = [
                [
                    emit.load(b, kind, base, v * LANES * 4)
                    for kind, base in ((ints, sums), (floats, scale), (floats, bias))
                ]
                for v in range(vectors)
            ]
            for r in range(height):
                factor = emit.splat(b, emit.load(b, FLOAT, row_scale, 4 * r), LANES)
                # codes less `Target.offset` were summed
                zero = emit.splat(b, b.sub(emit.load(b, I32, row_zero, 4 * r), I32(TARGET.offset)), LANES)
                target = emit.at(b, y, b.mul(ldy, I64(r)))
                for v, (total, column, offset) in enumerate(per_column):
                    centred = b.sub(acc[r * vectors + v], b.mul(total, zero))
                    real = b.fadd(b.fmul(b.fmul(b.sitofp(centred, floats), factor), column), offset)
                    put(real, emit.at(b, target, v * LANES * 4), v)

        with b.if_else(b.icmp_signed(">=", columns, I64(vectors * LANES)), likely=True) as (whole, ragged):
            with whole:
                finish(lambda real, target, _: emit.store(b, real, target))
            with ragged:
                finish(lambda real, target, v: _store_columns(b, real, target, columns, v))

    return body


def _store_columns(b: ir.IRBuilder, real: ir.Value, target: ir.Value, columns: ir.Value, v: int) -> None:
    """Only the lanes that are columns of the matrix."""
    with b.if_else(b.icmp_signed(">=", columns, I64((v + 1) * LANES))) as (then, otherwise):
        with then:
            emit.store(b, real, target)
        with otherwise, b.if_then(b.icmp_signed(">", columns, I64(v * LANES))):
            data = b.bitcast(real, emit.vector(I8, 4 * LANES))
            emit.store_first(b, data, target, b.mul(b.sub(columns, I64(v * LANES)), I64(4)))


@intrinsic
def _tile(
    typingctx, x, ldx, w, groups, sums, scale, bias, row_scale, row_zero, y, ldy, columns, vectors, height
):  # fmt: skip
    """Dispatch to the micro-kernel of ``vectors`` x ``height``; everything that is not a count is an address."""

    def codegen(context, b, sig, a):
        arguments = [b.inttoptr(v, PTR) if kind == PTR else v for v, kind in zip(a, _ARGS, strict=False)]
        done = b.append_basic_block("tile.done")
        choice = b.switch(b.add(b.mul(a[12], I64(64)), a[13]), done)
        for nv, heights in TARGET.tiles.items():
            for mr in heights:
                block = b.append_basic_block(f"tile.{mr}x{nv}")
                choice.add_case(I64(nv * 64 + mr), block)
                b.position_at_end(block)
                name = f"splitedge_float_tile_{mr}x{nv}"
                b.call(emit.private_function(b, name, _ARGS, _tile_body(mr, nv)), arguments)
                b.branch(done)
        b.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 14), codegen


@inline
def float_gemm(x, ldx, m, k, w, n, sums, scale, bias, row_scale, row_zero, y, ldy):
    """y [m, n] float32 (``ldy`` bytes from row to row) from codes x [m, k] (``ldx`` bytes) and panels w; all others are addresses.

    Reads up to ``GROUP`` - 1 bytes beyond each row of x (times zero weights), and whole vectors of sums, scale and bias. Writes only y.
    """
    groups = (k + GROUP - 1) // GROUP
    left = (n + LANES - 1) // LANES
    start = 0
    while left > 0:
        vectors = min(WIDEST, left)
        if WIDEST > 2 and left == WIDEST + 1:
            vectors = WIDEST - 1
        row = 0
        while row < m:
            height = gemm.height(vectors, m - row)
            _tile(x + row * ldx, ldx, w, groups, sums + 4 * start, scale + 4 * start, bias + 4 * start, row_scale + 4 * row,
                  row_zero + 4 * row, y + row * ldy + 4 * start, ldy, n - start, vectors, height)  # fmt: skip
            row += height
        w += vectors * LANES * groups * GROUP * WIDTH
        start += vectors * LANES
        left -= vectors


@inline
def _word(codes, at, step):
    """The weights of one column that share 4 bytes of a panel, ``step`` elements apart."""
    if WIDTH == 1:
        low = (np.uint32(codes[at]) & np.uint32(255)) | ((np.uint32(codes[at + step]) & np.uint32(255)) << np.uint32(8))
        high = (np.uint32(codes[at + 2 * step]) & np.uint32(255)) | (
            (np.uint32(codes[at + 3 * step]) & np.uint32(255)) << np.uint32(8)
        )
        return low | (high << np.uint32(16))
    return (np.uint32(codes[at]) & np.uint32(0xFFFF)) | (np.uint32(codes[at + step]) << np.uint32(16))


@inline
def _put(words, place, word, column):
    """Word of ``column`` of a group that starts at words[place:]: in order, or for `Target.pairs` its halves apart."""
    if PAIRS:
        halves = words.view(np.uint16)
        at = 2 * (place + column // LANES * LANES) + column % LANES
        halves[at], halves[at + LANES] = np.uint16(word & np.uint32(0xFFFF)), np.uint16(word >> np.uint32(16))
    else:
        words[place + column * WORDS] = word


@inline
def pack(codes, source, column_step, k_step, n, k, words, target):
    """int8 codes[source + column * column_step + i * k_step] of n columns and k products to panels at words[target:] (uint32).

    ``codes`` and ``words`` are views of one array. Like `gemm.pack_panels`, but columns beyond n hold what they held; elements up to a multiple
    of ``GROUP`` beyond k must be zeros.
    """
    groups = (k + GROUP - 1) // GROUP
    left = (n + LANES - 1) // LANES
    start = 0
    while left > 0:
        vectors = min(WIDEST, left)
        if WIDEST > 2 and left == WIDEST + 1:
            vectors = WIDEST - 1
        width = vectors * LANES
        for g in range(groups * WORDS):
            place = target + g // WORDS * width * WORDS + g % WORDS
            first = source + start * column_step + g * STEP * k_step
            count = min(width, n - start)
            if WIDTH == 1 and not PAIRS and k_step == 1 and (first | column_step) % 4 == 0:
                for c in range(count):  # the four bytes lie side by side
                    words[place + c * WORDS] = words[(first + c * column_step) >> 2]
            else:
                for c in range(count):
                    _put(words, place, _word(codes, first + c * column_step, k_step), c)
        target += groups * width * WORDS
        start += width
        left -= vectors
