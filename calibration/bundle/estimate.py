"""Estimates the seconds of each phase of a calibration before it starts.

The unit is a run of the float model on one sample. The factors come from EfficientNet-Lite0 on two cores, and the
estimate is good to a factor of about two: networks differ, and so do machines. The pace of the work corrects it.
"""

from __future__ import annotations

import math
from typing import Final

from calibration.accuracy import sensitivity
from calibration.accuracy.subsampling import LEAST
from calibration.effort import Effort
from calibration.importing import cuts
from calibration.lowering.layers import Network
from calibration.parallel import cores
from calibration.rounding.rounder import EVEN, WIDTHS
from calibration.statistics.activations import HISTOGRAM_SAMPLES
from calibration.statistics.covariance import SAMPLES

#: Runs of the model that a phase takes for each sample: ranges, covariances, histograms of codes, a trial.
RANGES, MOMENTS, HISTOGRAMS, TRIAL = 1.5, 10.0, 0.7, 1.6
#: Multiply-accumulates of rounding for each weight and input, and their speed relative to the model's.
ROUNDING, SLOWER = 46, 2.0
#: Codecs at a cut.
CODECS: Final = 22
#: Processor seconds for each cut: to fit codecs, to choose and price them, to write a segment, to time a tail, and to
#: allocate bits; and for each layer, to open sessions.
FIT_S, CHOOSE_S, WRITE_S, TIME_S, ALLOCATE_S, LAYER_S = 0.25, 0.3, 0.15, 0.06, 0.25, 0.1


def seconds(network: Network, samples: int, outputs: int, sample_s: float, effort: Effort) -> dict[str, float]:
    """The wall seconds of each phase on all cores, in order; ``patterns`` belongs to the planner.

    ``samples``: their number. ``outputs``: values of one answer. ``sample_s``: processor seconds of a run of the float
    model on one sample.
    """
    count = min(samples, effort.samples)
    seen, judged = -(-count // 2), max(1, count // 2)
    offered = sum(place.offered for place in cuts.find(network))
    deepest = [place.cut.tensor for place in cuts.find(network) if place.reachable][-1:]
    layers = [layer for tensor in deepest for layer in network.weighted(tensor)]
    macs = max(1, network.macs(network.layers))
    measured = min(judged, effort.noise * sensitivity.enough(network, outputs))
    few = measured if effort.exact else min(measured, LEAST)
    grids = len(WIDTHS) + len(EVEN) if effort.exact else len(sensitivity.ANCHORS) + 2
    rounding = ROUNDING * sum(layer.weight.size * math.prod(layer.weight.shape[1:]) for layer in layers)
    tail_s = sample_s / 2
    found = {
        "observe": RANGES * (count + min(count, HISTOGRAM_SAMPLES)) * sample_s if network.source == "u8" else 0.0,
        "moments": MOMENTS * min(seen, SAMPLES[1]) * sample_s,
        "rounding": SLOWER * effort.sweeps * rounding * sample_s / macs,
        "answers": count * sample_s,
        "histograms": HISTOGRAMS * count * sample_s,
        "codecs of cuts": FIT_S * offered,
        "noise of cuts": offered * (CHOOSE_S + (CODECS * few + 2 * measured) * tail_s),
        "sensitivity of layers": len(layers)
        * (LAYER_S + (grids * (few if effort.exact else sensitivity.LEAST) + measured) * tail_s),
        "trials": effort.trials * judged * TRIAL * sample_s,
        "segments": WRITE_S * offered,
    }
    alone = {"tails": TIME_S * offered, "patterns": ALLOCATE_S * offered}
    return {phase: value / cores() for phase, value in found.items()} | alone
