"""Clip rules: from the distribution of a tensor to the range [lo, hi] that its codes span.

Every rule works on a `Distribution` (distinct values and how often each occurs), so a 256-bin histogram of uint8 codes is the exact tensor.
What lies outside a range is clipped to its ends.

- ``minmax``: the least and the greatest value.
- ``percentile``: from the (100 - p)-th to the p-th percentile, the inverse of the distribution function. The default p of `PERCENTILE` is the
  clip that is best for a Laplace tensor at 5 bits. Where both fall on one value (a tensor of nearly all zeros) it is ``minmax``.
- ``aciq-laplace``, ``aciq-gauss``: mean +- factor x deviation, least expected squared error for that density (ACIQ: Banner et al., NeurIPS 2019).
- ``aciq-onesided``: for rectified tensors. They are taken as the upper half of a Laplace density that stands on the least value, so 2^bits levels
  over [min, min + alpha] are as fine as 2^(bits + 1) over the whole density, whose factor it therefore takes. lo is the minimum (0 after a
  ReLU) and never more: a tensor with a negative side keeps it. The scale is the mean distance above the minimum of those values that are not the
  minimum: what a ReLU has set to zero is exact at any range and says nothing about the tail.
- ``mse``: least squared error on this distribution, by search. Never worse than any other of `RULES`.
- ``aciq-gelu``: for the outputs of GELU, as QuantPipe's authors have it: +- W(3 x 4^(bits + 1)) x sqrt(mean x^2).
- ``ds-aciq``, ``ds-aciq-fixed``: +- factor of Laplace x b, where b is searched for from mean |x| towards the density's peak, so that the Laplace density is
  nearest to the histogram (QuantPipe). The step of the search is theirs, in their later and their earlier variant.

The analytic ranges are cut at the least and greatest value: levels beyond them would never be used.
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
#: Published rules that calibration does not choose from: they are here to be compared with.
PUBLISHED: Final = ("aciq-gelu", "ds-aciq", "ds-aciq-fixed")
PERCENTILE: Final = 99.9

_BINS: Final = 200  # of QuantPipe's histogram
_SHRINK: Final = (
    1.0,
    0.85,
    0.7,
    0.55,
    0.4,
    0.28,
    0.18,
    0.1,
)  # of the distance from the mean to each end, where a search begins
_REFINED: Final = 8  # starts that are refined; 16 find nothing better
_ROUNDS: Final = 48


@dataclass(frozen=True, slots=True)
class Distribution:
    """Distinct finite values, ascending, float64 [U], and the weight of each, above 0."""

    values: F64
    weights: F64

    @property
    def mean(self) -> float:
        return float(np.average(self.values, weights=self.weights))

    def deviation(self, power: int) -> float:
        """Mean of |value - mean| ^ power."""
        return float(np.average(np.abs(self.values - self.mean) ** power, weights=self.weights))


def distribution(values: ArrayLike, weights: ArrayLike | None = None) -> Distribution:
    """The distribution of ``values`` (any shape, not empty), each counted ``weights`` times (same shape) or once.

    Raises `errors.CodecError` for NaN or infinity, for weights that are negative or not finite, of another shape, or 0 altogether.
    """
    with np.errstate(over="ignore"):
        v = np.asarray(values).astype(np.float32).ravel()
    w = np.ones(v.size) if weights is None else np.asarray(weights, np.float64).ravel()
    if w.shape != v.shape or not np.isfinite(w).all() or (w < 0).any() or not w.any():
        raise errors.CodecError(
            "weights must be one finite count >= 0 for each value, not all 0; calibrate with at least one sample"
        )
    v, w = v[w > 0], w[w > 0]
    refuse_nonfinite(v, "the calibration samples and the model")
    distinct, index = np.unique(v, return_inverse=True)
    return Distribution(distinct.astype(np.float64), np.bincount(index, weights=w).astype(np.float64))


def refuse_nonfinite(x: NDArray[Any], suspect: str) -> None:
    """Raises `errors.CodecError` that says how many values are NaN or infinite, if any."""
    finite = int(np.isfinite(x).sum())
    if finite < x.size:
        nan = int(np.isnan(x).sum())
        infinite = x.size - finite - nan
        raise errors.CodecError(
            f"the tensor holds {nan} NaN and {infinite} infinite values among {x.size}; check {suspect}",
            nan=nan,
            infinite=infinite,
        )


def clip_range(d: Distribution, rule: str, bits: int, percentile: float = PERCENTILE) -> tuple[float, float]:
    """The range [lo, hi] of ``rule``, one of `RULES` or `PUBLISHED`, at ``bits`` 2..8; lo = hi only for a constant."""
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
    """Half the width of a range about 0."""
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
    """The density at ``points`` [n], their sum 1; [m, n] for ``scale`` [m, 1]."""
    density = np.exp(-(np.abs(points) - np.abs(points).min()) / scale)  # the least magnitude goes, lest all be 0
    normal: F64 = density / density.sum(axis=-1, keepdims=True)
    return normal


def grid(lo: float, hi: float, bits: int) -> tuple[np.float32, np.float32]:
    """The float32 (lo, scale) of the codes that span [lo, hi]; a scale beyond float32 is infinite."""
    start = np.float32(lo)
    with np.errstate(over="ignore"):
        return start, np.float32(max(0.0, hi - float(start)) / ((1 << bits) - 1) if hi > lo else 0.0)


def squared_error(
    values: NDArray[Any], weights: NDArray[Any] | None, lo: F32, scale: F32, bits: int, levels: F32 | None = None
) -> float:
    """Sum of weight x (value - decoded)^2 over values [..., C], exactly as the codec computes them."""
    x = values.astype(np.float32)
    with np.errstate(over="ignore"):  # of a range too wide for float32, whose error is then infinite
        decoded = reference.codec_dequantize(reference.codec_quantize(x, lo, scale, bits, levels), lo, scale, levels)
    square = (x.astype(np.float64) - decoded) ** 2
    return float(square.sum() if weights is None else (square * weights).sum())


@functools.cache
def laplace_factor(bits: int) -> float:
    """Best clip half-width of a Laplace density in units of its mean absolute deviation: Lambert's W(3 x 4^bits), by Newton's rule."""
    target = 3.0 * 4**bits
    w = math.log(target)
    for _ in range(20):
        w -= (w - target * math.exp(-w)) / (1 + w)
    return w


@functools.cache
def gauss_factor(bits: int) -> float:
    """Best clip half-width a of a Gauss density in units of its standard deviation.

    Minimises (1 + a^2)(1 - erf(a / sqrt 2)) - sqrt(2 / pi) a exp(-a^2 / 2) + a^2 / (3 x 4^bits); this halves the interval in which the derivative,
    2 (a erfc(a / sqrt 2) - sqrt(2 / pi) exp(-a^2 / 2) + a / (3 x 4^bits)), changes its sign.
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
    """Least squared error: the other rules' ranges and a coarse lattice of ranges, the best few refined.

    Refining is Lloyd's rule held to equal steps: with the codes fixed, the best (lo, scale) is the regression of value on code; with (lo, scale)
    fixed, the nearest level is the best code. Neither step can raise the error. The winner is judged by the codec's own float32 arithmetic.
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
    """Sums of weight x value^k over the values of each code, from running sums: the cost does not grow with the tensor, only its logarithm."""

    def __init__(self, d: Distribution, bits: int) -> None:
        self.codes = np.arange(1 << bits, dtype=np.float64)
        self.centre = d.mean  # sums about the mean do not cancel
        self.values = d.values - self.centre
        self.running = [np.concatenate(([0.0], np.cumsum(d.weights * self.values**k))) for k in range(3)]

    def sums(self, ranges: F64) -> tuple[F64, F64]:
        """Weight and weight x value of each code [R, 2^bits] under each range [R, 2], which is relative to the centre."""
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
        """Each range [R, 2] moved to a near local optimum."""
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
