"""Refuses models that import cannot repair: training mode, random numbers, weights that are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.importing.graph import reads, short, subgraphs
from splitedge import errors

_RANDOM: Final = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}
#: Operators whose weights must be finite. In other operators infinity is valid: masks add it, and a Clip may be open on
#: one side.
_WEIGHTED: Final = {
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "PRelu",
    "LSTM",
    "GRU",
}


def refuse_training(model: onnx.ModelProto) -> None:
    """Refuse operators in training mode or with random numbers. Raises `errors.ModelError`."""
    opset = next((o.version for o in model.opset_import if not o.domain), 1)
    flags = {name: value for name, value in _constants(model.graph) if value.dtype == np.bool_}
    for node in _nodes(model.graph):
        if _trains(node, opset, flags):
            raise errors.ModelError(
                f"{_named(node)} is in training mode; export the model after model.eval()",
                reason="training-mode",
                node=node.name,
            )
        if node.op_type in _RANDOM and not node.domain:
            raise errors.ModelError(
                f"{_named(node)} draws random numbers, so one input has many answers; export the model without it",
                reason="random",
                node=node.name,
            )


def refuse_nonfinite(model: onnx.ModelProto) -> None:
    """Refuse NaN among the constants of ``model`` and infinity among the weights of an operator.

    Raises `errors.ModelError`.
    """
    floats = ((name, _as_floats(value)) for name, value in _constants(model.graph))
    bad = {name: bool(np.isnan(value).any()) for name, value in floats if not np.isfinite(value).all()}
    for node in _nodes(model.graph) if bad else ():
        worst = [t for t in reads(node) if t in bad and (bad[t] or node.op_type in _WEIGHTED)]
        if worst:
            raise errors.ModelError(
                f"the weights of {_named(node)} are not finite ({short(worst[0])}); train or convert the model again",
                reason="weights-not-finite",
                node=node.name,
            )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    return (node for part in subgraphs(graph) for node in part.node)


def _named(node: onnx.NodeProto) -> str:
    return f"{node.op_type} ({short(node.name or node.output[0])})"


def _trains(node: onnx.NodeProto, opset: int, flags: dict[str, NDArray[Any]]) -> bool:
    if node.domain or node.op_type not in ("BatchNormalization", "Dropout"):
        return False
    numbers = {a.name: a.i for a in node.attribute}
    if opset < 7:
        return not numbers.get("is_test", 0)
    if node.op_type == "BatchNormalization":
        # up to opset 13, more than one output means training mode
        return bool(numbers.get("training_mode", 0)) if opset >= 14 else sum(bool(t) for t in node.output) > 1
    told = flags.get(node.input[2]) if len(node.input) > 2 else None
    return told is not None and bool(told.any())


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """Names and values of all initializers and Constant operators."""
    for part in subgraphs(graph):
        yield from ((t.name, numpy_helper.to_array(t)) for t in part.initializer)
        for node in part.node:
            values: Iterable[Any] = (onnx.helper.get_attribute_value(a) for a in node.attribute)
            if node.op_type == "Constant":
                arrays = (
                    numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else np.asarray(v) for v in values
                )
                yield from ((node.output[0], array) for array in arrays)


def _as_floats(value: NDArray[Any]) -> NDArray[np.float32]:
    """The values of a float tensor of any width; empty for other types."""
    if value.dtype.kind not in "fV":
        return np.zeros(0, np.float32)
    with np.errstate(over="ignore"):
        return value.astype(np.float32, copy=False)
