"""The class of each pixel, from a network's map."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from splitedge import errors, limits
from splitedge.protocol.messages import Segmentation

Map = NDArray[np.uint8] | NDArray[np.uint16]

_LEVEL: Final = 6  # of zlib


def decode(values: NDArray[np.float32], task: Segmentation) -> Map:
    """The class of each pixel of ``values`` (ONNX order without the batch axis): [H, W], or as many axes as it has.

    Among equal values the lower class wins.
    """
    if task.axis is None:
        return _squeezed((values > task.threshold).astype(np.uint8))
    found = values.argmax(axis=task.axis)
    return _squeezed(found.astype(np.uint8 if values.shape[task.axis] <= 256 else np.uint16))


def shape(values: Sequence[int], task: Segmentation) -> list[int]:
    """The shape of the map that `decode` returns for values of the shape ``values``.

    Raises `errors.ModelError` if ``task`` does not fit the values.
    """
    sizes = list(values)
    if task.axis is not None:
        if not 0 <= task.axis < len(sizes) or not 2 <= sizes[task.axis] <= limits.MAX_CLASS + 1:
            raise errors.ModelError(
                f"an output of the shape {sizes} has no axis {task.axis} of classes; choose another --task or another "
                "tensor with --output",
                reason="map",
            )
        del sizes[task.axis]
    found = [size for size in sizes if size > 1]
    if len(found) != 2:
        raise errors.ModelError(
            f"an output of the shape {list(values)} is no map of pixels; choose another --task or another tensor with "
            "--output",
            reason="map",
        )
    return found


def pack(found: Map) -> bytes:
    """``found`` as bytes: its values row by row, little-endian, compressed with zlib."""
    return zlib.compress(found.astype(found.dtype.newbyteorder("<")).tobytes(), _LEVEL)


def unpack(data: bytes | bytearray | memoryview, shape: Sequence[int], classes: int) -> Map:
    """The inverse of `pack` for a map of ``shape`` with ``classes`` classes. Raises `errors.ProtocolError`."""
    kind: np.dtype[Any] = np.dtype("<u1" if classes <= 256 else "<u2")
    size = math.prod(shape) * kind.itemsize
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(bytes(data), size + 1)
    except zlib.error as error:
        raise errors.ProtocolError(
            "an answer holds no map: its compression is damaged", reason="answer-bytes"
        ) from error
    if len(plain) != size or not inflater.eof or inflater.unused_data:
        raise errors.ProtocolError(
            f"an answer of {len(data)} bytes holds no map of the shape {list(shape)}", reason="answer-bytes"
        )
    found = np.frombuffer(plain, kind).reshape(shape)
    if found.max(initial=0) >= classes:
        raise errors.ProtocolError("an answer holds a map with unknown classes", reason="answer-bytes")
    return found.astype(kind.newbyteorder("="))


def classes(values: Sequence[int], task: Segmentation) -> int:
    """The number of classes of a map from values of the shape ``values``."""
    return 2 if task.axis is None else values[task.axis]


def shares(found: Map) -> list[tuple[int, float]]:
    """The classes in ``found`` and the share of pixels of each, the largest first; among equals the lower class."""
    counts = np.bincount(found.reshape(-1))
    order = np.argsort(-counts, kind="stable")
    return [(int(i), float(counts[i] / found.size)) for i in order if counts[i]]


def _squeezed(found: Map) -> Map:
    return found.reshape([size for size in found.shape if size > 1])
