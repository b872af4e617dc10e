"""Matches norms made of single operators.

A layer norm is (x - mean) / sqrt(mean of its square + epsilon) x gamma + beta; a norm without a mean is
x / sqrt(mean of x^2 + epsilon) x gamma.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.importing.graph import Graph, Node
from calibration.lowering.layers.network import Unsupported, argument, scalar


@dataclass
class Pieces:
    """The norm of ``x`` over its last axis, computed by ``nodes`` as ``out``.

    ``gamma`` and ``beta`` name constants [C]; ``beta`` is None where nothing is added. ``centred``: the mean is taken
    away first.
    """

    x: str
    out: str
    gamma: str
    beta: str | None
    epsilon: float
    nodes: list[Node]
    centred: bool = True


def pieces(graph: Graph, root: Node) -> Pieces | None:
    """The norm around its Sqrt ``root``, or None."""
    for match in (_pieces, _without_mean):
        try:
            return match(graph, root)
        except Unsupported:
            continue
    return None


def _pieces(graph: Graph, root: Node) -> Pieces:
    square, averaged, summed, epsilon = _mean_square(graph, root)
    quotient = _reader(graph, root.outputs[0], "Div")
    differences = {
        _maker(graph, t, "Sub") for t in (*square.inputs[: 2 if square.op == "Mul" else 1], quotient.inputs[0])
    }
    means = [_mean_of(graph, difference.inputs[1]) for difference in differences]
    x = {difference.inputs[0] for difference in differences} | {mean.inputs[0] for mean in means}
    scaled = _reader(graph, quotient.outputs[0], "Mul")
    gamma = _constant_apart(graph, scaled)[1]
    shifted = graph.sole_consumer(scaled.outputs[0])
    adds = shifted is not None and shifted.op == "Add" and any(t in graph.constants for t in shifted.inputs)
    beta = _constant_apart(graph, shifted)[1] if shifted is not None and adds else None
    last = shifted if shifted is not None and adds else scaled
    channels = graph.shapes.get(last.outputs[0], (0,))[-1:]
    if (
        len(x) != 1
        or quotient.inputs[1] != root.outputs[0]
        or {graph.constants[t].shape for t in (gamma, beta) if t is not None} != {channels}
    ):
        raise Unsupported("no norm of the channels")
    nodes = [*means, *differences, square, averaged, summed, root, quotient, scaled, *([last] if adds else [])]
    return Pieces(x.pop(), last.outputs[0], gamma, beta, scalar(graph.constants[epsilon]), nodes)


def _without_mean(graph: Graph, root: Node) -> Pieces:
    square, averaged, summed, epsilon = _mean_square(graph, root)
    x = square.inputs[0]
    if square.op == "Mul" and square.inputs[1] != x:
        raise Unsupported("no square")
    inverse = graph.sole_consumer(root.outputs[0])
    between = [] if inverse is None else [inverse]
    if inverse is not None and inverse.op == "Div" and inverse.inputs[0] == x:
        normed = inverse  # x / root
    else:
        one = inverse is not None and inverse.op == "Div" and inverse.inputs[0] in graph.constants
        if inverse is None or not (
            inverse.op == "Reciprocal" or (one and (graph.constants[inverse.inputs[0]] == 1).all())
        ):
            raise Unsupported("no inverse")
        normed = _reader(graph, inverse.outputs[0], "Mul")
        between.append(normed)
        if {*normed.inputs} != {x, inverse.outputs[0]}:
            raise Unsupported("no norm of the channels")
    scaled = _reader(graph, normed.outputs[0], "Mul")
    gamma = _constant_apart(graph, scaled)[1]
    if graph.constants[gamma].shape != graph.shapes.get(scaled.outputs[0], (0,))[-1:]:
        raise Unsupported("no norm of the channels")
    nodes = [square, averaged, summed, root, *between, scaled]
    return Pieces(x, scaled.outputs[0], gamma, None, scalar(graph.constants[epsilon]), nodes, centred=False)


def _mean_square(graph: Graph, root: Node) -> tuple[Node, Node, Node, str]:
    """The square, its mean over the channels and the sum with epsilon that the Sqrt ``root`` reads, and epsilon's name."""
    summed = _maker(graph, root.inputs[0], "Add")
    squares, epsilon = _constant_apart(graph, summed)
    averaged = _mean_of(graph, squares)
    square = _maker(graph, averaged.inputs[0], "Pow", "Mul")
    if square.op == "Pow" and scalar(graph.constants.get(square.inputs[1], 0)) != 2:
        raise Unsupported("no square")
    return square, averaged, summed, epsilon


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
