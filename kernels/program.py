"""The interpreter of a head: it walks a table of operators over one arena, in one compiled call that releases the GIL.

Many small calls would wait for the GIL at each return: 330 ms instead of 1.5 ms for 65 calls beside a busy Python
thread. Nothing is checked here, because the verifier of segments has checked every number in the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels import team
from kernels.define import inline, kernel, macro
from kernels.emit import address
from kernels.operators import conv as conv_operator
from kernels.operators import depthwise as depthwise_operator
from kernels.operators import elementwise, float_rows, transformer
from kernels.operators.arguments import Constants, OutputRange, Window
from kernels.operators.float_gemm import Columns
from kernels.team import Part


class Kind(IntEnum):
    """The operators. Those from `EMBED` on work on float32 tensors, the others and those from `NORMALIZE` on on uint8
    codes. `QUANTIZE` and `DEQUANTIZE` convert.
    """

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
    FUNCTION = 40
    GATE = 41
    RMS_NORM = 42
    SUM = 43
    ROTARY = 44
    WINDOW_ATTENTION = 45
    GATHER = 46
    QUANTIZE = 47
    DEQUANTIZE = 48
    VIEW = 49
    NORMALIZE = 60
    RESAMPLE = 61


_INTEGERS: Final = (
    "kind",  # a `Kind`
    "x",  # arena offsets of the inputs and the output
    "second",
    "y",
    "height",  # of x; rows if the operator sees a matrix, elements if it sees a vector; NORMALIZE: rows of a block
    "width",  # NORMALIZE: blocks
    "channels",
    "out_height",
    "out_width",
    "out_channels",
    "kernel_h",
    "kernel_w",
    "stride_h",
    "stride_w",
    "dilation_h",
    "dilation_w",
    "top",  # padding
    "left",
    "bottom",
    "right",
    "groups",
    "zero_x",  # zero points; PAD: the code of the padding
    "zero_second",
    "zero_y",
    "lo",  # the codes that y may have
    "hi",
    "weights",  # offset in `Memory.weights`
    "bias",  # offset in `Memory.biases`; RESAMPLE: of the rows, then the columns
    "multiplier",  # offset in `Memory.multipliers`
    "table",  # offset in `Memory.tables`; -1 for none
    "scratch",  # arena offset of the team's scratch
    "rows_per_copy",  # CONV: of `conv.Layout`
    "period",  # ADD, MUL: the second input repeats after this many codes
    "step",  # COPY_COLUMNS: bytes from row to row of y
    "count_pad",  # AVG_POOL: 1 if padding counts in the divisor
    "heads",  # ATTENTION
    "ids",  # ATTENTION: arena offset of the token ids, -1 for none
    "pad_token",  # ATTENTION: the id of tokens that do not count
    "residual",  # LINEAR: arena offset, -1 for none
    "gelu",  # LINEAR: 1 if a GELU follows
    "ahead",  # POSITION: rows of the table before those of x
    "floats",  # offset in `Memory.multipliers`: bias of LINEAR, beta of NORM and NORMALIZE, positions of EMBED and POSITION
    "function",  # FUNCTION, GATE: its place in `reference.FUNCTIONS`
    "windows",  # WINDOW_ATTENTION
    "tokens",  # ROTARY: positions of the table
    "added_bias",  # WINDOW_ATTENTION: offsets in `Memory.multipliers`, -1 for none
    "added_mask",
)
_REALS: Final = (
    "multiplier_x",  # ADD, MUL, AVG_POOL
    "multiplier_second",  # ADD
    "scale_x",  # SOFTMAX
    "scale_y",
    "epsilon",  # NORM, NORMALIZE
    "factor",  # ATTENTION
)
#: One row of the operator table. TRANSPOSE: ``sizes`` of y, and ``steps`` in x along each axis of y.
OPERATOR: Final = np.dtype(
    [
        *((name, np.int64) for name in _INTEGERS),
        ("sizes", np.int64, (4,)),
        ("steps", np.int64, (4,)),
        *((name, np.float32) for name in _REALS),
    ],
    align=True,
)


class Memory(NamedTuple):
    """The memory of a head.

    The weights are packed panels. ``ints``, ``floats`` and ``taps`` have one row of scratch for each member of the
    team; ``sync`` is the team's own.
    """

    operators: NDArray[np.void]  # [n] of `OPERATOR`
    arena: NDArray[np.uint8]
    weights: NDArray[np.uint8]
    biases: NDArray[np.int32]
    multipliers: NDArray[np.float32]
    tables: NDArray[np.uint8]
    ints: NDArray[np.int32]
    floats: NDArray[np.float32]
    taps: NDArray[np.int64]
    sync: NDArray[np.int64]


def operator_sets(kinds: Iterable[int]) -> tuple[int | None, int | None]:
    """The arguments ``integers`` and ``transformers`` of `run` for operators of these kinds.

    None leaves a set of operators out of the interpreter. Numba compiles one interpreter for each combination of types,
    so that a convolutional head does not wait for the compilation of transformers.
    """
    needed = {Kind.EMBED <= kind < Kind.NORMALIZE for kind in kinds}
    return None if needed == {True} else 1, 1 if True in needed else None


# --- operators on float32 tensors -------------------------------------------------------------------------------------


@inline
def _transformer(memory, op, scratch, part):
    """One part of an operator on float32 tensors: a range of rows, or of heads."""
    arena, channels, kind = memory.arena, op.channels, op.kind
    first, last = team.share(op.height, part)
    if kind == Kind.LINEAR:
        _linear(memory, op, scratch, first, last)
    elif kind == Kind.NORM:
        _norm(memory, op, first, last)
    elif kind == Kind.ATTENTION:
        a = transformer.Attention(
            op.x, op.y, op.height, channels, op.heads, op.factor, op.ids, op.pad_token, np.int64(0), np.int64(0)
        )
        first, last = team.share(op.heads, part)
        transformer.attention(arena, a, first, last, scratch)
    elif kind == Kind.EMBED:
        _embed(memory, op, first, last)
    elif kind == Kind.PATCHES:
        transformer.patches(arena, op.x, first, last, op.width, channels, op.kernel_h, op.y)
    elif kind == Kind.POSITION:
        transformer.position(arena, op.x, first, last, op.ahead, channels, memory.multipliers[op.floats :], op.y)
    elif kind == Kind.MEAN:
        if part.number == 0:
            transformer.mean(arena, op.x, op.height, channels, op.y)
    else:
        _more(memory, op, scratch, part, first, last)


@inline
def _more(memory, op, scratch, part, first, last):
    """The operators from `FUNCTION` on; a part is rows ``first`` to ``last``, or some heads."""
    arena, channels, kind = memory.arena, op.channels, op.kind
    base, factors = address(arena), address(memory.multipliers)
    x, y = base + op.x + 4 * first * channels, base + op.y + 4 * first * channels
    count = (last - first) * channels
    if kind == Kind.FUNCTION:
        float_rows.function_row(op.function, x, count, y)
    elif kind == Kind.GATE:
        transformer.gate(x + 4 * first * channels, last - first, channels, op.function, y)
    elif kind == Kind.RMS_NORM:
        transformer.rms_norm(x, last - first, channels, factors + 4 * op.multiplier, op.epsilon, y)
    elif kind == Kind.SUM:
        float_rows.sum_row(x, base + op.second + 4 * first * channels, count, y)
    elif kind == Kind.ROTARY:
        table, size = factors + 4 * op.floats, op.out_channels
        transformer.rotary(arena, op.x, first, last, channels, op.heads, size, table, op.tokens, op.y)
    elif kind == Kind.WINDOW_ATTENTION:
        _window_attention(memory, op, scratch, part)
    elif kind == Kind.GATHER:
        transformer.gather(arena, op.x, first, last, 4 * channels, memory.biases[op.bias :], op.y)
    elif kind == Kind.QUANTIZE:
        inverse, zero = np.float32(1.0) / op.scale_y, np.float32(op.zero_y)
        float_rows.codes_row(x, count, inverse, zero, base + op.y + first * channels)
    elif kind == Kind.VIEW:
        transformer.strided(arena, op.x, first, last, op.sizes, op.steps, op.y)
    elif kind == Kind.DEQUANTIZE:
        float_rows.values_row(base + op.x + first * channels, count, op.scale_x, np.float32(op.zero_x), y)


@macro
def _window_attention(memory, op, scratch, part):
    factors = address(memory.multipliers)
    bias = factors + 4 * op.added_bias if op.added_bias >= 0 else np.int64(0)
    mask = factors + 4 * op.added_mask if op.added_mask >= 0 else np.int64(0)
    a = transformer.Attention(op.x, op.y, op.height, op.channels, op.heads, op.factor, op.ids, op.pad_token, bias, mask)
    first, last = team.share(op.windows * op.heads, part)
    transformer.attention(memory.arena, a, first, last, scratch)


@macro
def _linear(memory, op, scratch, first, last):
    base, factors = address(memory.arena), address(memory.multipliers)
    columns = Columns(
        address(memory.weights) + op.weights,
        address(memory.biases) + 4 * op.bias,
        factors + 4 * op.multiplier,
        factors + 4 * op.floats,
    )
    k, n = op.channels, op.out_channels
    residual = base + op.residual + 4 * first * n if op.residual >= 0 else 0
    x, y = base + op.x + 4 * first * k, base + op.y + 4 * first * n
    transformer.linear(x, last - first, k, columns, n, op.gelu, residual, y, base + scratch)


@macro
def _norm(memory, op, first, last):
    base, factors, n = address(memory.arena), address(memory.multipliers), op.channels
    gamma, beta = factors + 4 * op.multiplier, factors + 4 * op.floats
    x, y = base + op.x + 4 * first * n, base + op.y + 4 * first * n
    transformer.norm(x, last - first, n, gamma, beta, op.epsilon, y)


@macro
def _embed(memory, op, first, last):
    n, w = op.channels, address(memory.weights) + op.weights
    ids = memory.arena[op.x + 4 * first : op.x + 4 * last].view(np.int32)
    scales = memory.multipliers[op.multiplier :]
    positions = address(memory.multipliers) + 4 * (op.floats + first * n)
    y = address(memory.arena) + op.y + 4 * first * n
    transformer.embed(ids, last - first, w, op.out_channels, n, scales, positions, y)


# --- operators on codes -----------------------------------------------------------------------------------------------


@macro
def _window(op):
    return Window(
        height=op.height,
        width=op.width,
        channels=op.channels,
        out_height=op.out_height,
        out_width=op.out_width,
        out_channels=op.out_channels,
        kernel_h=op.kernel_h,
        kernel_w=op.kernel_w,
        stride_h=op.stride_h,
        stride_w=op.stride_w,
        dilation_h=op.dilation_h,
        dilation_w=op.dilation_w,
        top=op.top,
        left=op.left,
    )


@macro
def _pair_part(op, part):
    """One part of ADD or MUL: its inputs, and the offset of its output."""
    if op.period == op.height:  # as large as the first input: any cut will do
        first, last = team.share(op.height, part)
        period, second = max(last - first, 1), op.second + first
    else:  # cut between the repetitions
        first, last = team.share(op.height // op.period, part)
        first, last, period, second = first * op.period, last * op.period, op.period, op.second
    pair = elementwise.Pair(op.x + first, second, last - first, period, op.zero_x, op.zero_second)
    return pair, op.y + first


@inline
def _integer(memory, op, scratch, member, part):
    """One part of an operator on codes."""
    arena, kind = memory.arena, op.kind
    zero_x = np.uint8(op.zero_x)
    output = OutputRange(np.float32(op.lo - op.zero_y), np.float32(op.hi - op.zero_y), np.int32(op.zero_y))
    constants = Constants(
        address(memory.weights) + op.weights,
        address(memory.biases) + 4 * op.bias,
        address(memory.multipliers) + 4 * op.multiplier,
    )
    if kind == Kind.CONV:
        conv_operator.conv(
            arena, op.x, _window(op), op.groups, op.rows_per_copy, zero_x, constants, op.y, output, scratch, part
        )
    elif kind == Kind.DEPTHWISE:
        taps = memory.taps[member]
        depthwise_operator.depthwise(arena, op.x, _window(op), zero_x, constants, op.y, output, scratch, taps, part)
    elif kind == Kind.ADD:
        pair, y = _pair_part(op, part)
        elementwise.add(arena, pair, y, op.multiplier_x, op.multiplier_second, output)
    elif kind == Kind.MUL:
        pair, y = _pair_part(op, part)
        elementwise.mul(arena, pair, y, op.multiplier_x, output)
    elif kind == Kind.LUT:
        first, last = team.share(op.height, part)
        elementwise.lut(arena, op.x + first, op.y + first, last - first, memory.tables, op.table)
    elif kind == Kind.COPY_COLUMNS:
        first, last = team.share(op.height, part)
        x, y = op.x + first * op.channels, op.y + first * op.step
        elementwise.copy_columns(arena, x, y, last - first, op.channels, op.step, memory.tables, op.table)
    elif kind == Kind.MAX_POOL:
        elementwise.max_pool(arena, op.x, _window(op), op.y, part)
    elif kind == Kind.NORMALIZE:
        _normalize(memory, op, output, part)
    elif kind == Kind.RESAMPLE:
        places, weights = memory.biases[op.bias :], memory.multipliers[op.multiplier :]
        elementwise.resample(arena, op.x, _window(op), op.y, places, weights, part)
    elif part.number == 0:
        _small(memory, op, output, member)


@macro
def _normalize(memory, op, output, part):
    blocks = elementwise.Blocks(op.x, op.y, op.height, op.channels, op.groups)
    first, last = team.share(op.width * op.groups, part)
    gamma, beta = memory.multipliers[op.multiplier :], memory.multipliers[op.floats :]
    elementwise.normalize(memory.arena, blocks, first, last, gamma, beta, op.epsilon, output)


@macro
def _small(memory, op, output, member):
    """The operators on codes that are not divided into parts, because they take little time."""
    arena, kind = memory.arena, op.kind
    if kind == Kind.AVG_POOL:
        zero_x, sums = np.int32(op.zero_x), memory.ints[member]
        elementwise.avg_pool(arena, op.x, _window(op), op.y, op.count_pad, zero_x, op.multiplier_x, output, sums)
    elif kind == Kind.TRANSPOSE:
        elementwise.transpose(arena, op.x, op.y, op.sizes, op.steps)
    elif kind == Kind.PAD:
        padding = (op.top, op.left, op.bottom, op.right)
        elementwise.pad2d(arena, op.x, op.height, op.width, op.channels, op.y, padding, np.uint8(op.zero_x))
    elif kind == Kind.SOFTMAX:
        exps = memory.floats[member]
        elementwise.softmax(arena, op.x, op.y, op.height, op.channels, op.scale_x, op.scale_y, output, exps)


# --- the interpreter --------------------------------------------------------------------------------------------------


@inline
def _operator(memory, integers, transformers, i, scratch, member, part):
    """One part of operator i, with the scratch of ``member``."""
    op = memory.operators[i]
    own = op.scratch + member * scratch
    on_floats = Kind.EMBED <= op.kind < Kind.NORMALIZE
    if transformers is not None and on_floats:
        _transformer(memory, op, own, part)
    if integers is not None and not on_floats:
        _integer(memory, op, own, member, part)


@macro
def _work(memory, integers, transformers, epoch, scratch, member, parts):
    """Take parts of operators until none is left in the epoch."""
    piece = team.take(memory.sync, epoch, parts)
    while piece >= 0:
        part = Part(piece % parts, parts)
        _operator(memory, integers, transformers, epoch.first + piece // parts, scratch, member, part)
        team.finish(memory.sync)
        piece = team.take(memory.sync, epoch, parts)


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
    """Run operators ``start`` to ``stop`` with a team of ``parts`` members.

    ``integers`` and ``transformers``: see `operator_sets`. ``scratch``: bytes of the arena for each member. The caller
    is member 0. Any other member ignores ``start`` and ``stop``: it sleeps and helps with what member 0 starts, until
    `dismiss`.
    """
    sync = memory.sync
    if parts == 1:
        for i in range(start, stop):
            _operator(memory, integers, transformers, i, scratch, member, Part(member, parts))
    elif member == 0:
        epoch = team.launch(sync, start, (stop - start) * parts)
        _work(memory, integers, transformers, epoch, scratch, member, parts)
    else:
        number = 0
        while team.wait(sync, number):
            number = team.load(sync, team.EPOCH)
            epoch = team.current(sync)
            if team.load(sync, team.EPOCH) == number:  # otherwise the fields belong to two epochs
                _work(memory, integers, transformers, epoch, scratch, member, parts)


@kernel
def dismiss(sync: NDArray[np.int64]) -> None:
    """End the team: every other member returns from `run`. Must not be called while a frame runs."""
    team.dismiss(sync)
