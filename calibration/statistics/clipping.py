"""Fits codecs to histograms with every clip rule of `splitedge.codec`, per tensor and per channel."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitedge import codec
from splitedge.codec import clip
from splitedge.protocol.messages import IMAGE_FORMATS, Codec, Preprocess

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

#: Suffix of rules with a range for each channel.
CHANNEL: Final = "-channel"
RULES: Final = tuple(rule + scope for rule in codec.RULES for scope in ("", CHANNEL))
#: Minimum values of a channel for its own range. With fewer the range would overfit the calibration samples.
LEAST_COUNT: Final = 256
#: Number of values that represent a tensor whose channels have 256 values each.
WHOLE: Final = 4096
#: Maximum channels with their own ranges. More would make a plan larger than a frame.
MOST_CHANNELS: Final = 2048

#: Ranges of the first search, as shares of the distance from the mean to each end.
_SHARES: Final = (1.0, 0.8, 0.6, 0.42, 0.28)
_ROUNDS: Final = 12


class Histogram:
    """Counts of 256 values in each channel of a tensor: ``counts`` [C, 256].

    ``values`` are shared [256] or per channel [C, 256] (`count_values`). Every channel has a count. Fitted codecs are
    cached. ``picture``: the preprocessing, if the tensor comes from pixels.
    """

    def __init__(self, values: F64, counts: I64, picture: Preprocess | None = None) -> None:
        self.values, self.counts, self.picture = values, counts, picture
        self._own = np.broadcast_to(values, counts.shape)
        self._fitted: dict[tuple[str, int], Codec] = {}
        self.kept: dict[tuple[str, int], Codec] = {}

    @property
    def rules(self) -> tuple[str, ...]:
        """The `RULES` that this histogram supports.

        Ranges per channel require enough values of each channel, and few enough channels for a plan.
        """
        seldom = int(self.counts[0].sum()) < LEAST_COUNT
        return tuple(r for r in RULES if not (r.endswith(CHANNEL) and (seldom or len(self.counts) > MOST_CHANNELS)))

    def keep(self, codecs: Mapping[tuple[str, int], Codec]) -> None:
        """Add codecs that were fitted to more than counts; `fit` returns them."""
        self.kept |= codecs
        self._fitted |= codecs

    def fit(self, rule: str, bits: int) -> Codec:
        """The codec of ``rule``: one of `RULES`, or a format of image files and a quality, as in ``jpeg-80``.

        Raises `errors.CodecError` for other rules.
        """
        if (rule, bits) not in self._fitted:
            self._fitted[rule, bits] = self._fit(rule, bits)
        return self._fitted[rule, bits]

    def squared_error(self, made: Codec) -> float:
        """Sum of squared errors over the tensor."""
        lo, scale = np.array(made.lo, np.float32), np.array(made.scale, np.float32)
        if len(lo) == 1:
            values, counts = self._whole
            return clip.squared_error(values, counts.astype(np.float64), lo, scale, made.bits)
        return clip.squared_error(self._own.T, self.counts.T.astype(np.float64), lo, scale, made.bits)

    def _fit(self, rule: str, bits: int) -> Codec:
        files = [form for form in IMAGE_FORMATS if rule.startswith(f"{form}-")]
        if self.picture is not None and files:
            channels = self.picture.shape[-1]
            mean, std = (values * (channels // len(values)) for values in (self.picture.mean, self.picture.std))
            return codec.pixels(mean, std, int(rule.rpartition("-")[2]), files[0])
        if rule not in RULES or not rule.endswith(CHANNEL):
            values, counts = self._whole
            return codec.fit(values, rule, bits, weights=counts)
        kind = rule.removesuffix(CHANNEL)
        if kind == "mse":
            lo, scale = _least_squares(self._own, self.counts, bits)
            return Codec(kind, bits, tuple(float(v) for v in lo), tuple(float(v) for v in scale))
        grids = [clip.grid(*clip.clip_range(d, kind, bits), bits) for d in self._channels]
        return Codec(kind, bits, tuple(float(lo) for lo, _ in grids), tuple(float(scale) for _, scale in grids))

    @functools.cached_property
    def _channels(self) -> list[clip.Distribution]:
        return [clip.distribution(*pair) for pair in zip(self._own, self.counts, strict=True)]

    @functools.cached_property
    def _whole(self) -> tuple[F64, I64]:
        """Values and counts over all channels; at most `WHOLE` values if channels have their own."""
        if self.values.ndim == 1:
            return self.values, self.counts.sum(axis=0)
        lo, hi = float(self._own.min()), float(self._own.max())
        values: F64 = np.linspace(lo, hi, WHOLE)
        places = np.rint((self._own - lo) * ((WHOLE - 1) / (hi - lo or 1.0))).astype(np.int64)
        return values, np.bincount(places.reshape(-1), self.counts.reshape(-1), WHOLE).astype(np.int64)


def _least_squares(values: F64, counts: I64, bits: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """lo and scale [C] of each channel with the least squared error, for all channels at once.

    ``values`` and ``counts`` are [C, 256]. This is the same search as the rule for a whole tensor
    (`splitedge.codec.clip`). That search takes 10 ms per channel, which is too long for 1,280 channels. It tries a
    lattice of ranges around the mean, and then runs Lloyd's algorithm with equal steps: it alternates regression of
    values on codes and nearest codes.
    """
    weights, top = counts.astype(np.float64), float((1 << bits) - 1)
    weights /= weights.sum(axis=1, keepdims=True)
    mean = (weights * values).sum(axis=1)
    present, every = counts > 0, np.arange(len(counts))
    least, greatest = values[every, present.argmax(axis=1)], values[every, 255 - present[:, ::-1].argmax(axis=1)]
    best_lo, best_step = least, (greatest - least) / top
    best = _error(values, weights, best_lo, best_step, top)
    tried = [(mean - s * (mean - least), mean + t * (greatest - mean)) for s in _SHARES for t in _SHARES]
    for lo, hi in tried:
        best_lo, best_step, best = _better(values, weights, top, (best_lo, best_step, best), (lo, (hi - lo) / top))
    for _ in range(_ROUNDS):
        moved = _regress(values, weights, best_lo, best_step, top)
        best_lo, best_step, best = _better(values, weights, top, (best_lo, best_step, best), moved)
    return best_lo.astype(np.float32), best_step.astype(np.float32)


def _codes(values: F64, lo: F64, step: F64, top: float) -> F64:
    away = values - lo[:, None]
    codes: F64 = np.rint(np.clip(away / np.where(step > 0, step, 1.0)[:, None], 0.0, top))
    return codes


def _error(values: F64, weights: F64, lo: F64, step: F64, top: float) -> F64:
    decoded = lo[:, None] + step[:, None] * _codes(values, lo, step, top)
    error: F64 = (weights * (values - decoded) ** 2).sum(axis=1)
    return error


def _better(
    values: F64, weights: F64, top: float, known: tuple[F64, F64, F64], tried: tuple[F64, F64]
) -> tuple[F64, F64, F64]:
    """For each channel, the (lo, step, error) with the smaller error."""
    error = _error(values, weights, *tried, top)
    less = error < known[2]
    return np.where(less, tried[0], known[0]), np.where(less, tried[1], known[1]), np.where(less, error, known[2])


def _regress(values: F64, weights: F64, lo: F64, step: F64, top: float) -> tuple[F64, F64]:
    """The (lo, step) with the best fit to the values while every value keeps its code."""
    codes = _codes(values, lo, step, top)
    mean_code, mean_value = (weights * codes).sum(axis=1), (weights * values).sum(axis=1)
    away = codes - mean_code[:, None]
    spread = (weights * away**2).sum(axis=1)
    slope = (weights * away * values).sum(axis=1) / np.where(spread > 0, spread, 1.0)
    slope = np.where(spread > 0, slope, step)
    return mean_value - slope * mean_code, slope
