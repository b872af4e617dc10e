"""Follows operators that only move elements, by applying them to indices."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import dataclass

import numpy as np

from calibration.importing.graph import Graph, Node
from calibration.lowering.layers.network import F32, I64

_SHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
Move = Callable[[I64], I64]


@dataclass
class View:
    """A tensor whose elements are ``factor`` times the elements ``index`` of ``root``.

    ``index`` has the tensor's shape; ``root`` has ``size`` elements; ``nodes`` are the operators between them.
    """

    root: str
    size: int
    index: I64
    factor: float
    nodes: list[Node]

    def is_plain(self) -> bool:
        """Whether the tensor holds all elements of ``root`` in order, apart from the factor."""
        return self.index.size == self.size and bool((self.index.reshape(-1) == np.arange(self.size)).all())


def view(graph: Graph, tensor: str, stop: Container[str] = ()) -> View | None:
    """``tensor`` as a view of the last tensor before it that is not a view, or is in ``stop``.

    None if shapes are unknown.
    """
    moves: list[Move] = []
    nodes: list[Node] = []
    factor, at = 1.0, tensor
    joined = None
    while at in graph.producer and at not in stop and joined is None:
        node = graph.producer[at]
        scaled = _scalar_factor(graph, node)
        joined = _joined(graph, node, stop)
        move = None if scaled or joined else move_of(graph, node, at)
        if scaled is None and move is None and joined is None:
            break
        if scaled:
            at, factor = scaled[0], factor * scaled[1]
        elif move is not None:
            moves.append(move)
            at = node.inputs[0]
        nodes.append(node)
    if joined is None:
        if at not in graph.shapes:
            return None
        size = math.prod(graph.shapes[at])
        joined = View(at, size, np.arange(size).reshape(graph.shapes[at]), 1.0, [])
    index = joined.index
    for made in reversed(moves):
        index = made(index)
    return View(joined.root, joined.size, index, factor * joined.factor, [*nodes, *joined.nodes])


def is_view(graph: Graph, node: Node) -> bool:
    """Whether ``node`` only moves elements of its first input."""
    return bool(node.outputs) and move_of(graph, node, node.outputs[0]) is not None


def _joined(graph: Graph, node: Node, stop: Container[str]) -> View | None:
    """A Concat of views of one tensor, such as a roll, as a view of it; else None."""
    if node.op != "Concat" or len(node.inputs) < 2 or any(t in graph.constants for t in node.inputs):
        return None
    if any(t not in graph.producer or not is_view(graph, graph.producer[t]) for t in node.inputs):
        return None
    parts = [view(graph, t, stop) for t in node.inputs]
    first = parts[0]
    if first is None or any(p is None or (p.root, p.factor) != (first.root, first.factor) for p in parts):
        return None
    index = np.concatenate([p.index for p in parts if p is not None], int(node.attrs["axis"]))
    nodes = list(dict.fromkeys(n for p in parts if p is not None for n in p.nodes))
    return View(first.root, first.size, index, first.factor, nodes)


def move_of(graph: Graph, node: Node, out: str) -> Move | None:
    """How ``node`` moves the elements of its first input to ``out``; None if it does anything else."""
    if not node.inputs or node.inputs[0] in graph.constants or out not in graph.shapes:
        return None
    if node.op in _SHAPES:
        shape = graph.shapes[out]
        return lambda x: x.reshape(shape)
    if node.op == "Transpose":
        perm = node.attrs.get("perm")
        return lambda x: x.transpose(perm)
    if node.op == "Expand":
        shape = graph.shapes[out]
        return lambda x: np.broadcast_to(x, shape)
    constants = [graph.constants.get(t) for t in node.inputs[1:]]
    if node.op == "Pad" and constants and constants[0] is not None and not constants[0].any():
        return lambda x: x
    if node.op == "Gather" and constants[0] is not None:
        taken, axis = constants[0].astype(np.int64), int(node.attrs.get("axis", 0))
        return lambda x: x.take(taken, axis)
    if node.op == "Slice":
        return _slice(graph, node)
    if node.op == "Split":
        return _split(graph, node, out)
    if node.op in ("DepthToSpace", "SpaceToDepth"):
        return _blocks(node)
    if node.op == "Expand":
        wide = graph.shapes[out]
        return lambda x: np.broadcast_to(x, wide)
    return None


def _slice(graph: Graph, node: Node) -> Move | None:
    """A Slice with constant ends: inputs from operator set 10 on, attributes before."""
    names = ("starts", "ends", "axes", "steps")
    given: list[list[int] | None] = []
    for place, name in enumerate(names, 1):
        tensor = node.inputs[place] if len(node.inputs) > place else ""
        if tensor and tensor not in graph.constants:
            return None
        values = graph.constants[tensor] if tensor else node.attrs.get(name)
        given.append(None if values is None else [int(v) for v in np.reshape(values, -1)])
    starts, ends, axes, steps = given
    if starts is None or ends is None:
        return None
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)

    def move(x: I64) -> I64:
        parts = [slice(None)] * x.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            parts[axis] = slice(start, end if end >= -x.shape[axis] else None, step)
        return x[tuple(parts)]

    return move


def _blocks(node: Node) -> Move:
    """DepthToSpace or SpaceToDepth, by ONNX's definitions."""
    size = int(node.attrs["blocksize"])
    rows_first = node.attrs.get("mode", b"DCR") == b"DCR"

    def spread(x: I64) -> I64:
        n, channels, height, width = x.shape
        left = channels // size**2
        if rows_first:
            parts = x.reshape(n, size, size, left, height, width).transpose(0, 3, 4, 1, 5, 2)
        else:
            parts = x.reshape(n, left, size, size, height, width).transpose(0, 1, 4, 2, 5, 3)
        return parts.reshape(n, left, height * size, width * size)

    def gathered(x: I64) -> I64:
        n, channels, height, width = x.shape
        parts = x.reshape(n, channels, height // size, size, width // size, size).transpose(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, channels * size**2, height // size, width // size)

    return spread if node.op == "DepthToSpace" else gathered


def _split(graph: Graph, node: Node, out: str) -> Move | None:
    if not all(t in graph.shapes for t in node.outputs):
        return None
    axis = int(node.attrs.get("axis", 0))
    sizes = [graph.shapes[t][axis] for t in node.outputs]
    place = node.outputs.index(out)
    start = sum(sizes[:place])
    return lambda x: x.take(range(start, start + sizes[place]), axis)


def _scalar_factor(graph: Graph, node: Node) -> tuple[str, float] | None:
    """The tensor that ``node`` multiplies by a constant number, and the number."""
    if node.op not in ("Mul", "Div"):
        return None
    for x, other in (node.inputs, node.inputs[::-1]) if node.op == "Mul" else (node.inputs,):
        value = graph.constants.get(other)
        if value is not None and value.size == 1 and x not in graph.constants:
            number = float(value.reshape(-1)[0])
            return x, number if node.op == "Mul" else 1 / number
    return None


def rows_ahead(graph: Graph, node: Node) -> F32 | None:
    """The constant rows [n, C], such as class tokens, that ``node`` joins ahead of a stream [1, T, C].

    None if ``node`` is not such a Concat.
    """
    shape = graph.shapes.get(node.outputs[0], ()) if node.op == "Concat" else ()
    if len(shape) != 3 or shape[0] != 1 or int(node.attrs["axis"]) % 3 != 1 or node.inputs[-1] in graph.constants:
        return None
    ahead = [graph.constants.get(t) for t in node.inputs[:-1]]
    rows = [c.reshape(-1, shape[2]) for c in ahead if c is not None and c.ndim == 3]
    return np.concatenate(rows).astype(np.float32) if rows and len(rows) == len(ahead) else None
