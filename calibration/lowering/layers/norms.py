"""Matches a layer norm made of single operators: (x - mean) / sqrt(mean of its square + epsilon) x gamma + beta."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.importing.graph import Graph, Node
from calibration.lowering.layers.network import Unsupported, argument, scalar


@dataclass
class Pieces:
    """The norm of ``x`` over its last axis, computed by ``nodes`` as ``out``.

    ``gamma`` and ``beta`` name constants [C].
    """

    x: str
    out: str
    gamma: str
    beta: str
    epsilon: float
    nodes: list[Node]


def pieces(graph: Graph, root: Node) -> Pieces | None:
    """The norm around its Sqrt ``root``, or None."""
    try:
        return _pieces(graph, root)
    except Unsupported:
        return None


def _pieces(graph: Graph, root: Node) -> Pieces:
    summed = _maker(graph, root.inputs[0], "Add")
    variance, epsilon = _constant_apart(graph, summed)
    averaged = _mean_of(graph, variance)
    square = _maker(graph, averaged.inputs[0], "Pow", "Mul")
    if square.op == "Pow" and scalar(graph.constants.get(square.inputs[1], 0)) != 2:
        raise Unsupported("no square")
    quotient = _reader(graph, root.outputs[0], "Div")
    differences = {
        _maker(graph, t, "Sub") for t in (*square.inputs[: 2 if square.op == "Mul" else 1], quotient.inputs[0])
    }
    means = [_mean_of(graph, difference.inputs[1]) for difference in differences]
    x = {difference.inputs[0] for difference in differences} | {mean.inputs[0] for mean in means}
    scaled = _reader(graph, quotient.outputs[0], "Mul")
    shifted = _reader(graph, scaled.outputs[0], "Add")
    gamma, beta = (_constant_apart(graph, node)[1] for node in (scaled, shifted))
    channels = graph.shapes.get(shifted.outputs[0], (0,))[-1:]
    if (
        len(x) != 1
        or quotient.inputs[1] != root.outputs[0]
        or {graph.constants[t].shape for t in (gamma, beta)} != {channels}
    ):
        raise Unsupported("no norm of the channels")
    nodes = [*means, *differences, square, averaged, summed, root, quotient, scaled, shifted]
    return Pieces(x.pop(), shifted.outputs[0], gamma, beta, scalar(graph.constants[epsilon]), nodes)


def _maker(graph: Graph, tensor: str, *ops: str) -> Node:
    node = graph.producer.get(tensor)
    if node is None or node.op not in ops:
        raise Unsupported(f"no {ops[0]}")
    return node


def _reader(graph: Graph, tensor: str, op: str) -> Node:
    node = graph.sole_consumer(tensor)
    if node is None or node.op != op:
        raise Unsupported(f"no {op}")
    return node


def _mean_of(graph: Graph, tensor: str) -> Node:
    """The ReduceMean over the last axis, with that axis kept, that yields ``tensor``."""
    node = _maker(graph, tensor, "ReduceMean")
    axes = argument(graph, node, 1, "axes")
    rank = len(graph.shapes.get(node.inputs[0], ()))
    if (
        axes is None
        or not rank
        or [int(a) % rank for a in np.asarray(axes).reshape(-1)] != [rank - 1]
        or not node.attrs.get("keepdims", 1)
    ):
        raise Unsupported("no mean of the channels")
    return node


def _constant_apart(graph: Graph, node: Node) -> tuple[str, str]:
    """The two inputs of ``node``: the variable one, then the constant."""
    a, b = node.inputs
    if (a in graph.constants) == (b in graph.constants):
        raise Unsupported("no constant")
    return (b, a) if a in graph.constants else (a, b)
