"""Joins several outputs of a model to one vector, which cuts, codecs and noises treat like any other output.

The values of each output are divided by their largest magnitude on the calibration samples. So a box of 640 pixels and
a score of 1 count alike, and a head's output holds both in 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.importing.graph import drop_unread, infer_shapes, metadata, set_metadata
from splitedge import errors, limits
from splitedge.protocol.messages import Part

F32 = NDArray[np.float32]

#: Key in `ModelProto.metadata_props`: the joined outputs as JSON of `Part`.
JOINED: Final = "splitedge.outputs"
#: The name of the vector.
VECTOR: Final = "splitedge.joined"
#: Scales below the smallest normal float32 have no finite inverse.
_LEAST: Final = float(np.finfo(np.float32).tiny)
_OPEN: Final = (-math.inf, math.inf)


def outputs(model: onnx.ModelProto) -> list[str]:
    """The names of the float32 outputs of ``model``, in order."""
    return [one.name for one in model.graph.output if one.type.tensor_type.elem_type == TensorProto.FLOAT]


def join(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Replace the outputs of ``model``, whose input has a batch of 1, by one vector of the tensors ``names``.

    Raises `errors.ModelError` for an unknown tensor, one that is not float32, or one of unknown shape.
    """
    known = {**_values(infer_shapes(model).graph), **_values(model.graph)}
    parts = [Part(name, _shape(known, name)) for name in names]
    if not 0 < len(parts) <= limits.MAX_PARTS or len(set(names)) < len(names):
        raise errors.ModelError(
            f"{len(parts)} outputs cannot be joined (the maximum is {limits.MAX_PARTS}, each once); choose others with "
            "--output",
            reason="outputs",
        )
    graph = model.graph
    for part in parts:
        graph.node.append(_flattened(graph, part.name, batched=part.shape != known[part.name]))
    graph.node.append(helper.make_node("Concat", [f"{name}@flat" for name in names], [VECTOR], VECTOR, axis=1))
    del graph.output[:]
    size = sum(math.prod(part.shape) for part in parts)
    graph.output.append(helper.make_tensor_value_info(VECTOR, TensorProto.FLOAT, [1, size]))
    drop_unread(graph)
    _write(model, parts)


def joined(model: onnx.ModelProto) -> list[Part]:
    """The outputs that `join` joined; empty for any other model."""
    found = metadata(model, JOINED)
    return [] if found is None else msgspec.json.decode(found, type=list[Part])


def keep(model: onnx.ModelProto, parts: Sequence[Part]) -> None:
    """Write the joined ``parts`` into a ``model`` whose metadata an optimizer removed."""
    if parts:
        _write(model, parts)


def balanced(
    model: onnx.ModelProto, answers: F32, bounds: Mapping[int, tuple[float, float]] = MappingProxyType({})
) -> tuple[onnx.ModelProto, F32]:
    """``model`` and its ``answers`` [n, N] with each joined output divided by its largest magnitude in ``answers``.

    ``bounds``: the values beyond which those of an output, by its index, make no difference (`detection.bounds`); they
    are clipped first. A model with one output stays as it is.
    """
    parts = joined(model)
    last = next((node for node in model.graph.node if model.graph.output[0].name in node.output), None)
    if not parts or last is None or last.op_type != "Concat" or len(last.input) != len(parts):
        return model, answers
    ends = np.cumsum([math.prod(part.shape) for part in parts])[:-1]
    pieces = [np.clip(one, *bounds.get(i, _OPEN)) for i, one in enumerate(np.split(answers, ends, axis=1))]
    greatest = [float(np.abs(values).max()) for values in pieces]
    scales = [float(np.float32(one)) if math.isfinite(one) and one > _LEAST else 1.0 for one in greatest]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    (join,) = [node for node in made.graph.node if node.output == last.output]
    made.graph.node.remove(join)
    for place, scale in enumerate(scales):
        source, name = join.input[place], f"{VECTOR}/{place}"
        if place in bounds:
            ends_of = [f"{name}/least", f"{name}/greatest"]
            for end, value in zip(ends_of, bounds[place], strict=True):
                made.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), end))
            made.graph.node.append(helper.make_node("Clip", [source, *ends_of], [f"{name}/clipped"], f"{name}/clip"))
            source = f"{name}/clipped"
        made.graph.initializer.append(numpy_helper.from_array(np.array(1 / scale, np.float32), f"{name}/factor"))
        made.graph.node.append(helper.make_node("Mul", [source, f"{name}/factor"], [name], name))
        join.input[place] = name
    made.graph.node.append(join)
    _write(made, [Part(part.name, part.shape, scale) for part, scale in zip(parts, scales, strict=True)])
    sizes = [math.prod(part.shape) for part in parts]
    clipped = np.concatenate(pieces, axis=1)
    return made, np.asarray(clipped / np.repeat(np.array(scales, np.float32), sizes), np.float32)


def _write(model: onnx.ModelProto, parts: Sequence[Part]) -> None:
    set_metadata(model, JOINED, msgspec.json.encode(list(parts)).decode())


def _values(graph: onnx.GraphProto) -> dict[str, list[int] | None]:
    """The shapes of the float32 tensors of ``graph``; None for one of another type."""
    return {
        one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim]
        if one.type.tensor_type.elem_type == TensorProto.FLOAT
        else None
        for one in (*graph.value_info, *graph.output)
        if one.type.tensor_type.HasField("shape")
    }


def _shape(known: Mapping[str, list[int] | None], name: str) -> list[int]:
    """The shape of the tensor ``name`` without its batch axis. Raises `errors.ModelError`."""
    found = known.get(name, [])
    if found is None:
        raise errors.ModelError(
            f"the output {name} is not float32; choose others with --output", reason="output-type", output=name
        )
    sizes = found[1:] if len(found) > 1 and found[0] in (0, 1) else found
    if not sizes or not all(size > 0 for size in sizes):
        raise errors.ModelError(
            f"the shape of the output {name} is not known; choose others with --output, or export the model with fixed "
            "shapes",
            reason="output-shape",
            output=name,
        )
    return sizes


def _flattened(graph: onnx.GraphProto, name: str, *, batched: bool) -> onnx.NodeProto:
    """The operator that yields ``name`` as [1, n]."""
    if batched:
        return helper.make_node("Flatten", [name], [f"{name}@flat"], f"{name}@flat", axis=1)
    graph.initializer.append(numpy_helper.from_array(np.array([1, -1], np.int64), f"{name}@flat/shape"))
    return helper.make_node("Reshape", [name, f"{name}@flat/shape"], [f"{name}@flat"], f"{name}@flat")
