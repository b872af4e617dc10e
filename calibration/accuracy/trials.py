"""Trials of whole heads with mixed bits.

They measure whether the noises of a head's parts add up, and how the noise changes the answers. A trial is a head that
a planner could choose: a cut, its codec, and the bits of each layer with the fewest bytes for a noise target. The
targets range from very low to higher than any user accepts. The integer head runs, its tensor is coded, and the tail
answers. The accuracy model is fitted to the output differences and to the sums of the parts' noises (`drop_model.fit`,
`cosine_model.fit`). So it accounts for parts whose noises do not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.accuracy import evaluation
from calibration.accuracy.evaluation import CodecNoise, CutNoise, OfferedCut
from calibration.accuracy.sensitivity import Sensitivity
from calibration.bundle.cache import Cache, key, remembered_arrays
from calibration.parallel import in_order
from calibration.rounding.rounder import WIDTHS
from calibration.samples.samples import Samples
from calibration.statistics.activations import Progress
from calibration.statistics.clipping import Histogram
from splitedge.head.executor import Head

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

TRIALS: Final = 16
#: Limits of the samples of a trial, evenly spread: `VALUES` input values, but within `SAMPLES`; and `OUTPUTS` output
#: values, because the outputs of all trials stay in memory.
VALUES: Final = 150_000_000
SAMPLES: Final = (1000, 5000)
OUTPUTS: Final = 1 << 23
#: Noise of the trials as exponents of 4, relative to half the mean squared margin (`drop_model.threshold`) or to the
#: outputs' mean square (`cosine_model.energy`).
EXPONENTS: Final = (-7.0, -0.5)
_SPREAD: Final = (5**0.5 - 1) / 2  # multiples of the golden ratio, modulo 1, spread evenly
_NO_CODEC: Final = CodecNoise(0, "", 0.0, 0)

#: Outputs [n, ...] of the float model and of a trial -> drop, low, high (points) and agreement (0..1) of top-1.
Judge = Callable[[F32, F32], tuple[float, float, float, float]]


class Trial(msgspec.Struct, frozen=True):
    """One trial: ``bits`` of each layer's weights by its output tensor; ``activation_bits`` is 0 if nothing is sent.

    ``predicted`` and ``measured`` are the noise at the output. drop, low, high and agreement are as in
    `evaluation.compare` or `cosine_model.compare`.
    """

    cut: int
    bits: dict[str, int]
    activation_bits: int
    predicted: float
    measured: float
    drop: float
    low: float
    high: float
    agreement: float


def ratios(found: Sequence[Trial]) -> list[float]:
    """Measured noise of each whole head over the sum of its parts, ascending; trials without noise are omitted."""
    return sorted(trial.measured / trial.predicted for trial in found if trial.predicted > 0)


def additivity(found: Sequence[Trial]) -> str:
    """One line on how far the noises of whole heads are from the sums of their parts; empty if no trial has noise."""
    each = ratios(found)
    if not each:
        return ""
    return f"noise of whole heads over the sum of their parts: {each[0]:.2g} to {each[-1]:.2g} in {len(each)} trials"


@dataclass(frozen=True)
class MeasuredCut:
    """An offered cut with its measurements, and the number of weights of its layers, in order."""

    spot: OfferedCut
    histogram: Histogram
    noise: CutNoise
    layers: Mapping[str, int]


def head_noise(noise: CutNoise, layers: Sequence[Sensitivity]) -> float:
    """The noise of a head's activations: its noise without that of its ``layers``' weights."""
    return max(0.0, noise.head - sum(layer.at(8) for layer in layers))


def codec_noise(noise: CutNoise, codec: CodecNoise) -> float:
    """The noise that a codec adds to its head."""
    return max(0.0, codec.noise - noise.head)


def most(inputs: int, outputs: int) -> int:
    """The number of samples of a trial for a network with ``inputs`` and ``outputs`` values per sample."""
    return max(1, min(max(VALUES // inputs, SAMPLES[0]), SAMPLES[1], OUTPUTS // outputs))


def run(
    sites: Sequence[MeasuredCut],
    layers: Mapping[str, Sensitivity],
    margin: float,
    build: Callable[[MeasuredCut, Mapping[str, int]], Head],
    samples: Samples,
    outputs: F32,
    judge: Judge,
    progress: Progress,
    count: int = TRIALS,
    cache: Cache | None = None,
    about: str = "",
) -> tuple[list[Trial], list[F32]]:
    """The trials, and the differences [n, ...] of each trial's outputs from the float model's ``outputs``.

    ``margin``: reference energy of the noise (`drop_model.threshold`, `cosine_model.energy`). ``build`` creates a head
    with these bits. ``count``: number of trials. ``cache``: trials of the same calibration ``about`` are reused.
    """
    tried = [site for site in sites if site.layers] or sites
    exponents = np.linspace(*EXPONENTS, count)
    progress("trials", 0, count)

    def tried_at(place: int) -> tuple[Trial, F32]:
        site = tried[int(len(tried) * (place * _SPREAD % 1))]
        bits, codec, predicted = _mix(site, layers, margin * 4.0 ** exponents[place])

        def run_it() -> dict[str, F32]:
            found = _answers(site, build(site, bits), codec, samples)
            return {"delta": found - np.maximum(outputs, np.float32(site.spot.least))}

        name = key("trial", about, msgspec.json.encode((site.noise.cut, bits, codec.rule, codec.bits)))
        delta: F32 = remembered_arrays(cache, name, run_it)["delta"]
        measured = float((delta.astype(np.float64) ** 2).mean())
        judged = judge(outputs, outputs + delta)
        return Trial(site.noise.cut, bits, codec.bits, predicted, measured, *judged), delta

    found, deltas = [], []
    for trial, delta in in_order(tried_at, range(count)):
        found.append(trial)
        deltas.append(delta)
        progress("trials", len(found), count)
    return found, deltas


def _mix(
    site: MeasuredCut, layers: Mapping[str, Sensitivity], target: float
) -> tuple[dict[str, int], CodecNoise, float]:
    """Bits, codec and their predicted noise.

    They take about the fewest bytes for a noise of ``target``, or have the least possible noise.
    """
    inside = [layers[name] for name in site.layers]
    codecs = site.noise.codecs or [_NO_CODEC]
    costs = [np.array(WIDTHS, float) * count / 8 for count in site.layers.values()]
    noises = [np.array(layer.noise) for layer in inside]
    costs.append(np.array([float(codec.payload) for codec in codecs]))
    noises.append(np.array([codec_noise(site.noise, codec) for codec in codecs]))
    own = head_noise(site.noise, inside)
    chosen = cheapest(costs, noises, target - own)
    predicted = own + sum(float(row[i]) for row, i in zip(noises, chosen, strict=True))
    return {name: WIDTHS[i] for name, i in zip(site.layers, chosen, strict=False)}, codecs[chosen[-1]], predicted


def cheapest(costs: Sequence[F64], noises: Sequence[F64], budget: float) -> list[int]:
    """One choice of each row, with noises within ``budget`` at about the least cost.

    If the budget is too small, the choices have the least noise. Each row minimizes cost + price x noise, and bisection
    finds the price. The choices lie on the lower convex hull.
    """

    def at(price: float) -> list[int]:
        return [int((cost + price * noise).argmin()) for cost, noise in zip(costs, noises, strict=True)]

    low, high = -60.0, 200.0  # of log2 price
    for _ in range(50):
        middle = (low + high) / 2
        within = sum(noise[i] for noise, i in zip(noises, at(2.0**middle), strict=True)) <= budget
        low, high = (low, middle) if within else (middle, high)
    return at(2.0**high)


def _answers(site: MeasuredCut, head: Head, codec: CodecNoise, samples: Samples) -> F32:
    """The outputs [n, ...] of a split network."""
    made = site.histogram.fit(codec.rule, codec.bits) if codec.bits else None
    return evaluation.split_outputs(head, made, site.spot.load() if site.spot.load else None, samples)
