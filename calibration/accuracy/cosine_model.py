"""Models the loss of cosine similarity as a function of the output noise, for embeddings and maps.

The loss of a sample is 1 - cosine between the flattened outputs of the float and the quantized model. The drop in
points is 100 times its mean. Variants, energies and scaling are those of `accuracy.drop_model`. The loss changes
smoothly with the noise, so it is measured at every energy.

The interval is that of a measurement on `promise_samples` other samples with another variant. The model assumes that
the logarithm of this mean varies with the means of the variants (the near ones or all, whichever vary more) and with
the losses of the samples, in the calibration's mean and in the new one. Logarithms fit because a loss is never negative
and varies in proportion to its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.accuracy import drop_model, evaluation

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

DRAWS: Final = 20_000
#: Assumed spread with only one variant or one sample: of logarithms, or relative to the mean.
UNKNOWN: Final = 1.0
#: Lower limit of a variant's loss relative to the mean of those near it, because the logarithm of a smaller one is
#: noise.
LEAST_RATIO: Final = 1e-3
#: Upper limit of the logarithm of the interval's end over the mean.
WIDEST: Final = 50.0


#: Outputs [n, C] -> the loss of each sample, 0 or more.
Losses = Callable[[F32], F64]


class FidelityModel(drop_model.Curve, frozen=True, tag="cosine"):
    """The curve of a mean loss: of 1 - cosine (``metric`` "cosine"), or of the share of changed pixels ("pixels").

    At ``noise[i + 1]`` the logarithms of the variants' mean losses have the standard deviation ``between[i]``. The
    losses of single samples, over their mean, have ``scatter[i]``. ``variants``: number of variants for each noise.
    """

    between: list[float]
    scatter: list[float]
    variants: int

    def promising(self, samples: int) -> FidelityModel:
        """The same curve with the interval of a measurement on ``samples`` samples."""
        ratio = np.exp(
            [0.0, *_reach(np.array(self.between), np.array(self.scatter), self.variants, self.samples, samples)]
        )
        high = np.minimum(np.maximum.accumulate(self.expected * ratio), self.worst)
        low = self.expected / ratio
        return msgspec.structs.replace(self, low=low.tolist(), high=high.tolist(), promise_samples=samples)


def fit(
    outputs: F32,
    deltas: Sequence[F32],
    noises: Sequence[float] | None = None,
    promise_samples: int = drop_model.PROMISE_SAMPLES,
) -> FidelityModel:
    """The model of a network with ``outputs`` [n, ...] on samples that rounding did not use.

    Other arguments as in `drop_model.fit`.
    """
    z, made, energies = drop_model.variants(outputs, deltas, noises)
    powers = _dots(z, z)
    products = np.stack([np.stack([_dots(z, delta), _dots(delta, delta)]) for delta in made])
    _, distinct = np.unique(products, axis=0, return_index=True)  # several trials may have the same minimum noise
    products, energies = products[distinct], energies[distinct]

    def losses(scales: F64) -> F64:
        cross, own = scales[:, None] * products[:, 0], scales[:, None] ** 2 * products[:, 1]
        return _losses(powers, powers + cross, powers + 2 * cross + own)

    return _fitted("cosine", len(z), energies, losses, promise_samples)


def fit_losses(
    outputs: F32,
    losses: Losses,
    metric: str,
    units: int,
    deltas: Sequence[F32],
    noises: Sequence[float] | None = None,
    promise_samples: int = drop_model.PROMISE_SAMPLES,
) -> FidelityModel:
    """As `fit`, with the ``losses`` of ``metric`` in place of 1 - cosine: the share of a sample's ``units`` that change.

    Noise that changes too few units to count them is extrapolated: their number falls with the amplitude of the noise,
    as in `drop_model`.
    """
    z, made, energies = drop_model.variants(outputs, deltas, noises)

    def each(scales: F64) -> F64:
        return np.stack([losses(z + np.float32(scale) * delta) for scale, delta in zip(scales, made, strict=True)])

    countable = max(1.0, drop_model.LEAST_COUNT / len(z)) / units
    return _fitted(metric, len(z), energies, each, promise_samples, countable)


def _fitted(
    metric: str,
    samples: int,
    energies: F64,
    losses: Callable[[F64], F64],
    promise_samples: int,
    countable: float = 0.0,
) -> FidelityModel:
    """The model of variants with ``energies``; ``losses``: of every variant and sample, for a factor per variant.

    Once a near variant loses less than ``countable``, smaller energies are extrapolated.
    """
    grid = drop_model.grid_of(energies)
    means: list[float] = []
    between: list[float] = []
    scatter: list[float] = []
    for energy in grid[::-1]:
        near = drop_model.nearest(energies, float(energy))
        found = losses(np.sqrt(energy / energies))
        every = found.mean(axis=1)
        if means and every.min() < countable:
            break
        means.append(float(every[near].mean()))
        between.append(max(_between(every[near]), _between(every)))
        scatter.append(_scatter(found[near]))
    known = len(means)
    fainter = np.sqrt(grid[::-1][known:] / grid[::-1][known - 1])
    means = [*means, *(means[-1] * fainter).tolist()][::-1]
    between, scatter = ([*one, *[one[-1]] * len(fainter)][::-1] for one in (between, scatter))
    made_of = FidelityModel(
        samples=samples,
        metric=metric,
        noise=[0.0, *grid.tolist()],
        expected=[0.0, *(100.0 * drop_model.rising(np.array(means))).tolist()],
        low=[],
        high=[],
        promise_samples=0,
        between=between,
        scatter=scatter,
        variants=min(len(energies), drop_model.NEAREST),
    )
    return made_of.promising(promise_samples)


def compare(outputs: F32, found: F32) -> tuple[float, float, float, float]:
    """The drop of ``found`` [n, ...] against the float model's ``outputs``.

    Returns points, the ends of its normal 95 % interval, and the agreement (0..1) of top-1.
    """
    agreement = float((evaluation.top1(outputs) == evaluation.top1(found)).mean())
    return *mean_interval(cosine_losses(outputs, found), 200.0), agreement


def mean_interval(losses: F64, worst: float) -> tuple[float, float, float]:
    """The mean of ``losses`` in points, and the ends of its normal 95 % interval within 0 and ``worst``."""
    points = 100.0 * losses
    drop = float(points.mean())
    if len(points) < 2:
        return drop, 0.0, worst
    half = evaluation.Z95 * float(points.std(ddof=1)) / math.sqrt(len(points))
    return drop, max(0.0, drop - half), min(worst, drop + half)


def cosine_losses(outputs: F32, found: F32) -> F64:
    """1 - cosine of each of n flattened samples; 1 if only one of the two is all zeros, 0 if both are."""
    a, b = outputs.reshape(len(outputs), -1), found.reshape(len(found), -1)
    return _losses(_dots(a, a), _dots(a, b), _dots(b, b))


def energy(outputs: F32) -> float:
    """Mean square of the ``outputs``: the reference for noise if the direction of the output matters."""
    return float(np.square(outputs, dtype=np.float64).mean())


def _dots(a: F32, b: F32) -> F64:
    found: F64 = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    return found


def _losses(before: F64, product: F64, after: F64) -> F64:
    """1 - cosine from squared lengths and scalar products; the shapes must broadcast."""
    after = np.maximum(after, 0.0)
    lengths = np.sqrt(before * after)
    same: F64 = np.where(before == after, 1.0, 0.0)
    return 1.0 - np.clip(np.divide(product, lengths, out=same, where=lengths > 0), -1.0, 1.0)


def _between(means: F64) -> float:
    """Standard deviation of the logarithms of the variants' mean losses."""
    if len(means) < 2:
        return UNKNOWN
    floor = LEAST_RATIO * means.mean()
    return float(np.log(np.maximum(means, floor)).std(ddof=1)) if floor > 0 else 0.0


def _scatter(losses: F64) -> float:
    """Standard deviation of a sample's loss relative to the mean.

    It is averaged over the variants of ``losses`` [variants, n].
    """
    if losses.shape[1] < 2:
        return UNKNOWN
    means = losses.mean(axis=1)
    ratios = losses.std(axis=1, ddof=1)[means > 0] / means[means > 0]
    return float(np.sqrt(np.square(ratios).mean())) if len(ratios) else 0.0


def _reach(between: F64, scatter: F64, variants: int, samples: int, fresh: int) -> F64:
    """Logarithm of the interval's upper end over the mean, at each energy.

    Half of `drop_model.TAIL` lies beyond each end. The distribution of the variants is skewed even in logarithms, and
    the other half allows for that.
    """
    random = np.random.default_rng(0)
    variant = math.sqrt(1 + 1 / variants) * random.standard_t(max(1, variants - 1), DRAWS)
    sample = random.standard_t(max(1, samples - 1), DRAWS) / math.sqrt(samples) + random.normal(size=DRAWS) / math.sqrt(
        fresh
    )
    drawn = [
        np.quantile(np.abs(b * variant + s * sample), 1 - drop_model.TAIL)
        for b, s in zip(between, scatter, strict=True)
    ]
    return np.minimum(drawn, WIDEST)
