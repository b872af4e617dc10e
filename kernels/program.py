"""The compiled interpreter: walks an operator table over one arena, a whole head in one call that releases the GIL.

(Many small released calls wait for the GIL at each return: 330 ms instead of 1.5 for 65 calls beside a busy Python thread.)
Nothing is checked here: `splitedge.head` has verified every number in the table before.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels import conv as conv_kernel
from kernels import depthwise as depthwise_kernel
from kernels import elementwise, rows, team, transformer
from kernels.jit import inline, kernel


class Kind(IntEnum):
    """The operators of the table."""

    CONV = 1
    DEPTHWISE = 2
    ADD = 3
    MUL = 4
    LUT = 5
    MAX_POOL = 6
    AVG_POOL = 7
    COPY_COLUMNS = 8
    TRANSPOSE = 9
    PAD = 10
    SOFTMAX = 11
    EMBED = 12
    LINEAR = 13
    NORM = 14
    ATTENTION = 15
    PATCHES = 16
    POSITION = 17
    MEAN = 18


class Field(IntEnum):
    """The columns of the integer table; offsets are bytes of the arena or elements of the constants."""

    KIND = 0
    X = 1
    Y = 2
    H = 3  # rows, where the operator sees a matrix
    W = 4
    C = 5
    OH = 6
    OW = 7
    OC = 8
    KH = 9
    KW = 10
    SH = 11
    SW = 12
    DH = 13
    DW = 14
    TOP = 15  # POSITION: rows of the table ahead of x's
    LEFT = 16
    BOTTOM = 17
    RIGHT = 18
    GROUPS = 19
    ZX = 20
    ZY = 21
    LO = 22
    HI = 23
    WEIGHT = 24
    BIAS = 25
    MULTIPLIER = 26
    SCRATCH = 27
    B = 28  # the second input
    ZB = 29
    TABLE = 30
    PERIOD = 31  # of a broadcast second input; row step of COPY_COLUMNS; 1 where AVG_POOL counts padding; `conv.Plan.turn` of CONV
    HEADS = 19  # transformers: the same columns under the names of other things
    PAD_TOKEN = 13
    RESIDUAL = 28  # arena offset, -1 for none; ATTENTION: of the token ids
    FLOATS = 30  # bias of LINEAR, beta of NORM, positions of EMBED, table of POSITION: among the multipliers
    GELU = 31
    SIZE0 = 32  # TRANSPOSE: four sizes of y and four steps in x
    STEP0 = 36


FIELDS = 40
REALS = 2  # float32 operands of an operator: multipliers of ADD, MUL, AVG_POOL; scales of SOFTMAX; epsilon of NORM, factor of ATTENTION


class Memory(NamedTuple):
    """All that a head works on: the operator table ops [n, FIELDS] int64 and reals [n, REALS] float32; one arena of activations; constants (weights:
    packed panels); scratch, a row of ints int32, floats float32 and taps int64 for each member of the team; and the team's own counters.
    """

    ops: NDArray[np.int64]
    reals: NDArray[np.float32]
    arena: NDArray[np.uint8]
    weights: NDArray[np.uint8]
    biases: NDArray[np.int32]
    multipliers: NDArray[np.float32]
    tables: NDArray[np.uint8]
    ints: NDArray[np.int32]
    floats: NDArray[np.float32]
    taps: NDArray[np.int64]
    sync: NDArray[np.int64]


def families(kinds: Iterable[int]) -> tuple[int | None, int | None]:
    """The arguments ``integers`` and ``transformers`` of `run` for a table of operators of these kinds.

    None leaves a family's operators out of the interpreter: numba compiles one for each combination of types, so that a head of convolutions does
    not wait for the compiler to finish what only transformers need.
    """
    needed = {kind >= Kind.EMBED for kind in kinds}
    return None if needed == {True} else 1, 1 if True in needed else None


@inline
def _transformer(memory, i, scratch, part, parts):
    """A part of an operator on float32 tensors, rows or heads of it; places become addresses."""
    op, real = memory.ops[i], memory.reals[i, 0]
    arena, weights, biases, multipliers = memory.arena, memory.weights, memory.biases, memory.multipliers
    kind, x, y, h, c, n = op[0], op[1], op[2], op[3], op[5], op[8]
    base, factors = rows.address(arena), rows.address(multipliers)
    a, b = team.share(h, part, parts)
    if kind == 12:
        ids, scales = arena[x + 4 * a : x + 4 * b].view(np.int32), multipliers[op[26] :]
        positions = factors + 4 * (op[30] + a * c)
        transformer.embed(ids, b - a, rows.address(weights) + op[24], n, c, scales, positions, base + y + 4 * a * c)
    elif kind == 13:
        residual = base + op[28] + 4 * a * n if op[28] >= 0 else 0
        transformer.linear(base + x + 4 * a * c, b - a, c, rows.address(weights) + op[24], n, rows.address(biases) + 4 * op[25],
                           factors + 4 * op[26], factors + 4 * op[30], op[31], residual, base + y + 4 * a * n, base + scratch)  # fmt: skip
    elif kind == 14:
        transformer.norm(
            base + x + 4 * a * c, b - a, c, factors + 4 * op[26], factors + 4 * op[30], real, base + y + 4 * a * c
        )
    elif kind == 15:
        first, last = team.share(op[19], part, parts)
        transformer.attention(arena, x, h, c, op[19], first, last, real, op[28], op[13], y, scratch)
    elif kind == 16:
        transformer.patches(arena, x, a, b, op[4], c, op[9], y)
    elif kind == 17:
        transformer.position(arena, x, a, b, op[15], c, multipliers, op[30], y)
    elif kind == 18 and part == 0:
        transformer.mean(arena, x, h, c, y)


@inline
def _pair_share(size, period, second, part, parts):
    """A part of ADD or MUL: bytes of a piece, first and last piece, offset of its second input, and that input's period."""
    if period == size:  # as large as the first input: cut anywhere
        a, b = team.share(size, part, parts)
        return 1, a, b, second + a, max(b - a, 1)
    a, b = team.share(size // period, part, parts)  # repeated: cut between its repetitions
    return period, a, b, second, period


@inline
def _integer(memory, i, scratch, member, part, parts):
    """The same of an operator on codes."""
    op, reals = memory.ops[i], memory.reals
    arena, weights, biases, multipliers, tables = (
        memory.arena,
        memory.weights,
        memory.biases,
        memory.multipliers,
        memory.tables,
    )
    kind, x, y, h, w, c = op[0], op[1], op[2], op[3], op[4], op[5]
    zx, zy = op[20], op[21]
    lo, hi, zero = np.float32(op[22] - zy), np.float32(op[23] - zy), np.int32(zy)
    if kind == 1:
        conv_kernel.conv(arena, x, h, w, c, weights, op[24], biases, op[25], multipliers, op[26], y, op[6], op[7], op[8], op[9], op[10], op[11],
                         op[12], op[13], op[14], op[15], op[16], op[19], np.uint8(zx), lo, hi, zero, scratch, op[31], part,
                         parts)  # fmt: skip
    elif kind == 2:
        depthwise_kernel.depthwise(arena, x, h, w, c, weights, op[24], biases, op[25], multipliers, op[26], y, op[6], op[7], op[9], op[10], op[11],
                                   op[12], op[13], op[14], op[15], op[16], np.uint8(zx), lo, hi, zero, scratch, memory.taps[member], part,
                                   parts)  # fmt: skip
    elif kind == 3:
        step, a, b, moved, period = _pair_share(h, op[31], op[28], part, parts)
        elementwise.add(arena, x + a * step, moved, y + a * step, (b - a) * step, period, np.float32(zx), np.float32(op[29]), reals[i, 0],
                        reals[i, 1], lo, hi, zero)  # fmt: skip
    elif kind == 4:
        step, a, b, moved, period = _pair_share(h, op[31], op[28], part, parts)
        elementwise.mul(arena, x + a * step, moved, y + a * step, (b - a) * step, period, np.int32(zx), np.int32(op[29]), reals[i, 0], lo, hi,
                        zero)  # fmt: skip
    elif kind == 5:
        a, b = team.share(h, part, parts)
        elementwise.lut(arena, x + a, y + a, b - a, tables, op[30])
    elif kind == 8:
        a, b = team.share(h, part, parts)
        elementwise.copy_columns(arena, x + a * c, y + a * op[31], b - a, c, op[31], tables, op[30])
    elif kind == 6:
        elementwise.max_pool(
            arena, x, h, w, c, y, op[6], op[7], op[9], op[10], op[11], op[12], op[15], op[16], part, parts
        )
    elif part == 0:  # what is left is small
        if kind == 7:
            elementwise.avg_pool(arena, x, h, w, c, y, op[6], op[7], op[9], op[10], op[11], op[12], op[15], op[16], op[31], np.int32(zx),
                                 reals[i, 0], lo, hi, zero, memory.ints[member])  # fmt: skip
        elif kind == 9:
            elementwise.transpose(arena, x, y, op[32:36], op[36:40])
        elif kind == 10:
            elementwise.pad2d(arena, x, h, w, c, y, op[15], op[16], op[17], op[18], np.uint8(zx))
        elif kind == 11:
            elementwise.softmax(arena, x, y, h, c, reals[i, 0], reals[i, 1], lo, hi, zero, memory.floats[member])


@inline
def _operator(memory, integers, transformers, i, scratch, member, part, parts):
    """Piece ``part`` of ``parts`` of operator i, with the scratch of ``member``."""
    own = memory.ops[i, 27] + member * scratch
    transforming = memory.ops[i, 0] >= 12
    if transformers is not None and transforming:
        _transformer(memory, i, own, part, parts)
    if integers is not None and not transforming:
        _integer(memory, i, own, member, part, parts)


@inline
def _work(memory, integers, transformers, first, base, target, scratch, member, parts):
    """Take pieces until there are none."""
    piece = team.take(memory.sync, base, target, parts)
    while piece >= 0:
        _operator(memory, integers, transformers, first + piece // parts, scratch, member, piece % parts, parts)
        team.finish(memory.sync)
        piece = team.take(memory.sync, base, target, parts)


@kernel
def run(
    memory: Memory,
    integers: int | None,
    transformers: int | None,
    start: int,
    stop: int,
    scratch: int,
    member: int,
    parts: int,
) -> None:
    """Run operators ``start`` to ``stop`` with a team of ``parts`` members; ``scratch``: bytes of the arena for each of them; see `families`.

    The caller is member 0. Another member sleeps and helps with whatever member 0 starts, until `dismiss`; its ``start`` and ``stop`` say nothing.
    """
    sync = memory.sync
    if parts == 1:
        for i in range(start, stop):
            _operator(memory, integers, transformers, i, scratch, member, member, parts)
    elif member == 0:
        pieces = (stop - start) * parts
        base = team.launch(sync, start, pieces)
        _work(memory, integers, transformers, start, base, base + pieces, scratch, member, parts)
    else:
        epoch = 0
        while team.wait(sync, epoch):
            epoch = team.load(sync, team.EPOCH)
            first, base, target = team.load(sync, team.FIRST), team.load(sync, team.BASE), team.load(sync, team.TARGET)
            if team.load(sync, team.EPOCH) == epoch:  # else these are of two epochs
                _work(memory, integers, transformers, first, base, target, scratch, member, parts)


@kernel
def dismiss(sync: NDArray[np.int64]) -> None:
    """End the team: every other member returns from `run`. Not while a frame runs."""
    team.dismiss(sync)
