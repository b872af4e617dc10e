"""The ends of each type's range, which random numbers miss, as hypothesis strategies."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

CODES = (0, 1, 2, 127, 128, 254, 255)
_SUBNORMAL, _NORMAL, _MOST = 2.0**-149, 2.0**-126, float(np.finfo(np.float32).max)
FLOATS = (
    0.0,
    0.5,
    1.0,
    1.5,
    2.5,
    127.5,
    254.5,
    255.0,
    1e-30,
    1e30,
    _SUBNORMAL,
    _NORMAL - _SUBNORMAL,
    _NORMAL,
    _MOST / 2,
    _MOST,
)

zero_points = st.sampled_from(CODES) | st.integers(0, 255)
codes = st.sampled_from(CODES) | st.integers(0, 255)


def floats(most: float = _MOST) -> st.SearchStrategy[float]:
    """Of float32, finite, up to ``most`` either way; -0.0, subnormals, ties and the largest among them."""
    most = float(np.float32(most))
    fit = [value for value in FLOATS if value <= most]
    anything = st.floats(-most, most, width=32)
    return st.sampled_from([*fit, *(-value for value in fit)]) | anything | st.floats(-4, 4, width=32)


def reals(shape: Any, most: float = _MOST) -> st.SearchStrategy[NDArray[np.float32]]:
    """Arrays of `floats`."""
    return hnp.arrays(np.float32, shape, elements=floats(most), fill=st.nothing())


def bytes_(shape: Any) -> st.SearchStrategy[NDArray[np.uint8]]:
    """Arrays of `codes`."""
    return hnp.arrays(np.uint8, shape, elements=codes, fill=st.nothing())
