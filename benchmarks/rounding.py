"""What few-bit weights cost EfficientNet-Lite0: nearest rounding against rounding by the outputs, at uniform bits and with depthwise layers at 8.

    python -m benchmarks.rounding --images DIR --labels FILE --json OUT

Every other photograph calibrates (ranges, means, rounding); all figures are of the rest, from real integer heads with the float tail behind them
and no codec between. Noise is the mean squared difference of the logits to the float model's. Drops are in points of top-1 with their paired 95 %
interval. A cut's per cent is the head's share of the network's products. Rows at 8 bits are what 8-bit activations cost by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import models
from benchmarks.report import photo_parser, quiet, report
from calibration import accuracy, bundle, cuts, importer, layers
from calibration.graph import Graph
from calibration.lower import Calibration, lower
from calibration.moments import groups
from calibration.observe import Quantization
from calibration.rounding import Rounding, round_layers
from calibration.samples import Samples, open_samples
from edge_agent import errors
from edge_agent.head import segment as seg
from edge_agent.head.executor import Head

F32 = NDArray[np.float32]

#: Shares of the network's products on the device; 1 is the whole network.
PLACES: Final = (0.25, 0.5, 0.75, 1.0)
#: Bits of depthwise layers and of all others.
SCHEMES: Final = (*((bits, bits) for bits in range(3, 9)), *((8, bits) for bits in (4, 5, 6)))
QUICK_PHOTOS: Final = 48
QUICK_PLACES: Final = (0.5, 1.0)
QUICK_SCHEMES: Final = ((4, 4), (8, 4))
ROUNDINGS: Final[tuple[Rounding, ...]] = ("nearest", "gptq")


@dataclass
class Network:
    """The calibrated network with its cuts, by share, and the tails behind them (None at the output)."""

    network: layers.Network
    calibrations: Mapping[Rounding, Calibration]
    tensors: Mapping[float, str]
    tails: Mapping[float, accuracy.Tail | None]
    run: accuracy.Tail


def main(arguments: Sequence[str] | None = None) -> None:
    options = photo_parser(__doc__ or "").parse_args(arguments)
    photos = open_samples(
        options.images, models.LITE0_PREPROCESS, options.labels, QUICK_PHOTOS if options.quick else None
    )
    if photos.classes is None:
        raise errors.UsageError("rounding needs labels; give --labels with a CSV of file name and class index")
    calibrating, held = photos[::2], photos[1::2]
    schemes = QUICK_SCHEMES if options.quick else SCHEMES
    widths = sorted({bits for scheme in schemes for bits in scheme})
    ready = prepare(calibrating, QUICK_PLACES if options.quick else PLACES, widths)
    rows = measure(ready, held, schemes)
    notes = [f"{len(calibrating)} photographs calibrate, figures are of the {len(held)} others"]
    report("EfficientNet-Lite0: rounding of weights", rows, summary(rows, len(held)), options.json, notes)


def prepare(samples: Samples, places: Sequence[float], widths: Sequence[int]) -> Network:
    """Calibrate Lite0 with ``samples`` and round its weights at ``widths`` in both ways."""
    model = importer.load(models.LITE0, models.LITE0_SHAPE)
    network = layers.build(Graph.of(model))
    plain = bundle.calibrate(model, network, samples)
    output = network.graph.output
    rounded = replace(plain, roundings=round_layers(model, network, plain, output, samples, quiet, widths))
    tensors = {share: _cut(network, share) for share in places}
    tails = {
        share: None if t == output else bundle.tail_runner(model, network.graph, t) for share, t in tensors.items()
    }
    return Network(network, {"nearest": plain, "gptq": rounded}, tensors, tails, bundle.runner(model))


def _cut(network: layers.Network, share: float) -> str:
    """The tensor of the offered cut whose head has nearest to ``share`` of the products."""

    def products(tensor: str) -> int:
        found = network.weighted(tensor)
        return sum(la.weight.size * math.prod(network.graph.stored_shape(la.out)[:-1]) for la in found)

    total = products(network.graph.output)
    offered = [p.cut.tensor for p in cuts.find(network) if p.offered]
    return min(offered, key=lambda tensor: abs(products(tensor) / total - share))


def measure(ready: Network, samples: Samples, schemes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """A row for each cut, pair of bits and rounding, on ``samples``."""
    outputs = accuracy.float_outputs(ready.run, samples)
    rows = []
    for depthwise, others in schemes:
        bits = {
            la.out: depthwise if groups(la) > 1 else others for la in ready.network.weighted(ready.network.graph.output)
        }
        for rounding in ROUNDINGS:
            found = _logits(ready, rounding, bits, samples)
            for share, logits in found.items():
                rows.append(_row(ready, share, (depthwise, others), rounding, outputs, logits, samples))
    return sorted(rows, key=lambda row: (row["cut %"], row["depthwise"] != row["others"], row["others"]))


def _logits(ready: Network, rounding: Rounding, bits: Mapping[str, int], samples: Samples) -> dict[float, F32]:
    """Logits [n, classes] for each cut, from the integer head with ``bits`` and the float tail."""
    lowered = lower(ready.network, ready.calibrations[rounding], ready.network.graph.output, bits)
    head = Head(seg.parse(lowered.segment()), check_golden=False)
    taps = {share: lowered.index[tensor] for share, tensor in ready.tensors.items()}
    each = [head.taps(samples.codes(i, head.input), list(taps.values())) for i in range(len(samples))]
    found = {}
    for place, (share, tap) in enumerate(taps.items()):
        tensor = head.header.tensors[tap]
        arrive = accuracy.arrival(Quantization(tensor.scale, tensor.zero_point), None)
        codes = np.stack([one[place] for one in each])
        found[share] = accuracy.output_of(ready.tails[share], codes, arrive)
    return found


def _row(
    ready: Network, share: float, bits: tuple[int, int], rounding: str, outputs: F32, logits: F32, samples: Samples
) -> dict[str, Any]:
    assert samples.classes is not None
    found = accuracy.top1(logits)
    drop, low, high, agreement = accuracy.compare(accuracy.top1(outputs), found, samples.classes)
    held = ready.network.weighted(ready.tensors[share])
    packed = sum(la.weight.size * bits[groups(la) == 1] for la in held) / (32 * sum(la.weight.size for la in held))
    return {
        "cut %": round(100 * share),
        "depthwise": bits[0],
        "others": bits[1],
        "rounding": rounding,
        "weights %": 100.0 * packed,
        "noise": float(((logits - outputs) ** 2).mean()),
        "top1": 100.0 * float((found == samples.classes).mean()),
        "drop": drop,
        "low": low,
        "high": high,
        "agree": 100.0 * agreement,
    }


def summary(rows: Sequence[dict[str, Any]], samples: int) -> dict[str, float]:
    """Of the whole network at uniform bits."""
    found: dict[str, float] = {"lite0.samples": float(samples)}
    for row in rows:
        if row["cut %"] == 100 and row["depthwise"] == row["others"]:
            key = f"lite0.{row['rounding']}{row['others']}"
            found |= {f"{key}.drop_points": row["drop"], f"{key}.noise": row["noise"]}
    return found


if __name__ == "__main__":
    main()
