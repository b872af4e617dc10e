"""Matches element-wise functions of one tensor that are made of several operators, by the values that they compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from calibration.importing.graph import Graph, Node
from calibration.lowering.layers.network import F64, FunctionKind

#: Maximum difference from a function. The tanh approximation of GELU differs by 4.8e-4, less than the error of 8-bit
#: activations.
_ERROR: Final = 1e-3

_erf = np.vectorize(math.erf, otypes=[np.float64])
_COMPUTED: Final[dict[str, Callable[..., Any]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Tanh": np.tanh,
    "Erf": _erf,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Relu": lambda x: np.maximum(x, 0),
    "Gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "HardSigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Swish": lambda x: x / (1 + np.exp(-x)),
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


def kind(graph: Graph, x: str, nodes: Sequence[Node], out: str) -> FunctionKind | None:
    """The function of ``x`` that ``nodes`` compute as ``out``, if a head has it."""
    values: dict[str, F64] = {x: np.linspace(-12, 12, 2401)}
    for node in nodes:
        inputs = [values[t] if t in values else graph.constants[t].astype(np.float64).reshape(()) for t in node.inputs]
        if node.op == "HardSigmoid":
            inputs += [np.array(node.attrs.get("alpha", 0.2)), np.array(node.attrs.get("beta", 0.5))]
        values[node.outputs[0]] = _COMPUTED[node.op](*inputs)
    exact = _functions(values[x])
    return next((name for name, made in exact.items() if np.abs(values[out] - made).max() < _ERROR), None)


def _functions(x: F64) -> dict[FunctionKind, F64]:
    """The functions of `kernels.reference.function`."""
    sigmoid = _COMPUTED["Sigmoid"]
    return {
        "relu": np.maximum(x, 0),
        "gelu": _COMPUTED["Gelu"](x),
        "silu": x * sigmoid(x),
        "quick_gelu": x * sigmoid(1.702 * x),
        "sigmoid": sigmoid(x),
        "tanh": np.tanh(x),
        "hard_swish": _COMPUTED["HardSwish"](x),
    }


def _known(graph: Graph, node: Node) -> bool:
    constants = [graph.constants[t] for t in node.inputs if t in graph.constants]
    return node.op in _COMPUTED and all(c.size == 1 for c in constants)
