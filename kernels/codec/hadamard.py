"""Blocks of values times a Hadamard matrix, as LLVM IR that keeps a block in registers. Twin: `reference.codec_rotate`.

The steps over the distances 1, 2, 4, ... up to two vectors separate neighbours (even places, odd places) and put sums
before differences. After as many steps as the number of lanes of two vectors has bits, all values are in their places.
Larger distances are whole vectors.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kernels import emit
from kernels.define import inline, intrinsic, ir, types
from kernels.emit import FLOAT, I64, PTR, TARGET
from kernels.reference import F32

#: The block sizes of the agent and the server.
SIZES: Final = (8, 16, 32, 64, 128)
#: Blocks smaller than this share a vector; those that do not fill it take plain loops.
LANES: Final = TARGET.lanes

_ARGUMENTS: Final = [PTR, FLOAT, PTR, I64]


def _body(size: int) -> emit.Body:
    """IR with the arguments x, factor, out, and a number of vectors, or of blocks if these are larger."""

    def body(b: ir.IRBuilder, args: list[ir.Value]) -> None:
        x, factor, out, times = args
        lanes, count = LANES, max(1, size // LANES)
        by = emit.splat(b, factor, lanes)
        with emit.loop(b, times, unroll=False) as (index, _, _):
            start = b.mul(index, I64(4 * lanes * count))
            rows = [emit.load(b, emit.vector(FLOAT, lanes), x, b.add(start, I64(4 * lanes * r))) for r in range(count)]
            if count == 1:
                rows = [_within(b, rows[0], size)]
            for r in range(0, count - 1, 2):
                rows[r : r + 2] = _pair(b, rows[r], rows[r + 1])
            distance = 2
            while distance < count:
                for r in range(count):
                    if not r & distance:
                        one, other = rows[r], rows[r + distance]
                        rows[r], rows[r + distance] = b.fadd(one, other), b.fsub(one, other)
                distance *= 2
            for r, row in enumerate(rows):
                emit.store(b, b.fmul(row, by), out, b.add(start, I64(4 * lanes * r)))

    return body


def _within(b: ir.IRBuilder, row: ir.Value, size: int) -> ir.Value:
    """All steps of the blocks in one vector."""
    lanes, distance = LANES, 1
    while distance < size:
        other = emit.shuffle(b, row, row, [lane ^ distance for lane in range(lanes)])
        second = [lane + lanes * bool(lane & distance) for lane in range(lanes)]
        row = emit.shuffle(b, b.fadd(row, other), b.fsub(other, row), second)
        distance *= 2
    return row


def _pair(b: ir.IRBuilder, first: ir.Value, second: ir.Value) -> list[ir.Value]:
    """All steps within two vectors."""
    lanes = TARGET.lanes
    for _ in range(lanes.bit_length()):
        even = emit.shuffle(b, first, second, range(0, 2 * lanes, 2))
        odd = emit.shuffle(b, first, second, range(1, 2 * lanes, 2))
        first, second = b.fadd(even, odd), b.fsub(even, odd)
    return [first, second]


@intrinsic
def _blocks(typingctx, x, x_at, size, factor, out, out_at, times):
    """Transform x[x_at:] in blocks of ``size``, one of `SIZES`, to out[out_at:], which may be the same place.

    ``times``: how many blocks, or vectors if these hold more than a block.
    """
    places = types.int64
    signature = types.void(x, places, places, types.float32, out, places, places)

    def codegen(context, b, sig, a):
        source, target = (emit.array_pointer(context, b, sig.args[i], a[i], a[i + 1]) for i in (0, 4))
        bodies = {n: (f"splitedge_rotate_{n}", _ARGUMENTS, _body(n)) for n in SIZES}
        emit.choose(b, a[2], bodies, [source, a[3], target, a[6]])
        return context.get_dummy_value()

    return signature, codegen


@inline
def transform(x: F32, start: int, out: F32, at: int, count: int, size: int, factor: np.float32) -> None:
    """Transform ``count`` values of x[start:] in blocks of ``size``, times ``factor``, to out[at:] or in place."""
    together = max(size, LANES)
    _blocks(x, start, size, factor, out, at, count // together)
    done = count // together * together
    for i in range(done, count):
        out[at + i] = x[start + i]
    h = 1
    while h < size and done < count:
        for first in range(at + done, at + count, 2 * h):
            for i in range(first, first + h):
                a, b = out[i], out[i + h]
                out[i], out[i + h] = a + b, a - b
        h *= 2
    for i in range(at + done, at + count):
        out[i] *= factor
