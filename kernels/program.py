"""The compiled interpreter: walks an operator table over one arena, a whole head in one call that releases the GIL.

(Many small released calls wait for the GIL at each return: 330 ms instead of 1.5 for 65 calls beside a busy Python thread.)
Nothing is checked here: `edge_agent.head` has verified every number in the table before.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from kernels import conv as conv_kernel
from kernels import depthwise as depthwise_kernel
from kernels import elementwise, rows, transformer
from kernels import gemm as gemm_kernel
from kernels.jit import inline, kernel


class Kind(IntEnum):
    """The operators of the table."""

    GEMM = 0
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
    TOP = 15
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
    PERIOD = 31  # of a broadcast second input; row step of COPY_COLUMNS; 1 where AVG_POOL counts padding
    HEADS = 19  # transformers: the same columns under the names of other things
    PAD_TOKEN = 13
    RESIDUAL = 28  # arena offset, -1 for none; ATTENTION: of the token ids
    FLOATS = 30  # bias of LINEAR, beta of NORM, positions of EMBED: among the multipliers
    GELU = 31
    SIZE0 = 32  # TRANSPOSE: four sizes of y and four steps in x
    STEP0 = 36


FIELDS = 40
REALS = 2  # float32 operands of an operator: multipliers of ADD, MUL, AVG_POOL; scales of SOFTMAX; epsilon of NORM, factor of ATTENTION


@inline
def _transformer(op, kind, real, arena, weights, biases, multipliers):
    """The operators on float32 tensors: places become addresses."""
    x, y, h, c = op[1], op[2], op[3], op[5]
    base, factors = rows.address(arena), rows.address(multipliers)
    if kind == 12:
        scales = multipliers[op[26] :]
        transformer.embed(
            arena[x : x + 4 * h].view(np.int32),
            h,
            rows.address(weights) + op[24],
            op[8],
            c,
            scales,
            factors + 4 * op[30],
            base + y,
        )
    elif kind == 13:
        residual = base + op[28] if op[28] >= 0 else 0
        transformer.linear(base + x, h, c, rows.address(weights) + op[24], op[8], rows.address(biases) + 4 * op[25], factors + 4 * op[26],
                           factors + 4 * op[30], op[31], residual, base + y, base + op[27])  # fmt: skip
    elif kind == 14:
        transformer.norm(base + x, h, c, factors + 4 * op[26], factors + 4 * op[30], real, base + y)
    elif kind == 15:
        transformer.attention(arena, x, h, c, op[19], real, op[28], op[13], y, op[27])


@kernel
def run(
    ops: NDArray[np.int64],
    reals: NDArray[np.float32],
    start: int,
    stop: int,
    arena: NDArray[np.uint8],
    weights: NDArray[np.uint8],
    biases: NDArray[np.int32],
    multipliers: NDArray[np.float32],
    tables: NDArray[np.uint8],
    ints: NDArray[np.int32],
    floats: NDArray[np.float32],
    taps: NDArray[np.int64],
) -> None:
    """Run operators ``start`` to ``stop`` of the table ops [n, FIELDS] int64 and reals [n, REALS] float32.

    arena uint8; weights uint8 (packed panels); biases int32; multipliers float32; tables uint8; scratch: ints int32, floats float32, taps int64.
    """
    for i in range(start, stop):
        op = ops[i]
        kind, x, y, h, w, c = op[0], op[1], op[2], op[3], op[4], op[5]
        zx, zy = op[20], op[21]
        lo, hi, zero = np.float32(op[22] - zy), np.float32(op[23] - zy), np.int32(zy)
        if kind == 0:
            gemm_kernel.gemm(
                arena, x, c, h, c, weights, op[24], op[8], biases, op[25], multipliers, op[26], y, op[8], lo, hi, zero
            )
        elif kind == 1:
            conv_kernel.conv(arena, x, h, w, c, weights, op[24], biases, op[25], multipliers, op[26], y, op[6], op[7], op[8], op[9], op[10], op[11],
                             op[12], op[13], op[14], op[15], op[16], op[19], np.uint8(zx), lo, hi, zero, op[27])  # fmt: skip
        elif kind == 2:
            depthwise_kernel.depthwise(arena, x, h, w, c, weights, op[24], biases, op[25], multipliers, op[26], y, op[6], op[7], op[9], op[10], op[11],
                                       op[12], op[13], op[14], op[15], op[16], np.uint8(zx), lo, hi, zero, op[27], taps)  # fmt: skip
        elif kind == 3:
            elementwise.add(
                arena,
                x,
                op[28],
                y,
                h,
                op[31],
                np.float32(zx),
                np.float32(op[29]),
                reals[i, 0],
                reals[i, 1],
                lo,
                hi,
                zero,
            )
        elif kind == 4:
            elementwise.mul(arena, x, op[28], y, h, op[31], np.int32(zx), np.int32(op[29]), reals[i, 0], lo, hi, zero)
        elif kind == 5:
            elementwise.lut(arena, x, y, h, tables, op[30])
        elif kind == 6:
            elementwise.max_pool(arena, x, h, w, c, y, op[6], op[7], op[9], op[10], op[11], op[12], op[15], op[16])
        elif kind == 7:
            elementwise.avg_pool(arena, x, h, w, c, y, op[6], op[7], op[9], op[10], op[11], op[12], op[15], op[16], op[31], np.int32(zx),
                                 reals[i, 0], lo, hi, zero, ints)  # fmt: skip
        elif kind == 8:
            elementwise.copy_columns(arena, x, y, h, c, op[31], tables, op[30])
        elif kind == 9:
            elementwise.transpose(arena, x, y, op[32:36], op[36:40])
        elif kind == 10:
            elementwise.pad2d(arena, x, h, w, c, y, op[15], op[16], op[17], op[18], np.uint8(zx))
        elif kind == 11:
            elementwise.softmax(arena, x, y, h, c, reals[i, 0], reals[i, 1], lo, hi, zero, floats)
        elif kind >= 12:
            _transformer(op, kind, reals[i, 0], arena, weights, biases, multipliers)
