"""The executor's slow, obvious twin: every operator of a segment through `kernels.reference`, one tensor at a time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_agent.head import segment as seg
from kernels import reference

U8 = NDArray[np.uint8]


def run(segment: seg.Segment, x: U8) -> dict[int, U8]:
    """The codes of every tensor, by its index in the header."""
    tensors = segment.header.tensors
    values = {segment.header.input: x}
    for op in segment.header.ops:
        values[op.out] = _run(segment, op, values).reshape(tensors[op.out].shape)
    return values


def _plane(x: U8) -> U8:
    """[C] as [1, 1, C], [R, C] as [R, 1, C]."""
    return x if x.ndim == 3 else x.reshape(-1, 1, x.shape[-1])


def _run(segment: seg.Segment, op: seg.AnyOp, values: dict[int, U8]) -> U8:
    tensors, blob = segment.header.tensors, segment.blob
    y = tensors[op.out]
    if isinstance(op, seg.Conv):
        x, zx = _plane(values[op.x]), tensors[op.x].zero_point
        shape = (y.shape[-1], *op.kernel, x.shape[2] // op.groups)
        count = math.prod(shape)
        codes = reference.unpack_bits(blob[op.weight : op.weight + -(-count * op.bits // 8)], op.bits, count)
        w = reference.weight_levels(op.bits)[codes].reshape(shape)
        bias = blob[op.bias : op.bias + 4 * shape[0]].view(np.int32)
        multiplier = blob[op.multiplier : op.multiplier + 4 * shape[0]].view(np.float32)
        return reference.conv(
            x, w, bias, multiplier, tuple(op.stride), tuple(op.dilation), tuple(op.pad), op.groups, zx, y.zero_point, op.lo, op.hi
        )  # fmt: skip
    if isinstance(op, seg.Add):
        a, b = tensors[op.a], tensors[op.b]
        return reference.add(
            values[op.a], values[op.b], a.zero_point, b.zero_point, op.multiplier_a, op.multiplier_b, y.zero_point, op.lo, op.hi
        )  # fmt: skip
    if isinstance(op, seg.Mul):
        a, b = tensors[op.a], tensors[op.b]
        return reference.mul(
            values[op.a], values[op.b], a.zero_point, b.zero_point, op.multiplier, y.zero_point, op.lo, op.hi
        )
    if isinstance(op, seg.Concat):
        return reference.concat(
            [values[i] for i in op.inputs], [None if t == -1 else blob[t : t + 256] for t in op.tables]
        )
    x, zx = values[op.x], tensors[op.x].zero_point
    if isinstance(op, seg.Lut):
        return reference.lut(x, blob[op.table : op.table + 256])
    if isinstance(op, seg.Pool) and op.kind == "max":
        return reference.max_pool(_plane(x), tuple(op.kernel), tuple(op.stride), tuple(op.pad))
    if isinstance(op, seg.Pool):
        window = tuple(op.kernel), tuple(op.stride), tuple(op.pad)
        return reference.avg_pool(_plane(x), *window, op.count_pad, zx, op.multiplier, y.zero_point, op.lo, op.hi)
    if isinstance(op, seg.Transpose):
        return x.transpose(op.perm)
    if isinstance(op, seg.Reshape):
        return x
    if isinstance(op, seg.Pad):
        return reference.pad2d(_plane(x), tuple(op.pad), op.value)
    return reference.softmax(x, tensors[op.x].scale, y.scale, y.zero_point, op.lo, op.hi)
