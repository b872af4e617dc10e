"""Rewrites that keep a model's answers and replace operators with ones that a head supports."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.importing.graph import Graph, infer_shapes
from calibration.lowering.layers.views import rows_ahead


def batch_norms_to_affine(model: onnx.ModelProto) -> None:
    """Replace each batch norm with constant parameters by a Mul and an Add."""
    graph = model.graph
    weights = {t.name: t for t in graph.initializer}
    ranks = _ranks(model)
    nodes = []
    for node in graph.node:
        if node.op_type != "BatchNormalization" or not all(name in weights for name in node.input[1:]):
            nodes.append(node)
            continue
        gamma, beta, mean, var = (
            onnx.numpy_helper.to_array(weights[name]).astype(np.float64) for name in node.input[1:5]
        )
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(var + epsilon)
        rank = ranks[node.input[0]]
        names = [f"{node.output[0]}@{part}" for part in ("factor", "offset", "scaled")]
        graph.initializer.append(_weight(names[0], _over_channels(factor, rank)))
        graph.initializer.append(_weight(names[1], _over_channels(beta - mean * factor, rank)))
        nodes.append(onnx.helper.make_node("Mul", [node.input[0], names[0]], [names[2]], f"{node.name}@mul"))
        nodes.append(onnx.helper.make_node("Add", [names[2], names[1]], [node.output[0]], node.name))
    del graph.node[:]
    graph.node.extend(nodes)


def class_tokens_to_sums(model: onnx.ModelProto, graph: Graph) -> None:
    """Replace constant rows joined ahead of [1, T, C] with rows of zeros and a sum, which work for any batch size."""
    nodes = []
    for node in model.graph.node:
        known = graph.producer.get(node.output[0])
        rows = None if known is None else rows_ahead(graph, known)
        if rows is None:
            nodes.append(node)
            continue
        table = np.zeros(graph.shapes[node.output[0]], np.float64)
        table[:, : len(rows)] = rows
        names = [f"{node.output[0]}@{part}" for part in ("pads", "rows", "table")]
        pads = [0, len(rows), 0, 0, 0, 0]
        model.graph.initializer.append(_weight(names[2], table))
        if graph.opset < 11:
            nodes.append(onnx.helper.make_node("Pad", [node.input[-1]], [names[1]], f"{node.name}@pad", pads=pads))
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(pads, np.int64), names[0]))
            nodes.append(onnx.helper.make_node("Pad", [node.input[-1], names[0]], [names[1]], f"{node.name}@pad"))
        nodes.append(onnx.helper.make_node("Add", [names[1], names[2]], [node.output[0]], node.name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def averages_into_weights(model: onnx.ModelProto) -> None:
    """Multiply a constant factor of the sum of two products into their weights.

    Distilled transformers output the mean of two classifiers in this form.
    """
    graph = model.graph
    weights = {t.name: t for t in graph.initializer}
    makers = {t: n for n in graph.node for t in n.output}
    readers = Counter(t for n in graph.node for t in n.input)
    for node in [n for n in graph.node if n.op_type in ("Mul", "Div") and n.input[1] in weights]:
        summed = makers.get(node.input[0])
        products = [makers.get(t) for t in summed.input] if summed is not None and summed.op_type == "Add" else []
        scaled = [t for p in products if p is not None and p.op_type == "Gemm" for t in p.input[1:]]
        factor = onnx.numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
        if len(scaled) != 4 or factor.size != 1 or not all(t in weights and readers[t] == 1 for t in scaled):
            continue
        assert summed is not None
        if any(readers[t] > 1 for t in (*summed.input, *summed.output)):
            continue
        number = factor.item() if node.op_type == "Mul" else 1 / factor.item()
        for name in scaled:
            values = onnx.numpy_helper.to_array(weights[name]).astype(np.float64)
            weights[name].CopyFrom(_weight(name, number * values))
        summed.output[0] = node.output[0]
        graph.node.remove(node)


def _weight(name: str, values: NDArray[np.float64]) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(values.astype(np.float32), name)


def _over_channels(values: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    return values.reshape(1, -1, *[1] * (rank - 2))


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    graph = infer_shapes(model).graph
    return {i.name: len(i.type.tensor_type.shape.dim) for i in [*graph.input, *graph.value_info]}
