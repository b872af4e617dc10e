"""The verifier. A segment is untrusted network input: it checks every rule before a kernel sees a pointer.

- Every tensor is within the arena, at a multiple of 64. No operator writes over a tensor that is still needed.
- Every tensor is written once, before it is read. The output is written. Every operator gets the types that it
  supports.
- Every shape follows from the operator's inputs and attributes. Windows touch at least one cell of the plane.
- Every weight, bias, multiplier and table is within the blob. Every scale and multiplier is finite.
- For every output channel 255 * sum |w| + |bias| < 2^31, so no accumulator overflows in any order of summation. The
  sums of attention, with 255 * 127 for each product, do not either. The bound times the channel's multiplier is below
  2^30.
- Operators share no constants. Together they fit into the blob once, so preparing them takes memory in proportion to
  the file.
- Arena, scratch, the operators' inputs and the work of a frame are within `splitedge.limits`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import codec as codec_kernels
from kernels.operators import conv as conv_operator
from kernels.operators import transformer
from kernels.reference import weight_levels
from splitedge import limits
from splitedge.errors import SegmentError
from splitedge.head import segment as seg

Shape = tuple[int, int, int]

MAX_FACTOR = 1e30
#: Bound of an accumulator times its multiplier, which becomes an int32 before it is clamped.
MAX_REAL = 2.0**30


def verify(segment: seg.Segment) -> dict[int, NDArray[np.int8]]:
    """Check all rules. Returns the integer weights by the index of their operator.

    Shapes: [OC, KH, KW, C / groups] for `Conv`, [N, K] for `Linear`, [vocabulary, C] for `Embed`. Raises
    `SegmentError`.
    """
    header = segment.header
    _check(len(header.ops) <= limits.MAX_OPS, "operators", "has too many operators")
    _check(0 < len(header.tensors) <= limits.MAX_TENSORS, "tensors", "has no tensors or too many")
    _check(0 <= header.arena_bytes <= limits.MAX_ARENA_BYTES, "memory", "needs more memory than the limit")
    for i, tensor in enumerate(header.tensors):
        _check_tensor(i, tensor, header.arena_bytes)
    _check_order(header)
    _check_overlap(header)
    _check(sum(len(inputs(op)) for op in header.ops) <= limits.MAX_TENSORS, "tensors-read", "reads too many tensors")
    for op in header.ops:
        _check_types(header, op)
        _RULES[type(op)](segment, op)
    _check(
        sum(_work(header, op) for op in header.ops) <= limits.MAX_MACS,
        "computation",
        "needs more computation than the limit",
    )
    spread = sum(seg.spread_bytes(header, op) for op in header.ops)
    _check(spread <= limits.MAX_ARENA_BYTES, "memory", "needs more memory than the limit for its attentions")
    claimed = sum(part.nbytes for part in seg.parts(header))
    _check(claimed <= len(segment.blob), "constants-twice", "uses the same constants more than once")
    return {
        i: _weights(segment, op) for i, op in enumerate(header.ops) if isinstance(op, seg.Conv | seg.Linear | seg.Embed)
    }


def hwc(shape: Sequence[int]) -> Shape:
    """A shape of 1 to 3 axes as (height, width, channels): [C] is 1 x 1 x C, [R, C] is R x 1 x C."""
    sizes = list(shape)
    if len(sizes) == 3:
        return sizes[0], sizes[1], sizes[2]
    _check(len(sizes) in (1, 2), "axes", "has a spatial operator on a tensor of four axes")
    return (1, 1, sizes[0]) if len(sizes) == 1 else (sizes[0], 1, sizes[1])


def inputs(op: seg.AnyOp) -> list[int]:
    """The tensors that ``op`` reads."""
    if isinstance(op, seg.Concat):
        return list(op.inputs)
    if isinstance(op, seg.Add | seg.Mul | seg.Sum):
        return [op.a, op.b]
    optional = -1
    if isinstance(op, seg.Linear):
        optional = op.residual
    elif isinstance(op, seg.Attention | seg.WindowAttention):
        optional = op.ids
    return [op.x] if optional == -1 else [op.x, optional]


def _check(condition: bool, reason: str, what: str) -> None:
    if not condition:
        raise SegmentError(
            f"the segment was refused because it {what}; download it again, and do not trust the server if that "
            "fails too",
            reason=reason,
        )


def _check_tensor(index: int, tensor: seg.Tensor, arena: int) -> None:
    _check(
        1 <= len(tensor.shape) <= 4 and all(1 <= n <= limits.MAX_DIM for n in tensor.shape),
        "shape",
        f"gives tensor {index} an impossible shape",
    )
    size = math.prod(tensor.shape)
    _check(size <= limits.MAX_ELEMENTS, "elements", f"gives tensor {index} too many elements")
    _check(
        tensor.offset >= 0 and tensor.offset % seg.ALIGN == 0,
        "offset",
        f"gives tensor {index} an offset that is not a multiple of {seg.ALIGN}",
    )
    _check(
        tensor.offset + seg.roundup(tensor.nbytes) <= arena, "outside-arena", f"places tensor {index} outside its arena"
    )
    plain = tensor.dtype == "u8" or (tensor.scale == 1 and tensor.zero_point == 0)
    _check(plain, "scale-of-type", f"gives tensor {index} a scale or zero point that its type does not have")
    _check(
        _float32(tensor.scale) and tensor.scale > 0,
        "scale",
        f"gives tensor {index} a scale that is not a positive float32",
    )
    _check(0 <= tensor.zero_point <= 255, "zero-point", f"gives tensor {index} a zero point that is no code")


def _float32(value: float) -> bool:
    with np.errstate(over="ignore"):
        return math.isfinite(value) and float(np.float32(value)) == value


def _check_order(header: seg.Header) -> None:
    count = len(header.tensors)
    _check(
        0 <= header.input < count and 0 <= header.output < count,
        "unknown-end",
        "names an input or output that does not exist",
    )
    written = {header.input}
    for op in header.ops:
        _check(
            all(0 <= t < count for t in inputs(op)) and 0 <= op.out < count,
            "unknown-tensor",
            f"names a tensor that does not exist in {op.name!r}",
        )
        _check(
            written.issuperset(inputs(op)), "read-before-written", f"reads a tensor before it is written in {op.name!r}"
        )
        _check(op.out not in written, "written-twice", f"writes a tensor twice in {op.name!r}")
        written.add(op.out)
    _check(header.output in written, "unwritten-output", "never writes its output")
    _check(header.tensors[header.output].dtype != "i32", "yields-ids", "yields token ids")


def _check_overlap(header: seg.Header) -> None:
    """No operator writes over memory that it, a later operator, or the caller still reads."""
    last_use = {header.output: len(header.ops)}
    for i, op in enumerate(header.ops):
        for t in inputs(op):
            last_use[t] = max(last_use.get(t, -1), i)
    extent = [(t.offset, t.offset + seg.roundup(t.nbytes)) for t in header.tensors]
    live = {header.input}
    root = list(range(len(header.tensors)))  # the tensor that owns these bytes, through in-place reshapes
    for i, op in enumerate(header.ops):
        live = {t for t in live if last_use.get(t, -1) >= i}
        start, end = extent[op.out]
        if isinstance(op, seg.Reshape) and extent[op.x] == (start, end):
            root[op.out] = root[op.x]
        for t in live:
            alias = root[t] == root[op.out] and extent[t] == (start, end)
            _check(
                alias or end <= extent[t][0] or extent[t][1] <= start,
                "overlap",
                f"writes over a tensor still in use in {op.name!r}",
            )
        live.add(op.out)


# --- one rule for each operator ---------------------------------------------------------------------------------------

_FLOATS = (
    *(seg.Linear, seg.Norm, seg.Attention, seg.Patches, seg.Position, seg.Mean),
    *(seg.Function, seg.Gate, seg.RmsNorm, seg.Sum, seg.Rotary, seg.WindowAttention, seg.Gather),
)
_TYPES = {
    seg.Embed: ("i32", "f32"),
    **dict.fromkeys(_FLOATS, ("f32", "f32")),
    seg.Quantize: ("f32", "u8"),
    seg.Dequantize: ("u8", "f32"),
}


def _check_types(header: seg.Header, op: seg.AnyOp) -> None:
    types = [header.tensors[t].dtype for t in (*inputs(op), op.out)]
    if isinstance(op, seg.Reshape | seg.View):
        _check(
            types[0] == types[1] and (types[0] != "i32" or isinstance(op, seg.Reshape)),
            "types",
            f"has types that do not fit in {op.name!r}",
        )
        return
    source, target = _TYPES.get(type(op), ("u8", "u8"))
    wanted = [source] * (len(types) - 1) + [target]
    if isinstance(op, seg.Attention | seg.WindowAttention) and op.ids != -1:
        wanted[1] = "i32"
    _check(types == wanted, "types", f"has types that do not fit in {op.name!r}")


def _shape(segment: seg.Segment, index: int) -> list[int]:
    return segment.header.tensors[index].shape


def _check_blob(segment: seg.Segment, op: seg.Op, offset: int, size: int) -> None:
    inside = offset >= 0 and offset % seg.ALIGN == 0 and offset + size <= len(segment.blob)
    _check(inside, "outside-constants", f"points outside its constants in {op.name!r}")


def _check_codes(op: Any) -> None:
    _check(0 <= op.lo <= op.hi <= 255, "clamp", f"clamps to an impossible range in {op.name!r}")


def _check_factor(op: seg.Op, *factors: float) -> None:
    """Factors times any difference, product or sum of codes stay finite; otherwise two infinities could give NaN."""
    in_range = all(_float32(f) and 0 <= f <= MAX_FACTOR for f in factors)
    _check(in_range, "multiplier", f"has a multiplier that is not a finite float32 in {op.name!r}")


def _check_window(op: Any, size: Shape, out: Shape, dilation: Sequence[int]) -> None:
    """Sizes are pairs in range, padding is smaller than the window, and the output follows from them (rounded down,
    or up for pooling).
    """
    small = all(1 <= n <= 65535 for n in (*op.kernel, *op.stride, *dilation)) and all(0 <= n <= 65535 for n in op.pad)
    pairs = len(op.kernel) == len(op.stride) == len(dilation) == 2 and len(op.pad) == 4
    _check(small and pairs, "window", f"has an impossible window in {op.name!r}")
    for axis in (0, 1):
        window = (op.kernel[axis] - 1) * dilation[axis] + 1
        before, after = op.pad[axis], op.pad[axis + 2]
        _check(before < window and after < window, "padding", f"pads more than its window in {op.name!r}")
        room = size[axis] + before + after - window
        _check(
            room >= 0 and out[axis] == room // op.stride[axis] + 1,
            "output-shape",
            f"has an output shape that does not fit in {op.name!r}",
        )
        _check(
            (out[axis] - 1) * op.stride[axis] - before < size[axis],
            "window-outside",
            f"has a window outside its input in {op.name!r}",
        )


def _conv(segment: seg.Segment, op: seg.Conv) -> None:
    x, y = hwc(_shape(segment, op.x)), hwc(_shape(segment, op.out))
    _check(2 <= op.bits <= 8, "weight-bits", f"has weights of {op.bits} bits in {op.name!r}")
    _check(
        op.groups >= 1 and x[2] % op.groups == 0 and y[2] % op.groups == 0,
        "groups",
        f"has groups that do not divide its channels in {op.name!r}",
    )
    _check_window(op, x, y, op.dilation)
    _check_codes(op)
    window = op.kernel[0] * op.kernel[1] * (x[2] // op.groups)
    _check_scratch(op, conv_layout(op, x, y).scratch_bytes)
    _check_blob(segment, op, op.weight, -(-y[2] * window * op.bits // 8))
    _check_blob(segment, op, op.bias, 4 * y[2])
    _check_blob(segment, op, op.multiplier, 4 * y[2])
    factors = segment.blob[op.multiplier : op.multiplier + 4 * y[2]].view(np.float32)
    _check(
        bool(((factors >= 0) & (factors <= MAX_FACTOR)).all()),
        "multiplier",
        f"has a multiplier that is not a finite float32 in {op.name!r}",
    )


def conv_layout(op: seg.Conv, x: Shape, y: Shape) -> conv_operator.Layout:
    """Where the kernel finds the windows of ``op`` from x to y."""
    kernel, stride, dilation, pad = ((pair[0], pair[1]) for pair in (op.kernel, op.stride, op.dilation, op.pad))
    return conv_operator.layout(x, y[:2], kernel, stride, dilation, pad, op.groups)


def _work(header: seg.Header, op: seg.AnyOp) -> int:
    """The work of an operator: its products, or cells of a `Pool`."""
    x, outputs = header.tensors[inputs(op)[0]].shape, math.prod(header.tensors[op.out].shape)
    if isinstance(op, seg.Conv):
        return outputs * op.kernel[0] * op.kernel[1] * (hwc(x)[2] // op.groups)
    if isinstance(op, seg.Linear):
        return outputs * x[-1]
    if isinstance(op, seg.Attention):
        return 2 * outputs * x[0]
    if isinstance(op, seg.WindowAttention):
        return 2 * outputs * (x[0] // op.windows)
    if isinstance(op, seg.Mean):
        return outputs * op.count
    return outputs * (op.kernel[0] * op.kernel[1] if isinstance(op, seg.Pool) else 1)


def _weight_shape(segment: seg.Segment, op: seg.Conv | seg.Linear | seg.Embed) -> tuple[int, ...]:
    x, y = _shape(segment, op.x), _shape(segment, op.out)
    if isinstance(op, seg.Conv):
        return hwc(y)[2], op.kernel[0], op.kernel[1], hwc(x)[2] // op.groups
    return (y[-1], x[-1]) if isinstance(op, seg.Linear) else (op.vocabulary, y[-1])


def _weights(segment: seg.Segment, op: seg.Conv | seg.Linear | seg.Embed) -> NDArray[np.int8]:
    shape = _weight_shape(segment, op)
    outs, count = shape[0], math.prod(shape)
    packed = segment.blob[
        op.weight : op.weight + -(-count * op.bits // 8)
    ].copy()  # writable, for the one compiled version of the kernel
    codes = np.empty(count, np.uint8)
    codec_kernels.unpack(packed, op.bits, codes)
    _check(
        op.bits == 2 or not bool((codes == (1 << op.bits) - 1).any()),
        "weight-code",
        f"uses a weight code that has no meaning in {op.name!r}",
    )
    weights: NDArray[np.int8] = weight_levels(op.bits)[codes].reshape(shape)
    if isinstance(op, seg.Embed):
        return weights
    total = np.abs(weights.reshape(outs, -1)).sum(axis=1, dtype=np.int64) * 255
    if isinstance(op, seg.Conv):
        total += np.abs(segment.blob[op.bias : op.bias + 4 * outs].view(np.int32).astype(np.int64))
    _check(bool((total < 1 << 31).all()), "overflow", f"could overflow a 32-bit sum in {op.name!r}")
    if isinstance(op, seg.Conv):
        factors = segment.blob[op.multiplier : op.multiplier + 4 * outs].view(np.float32)
        _check(
            bool((total * factors.astype(np.float64) < MAX_REAL).all()),
            "multiplier-too-large",
            f"has too great a multiplier in {op.name!r}",
        )
    return weights


def _same_or_per_channel(segment: seg.Segment, op: seg.Add | seg.Mul) -> None:
    a, b, y = (_shape(segment, t) for t in (op.a, op.b, op.out))
    _check(
        a == y and (b == a or (math.prod(b) == b[-1] == a[-1])),
        "shapes-differ",
        f"has shapes that do not fit in {op.name!r}",
    )
    _check_codes(op)
    _check_factor(op, *([op.multiplier_a, op.multiplier_b] if isinstance(op, seg.Add) else [op.multiplier]))


def _lut(segment: seg.Segment, op: seg.Lut) -> None:
    _check(
        _shape(segment, op.x) == _shape(segment, op.out), "shapes-differ", f"has shapes that do not fit in {op.name!r}"
    )
    _check_blob(segment, op, op.table, 256)


def _pool(segment: seg.Segment, op: seg.Pool) -> None:
    x, y = hwc(_shape(segment, op.x)), hwc(_shape(segment, op.out))
    _check(x[2] == y[2], "shapes-differ", f"has shapes that do not fit in {op.name!r}")
    _check_window(op, x, y, (1, 1))
    _check_codes(op)
    _check_factor(op, op.multiplier)
    a, b = segment.header.tensors[op.x], segment.header.tensors[op.out]
    same = (a.scale, a.zero_point) == (b.scale, b.zero_point)
    _check(op.kind != "max" or same, "scale-change", f"changes the codes' meaning without arithmetic in {op.name!r}")
    # Up to 255 for each cell in an int32 sum.
    _check(op.kernel[0] * op.kernel[1] < 1 << 23, "overflow", f"could overflow a 32-bit sum in {op.name!r}")


def _concat(segment: seg.Segment, op: seg.Concat) -> None:
    shapes, y = [_shape(segment, t) for t in op.inputs], _shape(segment, op.out)
    fits = bool(shapes) and all(s[:-1] == y[:-1] for s in shapes) and sum(s[-1] for s in shapes) == y[-1]
    _check(fits and len(op.tables) == len(op.inputs), "shapes-differ", f"has shapes that do not fit in {op.name!r}")
    for table in op.tables:
        if table != -1:
            _check_blob(segment, op, table, 256)


def _transpose(segment: seg.Segment, op: seg.Transpose) -> None:
    x, y = _shape(segment, op.x), _shape(segment, op.out)
    fits = sorted(op.perm) == list(range(len(x))) and [x[axis] for axis in op.perm] == y
    _check(fits, "shapes-differ", f"has shapes that do not fit in {op.name!r}")


def _view(segment: seg.Segment, op: seg.View) -> None:
    x, y = math.prod(_shape(segment, op.x)), math.prod(_shape(segment, op.out))
    fits = (
        1 <= len(op.sizes) == len(op.steps) <= 4
        and all(1 <= n <= limits.MAX_ELEMENTS for n in op.sizes)
        and all(0 <= n <= limits.MAX_ELEMENTS for n in op.steps)
        and math.prod(op.sizes) == y
    )
    _check(fits, "shapes-differ", f"has shapes that do not fit in {op.name!r}")
    last = op.start + sum((size - 1) * step for size, step in zip(op.sizes, op.steps, strict=True))
    _check(0 <= op.start <= last < x, "outside-tensor", f"reads outside a tensor in {op.name!r}")


def _reshape(segment: seg.Segment, op: seg.Reshape) -> None:
    _check(
        math.prod(_shape(segment, op.x)) == math.prod(_shape(segment, op.out)),
        "shapes-differ",
        f"has shapes that do not fit in {op.name!r}",
    )


def _pad(segment: seg.Segment, op: seg.Pad) -> None:
    x, y = _shape(segment, op.x), _shape(segment, op.out)
    fits = (
        len(x) == len(y) == 3
        and len(op.pad) == 4
        and all(0 <= n <= limits.MAX_DIM for n in op.pad)
        and 0 <= op.value <= 255
    )
    _check(
        fits and y == [x[0] + op.pad[0] + op.pad[2], x[1] + op.pad[1] + op.pad[3], x[2]],
        "shapes-differ",
        f"has shapes that do not fit in {op.name!r}",
    )


def _softmax(segment: seg.Segment, op: seg.Softmax) -> None:
    _check(
        _shape(segment, op.x) == _shape(segment, op.out), "shapes-differ", f"has shapes that do not fit in {op.name!r}"
    )
    _check_codes(op)


def _check_floats(segment: seg.Segment, op: seg.Op, offset: int, count: int) -> None:
    _check_blob(segment, op, offset, 4 * count)
    finite = np.isfinite(segment.blob[offset : offset + 4 * count].view(np.float32)).all()
    _check(bool(finite), "constant", f"has a constant that is not a finite float32 in {op.name!r}")


def _check_scratch(op: seg.Op, size: int) -> None:
    _check(size <= limits.MAX_ARENA_BYTES, "memory", f"needs more memory than the limit in {op.name!r}")


def _embed(segment: seg.Segment, op: seg.Embed) -> None:
    x, y = _shape(segment, op.x), _shape(segment, op.out)
    _check(len(x) == 1 and len(y) == 2 and x[0] == y[0], "shapes-differ", f"has shapes that do not fit in {op.name!r}")
    _check(2 <= op.bits <= 8, "weight-bits", f"has weights of {op.bits} bits in {op.name!r}")
    _check(1 <= op.vocabulary <= limits.MAX_DIM, "vocabulary", f"has an impossible vocabulary in {op.name!r}")
    _check_blob(segment, op, op.weight, -(-op.vocabulary * y[1] * op.bits // 8))
    _check_floats(segment, op, op.scales, op.vocabulary)
    _check_floats(segment, op, op.position, y[0] * y[1])


def _linear(segment: seg.Segment, op: seg.Linear) -> None:
    x, y = _shape(segment, op.x), _shape(segment, op.out)
    fits = x[:-1] == y[:-1] and (op.residual == -1 or _shape(segment, op.residual) == y)
    _check(fits, "shapes-differ", f"has shapes that do not fit in {op.name!r}")
    _check(2 <= op.bits <= 8, "weight-bits", f"has weights of {op.bits} bits in {op.name!r}")
    _check_scratch(op, transformer.linear_scratch(math.prod(x[:-1]), x[-1]))
    _check_blob(segment, op, op.weight, -(-y[-1] * x[-1] * op.bits // 8))
    _check_floats(segment, op, op.scales, y[-1])
    _check_floats(segment, op, op.bias, y[-1])


def _alike(segment: seg.Segment, op: seg.Norm | seg.Normalize | seg.RmsNorm | seg.Function) -> list[int]:
    """The shape of x, which y has too."""
    shape = _shape(segment, op.x)
    _check(shape == _shape(segment, op.out), "shapes-differ", f"has shapes that do not fit in {op.name!r}")
    return shape


def _check_epsilon(op: seg.Norm | seg.Normalize | seg.RmsNorm) -> None:
    _check(
        _float32(op.epsilon) and op.epsilon > 0,
        "epsilon",
        f"has an epsilon that is not a positive float32 in {op.name!r}",
    )


def _norm(segment: seg.Segment, op: seg.Norm) -> None:
    shape = _alike(segment, op)
    _check_epsilon(op)
    _check_floats(segment, op, op.gamma, shape[-1])
    _check_floats(segment, op, op.beta, shape[-1])


def _attended(segment: seg.Segment, op: seg.Attention | seg.WindowAttention) -> list[int]:
    """The shape [tokens, channels] of y, which x and the token ids fit."""
    x, y = _shape(segment, op.x), _shape(segment, op.out)
    fits = len(x) == len(y) == 2 and x == [y[0], 3 * y[1]] and (op.ids == -1 or _shape(segment, op.ids) == y[:1])
    _check(fits, "shapes-differ", f"has shapes that do not fit in {op.name!r}")
    return y


def _attention(segment: seg.Segment, op: seg.Attention) -> None:
    y = _attended(segment, op)
    _check_heads(op, y[0], y[1])


def _check_heads(op: seg.Attention | seg.WindowAttention, tokens: int, channels: int) -> None:
    _check(
        1 <= op.heads <= channels and channels % op.heads == 0,
        "heads",
        f"has heads that do not divide its channels in {op.name!r}",
    )
    _check(0 <= op.pad < 1 << 31, "padding-token", f"pads with an impossible token in {op.name!r}")
    _check(
        _float32(op.factor) and op.factor > 0, "factor", f"has a factor that is not a positive float32 in {op.name!r}"
    )
    _check(255 * 127 * max(tokens, channels) < 1 << 31, "overflow", f"could overflow a 32-bit sum in {op.name!r}")
    _check_scratch(op, transformer.attention_scratch(tokens, channels, op.heads))


def _patches(segment: seg.Segment, op: seg.Patches) -> None:
    x, y, size = _shape(segment, op.x), _shape(segment, op.out), op.size
    whole = len(x) == 3 and size >= 1 and x[0] % size == 0 and x[1] % size == 0
    fits = whole and y == [x[0] // size * (x[1] // size), size * size * x[2]]
    _check(fits, "shapes-differ", f"has shapes that do not fit in {op.name!r}")


def _position(segment: seg.Segment, op: seg.Position) -> None:
    x, y = _shape(segment, op.x), _shape(segment, op.out)
    fits = len(x) == len(y) == 2 and x[0] <= y[0] and x[1] == y[1]
    _check(fits, "shapes-differ", f"has shapes that do not fit in {op.name!r}")
    _check_floats(segment, op, op.table, y[0] * y[1])


def _mean(segment: seg.Segment, op: seg.Mean) -> None:
    x, y = _shape(segment, op.x), _shape(segment, op.out)
    _check(len(x) == 2 and y in ([x[1]], [1, x[1]]), "shapes-differ", f"has shapes that do not fit in {op.name!r}")
    inside = 0 <= op.first < x[0] and 1 <= op.count <= x[0] - op.first
    _check(inside, "mean-rows", f"averages rows that do not exist in {op.name!r}")


def _normalize(segment: seg.Segment, op: seg.Normalize) -> None:
    shape = _alike(segment, op)
    rows, channels = math.prod(shape[:-1]), shape[-1]
    whole = 1 <= op.rows <= rows and rows % op.rows == 0 and 1 <= op.groups <= channels and channels % op.groups == 0
    _check(whole, "groups", f"has groups that do not divide its channels in {op.name!r}")
    # n^2 * 255^2 in an int64, and a row's sum in an int32
    _check(op.rows * (channels // op.groups) < 1 << 23, "overflow", f"could overflow a 64-bit sum in {op.name!r}")
    _check_epsilon(op)
    _check_codes(op)
    for offset in (op.gamma, op.beta):
        _check_floats(segment, op, offset, channels)


def _resample(segment: seg.Segment, op: seg.Resample) -> None:
    x, y = _shape(segment, op.x), _shape(segment, op.out)
    _check(len(x) == len(y) == 3 and x[2] == y[2], "shapes-differ", f"has shapes that do not fit in {op.name!r}")
    a, b = segment.header.tensors[op.x], segment.header.tensors[op.out]
    same = (a.scale, a.zero_point) == (b.scale, b.zero_point)
    _check(same, "scale-change", f"changes the codes' meaning without arithmetic in {op.name!r}")
    sides = ((op.rows, op.row_weights, 0), (op.columns, op.column_weights, 1))
    for places, weights, axis in sides:
        _check_blob(segment, op, places, 4 * y[axis])
        _check_blob(segment, op, weights, 4 * y[axis])
        first = segment.blob[places : places + 4 * y[axis]].view(np.int32)
        _check(
            bool(((first >= 0) & (first < x[axis])).all()), "outside-tensor", f"reads outside a tensor in {op.name!r}"
        )
        share = segment.blob[weights : weights + 4 * y[axis]].view(np.float32)
        _check(bool(((share >= 0) & (share <= 1)).all()), "constant", f"has a weight beyond 0 to 1 in {op.name!r}")


def _gate(segment: seg.Segment, op: seg.Gate) -> None:
    x, y = _shape(segment, op.x), _shape(segment, op.out)
    _check(x == [*y[:-1], 2 * y[-1]], "shapes-differ", f"has shapes that do not fit in {op.name!r}")


def _rms_norm(segment: seg.Segment, op: seg.RmsNorm) -> None:
    shape = _alike(segment, op)
    _check_epsilon(op)
    _check_floats(segment, op, op.gamma, shape[-1])


def _sum(segment: seg.Segment, op: seg.Sum) -> None:
    fits = _shape(segment, op.a) == _shape(segment, op.b) == _shape(segment, op.out)
    _check(fits, "shapes-differ", f"has shapes that do not fit in {op.name!r}")


def _rotary(segment: seg.Segment, op: seg.Rotary) -> None:
    x, y = _shape(segment, op.x), _shape(segment, op.out)
    _check(
        len(x) == 2 and x == y and 1 <= op.tokens <= x[0] and x[0] % op.tokens == 0,
        "shapes-differ",
        f"has shapes that do not fit in {op.name!r}",
    )
    inside = op.heads >= 1 and op.size >= 2 and op.size % 2 == 0 and op.heads * op.size <= x[1]
    _check(inside, "heads", f"turns columns that do not exist in {op.name!r}")
    _check_floats(segment, op, op.table, 2 * op.tokens * op.size)


def _window_attention(segment: seg.Segment, op: seg.WindowAttention) -> None:
    y = _attended(segment, op)
    whole = 1 <= op.windows <= y[0] and y[0] % op.windows == 0 and (op.ids == -1 or op.windows == 1)
    _check(whole, "windows", f"has windows that do not divide its rows in {op.name!r}")
    tokens = y[0] // op.windows
    _check_heads(op, tokens, y[1])
    if op.mask != -1:
        _check_floats(segment, op, op.mask, op.windows * tokens * tokens)
    if op.bias == -1:
        return
    _check(1 <= op.values <= tokens * tokens, "bias", f"has a bias without values in {op.name!r}")
    _check_scratch(op, 4 * op.heads * tokens * tokens)
    _check_floats(segment, op, op.bias, op.heads * op.values)
    _check_blob(segment, op, op.places, 4 * tokens * tokens)
    places = segment.blob[op.places : op.places + 4 * tokens * tokens].view(np.int32)
    inside = bool(((places >= 0) & (places < op.values)).all())
    _check(inside, "bias", f"has a bias outside its values in {op.name!r}")


def _gather(segment: seg.Segment, op: seg.Gather) -> None:
    x, y = _shape(segment, op.x), _shape(segment, op.out)
    _check(len(x) == len(y) == 2 and x[1] == y[1], "shapes-differ", f"has shapes that do not fit in {op.name!r}")
    _check_blob(segment, op, op.rows, 4 * y[0])
    rows = segment.blob[op.rows : op.rows + 4 * y[0]].view(np.int32)
    inside = bool(((rows >= -1) & (rows < x[0])).all())
    _check(inside, "outside-tensor", f"reads outside a tensor in {op.name!r}")


def _converted(segment: seg.Segment, op: seg.Quantize | seg.Dequantize) -> None:
    same = math.prod(_shape(segment, op.x)) == math.prod(_shape(segment, op.out))
    _check(same, "shapes-differ", f"has shapes that do not fit in {op.name!r}")


_RULES: dict[type, Callable[[seg.Segment, Any], object]] = {
    seg.Conv: _conv,
    seg.Add: _same_or_per_channel,
    seg.Mul: _same_or_per_channel,
    seg.Lut: _lut,
    seg.Pool: _pool,
    seg.Concat: _concat,
    seg.Transpose: _transpose,
    seg.View: _view,
    seg.Reshape: _reshape,
    seg.Pad: _pad,
    seg.Softmax: _softmax,
    seg.Embed: _embed,
    seg.Linear: _linear,
    seg.Norm: _norm,
    seg.Attention: _attention,
    seg.Patches: _patches,
    seg.Position: _position,
    seg.Mean: _mean,
    seg.Normalize: _normalize,
    seg.Resample: _resample,
    seg.Function: _alike,
    seg.Gate: _gate,
    seg.RmsNorm: _rms_norm,
    seg.Sum: _sum,
    seg.Rotary: _rotary,
    seg.WindowAttention: _window_attention,
    seg.Gather: _gather,
    seg.Quantize: _converted,
    seg.Dequantize: _converted,
}
