"""Clip rules: from the distribution of a tensor to the range [lo, hi] of its codes. Values outside the range are
clipped to its ends.

Every rule works on a `Distribution`, the distinct values with their counts. A 256-bin histogram of uint8 codes
therefore is the exact tensor.

- ``minmax``: least and greatest value.
- ``percentile``: the (100 - p)-th to the p-th percentile. The default p is `PERCENTILE`, the best clip of a Laplace
  tensor at 5 bits. If both are the same value, as in a tensor of nearly all zeros, the range is ``minmax``.
- ``aciq-laplace``, ``aciq-gauss``: mean +- factor x deviation, with the least expected squared error for that density
  (ACIQ, Banner et al., NeurIPS 2019).
- ``aciq-onesided``: for rectified tensors, as the upper half of a Laplace density above the least value. 2^bits levels
  over [min, min + alpha] are as fine as 2^(bits + 1) over the whole density, so the rule uses the factor of bits + 1.
  The scale is the mean distance from the minimum of all other values, because the zeros of a ReLU are exact in any
  range.
- ``mse``: least squared error on this distribution, by search. Never worse than the other `RULES`.
- ``aciq-gelu``: for outputs of GELU, from QuantPipe's code: +- W(3 x 4^(bits + 1)) x sqrt(mean x^2).
- ``ds-aciq``, ``ds-aciq-fixed``: +- Laplace factor x b (QuantPipe). The search for b starts at mean |x| and fits the
  Laplace density to the histogram. The two rules have the steps of the authors' later and earlier code.

Analytic ranges are limited to the least and greatest value, because levels beyond them are never used.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kernels import reference
from splitedge import errors

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

RULES: Final = ("minmax", "percentile", "aciq-laplace", "aciq-gauss", "aciq-onesided", "mse")
#: Published rules for comparison. Calibration does not choose from them.
PUBLISHED: Final = ("aciq-gelu", "ds-aciq", "ds-aciq-fixed")
PERCENTILE: Final = 99.9

_BINS: Final = 200  # bins of QuantPipe's histogram
#: Starts of the search, as fractions of the distance from the mean to each end.
_SHRINK: Final = (1.0, 0.85, 0.7, 0.55, 0.4, 0.28, 0.18, 0.1)
_REFINED: Final = 8  # refined starts; 16 find nothing better
_ROUNDS: Final = 48


@dataclass(frozen=True, slots=True)
class Distribution:
    """Distinct finite ``values``, ascending, float64 [U], and their positive ``weights``."""

    values: F64
    weights: F64

    @property
    def mean(self) -> float:
        return float(np.average(self.values, weights=self.weights))

    def deviation(self, power: int) -> float:
        """Mean of |value - mean| ^ power."""
        return float(np.average(np.abs(self.values - self.mean) ** power, weights=self.weights))


def distribution(values: ArrayLike, weights: ArrayLike | None = None) -> Distribution:
    """The distribution of ``values`` (any shape, not empty), with counts ``weights`` of the same shape, or 1 each.

    Raises `errors.CodecError` for NaN or infinity, and for weights that are negative, not finite, of another shape, or
    all 0.
    """
    with np.errstate(over="ignore"):
        v = np.asarray(values).astype(np.float32).ravel()
    w = np.ones(v.size) if weights is None else np.asarray(weights, np.float64).ravel()
    if w.shape != v.shape or not np.isfinite(w).all() or (w < 0).any() or not w.any():
        raise errors.CodecError(
            "weights must be one finite count >= 0 for each value, not all 0; calibrate with at least one sample",
            reason="weights",
        )
    v, w = v[w > 0], w[w > 0]
    refuse_nonfinite(v, "the calibration samples and the model")
    distinct, index = np.unique(v, return_inverse=True)
    return Distribution(distinct.astype(np.float64), np.bincount(index, weights=w).astype(np.float64))


def refuse_nonfinite(x: NDArray[Any], suspect: str) -> None:
    """Raise `errors.CodecError` with the number of NaN and infinite values, if there are any."""
    finite = int(np.isfinite(x).sum())
    if finite < x.size:
        nan = int(np.isnan(x).sum())
        infinite = x.size - finite - nan
        raise errors.CodecError(
            f"{nan} NaN and {infinite} infinite values among the {x.size} of a tensor; check {suspect}",
            nan=nan,
            infinite=infinite,
            reason="not-finite",
            size=x.size,
        )


def clip_range(d: Distribution, rule: str, bits: int, percentile: float = PERCENTILE) -> tuple[float, float]:
    """The range [lo, hi] of ``rule``, one of `RULES` or `PUBLISHED`, at ``bits`` 2..8. lo = hi only for a constant."""
    least, greatest = float(d.values[0]), float(d.values[-1])
    if least == greatest or rule == "minmax":
        return least, greatest
    if rule == "mse":
        return _mse(d, bits, percentile)
    if rule == "percentile":
        lo, hi = _quantile(d, 100 - percentile), _quantile(d, percentile)
        return (lo, hi) if lo < hi else (least, greatest)
    if rule == "aciq-onesided":
        above = float(np.average(d.values[1:] - least, weights=d.weights[1:]))
        return least, min(greatest, least + laplace_factor(bits + 1) * above)
    if rule in PUBLISHED:
        alpha = _published(d, rule, bits)
        return (max(least, -alpha), min(greatest, alpha)) if least < alpha and greatest > -alpha else (least, greatest)
    if rule == "aciq-laplace":
        alpha = laplace_factor(bits) * d.deviation(1)
    else:
        alpha = gauss_factor(bits) * math.sqrt(d.deviation(2))
    return max(least, d.mean - alpha), min(greatest, d.mean + alpha)


def _published(d: Distribution, rule: str, bits: int) -> float:
    """Half the width of the range, which is symmetric about 0."""
    if rule == "aciq-gelu":
        return laplace_factor(bits + 1) * math.sqrt(float(np.average(d.values**2, weights=d.weights)))
    counts, edges = np.histogram(d.values, _BINS, weights=d.weights)
    found = counts / counts.sum()
    points = np.linspace(edges[0], edges[-1], _BINS)
    first = float(np.average(np.abs(d.values), weights=d.weights))
    peak = _laplace(points, first).max()
    step = 0.4 * first / 100
    if rule == "ds-aciq":
        step = abs(1 / (2 * found.max()) - 1 / (2 * peak)) * first / (100 / (2 * peak))
    step = -step if found.max() > peak else step
    tried: F64 = np.array([b for b in (first + step * i for i in range(100)) if b > 0], np.float64)
    away = ((found - _laplace(points, tried[:, None])) ** 2).mean(axis=1)
    return laplace_factor(bits) * float(tried[away.argmin()])


def _laplace(points: F64, scale: float | F64) -> F64:
    """The density at ``points`` [n], normalized to the sum 1; [m, n] for ``scale`` [m, 1]."""
    density = np.exp(
        -(np.abs(points) - np.abs(points).min()) / scale
    )  # subtracting the least magnitude avoids an underflow to 0
    normal: F64 = density / density.sum(axis=-1, keepdims=True)
    return normal


def grid(lo: float, hi: float, bits: int) -> tuple[np.float32, np.float32]:
    """The float32 (lo, scale) of codes over [lo, hi]. A scale beyond float32 is infinite."""
    start = np.float32(lo)
    with np.errstate(over="ignore"):
        return start, np.float32(max(0.0, hi - float(start)) / ((1 << bits) - 1) if hi > lo else 0.0)


def squared_error(
    values: NDArray[Any], weights: NDArray[Any] | None, lo: F32, scale: F32, bits: int, levels: F32 | None = None
) -> float:
    """Sum of weight x (value - decoded)^2 over values [..., C], in the codec's own arithmetic."""
    x = values.astype(np.float32)
    with np.errstate(over="ignore"):  # a range too wide for float32 has an infinite error
        decoded = reference.codec_dequantize(reference.codec_quantize(x, lo, scale, bits, levels), lo, scale, levels)
    square = (x.astype(np.float64) - decoded) ** 2
    return float(square.sum() if weights is None else (square * weights).sum())


@functools.cache
def laplace_factor(bits: int) -> float:
    """Best clip half-width of a Laplace density in units of its mean absolute deviation: Lambert's W(3 x 4^bits), by
    Newton's method.
    """
    target = 3.0 * 4**bits
    w = math.log(target)
    for _ in range(20):
        w -= (w - target * math.exp(-w)) / (1 + w)
    return w


@functools.cache
def gauss_factor(bits: int) -> float:
    """Best clip half-width a of a Gauss density in units of its standard deviation.

    It minimizes (1 + a^2)(1 - erf(a / sqrt 2)) - sqrt(2 / pi) a exp(-a^2 / 2) + a^2 / (3 x 4^bits), by bisection of the
    derivative 2 (a erfc(a / sqrt 2) - sqrt(2 / pi) exp(-a^2 / 2) + a / (3 x 4^bits)).
    """
    low, high = 0.1, 10.0
    for _ in range(60):
        a = (low + high) / 2
        slope = a * math.erfc(a / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-a * a / 2) + a / (3 * 4**bits)
        low, high = (a, high) if slope < 0 else (low, a)
    return low


def _quantile(d: Distribution, percent: float) -> float:
    """The least value with at least ``percent`` of the weight at or below it."""
    total = np.cumsum(d.weights)
    return float(d.values[min(int(np.searchsorted(total, percent / 100 * total[-1])), d.values.size - 1)])


def _mse(d: Distribution, bits: int, percentile: float) -> tuple[float, float]:
    """The range of least squared error: the best of the other rules' ranges and a coarse lattice, refined.

    The refinement is Lloyd's algorithm for equal steps. For fixed codes the best (lo, scale) is the regression of value
    on code; for fixed (lo, scale) the best code is the nearest level. Neither step increases the error. The codec's own
    float32 arithmetic decides between the results.
    """
    others = [clip_range(d, rule, bits, percentile) for rule in RULES if rule != "mse"]
    mean, least, greatest = d.mean, d.values[0], d.values[-1]
    lattice = [(mean - s * (mean - least), mean + t * (greatest - mean)) for s in _SHRINK for t in _SHRINK]
    cells = _Cells(d, bits)
    starts = np.array(others + lattice)
    refined = cells.refine(starts[np.argsort(cells.errors(starts), kind="stable")[:_REFINED]])
    return min(others + [(float(lo), float(hi)) for lo, hi in refined], key=lambda r: _coded_error(d, r[0], r[1], bits))


def _coded_error(d: Distribution, lo: float, hi: float, bits: int) -> float:
    start, scale = grid(lo, hi, bits)
    return squared_error(d.values, d.weights, np.array([start]), np.array([scale]), bits)


class _Cells:
    """Sums of weight x value^k over the values of each code, from cumulative sums.

    The cost grows with the logarithm of the tensor's size.
    """

    def __init__(self, d: Distribution, bits: int) -> None:
        self.codes = np.arange(1 << bits, dtype=np.float64)
        self.centre = d.mean  # sums about the mean avoid cancellation
        self.values = d.values - self.centre
        self.running = [np.concatenate(([0.0], np.cumsum(d.weights * self.values**k))) for k in range(3)]

    def sums(self, ranges: F64) -> tuple[F64, F64]:
        """Weight and weight x value of each code [R, 2^bits] for each range [R, 2] relative to the centre."""
        scale = (ranges[:, 1:] - ranges[:, :1]) / self.codes[-1]
        inner = np.searchsorted(self.values, ranges[:, :1] + scale * (self.codes[:-1] + 0.5))
        edges = np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (0, self.values.size)))
        weight, first = (np.diff(self.running[k][edges], axis=1) for k in range(2))
        return weight, first

    def errors(self, ranges: F64) -> F64:
        """Squared error [R] of each range [R, 2]."""
        ranges = ranges - self.centre
        weight, first = self.sums(ranges)
        levels = ranges[:, :1] + (ranges[:, 1:] - ranges[:, :1]) / self.codes[-1] * self.codes
        errors: F64 = self.running[2][-1] + (levels * (levels * weight - 2 * first)).sum(axis=1)
        return errors

    def refine(self, ranges: F64) -> F64:
        """Each range [R, 2], moved to a local optimum."""
        ranges = ranges - self.centre
        for _ in range(_ROUNDS):
            weight, first = self.sums(ranges)
            total = weight.sum(axis=1)
            code = (weight * self.codes).sum(axis=1) / total
            value = first.sum(axis=1) / total
            away = self.codes - code[:, None]
            spread = (weight * away**2).sum(axis=1)
            scale = (away * first).sum(axis=1) / np.where(spread > 0, spread, 1)
            lo = value - scale * code
            moved = np.stack((lo, lo + scale * self.codes[-1]), axis=1)
            ranges = np.where((spread > 0)[:, None], moved, ranges)
        return ranges + self.centre
