"""Gives a model float32 inputs, outputs and arithmetic in place of other number types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.importing.graph import infer_shapes, inputs, rename, subgraphs

#: Types of real numbers that become float32.
OTHER_FLOATS: Final = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
#: Types of images and arrays of whole numbers.
WHOLE: Final = {
    TensorProto.UINT8,
    TensorProto.INT8,
    TensorProto.UINT16,
    TensorProto.INT16,
    TensorProto.UINT32,
    TensorProto.INT32,
    TensorProto.UINT64,
    TensorProto.INT64,
    TensorProto.BOOL,
}
#: Types that convert to float32.
NUMBERS: Final = {TensorProto.FLOAT, *OTHER_FLOATS, *WHOLE}
#: Attributes that name a tensor type.
_TYPES: Final = {"to", "dtype", "output_datatype"}


def has_other_floats(model: onnx.ModelProto) -> bool:
    """Whether a weight, a constant, an input or a Cast of ``model`` is real and not float32."""
    for part in subgraphs(model.graph):
        kinds = {t.data_type for t in (*part.initializer, *_constants(part))}
        kinds |= {i.type.tensor_type.elem_type for i in (*part.input, *part.output)}
        kinds |= {a.i for node in part.node for a in node.attribute if a.name in _TYPES}
        if kinds & OTHER_FLOATS:
            return True
    return False


def to_float32(model: onnx.ModelProto) -> None:
    """Make all real numbers of ``model`` float32: weights, constants, inputs, outputs and the results of Casts.

    A Cast from one real type to another becomes an Identity, which optimizers remove.
    """
    types = element_types(model)
    for part in subgraphs(model.graph):
        for node in part.node:
            target = next((a.i for a in node.attribute if a.name == "to"), 0) if node.op_type == "Cast" else 0
            if {target, types.get(node.input[0] if node.input else "", 0)} <= {TensorProto.FLOAT, *OTHER_FLOATS}:
                node.op_type = "Identity"
                del node.attribute[:]
        for tensor in (*part.initializer, *_constants(part)):
            if tensor.data_type in OTHER_FLOATS:
                tensor.CopyFrom(_single(tensor))
        for node in part.node:
            for attribute in node.attribute:
                if attribute.name in _TYPES and attribute.i in OTHER_FLOATS:
                    attribute.i = TensorProto.FLOAT
        for value in (*part.input, *part.output):
            if value.type.tensor_type.elem_type in OTHER_FLOATS:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        del part.value_info[:]


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Known element types of the tensors."""
    graph = infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {t.name: t.data_type for t in graph.initializer} | {i.name: i.type.tensor_type.elem_type for i in values}


def float_ends(model: onnx.ModelProto) -> None:
    """Make the first input of ``model`` and its outputs float32, with a Cast inside where the file has another type.

    Token ids [batch, tokens] are int64. A Cast to float32 of an input of whole numbers is dropped, as the sender's
    numbers are real already.
    """
    graph = model.graph
    entry = inputs(graph)[0]
    kind = entry.type.tensor_type.elem_type
    rows = len(entry.type.tensor_type.shape.dim) == 2
    if kind == TensorProto.INT32 and rows and _indexes(graph, entry.name):
        _cast_input(graph, entry, kind, TensorProto.INT64)
    elif kind != TensorProto.FLOAT and kind in NUMBERS and not (kind == TensorProto.INT64 and rows):
        _cast_input(graph, entry, kind)
    for out in graph.output:
        kind = out.type.tensor_type.elem_type
        if kind != TensorProto.FLOAT and kind in NUMBERS:
            rename(graph, out.name, f"{out.name}@own")
            graph.node.append(
                helper.make_node("Cast", [f"{out.name}@own"], [out.name], f"{out.name}@float", to=TensorProto.FLOAT)
            )
            out.type.tensor_type.elem_type = TensorProto.FLOAT


def _indexes(graph: onnx.GraphProto, name: str) -> bool:
    """Whether a Gather takes the tensor ``name`` as its indices, directly or after a Cast."""
    names = {name} | {node.output[0] for node in graph.node if node.op_type == "Cast" and node.input[0] == name}
    return any(node.op_type == "Gather" and node.input[1] in names for node in graph.node)


def _cast_input(graph: onnx.GraphProto, entry: onnx.ValueInfoProto, kind: int, to: int = TensorProto.FLOAT) -> None:
    name, own = entry.name, f"{entry.name}@own"
    rename(graph, name, own)
    readers = [node for node in graph.node if own in node.input]
    for node in readers:
        target = next((a.i for a in node.attribute if a.name == "to"), 0) if node.op_type == "Cast" else 0
        if target == TensorProto.FLOAT and to == TensorProto.FLOAT:
            node.op_type = "Identity"
            node.input[0] = name
            del node.attribute[:]
    graph.node.insert(0, helper.make_node("Cast", [name], [own], f"{name}@cast", to=kind))
    entry.type.tensor_type.elem_type = to


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The tensors in attributes of operators, such as the value of a Constant."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _single(tensor: onnx.TensorProto) -> onnx.TensorProto:
    with np.errstate(over="ignore"):
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
