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
from numpy.typing import NDArray

from kernels import emit, reference
from kernels.emit import FLOAT, I8, I32, I64, PTR, TARGET
from kernels.jit import inline
from kernels.reference import F32, S8, U8
from kernels.team import share

LANES = TARGET.lanes
#: Of K, in one step of the micro-kernel.
GROUP = 8 if TARGET.matrix else TARGET.group
#: Bytes of a packed weight.
WIDTH = 2 if GROUP == 2 else 1
WIDEST = max(TARGET.tiles)
#: Vectors of a tile whose codes are packed without a look at their order; 0 for none. Where a vector has no quarters they are in order anyway.
INTERLEAVED = 4 if TARGET.bits == 512 else 0
#: Whether a tile asks for weights of the next column tile while it works on its own. 512-bit steps are so fast that weights from the third-level cache
#: held them up: products of 49 x 4608 x 512 took 13 % longer. Narrower steps leave the hardware time enough.
FETCHES_AHEAD = TARGET.bits == 512


def column_tiles(vectors: int) -> Iterator[int]:
    """Split ``vectors`` columns of vectors into tiles; 5 is 3 + 2 and not 4 + 1, since a tile of one vector broadcasts for every product."""
    while vectors:
        tile = min(WIDEST, vectors)
        if WIDEST > 2 and vectors == WIDEST + 1:
            tile = WIDEST - 1
        yield tile
        vectors -= tile


def column_order(n: int) -> NDArray[np.int64]:
    """The column of each lane.

    A last vector that is not full starts at n - `LANES` and computes some columns again, so that it is stored whole. A whole tile of `INTERLEAVED`
    vectors has its columns where the epilogue's packing puts their codes in order.
    """
    order = np.arange(n)
    if n % LANES and n > LANES:
        order = np.concatenate([order[: n // LANES * LANES], order[n - LANES :]])
    start = 0
    for tile in column_tiles(-(-n // LANES)):
        columns = order[start : start + tile * LANES]
        if tile == INTERLEAVED and start + len(columns) <= n:
            columns[:] = columns.reshape(-1, tile, 4).transpose(1, 0, 2).reshape(-1)
        start += tile * LANES
    return order


def pack_weights(w: S8) -> U8:
    """w [N, K] int8 to the panels of `gemm`: `pack_panels` of `column_order`."""
    return pack_panels(w[column_order(len(w))])


def pack_panels(w: S8) -> U8:
    """w [N, K] int8 to panels as bytes: for each column tile [K / group, columns, group], zeros beyond N and K."""
    n, k = w.shape
    padded = np.zeros((-(-n // LANES) * LANES, -(-k // GROUP) * GROUP), np.int8 if WIDTH == 1 else np.int16)
    padded[:n, :k] = w
    panels, start = [], 0
    for tile in column_tiles(padded.shape[0] // LANES):
        rows = padded[start : start + tile * LANES].reshape(tile * LANES, -1, GROUP)
        panels.append(emit.pair_order(np.ascontiguousarray(rows.transpose(1, 0, 2))).reshape(-1))
        start += tile * LANES
    return np.concatenate(panels).view(np.uint8)


def pack_columns(values: F32 | reference.I32) -> Any:
    """A per-column vector for `gemm`: in `column_order`, then zeros to whole vectors."""
    return pad_columns(values[column_order(len(values))])


def pad_columns(values: F32 | reference.I32) -> Any:
    """A per-column vector padded with zeros to whole vectors."""
    return np.concatenate([values, np.zeros(-len(values) % LANES, values.dtype)])


_TILE_ARGS = [I64, PTR, *[I64] * 7, PTR, PTR, PTR, PTR, I64, FLOAT, FLOAT, I32, I64]


def _tile_body(rows: int, vectors: int) -> Any:
    """IR of ``turns`` tiles one below the other: turns, x, ldx, width, split, jump, lines, line step, groups of a line, w, bias, multiplier, y, ldy, lo,
    hi, zero, columns that are stored. ``split``: rows until a row of the plane ends, which has ``width`` of them.
    """

    def body(b: ir.IRBuilder, args: list[ir.Value]) -> None:
        turns, x, ldx, width, split, jump, lines, step, groups, w, bias, multiplier, y, ldy, lo, hi, zero, columns = (
            args
        )
        bounds = emit.code_bounds(b, lo, hi, zero)
        below = [b.mul(ld, I64(rows)) for ld in (ldx, ldy)]
        panel = b.mul(b.mul(lines, groups), I64(vectors * LANES * GROUP * WIDTH))
        next_panel, end = emit.at(b, w, panel), emit.at(b, w, b.mul(panel, I64(2)))
        with emit.loop(b, turns, x, y, split, next_panel, unroll=False) as (_, (x, y, split, ahead), following):
            start = [emit.load(b, emit.vector(I32, LANES), bias, v * LANES * 4) for v in range(vectors)]
            pointers = _turned(b, row_pointers(b, x, ldx, rows), split, jump)
            acc = accumulate(b, pointers, vectors, w, groups, start, lines, step, ahead)
            after = emit.at(b, ahead, b.mul(b.mul(lines, groups), I64(64)))
            factors = [emit.load(b, emit.vector(FLOAT, LANES), multiplier, v * LANES * 4) for v in range(vectors)]
            by_row = [acc[r * vectors : (r + 1) * vectors] for r in range(rows)]
            codes = emit.requantize(b, by_row, factors, bounds, interleaved=vectors == INTERLEAVED)
            _store_rows(b, codes, [emit.at(b, y, b.mul(ldy, I64(r))) for r in range(rows)], columns, vectors)
            left = b.sub(split, I64(rows))
            ended = b.icmp_signed("<=", left, I64(0))
            x = emit.at(b, x, b.add(below[0], b.select(ended, jump, I64(0))))
            following += [x, emit.at(b, y, below[1]), b.add(left, b.select(ended, width, I64(0)))]
            following.append(b.select(b.icmp_unsigned("<", after, end), after, next_panel))

    return body


def _store_rows(
    b: ir.IRBuilder, codes: list[ir.Value], targets: list[ir.Value], columns: ir.Value, vectors: int
) -> None:
    with b.if_else(b.icmp_signed(">=", columns, I64(vectors * LANES)), likely=True) as (whole, ragged):
        with whole:
            for row, target in zip(codes, targets, strict=True):
                emit.store(b, row, target)
        with ragged:
            for row, target in zip(codes, targets, strict=True):
                _store_ragged(b, emit.in_order(b, row) if vectors == INTERLEAVED else row, target, columns)


def row_pointers(b: ir.IRBuilder, x: ir.Value, ldx: ir.Value, rows: int) -> list[ir.Value]:
    """Where each of ``rows`` rows starts, ``ldx`` bytes apart."""
    return [emit.at(b, x, b.mul(ldx, I64(r))) for r in range(rows)]


def _turned(b: ir.IRBuilder, rows: list[ir.Value], split: ir.Value, jump: ir.Value) -> list[ir.Value]:
    """The pointers ``rows``, those from number ``split`` on moved by ``jump`` bytes."""
    straight = b.block
    with b.if_then(b.icmp_signed("<", split, I64(len(rows))), likely=False):
        moved = [
            emit.at(b, row, b.select(b.icmp_signed("<=", split, I64(r)), jump, I64(0))) for r, row in enumerate(rows)
        ]
        inside = b.block
    return emit.merge(b, straight, rows, inside, moved)


def accumulate(
    b: ir.IRBuilder,
    rows: list[ir.Value],
    vectors: int,
    w: ir.Value,
    groups: ir.Value,
    bias: list[ir.Value],
    lines: ir.Value | None = None,
    step: ir.Value | None = None,
    ahead: ir.Value | None = None,
) -> list[ir.Value]:
    """IR of the walk over K: ``bias`` (a vector for each vector of columns) and the products, for each row its vectors of columns.

    ``rows``: where each row starts. K is ``groups`` groups, or that many in each of ``lines``, ``step`` bytes apart. ``ahead``: weights that are wanted
    soon, a cache line for each turn.
    """
    acc = _start(b, bias, len(rows))
    if lines is None or step is None or ahead is None:
        *acc, _, _ = _line(b, acc, rows, I64(0), w, w, vectors, groups)
        return _by_rows(b, acc, len(rows), vectors)
    with emit.loop(b, lines, I64(0), w, ahead, *acc, unroll=False) as (_, (offset, panel, after, *before), following):
        *products, panel, after = _line(b, before, rows, offset, panel, after, vectors, groups)
        following += [b.add(offset, step), panel, after, *products]
    return _by_rows(b, following[3:], len(rows), vectors)


def _line(
    b: ir.IRBuilder,
    acc: list[ir.Value],
    rows: list[ir.Value],
    offset: ir.Value,
    w: ir.Value,
    ahead: ir.Value,
    vectors: int,
    groups: ir.Value,
) -> list[ir.Value]:
    """``acc`` and the products of ``groups`` groups that lie one after the other: activations from ``offset`` of each row on, weights from ``w`` on."""
    done: ir.Value = I64(0)
    for span in TARGET.spans:
        turns = groups if TARGET.spans == (1,) else b.udiv(b.sub(groups, done), I64(span))
        with emit.loop(b, turns, offset, w, ahead, *acc, unroll=False) as (_, (at, panel, after, *before), following):
            if FETCHES_AHEAD and vectors == WIDEST:
                emit.prefetch(b, after, level=2)
            products = _steps(b, before, rows, at, panel, vectors, span)
            size = vectors * LANES * span * GROUP * WIDTH
            following += [b.add(at, I64(span * GROUP)), emit.at(b, panel, size), emit.at(b, after, 64), *products]
        done, (offset, w, ahead, *acc) = b.mul(turns, I64(span)), following
    return [*acc, w, ahead]


def _steps(
    b: ir.IRBuilder,
    acc: list[ir.Value],
    rows: list[ir.Value],
    offset: ir.Value,
    panel: ir.Value,
    vectors: int,
    span: int,
) -> list[ir.Value]:
    """``acc`` and the products of ``span`` groups: activations at ``offset`` of each row, weights at ``panel``."""
    size = TARGET.bits // 8
    each = vectors * LANES * GROUP * WIDTH // size  # operands of weights in a group
    loaded = _activations(b, rows, offset, span)
    multiply = emit.multiply_matrices if TARGET.matrix else emit.dot
    for g in range(span):
        weights = [
            emit.load(b, emit.vector(TARGET.element, size // WIDTH), panel, (g * each + i) * size) for i in range(each)
        ]
        following: list[ir.Value] = []
        for r, row in enumerate(loaded):
            cells = _operand(b, row, g, span)
            following += [multiply(b, acc[r * each + i], cells, weight) for i, weight in enumerate(weights)]
        acc = following
    return acc


def _activations(b: ir.IRBuilder, rows: list[ir.Value], offset: ir.Value, span: int) -> list[list[ir.Value]]:
    """``span`` groups of activations at ``offset`` of each row; for `Target.matrix` of each two rows, a single row standing for both."""
    if TARGET.matrix:
        loaded = [emit.load(b, emit.vector(I8, span * GROUP), row, offset) for row in rows]
        return [list(pair) for pair in zip(loaded[::2], loaded[1::2] or loaded, strict=True)]
    if span > 1:
        return [[emit.as_operand(b, emit.load(b, emit.vector(I8, span * GROUP), row, offset))] for row in rows]
    if GROUP == 4:
        words = [emit.splat(b, emit.load(b, I32, row, offset), LANES) for row in rows]
        return [[emit.as_operand(b, b.bitcast(word, emit.vector(I8, LANES * 4)))] for word in words]
    return [[b.zext(emit.load(b, emit.vector(I8, 2), row, offset), emit.vector(TARGET.element, 2))] for row in rows]


def _operand(b: ir.IRBuilder, row: list[ir.Value], group: int, span: int) -> Any:
    """Group ``group`` of what `_activations` loaded of a row (or two), as operand of the step: in every lane, or one row beside the other."""
    if TARGET.matrix:
        first, second = row
        return emit.shuffle(
            b, first, second, [part * span * GROUP + group * GROUP + i for part in (0, 1) for i in range(GROUP)]
        )
    (cells,) = row
    if TARGET.pairs:
        return [emit.shuffle(b, cells, cells, [group * 4 + pair, group * 4 + pair + 1] * LANES) for pair in (0, 2)]
    if GROUP == 2:
        return emit.shuffle(b, cells, cells, [0, 1] * LANES)
    if span == 1:
        return cells
    words = b.bitcast(cells, emit.vector(I32, LANES))
    return b.bitcast(emit.shuffle(b, words, words, [group] * LANES), cells.type)


def _start(b: ir.IRBuilder, bias: list[ir.Value], rows: int) -> list[ir.Value]:
    """The accumulators of a tile: for each row its vectors of columns, or for each two rows 2 x 2 squares."""
    if not TARGET.matrix:
        return bias * rows
    return [emit.shuffle(b, v, v, [c, c + 1, c, c + 1]) for v in bias for c in (0, 2)] * ((rows + 1) // 2)


def _by_rows(b: ir.IRBuilder, acc: list[ir.Value], rows: int, vectors: int) -> list[ir.Value]:
    """The inverse of `_start`'s order: for each row its vectors of columns."""
    if not TARGET.matrix:
        return acc
    return [
        emit.shuffle(b, acc[square], acc[square + 1], [low, low + 1, low + 4, low + 5])
        for row in range(rows)
        for low in (row % 2 * 2,)
        for square in range(row // 2 * 2 * vectors, (row // 2 + 1) * 2 * vectors, 2)
    ]


def _store_ragged(b: ir.IRBuilder, codes: ir.Value, target: ir.Value, columns: ir.Value) -> None:
    """Store vectors of codes that are in `column_order`, the last of them in part a repetition; fewer columns than a vector has come alone."""
    parts = [emit.shuffle(b, codes, codes, range(at, at + LANES)) for at in range(0, codes.type.count, LANES)]
    for v, part in enumerate(parts[:-1]):
        emit.store(b, part, target, v * LANES)
    if len(parts) > 1:
        emit.store(b, parts[-1], target, b.sub(columns, I64(LANES)))
    else:
        emit.store_first(b, parts[-1], target, columns)


@intrinsic
def _tile(
    typingctx,
    arena,
    turns,
    x,
    ldx,
    width,
    split,
    jump,
    lines,
    step,
    groups,
    weights,
    w,
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
    """``turns`` micro-kernels of ``vectors`` x ``rows``, one below the other."""
    i64 = types.int64
    signature = types.void(arena, *[i64] * 9, weights, i64, bias, i64, multiplier, i64, i64, i64, types.float32, types.float32, types.int32,
                           i64, i64, i64)  # fmt: skip

    def codegen(context, b, sig, a):
        def pointer(array: int, offset: int) -> ir.Value:
            return emit.array_pointer(context, b, sig.args[array], a[array], a[offset])

        constants = [pointer(10, 11), pointer(12, 13), pointer(14, 15)]
        bodies = {
            vectors * 64 + rows: (f"splitedge_tile_{rows}x{vectors}", _TILE_ARGS, _tile_body(rows, vectors))
            for vectors, heights in TARGET.tiles.items()
            for rows in heights
        }
        arguments = [a[1], pointer(0, 2), *a[3:10], *constants, pointer(0, 16), *a[17:22]]
        emit.choose(b, b.add(b.mul(a[22], I64(64)), a[23]), bodies, arguments)
        return context.get_dummy_value()

    return signature, codegen


#: Dot steps that must be in flight to hide their latency; and what a tile costs beside its steps, in the same unit.
_IN_FLIGHT, _TILE_COST = 8, 1


def row_tiles(vectors: int, rows: int) -> list[int]:
    """The height of the first tile for 0, 1, 2 ... ``rows`` rows that are left, so that all tiles together take the fewest steps: 49 rows as 4 of 6
    and 5 of 5, not as 8 of 6 and a slow one of 1.
    """
    costs, first = [0], [0]
    for left in range(1, rows + 1):
        options = [
            (costs[left - h] + max(h * vectors, _IN_FLIGHT) + _TILE_COST, -h)
            for h in TARGET.tiles[vectors]
            if h <= left
        ]
        cost, height = min(options)
        costs.append(cost)
        first.append(-height)
    return first


_FEW = 64  # rows from which on the tallest tile is taken without a look at what follows
HEIGHTS = np.array([[0] * (_FEW + 1), *(row_tiles(vectors, _FEW) for vectors in range(1, WIDEST + 1))])


@inline
def height(vectors, left):
    """Rows of the next tile where ``left`` rows are left."""
    return HEIGHTS[vectors, min(left, _FEW)]


@inline
def repeats(vectors, rows, left):
    """How many tiles of ``rows`` come one after the other where ``left`` rows are left."""
    turns = max(1, (left - _FEW) // rows) if rows == HEIGHTS[vectors, _FEW] else 1
    while height(vectors, left - turns * rows) == rows:
        turns += 1
    return turns


@inline
def gemm(
    arena, x, ldx, width, row_step, lines, step, m, run, weights, w, n, bias, bias_at, multiplier, mul_at, y, ldy, lo, hi, zero, part, parts
):  # fmt: skip
    """y [m, n] = requantized x [m, k] * w + bias; offsets are in elements of their arrays. Computes one of ``parts``: of the columns, or of the rows.

    Row r of x is at x + r // width * row_step + r % width * ldx: ``lines`` runs of ``run`` bytes, ``step`` apart, which k = lines * run counts
    together. In the panels each run is padded to whole groups: so up to ``GROUP`` - 1 bytes beyond it are read (times zero weights), and the arena
    has that slack. Writes only y [m, n].
    """
    groups = (run + GROUP - 1) // GROUP
    left = (n + LANES - 1) // LANES
    first, last, row0, row1 = 0, left, 0, m
    if parts > 1:
        tiles = (left + WIDEST - 1) // WIDEST
        if tiles >= 4 * parts or tiles % parts == 0 or m < 2 * parts:
            first, last = share(tiles, part, parts)
        else:
            row0, row1 = share(m, part, parts)
    start_column, start_place, jump = row0 % width, x + row0 // width * row_step, row_step - width * ldx
    tile = start = 0
    while left > 0:
        vectors = min(WIDEST, left)
        if WIDEST > 2 and left == WIDEST + 1:
            vectors = WIDEST - 1
        if first <= tile < last:
            target, columns = y + start, n - start
            if columns < LANES <= n:  # one vector, in part a repetition of columns before it
                target, columns = y + n - LANES, LANES
            row, column, place = row0, start_column, start_place
            while row < row1:
                rows = height(
                    vectors, min(row1 - row, 2 * width - column)
                )  # a tile turns to the next row of the plane once
                turns = repeats(vectors, rows, row1 - row) if rows <= width else 1
                _tile(arena, turns, place + column * ldx, ldx, width, width - column, jump, lines, step, groups, weights, w, bias, bias_at + start,
                      multiplier, mul_at + start, target + row * ldy, ldy, lo, hi, zero, columns, vectors, rows)  # fmt: skip
                row += turns * rows
                column += turns * rows
                place += column // width * row_step
                column %= width
        w += vectors * LANES * lines * groups * GROUP * WIDTH
        start += vectors * LANES
        left -= vectors
        tile += 1
