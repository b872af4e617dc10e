"""The integer matrix product u8 x s8 -> int32 -> u8 on packed weights, with requantization in registers.

The micro-kernel is LLVM IR. A tile of rows x vectors of accumulators walks along K; it broadcasts activations one dot
group at a time and reads weights from packed panels. `pack_weights` and `gemm` agree on the layout of the panels
through `tile_vectors`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels import emit, reference
from kernels.define import inline, ir, macro
from kernels.emit import FLOAT, I8, I32, I64, TARGET, Address
from kernels.operators.arguments import Constants
from kernels.reference import F32, S8, U8
from kernels.team import share

LANES: Final = TARGET.lanes
#: Values of K in one step of the micro-kernel.
GROUP: Final = 8 if TARGET.matrix else TARGET.group
#: Bytes of a packed weight.
WEIGHT_BYTES: Final = 2 if GROUP == 2 else 1
#: Vectors of columns in the widest tile.
WIDEST: Final = max(TARGET.tiles)
#: Vectors of a tile whose codes need no reordering after packing; 0 for none. Vectors of less than 512 bits need none
#: in any case.
INTERLEAVED: Final = 4 if TARGET.bits == 512 else 0
#: Whether a tile prefetches the weights of the next column tile. 512-bit steps are fast enough to wait for the
#: third-level cache: products of 49 x 4608 x 512 took 13 % longer without it. Narrower steps leave the hardware
#: prefetcher enough time.
PREFETCHES: Final = TARGET.bits == 512


def tile_vectors(left: int) -> int:
    """Vectors of columns in the next tile if ``left`` vectors are left.

    5 vectors become 3 + 2 and not 4 + 1, because a tile of one vector needs a broadcast for each product.
    """
    vectors = min(WIDEST, left)
    if WIDEST > 2 and left == WIDEST + 1:
        vectors = WIDEST - 1
    return vectors


next_tile = inline(tile_vectors)


def column_tiles(vectors: int) -> Iterator[int]:
    """The widths of the tiles that cover ``vectors`` vectors of columns."""
    while vectors:
        tile = tile_vectors(vectors)
        yield tile
        vectors -= tile


def column_order(n: int) -> NDArray[np.int64]:
    """The column of each lane.

    A partial last vector starts at n - `LANES` and computes some columns again, so that the kernel can store it whole.
    In a whole tile of `INTERLEAVED` vectors the columns have the order in which the epilogue packs their codes.
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
    """w [N, K] int8 to panels as bytes: for each column tile [K / group, columns, group], with zeros beyond N and K."""
    n, k = w.shape
    padded = np.zeros((-(-n // LANES) * LANES, -(-k // GROUP) * GROUP), np.int8 if WEIGHT_BYTES == 1 else np.int16)
    padded[:n, :k] = w
    panels, start = [], 0
    for tile in column_tiles(padded.shape[0] // LANES):
        rows = padded[start : start + tile * LANES].reshape(tile * LANES, -1, GROUP)
        panels.append(emit.pair_order(np.ascontiguousarray(rows.transpose(1, 0, 2))).reshape(-1))
        start += tile * LANES
    return np.concatenate(panels).view(np.uint8)


def pack_columns(values: F32 | reference.I32) -> Any:
    """A per-column vector for `gemm`: in `column_order`, then zeros up to whole vectors."""
    return pad_columns(values[column_order(len(values))])


def pad_columns(values: F32 | reference.I32) -> Any:
    """A per-column vector, padded with zeros to whole vectors."""
    return np.concatenate([values, np.zeros(-len(values) % LANES, values.dtype)])


# --- the micro-kernel -------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """Arguments of the micro-kernel: several tiles, one below the other. Steps are in bytes."""

    turns: int  # how many tiles
    x: Address  # the first row
    x_step: int
    width: int  # rows of x in one row of the plane
    split: int  # rows of x up to the end of the current row of the plane
    jump: int  # additional step at the end of a row of the plane
    lines: int  # runs of K in a row of x
    line_step: int
    groups: int  # dot groups in a run
    weights: Address
    bias: Address
    multiplier: Address
    y: Address
    y_step: int
    columns: int  # columns to store
    lo: np.float32
    hi: np.float32
    zero: np.int32


def tile_body(rows: int, vectors: int) -> Callable[[ir.IRBuilder, Tile], None]:
    """A generator of the IR for tiles of ``rows`` rows and ``vectors`` vectors of columns."""

    def body(b: ir.IRBuilder, t: Any) -> None:
        bounds = emit.code_bounds(b, t.lo, t.hi, t.zero)
        x_below, y_below = (b.mul(step, I64(rows)) for step in (t.x_step, t.y_step))
        panel = b.mul(b.mul(t.lines, t.groups), I64(vectors * LANES * GROUP * WEIGHT_BYTES))
        next_panel, end = emit.at(b, t.weights, panel), emit.at(b, t.weights, b.mul(panel, I64(2)))
        state = (t.x, t.y, t.split, next_panel)
        with emit.loop(b, t.turns, *state, unroll=False) as (_, (x, y, split, ahead), following):
            start = [emit.load(b, emit.vector(I32, LANES), t.bias, v * LANES * 4) for v in range(vectors)]
            pointers = _jumped(b, row_pointers(b, x, t.x_step, rows), split, t.jump)
            walk = Walk(t.lines, t.line_step, t.groups, ahead)
            acc = accumulate(b, pointers, vectors, t.weights, start, walk)
            after = emit.at(b, ahead, b.mul(b.mul(t.lines, t.groups), I64(emit.CACHE_LINE)))
            factors = [emit.load(b, emit.vector(FLOAT, LANES), t.multiplier, v * LANES * 4) for v in range(vectors)]
            by_row = [acc[r * vectors : (r + 1) * vectors] for r in range(rows)]
            codes = emit.requantize(b, by_row, factors, bounds, interleaved=vectors == INTERLEAVED)
            _store_rows(b, codes, row_pointers(b, y, t.y_step, rows), t.columns, vectors)
            left = b.sub(split, I64(rows))
            ended = b.icmp_signed("<=", left, I64(0))
            x = emit.at(b, x, b.add(x_below, b.select(ended, t.jump, I64(0))))
            following += [x, emit.at(b, y, y_below), b.add(left, b.select(ended, t.width, I64(0)))]
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


def row_pointers(b: ir.IRBuilder, first: ir.Value, step: ir.Value, rows: int) -> list[ir.Value]:
    """The starts of ``rows`` rows that are ``step`` bytes apart."""
    return [emit.at(b, first, b.mul(step, I64(r))) for r in range(rows)]


def _jumped(b: ir.IRBuilder, rows: list[ir.Value], split: ir.Value, jump: ir.Value) -> list[ir.Value]:
    """The pointers ``rows``; those from number ``split`` on are moved by ``jump`` bytes."""
    straight = b.block
    with b.if_then(b.icmp_signed("<", split, I64(len(rows))), likely=False):
        moved = [
            emit.at(b, row, b.select(b.icmp_signed("<=", split, I64(r)), jump, I64(0))) for r, row in enumerate(rows)
        ]
        inside = b.block
    return emit.merge(b, straight, rows, inside, moved)


class Walk(NamedTuple):
    """How a tile walks along K: ``lines`` runs of ``groups`` dot groups, ``step`` bytes apart; weights to prefetch at
    ``ahead``.
    """

    lines: ir.Value
    step: ir.Value
    groups: ir.Value
    ahead: ir.Value


def accumulate(
    b: ir.IRBuilder, rows: list[ir.Value], vectors: int, w: ir.Value, bias: list[ir.Value], walk: Walk | ir.Value
) -> list[ir.Value]:
    """IR of the walk along K: ``bias`` (one vector for each vector of columns) and the products, row by row.

    ``rows``: where each row starts. ``walk``: a `Walk`, or the number of dot groups if K is one run and nothing is
    prefetched.
    """
    acc = _start(b, bias, len(rows))
    if not isinstance(walk, Walk):
        *acc, _, _ = _line(b, _Cursor(I64(0), w, w, acc), rows, vectors, walk)
        return _by_rows(b, acc, len(rows), vectors)
    with emit.loop(b, walk.lines, I64(0), w, walk.ahead, *acc, unroll=False) as (_, state, following):
        offset, panel, after, *before = state
        *products, panel, after = _line(b, _Cursor(offset, panel, after, before), rows, vectors, walk.groups)
        following += [b.add(offset, walk.step), panel, after, *products]
    return _by_rows(b, following[3:], len(rows), vectors)


class _Cursor(NamedTuple):
    """Where a tile is: the offset in each row, the weights, the weights to prefetch, and the accumulators so far."""

    offset: ir.Value
    w: ir.Value
    ahead: ir.Value
    acc: list[ir.Value]


def _line(b: ir.IRBuilder, at: _Cursor, rows: list[ir.Value], vectors: int, groups: ir.Value) -> list[ir.Value]:
    """The accumulators after ``groups`` contiguous dot groups, the next weights, and the next weights to prefetch."""
    done: ir.Value = I64(0)
    offset, w, ahead, acc = at
    for span in TARGET.spans:
        turns = groups if TARGET.spans == (1,) else b.udiv(b.sub(groups, done), I64(span))
        with emit.loop(b, turns, offset, w, ahead, *acc, unroll=False) as (
            _,
            (place, panel, after, *before),
            following,
        ):
            if PREFETCHES and vectors == WIDEST:
                emit.prefetch(b, after, level=2)
            products = _steps(b, before, _activations(b, rows, place, span), panel, vectors, span)
            size = vectors * LANES * span * GROUP * WEIGHT_BYTES
            following += [b.add(place, I64(span * GROUP)), emit.at(b, panel, size)]
            following += [emit.at(b, after, emit.CACHE_LINE), *products]
        done, (offset, w, ahead, *acc) = b.mul(turns, I64(span)), following
    return [*acc, w, ahead]


def _steps(
    b: ir.IRBuilder, acc: list[ir.Value], loaded: list[list[ir.Value]], panel: ir.Value, vectors: int, span: int
) -> list[ir.Value]:
    """``acc`` and the products of ``span`` groups: activations from `_activations`, weights at ``panel``."""
    size = TARGET.bits // 8
    each = vectors * LANES * GROUP * WEIGHT_BYTES // size  # weight operands in a group
    multiply = emit.multiply_matrices if TARGET.matrix else emit.dot
    kind = emit.vector(TARGET.element, size // WEIGHT_BYTES)
    for g in range(span):
        weights = [emit.load(b, kind, panel, (g * each + i) * size) for i in range(each)]
        following: list[ir.Value] = []
        for r, row in enumerate(loaded):
            cells = _operand(b, row, g, span)
            following += [multiply(b, acc[r * each + i], cells, weight) for i, weight in enumerate(weights)]
        acc = following
    return acc


def _activations(b: ir.IRBuilder, rows: list[ir.Value], offset: ir.Value, span: int) -> list[list[ir.Value]]:
    """``span`` groups of activations at ``offset`` of each row. `Target.matrix`: of each two rows; a single row stands
    for both.
    """
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
    """Group ``group`` of what `_activations` loaded, as an operand of the dot step: in every lane, or two rows side by
    side.
    """
    if TARGET.matrix:
        first, second = row
        lanes = [part * span * GROUP + group * GROUP + i for part in (0, 1) for i in range(GROUP)]
        return emit.shuffle(b, first, second, lanes)
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
    """The accumulators of a tile: for each row its vectors of columns, or for each two rows squares of 2 x 2."""
    if not TARGET.matrix:
        return bias * rows
    return [emit.shuffle(b, v, v, [c, c + 1, c, c + 1]) for v in bias for c in (0, 2)] * ((rows + 1) // 2)


def _by_rows(b: ir.IRBuilder, acc: list[ir.Value], rows: int, vectors: int) -> list[ir.Value]:
    """The accumulators in the order of `_start`, sorted to: for each row its vectors of columns."""
    if not TARGET.matrix:
        return acc
    return [
        emit.shuffle(b, acc[square], acc[square + 1], [low, low + 1, low + 4, low + 5])
        for row in range(rows)
        for low in (row % 2 * 2,)
        for square in range(row // 2 * 2 * vectors, (row // 2 + 1) * 2 * vectors, 2)
    ]


def _store_ragged(b: ir.IRBuilder, codes: ir.Value, target: ir.Value, columns: ir.Value) -> None:
    """Store vectors of codes in `column_order`. The last vector repeats some columns; a single vector may have fewer
    columns than lanes.
    """
    parts = [emit.shuffle(b, codes, codes, range(at, at + LANES)) for at in range(0, codes.type.count, LANES)]
    for v, part in enumerate(parts[:-1]):
        emit.store(b, part, target, v * LANES)
    if len(parts) > 1:
        emit.store(b, parts[-1], target, b.sub(columns, I64(LANES)))
    else:
        emit.store_first(b, parts[-1], target, columns)


def tile_number(vectors: int, rows: int) -> int:
    """The number of a tile shape for `emit.dispatcher`."""
    return vectors * 64 + rows


choice_of = inline(tile_number)

_run_tiles = emit.dispatcher(
    Tile,
    {
        tile_number(vectors, rows): (f"splitedge_tile_{rows}x{vectors}", tile_body(rows, vectors))
        for vectors, heights in TARGET.tiles.items()
        for rows in heights
    },
)

# --- the walk over all tiles ------------------------------------------------------------------------------------------

#: Dot steps that must be in flight to hide their latency.
_IN_FLIGHT: Final = 8
#: Cost of a tile besides its dot steps, in dot steps.
_TILE_COST: Final = 1
#: From this number of rows on the tallest tile is always best.
_MANY_ROWS: Final = 64


def row_tiles(vectors: int, rows: int) -> list[int]:
    """The height of the next tile if 0, 1, 2 ... ``rows`` rows are left, so that all tiles together take the fewest dot
    steps.

    For example 49 rows become 4 tiles of 6 and 5 of 5, not 8 of 6 and a slow one of 1.
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


_HEIGHTS = np.array([[0] * (_MANY_ROWS + 1), *(row_tiles(vectors, _MANY_ROWS) for vectors in range(1, WIDEST + 1))])


@inline
def tile_height(vectors, left):
    """Rows of the next tile if ``left`` rows are left."""
    return _HEIGHTS[vectors, min(left, _MANY_ROWS)]


@inline
def _repeats(vectors, rows, left):
    """The number of tiles of ``rows`` rows that follow each other if ``left`` rows are left."""
    turns = max(1, (left - _MANY_ROWS) // rows) if rows == _HEIGHTS[vectors, _MANY_ROWS] else 1
    while tile_height(vectors, left - turns * rows) == rows:
        turns += 1
    return turns


@inline
def dot_groups(k):
    """Dot groups of ``k`` values of K; the last one may be partial."""
    return (k + GROUP - 1) // GROUP


class Rows(NamedTuple):
    """The rows of the left matrix x [m, k], where the activations lie in memory. Steps are in bytes.

    Row r starts at x + r // width * plane_step + r % width * step. It has ``lines`` runs of ``run`` bytes,
    ``line_step`` apart, so that k = lines * run.
    """

    x: Address
    step: int
    width: int
    plane_step: int
    lines: int
    line_step: int
    run: int


@macro
def _shares(vectors, m, part):
    """The column tiles and the rows of one part: a range of tiles and a range of rows."""
    tiles = (vectors + WIDEST - 1) // WIDEST
    if part.total == 1:
        return 0, vectors, 0, m
    if tiles >= 4 * part.total or tiles % part.total == 0 or m < 2 * part.total:
        first, last = share(tiles, part)
        return first, last, 0, m
    begin, end = share(m, part)
    return 0, vectors, begin, end


@inline
def gemm(rows, m, constants, n, y, y_step, output, part):
    """Compute one part of y [m, n] = requantize(x [m, k] * w + bias); ``rows`` is a `Rows`, ``y`` an address.

    Reads up to `GROUP` - 1 bytes beyond each run and multiplies them by zero weights; the arena has that slack. Writes
    only y.
    """
    groups = dot_groups(rows.run)
    left = (n + LANES - 1) // LANES
    first, last, begin, end = _shares(left, m, part)
    weights, tile, start = constants.weights, 0, 0
    while left > 0:
        vectors = next_tile(left)
        if first <= tile < last:
            target, columns = y + start, n - start
            if columns < LANES <= n:  # a single vector that repeats some columns
                target, columns = y + n - LANES, LANES
            own = Constants(weights, constants.bias + 4 * start, constants.multiplier + 4 * start)
            _column(rows, groups, own, begin, end, target, y_step, columns, vectors, output)
        weights += vectors * LANES * rows.lines * groups * GROUP * WEIGHT_BYTES
        start += vectors * LANES
        left -= vectors
        tile += 1


@macro
def _column(rows, groups, constants, begin, end, y, y_step, columns, vectors, output):
    """Rows ``begin`` to ``end`` of one column tile."""
    width, jump = rows.width, rows.plane_step - rows.width * rows.step
    row, column, place = begin, begin % width, rows.x + begin // width * rows.plane_step
    while row < end:
        # A tile may cross the end of a row of the plane only once.
        height = tile_height(vectors, min(end - row, 2 * width - column))
        turns = _repeats(vectors, height, end - row) if height <= width else 1
        tile = Tile(
            turns=turns,
            x=place + column * rows.step,
            x_step=rows.step,
            width=width,
            split=width - column,
            jump=jump,
            lines=rows.lines,
            line_step=rows.line_step,
            groups=groups,
            weights=constants.weights,
            bias=constants.bias,
            multiplier=constants.multiplier,
            y=y + row * y_step,
            y_step=y_step,
            columns=columns,
            lo=output.lo,
            hi=output.hi,
            zero=output.zero,
        )
        _run_tiles(tile, choice_of(vectors, height))
        row += turns * height
        column += turns * height
        place += column // width * rows.plane_step
        column %= width
