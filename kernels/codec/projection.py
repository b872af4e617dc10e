"""A float32 matrix product with a fixed order of summation, for changes of basis at the cut. Twin:
`reference.codec_project`.

A tile of `ROWS` x `COLUMNS` sums stays in registers, in LLVM IR. Each product is rounded before it is added. The matrix
is packed into `panels` of `COLUMNS` columns, padded with zeros.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernels import emit
from kernels.define import intrinsic, ir, kernel, types
from kernels.emit import FLOAT, I64, PTR, TARGET

F32 = NDArray[np.float32]

_VECTORS: Final = 4
ROWS: Final = 2 if TARGET.bits == 256 or TARGET.name == "portable" else 4  # those have 16 registers
COLUMNS: Final = _VECTORS * TARGET.lanes


def panels(matrix: F32) -> F32:
    """``matrix`` [C, K] as [tiles, C, `COLUMNS`]."""
    ins, outs = matrix.shape
    tiles = -(-outs // COLUMNS)
    padded = np.zeros((ins, tiles * COLUMNS), np.float32)
    padded[:, :outs] = matrix
    return np.ascontiguousarray(padded.reshape(ins, tiles, COLUMNS).transpose(1, 0, 2))


@kernel
def project(x: F32, centre: F32, matrix: F32, out: F32) -> None:
    """``out`` [rows, K] = sum over c of (x [rows, C] - centre [C]) * matrix [C, K] (`panels`), c ascending; each
    product and sum is rounded.
    """
    ins, outs = centre.size, out.shape[1]
    some, sums = np.zeros((ROWS, ins), np.float32), np.empty((ROWS, COLUMNS), np.float32)
    for first in range(0, x.shape[0], ROWS):
        rows = min(ROWS, x.shape[0] - first)
        for row in range(rows):
            for c in range(ins):
                some[row, c] = x[first + row, c] - centre[c]
        for panel in range(matrix.shape[0]):
            _tile(some, matrix, panel * ins * COLUMNS, ins, sums)
            start = panel * COLUMNS
            for row in range(rows):
                for k in range(min(COLUMNS, outs - start)):
                    out[first + row, start + k] = sums[row, k]


def _body(b: ir.IRBuilder, args: list[ir.Value]) -> None:
    """IR with the arguments x, panel, number of products, sums."""
    x, panel, ins, sums = args
    floats, width = emit.vector(FLOAT, TARGET.lanes), 4 * TARGET.lanes
    zeros = [ir.Constant(floats, [0.0] * TARGET.lanes)] * (ROWS * _VECTORS)
    with emit.loop(b, ins, *zeros) as (index, totals, following):
        line = emit.at(b, panel, b.mul(index, I64(4 * COLUMNS)))
        weights = [emit.load(b, floats, line, v * width) for v in range(_VECTORS)]
        for row in range(ROWS):
            place = b.add(b.mul(ins, I64(4 * row)), b.mul(index, I64(4)))
            value = emit.splat(b, emit.load(b, FLOAT, x, place), TARGET.lanes)
            for v, weight in enumerate(weights):
                following.append(b.fadd(totals[row * _VECTORS + v], b.fmul(value, weight)))
    for i, total in enumerate(following):
        emit.store(b, total, sums, i * width)


@intrinsic
def _tile(typingctx, x, matrix, at, ins, sums):
    """sums [`ROWS`, `COLUMNS`] = x [`ROWS`, ins] times the panel at matrix[at:] (flat)."""
    signature = types.void(x, matrix, types.int64, types.int64, sums)

    def codegen(context, b, sig, a):
        x, sums = (emit.array_pointer(context, b, sig.args[i], a[i]) for i in (0, 4))
        panel = emit.array_pointer(context, b, sig.args[1], a[1], a[2])
        b.call(emit.private_function(b, "splitedge_project", [PTR, PTR, I64, PTR], _body), [x, panel, a[3], sums])
        return context.get_dummy_value()

    return signature, codegen
