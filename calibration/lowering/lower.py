"""Lowers layers and ranges to a segment: integer weights, multipliers, tables, arena offsets and a golden answer."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from calibration.importing.graph import short
from calibration.lowering import layers, memory_plan
from calibration.lowering.layers import Clamp, Layer, Network
from calibration.rounding.quantizer import (
    FLOAT_DIGITS,
    Rounded,
    Weights,
    few_digits,
    integers,
    least_scale,
    nearest,
    own_grid,
    pack,
    width,
)
from calibration.statistics.activations import Quantization
from splitedge import errors, limits
from splitedge.head import segment as seg
from splitedge.head.executor import Head
from splitedge.head.verify import MAX_REAL, hwc, inputs
from splitedge.protocol.messages import Preprocess

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
#: Weight bits 2..8: one number for all layers, or one per layer by its output tensor (`Network.weighted`). In place of
#: a number, an even grid of `Calibration.roundings` is valid too (`rounder.EVEN`).
Bits: TypeAlias = int | Mapping[str, int]


@dataclass
class Calibration:
    """The calibration results that lowering uses.

    ``quantizations``: the codes of every tensor. ``means``: the mean of each input channel of a convolution. Both are
    empty for a transformer. ``roundings``: weights rounded with the samples, by layer (its output tensor) and bits or
    even grid. All other weights are rounded to the nearest.
    """

    quantizations: dict[str, Quantization]
    means: dict[str, F32]
    roundings: Mapping[tuple[str, int], Rounded] = field(default_factory=dict)

    def rounded(self, layer: layers.Weighted, bits: int, scale_x: float = 1.0) -> Rounded:
        """The layer's weights at ``bits``. ``scale_x``: scale of the input, for a `Conv`.

        Weights of an int8 file keep their integers at 8 bits.
        """
        if bits == 8 and not isinstance(layer, layers.Embed):
            own = own_grid(layer.weight, layer.bias, scale_x if isinstance(layer, layers.Conv) else None)
            if own is not None:
                return own
        known = self.roundings.get((layer.out, bits))
        if known is not None:
            return known
        if not isinstance(layer, layers.Conv):
            return nearest(layer.weight, layer.bias, bits, np.zeros(len(layer.weight), np.float32))
        return nearest(layer.weight, layer.bias, bits, least_scale(layer.bias, scale_x), self.means_of(layer))

    def width(self, layer: str, bits: int) -> int:
        """The width in memory of the codes of the layer's weights at ``bits``, or on that even grid."""
        return bits if bits <= 8 else width(self.roundings[layer, bits].levels)

    def means_of(self, layer: layers.Conv) -> F32 | None:
        """The mean of each input channel of ``layer``, or None if unknown."""
        means = self.means.get(layer.inputs[0])
        if means is not None and layer.groups == 1:  # a flattened plane repeats its channels
            means = np.tile(means, layer.weight.shape[3] // len(means))
        return means


@dataclass
class Lowered:
    """A segment with a fixed layout; its constants are computed on request.

    ``index``: the header's tensor for each ONNX tensor.
    """

    header: seg.Header
    index: dict[str, int]
    _constants: Constants

    def head(self) -> Head:
        """The head, ready to run, without its file. Raises the same errors as `segment`."""
        return self._head(self._constants.blob())

    def segment(self) -> bytes:
        """The segment file with its golden answer. The same input gives the same bytes.

        Raises `errors.ModelError` if it exceeds `splitedge.limits`, so that agents would refuse it.
        """
        blob = self._constants.blob()
        head = self._head(blob)
        with _refusals():
            answer = head.run(seg.golden_frame(self.header))
            self.header.golden.sha256 = hashlib.sha256(answer.tobytes()).hexdigest()
            return seg.build(self.header, blob)

    def _head(self, blob: bytes) -> Head:
        with _refusals():
            return Head(seg.Segment(self.header, np.frombuffer(blob, np.uint8)), check_golden=False)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Convert the agents' `errors.SegmentError` to an `errors.ModelError`."""
    try:
        yield
    except errors.SegmentError as error:
        reason = str(error).partition(";")[0]
        raise errors.ModelError(
            f"agents would refuse a head of this model ({reason}); use a smaller model or a smaller input",
            reason="over-limits",
            limit=error.data.get("reason"),
        ) from error


def lower(
    network: Network,
    calibration: Calibration,
    cut: str,
    weight_bits: Bits,
    model: str = "model",
    preprocess: Preprocess | None = None,
    start: str | None = None,
) -> Lowered:
    """The head of ``network`` up to the reachable tensor ``cut``.

    The header's ``weight_bits`` are the maximum of all layers.

    ``start``: a tensor before ``cut`` where the head begins instead of at the network's input, for a later stage of a
    chain. It has the form in which the head that ends there holds it. So consecutive stages compute the same bits as
    one head. ``preprocess`` then describes a tensor.

    Raises `errors.ModelError` for a tensor that no head reaches. Raises `errors.UsageError` if ``weight_bits`` lacks a
    layer of the head, names another layer, or holds an invalid width.
    """
    if cut not in network.reachable():
        reason = (
            "; ".join(f"{node}: {why}" for node, why in network.unsupported[:1]) or "the head would compute nothing"
        )
        raise errors.ModelError(
            f"no integer head reaches {short(cut)} ({reason}); cut the model before it", reason="no-head"
        )
    start = start or network.graph.input
    grids = layer_bits(network, cut, weight_bits, calibration.roundings, start)
    widths = {out: calibration.width(out, grid) for out, grid in grids.items()}
    most = max(widths.values(), default=weight_bits if isinstance(weight_bits, int) else 8)
    work = _Lowering(network, calibration, grids, widths)
    source = work.source() if start == network.graph.input else work.resume(_tensor(network, calibration, start), start)
    for layer in between(network, cut, start):
        work.add(layer)
    output = work.index[cut]
    layer_name = short(network.made[cut].name if cut in network.made else cut)
    whole = start == network.graph.input
    spec = preprocess if preprocess and whole else Preprocess("tensor", work.tensors[source].shape)
    golden = seg.Golden(f"{model}/{'' if whole else short(start) + '/'}{layer_name}/{most}", "0" * 64)
    size = place(work.tensors, work.ops, source, output)
    header = seg.Header(
        model, layer_name, most, spec, work.tensors, source, output, work.ops, size, work.constants.size, golden
    )
    return Lowered(header, work.index, work.constants)


def between(network: Network, cut: str, start: str) -> list[Layer]:
    """The layers that compute ``cut`` from ``start`` alone, in order.

    Raises `errors.UsageError` if they need another tensor.
    """
    found = network.needed(cut, start)
    known = {start, *(layer.out for layer in found)}
    if not known >= {cut, *(name for layer in found for name in layer.inputs)}:
        raise errors.UsageError(
            f"{short(cut)} does not depend on {short(start)} alone; choose two cuts in order", reason="other-cut"
        )
    return found


def _tensor(network: Network, calibration: Calibration, name: str) -> seg.Tensor:
    """The tensor ``name`` in the form in which the head that ends there holds it."""
    bits = layer_bits(network, name, 8)
    work = _Lowering(network, calibration, bits, bits)
    work.source()
    for layer in network.needed(name):
        work.add(layer)
    return work.tensors[work.index[name]]


def layer_bits(
    network: Network,
    cut: str,
    weight_bits: Bits,
    known: Container[tuple[str, int]] = (),
    start: str | None = None,
) -> dict[str, int]:
    """The bits of each layer with weights from ``start`` (None: the input) to ``cut``.

    Even grids are valid too if they are in ``known``.

    Raises `errors.UsageError` as `lower` does.
    """
    heads = [layer.out for layer in network.weighted(cut, start)]
    given = [("", weight_bits)] if isinstance(weight_bits, int) else weight_bits.items()
    for out, bits in given:
        if not 2 <= bits <= 8 and (out, bits) not in known:
            raise errors.UsageError(f"weight bits {bits} are invalid; choose 2 to 8", reason="bits", bits=bits)
    if isinstance(weight_bits, int):
        return dict.fromkeys(heads, weight_bits)
    if wrong := sorted(set(heads) ^ set(weight_bits)):
        raise errors.UsageError(
            f"weight bits for {wrong[0]} are missing or unexpected; give bits for the layers {heads}",
            reason="bits-of-layers",
            layer=wrong[0],
        )
    return {out: weight_bits[out] for out in heads}


class Constants:
    """The blob: parts of known size, each at a multiple of `seg.ALIGN`. `blob` computes their bytes."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[tuple[int, int, Callable[[], NDArray[np.generic]]]] = []

    def put(self, size: int, make: Callable[[], NDArray[np.generic]]) -> int:
        offset = self.size
        self._parts.append((offset, size, make))
        self.size += seg.roundup(size)
        return offset

    def blob(self) -> bytes:
        data = np.zeros(self.size, np.uint8)
        for offset, size, make in self._parts:
            data[offset : offset + size] = np.ascontiguousarray(make()).reshape(-1).view(np.uint8)
        return data.tobytes()


@dataclass
class _Lowering:
    network: Network
    calibration: Calibration
    grids: Mapping[str, int]
    bits: Mapping[str, int]
    tensors: list[seg.Tensor] = field(default_factory=list)
    ops: list[seg.AnyOp] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)
    constants: Constants = field(default_factory=Constants)

    def tensor(self, name: str, shape: list[int], quantization: Quantization) -> int:
        self.tensors.append(seg.Tensor(list(shape), quantization.scale, quantization.zero_point, 0))
        self.index[name] = len(self.tensors) - 1
        return self.index[name]

    def source(self) -> int:
        graph = self.network.graph
        shape = graph.stored_shape(graph.input)
        if self.network.source == "u8":
            return self.tensor(graph.input, shape, self.calibration.quantizations[graph.input])
        return self.stream(graph.input, shape)

    def resume(self, tensor: seg.Tensor, name: str) -> int:
        """Use the tensor ``name``, the output of an earlier stage, as the input."""
        self.tensors.append(seg.Tensor(list(tensor.shape), tensor.scale, tensor.zero_point, 0, tensor.dtype))
        self.index[name] = 0
        return 0

    def stream(self, name: str, shape: list[int]) -> int:
        """Add the tensor ``name`` of a transformer's stream."""
        kind = self.network.source if name == self.network.graph.input else "f32"
        self.tensors.append(seg.Tensor(list(shape), 1.0, 0, 0, kind))
        self.index[name] = len(self.tensors) - 1
        return self.index[name]

    def floats(self, values: NDArray[np.floating[Any]]) -> int:
        return self.constants.put(4 * values.size, lambda: few_digits(values.astype(np.float32), FLOAT_DIGITS))

    def weights(self, layer: layers.Weighted) -> tuple[int, int, int]:
        """Offsets of a transformer layer's packed codes, scales and bias (unused if it has no bias)."""
        bits, put = self.bits[layer.out], self.constants.put

        @functools.cache
        def rounded() -> Rounded:
            return self.calibration.rounded(layer, self.grids[layer.out])

        codes = put(-(-layer.weight.size * bits // 8), lambda: pack(rounded().levels, bits))
        scales = put(4 * len(layer.weight), lambda: _digits(rounded().scale, rounded()))
        return (
            codes,
            scales,
            put(4 * layer.bias.size, lambda: few_digits(rounded().bias.astype(np.float32), FLOAT_DIGITS)),
        )

    def add(self, layer: Layer) -> None:
        _LOWER[type(layer)](self, layer)

    def out(self, layer: Layer, shape: list[int] | None = None, like: int | None = None) -> int:
        """Add the layer's output tensor, with its own codes or those of the tensor ``like``."""
        codes = self.codes(layer.out) if like is None else self.quantization(like)
        return self.tensor(layer.out, self.network.graph.stored_shape(layer.out) if shape is None else shape, codes)

    def codes(self, name: str) -> Quantization:
        """The codes of a tensor of the model, or of the one that it is a part of (``name@part``)."""
        known = self.calibration.quantizations
        return known[name] if name in known else known[name.rpartition("@")[0]]

    def negated(self, tensor: int, label: str) -> int:
        """The tensor times -1, exactly: code 255 - q, and the zero point alike."""
        codes = self.quantization(tensor)
        shape = self.tensors[tensor].shape
        minus = self.tensor(f"{tensor}@minus", shape, Quantization(codes.scale, 255 - codes.zero_point))
        self.ops.append(seg.Lut(label, minus, tensor, self.table(lambda: np.arange(255, -1, -1, dtype=np.uint8))))
        return minus

    def quantization(self, tensor: int) -> Quantization:
        return Quantization(self.tensors[tensor].scale, self.tensors[tensor].zero_point)

    def clamp(self, clamp: Clamp, tensor: int) -> tuple[int, int]:
        """The smallest and the largest code."""
        lo, hi = self.quantization(tensor).codes(np.clip(np.array(clamp), -1e30, 1e30))
        return int(lo), int(hi)

    def viewed(self, name: str, shape: list[int], label: str) -> int:
        """The tensor ``name`` under another ``shape``.

        It stays itself if a convolution reads it in that shape anyway.
        """
        tensor = self.index[name]
        if len(self.tensors[tensor].shape) < 4 and list(hwc(self.tensors[tensor].shape)) == shape:
            return tensor
        view = self.tensor(f"{name}@{shape}", shape, self.quantization(tensor))
        self.ops.append(seg.Reshape(label, view, tensor))
        return view

    def table(self, make: Callable[[], NDArray[np.uint8]]) -> int:
        return self.constants.put(256, make)


def _digits(scale: F32, rounded: Rounded) -> F32:
    """``scale`` with few digits, or with all if the weights are ``rounded`` to their own grid."""
    return np.asarray(scale, np.float32) if rounded.exact else few_digits(scale)


def _conv(work: _Lowering, layer: layers.Conv) -> None:
    name = layer.inputs[0]
    x = work.index[name] if layer.view is None else work.viewed(name, layer.view, short(layer.name))
    y = work.out(layer)
    source, target, bits = work.tensors[x], work.tensors[y], work.bits[layer.out]

    @functools.cache
    def rounded() -> tuple[Rounded, F32]:
        """Rounded weights, and the multipliers from their sums to codes."""
        found = work.calibration.rounded(layer, work.grids[layer.out], source.scale)
        return found, _digits(np.float32(source.scale) * found.scale / np.float32(target.scale), found)

    @functools.cache
    def weights() -> Weights:
        """Weights with the scales that the rounded multipliers represent."""
        found, multiplier = rounded()
        scale = multiplier * (np.float32(target.scale) / np.float32(source.scale))
        return integers(replace(found, scale=scale), source.scale, source.zero_point)

    def multipliers() -> F32:
        """The multipliers within the verifier's limit.

        Only layers whose outputs are almost constant on the calibration samples come near this limit.
        """
        greatest = (MAX_REAL / 2 / np.maximum(weights().reach(), 1)).astype(np.float32)
        return np.minimum(rounded()[1], greatest)

    outs, put = len(layer.bias), work.constants.put
    weight = put(-(-layer.weight.size * bits // 8), lambda: pack(weights().weight, bits))
    bias, multiplier = put(4 * outs, lambda: weights().bias), put(4 * outs, multipliers)
    lo, hi = work.clamp(layer.clamp, y)
    kernel = list(layer.weight.shape[1:3])
    geometry = (kernel, list(layer.stride), list(layer.dilation), list(layer.pad), layer.groups)
    work.ops.append(seg.Conv(short(layer.name), y, x, bits, weight, bias, multiplier, *geometry, lo, hi))


def _binary(work: _Lowering, layer: layers.Binary) -> None:
    a, b = (work.index[t] for t in layer.inputs)
    if layer.kind == "sub":
        b = work.negated(b, short(layer.name))
    y = work.out(layer)
    scale_a, scale_b, scale_y = (np.float32(work.tensors[t].scale) for t in (a, b, y))
    lo, hi = work.clamp(layer.clamp, y)
    if layer.kind != "mul":
        work.ops.append(seg.Add(short(layer.name), y, a, b, float(scale_a / scale_y), float(scale_b / scale_y), lo, hi))
    else:
        work.ops.append(seg.Mul(short(layer.name), y, a, b, float(scale_a * scale_b / scale_y), lo, hi))


def _unary(work: _Lowering, layer: layers.Unary) -> None:
    x = work.index[layer.inputs[0]]
    y = work.out(layer)
    before, after = work.quantization(x), work.quantization(y)
    table = work.table(lambda: after.codes(np.nan_to_num(layer.function(before.values()))))
    work.ops.append(seg.Lut(short(layer.name), y, x, table))


def _pool(work: _Lowering, layer: layers.Pool) -> None:
    x = work.index[layer.inputs[0]]
    y = work.out(layer, layer.shape, like=x if layer.kind == "max" else None)
    ratio = np.float32(work.tensors[x].scale) / np.float32(work.tensors[y].scale) * np.float32(layer.factor)
    lo, hi = work.clamp(layer.clamp, y)
    window = (list(layer.kernel), list(layer.stride), list(layer.pad), layer.count_pad)
    work.ops.append(seg.Pool(short(layer.name), y, x, layer.kind, *window, float(ratio), lo, hi))


def _concat(work: _Lowering, layer: layers.Concat) -> None:
    parts = [work.index[t] for t in layer.inputs]
    y = work.out(layer, layer.shape)
    after = work.quantization(y)
    tables = []
    for part in parts:
        before = work.quantization(part)
        same = before == after
        tables.append(-1 if same else work.table(lambda before=before: after.codes(before.values())))  # type: ignore[misc]
    work.ops.append(seg.Concat(short(layer.name), y, parts, tables))


def _transpose(work: _Lowering, layer: layers.Transpose) -> None:
    x = work.index[layer.inputs[0]]
    y = work.out(layer, [work.tensors[x].shape[axis] for axis in layer.perm], like=x)
    work.ops.append(seg.Transpose(short(layer.name), y, x, layer.perm))


def _view(work: _Lowering, layer: layers.View) -> None:
    x = work.index[layer.inputs[0]]
    floats = work.tensors[x].dtype == "f32"
    y = work.stream(layer.out, layer.shape) if floats else work.out(layer, layer.shape, like=x)
    work.ops.append(seg.View(short(layer.name), y, x, layer.start, layer.sizes, layer.steps))


def _reshape(work: _Lowering, layer: layers.Reshape) -> None:
    x = work.index[layer.inputs[0]]
    if work.tensors[x].dtype != "u8":
        work.ops.append(seg.Reshape(short(layer.name), work.stream(layer.out, layer.shape), x))
        return
    work.ops.append(seg.Reshape(short(layer.name), work.out(layer, layer.shape, like=x), x))


def _pad(work: _Lowering, layer: layers.Pad) -> None:
    x = work.index[layer.inputs[0]]
    top, left, bottom, right = layer.pad
    height, width, channels = work.tensors[x].shape
    y = work.out(layer, [height + top + bottom, width + left + right, channels], like=x)
    work.ops.append(seg.Pad(short(layer.name), y, x, list(layer.pad), work.tensors[x].zero_point))


def _softmax(work: _Lowering, layer: layers.Softmax) -> None:
    x = work.index[layer.inputs[0]]
    work.ops.append(seg.Softmax(short(layer.name), work.out(layer), x, 0, 255))


def _normalize(work: _Lowering, layer: layers.Normalize) -> None:
    x = work.index[layer.inputs[0]]
    y = work.out(layer, work.tensors[x].shape)
    size = layer.rows * work.tensors[x].shape[-1] // layer.groups
    step = work.tensors[x].scale / size
    epsilon = float(np.clip(np.float32(layer.epsilon / step**2), np.float32(1e-30), np.float32(1e30)))
    scale = np.float32(work.tensors[y].scale)
    gamma, beta = work.floats(layer.gamma / scale), work.floats(layer.beta / scale)
    lo, hi = work.clamp(layer.clamp, y)
    groups = (layer.rows, layer.groups)
    work.ops.append(seg.Normalize(short(layer.name), y, x, *groups, gamma, beta, epsilon, lo, hi))


def _resample(work: _Lowering, layer: layers.Resample) -> None:
    x = work.index[layer.inputs[0]]
    y = work.out(layer, like=x)
    (rows, row_weights), (columns, column_weights) = layer.rows, layer.columns

    def put(values: I64 | F32, kind: type) -> int:
        return work.constants.put(4 * values.size, lambda: values.astype(kind))

    places = (
        put(rows, np.int32),
        put(row_weights, np.float32),
        put(columns, np.int32),
        put(column_weights, np.float32),
    )
    work.ops.append(seg.Resample(short(layer.name), y, x, *places))


def _embed(work: _Lowering, layer: layers.Embed) -> None:
    y = work.stream(layer.out, list(layer.position.shape))
    weight, scales, _ = work.weights(layer)
    place = work.floats(layer.position)
    bits, x = work.bits[layer.out], work.index[layer.inputs[0]]
    work.ops.append(seg.Embed(short(layer.name), y, x, bits, len(layer.weight), weight, scales, place))


def _linear(work: _Lowering, layer: layers.Linear) -> None:
    x, *more = (work.index[t] for t in layer.inputs)
    y = work.stream(layer.out, [*work.tensors[x].shape[:-1], len(layer.bias)])
    places, bits = work.weights(layer), work.bits[layer.out]
    residual = more[0] if more else -1
    work.ops.append(seg.Linear(short(layer.name), y, x, bits, *places, layer.activation, residual))


def _norm(work: _Lowering, layer: layers.Norm) -> None:
    x = work.index[layer.inputs[0]]
    y = work.stream(layer.out, work.tensors[x].shape)
    work.ops.append(seg.Norm(short(layer.name), y, x, work.floats(layer.gamma), work.floats(layer.beta), layer.epsilon))


def _attention(work: _Lowering, layer: layers.Attention) -> None:
    x, *ids = (work.index[t] for t in layer.inputs)
    tokens, width = work.tensors[x].shape
    y = work.stream(layer.out, [tokens, width // 3])
    kept = ids[0] if ids else -1
    work.ops.append(seg.Attention(short(layer.name), y, x, layer.heads, layer.factor, kept, layer.pad))


def _patches(work: _Lowering, layer: layers.Patches) -> None:
    x = work.index[layer.inputs[0]]
    height, width, channels = work.tensors[x].shape
    shape = [height * width // layer.size**2, channels * layer.size**2]
    work.ops.append(seg.Patches(short(layer.name), work.stream(layer.out, shape), x, layer.size))


def _position(work: _Lowering, layer: layers.Position) -> None:
    y = work.stream(layer.out, list(layer.table.shape))
    work.ops.append(seg.Position(short(layer.name), y, work.index[layer.inputs[0]], work.floats(layer.table)))


def _mean(work: _Lowering, layer: layers.Mean) -> None:
    y = work.stream(layer.out, work.network.graph.stored_shape(layer.out))
    work.ops.append(seg.Mean(short(layer.name), y, work.index[layer.inputs[0]], layer.first, layer.count))


def _function(work: _Lowering, layer: layers.Function) -> None:
    x = work.index[layer.inputs[0]]
    work.ops.append(seg.Function(short(layer.name), work.stream(layer.out, work.tensors[x].shape), x, layer.kind))


def _gate(work: _Lowering, layer: layers.Gate) -> None:
    x = work.index[layer.inputs[0]]
    *rows, channels = work.tensors[x].shape
    work.ops.append(seg.Gate(short(layer.name), work.stream(layer.out, [*rows, channels // 2]), x, layer.kind))


def _rms_norm(work: _Lowering, layer: layers.RmsNorm) -> None:
    x = work.index[layer.inputs[0]]
    y = work.stream(layer.out, work.tensors[x].shape)
    work.ops.append(seg.RmsNorm(short(layer.name), y, x, work.floats(layer.gamma), layer.epsilon))


def _sum(work: _Lowering, layer: layers.Sum) -> None:
    a, b = (work.index[t] for t in layer.inputs)
    work.ops.append(seg.Sum(short(layer.name), work.stream(layer.out, work.tensors[a].shape), a, b))


def _rotary(work: _Lowering, layer: layers.Rotary) -> None:
    x = work.index[layer.inputs[0]]
    y = work.stream(layer.out, work.tensors[x].shape)
    tokens, _, size = layer.table.shape
    work.ops.append(seg.Rotary(short(layer.name), y, x, layer.heads, size, tokens, work.floats(layer.table)))


def _window_attention(work: _Lowering, layer: layers.WindowAttention) -> None:
    x, *ids = (work.index[t] for t in layer.inputs)
    rows, width = work.tensors[x].shape
    y = work.stream(layer.out, [rows, width // 3])
    bias, values, places = -1, 0, -1
    if layer.bias is not None:  # each value once: relative positions repeat
        found, where = np.unique(layer.bias.reshape(layer.heads, -1), axis=1, return_inverse=True)
        bias, values = work.floats(found), found.shape[1]
        places = work.constants.put(4 * where.size, lambda: where.astype(np.int32))
    mask = -1 if layer.mask is None else work.floats(layer.mask)
    given = layer.heads, layer.factor, layer.windows, ids[0] if ids else -1, layer.pad
    work.ops.append(seg.WindowAttention(short(layer.name), y, x, *given, bias, values, places, mask))


def _gather(work: _Lowering, layer: layers.Gather) -> None:
    x = work.index[layer.inputs[0]]
    y = work.stream(layer.out, [len(layer.rows), work.tensors[x].shape[-1]])
    rows = work.constants.put(4 * len(layer.rows), lambda: layer.rows.astype(np.int32))
    work.ops.append(seg.Gather(short(layer.name), y, x, rows))


def _quantize(work: _Lowering, layer: layers.Quantize) -> None:
    x = work.index[layer.inputs[0]]
    work.ops.append(seg.Quantize(short(layer.name), work.out(layer, layer.shape), x))


def _dequantize(work: _Lowering, layer: layers.Dequantize) -> None:
    x = work.index[layer.inputs[0]]
    work.ops.append(seg.Dequantize(short(layer.name), work.stream(layer.out, layer.shape), x))


_LOWER: dict[type, Callable[..., None]] = {
    layers.Conv: _conv,
    layers.Binary: _binary,
    layers.Unary: _unary,
    layers.Pool: _pool,
    layers.Concat: _concat,
    layers.Transpose: _transpose,
    layers.View: _view,
    layers.Reshape: _reshape,
    layers.Pad: _pad,
    layers.Softmax: _softmax,
    layers.Embed: _embed,
    layers.Linear: _linear,
    layers.Norm: _norm,
    layers.Attention: _attention,
    layers.Patches: _patches,
    layers.Position: _position,
    layers.Mean: _mean,
    layers.Normalize: _normalize,
    layers.Resample: _resample,
    layers.Function: _function,
    layers.Gate: _gate,
    layers.RmsNorm: _rms_norm,
    layers.Sum: _sum,
    layers.Rotary: _rotary,
    layers.WindowAttention: _window_attention,
    layers.Gather: _gather,
    layers.Quantize: _quantize,
    layers.Dequantize: _dequantize,
}


# --- activation memory ------------------------------------------------------------------------------------------------


def place(tensors: list[seg.Tensor], ops: list[seg.AnyOp], source: int, output: int) -> int:
    """Set the offset of every tensor; returns the arena size in bytes.

    A reshaped tensor shares the place of its source.
    """
    owner = list(range(len(tensors)))
    first, last = {source: -1}, {source: -1}
    for step, op in enumerate(ops):
        if isinstance(op, seg.Reshape):
            owner[op.out] = owner[op.x]
        for t in (*inputs(op), op.out):
            first.setdefault(owner[t], step)
            last[owner[t]] = step
    last[owner[output]] = len(ops)
    blocks = sorted(first)
    extents = [memory_plan.Extent(tensors[b].nbytes, first[b], last[b]) for b in blocks]
    offsets, size = memory_plan.plan(extents)
    places = dict(zip(blocks, offsets, strict=True))
    for t, tensor in enumerate(tensors):
        tensor.offset = places[owner[t]]
    if size > limits.MAX_ARENA_BYTES:
        raise errors.ModelError(
            f"a head of this model needs {size} bytes of activations (the maximum is {limits.MAX_ARENA_BYTES}); "
            "use a smaller input",
            reason="activations",
        )
    return size
