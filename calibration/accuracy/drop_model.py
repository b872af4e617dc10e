"""Models the accuracy drop as a function of the noise on the logits, with an interval.

Noise is the mean squared difference between the logits and the float model's, as in `accuracy.sensitivity`. A variant
is the network with some mix of bits; its delta is the change of the logits of each sample. For an energy E, the
`NEAREST` variants by energy are scaled to E and added to the float logits, and the lost and gained answers are counted.
So the noise keeps its shape: larger for large logits, and similar in similar classes. (`benchmarks.accuracy_forms`
compares this with Gaussian noise and with thresholds on the margins.) The curves of the expected drop and of the upper
end are then made to rise with the noise.

The interval is that of a measurement on `promise_samples` other samples. It comes from random draws. Each draw combines
one of the near variants (quantizations of equal noise differ), shares of lost and gained answers that its counts allow
(calibration has few samples), and the counts of these shares on new samples.

If the noise changes too few answers to count, their number is extrapolated. It falls with the amplitude of the noise,
because samples are about as frequent at a margin of 0 as slightly above. With labels, lost minus gained falls with the
energy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from splitedge import errors

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Number of variants that represent an energy.
NEAREST: Final = 8
#: Number of energies of the curve, from the largest of the variants' down to `FAINT` of it.
POINTS: Final = 40
FAINT: Final = 1e-6
#: Mean number of changed answers below which the number is extrapolated from a higher energy.
LEAST_COUNT: Final = 8.0
DRAWS: Final = 4000
#: Share of measurements that may lie above ``high``, and share that may lie below ``low``.
TAIL: Final = 0.03
PROMISE_SAMPLES: Final = 1000


#: Outputs [n, C] -> the lost and the gained answers among them.
Count = Callable[[F32], tuple[int, int]]


class Drop(msgspec.Struct, frozen=True):
    """Expected points of accuracy lost, and the limits that 97 % of measurements stay above and below."""

    expected: float
    low: float
    high: float


class Curve(msgspec.Struct, frozen=True):
    """A curve of the accuracy drop over the noise, which rises from 0.

    At ``noise[i]``, ``expected[i]``, ``low[i]`` and ``high[i]`` points of ``metric`` are lost. ``samples``: number of
    samples of the fit. The interval is that of a measurement on ``promise_samples`` samples.
    """

    samples: int
    metric: str
    noise: list[float]
    expected: list[float]
    low: list[float]
    high: list[float]
    promise_samples: int

    def at(self, noise: float) -> Drop:
        """The drop at ``noise``. Beyond the noise of all variants, the upper end is `worst`.

        The largest noise is a sum, whose last bit depends on the order; so the comparison has a tolerance.
        """
        low, expected = self._read(self.low, noise), self._read(self.expected, noise)
        known = noise <= self.noise[-1] * (1 + 1e-9)
        return Drop(expected, low, self._read(self.high, noise) if known else self.worst)

    @property
    def worst(self) -> float:
        """The most points that can be lost."""
        return 200.0 if self.metric == "cosine" else 100.0

    def within(self, points: float) -> float:
        """The largest noise with an upper end of at most ``points``; 0 if there is none."""
        return self._greatest(self.high, points)

    def qpart(self, points: float) -> float:
        """The noise at which the variants lose ``points`` on average, as QPART's rule allows.

        QPART's limit is a factor, found by trial for each demand, times a mean adversarial noise. The factor is this
        noise over `AccuracyModel.threshold`, so the threshold itself has no effect. This is a baseline: it uses only
        the mean, so about half of all measurements lose more.
        """
        return self._greatest(self.expected, points)

    def _read(self, curve: Sequence[float], noise: float) -> float:
        return float(np.interp(np.sqrt(noise), np.sqrt(self.noise), curve))

    def _greatest(self, curve: Sequence[float], points: float) -> float:
        """The largest noise at which ``curve``, which never falls, is at most ``points``."""
        last = int(np.searchsorted(curve, points, side="right")) - 1
        if last < 0 or last == len(curve) - 1:
            return self.noise[last] if last >= 0 else 0.0
        share = (points - curve[last]) / (curve[last + 1] - curve[last])
        amplitudes = np.sqrt(self.noise[last : last + 2])
        return float((amplitudes[0] + share * (amplitudes[1] - amplitudes[0])) ** 2)


class AccuracyModel(Curve, frozen=True, tag="answers"):
    """The curve of lost answers.

    ``metric``: "top1", or without labels "agreement" or "boxes", where every change counts as lost. ``counts``: lost
    and gained answers of each near variant for the largest noises; smaller noises change too few answers to count.
    ``threshold``: QPART's mean adversarial noise. It serves to describe noise to people; no plan depends on it.
    ``units``: the answers in all samples together, if a sample holds several (boxes); 0: one for each sample.
    """

    counts: list[list[tuple[int, int]]]
    threshold: float
    units: int = 0

    def promising(self, samples: int) -> AccuracyModel:
        """The same curve with the interval of a measurement on ``samples`` samples."""
        units = self.units or self.samples
        fresh = max(1, round(samples * units / self.samples))
        low, high = _interval(np.array(self.noise[1:]), self.counts, units, self.metric == "top1", fresh)
        return msgspec.structs.replace(self, low=low, high=high, promise_samples=samples)


def fit(
    logits: F32,
    classes: I64 | None,
    deltas: Sequence[F32],
    noises: Sequence[float] | None = None,
    promise_samples: int = PROMISE_SAMPLES,
) -> AccuracyModel:
    """The model of a network with ``logits`` [n, C] on samples that rounding did not use.

    ``classes`` [n]: labels of the samples, if they have any. ``deltas``: changes of the logits [n, C] by each variant;
    the variants must cover the noises of possible plans. ``noises``: a planner's predictions of their noise, if these
    differ from the energies. The curve is then a function of the predictions and includes their error. Raises
    `errors.UsageError` if the data are insufficient.
    """
    flat = np.asarray(logits, np.float32).reshape(len(logits), -1)
    wanted = flat.argmax(axis=1) if classes is None else classes
    right = flat.argmax(axis=1) == wanted

    def count(outputs: F32) -> tuple[int, int]:
        found = outputs.argmax(axis=1) == wanted
        return int((right & ~found).sum()), int((~right & found).sum())

    metric = "agreement" if classes is None else "top1"
    return fit_counts(logits, count, metric, deltas, noises, promise_samples=promise_samples)


def fit_counts(
    outputs: F32,
    count: Count,
    metric: str,
    deltas: Sequence[F32],
    noises: Sequence[float] | None = None,
    units: int = 0,
    promise_samples: int = PROMISE_SAMPLES,
) -> AccuracyModel:
    """As `fit`, where ``count`` counts the lost and gained answers among the outputs [n, C] of a variant.

    ``units``: as in `AccuracyModel`.
    """
    z, made, energies = variants(outputs, deltas, noises)
    grid = grid_of(energies)
    counts = _counts(grid, _Variants(z, count, made, energies))
    made_of = AccuracyModel(
        samples=len(z),
        metric=metric,
        noise=[0.0, *grid.tolist()],
        expected=_expected(grid, counts, units or len(z), metric == "top1"),
        low=[],
        high=[],
        counts=counts,
        threshold=threshold(z),
        units=units,
        promise_samples=0,
    )
    return made_of.promising(promise_samples)


def variants(outputs: F32, deltas: Sequence[F32], noises: Sequence[float] | None) -> tuple[F32, list[F32], F64]:
    """``outputs`` [n, C], and the ``deltas`` [n, C] and energies of all variants with noise.

    Arguments and errors are as in `fit`.
    """
    z = np.asarray(outputs, np.float32).reshape(len(outputs), -1)
    if z.shape[1] < 2 or not len(z) or any(delta.shape != outputs.shape for delta in deltas):
        raise errors.UsageError(
            "the accuracy model needs at least two outputs per sample and differences of the same shape",
            reason="outputs",
        )
    made = [np.asarray(delta, np.float32).reshape(z.shape) for delta in deltas]
    energies = np.array(
        [np.square(delta, dtype=np.float64).mean() for delta in made] if noises is None else noises, np.float64
    )
    if len(energies) != len(made) or not (np.isfinite(energies).all() and energies.any()):
        raise errors.UsageError(
            "rounding never changes the model's output, or makes it NaN: it is constant or saturated on these samples; "
            "choose the tensor before its last operator with --output",
            reason="constant-output",
        )
    noisy = energies > 0
    return z, [delta for delta, keep in zip(made, noisy, strict=True) if keep], energies[noisy]


def grid_of(energies: F64) -> F64:
    """The energies of a curve for variants with ``energies``."""
    grid: F64 = energies.max() * np.geomspace(FAINT, 1.0, POINTS)
    return grid


def nearest(energies: F64, energy: float) -> I64:
    """Indices of the variants whose energies represent ``energy``."""
    return np.argsort(np.abs(np.log(energies / energy)), kind="stable")[:NEAREST]


def threshold(logits: F32) -> float:
    """QPART's mean adversarial noise of ``logits`` [n, C]: E[(z1 - z2)^2] / 2 of the two largest."""
    ordered = np.partition(logits, -2, axis=1)[:, -2:].astype(np.float64)
    return float(((ordered[:, 1] - ordered[:, 0]) ** 2).mean() / 2)


class _Variants:
    """The float outputs and the deltas of variants.

    ``counts(energy)``: lost and gained answers of the near variants, scaled to that energy.
    """

    def __init__(self, outputs: F32, count: Count, deltas: Sequence[F32], energies: F64) -> None:
        self._outputs, self._count, self._deltas, self._energies = outputs, count, deltas, energies

    def counts(self, energy: float) -> list[tuple[int, int]]:
        """Lost and gained answers of each of the nearest variants."""
        near = nearest(self._energies, energy)
        return [self._counted(self._deltas[k], float(np.sqrt(energy / self._energies[k]))) for k in near]

    def _counted(self, delta: F32, scale: float) -> tuple[int, int]:
        return self._count(self._outputs + np.float32(scale) * delta)


def _counts(grid: F64, variants: _Variants) -> list[list[tuple[int, int]]]:
    """Counts of the largest energies of ``grid``, down to the last with enough changed answers."""
    found: list[list[tuple[int, int]]] = []
    for energy in grid[::-1]:
        made = variants.counts(energy)
        if found and sum(map(sum, made)) < LEAST_COUNT * len(made):
            break
        found.insert(0, made)
    return found


def _expected(grid: F64, counts: Sequence[Sequence[tuple[int, int]]], samples: int, labelled: bool) -> list[float]:
    """Expected points lost at 0 and at each energy of ``grid``, made to rise."""
    shares = [_fainter(np.mean(c, axis=0, keepdims=True) / samples, r, labelled)[0] for c, r in _sources(grid, counts)]
    drops = [float(lost - gained) for lost, gained in shares]
    return [0.0, *(100.0 * np.maximum(rising(np.array(drops)), 0.0)).tolist()]


def _interval(
    grid: F64, counts: Sequence[Sequence[tuple[int, int]]], samples: int, labelled: bool, fresh: int
) -> tuple[list[float], list[float]]:
    """The interval's ends, in points, at 0 and at each energy of ``grid``; the upper ends rise."""
    random = np.random.default_rng(0)
    prior = np.array([0.5, 0.5 if labelled else 0.0])  # Jeffreys' prior: a count of 0 does not exclude changes
    low, high = [0.0], [0.0]
    for counted, ratio in _sources(grid, counts):
        drawn = random.gamma(random.choice(counted, DRAWS) + prior) / samples
        lost, gained = random.binomial(fresh, np.minimum(_fainter(drawn, ratio, labelled), 1.0)).T
        ends = np.quantile((lost - gained) / fresh, (TAIL, 1.0 - TAIL), method="inverted_cdf")
        low.append(100.0 * float(ends[0]))
        high.append(max(high[-1], 100.0 * float(ends[1])))
    return low, high


def _sources(
    grid: F64, counts: Sequence[Sequence[tuple[int, int]]]
) -> Iterator[tuple[Sequence[tuple[int, int]], float]]:
    """For each energy, the counts that represent it, and its ratio to the energy of these counts."""
    first = len(grid) - len(counts)
    for i, energy in enumerate(grid):
        yield counts[max(0, i - first)], min(1.0, float(energy / grid[first]))


def _fainter(shares: F64, ratio: float, labelled: bool) -> F64:
    """Shares lost and gained [N, 2] if the noise's energy falls to ``ratio``."""
    changed, drop = shares.sum(axis=1) * ratio**0.5, (shares[:, 0] - shares[:, 1]) * ratio
    if not labelled:
        return np.stack([changed, np.zeros_like(changed)], axis=1)
    return np.stack([changed + drop, changed - drop], axis=1) / 2


def rising(curve: F64) -> F64:
    """The nondecreasing curve with the least squared distance from ``curve``."""
    sums = np.concatenate([[0.0], curve.cumsum()])
    first, last = np.arange(len(curve))[:, None], np.arange(len(curve))[None]
    means = np.where(last >= first, (sums[last + 1] - sums[first]) / np.maximum(last - first + 1, 1), np.inf)
    best: F64 = np.maximum.accumulate(np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1], axis=0).diagonal()
    return best
