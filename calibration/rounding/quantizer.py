"""Quantizes a layer's weights to integers of 2 to 8 bits with a scale per output channel, and adapts its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.reference import pack_bits
from splitedge import errors
from splitedge.head.compression import coded_bytes

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
S8 = NDArray[np.int8]

#: Maximum bias: a quarter of the 32-bit range. The products and the zero point's share need the rest.
BIAS_LIMIT: Final = 2.0**29
#: Binary digits of a channel's scale after the first. The error is 0.1 per cent (rms). A scale then takes 1.4 bytes of
#: a segment file instead of 3.3, which saves a twentieth of the file for the first layers of EfficientNet-Lite0 at 4
#: bits. The noise on its logits stays the same at 4, 6 and 8 bits.
SCALE_DIGITS: Final = 8
#: The same for a transformer's biases, positions and norm factors: the error is 0.01 per cent (rms), at 2 bytes of a
#: segment file instead of 3.3.
FLOAT_DIGITS: Final = 11
#: Weights by which most layers are found not to be of an int8 file.
_GLANCE: Final = 32
#: Greatest distance of a weight of an int8 file from its integer, in steps: 127 times the precision of float32, and
#: that of the scale.
_GRID_ERROR: Final = 1e-3
#: Candidates for the largest integer weight, as shares of the channel's largest weight.
SHARES: Final = {8: np.linspace(0.85, 1.0, 6), 7: np.linspace(0.75, 1.0, 8), 6: np.linspace(0.6, 1.0, 12)}
FEW_BITS_SHARES: Final = np.linspace(0.2, 1.0, 28)


@dataclass(frozen=True)
class Weights:
    """The integers of a layer in a segment.

    ``weight`` [OC, KH, KW, C / groups] int8, ``scale`` [OC] float32, and ``bias`` [OC] int32, which includes the zero
    point's share.
    """

    weight: S8
    scale: F32
    bias: NDArray[np.int32]

    def reach(self) -> NDArray[np.int64]:
        """Maximum absolute value of the accumulator of each output channel [OC]."""
        products = np.abs(self.weight.astype(np.int64)).reshape(len(self.weight), -1).sum(axis=1)
        reach: NDArray[np.int64] = 255 * products + np.abs(self.bias.astype(np.int64))
        return reach


def few_digits(x: F32, digits: int = SCALE_DIGITS) -> F32:
    """Round ``x`` to ``digits`` binary digits after the first, ties to even.

    An entropy coder compresses the trailing zeros well.
    """
    cut = np.uint32(23 - digits)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    half = np.uint32((1 << int(cut)) // 2 - 1) + ((bits >> cut) & np.uint32(1))
    short: F32 = ((bits + half) >> cut << cut).view(np.float32)
    return short


def top_level(bits: int) -> int:
    """The largest integer weight."""
    return 3 if bits == 2 else 2 ** (bits - 1) - 1


def width(levels: S8) -> int:
    """The minimum width in bits to pack ``levels``, at least 3."""
    most = int(np.abs(levels.astype(np.int16)).max(initial=0))
    return max(3, most.bit_length() + 1)


def codes(levels: S8, bits: int) -> NDArray[np.uint8]:
    """Integer weights as codes of ``bits`` bits (docs/reference/numerics.md), one byte each."""
    w = levels.astype(np.int16)
    return ((w + 3) // 2 if bits == 2 else w + top_level(bits)).astype(np.uint8)


def pack(levels: S8, bits: int) -> NDArray[np.uint8]:
    """`codes`, bit-packed."""
    return pack_bits(codes(levels, bits), bits)


@dataclass(frozen=True)
class Rounded:
    """A layer's weights on a grid.

    ``levels``: integers in the shape of the weights [OC, ...]. ``scale`` [OC] float32: the weights are levels x scale.
    ``bias`` [OC] float64 is real; it is empty if the layer has none. ``exact``: the weights are on this grid, so a
    segment keeps all digits of the scales.
    """

    levels: S8
    scale: F32
    bias: F64
    exact: bool = False

    def values(self) -> F32:
        """The weights that the levels represent."""
        values: F32 = self.levels * self.scale.reshape(-1, *[1] * (self.levels.ndim - 1))
        return values


def entropy(levels: NDArray[np.integer[Any]]) -> float:
    """Entropy of ``levels`` in bits per level."""
    flat = levels.reshape(-1).astype(np.int64)
    counts = np.bincount(flat - flat.min(initial=0))
    shares = counts[counts > 0] / max(1, flat.size)
    return float(-(shares * np.log2(shares)).sum())


def file_bytes(rounded: Rounded, bits: int, table: bool) -> int:
    """Bytes of the levels in a segment file; packed levels take ``bits`` each.

    ``table``: they are the rows of an embedding.
    """
    return coded_bytes(codes(rounded.levels, bits), bits, few_digits(rounded.scale) if table else None)


def nearest(weight: F32, bias: F32, bits: int, least: F32, mean_x: F32 | None = None) -> Rounded:
    """A layer's weights [OC, ...] on the grid with the least squared error.

    No scale is below ``least`` [OC] (`least_scale`).

    ``mean_x`` [C], for convolutions: mean input of each channel. If given, the bias compensates the mean error of
    rounding. This neglects padding at the border.
    """
    levels, scale = search(weight.reshape(len(weight), -1), bits, least)
    levels = levels.reshape(weight.shape)
    wanted = bias.astype(np.float64)
    if mean_x is not None:
        wanted = wanted + mean_error(weight, levels, scale, mean_x)
    return Rounded(levels, scale, wanted)


def own_grid(weight: F32, bias: F32, scale_x: float | None) -> Rounded | None:
    """The grid of 8 bits that every row of ``weight`` [OC, ...] is on already, as the weights of an int8 file are.

    None if a row has no such grid. A scale is a row's largest weight divided by an integer of 64 to 127: smaller
    integers have a multiple there. ``scale_x``: scale of the input (None: sums of real numbers). A row whose ``bias``
    does not fit into 32-bit sums, next to which its weights are nearly 0, gets a larger scale.
    """
    tops = range(top_level(8), top_level(8) // 2, -1)
    first = weight.reshape(len(weight), -1)[:1].astype(np.float64)
    greatest = np.abs(first).max(initial=0)
    few = np.repeat(first[:, :_GLANCE], len(tops), axis=0)
    if greatest > 0 and not _on_grid(few, greatest / np.array(tops)).any():
        return None
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    peak = np.abs(rows).max(axis=1, initial=0)
    scale = np.where(peak > 0, 0.0, 1e-20)
    for k in tops:
        (left,) = np.nonzero(scale == 0)
        if not left.size:
            break
        fits = left[_on_grid(rows[left], peak[left] / k)]
        scale[fits] = peak[fits] / k
    if (scale == 0).any():
        return None
    if scale_x is not None:
        scale = np.maximum(scale, least_scale(bias, scale_x))
    levels = np.rint(rows / scale[:, None])
    whole = levels.astype(np.int8).reshape(weight.shape)
    return Rounded(whole, scale.astype(np.float32), bias.astype(np.float64), exact=True)


def _on_grid(rows: F64, scale: F64) -> NDArray[np.bool_]:
    """Which ``rows`` are whole multiples of their ``scale``, but for the rounding of float32."""
    steps = rows / scale[:, None]
    found: NDArray[np.bool_] = np.abs(steps - np.rint(steps)).max(axis=1, initial=0) < _GRID_ERROR
    return found


def least_scale(bias: F32, scale_x: float) -> F32:
    """The smallest weight scale [OC] at which ``bias`` fits into 32-bit sums."""
    least: F32 = (np.abs(bias.astype(np.float64)) / (scale_x * BIAS_LIMIT)).astype(np.float32)
    return least


def integers(rounded: Rounded, scale_x: float, zero_x: int) -> Weights:
    """The integers of a segment for an input of ``scale_x`` and ``zero_x``.

    Raises `errors.ModelError` if the layer's sums do not fit into 32 bits.
    """
    levels = rounded.levels.reshape(len(rounded.levels), -1).astype(np.int64)
    codes = np.rint(rounded.bias / (np.float64(scale_x) * rounded.scale)).astype(np.int64) - zero_x * levels.sum(axis=1)
    if (255 * np.abs(levels).sum(axis=1) + np.abs(codes) >= 1 << 31).any():
        raise errors.ModelError(
            f"a layer sums {levels.shape[1]} products and overflows 32 bits; use fewer weight bits or a smaller layer",
            reason="overflow",
        )
    return Weights(rounded.levels, rounded.scale, codes.astype(np.int32))


def search(weight: F32, bits: int, least: F32) -> tuple[S8, F32]:
    """Levels and scale of each row of ``weight`` [OC, K] with the least squared error.

    No scale is below ``least`` [OC].

    For given levels q the best scale is <w, q> / <q, q>. The remaining error is |w|^2 - <w, q>^2 / <q, q>.
    """
    top = top_level(bits)
    peak = np.maximum(np.abs(weight).max(axis=1), np.float32(1e-30))
    best_gain = np.full(len(weight), -1.0, np.float32)
    best = np.zeros(len(weight), np.float32)
    for share in SHARES.get(bits, FEW_BITS_SHARES):
        levels = _levels(weight, peak * np.float32(share / top), bits)
        along = np.einsum("ij,ij->i", weight, levels)
        square = np.maximum(np.einsum("ij,ij->i", levels, levels), np.float32(1e-30))
        gain = along / square * along
        best = np.where(gain > best_gain, along / square, best)
        best_gain = np.maximum(gain, best_gain)
    scale = np.maximum(np.maximum(best, least), np.float32(1e-20)).astype(np.float32)
    return _levels(weight, scale, bits).astype(np.int8), scale


def _levels(weight: F32, scale: F32, bits: int) -> F32:
    """The integer weight nearest to weight / scale, as float32."""
    top = np.float32(top_level(bits))
    x = weight / scale[:, None]
    if bits == 2:
        x = 2 * np.floor(x / 2) + 1
    levels: F32 = np.clip(np.rint(x), -top, top)
    return levels


def mean_error(weight: F32, levels: S8, scale: F32, mean_x: F32) -> F64:
    """Mean of sum (w - scale * level) * x for each output channel."""
    error = (weight.astype(np.float64) - levels * scale.astype(np.float64)[:, None, None, None]).sum(axis=(1, 2))
    outs, width = error.shape
    groups = len(mean_x) // width
    means = np.repeat(mean_x.astype(np.float64).reshape(groups, width), outs // groups, axis=0)
    total: F64 = (error * means).sum(axis=1)
    return total
