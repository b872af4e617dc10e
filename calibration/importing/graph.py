"""A simplified ONNX graph as plain Python values: ordered nodes, constants, shapes, producers and consumers.

Layout: an ONNX tensor of rank 4 is [1, C, H, W]; a head and the wire store it as [H, W, C]. Tensors of rank 3 or 2 keep
their order. No stored tensor has a batch axis. `stored_shape` and `STORED_AXES` define this rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from splitedge import errors, limits

#: For each ONNX rank, the ONNX axis that each stored axis holds.
STORED_AXES: dict[int, tuple[int, ...]] = {2: (1,), 3: (1, 2), 4: (2, 3, 1)}


@dataclass(frozen=True, eq=False)
class Node:
    op: str
    name: str
    inputs: tuple[str, ...]  # including tensors captured by a subgraph; "" is an absent optional input
    outputs: tuple[str, ...]
    attrs: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.op} ({self.name})"


@dataclass
class Graph:
    """The nodes between the input and the output. Shapes are ONNX shapes with a batch of 1."""

    input: str
    output: str
    nodes: list[Node]
    constants: dict[str, NDArray[Any]]
    shapes: dict[str, tuple[int, ...]]
    producer: dict[str, Node]
    consumers: dict[str, list[Node]]
    opset: int  # version of the standard operators
    takes_ids: bool = False  # the input is int64: token ids

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Graph:
        """The graph of a model with one input and one output, whose input has known dimensions except the batch."""
        inferred = infer_shapes(with_batch(model, 1)).graph
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in inferred.initializer}
        constants |= {n.output[0]: _constant(n) for n in inferred.node if n.op_type == "Constant"}
        entry = inputs(inferred)[0]
        name, takes_ids = entry.name, entry.type.tensor_type.elem_type == onnx.TensorProto.INT64
        nodes = _needed(_dependent(_nodes(inferred), name), inferred.output[0].name)
        opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        graph = cls(name, inferred.output[0].name, nodes, constants, _shapes(inferred), {}, {}, opset, takes_ids)
        graph.producer = {t: n for n in nodes for t in n.outputs}
        for node in nodes:
            for tensor in set(node.inputs):
                graph.consumers.setdefault(tensor, []).append(node)
        return graph

    @staticmethod
    def input_of(model: onnx.ModelProto) -> onnx.ValueInfoProto:
        """The model's only input that is not a weight."""
        return inputs(model.graph)[0]

    def stored_shape(self, tensor: str) -> list[int]:
        """Shape of ``tensor`` in a head: channels last, no batch axis. Raises `KeyError` if the shape is unknown."""
        shape = self.shapes[tensor]
        return [shape[axis] for axis in STORED_AXES[len(shape)]]

    def storable(self, tensor: str) -> bool:
        """Whether a head can hold ``tensor``: a batch of 1, rank 2 to 4, known dimensions."""
        shape = self.shapes.get(tensor, ())
        return len(shape) in STORED_AXES and shape[0] == 1 and all(0 < d <= limits.MAX_DIM for d in shape)

    def behind(self, tensor: str) -> list[Node]:
        """All operators between the input and ``tensor``, in order."""
        wanted, found = {tensor}, []
        for node in reversed(self.nodes):
            if wanted & set(node.outputs):
                wanted |= set(node.inputs)
                found.append(node)
        return found[::-1]

    def sole_consumer(self, tensor: str) -> Node | None:
        """The only node that reads ``tensor``; None if several do or if it is the output."""
        readers = self.consumers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor != self.output else None


def with_batch(model: onnx.ModelProto, batch: int | str) -> onnx.ModelProto:
    """A copy of ``model`` whose input has ``batch`` as its first dimension, without inferred shapes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    dimension = inputs(copy.graph)[0].type.tensor_type.shape.dim[0]
    dimension.Clear()
    if isinstance(batch, int):
        dimension.dim_value = batch
    else:
        dimension.dim_param = batch
    del copy.graph.value_info[:]
    for out in copy.graph.output:
        out.type.tensor_type.ClearField("shape")
    return copy


def tail_model(model: onnx.ModelProto, tensor: str, shape: Iterable[int]) -> onnx.ModelProto:
    """The part of ``model`` from ``tensor`` (ONNX ``shape`` without the batch) to the output.

    If that part also reads the model's input, the input is its second one.
    """
    source = model.graph
    wanted, nodes = {source.output[0].name}, []
    for node in reversed(source.node):
        if (wanted - {tensor}) & set(node.output):
            nodes.append(node)
            wanted |= set(reads(node))
    batch = inputs(source)[0].type.tensor_type.shape.dim[0]
    entry = onnx.helper.make_tensor_value_info(
        tensor, onnx.TensorProto.FLOAT, [batch.dim_param or batch.dim_value, *shape]
    )
    entries = [entry, *(i for i in inputs(source) if i.name in wanted - {tensor})]
    weights = [t for t in source.initializer if t.name in wanted]
    graph = onnx.helper.make_graph(nodes[::-1], source.name, entries, list(source.output), weights)
    made = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    made.metadata_props.extend(model.metadata_props)
    return made


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` with inferred shapes; with those of the file if onnx finds a contradiction."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # onnx's errors have no common base; ONNX Runtime infers shapes itself
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy


def in_order(graph: onnx.GraphProto) -> None:
    """Sort the operators of ``graph`` so that each one follows those whose results it reads.

    Operators that are in order keep their places. A cycle stays, for the checker to name.
    """
    nodes = list(graph.node)
    makers = {t: place for place, node in enumerate(nodes) for t in node.output if t}
    before = [sorted({makers[t] for t in reads(node) if t in makers}) for node in nodes]
    if all(place > max(needed, default=-1) for place, needed in enumerate(before)):
        return
    met, placed = set[int](), dict[int, None]()
    for first in range(len(nodes)):
        waiting = [first]
        while waiting:
            place = waiting[-1]
            missing = [] if place in met else [p for p in reversed(before[place]) if p not in met]
            met.add(place)
            waiting += missing
            if not missing:
                placed[waiting.pop()] = None
    del graph.node[:]
    graph.node.extend(nodes[place] for place in placed)


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove everything that the output does not depend on. Otherwise sessions warn about it and keep it in memory."""
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


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """``graph`` and the graphs inside its operators, such as branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from subgraphs(inner)


def leading_to(graph: onnx.GraphProto, tensor: str, through: Container[str]) -> Iterator[onnx.NodeProto]:
    """The operators that make ``tensor``, backwards along first inputs.

    The last one is the first whose type is not in ``through``.
    """
    makers = {t: node for node in graph.node for t in node.output}
    node = makers.get(tensor)
    while node is not None:
        yield node
        node = makers.get(node.input[0]) if node.op_type in through and node.input else None


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename the tensor ``old`` in all operators that make or read it.

    The graph's inputs and outputs keep their names.
    """
    for part in subgraphs(graph):
        for node in part.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == old:
                        names[place] = new


def short(name: str) -> str:
    """``name``, or its beginning and a hash if it is longer than `limits.MAX_NAME`."""
    return (
        name
        if len(name) <= limits.MAX_NAME
        else f"{name[: limits.MAX_NAME - 9]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )


def inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are not weights."""
    weights = {t.name for t in graph.initializer}
    return [i for i in graph.input if i.name not in weights]


def metadata(model: onnx.ModelProto, key: str) -> str | None:
    """The value of ``key`` in the metadata of ``model``, or None."""
    return next((entry.value for entry in model.metadata_props if entry.key == key), None)


def set_metadata(model: onnx.ModelProto, key: str, value: str | None) -> None:
    """Write ``key`` with ``value`` into the metadata of ``model``, or remove it."""
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != key]
    del model.metadata_props[:]
    for name, text in others if value is None else [*others, (key, value)]:
        entry = model.metadata_props.add()
        entry.key, entry.value = name, text


def _constant(node: onnx.NodeProto) -> NDArray[Any]:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    return onnx.numpy_helper.to_array(value) if attribute.name == "value" else np.asarray(value)


def reads(node: onnx.NodeProto) -> list[str]:
    """Names of the tensors that ``node`` reads, including those captured by its subgraphs."""
    names = list(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            names += [name for inner in graph.node for name in reads(inner)] + [out.name for out in graph.output]
    return names


def _nodes(graph: onnx.GraphProto) -> list[Node]:
    found = []
    for index, node in enumerate(graph.node):
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        label = short(node.name or f"{node.op_type}_{index}")
        op = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        found.append(Node(op, label, tuple(reads(node)), tuple(t for t in node.output if t), attrs))
    return found


def _dependent(nodes: list[Node], start: str) -> list[Node]:
    """The nodes that depend on the tensor ``start``, in topological order (ONNX guarantees it)."""
    known, found = {start}, []
    for node in nodes:
        if known & set(node.inputs):
            known |= set(node.outputs)
            found.append(node)
    return found


def _needed(nodes: list[Node], output: str) -> list[Node]:
    wanted, found = {output}, []
    for node in reversed(nodes):
        if wanted & set(node.outputs):
            wanted |= set(node.inputs)
            found.append(node)
    if not found:
        raise errors.ModelError(
            "the model's output does not depend on its input; export the model again", reason="constant-output"
        )
    return found[::-1]


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Known shapes of the float tensors and of the input."""
    shapes, entry = {}, inputs(graph)[0].name
    for info in [*graph.input, *graph.value_info, *graph.output]:
        kind = info.type.tensor_type
        if (
            (kind.elem_type == onnx.TensorProto.FLOAT or info.name == entry)
            and kind.HasField("shape")
            and all(d.HasField("dim_value") for d in kind.shape.dim)
        ):
            shapes[info.name] = tuple(d.dim_value for d in kind.shape.dim)
    return shapes
