"""Arrays come back from a file as they were, whatever their layout in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from calibration import arrays

PLANE = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize(
    "array",
    [
        PLANE,
        PLANE[:, 1],
        np.split(PLANE, 6, axis=1)[2].reshape(-1),
        PLANE.T,
        PLANE[::-1],
        PLANE[1:3, ::2],
        np.broadcast_to(np.float64(3), (2, 2)),
        np.array(5, np.int64),
        np.zeros((0, 3), np.uint8),
    ],
    ids=lambda array: f"{array.shape} {array.strides}",
)
def test_every_layout_comes_back(array: NDArray[Any]) -> None:
    found = safetensors.numpy.load(arrays.save({"x": array, "y": PLANE}))
    assert found["x"].dtype == array.dtype
    np.testing.assert_array_equal(found["x"], array)
    np.testing.assert_array_equal(found["y"], PLANE)
