"""Normalizes a model to one input and one output in the layout that this project uses.

Exported text models also take a mask and token types, and return several tensors. TensorFlow models take images with
the channels last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.importing.graph import drop_unread, infer_shapes, inputs, leading_to, reads, rename
from calibration.importing.precision import NUMBERS, OTHER_FLOATS, element_types
from splitedge import errors

Role = Literal["mask", "types", "positions"]

#: Roles of the inputs other than the token ids, by a part of their name.
_ROLES: Final[dict[str, Role]] = {
    "mask": "mask",
    "token_type": "types",
    "segment": "types",
    "type_ids": "types",
    "position": "positions",
}

#: Operators defined for [N, C, H, W] only: an input that one of them reads has its channels first.
_CHANNELS_FIRST: Final = {
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "BatchNormalization",
    "InstanceNormalization",
    "LpPool",
    "GlobalLpPool",
    "LRN",
}
#: The permutation from the image's original axes to those after `channels_first`.
TURNED: Final = (0, 3, 1, 2)
#: Operators that change the shape of a tensor and keep the order of its elements.
SHAPES: Final = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
#: The largest index that each type holds exactly. Indices in other types are not supported.
_GREATEST: Final = {
    TensorProto.INT64: 2**31,
    TensorProto.INT32: 2**31,
    TensorProto.UINT64: 2**31,
    TensorProto.UINT32: 2**31,
    TensorProto.DOUBLE: 2**31,
    TensorProto.FLOAT: 2**24,
    TensorProto.FLOAT16: 2048,
    TensorProto.UINT16: 65535,
    TensorProto.INT16: 32767,
    TensorProto.UINT8: 255,
    TensorProto.INT8: 127,
}
#: Operators that may follow an ArgMax and keep its indices, as far as the type holds them.
_PASS_INDICES: Final = {*SHAPES, "Cast"}


def fix_inputs(model: onnx.ModelProto, values: Mapping[str, float]) -> None:
    """Give inputs of ``model`` one constant value each: every element of the input. Open dimensions become 1.

    Raises `errors.ModelError` if an input does not exist or does not hold numbers.
    """
    graph = model.graph
    names = ", ".join(i.name for i in inputs(graph))
    for name, value in values.items():
        entry = next((i for i in inputs(graph) if i.name == name), None)
        if entry is None or entry.type.tensor_type.elem_type not in NUMBERS:
            raise errors.ModelError(
                f"{name} is not an input of numbers; the inputs are {names}", reason="unknown-input", input=name
            )
        kind = entry.type.tensor_type
        shape = [max(1, dim.dim_value) for dim in kind.shape.dim]
        constant = np.full(shape, value).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        graph.input.remove(entry)
        graph.initializer.append(numpy_helper.from_array(constant, name))


def with_few_axes(model: onnx.ModelProto) -> None:
    """Let the first input have 2 to 4 axes, as a frame does: [N] becomes [1, N], and of five or more axes those between
    the first and the last are joined, [1, C, T, H, W] to [1, C T H, W]. Inputs with other open dimensions stay.
    """
    graph = model.graph
    entry = inputs(graph)[0]
    name, dims = entry.name, entry.type.tensor_type.shape.dim
    sizes = [dim.dim_value for dim in dims]
    if len(sizes) == 1 and sizes[0]:
        whole, own = [1, sizes[0]], sizes
    elif len(sizes) > 4 and all(sizes[1:]):
        whole, own = [1, math.prod(sizes[1:-1]), sizes[-1]], [1, *sizes[1:]]
    else:
        return
    rename(graph, name, f"{name}@axes")
    graph.initializer.append(numpy_helper.from_array(np.array(own, np.int64), f"{name}@sizes"))
    node = helper.make_node("Reshape", [name, f"{name}@sizes"], [f"{name}@axes"], f"{name}@axes")
    graph.node.insert(0, node)
    del dims[:]
    for size in whole:
        dims.add().dim_value = size


def main_input_first(model: onnx.ModelProto) -> None:
    """Move the input that receives the frames to the front: the only input, or the token ids.

    Raises `errors.ModelError` if that input is ambiguous.
    """
    found = inputs(model.graph)
    mains = [i for i in found if len(found) == 1 or _role(i) is None]
    others = [i for i in found if i not in mains]
    if len(mains) != 1 or (others and not all(map(_holds_tokens, (mains[0], *others)))):
        names = ", ".join(i.name for i in found) or "none"
        raise errors.ModelError(
            f"the model's inputs are {names}, and frames feed one; give each of the others a constant value, such as "
            f"--constant {found[-1].name if found else 'NAME'}=0 (a recurrent state then forgets earlier frames)",
            reason="inputs",
            inputs=[i.name for i in found],
        )
    main = onnx.ValueInfoProto()
    main.CopyFrom(mains[0])
    model.graph.input.remove(mains[0])
    model.graph.input.insert(0, main)


def keep_output(model: onnx.ModelProto, name: str | None) -> None:
    """Keep only the output ``name`` of ``model`` (None: the first output) and the operators that it needs.

    ``name`` may be any tensor of numbers in the graph. Raises `errors.ModelError` if the tensor does not exist or has
    other elements.
    """
    graph = model.graph
    kept = next((o for o in graph.output if name in (None, o.name)), None)
    if kept is None and name in {t for node in graph.node for t in node.output if t}:
        kept = helper.make_tensor_value_info(name, element_types(model).get(str(name), TensorProto.FLOAT), None)
    if kept is None:
        names = ", ".join(o.name for o in graph.output) or "none"
        raise errors.ModelError(
            f"the model has no tensor {name}; its outputs are {names}",
            reason="unknown-output",
            outputs=[o.name for o in graph.output],
        )
    if kept.type.tensor_type.elem_type not in NUMBERS:
        raise errors.ModelError(
            f"the model's output {kept.name} is {_kind(kept)}, not numbers; {_advice(model, kept.name)}",
            reason="output-type",
            output=kept.name,
        )
    del graph.output[:]
    graph.output.append(kept)
    drop_unread(graph)
    read = {t for node in graph.node for t in reads(node)}
    if not any(i.name in read for i in graph.input):
        raise errors.ModelError(
            f"the model's output {kept.name} is not computed from an input; choose another tensor with --output",
            reason="constant-output",
        )
    for unread in [i for i in graph.input if i.name not in read]:
        graph.input.remove(unread)


class ArgMax(NamedTuple):
    """The final ArgMax of a model that outputs indices.

    ``axis`` is an axis of its scores in ONNX order and counts the batch axis.
    """

    axis: int
    keepdims: bool


def scores_for_indices(model: onnx.ModelProto, name: str | None) -> ArgMax | None:
    """Replace an ArgMax at the output ``name`` (None: the first output) with its float32 scores.

    Returns the ArgMax, or None if the output is not one. Scores change smoothly with noise and indices do not. So
    calibration uses the scores, and answers contain the indices.
    """
    graph = model.graph
    output = next((o for o in graph.output if name in (None, o.name)), None)
    if output is None:
        return None
    *behind, node = [*leading_to(graph, output.name, _PASS_INDICES)] or [None]
    if node is None or node.op_type != "ArgMax":
        return None
    casts = {a.i for one in behind for a in one.attribute if one.op_type == "Cast" and a.name == "to"}
    squeezed = any(one.op_type in SHAPES - {"Identity"} for one in behind)
    attributes = {a.name: a.i for a in node.attribute}
    shapes = {i.name: i.type.tensor_type for i in infer_shapes(model).graph.value_info}
    scores = shapes.get(node.input[0])
    if (
        scores is None
        or scores.elem_type not in {TensorProto.FLOAT, *OTHER_FLOATS}
        or attributes.get("select_last_index", 0)
    ):
        return None
    rank = len(scores.shape.dim)
    axis = attributes.get("axis", 0) % rank if rank else 0
    count = scores.shape.dim[axis].dim_value if axis else 0  # 0: ArgMax over the batch axis
    if not 0 < count <= min((_GREATEST.get(kind, 0) + 1 for kind in casts), default=count):
        return None
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(node.input[0], scores.elem_type, None))
    return ArgMax(axis, bool(attributes.get("keepdims", 1)) and not squeezed)


def channels_first(model: onnx.ModelProto) -> bool:
    """Make a ``model`` whose input is an image with the channels last take [1, C, H, W]; returns whether it did.

    Such an input has the shape [1, H, W, 1 or 3], or any shape if the model first transposes it to [1, C, H, W]. Frames
    and arrays have their channels last in both cases. The optimizer removes the two transpositions that then follow
    each other.
    """
    graph = model.graph
    entry = inputs(graph)[0].type.tensor_type
    sizes = [dim.dim_value for dim in entry.shape.dim]
    name = inputs(graph)[0].name
    readers = [node for node in graph.node if name in reads(node)]
    planes = any(node.op_type in _CHANNELS_FIRST and node.input[0] == name for node in readers)
    turned = bool(readers) and all(node.op_type == "Transpose" and _perm(node) == [0, 3, 1, 2] for node in readers)
    looks_last = len(sizes) == 4 and sizes[3] in (1, 3) and sizes[1] not in (1, 3) and not planes
    if not (turned or looks_last):
        return False
    rename(graph, name, f"{name}@last")
    graph.node.insert(0, helper.make_node("Transpose", [name], [f"{name}@last"], f"{name}@last", perm=[0, 2, 3, 1]))
    for dim, size in zip(entry.shape.dim, (1, sizes[3], sizes[1], sizes[2]), strict=True):
        dim.dim_value = size
    return True


def _perm(node: onnx.NodeProto) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), [])


def with_batch_axis(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """Add the batch axis to the output of ``model`` if the model drops it.

    ``shape``: the output's shape for a batch of 1.
    """
    if len(shape) > 1 and shape[0] == 1:
        return
    graph, name = model.graph, model.graph.output[0].name
    whole = [1, *shape] if shape else [1, 1]
    rename(graph, name, f"{name}@flat")
    source = f"{name}@flat"
    for node in leading_to(graph, source, SHAPES):  # one Reshape replaces all changes of shape
        source = node.input[0] if node.op_type in SHAPES else source
    graph.initializer.append(numpy_helper.from_array(np.array(whole, np.int64), f"{name}@batch"))
    graph.node.append(helper.make_node("Reshape", [source, f"{name}@batch"], [name], f"{name}@reshape"))
    drop_unread(graph)


def derive_inputs(model: onnx.ModelProto, padding: int) -> None:
    """Compute the other inputs of ``model`` from the first one, [1, T], whose T is known.

    The mask is 1 where the id is not ``padding``. All tokens have type 0, and positions count from 0.
    """
    graph, nodes = model.graph, []
    main, *others = inputs(graph)
    tokens = main.type.tensor_type.shape.dim[-1].dim_value
    constants = {"types": np.zeros((1, tokens)), "positions": np.arange(tokens)[None]}
    for side in others:
        role, kind = _role(side), side.type.tensor_type.elem_type
        if role == "mask":
            nodes += _mask(graph, side.name, main.name, padding, kind)
        elif role is not None:
            values = constants[role].astype(helper.tensor_dtype_to_np_dtype(kind))
            graph.initializer.append(numpy_helper.from_array(values, side.name))
        graph.input.remove(side)
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])


def _mask(graph: onnx.GraphProto, name: str, ids: str, padding: int, kind: int) -> list[onnx.NodeProto]:
    graph.initializer.append(numpy_helper.from_array(np.array(padding, np.int64), f"{name}@pad"))
    return [
        helper.make_node("Equal", [ids, f"{name}@pad"], [f"{name}@padding"], f"{name}@equal"),
        helper.make_node("Not", [f"{name}@padding"], [f"{name}@kept"], f"{name}@not"),
        helper.make_node("Cast", [f"{name}@kept"], [name], f"{name}@cast", to=kind),
    ]


def _role(value: onnx.ValueInfoProto) -> Role | None:
    return next((role for part, role in _ROLES.items() if part in value.name.lower()), None)


def _holds_tokens(value: onnx.ValueInfoProto) -> bool:
    """Whether ``value`` holds one number per token, [batch, T]. Token ids are whole; a mask may have another type."""
    kind = value.type.tensor_type
    is_whole = kind.elem_type in (TensorProto.INT64, TensorProto.INT32)
    return len(kind.shape.dim) == 2 and (is_whole or _role(value) == "mask")


def _kind(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type.elem_type
    return str(helper.tensor_dtype_to_np_dtype(kind)) if kind else "no tensor"


def _advice(model: onnx.ModelProto, output: str) -> str:
    """Suggests the last float32 tensor before ``output``."""
    types, wanted = element_types(model), {output}
    for node in reversed(model.graph.node):
        if not wanted & set(node.output) or not node.input:
            continue
        if floats := [t for t in node.output if t in wanted and types.get(t) == TensorProto.FLOAT]:
            return f"choose the float32 tensor before it with --output {floats[0]}"
        wanted |= set(reads(node))
    return "export the model in float32"
