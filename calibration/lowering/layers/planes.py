"""Layers of convolutional networks with uint8 codes between them. Activations, batch norms and constants are fused.

`convert` converts each operator alone, so it also judges operators after an unsupported one. An operator that it cannot
express exactly is unsupported, never guessed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from calibration.importing.graph import STORED_AXES, Graph, Node
from calibration.lowering.layers import moves
from calibration.lowering.layers.network import (
    F32,
    F64,
    I64,
    OPEN,
    Binary,
    Concat,
    Conv,
    Layer,
    Network,
    Normalize,
    Pad,
    Pool,
    Resample,
    Reshape,
    Softmax,
    Unary,
    UnaryFunction,
    Unsupported,
    argument,
    gemm_weights,
    layer_name,
    rename,
    scalar,
    weights,
)

_ONE, _NONE = np.ones(()), np.zeros(())
_WIDEST = 65535  # of a window


def convert(network: Network, node: Node) -> None:
    """Append the layers of ``node``. Raises `Unsupported`."""
    builder = _BUILDERS.get(node.op)
    if builder is None:
        raise Unsupported("the integer head has no such operator")
    graph = network.graph
    if builder is not moves.moved:
        for tensor in [t for t in (*node.inputs, *node.outputs[:1]) if t and t not in graph.constants]:
            if not graph.storable(tensor):
                raise Unsupported("a tensor of unknown shape, or not of 2 to 4 axes with a batch of 1")
    built = builder(network, node)
    if builder is not moves.moved and any(
        t in graph.consumers for t in set(node.outputs[1:]) - {layer.out for layer in built}
    ):
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
        return _binary(network, node, "sub", lambda a, b: a - b)
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
    if isinstance(before, Normalize) and before.clamp == OPEN and graph.sole_consumer(x) is node:
        before.gamma = (before.gamma * factor).astype(np.float32)
        before.beta = (before.beta * factor + offset).astype(np.float32)
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
    network: Network, node: Node, kind: Literal["add", "mul", "sub"], function: Callable[[F64, F64], F64]
) -> list[Layer]:
    """A sum, product or difference of two tensors; one that repeats along other axes than the plane is repeated first."""
    graph, out = network.graph, node.outputs[0]
    a, b = node.inputs
    if _root(network, a)[0] == _root(network, b)[0]:
        return _same_root(network, node, function)
    shape = graph.shapes[out]
    if graph.shapes[a] != shape and kind != "sub":
        a, b = b, a
    layers: list[Layer] = []
    if graph.shapes[a] != shape:
        layers.append(moves.broadcast(network, node.name, a, shape, f"{out}@first"))
        a = layers[-1].out
    if graph.shapes[b] not in (shape, (1, shape[1], 1, 1) if len(shape) == 4 else shape):
        layers.append(moves.broadcast(network, node.name, b, shape, f"{out}@second"))
        b = layers[-1].out
    return [*layers, Binary(node.name, out, [a, b], kind)]


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
    fusible = isinstance(before, Conv | Binary | Normalize) or (isinstance(before, Pool) and before.kind == "avg")
    if fusible and graph.sole_consumer(x) is node:
        assert isinstance(before, Conv | Binary | Normalize | Pool)
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


def _selu(node: Node) -> UnaryFunction:
    alpha, gamma = float(node.attrs.get("alpha", 1.67326319)), float(node.attrs.get("gamma", 1.05070102))
    return lambda x: gamma * np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x)


def _celu(alpha: float) -> UnaryFunction:
    return lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0) / alpha), x)


def _bounded(network: Network, node: Node) -> list[Layer]:
    """Max or Min of a tensor and numbers."""
    tensors, constants = _operands(network.graph, node)
    if len(tensors) != 1 or any(c.size != 1 for c in constants):
        raise Unsupported("the greatest or least of several tensors")
    bound = [scalar(c) for c in constants]
    if node.op == "Max":
        return [_unary_layer(network, node, lambda x: np.maximum(x, max(bound)))]
    return [_unary_layer(network, node, lambda x: np.minimum(x, min(bound)))]


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


def _reduce(network: Network, node: Node) -> list[Layer]:
    """ReduceMean, ReduceMax or ReduceSum over any axes that lie together in the stored order: a window over them."""
    graph, x, out = network.graph, node.inputs[0], node.outputs[0]
    shape, stored = graph.shapes[x], graph.stored_shape(x)
    axes = argument(graph, node, 1, "axes")
    if axes is None:
        raise Unsupported("it reduces the batch axis")
    reduced = {int(a) % len(shape) for a in np.reshape(axes, -1)} or {-1}
    places = [i for i, axis in enumerate(STORED_AXES[len(shape)]) if axis in reduced or stored[i] == 1]
    if not reduced <= set(STORED_AXES[len(shape)]):
        raise Unsupported("it reduces the batch axis, or none")
    layers: list[Layer] = []
    height, width, channels = ([1, 1, *stored] if len(stored) == 1 else [stored[0], 1, *stored[1:]])[-3:]
    if len(stored) == 3:
        height, width, channels = stored
    last = len(stored) - 1
    if last in places and stored[last] > 1:  # the channels too: a plane of one channel
        whole = all(place in places for place in range(last))
        if not whole and any(place in places and stored[place] > 1 for place in range(last)):
            raise Unsupported("it reduces the channels and one of height and width")
        plane = [height * width, channels, 1]
        layers.append(Reshape(node.name, f"{out}@plane", [x], plane))
        x, window = layers[-1].out, (plane[0] if whole else 1, channels)
        left = [plane[0] // window[0], 1, 1]
    else:
        down = height if 0 in places else 1
        across = width if len(stored) == 3 and 1 in places else 1
        window, left = (down, across), [height // down, width // across, channels]
    if max(window) > _WIDEST:
        raise Unsupported("it reduces more than 65535 elements of one axis")
    kind: Literal["max", "avg"] = "max" if node.op == "ReduceMax" else "avg"
    factor = float(math.prod(window)) if node.op == "ReduceSum" else 1.0
    kept = tuple(1 if axis in reduced else n for axis, n in enumerate(shape))
    pool = Pool(node.name, f"{out}@pooled", [x], kind, window, (1, 1), (0, 0, 0, 0), factor=factor, shape=left)
    after = moves.reordered(network, node.name, pool.out, kept, out)
    own = graph.stored_shape(out)
    if isinstance(after[0], Reshape) and [1] * (3 - len(own)) + own == left:  # the same plane
        pool.out, pool.shape, after = out, own, []
    return [*layers, pool, *after]


# --- resizing and layout -----------------------------------------------------------------------------------------------


def _resize(network: Network, node: Node) -> list[Layer]:
    """To the nearest element or linearly, in any form of coordinates; repeated rows and columns are strided copies."""
    graph, x, out = network.graph, node.inputs[0], node.outputs[0]
    _spatial_rank(graph, x)
    before, after = graph.shapes[x], graph.shapes[out]
    if after[:2] != before[:2]:
        raise Unsupported("it resizes the channels")
    rows, columns = (_places(graph, node, axis) for axis in (2, 3))
    if not rows[1].any() and not columns[1].any():
        index = moves.stored_indices(before)[:, :, rows[0]][:, :, :, columns[0]]
        with contextlib.suppress(Unsupported):
            return moves.selected(network, node.name, x, index, out)
    return [Resample(node.name, out, [x], rows, columns)]


def _places(graph: Graph, node: Node, axis: int) -> tuple[I64, F32]:
    """For each row (axis 2) or column (3) of a Resize or Upsample, the first one that it reads, and the share of the next.

    By ONNX's definition of its attributes. Raises `Unsupported`.
    """
    before, after = graph.shapes[node.inputs[0]][axis], graph.shapes[node.outputs[0]][axis]
    old = node.op == "Upsample" or graph.opset < 11
    mode = node.attrs.get("coordinate_transformation_mode", b"asymmetric" if old else b"half_pixel")
    scale = _scale(graph, node, axis)
    i = np.arange(after, dtype=np.float64)
    if mode in (b"half_pixel", b"pytorch_half_pixel"):
        at = (i + 0.5) / scale - 0.5 if after > 1 or mode == b"half_pixel" else np.zeros(1)
    elif mode == b"half_pixel_symmetric":
        at = before / 2 * (1 - after / (scale * before)) + (i + 0.5) / scale - 0.5
    elif mode == b"asymmetric":
        at = i / scale
    elif mode == b"align_corners":
        at = i * (before - 1) / (after - 1) if after > 1 else np.zeros(1)
    else:
        raise Unsupported(f"its coordinates are {mode.decode()}")
    kind = node.attrs.get("mode", b"nearest")
    if node.attrs.get("antialias", 0) or kind not in (b"nearest", b"linear"):
        raise Unsupported("it interpolates with more than two neighbours")
    if kind == b"linear":
        at = np.clip(at, 0, before - 1)
        return np.floor(at).astype(np.int64), (at - np.floor(at)).astype(np.float32)
    rounding = node.attrs.get("nearest_mode", b"floor" if old else b"round_prefer_floor")
    nearest = {
        b"round_prefer_floor": np.ceil(at - 0.5),
        b"round_prefer_ceil": np.floor(at + 0.5),
        b"floor": np.floor(at),
        b"ceil": np.ceil(at),
    }[rounding]
    return np.clip(nearest, 0, before - 1).astype(np.int64), np.zeros(after, np.float32)


def _scale(graph: Graph, node: Node, axis: int) -> float:
    """The factor of an axis: the given one, or that of the sizes."""
    before, after = graph.shapes[node.inputs[0]][axis], graph.shapes[node.outputs[0]][axis]
    if len(node.inputs) > 3 and node.inputs[3]:
        return after / before
    place = 1 if node.op == "Upsample" or graph.opset < 11 else 2
    scales = argument(graph, node, place, "scales")
    return after / before if scales is None or np.size(scales) != 4 else float(np.reshape(scales, -1)[axis])


def _concat(network: Network, node: Node) -> list[Layer]:
    """Along any axis: rows of all stored axes from this one on are joined."""
    graph, out = network.graph, node.outputs[0]
    rank = len(graph.shapes[out])
    if any(t in graph.constants for t in node.inputs):
        raise Unsupported("it joins a constant")
    axis = int(node.attrs["axis"]) % rank
    if axis not in STORED_AXES[rank]:
        raise Unsupported("it joins batches")
    place = STORED_AXES[rank].index(axis)
    if place == rank - 2:
        return [Concat(node.name, out, list(node.inputs))]
    layers: list[Layer] = []
    for i, tensor in enumerate(node.inputs):
        stored = graph.stored_shape(tensor)
        layers.append(
            Reshape(node.name, f"{out}@part{i}", [tensor], [math.prod(stored[:place]), math.prod(stored[place:])])
        )
    stored = graph.stored_shape(out)
    rows = [math.prod(stored[:place]), math.prod(stored[place:])]
    joined = Concat(node.name, f"{out}@rows", [layer.out for layer in layers], rows)
    return [*layers, joined, Reshape(node.name, out, [joined.out], stored)]


def _pad(network: Network, node: Node) -> list[Layer]:
    """Zeros around a plane, rows or channels; a crop; and rows and columns that repeat: the edge's, or reflected ones."""
    graph, x, out = network.graph, node.inputs[0], node.outputs[0]
    shape, mode = graph.shapes[x], node.attrs.get("mode", b"constant")
    if mode == b"constant" and scalar(argument(graph, node, 2, "value", 0.0)) != 0.0:
        raise Unsupported("it pads with something else than zeros")
    sides = _sides(graph, node, len(shape))
    if sides[0] != (0, 0):
        raise Unsupported("it pads the batch axis")
    least, most = min(map(min, sides)), max(map(max, sides))
    if mode != b"constant" or (least < 0 and most <= 0):
        places = [_repeated(n, *side, mode) for n, side in zip(shape, sides, strict=True)]
        if len(shape) == 4 and sides[1] == (0, 0) and most > 0:
            down, across = ((place, np.zeros(place.size, np.float32)) for place in places[2:])
            return [Resample(node.name, out, [x], down, across)]
        return moves.selected(network, node.name, x, moves.stored_indices(shape)[np.ix_(*places)], out)
    if least < 0:
        raise Unsupported("it pads one side and crops another")
    if len(shape) == 4 and sides[1] == (0, 0):
        (top, bottom), (left, right) = sides[2:]
        return [Pad(node.name, out, [x], (top, left, bottom, right))]
    stored = [sides[axis] for axis in STORED_AXES[len(shape)]]
    if len(stored) == 3 and any(stored[0] + stored[1]):
        raise Unsupported("it pads the channels and the plane at once")
    *rows, channels = graph.stored_shape(x)
    ahead, behind = (0, 0) if len(stored) != 2 else stored[0]
    plane = Reshape(node.name, f"{out}@plane", [x], [math.prod(rows), channels, 1])
    padded = Pad(node.name, f"{out}@padded", [plane.out], (ahead, stored[-1][0], behind, stored[-1][1]))
    return [plane, padded, Reshape(node.name, out, [padded.out], graph.stored_shape(out))]


def _sides(graph: Graph, node: Node, rank: int) -> list[tuple[int, int]]:
    """What a Pad adds before and after each axis; less than 0 crops."""
    pads = [int(p) for p in np.reshape(argument(graph, node, 1, "pads"), -1)]
    chosen = argument(graph, node, 3, "axes")
    axes = list(range(rank)) if chosen is None else [int(a) % rank for a in np.reshape(chosen, -1)]
    found = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        found[axis] = pads[place], pads[place + len(axes)]
    return found


def _repeated(size: int, before: int, after: int, mode: bytes) -> I64:
    """The indices of an axis after a Pad in ``mode``: of the edge, reflected, or around; or cropped."""
    index = np.arange(-before, size + after)
    if mode == b"edge":
        return index.clip(0, size - 1)
    if mode == b"reflect":
        period = max(2 * size - 2, 1)
        return (size - 1 - np.abs(index % period - (size - 1))) if size > 1 else np.zeros_like(index)
    if mode == b"wrap":
        return index % size
    return index


# --- norms ------------------------------------------------------------------------------------------------------------


def _norm_constants(graph: Graph, node: Node, size: int) -> tuple[F32, F32]:
    """Factors and offsets [size] of a norm."""
    found = []
    for place, default in ((1, 1.0), (2, 0.0)):
        given = len(node.inputs) > place and node.inputs[place]
        values = weights(graph, node.inputs[place]).reshape(-1) if given else np.full(1, default, np.float32)
        if values.size not in (1, size):
            raise Unsupported("factors that are not one value for each channel")
        found.append(np.broadcast_to(values, size).copy())
    return found[0], found[1]


def _layer_norm(network: Network, node: Node) -> list[Layer]:
    """Over the channels: of rows, or of a plane that is transposed to [1, H, W, C] before it and back after it."""
    graph, x, out = network.graph, node.inputs[0], node.outputs[0]
    shape = graph.shapes[x]
    if int(node.attrs.get("axis", -1)) % len(shape) != len(shape) - 1:
        raise Unsupported("it normalizes other axes than the last")
    gamma, beta = _norm_constants(graph, node, shape[-1])
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    if len(shape) < 4:
        return [Normalize(node.name, out, [x], gamma, beta, epsilon)]
    before, after = graph.producer.get(x), graph.consumers.get(out, [])
    turned = before is not None and before.op == "Transpose" and list(before.attrs.get("perm", ())) == [0, 2, 3, 1]
    back = [n.op == "Transpose" and list(n.attrs.get("perm", ())) == [0, 3, 1, 2] for n in after]
    if not turned or before is None or len(back) != 1 or not all(back) or out == graph.output:
        raise Unsupported("it normalizes another axis than the channels")
    return [Normalize(node.name, after[0].outputs[0], [before.inputs[0]], gamma, beta, epsilon)]


def _instance_norm(network: Network, node: Node) -> list[Layer]:
    """Of each channel of a plane; or of groups of channels, which are reshaped to [1, G, n] before it and back after it."""
    graph, x, out = network.graph, node.inputs[0], node.outputs[0]
    shape, epsilon = graph.shapes[x], float(node.attrs.get("epsilon", 1e-5))
    if len(shape) == 4:
        gamma, beta = _norm_constants(graph, node, shape[1])
        return [Normalize(node.name, out, [x], gamma, beta, epsilon, shape[2] * shape[3], shape[1])]
    if len(shape) != 3:
        raise Unsupported("it works on something else than [N, C, H, W]")
    gamma, beta = _norm_constants(graph, node, shape[1])
    if np.ptp(gamma) or np.ptp(beta):
        raise Unsupported("it has a factor for each row")
    before, after = graph.producer.get(x), graph.sole_consumer(out)
    plane = graph.shapes.get(before.inputs[0], ()) if before is not None and before.op == "Reshape" else ()
    if after is not None and after.op == "Reshape" and graph.shapes.get(after.outputs[0]) == plane and len(plane) == 4:
        assert before is not None
        rows, groups = plane[2] * plane[3], shape[1]
        ones = np.ones(plane[1], np.float32)
        constants = (gamma[0] * ones, beta[0] * ones)
        return [Normalize(node.name, after.outputs[0], [before.inputs[0]], *constants, epsilon, rows, groups)]
    ones = np.ones(shape[2], np.float32)
    return [Normalize(node.name, out, [x], gamma[0] * ones, beta[0] * ones, epsilon)]


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
    "ReduceMean": _reduce,
    "ReduceMax": _reduce,
    "Flatten": moves.moved,
    "Reshape": moves.moved,
    "Squeeze": moves.moved,
    "Unsqueeze": moves.moved,
    "Identity": moves.moved,
    "Dropout": moves.moved,
    "Transpose": moves.moved,
    "Concat": _concat,
    "Gather": moves.moved,
    "Resize": _resize,
    "Slice": moves.moved,
    "Split": moves.moved,
    "Upsample": _resize,
    "Pad": _pad,
    "Softmax": _softmax,
    "DepthToSpace": moves.moved,
    "SpaceToDepth": moves.moved,
    "Expand": moves.moved,
    "ReduceSum": _reduce,
    "Sqrt": _plain(lambda x: np.sqrt(np.maximum(x, 0.0))),
    "Reciprocal": _plain(lambda x: _quotient(_ONE, x)),
    "Log": _plain(lambda x: np.log(np.maximum(x, 1e-30))),
    "Selu": _unary(lambda _network, node: _selu(node)),
    "Celu": _unary(lambda _network, node: _celu(float(node.attrs.get("alpha", 1.0)))),
    "Softsign": _plain(lambda x: x / (1.0 + np.abs(x))),
    "Max": _bounded,
    "Min": _bounded,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
}
