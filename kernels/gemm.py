"""u8 x s8 -> int32 -> u8 matrix product on packed weights, with the requantizing epilogue in registers.

The micro-kernel is LLVM IR: a tile of rows x vectors of accumulators walks K; activations are broadcast one group of bytes at a time, weights come
in packed panels. `pack_weights` and `gemm` agree on the panels through `column_tiles`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels import emit, reference
from kernels.emit import FLOAT, I8, I32, I64, PTR, TARGET
from kernels.jit import inline
from kernels.reference import F32, S8, U8

LANES, GROUP = TARGET.lanes, TARGET.group
WIDEST = max(TARGET.tiles)


def column_tiles(vectors: int) -> Iterator[int]:
    """Split ``vectors`` columns of vectors into tiles; 5 is 3 + 2 and not 4 + 1, since a tile of one vector broadcasts for every product."""
    while vectors:
        tile = min(WIDEST, vectors)
        if WIDEST > 2 and vectors == WIDEST + 1:
            tile = WIDEST - 1
        yield tile
        vectors -= tile


def pack_weights(w: S8) -> U8:
    """w [N, K] int8 to panels as bytes: for each column tile [K / group, columns, group], zeros beyond N and K."""
    n, k = w.shape
    padded = np.zeros((-(-n // LANES) * LANES, -(-k // GROUP) * GROUP), np.int8 if GROUP == 4 else np.int16)
    padded[:n, :k] = w
    panels, start = [], 0
    for tile in column_tiles(padded.shape[0] // LANES):
        rows = padded[start : start + tile * LANES].reshape(tile * LANES, -1, GROUP)
        panels.append(np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(-1))
        start += tile * LANES
    return np.concatenate(panels).view(np.uint8)


def pack_columns(values: F32 | reference.I32) -> Any:
    """A per-column vector padded with zeros to whole vectors."""
    return np.concatenate([values, np.zeros(-len(values) % LANES, values.dtype)])


_TILE_ARGS = [PTR, I64, PTR, I64, PTR, PTR, PTR, I64, FLOAT, FLOAT, I32, I64]


def _tile_body(rows: int, vectors: int) -> Any:
    """IR of one tile: x, ldx, w, groups of K, bias, multiplier, y, ldy, lo, hi, zero, columns that are stored."""

    def body(b: ir.IRBuilder, args: list[ir.Value]) -> None:
        x, ldx, w, groups, bias, multiplier, y, ldy, lo, hi, zero, columns = args
        start = [emit.load(b, emit.vector(I32, LANES), bias, v * LANES * 4) for v in range(vectors)]
        following = accumulate(b, rows, vectors, x, ldx, w, groups, start)
        factors = [emit.load(b, emit.vector(FLOAT, LANES), multiplier, v * LANES * 4) for v in range(vectors)]
        bounds = [emit.splat(b, value, LANES) for value in (lo, hi, zero)]
        for r in range(rows):
            for v in range(vectors):
                codes = b.trunc(
                    emit.requantize(b, following[r * vectors + v], factors[v], *bounds), emit.vector(I8, LANES)
                )
                _store_columns(b, codes, emit.at(b, y, b.add(b.mul(ldy, I64(r)), I64(v * LANES))), columns, v)

    return body


def accumulate(
    b: ir.IRBuilder, rows: int, vectors: int, x: ir.Value, ldx: ir.Value, w: ir.Value, groups: ir.Value, start: list[ir.Value]
) -> list[ir.Value]:  # fmt: skip
    """IR of the loop over K: the accumulators of ``rows`` x ``vectors``, row by row; every row starts with the vectors ``start``."""
    operand, size = emit.vector(TARGET.element, LANES * GROUP), TARGET.bits // 8
    row_pointers = [emit.at(b, x, b.mul(ldx, I64(r))) for r in range(rows)]
    with emit.loop(b, groups, *(start * rows)) as (index, acc, following):
        panel = emit.at(b, w, b.mul(index, I64(vectors * size)))
        weights = [emit.load(b, operand, panel, v * size) for v in range(vectors)]
        for r in range(rows):
            cells = _broadcast(b, row_pointers[r], b.mul(index, I64(GROUP)))
            following += [emit.dot(b, acc[r * vectors + v], cells, weights[v]) for v in range(vectors)]
    return following


def _broadcast(b: ir.IRBuilder, row: ir.Value, offset: ir.Value) -> ir.Value:
    """One group of activation bytes in every lane, as operand of the dot step."""
    if GROUP == 4:
        return b.bitcast(emit.splat(b, emit.load(b, I32, row, offset), LANES), emit.vector(I8, LANES * 4))
    words = b.zext(emit.load(b, emit.vector(I8, 2), row, offset), emit.vector(TARGET.element, 2))
    return emit.shuffle(b, words, words, [0, 1] * LANES)


def _store_columns(b: ir.IRBuilder, codes: ir.Value, target: ir.Value, columns: ir.Value, v: int) -> None:
    """Store a vector of codes, or, in the last tile, only the lanes that are columns of the matrix."""
    whole = b.icmp_signed(">=", columns, I64((v + 1) * LANES))
    with b.if_else(whole, likely=True) as (then, otherwise):
        with then:
            emit.store(b, codes, target)
        with otherwise:
            emit.store_first(b, codes, target, b.sub(columns, I64(v * LANES)))


@intrinsic
def _tile(
    typingctx,
    arena,
    x,
    ldx,
    weights,
    w,
    groups,
    bias,
    bias_at,
    multiplier,
    mul_at,
    y,
    ldy,
    lo,
    hi,
    zero,
    columns,
    vectors,
    rows,
):
    """Dispatch to the micro-kernel of ``vectors`` x ``rows``."""
    signature = types.void(arena, types.int64, types.int64, weights, types.int64, types.int64, bias, types.int64, multiplier, types.int64,
                           types.int64, types.int64, types.float32, types.float32, types.int32, types.int64, types.int64, types.int64)  # fmt: skip

    def codegen(context, b, sig, a):
        def pointer(array: int, offset: int) -> ir.Value:
            return emit.array_pointer(context, b, sig.args[array], a[array], a[offset])

        arguments = [pointer(0, 1), a[2], pointer(3, 4), a[5], pointer(6, 7), pointer(8, 9), pointer(0, 10), *a[11:16]]
        done = b.append_basic_block("tile.done")
        choice = b.switch(b.add(b.mul(a[16], I64(64)), a[17]), done)
        for nv, heights in TARGET.tiles.items():
            for mr in heights:
                block = b.append_basic_block(f"tile.{mr}x{nv}")
                choice.add_case(I64(nv * 64 + mr), block)
                b.position_at_end(block)
                b.call(emit.private_function(b, f"splitedge_tile_{mr}x{nv}", _TILE_ARGS, _tile_body(mr, nv)), arguments)
                b.branch(done)
        b.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


_HEIGHTS = np.zeros((WIDEST + 1, 4), np.int64)
for _vectors, _rows in TARGET.tiles.items():
    _HEIGHTS[_vectors, : len(_rows)] = _rows


@inline
def gemm(arena, x, ldx, m, k, weights, w, n, bias, bias_at, multiplier, mul_at, y, ldy, lo, hi, zero):
    """y [m, n] = requantized x [m, k] * w + bias; offsets are in elements of their arrays.

    Reads up to ``GROUP`` - 1 bytes beyond each row of x (times zero weights): the arena has that slack. Writes only y [m, n].
    """
    groups = (k + GROUP - 1) // GROUP
    left = (n + LANES - 1) // LANES
    start = 0
    while left > 0:
        vectors = min(WIDEST, left)
        if WIDEST > 2 and left == WIDEST + 1:
            vectors = WIDEST - 1
        row, choice = 0, 0
        while row < m:
            while _HEIGHTS[vectors, choice] > m - row:
                choice += 1
            rows = _HEIGHTS[vectors, choice]
            _tile(arena, x + row * ldx, ldx, weights, w, groups, bias, bias_at + start, multiplier, mul_at + start,
                  y + row * ldy + start, ldy, lo, hi, zero, n - start, vectors, rows)  # fmt: skip
            row += rows
        w += vectors * LANES * groups * GROUP * (1 if GROUP == 4 else 2)
        start += vectors * LANES
        left -= vectors
