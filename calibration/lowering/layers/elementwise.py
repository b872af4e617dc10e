"""Matches element-wise functions of one tensor that are made of several operators, by the values that they compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from calibration.importing.graph import Graph, Node
from calibration.lowering.layers.network import F64

#: Maximum difference from the exact GELU. The tanh approximation differs by 4.8e-4, less than the error of 8-bit
#: activations.
_GELU_ERROR: Final = 1e-3

_erf = np.vectorize(math.erf, otypes=[np.float64])
_COMPUTED: Final[dict[str, Callable[..., Any]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Tanh": np.tanh,
    "Erf": _erf,
}


def source(graph: Graph, tensor: str) -> str | None:
    """The only tensor of which ``tensor`` is an element-wise function; None if there are several."""
    wanted, leaves = [tensor], set()
    while wanted:
        name = wanted.pop()
        node = graph.producer.get(name)
        if node is not None and _known(graph, node):
            wanted += [t for t in node.inputs if t not in graph.constants]
        else:
            leaves.add(name)
    return leaves.pop() if len(leaves) == 1 else None


def behind(graph: Graph, x: str) -> list[Node]:
    """The operators that compute element-wise functions of ``x`` alone, in order."""
    known, found = {x}, []
    for node in graph.nodes:
        moving = [t for t in node.inputs if t not in graph.constants]
        if known >= set(moving) and moving and _known(graph, node):
            known |= set(node.outputs)
            found.append(node)
    return found


def end(graph: Graph, x: str, nodes: Sequence[Node]) -> str | None:
    """The only output of ``nodes``, which compute it from ``x``.

    None if another operator reads ``x`` or an intermediate tensor.
    """
    inside = set(nodes)
    outer = [
        t
        for t in (x, *(n.outputs[0] for n in nodes))
        if t == graph.output or not inside.issuperset(graph.consumers.get(t, ()))
    ]
    return outer[0] if len(outer) == 1 and outer[0] != x else None


def is_gelu(graph: Graph, x: str, nodes: Sequence[Node], out: str) -> bool:
    """Whether ``nodes`` compute the GELU of ``x``, or its tanh approximation, as ``out``."""
    values: dict[str, F64] = {x: np.linspace(-12, 12, 2401)}
    for node in nodes:
        inputs = [values[t] if t in values else graph.constants[t].astype(np.float64).reshape(()) for t in node.inputs]
        values[node.outputs[0]] = _COMPUTED[node.op](*inputs)
    exact = values[x] * (1 + _erf(values[x] / math.sqrt(2))) / 2
    return bool(np.abs(values[out] - exact).max() < _GELU_ERROR)


def _known(graph: Graph, node: Node) -> bool:
    constants = [graph.constants[t] for t in node.inputs if t in graph.constants]
    return node.op in _COMPUTED and all(c.size == 1 for c in constants)
