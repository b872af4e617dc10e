"""Inputs for a model: noise, or frames.

A frame is float32 with channels last and without a batch axis. Models differ in layout, batch axis and codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.backends import OPEN, Port
from splitedge.errors import InputError, UsageError
from splitedge.limits import MAX_DIM

F32 = NDArray[np.float32]
_IDS: Final = 100  # token ids below this, which every vocabulary has


def resolved(ports: Sequence[Port], shape: Sequence[int] | None) -> list[Port]:
    """``ports`` without open dimensions. ``shape``: of the first input; an open dimension of another takes its size
    from the same axis of the first. Raises `UsageError` for a shape that does not fit, or is missing.
    """
    first = ports[0].shape if shape is None else tuple(shape)
    fits = len(first) == len(ports[0].shape) and all(
        1 <= size <= MAX_DIM and declared in (OPEN, size) for size, declared in zip(first, ports[0].shape, strict=True)
    )
    if OPEN in first or not fits:
        declared = ",".join("?" if size == OPEN else str(size) for size in ports[0].shape)
        raise UsageError(
            f"the input {ports[0].name[:60]} has the shape {declared}; give its sizes with --shape, as in --shape "
            "1,3,224,224",
            reason="shape",
        )
    found = [ports[0]._replace(shape=first)]
    for port in ports[1:]:
        sizes = [first[axis] if size == OPEN and axis < len(first) else size for axis, size in enumerate(port.shape)]
        if OPEN in sizes:
            raise UsageError(f"the size of the input {port.name[:60]} is open; fix it in the model", reason="shape")
        found.append(port._replace(shape=tuple(sizes)))
    return found


def noise(ports: Sequence[Port]) -> list[NDArray[Any]]:
    """Inputs of noise: real values around 0, any codes, small token ids without padding."""
    random = np.random.default_rng(0)
    return [_noise(port, random) for port in ports]


def _noise(port: Port, random: np.random.Generator) -> NDArray[Any]:
    if np.issubdtype(port.dtype, np.floating):
        return random.standard_normal(port.shape).astype(port.dtype)
    if port.dtype.itemsize == 1:
        ends = np.iinfo(port.dtype)
        return random.integers(ends.min, ends.max + 1, port.shape).astype(port.dtype)
    if "mask" in port.name.lower():
        return np.ones(port.shape, port.dtype)
    if "type" in port.name.lower():
        return np.zeros(port.shape, port.dtype)
    return random.integers(1, _IDS, port.shape).astype(port.dtype)


def frame(ports: Sequence[Port], values: F32) -> list[NDArray[Any]]:
    """The input of a model for a frame. Raises `InputError` if the model takes more, or another shape."""
    if len(ports) != 1:
        raise InputError("a frame is one input, and this model takes several; omit --images", reason="several-inputs")
    port = ports[0]
    for arranged in (values, np.moveaxis(values, -1, 0)) if values.ndim == 3 else (values,):
        if port.shape in (arranged.shape, (1, *arranged.shape)):
            return [_codes(np.ascontiguousarray(arranged).reshape(port.shape), port)]
    raise InputError(
        f"the model takes {list(port.shape)}, not a frame of {list(values.shape)}; give --shape", reason="other-shape"
    )


def _codes(values: F32, port: Port) -> NDArray[Any]:
    """``values`` in the dtype of ``port``."""
    if np.issubdtype(port.dtype, np.floating):
        return values.astype(port.dtype)
    ends = np.iinfo(port.dtype)
    codes = np.rint(values.astype(np.float64) / port.scale) + port.zero_point
    clipped: NDArray[Any] = np.clip(codes, ends.min, ends.max).astype(port.dtype)
    return clipped
