"""The answer to a frame: what a model's output becomes, as bytes on the wire and as values for the caller.

An answer holds the best classes, or the whole output: float32, or int32 where it is indices, little-endian, in ONNX order without the batch axis. Server,
stage and agent share it, so that an answer is the same wherever the network ends.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitedge import errors
from splitedge.protocol.frames import Buffer, pack_topk, unpack_topk
from splitedge.protocol.messages import Output

F32 = NDArray[np.float32]
Whole = NDArray[np.float32] | NDArray[np.int64]

#: Classes that are told beside a whole output.
SHOWN = 5


class Answered(NamedTuple):
    """``pairs`` of (class, probability or score), best first, none for a tensor; ``output``: the whole of it, where it was asked for."""

    pairs: tuple[tuple[int, float], ...]
    output: Whole | None = None


def classes(output: Output, topk: int) -> int:
    """How many classes a stream is asked for, where the caller wants ``topk``; 0 (the whole output) of a tensor."""
    return topk if output.has_classes else 0


def best(values: F32, k: int, output: Output) -> tuple[tuple[int, float], ...]:
    """The ``k`` greatest of ``values`` (any shape, taken flat) with their probabilities or scores, greatest first, the lower class first among equals."""
    flat = values.reshape(-1).astype(np.float64)
    if output.kind == "logits":
        flat = np.exp(flat - flat.max())
        flat /= flat.sum()
    order = np.argsort(-flat, kind="stable")[:k]
    return tuple((int(i), float(flat[i])) for i in order)


def from_values(values: F32, output: Output, topk: int) -> Answered:
    """The answer that ``values`` (what head or tail yield, ONNX order) are. ``topk`` 0: with the whole output. Raises `errors.ModelError` for NaN and infinity."""
    if not np.isfinite(values).all():
        raise errors.ModelError("the model's output is not finite: run the float model on this input and check it")
    pairs = best(values, topk or SHOWN, output) if output.has_classes else ()
    if classes(output, topk):
        return Answered(pairs)
    whole: Whole = values
    if output.greatest is not None:
        whole = values.reshape(output.greatest.shape).argmax(axis=output.greatest.axis)
    return Answered(pairs, _kept(whole, output))


def _kept(whole: Whole, output: Output) -> Whole:
    """``whole`` in its shape; nobody may change it, for it may serve another frame too."""
    view: Whole = whole.reshape(output.shape)
    view.flags.writeable = False
    return view


def pack(values: F32, output: Output, topk: int) -> bytes:
    """`from_values` as an answer's payload."""
    answered = from_values(values, output, topk)
    return pack_topk(answered.pairs) if answered.output is None else answered.output.astype(_wire(output)).tobytes()


def unpack(payload: Buffer, output: Output, topk: int) -> Answered:
    """What `pack` made. Raises `errors.ProtocolError` for anything else."""
    if classes(output, topk):
        return Answered(tuple(unpack_topk(payload)))
    if len(payload) != 4 * math.prod(output.shape):
        raise errors.ProtocolError(f"an answer of {len(payload)} bytes is not an output of the shape {output.shape}")
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
