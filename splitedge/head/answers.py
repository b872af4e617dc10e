"""The answer to a frame: a model's output as bytes on the wire and as values for the caller.

An answer holds the best classes or the whole output. A whole output is float32, or int32 for indices, little-endian, in
ONNX order without the batch axis. Server, stage and agent share this module, so an answer does not depend on where the
network ends.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitedge import errors
from splitedge.protocol.frames import Buffer, pack_topk, unpack_topk
from splitedge.protocol.messages import Output, OutputKind

F32 = NDArray[np.float32]
Whole = NDArray[np.float32] | NDArray[np.int64]

#: Classes reported beside a whole output.
SHOWN = 5


class Answered(NamedTuple):
    """``pairs`` of (class, probability or score), best first; none for a tensor.

    ``output``: the whole output, if requested.
    """

    pairs: tuple[tuple[int, float], ...]
    output: Whole | None = None


def classes(output: Output, topk: int) -> int:
    """The number of classes to request for a caller's ``topk``; 0 (the whole output) for a tensor."""
    return topk if output.has_classes else 0


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
    if not np.isfinite(values).all():
        raise errors.ModelError(
            "the model's output is not finite; run the float model on this input and check it", reason="not-finite"
        )
    pairs = best(values, topk or SHOWN, output) if output.has_classes else ()
    if classes(output, topk):
        return Answered(pairs)
    whole: Whole = values
    if output.greatest is not None:
        whole = values.reshape(output.greatest.shape).argmax(axis=output.greatest.axis)
    return Answered(pairs, _kept(whole, output))


def _kept(whole: Whole, output: Output) -> Whole:
    """``whole`` in its shape, read-only because it may serve another frame too."""
    view: Whole = whole.reshape(output.shape)
    view.flags.writeable = False
    return view


def pack(values: F32, output: Output, topk: int) -> bytes:
    """`from_values` as the payload of an answer."""
    answered = from_values(values, output, topk)
    return pack_topk(answered.pairs) if answered.output is None else answered.output.astype(_wire(output)).tobytes()


def unpack(payload: Buffer, output: Output, topk: int) -> Answered:
    """The inverse of `pack`. Raises `errors.ProtocolError`."""
    if classes(output, topk):
        return Answered(tuple(unpack_topk(payload)))
    if len(payload) != 4 * math.prod(output.shape):
        raise errors.ProtocolError(
            f"an answer of {len(payload)} bytes is not an output of the shape {output.shape}", reason="answer-bytes"
        )
    values = np.frombuffer(payload, _wire(output))
    if output.greatest is not None:
        return Answered((), _kept(values.astype(np.int64), output))
    return from_values(values.astype(np.float32), output, topk)


def _wire(output: Output) -> str:
    return "<f4" if output.greatest is None else "<i4"


def npy(whole: Whole) -> bytes:
    """``whole`` as a .npy file."""
    file = io.BytesIO()
    np.save(file, whole, allow_pickle=False)
    return file.getvalue()


def to_onnx_order(values: F32, output: Output) -> F32:
    """A head's output (channels last) in ONNX order."""
    if values.ndim == 3:
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values).reshape(output.computed)
