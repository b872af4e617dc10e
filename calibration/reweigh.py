"""The float model with other weights in some of its layers, to measure in floats what their rounding does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.graph import reads
from calibration.layers import Conv, Network
from calibration.moments import source

F32 = NDArray[np.float32]


def reweigh(
    model: onnx.ModelProto, network: Network, layers: Iterable[Conv], values: Mapping[str, F32] | None = None
) -> onnx.ModelProto:
    """``model`` (the network's, or a tail of it that holds ``layers``) where each of ``layers`` is computed from the weights in ``values``.

    ``values`` are from `weights`; without them these tensors are inputs of the model, so that one session measures many roundings.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for layer in layers:
        nodes = list(made.graph.node)
        place = next(i for i, node in enumerate(nodes) if layer.out in node.output)
        del made.graph.node[:]
        made.graph.node.extend([*nodes[:place], *_nodes(network, layer), *nodes[place + 1 :]])
        for name, shape in _shapes(layer).items():
            if values is None:
                made.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
            else:
                made.graph.initializer.append(numpy_helper.from_array(values[name], name))
    _drop_unread(made.graph)
    del made.graph.value_info[:]
    return made


def weights(layer: Conv, weight: F32, bias: NDArray[np.floating[Any]]) -> dict[str, F32]:
    """The tensors of the changed model for ``weight`` [OC, KH, KW, C / groups] and ``bias`` [OC] of ``layer``."""
    shapes = _shapes(layer)
    if layer.view is None:
        weight = weight.transpose(0, 3, 1, 2)
    elif layer.groups == 1:
        weight = weight.reshape(len(weight), -1).T
    arrays = zip(shapes.items(), (weight, bias), strict=True)
    return {name: np.ascontiguousarray(array.reshape(shape), np.float32) for (name, shape), array in arrays}


def _shapes(layer: Conv) -> dict[str, list[int]]:
    outs, high, wide, depth = layer.weight.shape
    product = [depth, outs] if layer.groups == 1 else [outs]
    shape = [outs, depth, high, wide] if layer.view is None else product
    return {f"{layer.out}@weight": shape, f"{layer.out}@bias": [outs]}


def _nodes(network: Network, layer: Conv) -> list[onnx.NodeProto]:
    """``layer`` as ONNX operators."""
    x, pad = source(network, layer)
    weight, bias = _shapes(layer)
    names = [f"{layer.out}@{i}" for i in range(3)]
    if layer.view is None:
        nodes = [
            helper.make_node(
                "Conv", [x, weight, bias], names[:1], strides=layer.stride, dilations=layer.dilation, pads=pad, group=layer.groups,
            )
        ]  # fmt: skip
    else:
        rank = len(network.graph.shapes[x])
        flat = [helper.make_node("Transpose", [x], names[1:2], perm=[0, 2, 3, 1]), helper.make_node("Flatten", names[1:2], names[2:], axis=1)]  # fmt: skip
        first = helper.make_node(
            "MatMul" if layer.groups == 1 else "Mul", [names[2] if rank == 4 else x, weight], [f"{names[0]}+"]
        )
        nodes = [*(flat if rank == 4 else []), first, helper.make_node("Add", [f"{names[0]}+", bias], names[:1])]
    for limit, op in zip(layer.clamp, ("Max", "Min"), strict=True):
        if math.isfinite(limit):
            constant = helper.make_node("Constant", [], [f"{names[0]}@{op}"], value_float=limit)
            nodes += [constant, helper.make_node(op, [nodes[-1].output[0], constant.output[0]], [f"{names[0]}{op}"])]
    nodes[-1].output[0] = layer.out
    return nodes


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove what the output no longer depends on; sessions would warn of it and keep it in memory."""
    wanted = {out.name for out in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(reads(node))
            kept.append(node)
    weights = [t for t in graph.initializer if t.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept[::-1])
    graph.initializer.extend(weights)
