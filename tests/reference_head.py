"""The executor's slow, obvious twin: every operator of a segment through `kernels.reference`, one tensor at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import reference
from splitedge.head import segment as seg

U8 = NDArray[np.uint8]
Values = NDArray[Any]


def run(segment: seg.Segment, x: Values) -> dict[int, Values]:
    """The codes or values of every tensor, by its index in the header."""
    tensors = segment.header.tensors
    values = {segment.header.input: x}
    for op in segment.header.ops:
        values[op.out] = _run(segment, op, values).reshape(tensors[op.out].shape)
    return values


def _plane(x: U8) -> U8:
    """[C] as [1, 1, C], [R, C] as [R, 1, C]."""
    return x if x.ndim == 3 else x.reshape(-1, 1, x.shape[-1])


def _run(segment: seg.Segment, op: seg.AnyOp, values: dict[int, Values]) -> Values:
    tensors, blob = segment.header.tensors, segment.blob
    if isinstance(op, seg.Sum):
        return values[op.a] + values[op.b]
    if isinstance(op, seg.Quantize):
        return reference.quantize(values[op.x], tensors[op.out].scale, tensors[op.out].zero_point)
    if isinstance(op, seg.Dequantize):
        return reference.dequantize(values[op.x], tensors[op.x].scale, tensors[op.x].zero_point)
    if isinstance(op, seg.Function):
        return reference.function(values[op.x], op.kind)
    if isinstance(op, seg.Gate):
        return reference.gate(values[op.x], op.kind)
    if isinstance(op, seg.RmsNorm | seg.Rotary | seg.WindowAttention | seg.Gather):
        return _rows(segment, op, values)
    if isinstance(op, seg.Embed | seg.Linear | seg.Norm | seg.Attention | seg.Patches | seg.Position | seg.Mean):
        return _transformer(segment, op, values)
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
    if isinstance(op, seg.View):
        return reference.view(x, op.start, op.sizes, op.steps).reshape(y.shape)
    if isinstance(op, seg.Reshape):
        return x
    if isinstance(op, seg.Normalize):
        gamma, beta = (blob[at : at + 4 * x.shape[-1]].view(np.float32) for at in (op.gamma, op.beta))
        rows = x.reshape(-1, x.shape[-1])
        return reference.normalize(rows, op.rows, op.groups, gamma, beta, op.epsilon, y.zero_point, op.lo, op.hi)
    if isinstance(op, seg.Resample):
        ends = ((op.rows, op.row_weights, y.shape[0]), (op.columns, op.column_weights, y.shape[1]))
        parts = [
            blob[at : at + 4 * n].view(kind)
            for *places, n in ends
            for at, kind in zip(places, (np.int32, np.float32), strict=True)
        ]
        return reference.resample(x, *parts)
    if isinstance(op, seg.Pad):
        return reference.pad2d(_plane(x), tuple(op.pad), op.value)
    return reference.softmax(x, tensors[op.x].scale, y.scale, y.zero_point, op.lo, op.hi)


def _rows(
    segment: seg.Segment, op: seg.RmsNorm | seg.Rotary | seg.WindowAttention | seg.Gather, values: dict[int, Values]
) -> Values:
    x, out, blob = values[op.x], segment.header.tensors[op.out].shape, segment.blob

    def floats(offset: int, *shape: int) -> NDArray[np.float32]:
        return blob[offset : offset + 4 * math.prod(shape)].view(np.float32).reshape(shape)

    if isinstance(op, seg.RmsNorm):
        return reference.rms_norm(x, floats(op.gamma, x.shape[-1]), op.epsilon)
    if isinstance(op, seg.Rotary):
        return reference.rotary(x, op.heads, floats(op.table, op.tokens, 2, op.size))
    if isinstance(op, seg.Gather):
        return reference.gather(x, blob[op.rows : op.rows + 4 * out[0]].view(np.int32))
    tokens = out[0] // op.windows
    places = blob[op.places :][: 4 * tokens * tokens].view(np.int32).reshape(-1, tokens) if op.bias != -1 else None
    return reference.window_attention(
        x,
        op.heads,
        op.factor,
        op.windows,
        None if op.ids == -1 else values[op.ids] != op.pad,
        None if op.bias == -1 else floats(op.bias, op.heads, op.values)[:, places],
        None if op.mask == -1 else floats(op.mask, op.windows, tokens, tokens),
    )


def _transformer(
    segment: seg.Segment,
    op: seg.Embed | seg.Linear | seg.Norm | seg.Attention | seg.Patches | seg.Position | seg.Mean,
    values: dict[int, Values],
) -> Values:
    x, out = values[op.x], segment.header.tensors[op.out].shape

    def floats(offset: int, count: int) -> NDArray[np.float32]:
        return segment.blob[offset : offset + 4 * count].view(np.float32)

    if isinstance(op, seg.Patches):
        return reference.patches(x, op.size)
    if isinstance(op, seg.Position):
        return reference.position(x, floats(op.table, math.prod(out)).reshape(out))
    if isinstance(op, seg.Mean):
        return reference.mean(x[op.first : op.first + op.count])
    if isinstance(op, seg.Norm):
        return reference.norm(x, floats(op.gamma, x.shape[-1]), floats(op.beta, x.shape[-1]), op.epsilon)
    if isinstance(op, seg.Attention):
        return reference.attention(x, op.heads, op.factor, None if op.ids == -1 else values[op.ids] != op.pad)
    shape = (
        op.vocabulary if isinstance(op, seg.Embed) else out[-1],
        out[-1] if isinstance(op, seg.Embed) else x.shape[-1],
    )
    count = math.prod(shape)
    codes = reference.unpack_bits(segment.blob[op.weight : op.weight + -(-count * op.bits // 8)], op.bits, count)
    w = reference.weight_levels(op.bits)[codes].reshape(shape)
    if isinstance(op, seg.Embed):
        return reference.embed(x, w, floats(op.scales, shape[0]), floats(op.position, math.prod(out)).reshape(out))
    residual = None if op.residual == -1 else values[op.residual].reshape(-1, out[-1])
    rows = x.reshape(-1, shape[1])
    return reference.linear(rows, w, floats(op.scales, shape[0]), floats(op.bias, shape[0]), op.activation, residual)
