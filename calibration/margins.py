"""From the noise on the logits to the accuracy that it costs: which answers noise of an energy overturns, and how sure one can be of their number.

Noise is the mean squared difference of the logits to the float model's, as in `calibration.sensitivity`. A variant is the network with some mix of
bits; its delta is what it adds to the logits of each sample. At an energy E the `NEAREST` variants, those whose own energy is nearest to E, are each
scaled to E and added to the float logits: what is lost and gained there is counted. So the noise keeps its shape: larger where the logits are large,
alike in classes that are alike. Both the expected drop and the upper end are then made to rise with noise.

The interval is of what somebody would measure on `promise_samples` other samples. It is drawn by lot, and each draw holds one variant of those that
are near (quantizations of equal noise differ), shares of lost and gained answers that its counts allow (calibration's samples are few), and what of
these shares falls on the fresh samples. Where noise overturns too few answers to count, their number is taken to fall with the noise's amplitude, since
near a margin of 0 there are as many samples as a little further off; and so, with labels, lost less gained falls with its energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent import errors

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Variants that speak for an energy.
NEAREST: Final = 8
#: Energies of the curve, from the greatest of the variants' down to `FAINT` of it.
POINTS: Final = 40
FAINT: Final = 1e-6
#: Overturned answers, in the mean of the variants, below which their number is not counted but scaled from where there are so many.
LEAST_COUNT: Final = 8.0
DRAWS: Final = 4000
#: Share of measurements that may lie above ``high``, and share that may lie below ``low``.
TAIL: Final = 0.03
PROMISE_SAMPLES: Final = 1000


class Drop(msgspec.Struct, frozen=True):
    """Points of accuracy lost, and what 97 % of measurements stay below and above."""

    expected: float
    low: float
    high: float


class AccuracyModel(msgspec.Struct, frozen=True):
    """The curve: at ``noise[i]``, rising from 0, ``expected[i]``, ``low[i]`` and ``high[i]`` points are lost.

    ``metric``: "top1", or "agreement" where there were no labels and every changed answer counts as lost. ``samples``, ``variants``: how many were
    counted. ``threshold``: QPART's mean adversarial noise, E[(z1 - z2)^2] / 2 of the two greatest logits. The interval is that of a measurement on
    ``promise_samples`` samples.
    """

    samples: int
    metric: str
    variants: int
    noise: list[float]
    expected: list[float]
    low: list[float]
    high: list[float]
    threshold: float
    promise_samples: int

    def at(self, noise: float) -> Drop:
        """What ``noise`` costs; 100 at the upper end where no variant had so much, since nobody knows."""
        low, expected = self._read(self.low, noise), self._read(self.expected, noise)
        return Drop(expected, low, self._read(self.high, noise) if noise <= self.noise[-1] else 100.0)

    def within(self, points: float) -> float:
        """The greatest noise at which no more than ``points`` are promised to be lost; 0 where there is none."""
        return self._greatest(self.high, points)

    def qpart(self, points: float) -> float:
        """The noise that QPART's rule allows: its threshold times the ratio at which the variants lose ``points`` in the mean, without an interval."""
        return self._greatest(self.expected, points)

    def _read(self, curve: Sequence[float], noise: float) -> float:
        return float(np.interp(np.sqrt(noise), np.sqrt(self.noise), curve))

    def _greatest(self, curve: Sequence[float], points: float) -> float:
        """The greatest noise at which ``curve``, which never falls, is at most ``points``."""
        last = int(np.searchsorted(curve, points, side="right")) - 1
        if last < 0 or last == len(curve) - 1:
            return self.noise[last] if last >= 0 else 0.0
        share = (points - curve[last]) / (curve[last + 1] - curve[last])
        amplitudes = np.sqrt(self.noise[last : last + 2])
        return float((amplitudes[0] + share * (amplitudes[1] - amplitudes[0])) ** 2)


def fit(
    logits: F32,
    classes: I64 | None,
    deltas: Sequence[F32],
    noises: Sequence[float] | None = None,
    promise_samples: int = PROMISE_SAMPLES,
) -> AccuracyModel:
    """The model of a network with ``logits`` [n, C] on samples that rounding has not seen, and ``classes`` [n] if they have labels.

    ``deltas``: what each variant adds to the logits [n, C], variants being spread over the noises that plans may have. ``noises``: what a planner
    thinks the noise of each of them to be, where that is not its energy; the curve is then over these, and holds the error of such thoughts.
    Raises `errors.UsageError` where there is nothing to learn from.
    """
    z = np.asarray(logits, np.float32).reshape(len(logits), -1)
    if z.shape[1] < 2 or not len(z) or any(delta.shape != logits.shape for delta in deltas):
        raise errors.UsageError(
            "the accuracy model needs logits of two or more classes, and differences of the same shape"
        )
    made = [np.asarray(delta, np.float32).reshape(z.shape) for delta in deltas]
    energies = np.array(
        [np.square(delta, dtype=np.float64).mean() for delta in made] if noises is None else noises, np.float64
    )
    if len(energies) != len(made) or not (np.isfinite(energies).all() and energies.any()):
        raise errors.UsageError(
            "the accuracy model needs variants whose noise is above 0 and finite; give rougher ones"
        )
    noisy = energies > 0
    counted = _Variants(z, classes, [d for d, keep in zip(made, noisy, strict=True) if keep], energies[noisy])
    grid = energies.max() * np.geomspace(FAINT, 1.0, POINTS)
    expected, low, high = _curves(grid, counted, promise_samples)
    ordered = np.partition(z, -2, axis=1)[:, -2:].astype(np.float64)
    return AccuracyModel(
        samples=len(z),
        metric="agreement" if classes is None else "top1",
        variants=int(noisy.sum()),
        noise=[0.0, *grid.tolist()],
        expected=[0.0, *(100.0 * np.maximum(_rising(expected), 0.0)).tolist()],
        low=[0.0, *(100.0 * low).tolist()],
        high=[0.0, *(100.0 * np.maximum.accumulate(np.maximum(high, 0.0))).tolist()],
        threshold=float(((ordered[:, 1] - ordered[:, 0]) ** 2).mean() / 2),
        promise_samples=promise_samples,
    )


class _Variants:
    """Float logits and what variants add to them; ``counts(energy)`` tells what those near it lose and gain when they are scaled to it."""

    def __init__(self, logits: F32, classes: I64 | None, deltas: Sequence[F32], energies: F64) -> None:
        self._logits, self._deltas, self._energies = logits, deltas, energies
        self.samples, self.labelled = len(logits), classes is not None
        answers = logits.argmax(axis=1)
        self._wanted = answers if classes is None else classes
        self._right = answers == self._wanted

    def counts(self, energy: float) -> F64:
        """[K, 2]: lost and gained answers of each of the nearest variants."""
        near = np.argsort(np.abs(np.log(self._energies / energy)), kind="stable")[:NEAREST]
        return np.array([self._counted(self._deltas[k], float(np.sqrt(energy / self._energies[k]))) for k in near])

    def _counted(self, delta: F32, scale: float) -> tuple[int, int]:
        right = (self._logits + np.float32(scale) * delta).argmax(axis=1) == self._wanted
        return int((self._right & ~right).sum()), int((~self._right & right).sum())


def _curves(grid: F64, counted: _Variants, fresh: int) -> tuple[F64, F64, F64]:
    """Expected share lost at each energy of ``grid``, and the ends of the interval of a measurement on ``fresh`` samples."""
    random = np.random.default_rng(0)
    expected, low, high = (np.empty(len(grid)) for _ in range(3))
    prior = np.array([0.5, 0.5 if counted.labelled else 0.0])  # Jeffreys': where none was seen there may be some
    counts, start = np.empty((0, 2)), 1.0
    for i in reversed(range(len(grid))):
        if not len(counts) or counts.sum(axis=1).mean() >= LEAST_COUNT:
            counts, start = counted.counts(grid[i]), grid[i]
        drawn = counts[random.integers(len(counts), size=DRAWS)] + prior
        shares = _fainter(random.gamma(drawn) / counted.samples, grid[i] / start, counted.labelled)
        lost, gained = random.poisson(fresh * shares).T
        low[i], high[i] = np.quantile((lost - gained) / fresh, (TAIL, 1.0 - TAIL), method="inverted_cdf")
        mean = _fainter(counts.mean(axis=0)[None] / counted.samples, grid[i] / start, counted.labelled)[0]
        expected[i] = mean[0] - mean[1]
    return expected, low, high


def _fainter(shares: F64, ratio: float, labelled: bool) -> F64:
    """Shares lost and gained [N, 2] when the noise's energy falls to ``ratio`` of what it was."""
    changed, drop = shares.sum(axis=1) * ratio**0.5, (shares[:, 0] - shares[:, 1]) * ratio
    if not labelled:
        return np.stack([changed, np.zeros_like(changed)], axis=1)
    return np.stack([changed + drop, changed - drop], axis=1) / 2


def _rising(curve: F64) -> F64:
    """The nearest curve, by squares, that never falls."""
    sums = np.concatenate([[0.0], curve.cumsum()])
    first, last = np.arange(len(curve))[:, None], np.arange(len(curve))[None]
    means = np.where(last >= first, (sums[last + 1] - sums[first]) / np.maximum(last - first + 1, 1), np.inf)
    best: F64 = np.maximum.accumulate(np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1], axis=0).diagonal()
    return best
