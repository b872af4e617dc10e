"""What a model takes and yields, brought to one input and one output: exports of text models take a mask and token types too, and yield several tensors."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.graph import inputs
from edge_agent import errors

Role = Literal["mask", "types", "positions"]

#: Inputs beside the token ids, by a part of their name.
_ROLES: Final[dict[str, Role]] = {
    "mask": "mask", "token_type": "types", "segment": "types", "type_ids": "types", "position": "positions",
}  # fmt: skip


def main_input_first(model: onnx.ModelProto) -> None:
    """Puts the input that frames bring ahead: the only one, or the token ids. Raises `errors.ModelError` where it is not clear which one that is."""
    found = inputs(model.graph)
    mains = [i for i in found if len(found) == 1 or _role(i) is None]
    others = [i for i in found if i not in mains]
    if len(mains) != 1 or (others and not all(map(_holds_tokens, (mains[0], *others)))):
        names = ", ".join(i.name for i in found) or "none"
        raise errors.ModelError(
            f"the model's inputs are {names}; export it with one, or with token ids and beside them attention_mask, token_type_ids or position_ids"
        )
    main = onnx.ValueInfoProto()
    main.CopyFrom(mains[0])
    model.graph.input.remove(mains[0])
    model.graph.input.insert(0, main)


def keep_output(model: onnx.ModelProto, name: str | None) -> None:
    """Leaves ``model`` the output ``name``, or its first. Raises `errors.ModelError` where it has no such output."""
    outputs = list(model.graph.output)
    kept = next((o for o in outputs if name in (None, o.name)), None)
    if kept is None:
        names = ", ".join(o.name for o in outputs) or "none"
        raise errors.ModelError(f"the model has no output {name}; choose one of {names}")
    del model.graph.output[:]
    model.graph.output.append(kept)


def derive_inputs(model: onnx.ModelProto, padding: int) -> None:
    """Makes of the first input [1, T], whose T is known, what ``model`` takes beside it: the mask is 1 where the id is not ``padding``, all tokens are of
    type 0, and their positions count from 0."""
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
    """Whether it holds a number for each token, [batch, T]; a mask may be one of other numbers."""
    kind = value.type.tensor_type
    return len(kind.shape.dim) == 2 and (kind.elem_type == TensorProto.INT64 or _role(value) == "mask")
