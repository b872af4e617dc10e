"""Payload of a plan relative to float32, and its measured accuracy drop on data unseen by calibration.

    python -m benchmarks.payload [--networks mlp,cnn,vit,minilm,lite0] [--rows fixed,own] [--images DIR] [--json OUT]
                                 [--quick]

Payload = (segment file + one frame at the cut) / (float32 weights + float32 tensor of the same cut). The file counts in
full: header, scales, biases, tables; so does the frame. If the network ends on the device, only the segment is sent,
and the float32 side omits the output tensor too. Float32 weights are those of the products, without biases and batch
norms. The cuts are those whose heads are nearest to 25, 50, 75 and 100 % of the network's products, except the input.

Rows:

- exact: the fewest bytes within a noise budget, over every layer's grids and the codecs of the cut.
- closed form, uniform: QPART's closed form and uniform bits at the same budget.
- pruned: float weights pruned by magnitude to the same goal (non-zeros as float32, and the cheaper of a bitmap or
  byte gaps).
- float32: no quantization.

The budget is the greatest whose head meets the goal with its expected interval, on calibration samples that rounding
has not seen. With too few evaluation samples to use the full goal, that head is a separate row. The others then use the
least budget that meets the payload goal, because little noise is best if its effect is not measurable. With too few
samples for a useful interval (photographs), rows for other payloads form the frontier. Agreement with the float model
and noise on the logits complement the drop.

Photographs and news are cross-fitted, so that all samples are evaluated. The samples that one fold evaluates calibrate
the other, as many as the first has. A row's bytes are those of the larger fold; its drop covers both. Drops are points
of top-1 on the evaluation samples, with their paired 95 % interval, from integer heads, real frames and float tails.

The rows "own" are plans that a server makes from the network's bundle for a board over a link (predicted, see
`what_if`): the best split, everything on the server, and everything on the device. The server's choice is marked. Its
accuracy bound includes the interval, so it spends more bytes than the rows at fixed cuts. A mode that cannot meet the
goal reports its limit.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import accuracy_bound, fashion, models, news
from benchmarks.report import parser, quiet, report, write
from benchmarks.what_if import BOARD, LINK, heads_ms
from calibration.accuracy import codec_search, evaluation, tail_runs
from calibration.accuracy.sensitivity import Probe
from calibration.bundle import creation
from calibration.bundle.bundle import Bundle
from calibration.importing import cuts
from calibration.importing.graph import Graph
from calibration.lowering import layers
from calibration.lowering.layers import Embed, Weighted
from calibration.lowering.lower import Calibration, lower
from calibration.rounding import weight_substitution
from calibration.rounding.quantizer import Rounded, file_bytes, width
from calibration.rounding.rounder import RATES, SEEN, UNSEEN, WIDTHS, grids
from calibration.samples.samples import Samples, open_samples
from calibration.statistics import activations
from calibration.statistics.activations import Quantization
from calibration.statistics.clipping import Histogram
from edge_server.planner import Pick, Query, Table, allocation, choose, verify_allocation
from edge_server.planning.pattern_tables import build_table
from edge_server.planning.plan_message import mean_bits
from splitedge import codec, errors
from splitedge.head import segment as seg
from splitedge.head.executor import Head
from splitedge.protocol import frames
from splitedge.protocol.messages import Codec, Demand

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

TITLE: Final = "Payload against float32, and what it costs"
ROWS: Final = ("fixed", "own")
SHARES: Final = (0.25, 0.5, 0.75, 1.0)
#: A narrower cut may be this much further from the requested share of products.
NEAR: Final = 0.05
#: Row for few samples: the fewest bytes with an expected drop within the goal. The other row spends all allowed bytes.
FEWEST: Final = "exact, fewest bytes"
#: Maximum drop with ``--quick`` for Fashion-MNIST, in points; its few samples cannot resolve less.
QUICK_GOAL: Final = 2.0
COUNTED: Final = 256
#: Frames whose bytes are counted.
SENT: Final = 64
#: Halvings of the range of budgets, in the logarithm.
STEPS: Final = 8
#: Share of the allowed bytes to spend. Predicted segments are within 0.1 %, the mean frame of other samples within 2 %.
SPARE: Final = 0.995
#: Payloads, in per cent, of the frontier.
FRONTIER: Final = (8.0, 10.0, 12.5, 20.0, 25.0)
#: Minimum evaluation samples to apply a goal to the interval's upper end, and to let a plan use the full goal.
ENOUGH: Final = 1000
MANY: Final = 10_000
NOTES: Final = (
    f"own: the server's plans for a {BOARD} over {LINK.uplink_mbps:g} Mbit/s up, {LINK.downlink_mbps:g} down and a "
    f"round trip of {LINK.rtt_ms:g} ms",
)
#: Standard deviations by which a plan must expect to meet the goal: 99 % sure. At 90 %, one of a dozen cuts misses.
SURE: Final = 2.3263478740408408
TEMPERATURES: Final = tuple(float(t) for t in np.geomspace(0.5, 4.0, 31))


@dataclass(frozen=True)
class Case:
    """A network with its data. ``goal``: maximum drop in points of top-1. ``percent``: payload goal.

    ``calibration`` and ``evaluation`` share no sample. ``probed``: samples that measure the noise of each layer's
    grids. ``crossed``: evaluate the calibration samples too, in a second fold that an equal number of evaluation
    samples calibrates. ``together``: samples of all folds, if there is more than one.
    """

    name: str
    model: onnx.ModelProto
    calibration: Samples
    evaluation: Samples
    goal: float = 0.5
    percent: float = 10.0
    probed: int = 512
    crossed: bool = False
    together: int = 0


@dataclass(frozen=True)
class Point:
    """A layer's weights on one grid: their bytes in a segment, and the noise that they alone add to the logits."""

    rounded: Rounded
    size: int
    noise: float


@dataclass
class Tables:
    """All choices of a plan. ``points``: for each layer, `WIDTHS` per output channel, then `RATES` per layer."""

    case: Case
    network: layers.Network
    calibration: Calibration
    points: dict[str, list[Point]] = field(default_factory=dict)
    codecs: dict[str, list[tuple[Codec, float]]] = field(default_factory=dict)

    def layers(self, cut: str) -> list[Weighted]:
        return self.network.weighted(cut)


@dataclass(frozen=True)
class Plan:
    """A choice of points and codec. ``choice``: index of each layer's point. ``codec``: None at the output."""

    choice: tuple[int, ...]
    codec: Codec | None


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser((__doc__ or "").splitlines()[0])
    fashion.add_option(options)
    options.add_argument("--images", type=Path, help="folder of photographs for EfficientNet-Lite0")
    options.add_argument("--labels", help="CSV of file name and ImageNet class index; if omitted, labels.csv")
    options.add_argument("--minilm", type=Path, help="folder of MiniLM; if omitted, the installed package")
    options.add_argument("--news", type=Path, help="folder of BBC News, a folder per class; if omitted, the package")
    options.add_argument("--networks", default="mlp,cnn,vit", help="comma-separated: mlp, cnn, vit, minilm, lite0")
    options.add_argument(
        "--rows",
        default=",".join(ROWS),
        help="fixed: at fixed cuts; own: plans of a server, which need the network's whole bundle",
    )
    chosen = options.parse_args(arguments)
    wanted = chosen.rows.split(",")
    if not set(wanted) <= set(ROWS):
        raise errors.UsageError(
            f"unknown rows {chosen.rows!r}; choose from {' and '.join(ROWS)}", reason="unknown-rows"
        )
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    for name in chosen.networks.split(","):
        case = load(name, chosen)
        found = measure(case, (0.5, 1.0) if chosen.quick else SHARES) if "fixed" in wanted else []
        if chosen.json:  # an early result, because a large network's bundle is slow
            write(chosen.json, TITLE, rows + found, summary | summarize(case, found), notes(rows + found))
        found += planned(case) if "own" in wanted else []
        rows += found
        summary |= summarize(case, found)
    report(TITLE, rows, summary, chosen.json, notes(rows))


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return `NOTES`, and a note for each cut at which no plan is expected to meet the goal."""
    missed = [(row["network"], row["cut %"]) for row in rows if not row.get("expected", True)]
    return [
        *NOTES,
        *(
            f"{name}: at {cut} % of the products no plan is expected to meet the goal"
            for name, cut in dict.fromkeys(missed)
        ),
    ]


def load(name: str, options: argparse.Namespace) -> Case:
    """Load the network ``name`` and its data. Raises `errors.UsageError` for an unknown name and for missing data."""
    if name in fashion.NETWORKS:
        data = fashion.load(options.fashion)
        count = 1000 if options.quick else None
        goal = QUICK_GOAL if options.quick else 0.5
        return Case(name, fashion.network(name, data), data.calibration.samples(count), data.test.samples(count), goal)
    if name == "minilm":
        read = news.load(options.minilm, options.news)
        if options.quick:
            return Case(name, read.model, read.calibration, read.evaluation[::10], probed=48)
        return Case(name, read.model, read.calibration, read.evaluation, probed=48, crossed=True)
    if name != "lite0":
        raise errors.UsageError(
            f"unknown network {name!r}; choose from mlp, cnn, vit, minilm and lite0", reason="unknown-network"
        )
    if options.images is None:
        raise errors.UsageError(
            "EfficientNet-Lite0 needs photographs; pass their folder with --images", reason="no-photographs"
        )
    photos = open_samples(options.images, models.LITE0_PREPROCESS, options.labels, 48 if options.quick else None)
    if photos.classes is None:
        raise errors.UsageError(
            "payload needs labels; pass --labels with a CSV of file name and ImageNet class index", reason="no-labels"
        )
    model = models.load("lite0")
    return Case(name, model, photos[::2], photos[1::2], 1.0, 15.0, probed=32, crossed=True)


# --- tables -----------------------------------------------------------------------------------------------------------


def tabulate(case: Case, network: layers.Network, tensors: Sequence[str]) -> Tables:
    """Compute ranges, grids and noises of all layers up to the last of ``tensors``, and of the codecs at each."""
    seen, unseen = case.calibration[SEEN], case.calibration[UNSEEN]
    plain = creation.calibrate(case.model, network, seen[: 4 * COUNTED])
    tables = Tables(case, network, plain)
    deepest = max(tensors, key=lambda tensor: len(network.needed(tensor)))
    probe = Probe(case.model, network, unseen, case.probed)
    lowered = lower(network, plain, deepest, 8)
    for layer, made in grids(case.model, network, plain, deepest, seen, quiet, WIDTHS, RATES):
        noises = probe.layers([layer], _taking(made), range(len(made)), quiet)[0]
        pairs = zip(made, noises, strict=True)
        tables.points[layer.out] = [
            Point(rounded, size, noise) for (rounded, noise), size in zip(pairs, _sizes(layer, made), strict=True)
        ]
    inside = [tensor for tensor in tensors if tensor != network.graph.output]
    if not inside:
        return tables
    head, taps = Head(seg.parse(lowered.segment()), check_golden=False), [lowered.index[tensor] for tensor in inside]
    known = [evaluation.quantization_of(head.header.tensors[tap]) for tap in taps]
    values = codec_search.gather(head, taps, known, seen)
    histograms = _histograms(tables, inside, head, taps, known)
    for tensor, own, histogram in zip(inside, values, histograms, strict=True):
        tables.codecs[tensor] = _codecs(probe, tensor, histogram) + _families(probe, tensor, own)
    return tables


def _families(probe: Probe, tensor: str, values: F32) -> list[tuple[Codec, float]]:
    """Return the promising codecs that need full samples, not a histogram, with their noise on the logits."""
    fitted = [one.codec for one in codec_search.fit(values)]
    kept = [fitted[i] for i in codec_search.worth_a_run([codec_search.cost(made, values[:16]) for made in fitted])]
    return list(zip(kept, probe.cuts({tensor: kept}, quiet)[0], strict=True)) if kept else []


def _histograms(
    tables: Tables, tensors: Sequence[str], head: Head, taps: Sequence[int], known: Sequence[Quantization | None]
) -> list[Histogram]:
    """Return the histogram of each of ``tensors``, which are the head's ``taps`` with quantizations ``known``.

    If the input is not u8, the float model provides the values.
    """
    samples, network = tables.case.calibration[SEEN][:COUNTED], tables.network
    if network.source != "u8":
        counted = activations.count_values(tables.case.model, network.graph, tensors, samples, quiet)
        return [Histogram(*counted[tensor]) for tensor in tensors]
    counts = evaluation.count_codes(head, taps, samples, quiet)
    return [Histogram(q.values(), own) for q, own in zip(known, counts, strict=True) if q is not None]


def _sizes(layer: Weighted, made: Sequence[Rounded]) -> list[int]:
    """Return the bytes of a layer in a segment, for each grid."""
    wides = [*WIDTHS, *(width(rounded.levels) for rounded in made[len(WIDTHS) :])]
    return [file_bytes(rounded, wide, isinstance(layer, Embed)) for rounded, wide in zip(made, wides, strict=True)]


def _taking(made: Sequence[Rounded]) -> Callable[[Weighted, int], Rounded]:
    return lambda _, index: made[index]


def _codecs(probe: Probe, tensor: str, histogram: Histogram) -> list[tuple[Codec, float]]:
    """Return for each of `WIDTHS` the finalist codec with the least noise on the logits."""
    ranked = [evaluation.finalists(histogram, bits) for bits in WIDTHS]
    best: list[tuple[Codec, float]] = []
    for rank in range(max(map(len, ranked))):
        made = [
            histogram.fit(rules[min(rank, len(rules) - 1)], bits) for rules, bits in zip(ranked, WIDTHS, strict=True)
        ]
        tried = list(zip(made, probe.cuts({tensor: made}, quiet)[0], strict=True))
        best = [min(pair, key=lambda one: one[1]) for pair in zip(best or tried, tried, strict=True)]
    return best


def fixed_cuts(network: layers.Network, shares: Sequence[float]) -> dict[float, str]:
    """Return a tensor for each share of the products: the narrowest cut near that share, the input excepted.

    A cut is near if its head's share is within `NEAR` of the best distance.
    """
    reachable = [p.cut for p in cuts.find(network) if p.reachable and network.weighted(p.cut.tensor)]
    total = network.macs(network.layers)
    own = {c.tensor: network.macs(network.weighted(c.tensor)) / total for c in reachable}
    found = {}
    for share in shares:
        nearest_one = min(abs(mine - share) for mine in own.values())
        near = [cut for cut in reachable if abs(own[cut.tensor] - share) <= nearest_one + (NEAR if share < 1 else 0.0)]
        found[share] = min(near, key=lambda cut: math.prod(cut.shape)).tensor
    return found


# --- plans ------------------------------------------------------------------------------------------------------------


def exact(tables: Tables, cut: str, budget: float) -> Plan | None:
    """Return the planner's answer: the fewest bytes of segment and one frame within the noise ``budget``.

    Its verifier checks the answer. None if the budget is infeasible.
    """
    found = [
        allocation.WeightLayer(
            la.out,
            la.weight.size,
            tuple(p.noise for p in tables.points[la.out]),
            tuple(p.size for p in tables.points[la.out]),
        )
        for la in tables.layers(cut)
    ]
    codecs = [
        allocation.CutCodec(made.rule, made.bits, _frame(tables, cut, made), noise)
        for made, noise in tables.codecs.get(cut, [])
    ]
    try:
        answer = allocation.allocate(found, budget, codecs, frame_weight=1.0)
    except errors.InfeasibleError:
        return None
    if faults := verify_allocation(found, budget, codecs, 1.0, answer):
        raise SystemExit(f"the verifier found: {'; '.join(faults)}")
    made = None if answer.codec is None else tables.codecs[cut][answer.codec][0]
    return Plan(tuple(bits - WIDTHS[0] for bits in answer.bits), made)


def by_widths(
    tables: Tables, cut: str, budget: float, rule: Callable[..., allocation.Allocation | None]
) -> Plan | None:
    """Apply ``rule`` (closed form or uniform bits) to widths per output, with the codec of the fewest total bytes."""
    held = tables.layers(cut)
    found = [
        allocation.WeightLayer(
            layer.out, layer.weight.size, tuple(p.noise for p in tables.points[layer.out][: len(WIDTHS)])
        )
        for layer in held
    ]
    best: tuple[int, Plan] | None = None
    for made, noise in tables.codecs.get(cut, [(None, 0.0)]):
        answer = rule(found, budget - noise) if noise < budget else None
        if answer is None:
            continue
        choice = tuple(bits - WIDTHS[0] for bits in answer.bits)
        size = sum(tables.points[layer.out][i].size for layer, i in zip(held, choice, strict=True)) + _frame(
            tables, cut, made
        )
        if best is None or size < best[0]:
            best = size, Plan(choice, made)
    return None if best is None else best[1]


def _frame(tables: Tables, cut: str, made: Codec | None) -> int:
    """Return the bytes of one frame with its header; 0 at the output."""
    if made is None:
        return 0
    return frames.HEADER_BYTES + codec.expected_bytes(made, tables.network.graph.stored_shape(cut))


def build(tables: Tables, cut: str, plan: Plan) -> bytes:
    """Return the segment file of ``plan``."""
    chosen = {la.out: tables.points[la.out][i].rounded for la, i in zip(tables.layers(cut), plan.choice, strict=True)}
    bits = {
        out: width(rounded.levels) if i >= len(WIDTHS) else WIDTHS[i]
        for (out, rounded), i in zip(chosen.items(), plan.choice, strict=True)
    }
    roundings = {(out, bits[out]): rounded for out, rounded in chosen.items()}
    spec = tables.case.calibration.preprocess
    return lower(
        tables.network, replace(tables.calibration, roundings=roundings), cut, bits, tables.case.name, spec
    ).segment()


# --- measurement ------------------------------------------------------------------------------------------------------


def logits(tables: Tables, cut: str, segment: bytes, made: Codec | None, samples: Samples) -> F32:
    """Return the logits [n, classes] of the integer head, its frames and the float tail."""
    head = Head(seg.parse(segment), check_golden=False)
    last = cut == tables.network.graph.output
    run = None if last else tail_runs.tail_runner(tables.case.model, tables.network.graph, cut)
    return evaluation.split_outputs(head, made, run, samples).reshape(len(samples), -1)


def sent_bytes(tables: Tables, cut: str, segment: bytes, made: Codec | None, samples: Samples) -> int:
    """Return the bytes of a frame, or the mean over `SENT` samples if they vary."""
    if made is None or not made.tables:
        return _frame(tables, cut, made)
    head = Head(seg.parse(segment), check_golden=False)
    known = evaluation.quantization_of(head.output)
    some = [samples.codes(i, head.input) for i in range(min(SENT, len(samples)))]
    sizes = [len(evaluation.sent(known, made, head.run(x))) for x in some]
    return frames.HEADER_BYTES + math.ceil(sum(sizes) / len(sizes))


def floats(model: onnx.ModelProto, samples: Samples) -> F32:
    """Return the logits [n, classes] of the float ``model``."""
    return evaluation.float_outputs(tail_runs.runner(model), samples).reshape(len(samples), -1)


class Forecast:
    """Predicts the drop on other samples from the answers to samples with known classes.

    A changed answer costs the float model's probability of its own answer minus that of the new one. Lucky changes
    therefore count nothing, and changes between nearly equal answers cost little. A temperature first calibrates the
    probabilities.
    """

    def __init__(self, outputs: F32, classes: I64) -> None:
        self._chosen = evaluation.top1(outputs)
        scaled = [_softmax(outputs.reshape(len(outputs), -1) / t) for t in TEMPERATURES]
        loss = [-np.log(np.maximum(p[np.arange(len(p)), classes], 1e-12)).mean() for p in scaled]
        self._probability = scaled[int(np.argmin(loss))]

    def upper(self, found: F32, evaluated: int) -> float:
        """Return a 99 % bound on the upper end of the interval on ``evaluated`` other samples, in points.

        With few samples return the expected drop alone.
        """
        rows, answers = np.arange(len(found)), evaluation.top1(found)
        lost = self._probability[rows, self._chosen] - self._probability[rows, answers]
        drop = float(lost.mean())
        if evaluated < ENOUGH:
            return 100.0 * drop
        right = self._probability[rows, self._chosen] + self._probability[rows, answers]
        changed = float(np.where(answers == self._chosen, 0.0, right).mean()) + 1.0 / len(found)
        here = float(lost.var()) / len(found)
        return 100.0 * (
            drop + evaluation.Z95 * math.sqrt(changed / evaluated) + SURE * math.sqrt(changed / evaluated + here)
        )


def _softmax(x: F32) -> F32:
    made = np.exp(x - x.max(axis=1, keepdims=True))
    shares: F32 = made / made.sum(axis=1, keepdims=True)
    return shares


class Judge:
    """Evaluates plans at a cut on the calibration samples that rounding has not seen, and on the evaluation samples."""

    def __init__(self, tables: Tables) -> None:
        self.tables, self.case = tables, tables.case
        self.unseen = self.case.calibration[UNSEEN]
        assert self.unseen.classes is not None
        self.forecast = Forecast(floats(self.case.model, self.unseen), self.unseen.classes)
        self.outputs = floats(self.case.model, self.case.evaluation)

    def keeps(self, found: F32) -> bool:
        """Return whether answers to the unseen calibration samples predict that the goal is met."""
        return self.forecast.upper(found, self.case.together or len(self.case.evaluation)) <= self.case.goal

    def search(self, cut: str) -> tuple[float, bool]:
        """Return the greatest noise budget whose exact plan meets the goal, and True.

        If no plan meets it, return the least budget and False.
        """
        rows = [self.tables.points[la.out] for la in self.tables.layers(cut)]
        noises = [[p.noise for p in row] for row in rows] + [[n for _, n in self.tables.codecs.get(cut, [])] or [0.0]]
        low, high = (math.log(max(sum(pick(row) for row in noises), 1e-12) * 1.001) for pick in (min, max))
        met = False
        for _ in range(STEPS):
            middle = (low + high) / 2
            good = self._meets(cut, middle)
            low, high, met = (middle, high, True) if good else (low, middle, met)
        return math.exp(low), met or self._meets(cut, low)

    def _meets(self, cut: str, budget: float) -> bool:
        """Return whether the exact plan of a noise budget, given as its logarithm, meets the goal."""
        plan = exact(self.tables, cut, math.exp(budget))
        return plan is not None and self.keeps(self.answers(cut, plan, self.unseen))

    def spend(self, cut: str, known: Plan, percent: float) -> float:
        """Return the least noise budget whose exact plan takes at most ``percent`` of float32.

        ``known``: any plan of the cut, to measure the constant bytes.
        """
        other = len(build(self.tables, cut, known)) - self._coded(cut, known)
        most = SPARE * percent / 100 * self.whole(cut) - other
        low, high = math.log(1e-9), math.log(1e3)
        for _ in range(4 * STEPS):
            middle = (low + high) / 2
            plan = exact(self.tables, cut, math.exp(middle))
            small = plan is not None and self._coded(cut, plan) + _frame(self.tables, cut, plan.codec) <= most
            low, high = (low, middle) if small else (middle, high)
        return math.exp(high)

    def _coded(self, cut: str, plan: Plan) -> int:
        return sum(
            self.tables.points[la.out][i].size for la, i in zip(self.tables.layers(cut), plan.choice, strict=True)
        )

    def whole(self, cut: str) -> int:
        """Return the bytes of the float32 weights, and of the float32 tensor if it is sent."""
        network = self.tables.network
        tensor = 0 if cut == network.graph.output else 4 * math.prod(network.graph.stored_shape(cut))
        return 4 * sum(la.weight.size for la in self.tables.layers(cut)) + tensor

    def answers(self, cut: str, plan: Plan, samples: Samples) -> F32:
        return logits(self.tables, cut, build(self.tables, cut, plan), plan.codec, samples)


@dataclass(frozen=True)
class Found:
    """The result of a method at a cut: bytes of segment and frame, and the answers to the evaluation samples.

    ``expected``: false if the goal chose the budget, and no plan is expected to meet it.
    """

    method: str
    sizes: tuple[int, int]
    answers: F32
    detail: str
    expected: bool = True


@dataclass(frozen=True)
class Fold:
    """Results at each cut, by method.

    ``outputs``: the float model's, for the evaluation samples. ``whole``: float32 bytes of each cut.
    """

    case: Case
    outputs: F32
    whole: dict[str, int]
    found: dict[str, dict[str, Found]]


def row(folds: Sequence[Fold], share: float, cut: str, method: str) -> dict[str, Any]:
    """Return the row of ``method`` at ``cut`` over all ``folds``. Its bytes are those of the largest fold."""
    found = [fold.found[cut][method] for fold in folds]
    most = max(found, key=lambda one: sum(one.sizes))
    outputs, answers = np.concatenate([fold.outputs for fold in folds]), np.concatenate([one.answers for one in found])
    cases = [fold.case for fold in folds]
    made = _row(cases, outputs, answers, round(100 * share), method, most.sizes, folds[0].whole[cut], most.detail)
    return made | ({} if all(one.expected for one in found) else {"expected": False})


def _row(
    cases: Sequence[Case],
    outputs: F32,
    found: F32,
    cut: int | str,
    method: str,
    sizes: tuple[int, int],
    whole: int,
    detail: str,
) -> dict[str, Any]:
    """Return a row. ``sizes``: bytes of segment and frame; ``whole``: float32 bytes; ``outputs``: the float model's."""
    classes = np.concatenate([one.evaluation.classes for one in cases if one.evaluation.classes is not None])
    drop, low, high, same = evaluation.compare(evaluation.top1(outputs), evaluation.top1(found), classes)
    return {
        "network": cases[0].name,
        "cut %": cut,
        "method": method,
        "segment": sizes[0],
        "frame": sizes[1],
        "payload %": 100.0 * sum(sizes) / whole,
        "drop": drop,
        "low": low,
        "high": high,
        "agree": 100.0 * same,
        "noise": float(((found - outputs) ** 2).mean()),
        "samples": len(found),
        "bits": detail,
    }


def measure(case: Case, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Return all rows of a network at fixed cuts."""
    places = fixed_cuts(layers.build(Graph.of(case.model)), shares)
    distinct = list(dict.fromkeys(places.values()))
    folds = [measured(case, distinct)] if not case.crossed else _crossed(case, distinct)
    return [
        row(folds, share, cut, method)
        for share, cut in places.items()
        for method in folds[0].found[cut]
        if all(method in fold.found[cut] for fold in folds)
    ]


def _crossed(case: Case, distinct: Sequence[str]) -> list[Fold]:
    """Return both folds, each measured in a separate process."""
    case = replace(case, together=len(case.calibration) + len(case.evaluation))
    other = replace(case, calibration=case.evaluation[: len(case.calibration)], evaluation=case.calibration)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(measured, (case, other), (distinct, distinct)))


def measured(case: Case, distinct: Sequence[str]) -> Fold:
    """Measure all methods at the ``distinct`` cuts with the samples of ``case``."""
    judge = Judge(tabulate(case, layers.build(Graph.of(case.model)), distinct))
    found = {cut: at_cut(judge, cut) for cut in distinct}
    return Fold(case, judge.outputs, {cut: judge.whole(cut) for cut in distinct}, found)


def at_cut(judge: Judge, cut: str) -> dict[str, Found]:
    """Return the results at a cut, by method."""
    tables, samples = judge.tables, judge.case.evaluation
    budget, expected = judge.search(cut)
    plans = {"exact": exact(tables, cut, budget)}
    if len(samples) < MANY and (fewest := plans["exact"]) is not None:
        budget = judge.spend(cut, fewest, judge.case.percent)
        plans = {"exact": exact(tables, cut, budget), FEWEST: fewest}
        for percent in FRONTIER if len(samples) < ENOUGH else ():
            plans[f"exact, {percent:g} %"] = exact(tables, cut, judge.spend(cut, fewest, percent))
    plans |= {
        "closed form": by_widths(tables, cut, budget, allocation.closed_form),
        "uniform": by_widths(tables, cut, budget, allocation.uniform),
    }
    found = {}
    for method, plan in plans.items():
        if plan is None:
            continue
        segment = build(tables, cut, plan)
        answers = logits(tables, cut, segment, plan.codec, samples)
        sizes = len(segment), sent_bytes(tables, cut, segment, plan.codec, samples)
        found[method] = Found(
            method, sizes, answers, _detail(tables, cut, plan), expected or (FEWEST in plans and method != FEWEST)
        )
    weights = 4 * sum(la.weight.size for la in tables.layers(cut))
    plain = Found("float32", (weights, judge.whole(cut) - weights), judge.outputs, "")
    return found | {"pruned": pruned(judge, cut), "float32": plain}


def _detail(tables: Tables, cut: str, plan: Plan) -> str:
    """Return the bits per weight of each layer, and the frame's codec."""
    found = [tables.points[la.out][i] for la, i in zip(tables.layers(cut), plan.choice, strict=True)]
    bits = " ".join(f"{8 * p.size / p.rounded.levels.size:.1f}" for p in found)
    if plan.codec is None:
        return bits
    return f"{bits} | {plan.codec.rule}" if plan.codec.tables else f"{bits} | {plan.codec.bits} {plan.codec.rule}"


# --- the planner's own ------------------------------------------------------------------------------------------------


def planned(case: Case) -> list[dict[str, Any]]:
    """Return rows of a server's best plan of each mode that meets the goal, for the board and link of `what_if`."""
    with tempfile.TemporaryDirectory() as folder:
        made = accuracy_bound.calibrated(case.name, lambda: case.model, case.calibration, Path(folder))
        made.accuracy = made.accuracy.promising(len(case.evaluation))
        table, outputs = build_table(made), floats(case.model, case.evaluation)
        heads = heads_ms([made.header(option.cut.index) for option in table.options])
        picks = {mode: _pick(table, heads, case.goal, mode) for mode in ("any", "split", "server", "device")}
        best, rows = picks.pop("any"), []
        for mode, pick in picks.items():
            if isinstance(pick, Pick):
                rows.append(_planned(case, made, table, pick, outputs, f"{mode}{', chosen' if pick == best else ''}"))
            else:
                rows.append(_refused(case, mode, str(pick)))
        return rows


def _pick(table: Table, head_ms: Sequence[float], goal: float, mode: Any) -> Pick | errors.InfeasibleError:
    try:
        return choose(table, Query(Demand(max_drop_points=goal, mode=mode), LINK, tuple(head_ms)))
    except errors.InfeasibleError as error:
        return error


def _refused(case: Case, mode: str, why: str) -> dict[str, Any]:
    numbers = ("segment", "frame", "payload %", "drop", "low", "high", "agree", "noise")
    return {
        "network": case.name,
        "cut %": "own",
        "method": mode,
        **dict.fromkeys(numbers),
        "samples": len(case.evaluation),
        "bits": why,
    }


def _planned(case: Case, made: Bundle, table: Table, pick: Pick, outputs: F32, method: str) -> dict[str, Any]:
    plan = accuracy_bound.plan_of(table, pick.option, pick.pattern, pick.codec)
    cut, option, bits = made.cuts[plan[0]], table.options[pick.option], plan[1]
    size = len(made.segment(cut.index, dict(zip(made.weight_layers(cut.index), bits, strict=True))))
    weights, tensor = 4 * sum(la.weights for la in option.layers), 0 if plan[2] is None else 4 * math.prod(cut.shape)
    found = accuracy_bound.outputs(made, plan, case.evaluation).reshape(len(case.evaluation), -1)
    detail = f"after {cut.layer}, {mean_bits(option.layers, bits):.1f}" + (
        f" | {plan[2][1]} {plan[2][0]}" if plan[2] else ""
    )
    return _row([case], outputs, found, "own", method, (size, pick.payload_bytes), weights + tensor, detail)


# --- pruning ----------------------------------------------------------------------------------------------------------


def pruned(judge: Judge, cut: str) -> Found:
    """Prune the float head: set as many of its least weights to 0 as the goal allows; the tensor stays float32."""
    tables = judge.tables
    held = tables.layers(cut)
    sizes = np.sort(np.concatenate([np.abs(la.weight).reshape(-1) for la in held]))

    def answers(zeros: int, samples: Samples) -> tuple[F32, int]:
        least = sizes[zeros] if zeros < len(sizes) else np.inf
        kept = {la.out: np.where(np.abs(la.weight) >= least, la.weight, np.float32(0)) for la in held}
        values = {k: v for la in held for k, v in weight_substitution.weights(la, kept[la.out], la.bias).items()}
        changed = weight_substitution.substitute_weights(judge.case.model, tables.network, held, values)
        return floats(changed, samples), sum(map(sparse_bytes, kept.values()))

    low, high = 0, len(sizes)
    while high - low > len(sizes) // 100:
        middle = (low + high) // 2
        good = judge.keeps(answers(middle, judge.unseen)[0])
        low, high = (middle, high) if good else (low, middle)
    found, size = answers(low, judge.case.evaluation)
    inside = cut != tables.network.graph.output
    tensor = 4 * math.prod(tables.network.graph.stored_shape(cut)) if inside else 0
    return Found("pruned", (size, tensor), found, f"{100 * low / len(sizes):.0f} % zeros")


def sparse_bytes(weight: F32) -> int:
    """Return the bytes of the non-zeros as float32, and of their positions in the cheaper form.

    The forms are a bitmap and gaps of one byte (255: skip on, no weight).
    """
    flat = np.flatnonzero(weight)
    gaps = np.diff(flat, prepend=-1) - 1
    return int(4 * len(flat) + min(-(-weight.size // 8), len(flat) + int((gaps // 255).sum())))


# --- figures ----------------------------------------------------------------------------------------------------------


def summarize(case: Case, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the worst figures over the fixed cuts, those of each cut, and those of the server's choice."""
    found: dict[str, float] = {}
    for method, ending in (
        ("exact", ""),
        ("closed form", "_closed_form"),
        ("uniform", "_uniform"),
        ("pruned", "_pruned"),
    ):
        own = [row for row in rows if row["method"] == method]
        if not own:
            continue
        found[f"{case.name}.payload_percent{ending}"] = max(row["payload %"] for row in own)
        if not ending:
            found[f"{case.name}.drop_points"] = max(row["drop"] for row in own)
            found[f"{case.name}.drop_points_high"] = max(row["high"] for row in own)
            for row in own:
                found[f"{case.name}.payload_percent_at_{row['cut %']}"] = row["payload %"]
                found[f"{case.name}.drop_points_high_at_{row['cut %']}"] = row["high"]
    for row in (row for row in rows if str(row["method"]).endswith("chosen")):
        found |= {
            f"{case.name}.payload_percent_chosen": row["payload %"],
            f"{case.name}.drop_points_high_chosen": row["high"],
        }
    return found


if __name__ == "__main__":
    main()
