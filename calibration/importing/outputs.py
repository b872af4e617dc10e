"""Classifies a model's output: logits, probabilities, scores, or a tensor without classes.

The decision uses the answers of the float model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.importing import joining
from calibration.importing.graph import leading_to, metadata, set_metadata
from calibration.importing.signature import SHAPES, ArgMax
from splitedge import errors, limits, tasks
from splitedge.protocol.messages import Greatest, Output, OutputKind, Task

F32 = NDArray[np.float32]

#: Key in `ModelProto.metadata_props`: axis and keepdims of the ArgMax at the end of the file.
ARGMAX: Final = "splitedge.argmax"

#: Maximum distance from 1 of the sum of probabilities or of the length of a normalized embedding. It covers the error
#: of float32 sums over 100,000 classes.
TOLERANCE: Final = 1e-3


def kind(outputs: F32) -> OutputKind:
    """The kind of ``outputs`` [n, ...] (ONNX order), derived from shape and values.

    An output with more than one axis longer than 1 is a tensor. Any other output is a vector, and all samples together
    decide:

    - values of at least 0 that sum to 1 are probabilities;
    - values from 0 to 1 are scores;
    - vectors of length 1 with negative values are a normalized embedding, which is a tensor;
    - all others are logits.
    """
    if sum(size > 1 for size in outputs.shape[1:]) > 1:
        return "tensor"
    rows = outputs.reshape(len(outputs), -1).astype(np.float64)
    if rows.min() >= -TOLERANCE:
        if (np.abs(rows.sum(axis=1) - 1) <= TOLERANCE).all():
            return "probabilities"
        return "scores" if rows.max() <= 1 + TOLERANCE else "logits"
    return "tensor" if (np.abs(np.linalg.norm(rows, axis=1) - 1) <= TOLERANCE).all() else "logits"


def of_model(
    model: onnx.ModelProto,
    outputs: F32,
    wanted: OutputKind | None = None,
    *,
    classes: bool = False,
    embedding: bool = False,
    task: Task | None = None,
) -> Output:
    """The output of ``model`` (from `calibration.importing.importer.load`), as `describe` derives it.

    It uses the answers ``outputs`` and the last operators of the model. With a ``task``, or with several joined
    outputs, it is a tensor. Raises also `errors.ModelError` if the task does not fit.
    """
    parts = joining.joined(model)
    if task is None and not parts:
        return describe(
            outputs, wanted, classes=classes, embedding=embedding, indices=recorded(model), ranked=_is_ranked(model)
        )
    found = Output("tensor", list(outputs.shape[1:]), None, parts, task)
    tasks.check(found)
    if task is None:
        _check_size(found.shape)
    return found


def describe(
    outputs: F32,
    wanted: OutputKind | None = None,
    *,
    classes: bool = False,
    embedding: bool = False,
    indices: ArgMax | None = None,
    ranked: bool = False,
) -> Output:
    """The output of a model with the answers ``outputs`` [n, ...] (ONNX order): of the kind ``wanted``, else of `kind`.

    - ``classes``: labels or class names exist, so a vector is not an embedding.
    - ``embedding``: the caller compares by cosine, so without classes an output of logits is an embedding.
    - ``indices``: the ArgMax of ``outputs`` at the end of the model. For a vector this is the best class, which every
      answer gives. For a map the answers contain the indices.
    - ``ranked``: a TopK yields the values, so their positions are not classes and the output is a tensor.

    Raises `errors.InputError` if the shape does not fit the kind. Raises `errors.ModelError` if a whole answer is
    larger than `limits.MAX_FRAME_BYTES`.
    """
    shape = list(outputs.shape[1:])
    found: OutputKind = "tensor" if ranked else kind(outputs)
    is_vector = sum(size > 1 for size in shape) <= 1
    best_class = is_vector and indices is not None and outputs.shape[indices.axis] == outputs[0].size
    if not is_vector and wanted not in (None, "tensor"):
        raise errors.InputError(
            f"the output has the shape {shape} and {wanted} need a vector; "
            "omit --output-kind, or choose another tensor with --output",
            reason="not-a-vector",
        )
    if wanted is not None:
        found = wanted
    elif found == "tensor" and is_vector and not ranked and (classes or best_class):
        found = "logits"
    elif found == "logits" and embedding and not classes:
        found = "tensor"
    last = None
    if indices is not None and not best_class:
        found = "tensor"
        last = Greatest(indices.axis - 1, shape)
        shape = [*shape[: last.axis], *([1] if indices.keepdims else []), *shape[last.axis + 1 :]]
    if found == "tensor":
        _check_size(shape)
    return Output(found, shape, last)


def _check_size(shape: Sequence[int]) -> None:
    """Raise `errors.ModelError` if a whole answer of ``shape`` is too large."""
    size = 4 * math.prod(shape)
    if size > limits.MAX_FRAME_BYTES:
        raise errors.ModelError(
            f"the output {list(shape)} has {size} bytes (the maximum is {limits.MAX_FRAME_BYTES}); "
            "choose a smaller tensor with --output",
            reason="output-too-large",
        )


def record(model: onnx.ModelProto, indices: ArgMax | None) -> None:
    """Record the ArgMax ``indices`` at the end of the file in the metadata of ``model``."""
    if indices is not None:
        set_metadata(model, ARGMAX, f"{indices.axis},{int(indices.keepdims)}")


def recorded(model: onnx.ModelProto) -> ArgMax | None:
    """The ArgMax that `record` wrote, or None."""
    found = metadata(model, ARGMAX)
    if found is None:
        return None
    axis, keepdims = found.split(",")
    return ArgMax(int(axis), keepdims == "1")


def _is_ranked(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "TopK" for node in leading_to(model.graph, model.graph.output[0].name, SHAPES))
