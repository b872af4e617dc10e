"""Arguments that the integer operators share, grouped into NamedTuples.

Numba keeps the fields of a NamedTuple in registers, so a group costs no more than its fields passed one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernels.emit import Address


class Window(NamedTuple):
    """The geometry of a convolution or a pooling: x [height, width, channels] to y [out_height, out_width,
    out_channels].
    """

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    out_channels: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    top: int  # padding above x
    left: int


class OutputRange(NamedTuple):
    """The codes that an operator may write: float32 bounds with the zero point subtracted, and the int32 zero point."""

    lo: np.float32
    hi: np.float32
    zero: np.int32


class Constants(NamedTuple):
    """Addresses of packed weights, int32 biases and float32 multipliers."""

    weights: Address
    bias: Address
    multiplier: Address
