"""Top-1 of split EfficientNet-Lite0 against the float model: 8-bit head x clip rule x bits at the cut.

    python -m benchmarks.accuracy --images DIR --labels FILE --json OUT

Every other photograph calibrates (ranges, rules). All figures use the rest. Drops are points of top-1 with their paired
95 % interval (`calibration.accuracy.evaluation.paired_drop`). Agreement is the share of photographs with the float
model's top-1. The summary uses the rule with the least squared error of the logits on the calibration photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import models
from benchmarks.report import photo_parser, quiet, report
from calibration.accuracy import evaluation, tail_runs
from calibration.accuracy.codec_search import Fitted
from calibration.accuracy.evaluation import ACTIVATION_BITS, OfferedCut
from calibration.accuracy.sensitivity import enough
from calibration.bundle import creation
from calibration.importing import cuts
from calibration.importing.graph import Graph
from calibration.lowering import layers
from calibration.lowering.lower import lower
from calibration.samples.samples import Samples, open_samples
from calibration.statistics.clipping import CHANNEL, RULES, Histogram
from splitedge import errors
from splitedge.codec import packed_bytes
from splitedge.head import segment as seg
from splitedge.head.executor import Head

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

#: Positions in the list of offered cuts, as shares of its length. The summary uses the middle one.
PLACES: Final = (0.2, 0.4, 0.55, 0.85)
MIDDLE: Final = 0.55
SUMMARY_BITS: Final = 4
#: Limits of ``--quick``. It always includes the chosen rules.
QUICK_PHOTOS: Final = 48
QUICK_PLACES: Final = (MIDDLE,)
QUICK_RULES: Final = ("minmax", "aciq-laplace", "mse")


@dataclass
class Split:
    """The 8-bit head at some cuts, and their calibration results."""

    head: Head
    taps: list[int]
    places: Sequence[float]
    spots: list[OfferedCut]
    layers: list[str]
    histograms: list[Histogram]
    rules: dict[tuple[int, int], str]
    run: evaluation.Tail


def main(arguments: Sequence[str] | None = None) -> None:
    options = photo_parser(__doc__ or "").parse_args(arguments)
    photos = open_samples(
        options.images, models.LITE0_PREPROCESS, options.labels, QUICK_PHOTOS if options.quick else None
    )
    if photos.classes is None:
        raise errors.UsageError(
            "accuracy needs labels; pass --labels with a CSV of file name and class index", reason="no-labels"
        )
    calibrating, held = photos[::2], photos[1::2]
    split = prepare(calibrating, QUICK_PLACES if options.quick else PLACES)
    rows, summary = measure(split, held, QUICK_RULES if options.quick else RULES)
    notes = [f"{len(calibrating)} photographs calibrate, figures are of the {len(held)} others"]
    report("EfficientNet-Lite0 split, 8-bit head: top-1 by clip rule and bits", rows, summary, options.json, notes)


def prepare(samples: Samples, places: Sequence[float]) -> Split:
    """Calibrate Lite0 with ``samples`` and choose the clip rules of its cuts at ``places`` (see `PLACES`)."""
    model = models.load("lite0")
    network = layers.build(Graph.of(model))
    calibration = creation.calibrate(model, network, samples)
    offered = [p.cut for p in cuts.find(network) if p.offered and p.cut.kind == "inside"]
    chosen = [offered[round(share * (len(offered) - 1))] for share in places]
    lowered = lower(network, calibration, network.graph.output, 8, "lite0", samples.preprocess)
    head = Head(seg.parse(lowered.segment()))
    taps = [lowered.index[cut.tensor] for cut in chosen]
    spots = [tail_runs.spot(model, network, head.header.tensors[t], cut) for cut, t in zip(chosen, taps, strict=True)]
    counts = evaluation.count_codes(head, taps, samples, quiet)
    histograms = [Histogram(s.quantization.values(), c) for s, c in zip(spots, counts, strict=True) if s.quantization]
    run = tail_runs.runner(model)
    outputs = evaluation.float_outputs(run, samples)
    none: list[list[Fitted]] = [[] for _ in spots]
    count, macs = enough(network, outputs[0].size), network.macs(network.layers)
    found = evaluation.cut_noises(spots, histograms, head, taps, none, samples, outputs, count, macs, quiet)
    rules = {(noise.cut, codec.bits): codec.rule for noise in found for codec in noise.codecs}
    return Split(head, taps, places, spots, [cut.layer for cut in chosen], histograms, rules, run)


def measure(split: Split, samples: Samples, rules: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure ``rules`` and the chosen rules on ``samples``; return the rows and the summary."""
    classes = samples.classes
    assert classes is not None
    reference = evaluation.top1(evaluation.float_outputs(split.run, samples))
    each = [
        split.head.taps(samples.codes(i, split.head.input), [*split.taps, split.head.header.output])
        for i in range(len(samples))
    ]
    codes = [np.stack(of_cut) for of_cut in zip(*each, strict=True)]
    rows = [
        _row("none: float model", "", "", 0, reference, reference, classes, 0),
        _row("output: all on the device", "", "", 0, reference, evaluation.top1(codes[-1]), classes, 0),
    ]
    summary = {"lite0.float_top1": 100.0 * float((reference == classes).mean()), "lite0.head8_top1": rows[1]["top1"]}
    for place, spot in enumerate(split.spots):
        assert spot.load
        tail = spot.load()
        for rule in RULES:
            for bits in ACTIVATION_BITS:
                chosen = split.rules[spot.index, bits] == rule
                if not chosen and rule not in rules:
                    continue
                arrive = evaluation.arrival(spot.quantization, split.histograms[place].fit(rule, bits))
                found = evaluation.top1(evaluation.run_tail(tail, codes[place], arrive))
                rows.append(
                    _row(split.layers[place], rule, "*" if chosen else "", bits, reference, found, classes, spot.size)
                )
                if chosen and bits == SUMMARY_BITS and split.places[place] == MIDDLE:
                    summary |= _summary(rows[-1], len(samples))
    return rows, summary


def _row(
    layer: str, rule: str, chosen: str, bits: int, reference: I64, found: I64, classes: I64, size: int
) -> dict[str, Any]:
    drop, low, high, agreement = evaluation.compare(reference, found, classes)
    return {
        "cut after": layer,
        "rule": rule.removesuffix(CHANNEL),
        "ranges": "" if not rule else "channel" if rule.endswith(CHANNEL) else "tensor",
        "chosen": chosen,
        "bits": bits or "",
        "bytes": packed_bytes(size, bits),
        "top1": 100.0 * float((found == classes).mean()),
        "drop": drop,
        "low": low,
        "high": high,
        "agree": 100.0 * agreement,
    }


def _summary(row: dict[str, Any], samples: int) -> dict[str, float]:
    return {
        "lite0.split_top1": row["top1"],
        "lite0.drop_points": row["drop"],
        "lite0.drop_low": row["low"],
        "lite0.drop_high": row["high"],
        "lite0.agreement": row["agree"],
        "lite0.payload_bytes": float(row["bytes"]),
        "lite0.samples": float(samples),
    }


if __name__ == "__main__":
    main()
