"""Replaces weights in the float model, to measure the effect of rounding in floats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.importing.graph import drop_unread
from calibration.lowering.layers import Clamp, Conv, Embed, Linear, Network, Weighted
from calibration.statistics.covariance import Entry, entry

F32 = NDArray[np.float32]


def substitute_weights(
    model: onnx.ModelProto, network: Network, layers: Iterable[Weighted], values: Mapping[str, F32] | None = None
) -> onnx.ModelProto:
    """``model`` with the weights of each of ``layers`` replaced by ``values``.

    ``model`` is the network's, or a tail of it that holds ``layers``. ``values`` come from `weights`. Without them the
    weights become inputs of the model, so that one session measures many roundings.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for layer in layers:
        for target, nodes in _replacements(network, layer).items():
            before = list(made.graph.node)
            place = next(i for i, node in enumerate(before) if target in node.output)
            del made.graph.node[:]
            made.graph.node.extend([*before[:place], *nodes, *before[place + 1 :]])
        for name, shape in _shapes(layer).items():
            if values is None:
                made.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
            else:
                made.graph.initializer.append(numpy_helper.from_array(values[name], name))
    drop_unread(made.graph)
    del made.graph.value_info[:]
    return made


def weights(layer: Weighted, weight: F32, bias: NDArray[np.floating[Any]]) -> dict[str, F32]:
    """The weight tensors of the changed model for ``weight`` [OC, ...] and ``bias`` [OC] of ``layer``."""
    arrays: list[NDArray[np.floating[Any]]] = [weight, bias]
    if isinstance(layer, Linear):
        arrays = [part for places in layer.products.values() for part in (weight[places].T, bias[places])]
    elif isinstance(layer, Conv) and layer.view is None:
        arrays[0] = weight.transpose(0, 3, 1, 2)
    elif isinstance(layer, Conv) and layer.groups == 1:
        arrays[0] = weight.reshape(len(weight), -1).T
    pairs = zip(_shapes(layer).items(), arrays[: len(_shapes(layer))], strict=True)
    return {name: np.ascontiguousarray(array.reshape(shape), np.float32) for (name, shape), array in pairs}


def _shapes(layer: Weighted) -> dict[str, list[int]]:
    """Shapes of the tensors of `weights`, in the same order."""
    if isinstance(layer, Linear):
        depth = layer.weight.shape[1]
        pairs = [
            (f"{t}@weight", [depth, len(places)], f"{t}@bias", [len(places)]) for t, places in layer.products.items()
        ]
        return {name: shape for a, b, c, d in pairs for name, shape in ((a, b), (c, d))}
    if not isinstance(layer, Conv):
        return {f"{layer.out}@weight": list(layer.weight.shape)}
    outs, high, wide, depth = layer.weight.shape
    product = [depth, outs] if layer.groups == 1 else [outs]
    shape = [outs, depth, high, wide] if layer.view is None else product
    return {f"{layer.out}@weight": shape, f"{layer.out}@bias": [outs]}


def _replacements(network: Network, layer: Weighted) -> dict[str, list[onnx.NodeProto]]:
    """ONNX operators that replace each of the model's tensors that ``layer`` yields."""
    if isinstance(layer, Conv):
        return {layer.out: _conv(network, layer)}
    if isinstance(layer, Linear):
        return {target: _product(network, layer, target) for target in layer.products}
    assert isinstance(layer, Embed)
    return {layer.rows: [helper.make_node("Gather", [f"{layer.out}@weight", layer.inputs[0]], [layer.rows])]}


def _product(network: Network, layer: Linear, target: str) -> list[onnx.NodeProto]:
    read = entry(network, layer)
    nodes, x = _squares(network, read, target) if read.square else ([], read.tensor)
    product = helper.make_node("MatMul", [x, f"{target}@weight"], [f"{target}@product"])
    return [*nodes, product, helper.make_node("Add", [f"{target}@product", f"{target}@bias"], [target])]


def _squares(network: Network, read: Entry, target: str) -> tuple[list[onnx.NodeProto], str]:
    """Operators that cut the image into squares, as `kernels.reference.patches` does."""
    _, channels, height, width = network.graph.shapes[read.tensor]
    size = read.square
    cut = [-1, channels, height // size, size, width // size, size]
    rows = [-1, height * width // size**2, size * size * channels]
    names = [f"{target}@{i}" for i in range(5)]
    return [
        _constant(names[0], np.array(cut, np.int64)),
        helper.make_node("Reshape", [read.tensor, names[0]], [names[1]]),
        helper.make_node("Transpose", [names[1]], [names[2]], perm=[0, 2, 4, 3, 5, 1]),
        _constant(names[3], np.array(rows, np.int64)),
        helper.make_node("Reshape", [names[2], names[3]], [names[4]]),
    ], names[4]


def _conv(network: Network, layer: Conv) -> list[onnx.NodeProto]:
    read = entry(network, layer)
    x, pad = read.tensor, read.pad
    weight, bias = _shapes(layer)
    names = [f"{layer.out}@{i}" for i in range(3)]
    if layer.view is None:
        nodes = [
            helper.make_node(
                "Conv",
                [x, weight, bias],
                names[:1],
                strides=layer.stride,
                dilations=layer.dilation,
                pads=pad,
                group=layer.groups,
            )
        ]
    else:
        rank = len(network.graph.shapes[x])
        flat = [
            helper.make_node("Transpose", [x], names[1:2], perm=[0, 2, 3, 1]),
            helper.make_node("Flatten", names[1:2], names[2:], axis=1),
        ]
        first = helper.make_node(
            "MatMul" if layer.groups == 1 else "Mul", [names[2] if rank == 4 else x, weight], [f"{names[0]}+"]
        )
        nodes = [*(flat if rank == 4 else []), first, helper.make_node("Add", [f"{names[0]}+", bias], names[:1])]
    if any(map(math.isfinite, layer.clamp)):
        nodes += _clip(nodes[-1].output[0], f"{names[0]}clipped", layer.clamp, network.graph.opset)
    nodes[-1].output[0] = layer.out
    return nodes


def _clip(x: str, out: str, clamp: Clamp, opset: int) -> list[onnx.NodeProto]:
    """A Clip in the form of the operator set ``opset``."""
    ends = {name: end for name, end in zip(("min", "max"), clamp, strict=True) if math.isfinite(end)}
    if opset < 11:
        return [helper.make_node("Clip", [x], [out], **ends)]
    constants = [_constant(f"{out}@{name}", np.float32(end)) for name, end in ends.items()]
    names = [f"{out}@{name}" if name in ends else "" for name in ("min", "max")]
    return [*constants, helper.make_node("Clip", [x, *names], [out])]


def _constant(name: str, value: Any) -> onnx.NodeProto:
    """A Constant in the form that every operator set supports."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value), name))
