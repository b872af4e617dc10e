"""Arrays in a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray


def save(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A safetensors file with ``arrays`` by name.

    safetensors writes the memory from an array's first value on, which is wrong for a strided view, so views are copied.
    """
    made: bytes = safetensors.numpy.save(
        {name: np.array(array, order="C", copy=None) for name, array in arrays.items()}
    )
    return made


def load(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays that `save` wrote."""
    made: dict[str, NDArray[Any]] = safetensors.numpy.load(data)
    return made
