"""Accuracy loss of few-bit weights by rounding method, for EfficientNet-Lite0 and a CNN with plain ReLUs.

    python -m benchmarks.rounding --images DIR --labels FILE [--networks lite0,cnn] [--fashion FOLDER] --json OUT

Bits are uniform, or 8 for depthwise layers and fewer for the others.

plain            each weight to the nearest level of its output's grid with the least squared error
nearest          as plain, with the mean error of each output subtracted from its bias
equalized        as nearest, after scaling layers against each other where that is exact (`benchmarks.equalization`)
gptq             minimizes the error of the layer's outputs (`calibration.rounding.rounder`), biases included
equalized, gptq  as gptq after that scaling
even             as gptq on one grid per layer, as fine as the bits allow after entropy coding; depthwise layers as gptq

Every other photograph calibrates (ranges, means, rounding); for Fashion-MNIST, held-out training images do. All figures
use other samples, with real integer heads, the float tail and no codec. Noise is the mean squared difference of the
logits to the float model's. Drops are points of top-1 with their paired 95 % interval. Weights are per cent of float32
by their entropy, as segments code them. The percentage of a cut is the head's share of the network's products. Rows at
8 bits show the cost of 8-bit activations alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import equalization, fashion, models
from benchmarks.report import photo_parser, quiet, report
from calibration.accuracy import evaluation, tail_runs
from calibration.bundle import creation
from calibration.importing import cuts
from calibration.importing.graph import Graph
from calibration.lowering import layers
from calibration.lowering.layers import Weighted
from calibration.lowering.lower import Calibration, lower
from calibration.rounding.quantizer import Rounded, entropy, width
from calibration.rounding.rounder import grids
from calibration.samples.samples import Samples, open_samples
from calibration.statistics.covariance import groups
from splitedge import errors
from splitedge.head import segment as seg
from splitedge.head.executor import Head

F32 = NDArray[np.float32]

#: Shares of the network's products on the device; 1 is the whole network.
PLACES: Final = (0.25, 0.5, 0.75, 1.0)
#: Bits of depthwise layers and of all others.
SCHEMES: Final = (*((bits, bits) for bits in range(3, 9)), *((8, bits) for bits in (4, 5, 6)))
QUICK_PHOTOS: Final = 48
QUICK_PLACES: Final = (0.5, 1.0)
QUICK_SCHEMES: Final = ((4, 4), (8, 4))
ROUNDINGS: Final = ("plain", "nearest", "equalized", "gptq", "equalized, gptq", "even")
#: Images of Fashion-MNIST for calibration and for evaluation.
CALIBRATING, EVALUATED = 1000, 4000
QUICK_IMAGES: Final = 100


@dataclass
class Network:
    """A calibrated network, its cuts by share, and the tails behind them (None at the output).

    ``grids``: by rounding, layer and bits.
    """

    network: layers.Network
    calibration: Calibration
    grids: Mapping[tuple[str, str, int], Rounded]
    tensors: Mapping[float, str]
    tails: Mapping[float, evaluation.Tail | None]
    run: evaluation.Tail

    def rounded(self) -> Calibration:
        """Return the calibration with weights rounded by gptq."""
        gptq = {(out, bits): grid for (kind, out, bits), grid in self.grids.items() if kind == "gptq"}
        return replace(self.calibration, roundings=gptq)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = photo_parser(__doc__ or "")
    fashion.add_option(parser)
    parser.add_argument("--networks", default="lite0,cnn", help="comma-separated: lite0, cnn")
    options = parser.parse_args(arguments)
    schemes, places = (QUICK_SCHEMES, QUICK_PLACES) if options.quick else (SCHEMES, PLACES)
    rows, notes = [], []
    for name in options.networks.split(","):
        model, calibrating, held = _case(name, options)
        own = schemes if name == "lite0" else [scheme for scheme in schemes if scheme[0] == scheme[1]]
        widths = sorted({bits for scheme in own for bits in scheme})
        ready = prepare(model, calibrating, places, widths)
        scaled, pairs = equalize(model, ready, calibrating, widths)
        rows += [{"network": name, **row} for row in measure(ready, scaled, held, own)]
        notes.append(
            f"{name}: {len(calibrating)} samples calibrate, the figures come from {len(held)} others; {pairs} pairs "
            "of layers are equalized"
        )
    report("Rounding of weights", rows, summary(rows), options.json, notes)


def _case(name: str, options: argparse.Namespace) -> tuple[onnx.ModelProto, Samples, Samples]:
    """Return the model ``name``, its calibration samples, and its evaluation samples."""
    if name == "lite0":
        photos = open_samples(
            options.images, models.LITE0_PREPROCESS, options.labels, QUICK_PHOTOS if options.quick else None
        )
        if photos.classes is None:
            raise errors.UsageError(
                "rounding needs labels; pass --labels with a CSV of file name and class index", reason="no-labels"
            )
        return lite0(), photos[::2], photos[1::2]
    if name not in fashion.NETWORKS:
        raise errors.UsageError(f"unknown network {name!r}; choose lite0, cnn or both", reason="unknown-network")
    data, few = fashion.load(options.fashion), QUICK_IMAGES if options.quick else None
    return (
        fashion.network(name, data),
        data.calibration.samples(few or CALIBRATING),
        data.test.samples(few or EVALUATED),
    )


def lite0() -> onnx.ModelProto:
    return models.load("lite0")


def prepare(model: onnx.ModelProto, samples: Samples, places: Sequence[float], widths: Sequence[int]) -> Network:
    """Calibrate ``model`` with ``samples`` and round its weights at ``widths`` by every method without equalization."""
    network = layers.build(Graph.of(model))
    calibration = creation.calibrate(model, network, samples)
    output = network.graph.output
    made = _nearest("nearest", network, calibration, widths)
    made |= _nearest("plain", network, replace(calibration, means={}), widths)
    for layer, each in grids(model, network, calibration, output, samples, quiet, widths, widths):
        even = each[: len(widths)] if groups(layer) > 1 else each[len(widths) :]
        made |= {("gptq", layer.out, bits): grid for bits, grid in zip(widths, each, strict=False)}
        made |= {("even", layer.out, bits): grid for bits, grid in zip(widths, even, strict=True)}
    return _cut_up(model, network, calibration, made, {share: _cut(network, share) for share in places})


def equalize(model: onnx.ModelProto, ready: Network, samples: Samples, widths: Sequence[int]) -> tuple[Network, int]:
    """Equalize ``model``, calibrate it again and round it; return it and the number of scaled pairs of layers."""
    scaled, network, pairs = equalization.equalized(model)
    calibration = creation.calibrate(scaled, network, samples)
    made = _nearest("equalized", network, calibration, widths)
    for layer, each in grids(scaled, network, calibration, network.graph.output, samples, quiet, widths):
        made |= {("equalized, gptq", layer.out, bits): grid for bits, grid in zip(widths, each, strict=True)}
    return _cut_up(scaled, network, calibration, made, ready.tensors), pairs


def _nearest(
    kind: str, network: layers.Network, calibration: Calibration, widths: Sequence[int]
) -> dict[tuple[str, str, int], Rounded]:
    lowered = lower(network, calibration, network.graph.output, 8)
    made: dict[tuple[str, str, int], Rounded] = {}
    for layer in network.weighted(network.graph.output):
        scale = lowered.header.tensors[lowered.index[layer.inputs[0]]].scale
        made |= {(kind, layer.out, bits): calibration.rounded(layer, bits, scale) for bits in widths}
    return made


def _cut_up(
    model: onnx.ModelProto,
    network: layers.Network,
    calibration: Calibration,
    made: Mapping[tuple[str, str, int], Rounded],
    ends: Mapping[float, str],
) -> Network:
    output = network.graph.output
    tails = {
        share: None if t == output else tail_runs.tail_runner(model, network.graph, t) for share, t in ends.items()
    }
    return Network(network, calibration, made, ends, tails, tail_runs.runner(model))


def _cut(network: layers.Network, share: float) -> str:
    """Return the tensor of the offered cut whose head is nearest to ``share`` of the products."""
    total = network.macs(network.layers)
    offered = [p.cut.tensor for p in cuts.find(network) if p.offered]
    return min(offered, key=lambda tensor: abs(network.macs(network.weighted(tensor)) / total - share))


def measure(
    ready: Network, scaled: Network, samples: Samples, schemes: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Return a row for each cut, pair of bits and rounding, on ``samples``. ``scaled``: the result of `equalize`."""
    outputs = evaluation.float_outputs(ready.run, samples)
    rows = []
    for depthwise, rest in schemes:
        bits = {
            la.out: depthwise if groups(la) > 1 else rest for la in ready.network.weighted(ready.network.graph.output)
        }
        for rounding in ROUNDINGS:
            own = scaled if rounding.startswith("equalized") else ready
            chosen = {out: own.grids[rounding, out, b] for out, b in bits.items()}
            for share, logits in _logits(own, chosen, samples).items():
                place = {"cut %": round(100 * share), "depthwise": depthwise, "others": rest, "rounding": rounding}
                coded = _coded(chosen, ready.network.weighted(ready.tensors[share]))
                rows.append({**place, "weights %": coded, **_worth(outputs, logits, samples)})
    return sorted(rows, key=lambda row: (row["cut %"], row["depthwise"] != row["others"], row["others"]))


def _logits(ready: Network, chosen: Mapping[str, Rounded], samples: Samples) -> dict[float, F32]:
    """Return the logits [n, classes] for each cut, from the integer head with ``chosen`` weights and the float tail."""
    bits = {out: width(grid.levels) for out, grid in chosen.items()}
    calibration = replace(ready.calibration, roundings={(out, bits[out]): grid for out, grid in chosen.items()})
    lowered = lower(ready.network, calibration, ready.network.graph.output, bits)
    head = Head(seg.parse(lowered.segment()), check_golden=False)
    taps = {share: lowered.index[tensor] for share, tensor in ready.tensors.items()}
    each = [head.taps(samples.codes(i, head.input), list(taps.values())) for i in range(len(samples))]
    found = {}
    for place, (share, tap) in enumerate(taps.items()):
        tensor = head.header.tensors[tap]
        arrive = evaluation.arrival(evaluation.quantization_of(tensor), None)
        codes = np.stack([one[place] for one in each])
        found[share] = evaluation.output_of(ready.tails[share], codes, arrive)
    return found


def _coded(chosen: Mapping[str, Rounded], held: Sequence[Weighted]) -> float:
    """Return the size of the weights by their entropy, in per cent of float32."""
    bits = sum(la.weight.size * entropy(chosen[la.out].levels) for la in held)
    return 100.0 * bits / (32 * sum(la.weight.size for la in held))


def _worth(outputs: F32, logits: F32, samples: Samples) -> dict[str, float]:
    assert samples.classes is not None
    found = evaluation.top1(logits)
    drop, low, high, agreement = evaluation.compare(evaluation.top1(outputs), found, samples.classes)
    return {
        "noise": float(((logits - outputs) ** 2).mean()),
        "top1": 100.0 * float((found == samples.classes).mean()),
        "drop": drop,
        "low": low,
        "high": high,
        "agree": 100.0 * agreement,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return drop and noise of whole networks at uniform bits."""
    found: dict[str, float] = {}
    for row in rows:
        if row["cut %"] == 100 and row["depthwise"] == row["others"]:
            key = f"{row['network']}.{row['rounding'].replace(', ', '_')}{row['others']}"
            found |= {f"{key}.drop_points": row["drop"], f"{key}.noise": row["noise"]}
    return found


if __name__ == "__main__":
    main()
