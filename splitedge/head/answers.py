"""The answer to a frame: a model's output as bytes on the wire and as values for the caller.

An answer holds the best classes, the boxes or the map of a task, or the whole output. A whole output is float32, or
int32 for indices, little-endian, in ONNX order without the batch axis. Server, stage and agent share this module, so an
answer does not depend on where the network ends.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitedge import errors, limits
from splitedge.protocol.frames import Buffer, pack_topk, unpack_topk
from splitedge.protocol.messages import Detection, Output, OutputKind, Segmentation
from splitedge.tasks import detection, segmentation
from splitedge.tasks.detection import Boxes
from splitedge.tasks.segmentation import Map

F32 = NDArray[np.float32]
Whole = NDArray[np.float32] | NDArray[np.int64]

#: Classes reported beside a whole output.
SHOWN = 5


class Answered(NamedTuple):
    """``pairs`` of (class, probability or score), best first; none for a tensor.

    ``output``: the whole output, if requested. ``boxes`` and ``map``: of a model with such a task.
    """

    pairs: tuple[tuple[int, float], ...]
    output: Whole | None = None
    boxes: Boxes | None = None
    map: Map | None = None


def requested(output: Output, topk: int) -> int:
    """What to request from the server for a caller's ``topk``: the best classes, or the answer of a task; 0 for the
    whole output.

    Raises `errors.UsageError` if ``topk`` is 0 and the whole output does not fit into an answer.
    """
    if topk == 0 and 4 * math.prod(output.shape) > limits.MAX_FRAME_BYTES:
        raise errors.UsageError(
            f"the complete output has {4 * math.prod(output.shape)} bytes (the maximum is {limits.MAX_FRAME_BYTES}); "
            "omit --out, or set `topk` above 0",
            reason="output-too-large",
        )
    return topk if output.has_classes or output.task is not None else 0


def probabilities(values: F32, kind: OutputKind) -> NDArray[np.float64]:
    """Float64 of the shape of ``values``: the softmax over the last axis of logits, other kinds unchanged."""
    found = values.astype(np.float64)
    if kind != "logits":
        return found
    found = np.asarray(np.exp(found - found.max(axis=-1, keepdims=True)))
    found /= found.sum(axis=-1, keepdims=True)
    return found


def best(values: F32, k: int, output: Output) -> tuple[tuple[int, float], ...]:
    """The ``k`` best classes of ``values`` (any shape, flattened) with their probabilities or scores.

    Among equals the lower class is first.
    """
    flat = probabilities(values.reshape(-1), output.kind)
    order = np.argsort(-flat, kind="stable")[:k]
    return tuple((int(i), float(flat[i])) for i in order)


def from_values(values: F32, output: Output, topk: int) -> Answered:
    """The answer for ``values``, the result of head or tail in ONNX order.

    ``topk`` 0 includes the whole output. Raises `errors.ModelError` for NaN and infinity.
    """
    return _answered(_finite(real(_finite(values), output)), output, topk)


def _finite(values: F32) -> F32:
    if not np.isfinite(values).all():
        raise errors.ModelError(
            "the model's output is not finite; run the float model on this input and check it", reason="not-finite"
        )
    return values


def real(values: F32, output: Output) -> F32:
    """The computed ``values`` in the units of the model's own outputs."""
    if not output.parts:
        return values
    sizes = [math.prod(part.shape) for part in output.parts]
    scales = np.repeat(np.array([part.scale for part in output.parts], np.float32), sizes)
    return np.asarray(values.reshape(-1) * scales, np.float32)


def _answered(values: F32, output: Output, topk: int) -> Answered:
    pairs = best(values, topk or SHOWN, output) if output.has_classes else ()
    boxes, found = None, None
    if isinstance(output.task, Detection):
        boxes = boxes_of(values, output, output.task)
    elif isinstance(output.task, Segmentation):
        found = segmentation.decode(values.reshape(output.shape), output.task)
    if requested(output, topk):
        return Answered(pairs, None, boxes, found)
    whole: Whole = values
    if output.greatest is not None:
        whole = values.reshape(output.greatest.shape).argmax(axis=output.greatest.axis)
    return Answered(pairs, _kept(whole, output), boxes, found)


def boxes_of(values: F32, output: Output, task: Detection) -> Boxes:
    """The boxes in ``values``, the whole output in its own units."""
    return detection.decode(list(parts(values, output).values()), task)


def parts(values: F32, output: Output) -> dict[str, F32]:
    """The model's own outputs in ``values``, the whole output: each by its name; one without a name if it has one."""
    if not output.parts:
        return {"": values.reshape(output.shape)}
    ends = np.cumsum([math.prod(part.shape) for part in output.parts])[:-1]
    pieces = np.split(values.reshape(-1), ends)
    return {part.name: piece.reshape(part.shape) for part, piece in zip(output.parts, pieces, strict=True)}


def _kept(whole: Whole, output: Output) -> Whole:
    """``whole`` in its shape, read-only because it may serve another frame too."""
    view: Whole = whole.reshape(output.shape)
    view.flags.writeable = False
    return view


def pack(values: F32, output: Output, topk: int) -> bytes:
    """`from_values` as the payload of an answer."""
    answered = from_values(values, output, topk)
    if answered.output is not None:
        return answered.output.astype(_wire(output)).tobytes()
    if answered.boxes is not None:
        return detection.pack(answered.boxes)
    return pack_topk(answered.pairs) if answered.map is None else segmentation.pack(answered.map)


def unpack(payload: Buffer, output: Output, topk: int) -> Answered:
    """The inverse of `pack`. Raises `errors.ProtocolError`."""
    if requested(output, topk):
        if isinstance(output.task, Detection):
            return Answered((), boxes=detection.unpack(payload, output.task))
        if isinstance(output.task, Segmentation):
            shape, count = (
                segmentation.shape(output.shape, output.task),
                segmentation.classes(output.shape, output.task),
            )
            return Answered((), map=segmentation.unpack(payload, shape, count))
        return Answered(tuple(unpack_topk(payload)))
    if len(payload) != 4 * math.prod(output.shape):
        raise errors.ProtocolError(
            f"an answer of {len(payload)} bytes is not an output of the shape {output.shape}", reason="answer-bytes"
        )
    values = np.frombuffer(payload, _wire(output))
    if output.greatest is not None:
        return Answered((), _kept(values.astype(np.int64), output))
    return _answered(_finite(values.astype(np.float32)), output, topk)


def _wire(output: Output) -> str:
    return "<f4" if output.greatest is None else "<i4"


def npy(whole: Whole) -> bytes:
    """``whole`` as a .npy file."""
    file = io.BytesIO()
    np.save(file, whole, allow_pickle=False)
    return file.getvalue()


def npz(outputs: Mapping[str, F32]) -> bytes:
    """``outputs`` as an .npz file. Slashes in their names become underscores."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, values in outputs.items():
            archive.writestr(f"{name.replace('/', '_')}.npy", npy(values))
    return file.getvalue()


def to_onnx_order(values: F32, output: Output) -> F32:
    """A head's output (channels last) in ONNX order."""
    if values.ndim == 3:
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values).reshape(output.computed)
