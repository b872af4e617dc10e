"""Layers of convolutional networks with uint8 codes between them. Activations, batch norms and constants are fused.

`convert` converts each operator alone, so it also judges operators after an unsupported one. An operator that it cannot
express exactly is unsupported, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from calibration.importing.graph import STORED_AXES, Graph, Node
from calibration.lowering.layers.network import (
    F32,
    F64,
    OPEN,
    Binary,
    Concat,
    Conv,
    Layer,
    Network,
    Pad,
    Pool,
    Reshape,
    Softmax,
    Transpose,
    Unary,
    UnaryFunction,
    Unsupported,
    View,
    argument,
    gemm_weights,
    layer_name,
    rename,
    scalar,
    weights,
)

_ONE, _NONE = np.ones(()), np.zeros(())


def convert(network: Network, node: Node) -> None:
    """Append the layers of ``node``. Raises `Unsupported`."""
    builder = _BUILDERS.get(node.op)
    if builder is None:
        raise Unsupported("the integer head has no such operator")
    graph = network.graph
    for tensor in [t for t in (*node.inputs, *node.outputs[:1]) if t and t not in graph.constants]:
        if not graph.storable(tensor):
            raise Unsupported("a tensor of unknown shape, or not of 2 to 4 axes with a batch of 1")
    built = builder(network, node)
    if any(t in graph.consumers for t in set(node.outputs[1:]) - {layer.out for layer in built}):
        raise Unsupported("its second output is used")
    for layer in built:
        network.layers.append(layer)
        network.made[layer.out] = layer


def _spatial_rank(graph: Graph, tensor: str) -> None:
    if len(graph.shapes[tensor]) != 4:
        raise Unsupported("it works on something else than [N, C, H, W]")


# --- convolutions and matrix products ---------------------------------------------------------------------------------


def _conv(network: Network, node: Node) -> list[Layer]:
    graph, x = network.graph, node.inputs[0]
    _spatial_rank(graph, x)
    weight = weights(graph, node.inputs[1])
    bias = (
        weights(graph, node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(len(weight), np.float32)
    )
    stride, dilation = _pair(node, "strides"), _pair(node, "dilations")
    pad = _padding(graph, node, (weight.shape[2], weight.shape[3]), stride, dilation)
    window = [(weight.shape[2 + i] - 1) * dilation[i] + 1 for i in range(2)]
    layers: list[Layer] = []
    if not _within(pad, window):
        layers.append(Pad(node.name, f"{node.outputs[0]}@padded", [x], pad))
        x, pad = layers[0].out, (0, 0, 0, 0)
    before = network.made.get(x)
    if isinstance(before, Pad) and _within(_sum(pad, before.pad), window):
        x, pad = before.inputs[0], _sum(pad, before.pad)
    groups = int(node.attrs.get("group", 1))
    stored = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
    conv = Conv(layer_name(graph, node), node.outputs[0], [x], stored, bias, stride, dilation, pad, groups)
    return [*layers, conv]


def _pair(node: Node, name: str) -> tuple[int, int]:
    first, second = node.attrs.get(name) or (1, 1)
    return int(first), int(second)


def _sum(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


def _within(pad: Sequence[int], window: Sequence[int]) -> bool:
    """Whether every window overlaps the plane on each side, as the verifier requires."""
    return max(pad[0], pad[2]) < window[0] and max(pad[1], pad[3]) < window[1]


def _padding(
    graph: Graph, node: Node, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Padding at top, left, bottom and right.

    The bottom and right padding gives the output its inferred size (SAME padding, ceil mode).
    """
    mode = node.attrs.get("auto_pad", b"NOTSET")
    pads = [int(p) for p in node.attrs.get("pads") or (0, 0, 0, 0)] if mode == b"NOTSET" else [0, 0, 0, 0]
    size, out = graph.shapes[node.inputs[0]][2:], graph.shapes[node.outputs[0]][2:]
    spans = [(out[i] - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1 - size[i] for i in range(2)]
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        total = [max(0, span) for span in spans]
        pads[:2] = [(t + (mode == b"SAME_LOWER")) // 2 for t in total]
        pads[2:] = [total[0] - pads[0], total[1] - pads[1]]
    if node.attrs.get("ceil_mode", 0):
        pads[2:] = [max(pads[2], spans[0] - pads[0]), max(pads[3], spans[1] - pads[1])]
    if min(pads) < 0:
        raise Unsupported("a negative padding")
    return pads[0], pads[1], pads[2], pads[3]


def _gemm(network: Network, node: Node) -> list[Layer]:
    return [_product(network, node, *gemm_weights(network.graph, node))]


def _matmul(network: Network, node: Node) -> list[Layer]:
    graph = network.graph
    if node.inputs[0] in graph.constants or len(graph.shapes[node.inputs[0]]) == 4:
        raise Unsupported("a matrix product of other than [N, K] or [N, T, K] with a constant")
    weight = weights(graph, node.inputs[1])
    if weight.ndim != 2:
        raise Unsupported("its weights are not a matrix")
    return [_product(network, node, weight.T, np.zeros(weight.shape[1], np.float32))]


def _product(network: Network, node: Node, weight: F32, bias: F32) -> Conv:
    """x times ``weight`` [N, K] transposed. If x is a flattened plane, the weights take the stored order instead."""
    graph, x = network.graph, node.inputs[0]
    rows, depth = math.prod(graph.shapes[x][1:-1]), graph.shapes[x][-1]
    flatten = graph.producer.get(x)
    if flatten and flatten.op in ("Flatten", "Reshape") and graph.storable(flatten.inputs[0]) and rows == 1:
        plane = graph.shapes[flatten.inputs[0]]
        if len(plane) == 4 and math.prod(plane) == depth:
            x = flatten.inputs[0]
            weight = weight.reshape(-1, *plane[1:]).transpose(0, 2, 3, 1)
    stored = np.ascontiguousarray(weight.reshape(len(weight), 1, 1, depth))
    return Conv(layer_name(graph, node), node.outputs[0], [x], stored, bias, view=[rows, 1, depth])


# --- element-wise operators -------------------------------------------------------------------------------------------


def _operands(graph: Graph, node: Node) -> tuple[list[str], list[F64]]:
    """The variable inputs and the constant inputs."""
    tensors = [t for t in node.inputs if t not in graph.constants]
    return tensors, [graph.constants[t].astype(np.float64) for t in node.inputs if t in graph.constants]


def _constant_for(graph: Graph, node: Node, x: str, value: F64) -> F64:
    """``value`` as a scalar [] or per channel [C]."""
    shape = graph.shapes[x]
    if graph.shapes[node.outputs[0]] != shape:
        raise Unsupported("a constant that widens its tensor")
    if value.size == 1:
        return value.reshape(())
    axis = STORED_AXES[len(shape)][-1]
    padded = (1,) * (len(shape) - value.ndim) + value.shape
    if padded[axis] != shape[axis] or math.prod(padded) != shape[axis]:
        raise Unsupported("a constant with values along other axes than the channels")
    return value.reshape(-1)


def _add(network: Network, node: Node) -> list[Layer]:
    tensors, constants = _operands(network.graph, node)
    if constants:
        offset = _constant_for(network.graph, node, tensors[0], constants[0])
        return _affine(network, node, tensors[0], _ONE, offset)
    return _binary(network, node, "add", lambda a, b: a + b)


def _mul(network: Network, node: Node) -> list[Layer]:
    tensors, constants = _operands(network.graph, node)
    if constants:
        factor = _constant_for(network.graph, node, tensors[0], constants[0])
        return _affine(network, node, tensors[0], factor, _NONE)
    return _binary(network, node, "mul", lambda a, b: a * b)


def _sub(network: Network, node: Node) -> list[Layer]:
    tensors, constants = _operands(network.graph, node)
    if not constants:
        return _same_root(network, node, lambda a, b: a - b)
    offset = _constant_for(network.graph, node, tensors[0], constants[0])
    if node.inputs[0] in network.graph.constants:
        return _affine(network, node, tensors[0], -_ONE, offset)
    return _affine(network, node, tensors[0], _ONE, -offset)


def _div(network: Network, node: Node) -> list[Layer]:
    tensors, constants = _operands(network.graph, node)
    if not constants:
        return _same_root(network, node, _quotient)
    value = _constant_for(network.graph, node, tensors[0], constants[0])
    if node.inputs[0] in network.graph.constants:
        above = np.full((), scalar(value))
        return [_unary_layer(network, node, lambda x: _quotient(above, x))]
    if not value.all():
        raise Unsupported("a division by zero")
    return _affine(network, node, tensors[0], 1.0 / value, _NONE)


def _quotient(a: F64, b: F64) -> F64:
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=b != 0)


def _affine(network: Network, node: Node, x: str, factor: F64, offset: F64) -> list[Layer]:
    """x * factor + offset as one layer.

    It is fused into the preceding convolution, or becomes a table (scalars) or a depthwise convolution (channels).
    """
    graph, before = network.graph, network.made.get(x)
    if isinstance(before, Conv) and before.clamp == OPEN and graph.sole_consumer(x) is node:
        scale = np.broadcast_to(factor, before.bias.shape)
        before.weight = (before.weight * scale[:, None, None, None]).astype(np.float32)
        before.bias = (before.bias * scale + offset).astype(np.float32)
        return rename(network, before, node.outputs[0])
    if factor.ndim == offset.ndim == 0:
        return [_unary_layer(network, node, lambda v: v * factor + offset)]
    shape = graph.stored_shape(x)
    channels = shape[-1]
    weight = np.broadcast_to(factor, channels).astype(np.float32).reshape(-1, 1, 1, 1)
    bias = np.broadcast_to(offset, channels).astype(np.float32)
    view = None if len(shape) == 3 else [math.prod(shape[:-1]), 1, channels]
    return [Conv(node.name, node.outputs[0], [x], weight, bias, groups=channels, view=view)]


def _binary(
    network: Network, node: Node, kind: Literal["add", "mul"], function: Callable[[F64, F64], F64]
) -> list[Layer]:
    graph = network.graph
    a, b = node.inputs
    if _root(network, a)[0] == _root(network, b)[0]:
        return _same_root(network, node, function)
    out = graph.shapes[node.outputs[0]]
    if graph.shapes[a] != out:
        a, b = b, a
    if graph.shapes[a] != out or (graph.shapes[b] != out and graph.shapes[b] != (1, out[1], 1, 1)):
        raise Unsupported("a broadcast other than one value for each channel")
    return [Binary(node.name, node.outputs[0], [a, b], kind)]


def _root(network: Network, tensor: str) -> tuple[str, UnaryFunction]:
    """The tensor of which ``tensor`` is an element-wise function, and this function."""
    layer = network.made.get(tensor)
    return (layer.inputs[0], layer.function) if isinstance(layer, Unary) else (tensor, lambda x: x)


def _same_root(network: Network, node: Node, function: Callable[[F64, F64], F64]) -> list[Layer]:
    """Fuse two operands that are functions of one tensor, such as x * sigmoid(x), into one function."""
    (root, first), (other, second) = (_root(network, t) for t in node.inputs)
    if root != other:
        raise Unsupported("a difference or quotient of two tensors")
    return [Unary(node.name, node.outputs[0], [root], lambda x: function(first(x), second(x)))]


def _unary_layer(network: Network, node: Node, function: UnaryFunction) -> Layer:
    tensor = next(t for t in node.inputs if t not in network.graph.constants)
    root, inner = _root(network, tensor)
    return Unary(node.name, node.outputs[0], [root], lambda x: function(inner(x)))


def _unary(make: Callable[[Network, Node], UnaryFunction]) -> Callable[[Network, Node], list[Layer]]:
    def builder(network: Network, node: Node) -> list[Layer]:
        return [_unary_layer(network, node, make(network, node))]

    return builder


def _plain(function: UnaryFunction) -> Callable[[Network, Node], list[Layer]]:
    return _unary(lambda _network, _node: function)


def _clip(network: Network, node: Node) -> list[Layer]:
    """Fuse a Clip or Relu into the preceding layer if no other operator reads it; else a table."""
    graph, x = network.graph, node.inputs[0]
    if node.op == "Relu":
        lo, hi = 0.0, math.inf
    else:
        lo = scalar(argument(graph, node, 1, "min", -math.inf))
        hi = scalar(argument(graph, node, 2, "max", math.inf))
    before = network.made.get(x)
    fusible = isinstance(before, Conv | Binary) or (isinstance(before, Pool) and before.kind == "avg")
    if fusible and graph.sole_consumer(x) is node:
        assert isinstance(before, Conv | Binary | Pool)
        before.clamp = (min(max(before.clamp[0], lo), hi), min(max(before.clamp[1], lo), hi))
        return rename(network, before, node.outputs[0])
    return [_unary_layer(network, node, lambda v: np.minimum(np.maximum(v, lo), hi))]


def _sigmoid(x: F64) -> F64:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _erf(x: F64) -> F64:
    return np.array([math.erf(v) for v in x.reshape(-1)]).reshape(x.shape)


def _hard_sigmoid(node: Node) -> UnaryFunction:
    alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    return lambda x: np.clip(alpha * x + beta, 0.0, 1.0)


def _leaky(slope: float) -> UnaryFunction:
    return lambda x: np.where(x < 0, slope * x, x)


def _elu(node: Node) -> UnaryFunction:
    alpha = float(node.attrs.get("alpha", 1.0))
    return lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x)


def _power(network: Network, node: Node) -> UnaryFunction:
    exponent = scalar(argument(network.graph, node, 1, "exponent"))
    if not exponent.is_integer() or exponent < 0:
        raise Unsupported("an exponent that is not a whole number")
    return lambda x: x ** int(exponent)


def _gelu(node: Node) -> UnaryFunction:
    if node.attrs.get("approximate", b"none") == b"tanh":
        return lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return lambda x: 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


# --- pooling ----------------------------------------------------------------------------------------------------------


def _pool(network: Network, node: Node) -> list[Layer]:
    graph, x = network.graph, node.inputs[0]
    _spatial_rank(graph, x)
    kernel = _pair(node, "kernel_shape")
    stride = _pair(node, "strides")
    if _pair(node, "dilations") != (1, 1):
        raise Unsupported("a dilated window")
    pad = _padding(graph, node, kernel, stride, (1, 1))
    count_pad = bool(node.attrs.get("count_include_pad", 0)) and any(pad)
    if count_pad and node.attrs.get("ceil_mode", 0):
        raise Unsupported("an average that counts its padding, with an output rounded up")
    if not _within(pad, kernel):
        raise Unsupported("a window that lies in the padding")
    kind: Literal["max", "avg"] = "max" if node.op == "MaxPool" else "avg"
    return [Pool(node.name, node.outputs[0], [x], kind, kernel, stride, pad, count_pad)]


def _global_pool(network: Network, node: Node) -> list[Layer]:
    _spatial_rank(network.graph, node.inputs[0])
    return [_whole_plane(network, node, "max" if node.op == "GlobalMaxPool" else "avg")]


def _whole_plane(network: Network, node: Node, kind: Literal["max", "avg"]) -> Pool:
    height, width = network.graph.shapes[node.inputs[0]][2:]
    return Pool(node.name, node.outputs[0], [node.inputs[0]], kind, (height, width), (1, 1), (0, 0, 0, 0))


def _reduce_plane(network: Network, node: Node) -> list[Layer]:
    """ReduceMean or ReduceMax over H and W."""
    graph = network.graph
    _spatial_rank(graph, node.inputs[0])
    axes = argument(graph, node, 1, "axes")
    if axes is None or sorted(int(a) % 4 for a in np.asarray(axes).reshape(-1)) != [2, 3]:
        raise Unsupported("it reduces other axes than height and width")
    kind: Literal["max", "avg"] = "max" if node.op == "ReduceMax" else "avg"
    return [_whole_plane(network, node, kind)]


# --- layout -----------------------------------------------------------------------------------------------------------


def _reshape(network: Network, node: Node) -> list[Layer]:
    """Any change of shape. It passes through the ONNX order of elements if the stored order differs."""
    graph, x, out = network.graph, node.inputs[0], node.outputs[0]
    before, after = graph.shapes[x], graph.shapes[out]
    layers: list[Layer] = []
    if _reordered(before) and not _same_order(before, after):
        layers.append(Transpose(node.name, f"{out}@chw", [x], [2, 0, 1]))
        x = layers[-1].out
    if _reordered(after) and not _same_order(before, after):
        layers.append(Reshape(node.name, f"{out}@planes", [x], list(after[1:])))
        return [*layers, Transpose(node.name, out, [layers[-1].out], [1, 2, 0])]
    return [*layers, Reshape(node.name, out, [x], graph.stored_shape(out))]


def _reordered(shape: tuple[int, ...]) -> bool:
    """Whether the stored order of elements differs from the ONNX order."""
    return len(shape) == 4 and shape[1] > 1 and shape[2] * shape[3] > 1


def _same_order(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether both shapes are planes with the same channels, so that only height and width differ."""
    return len(before) == len(after) == 4 and before[1] == after[1]


def _transpose(network: Network, node: Node) -> list[Layer]:
    graph, x = network.graph, node.inputs[0]
    rank = len(graph.shapes[x])
    perm = [int(p) for p in node.attrs.get("perm") or reversed(range(rank))]
    if perm[0] != 0:
        raise Unsupported("it moves the batch axis")
    stored = STORED_AXES[rank]
    order = [stored.index(perm[axis]) for axis in stored]
    if order == sorted(order):
        return [Reshape(node.name, node.outputs[0], [x], graph.stored_shape(x))]
    return [Transpose(node.name, node.outputs[0], [x], order)]


# --- views: elements of a tensor without arithmetic -------------------------------------------------------------------


def _axes_view(network: Network, node: Node, out: str, x: str, picks: dict[int, tuple[int, int]]) -> View:
    """Elements along some ONNX axes of ``x``. ``picks``: for an axis the first index and the step."""
    graph = network.graph
    rank, stored = len(graph.shapes[x]), graph.stored_shape(x)
    shape = graph.stored_shape(out)
    strides = [math.prod(stored[i + 1 :]) for i in range(len(stored))]
    picked = [picks.get(axis, (0, 1)) for axis in STORED_AXES[rank]]
    start = sum(first * stride for (first, _), stride in zip(picked, strides, strict=True))
    steps = [step * stride for (_, step), stride in zip(picked, strides, strict=True)]
    return View(node.name, out, [x], start, list(shape), steps, list(shape))


def _slice(network: Network, node: Node) -> list[Layer]:
    graph, x = network.graph, node.inputs[0]
    shape = graph.shapes[x]
    starts, ends = (
        [int(v) for v in np.asarray(argument(graph, node, i, name)).reshape(-1)]
        for i, name in ((1, "starts"), (2, "ends"))
    )
    given_axes, given_steps = argument(graph, node, 3, "axes"), argument(graph, node, 4, "steps")
    axes = [int(a) % len(shape) for a in (range(len(starts)) if given_axes is None else np.reshape(given_axes, -1))]
    steps = [1] * len(starts) if given_steps is None else [int(s) for s in np.reshape(given_steps, -1)]
    picks = {}
    for axis, first, end, step in zip(axes, starts, ends, steps, strict=True):
        found = range(shape[axis])[first:end:step]
        if step < 1:
            raise Unsupported("it reverses an axis")
        if axis == 0 and len(found) != 1:
            raise Unsupported("it cuts the batch axis")
        picks[axis] = (found.start, step)
    if list(shape) == list(graph.shapes[node.outputs[0]]):
        return [Reshape(node.name, node.outputs[0], [x], graph.stored_shape(x))]
    return [_axes_view(network, node, node.outputs[0], x, {axis: pick for axis, pick in picks.items() if axis > 0})]


def _split(network: Network, node: Node) -> list[Layer]:
    graph, x = network.graph, node.inputs[0]
    axis = int(node.attrs.get("axis", 0)) % len(graph.shapes[x])
    if axis == 0:
        raise Unsupported("it cuts the batch axis")
    found: list[Layer] = []
    first = 0
    for out in node.outputs:
        if not graph.storable(out):
            raise Unsupported("a tensor of unknown shape, or not of 2 to 4 axes with a batch of 1")
        found.append(_axes_view(network, node, out, x, {axis: (first, 1)}))
        first += graph.shapes[out][axis]
    return found


def _gather(network: Network, node: Node) -> list[Layer]:
    """Constant places along one axis that lie at even distances, in one or two levels, as a shuffle of channels."""
    graph, x, out = network.graph, node.inputs[0], node.outputs[0]
    shape = graph.shapes[x]
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    places = graph.constants.get(node.inputs[1])
    if places is None or places.ndim != 1 or axis != STORED_AXES[len(shape)][-1]:
        raise Unsupported("it gathers along another axis than the channels, or places that are not constant")
    levels = _two_levels([int(p) % shape[axis] for p in places])
    if levels is None:
        raise Unsupported("it gathers channels at uneven distances")
    start, sizes, steps = levels
    stored = graph.stored_shape(out)
    rows, channels = math.prod(stored[:-1]), shape[axis]
    return [View(node.name, out, [x], start, [rows, *sizes], [channels, *steps], stored)]


def _two_levels(places: Sequence[int]) -> tuple[int, list[int], list[int]] | None:
    """Start, sizes and steps of two loops that yield ``places``, or None."""
    count, start = len(places), places[0]
    for inner in (n for n in range(count, 0, -1) if count % n == 0):
        steps = [places[inner] - start if inner < count else 0, places[1] - start if inner > 1 else 0]
        made = [start + i * steps[0] + j * steps[1] for i in range(count // inner) for j in range(inner)]
        if made == list(places) and min(steps) >= 0:
            return start, [count // inner, inner], steps
    return None


def _resize(network: Network, node: Node) -> list[Layer]:
    """Repeated rows and columns: the nearest element at whole factors."""
    graph, x, out = network.graph, node.inputs[0], node.outputs[0]
    _spatial_rank(graph, x)
    (_, channels, height, width), after = graph.shapes[x], graph.shapes[out]
    if node.attrs.get("mode", b"nearest") != b"nearest":
        raise Unsupported("it interpolates")
    if after[1] != channels or after[2] % height or after[3] % width:
        raise Unsupported("it resizes by a factor that is not whole")
    if not all(_repeats(node, *sizes) for sizes in ((height, after[2]), (width, after[3]))):
        raise Unsupported("its nearest element is not the one that it repeats")
    down, across = after[2] // height, after[3] // width
    found: list[Layer] = []
    if across > 1:
        name = out if down == 1 else f"{out}@columns"
        shape = [height, width * across, channels]
        found.append(View(node.name, name, [x], 0, [height * width, across, channels], [channels, 0, 1], shape))
        x = name
    row = width * across * channels
    if down > 1 or not found:
        found.append(View(node.name, out, [x], 0, [height, down, row], [row, 0, 1], graph.stored_shape(out)))
    return found


def _repeats(node: Node, before: int, after: int) -> bool:
    """Whether element i of ``after`` is i // factor of ``before``, by ONNX's definition of Resize and Upsample."""
    factor = after // before
    i = np.arange(after, dtype=np.float64)
    mode = node.attrs.get("coordinate_transformation_mode", b"half_pixel" if node.op == "Resize" else b"asymmetric")
    if mode in (b"half_pixel", b"half_pixel_symmetric", b"pytorch_half_pixel"):
        at = (i + 0.5) / factor - 0.5
    elif mode == b"asymmetric":
        at = i / factor
    elif mode == b"align_corners" and after > 1:
        at = i * (before - 1) / (after - 1)
    else:
        return False
    rounding = node.attrs.get("nearest_mode", b"round_prefer_floor" if node.op == "Resize" else b"floor")
    nearest = {
        b"round_prefer_floor": np.ceil(at - 0.5),
        b"round_prefer_ceil": np.floor(at + 0.5),
        b"floor": np.floor(at),
        b"ceil": np.ceil(at),
    }[rounding]
    return bool((np.clip(nearest, 0, before - 1) == i // factor).all())


def _concat(network: Network, node: Node) -> list[Layer]:
    graph, out = network.graph, node.outputs[0]
    rank = len(graph.shapes[out])
    if any(t in graph.constants for t in node.inputs):
        raise Unsupported("it joins a constant")
    if int(node.attrs["axis"]) % rank != STORED_AXES[rank][-1]:
        raise Unsupported("it joins along another axis than the channels")
    return [Concat(node.name, out, list(node.inputs))]


def _pad(network: Network, node: Node) -> list[Layer]:
    graph, x = network.graph, node.inputs[0]
    _spatial_rank(graph, x)
    if node.attrs.get("mode", b"constant") != b"constant" or scalar(argument(graph, node, 2, "value", 0.0)) != 0.0:
        raise Unsupported("it pads with something else than zeros")
    pads = [int(p) for p in np.asarray(argument(graph, node, 1, "pads")).reshape(-1)]
    if len(node.inputs) > 3 and node.inputs[3]:
        raise Unsupported("it pads chosen axes")
    if min(pads) < 0 or any(pads[i] for i in (0, 1, 4, 5)):
        raise Unsupported("it pads other axes than height and width, or crops")
    return [Pad(node.name, node.outputs[0], [x], (pads[2], pads[3], pads[6], pads[7]))]


def _softmax(network: Network, node: Node) -> list[Layer]:
    graph, x = network.graph, node.inputs[0]
    shape, rank = graph.shapes[x], len(graph.shapes[x])
    if graph.opset >= 13:
        axes = [int(node.attrs.get("axis", -1)) % rank]
    else:  # Before opset 13, Softmax flattens the axes from this one on; axes of one element do not matter.
        first = int(node.attrs.get("axis", 1)) % rank
        axes = [axis for axis in range(first, rank) if shape[axis] > 1] or [rank - 1]
    if axes != [STORED_AXES[rank][-1]]:
        raise Unsupported("it runs over other axes than the channels alone")
    return [Softmax(node.name, node.outputs[0], [x])]


_BUILDERS: dict[str, Callable[[Network, Node], list[Layer]]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Relu": _clip,
    "Clip": _clip,
    "Sigmoid": _plain(_sigmoid),
    "Tanh": _plain(np.tanh),
    "Erf": _plain(_erf),
    "Abs": _plain(np.abs),
    "Neg": _plain(np.negative),
    "Exp": _plain(lambda x: np.exp(np.minimum(x, 80.0))),
    "Softplus": _plain(lambda x: np.logaddexp(0.0, x)),
    "Mish": _plain(lambda x: x * np.tanh(np.logaddexp(0.0, x))),
    "HardSwish": _plain(lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0)),
    "HardSigmoid": _unary(lambda _network, node: _hard_sigmoid(node)),
    "LeakyRelu": _unary(lambda _network, node: _leaky(float(node.attrs.get("alpha", 0.01)))),
    "PRelu": _unary(lambda network, node: _leaky(scalar(argument(network.graph, node, 1, "slope")))),
    "Elu": _unary(lambda _network, node: _elu(node)),
    "Gelu": _unary(lambda _network, node: _gelu(node)),
    "Pow": _unary(_power),
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "ReduceMean": _reduce_plane,
    "ReduceMax": _reduce_plane,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Identity": _reshape,
    "Dropout": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Gather": _gather,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Upsample": _resize,
    "Pad": _pad,
    "Softmax": _softmax,
}
