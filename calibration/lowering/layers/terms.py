"""Follows products with constants and sums of views: a tensor as a few terms, each a coefficient times an element.

So rotary positions are recognized by what they compute, in whatever order and with whatever operators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from calibration.importing.graph import Graph, Node
from calibration.lowering.layers.network import F64, I64, Unsupported
from calibration.lowering.layers.views import move_of

#: Most terms of one element; more are no rotary positions.
_MOST = 4


@dataclass
class Terms:
    """Each element is the sum of ``coefficients[i]`` times the element ``index[i]`` of ``root``, over all i.

    ``index`` and ``coefficients`` [terms, ...] have the tensor's shape behind the first axis; ``nodes`` compute it.
    """

    root: str
    index: I64
    coefficients: F64
    nodes: list[Node]


def terms(graph: Graph, tensor: str) -> Terms:
    """``tensor`` as terms of the last tensor before it that is not made of terms. Raises `Unsupported`."""
    found = _made(graph, tensor)
    if found is not None:
        return found
    if tensor not in graph.shapes:
        raise Unsupported("a tensor of unknown shape")
    shape = graph.shapes[tensor]
    index = np.arange(math.prod(shape)).reshape(1, *shape)
    return Terms(tensor, index, np.ones(index.shape), [])


def _made(graph: Graph, tensor: str) -> Terms | None:
    """The terms of ``tensor`` by its operator; None if it is a root."""
    node = graph.producer.get(tensor)
    if node is None or tensor not in graph.shapes:
        return None
    constants = [t for t in node.inputs if t in graph.constants]
    if node.op in ("Mul", "Div") and len(constants) == 1 and (node.op == "Mul" or node.inputs[1] in constants):
        return _scaled(graph, node, constants[0], tensor)
    if node.op == "Neg":
        one = terms(graph, node.inputs[0])
        return Terms(one.root, one.index, -one.coefficients, [*one.nodes, node])
    if node.op in ("Add", "Sub", "Concat") and not constants and len(node.inputs) > 1:
        return _several(graph, node)
    move = move_of(graph, node, tensor)
    if move is None:
        return None
    one = terms(graph, node.inputs[0])
    index = np.stack([move(part) for part in one.index])
    coefficients: F64 = np.stack([move(part) for part in one.coefficients])
    return Terms(one.root, index, coefficients, [*one.nodes, node])


def _scaled(graph: Graph, node: Node, constant: str, tensor: str) -> Terms:
    one = terms(graph, next(t for t in node.inputs if t != constant))
    value = graph.constants[constant].astype(np.float64)
    shape = (len(one.index), *graph.shapes[tensor])
    index = np.broadcast_to(one.index, shape)
    return Terms(one.root, index, one.coefficients * (value if node.op == "Mul" else 1 / value), [*one.nodes, node])


def _several(graph: Graph, node: Node) -> Terms | None:
    """A sum, difference or concatenation of terms of one root; None if it is of several."""
    made = [_made(graph, t) for t in node.inputs]
    parts = [one for one in made if one is not None]
    if len(parts) < len(made) or len({one.root for one in parts}) > 1:
        return None
    nodes = list(dict.fromkeys([n for one in parts for n in one.nodes] + [node]))
    if node.op == "Concat":
        most = max(len(one.index) for one in parts)
        axis = int(node.attrs["axis"])
        axis = axis + 1 if axis >= 0 else axis
        index = np.concatenate([_filled(one.index, most) for one in parts], axis)
        return Terms(parts[0].root, index, np.concatenate([_filled(p.coefficients, most) for p in parts], axis), nodes)
    if sum(len(one.index) for one in parts) > _MOST or parts[0].index.shape[1:] != parts[1].index.shape[1:]:
        return None
    sign = -1.0 if node.op == "Sub" else 1.0
    index = np.concatenate([one.index for one in parts])
    return Terms(parts[0].root, index, np.concatenate([parts[0].coefficients, sign * parts[1].coefficients]), nodes)


def _filled(parts: I64 | F64, count: int) -> I64 | F64:
    return np.concatenate([parts, np.zeros((count - len(parts), *parts.shape[1:]), parts.dtype)])
