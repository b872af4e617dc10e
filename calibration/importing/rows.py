"""Gives the streams of transformers one form: [1, N, C], one row for each token.

Libraries keep tokens on a plane [1, H, W, C], in windows [W, T, C], behind the batch [T, 1, C], or without it [T, C].
Operators that treat each row alike compute the same in any of these forms. This rewrite lets them work on [1, N, C],
and joins the moves between two of them into one Gather of rows, which is left out where the order stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.importing.graph import Graph, Node, drop_unread
from calibration.lowering.layers.views import View, view

#: Functions of single elements.
_ELEMENTWISE: Final = frozenset(
    [
        "Abs",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Neg",
        "Reciprocal",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Tanh",
    ]
)
_PAIRS: Final = frozenset(["Add", "Sub", "Mul", "Div", "Pow"])
_PASSED: Final = frozenset(["Cast", "Dropout", "Identity", "IsNaN", "Reshape", "Squeeze", "Unsqueeze", "Where"])
_NORMS: Final = frozenset(["LayerNormalization", "RMSNormalization"])


def streams_to_rows(model: onnx.ModelProto) -> None:
    """Rewrite the operators on rows of a ``model`` with attention; other models stay unchanged."""
    if not has_attention(model.graph):
        return
    graph = Graph.of(model)
    work = _Work(graph, {node.outputs[0]: node for node in graph.nodes if node.outputs})
    nodes: list[onnx.NodeProto] = []
    for proto in model.graph.node:
        known = work.nodes.get(proto.output[0]) if proto.output else None
        made = work.rewritten(known, proto) if known is not None else None
        nodes += [proto] if made is None else made
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in work.constants.items())
    drop_unread(model.graph)


def has_attention(graph: onnx.GraphProto) -> bool:
    """Whether the answer of a Softmax is multiplied by another tensor, maybe behind operators that only move it."""
    reached = {node.output[0] for node in graph.node if node.op_type == "Softmax"}
    for node in graph.node:
        if node.input and node.input[0] in reached:
            if node.op_type == "MatMul":
                return True
            if node.op_type in _PASSED:
                reached |= set(node.output)
    return False


@dataclass
class _Work:
    """``rows``: the form [1, N, C] of a tensor, by its name. ``constants``: new ones."""

    graph: Graph
    nodes: dict[str, Node]
    rows: dict[str, str] = field(default_factory=dict)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    pending: list[onnx.NodeProto] = field(default_factory=list)
    gathered: dict[tuple[str, bytes, int], str] = field(default_factory=dict)
    seen: dict[str, View | None] = field(default_factory=dict)
    sources: dict[str, tuple[str, NDArray[np.int64]] | None] = field(default_factory=dict)

    def rewritten(self, node: Node, proto: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """The operators in place of ``node``; None to keep it."""
        moving = [t for t in node.inputs if t and t not in self.graph.constants]
        known = all(t in self.graph.shapes for t in (*moving, *node.outputs[:1]))
        if not known or not moving or len(node.outputs) != 1:
            return None
        self.pending = []
        if _averages(self.graph, node):
            return self._mean(node)
        begins = _begins(self.graph, node)
        if not begins and not (_follows(self.graph, node) and any(self._known(t) for t in moving)):
            return None
        if all(self._is_rows(t) for t in (*moving, node.outputs[0])):
            self._keep(node.outputs[0], node.outputs[0])
            return None
        return self._on_rows(node, proto)

    def _is_rows(self, tensor: str) -> bool:
        """Whether ``tensor`` has the form already, and so has every tensor between it and the stream that it shows."""
        if not self._fits(tensor):
            return False
        seen = self._seen(tensor)
        if seen is None or self._source(tensor) is None:
            return True
        return self.rows.get(seen.root, seen.root) == seen.root and all(self._fits(n.outputs[0]) for n in seen.nodes)

    def _fits(self, tensor: str) -> bool:
        shape = self.graph.shapes[tensor]
        return len(shape) in (2, 3) and shape[0] == 1

    def _known(self, tensor: str) -> bool:
        """Whether ``tensor`` shows whole rows of a stream."""
        return self._source(tensor) is not None

    def _seen(self, tensor: str) -> View | None:
        if tensor not in self.seen:
            self.seen[tensor] = view(self.graph, tensor, stop=self.rows)
        return self.seen[tensor]

    def _source(self, tensor: str) -> tuple[str, NDArray[np.int64]] | None:
        """The root of ``tensor`` that has rows, and their numbers; None if ``tensor`` is no stream."""
        if tensor not in self.sources:
            self.sources[tensor] = self._found(tensor)
        return self.sources[tensor]

    def _found(self, tensor: str) -> tuple[str, NDArray[np.int64]] | None:
        seen = self._seen(tensor)
        if seen is None or seen.factor != 1:
            return None
        shape = self.graph.shapes[seen.root]
        if seen.root not in self.rows and not (len(shape) == 3 and shape[0] == 1):
            return None
        wide = shape[-1]
        if self.graph.shapes[tensor][-1] % wide:
            return None
        index = seen.index.reshape(-1, wide)
        first = index[:, :1]
        if (first % wide).any() or not (index == first + np.arange(wide)).all():
            return None
        return seen.root, first[:, 0] // wide

    def _in_rows(self, tensor: str) -> str:
        """The name of ``tensor`` as [1, N, C]; `pending` gets the operators that make it."""
        if tensor in self.rows:
            return self.rows[tensor]
        shape = self.graph.shapes[tensor]
        count, wide = math.prod(shape[:-1]), shape[-1]
        source = self._source(tensor)
        if source is None:
            made = self._reshaped(tensor, f"{tensor}@rows", [1, count, wide])
        else:
            root, rows = source
            made = self._gathered(self.rows.get(root, root), self.graph.shapes[root], rows, tensor)
            if self.graph.shapes[root][-1] != wide:
                made = self._reshaped(made, f"{tensor}@rows", [1, count, wide])
        self._keep(tensor, made)
        return made

    def _keep(self, tensor: str, made: str) -> None:
        """Let ``made`` be the rows of ``tensor``, from which moves begin now."""
        self.rows[tensor] = made
        self.seen.pop(tensor, None)
        self.sources.pop(tensor, None)

    def _gathered(self, base: str, shape: Sequence[int], rows: NDArray[np.int64], tensor: str) -> str:
        if len(rows) == math.prod(shape[:-1]) and (rows == np.arange(len(rows))).all():
            return base
        entry = base, rows.tobytes(), len(rows)
        if entry not in self.gathered:
            places, made = f"{tensor}@places", f"{tensor}@gathered"
            self.constants[places] = rows.astype(np.int64)
            self.pending.append(helper.make_node("Gather", [base, places], [made], made, axis=1))
            self.gathered[entry] = made
        return self.gathered[entry]

    def _reshaped(self, x: str, out: str, shape: Sequence[int]) -> str:
        name = f"{out}@form"
        self.constants[name] = np.array(shape, np.int64)
        self.pending.append(helper.make_node("Reshape", [x, name], [out], out))
        return out

    def _on_rows(self, node: Node, proto: onnx.NodeProto) -> list[onnx.NodeProto]:
        out = node.outputs[0]
        shape = self.graph.shapes[out]
        inputs = [self._constant(node, t) if t in self.graph.constants else self._in_rows(t) for t in node.inputs if t]
        made = out if self._fits(out) else f"{out}@stream"
        if node.op == "Gemm":
            self.pending += self._product(node, inputs, made)
        else:
            one = onnx.NodeProto()
            one.CopyFrom(proto)
            one.input[:], one.output[:] = inputs, [made]
            for attribute in one.attribute:
                if attribute.name == "axis":
                    attribute.i = -1
                if attribute.name == "axes":
                    attribute.ints[:] = [-1]
            self.pending.append(one)
        self._keep(out, made)
        if made != out:
            self._reshaped(made, out, shape)
        return self.pending

    def _constant(self, node: Node, name: str) -> str:
        """A constant operand of a sum or product that spans no more axes than the stream has."""
        value = self.graph.constants[name]
        if node.op not in _PAIRS or value.ndim <= 1:
            return name
        flat: NDArray[Any]
        if value.size == value.shape[-1]:
            flat = value.reshape(-1)
        else:
            shape = self.graph.shapes[node.outputs[0]]
            flat = np.broadcast_to(value, shape).reshape(1, -1, shape[-1])
        made = f"{node.outputs[0]}@row"
        self.constants[made] = np.ascontiguousarray(flat)
        return made

    def _product(self, node: Node, inputs: Sequence[str], out: str) -> list[onnx.NodeProto]:
        """A Gemm of rows as a MatMul and an Add."""
        graph = self.graph
        weight = graph.constants[node.inputs[1]].astype(np.float32) * np.float32(node.attrs.get("alpha", 1.0))
        names = [f"{inputs[1].removesuffix('.weight')}@turned.weight", f"{out}@multiplied"]
        self.constants[names[0]] = np.ascontiguousarray(weight.T if node.attrs.get("transB", 0) else weight)
        if len(inputs) < 3:
            return [helper.make_node("MatMul", [inputs[0], names[0]], [out], node.name)]
        bias = graph.constants[node.inputs[2]].astype(np.float32) * np.float32(node.attrs.get("beta", 1.0))
        self.constants[f"{out}@row"] = bias.reshape(-1)
        return [
            helper.make_node("MatMul", [inputs[0], names[0]], names[1:], f"{node.name}@product"),
            helper.make_node("Add", [names[1], f"{out}@row"], [out], node.name),
        ]

    def _mean(self, node: Node) -> list[onnx.NodeProto] | None:
        """A mean over all rows: of a plane [1, H, W, C], or of planes [1, C, H, W] that a stream became."""
        x, out = node.inputs[0], node.outputs[0]
        seen = self._seen(x)
        if seen is None or seen.root not in self.rows or seen.factor != 1 or self.rows[seen.root] == x:
            return None
        wide = self.graph.shapes[seen.root][-1]
        index = seen.index[0] if node.op == "ReduceMean" and self._last(node) else np.moveaxis(seen.index[0], 0, -1)
        rows = index.reshape(-1, wide) if index.shape[-1] == wide else None
        if rows is None or not (np.sort(rows[:, 0]) == wide * np.arange(len(rows))).all():
            return None
        if not (rows == rows[:, :1] + np.arange(wide)).all() or rows.size != seen.size:
            return None
        made = f"{out}@mean"
        base, graph = self.rows[seen.root], self.graph
        if graph.opset < 18:
            mean = helper.make_node("ReduceMean", [base], [made], node.name, axes=[1], keepdims=1)
        else:
            self.constants[f"{made}@axes"] = np.array([1], np.int64)
            mean = helper.make_node("ReduceMean", [base, f"{made}@axes"], [made], node.name, keepdims=1)
        self.pending.append(mean)
        self._reshaped(made, out, graph.shapes[out])
        return self.pending

    def _last(self, node: Node) -> bool:
        """Whether a ReduceMean leaves the last axis."""
        axes = _axes(self.graph, node)
        rank = len(self.graph.shapes[node.inputs[0]])
        return axes is not None and rank - 1 not in axes


def _axes(graph: Graph, node: Node) -> list[int] | None:
    given = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("axes")
    rank = len(graph.shapes.get(node.inputs[0], ()))
    return None if given is None or not rank else sorted(int(a) % rank for a in np.reshape(given, -1))


def _averages(graph: Graph, node: Node) -> bool:
    """Whether ``node`` is a mean over the two spatial axes of [1, H, W, C] or [1, C, H, W]."""
    if len(graph.shapes.get(node.inputs[0], ())) != 4:
        return False
    return node.op == "GlobalAveragePool" or (node.op == "ReduceMean" and _axes(graph, node) in ([1, 2], [2, 3]))


def _begins(graph: Graph, node: Node) -> bool:
    """Whether ``node`` is a product with constant weights or a norm, which work on rows wherever they stand."""
    shape = graph.shapes.get(node.inputs[0], ())
    if not shape or node.inputs[0] in graph.constants:
        return False
    if node.op == "ReduceMean":  # of a norm in single operators
        return len(shape) > 2 and _follows(graph, node)
    if node.op in _NORMS:
        return len(shape) > 1 and int(node.attrs.get("axis", -1)) % len(shape) == len(shape) - 1
    weight = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or weight.ndim != 2:
        return False
    if node.op == "Gemm":
        return not node.attrs.get("transA", 0) and all(
            t in graph.constants and graph.constants[t].size == graph.shapes[node.outputs[0]][-1]
            for t in node.inputs[2:]
            if t
        )
    return node.op == "MatMul"


def _follows(graph: Graph, node: Node) -> bool:
    """Whether ``node`` treats each row alike, if its inputs are rows of a stream."""
    shape = graph.shapes[node.outputs[0]]
    if node.op in _ELEMENTWISE:
        return True
    if node.op == "ReduceMean":
        rank = len(graph.shapes[node.inputs[0]])
        return _axes(graph, node) == [rank - 1] and bool(node.attrs.get("keepdims", 1))
    if node.op not in _PAIRS:
        return False
    return all(
        graph.shapes[t][:-1] == shape[:-1] if t not in graph.constants else graph.constants[t].ndim <= len(shape)
        for t in node.inputs
    )
