"""Calibrates a model: measures it on the samples and writes its bundle."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from calibration import arrays
from calibration import effort as effort_levels
from calibration.accuracy import codec_search, metrics, sensitivity, tail_runs, trials
from calibration.accuracy import evaluation as accuracy
from calibration.accuracy.codec_search import Fitted
from calibration.accuracy.evaluation import OfferedCut
from calibration.accuracy.metrics import AccuracyModel
from calibration.accuracy.sensitivity import Probe, enough, fit
from calibration.accuracy.tail_runs import runner
from calibration.accuracy.trials import MeasuredCut, Trial
from calibration.bundle.bundle import Bundle, picture_of
from calibration.bundle.cache import Cache, key, remembered, remembered_arrays
from calibration.bundle.manifest import (
    CODECS,
    FORMAT,
    MODEL,
    STATISTICS,
    TOKENIZER,
    LayerNoise,
    Listed,
    Manifest,
    Metric,
    write,
)
from calibration.bundle.requirements import (
    MetricChoice,
    check_classes,
    check_ids,
    check_output,
    check_shape,
    cut_places,
    metric_for,
)
from calibration.effort import Effort
from calibration.importing import cuts, joining, outputs, quantized
from calibration.importing.graph import Graph, short
from calibration.lowering import layers
from calibration.lowering.lower import Bits, Calibration, lower
from calibration.parallel import in_order
from calibration.rounding import packed_weights
from calibration.rounding.quantizer import Rounded, file_bytes
from calibration.rounding.rounder import EVEN, RATES, SEEN, UNSEEN, WIDTHS, Options, Rounding, round_layers
from calibration.samples.samples import Samples, evenly
from calibration.statistics import activations
from calibration.statistics.activations import Progress, Quantization
from calibration.statistics.clipping import Histogram
from splitedge import errors, tasks
from splitedge.head.executor import Head
from splitedge.head.preprocess import input_quantization
from splitedge.head.text import Tokenizer
from splitedge.protocol.messages import Cut, Detection, Output, OutputKind, Task
from splitedge.tasks import detection

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

#: Number of float answers from which the kind of the output is derived.
ANSWERS: Final = 16
#: Range of the output's codes, as a multiple of the observed range. Otherwise two clipped logits would tie for the
#: first place.
OUTPUT_ROOM: Final = 1.2
#: Reasons of a `errors.ModelError` that a head causes: a tensor inside that is not finite (an infinite mask), sums beyond
#: 32 bits, and the limits of agents.
ENDS_HEADS: Final = {"not-finite", "not-finite-at-8-bits", "overflow", "over-limits", "activations", "too-large"}
#: Greatest sum of the probabilities of classes below the output's codes, relative to the answer's.
UNREACHABLE: Final = 1e-4


def _quiet(phase: str, done: int, total: int) -> None:
    """Progress that is not shown."""


def create(
    path: Path,
    name: str,
    model: onnx.ModelProto,
    samples: Samples,
    labels: Sequence[str] = (),
    progress: Progress = _quiet,
    rounding: Rounding = "gptq",
    cache: Path | None = None,
    metric: MetricChoice = "auto",
    tokenizer: Tokenizer | None = None,
    output_kind: OutputKind | None = None,
    task: Task | None = None,
    effort: effort_levels.Level = "normal",
) -> Bundle:
    """Calibrate ``model`` with ``samples`` and write its bundle to ``path``, which must not exist.

    - ``model``: from `calibration.importing.importer.load`.
    - ``labels``: class names.
    - ``progress(phase, done, total)`` is called often.
    - ``rounding``: of weights. "gptq" minimizes the output error on the samples and loses much less below 8 bits
      (`calibration.rounding.rounder`).
    - ``cache``: a folder for the results of all phases, so that only changed parts are computed again and an interrupted
      calibration continues.
    - ``metric``: only "top1" uses the samples' classes.
    - ``tokenizer``: the tokenizer of the samples' texts, which agents use too.
    - ``output_kind``: as in `outputs.describe`. ``task``: what the outputs mean, for a model without classes.
    - ``effort``: how much is measured (`calibration.effort`).

    A model that ONNX Runtime answers and no integer head computes (`ENDS_HEADS`) gets a bundle with one offered cut, the
    input: the server runs it whole. The bundle names the reason among its unsupported operators.

    Raises `errors.ModelError`, `errors.InputError` (samples, classes or class names do not match the model),
    `errors.UsageError` (a metric that needs classes, without any) and `errors.StoreError` (the folder is not writable).
    """
    chosen = effort_levels.EFFORTS[effort]
    samples = samples.take(evenly(len(samples), chosen.samples)) if len(samples) > chosen.samples else samples
    network = layers.build(Graph.of(model))
    check_shape(network.graph, samples.preprocess)
    check_ids(network, samples)
    shapes = [part.shape for part in joining.joined(model)]
    bounds = detection.bounds(task, shapes) if isinstance(task, Detection) else {}
    model, answers = joining.balanced(model, _some_answers(model, samples), bounds)
    if shapes:
        network = layers.build(Graph.of(model))
    has_classes = bool(labels) or samples.classes is not None
    output = outputs.of_model(model, answers, output_kind, classes=has_classes, embedding=metric == "cosine", task=task)
    make = functools.partial(
        _create, path, name, model, samples, labels, progress, rounding, cache, metric, tokenizer, output, chosen
    )
    try:
        return make(network)
    except errors.ModelError as error:
        if error.data.get("reason") not in ENDS_HEADS or not network.layers or network.source == "i32":
            raise
        return make(network.whole(f"the server runs the model whole, because {str(error).partition(';')[0]}"))


def _create(
    path: Path,
    name: str,
    model: onnx.ModelProto,
    samples: Samples,
    labels: Sequence[str],
    progress: Progress,
    rounding: Rounding,
    cache: Path | None,
    metric: MetricChoice,
    tokenizer: Tokenizer | None,
    output: Output,
    effort: Effort,
    network: layers.Network,
) -> Bundle:
    """`create` with the layers of ``network``, for a model with this ``output``."""
    judged_by = metric_for(metric, samples, output)
    has_classes = bool(labels) or samples.classes is not None
    if judged_by != "top1":
        samples = samples.unlabelled()
    labels = labels if output.has_classes or output.task is not None else ()
    check_output(math.prod(output.computed))
    check_classes(tasks.classes(output) or len(labels), samples, labels)
    kept = None if cache is None else Cache(cache)
    ranked = judged_by in ("top1", "agreement") and has_classes
    places = cut_places(network)
    work = _Calibrator(
        model, network, places, samples, name, progress, rounding, judged_by, output, ranked, kept, effort
    )
    sites = work.sites()
    noises = work.layer_noises()
    accuracy_model, tried = work.accuracy_model(sites, noises)
    top1 = None if samples.classes is None else 100.0 * float((work.answers == samples.classes).mean())
    stats: dict[str, NDArray[np.generic]] = {f"mean/{t}": m for t, m in work.calibration.means.items()}
    stats |= {f"counts/{site.spot.index}": site.histogram.counts for site in sites}
    stats |= {f"values/{site.spot.index}": site.histogram.values for site in sites if site.spot.quantization is None}
    cut_noises = [site.noise.apart() for site in sites]
    manifest = Manifest(
        FORMAT,
        name,
        judged_by,
        list(labels),
        len(samples),
        samples.preprocess,
        [Listed(p.cut, p.reachable, p.reason) for p in work.places],
        cuts.unsupported(network),
        {t: (q.scale, q.zero_point) for t, q in work.calibration.quantizations.items()},
        list(noises.values()),
        [known for known, _ in cut_noises],
        work.other_bytes(noises),
        tried,
        accuracy_model,
        work.tail_ms(),
        {},
        output,
        top1,
        None if tokenizer is None else tokenizer.reference(),
        {known.cut: named for known, named in cut_noises if named},
    )
    codecs = {
        f"{site.spot.index}/{rule}/{bits}": made for site in sites for (rule, bits), made in site.histogram.kept.items()
    }
    files = {
        MODEL: model.SerializeToString(),
        STATISTICS: arrays.save(stats),
        CODECS: msgspec.json.encode(codecs),
    }
    if tokenizer is not None:
        files[TOKENIZER] = tokenizer.data
    if work.calibration.roundings:
        files[packed_weights.FILE] = packed_weights.save(work.calibration.roundings)
    write(path, manifest, files)
    if kept:
        kept.prune()
    return Bundle.open(path)


class _Calibrator:
    """The measurements of a model on its samples, which form a bundle."""

    def __init__(
        self,
        model: onnx.ModelProto,
        network: layers.Network,
        places: list[cuts.Place],
        samples: Samples,
        name: str,
        progress: Progress,
        rounding: Rounding,
        metric: Metric,
        output: Output,
        ranked: bool,
        cache: Cache | None,
        effort: Effort,
    ) -> None:
        self.model, self.network, self.places, self.samples = model, network, places, samples
        self._name, self._progress, self._cache = name, progress, cache
        self._metric, self._output = metric, output
        self._digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        self._ranked, self._effort = ranked, effort
        self._about = key(
            "calibration",
            self._digest,
            samples.digest() if cache else b"",
            f"{rounding} {metric} {ranked} {effort} {len(network.layers)}",
            msgspec.json.encode(output),
        )
        self.calibration = self._calibrated()
        deepest = [place.cut.tensor for place in places if place.reachable][-1]
        if rounding == "plain":
            self.calibration.means = {}  # without mean inputs, biases are not corrected
        if rounding == "gptq":
            self.calibration.roundings = round_layers(
                model,
                network,
                self.calibration,
                deepest,
                samples[SEEN],
                progress,
                options=Options(sweeps=effort.sweeps),
                rates=RATES,
                cache=cache,
            )
        self.weighted = network.weighted(deepest)
        self._deepest = deepest
        self.outputs: F32 = self._kept(
            "answers", lambda: {"": accuracy.float_outputs(runner(model, threads=1), samples, progress)}
        )[""]
        self.answers = accuracy.top1(self.outputs)
        self._enough = effort.noise * enough(network, self.outputs[0].size)
        #: Samples for the accuracy bound: those that rounding did not use, because it shows too little noise on the
        #: others.
        self.judged = UNSEEN if self.calibration.roundings and len(samples) > 1 else slice(None)

    def _kept(self, phase: str, make: Callable[[], Mapping[str, NDArray[Any]]]) -> Mapping[str, NDArray[Any]]:
        """The arrays of ``phase``, from the cache or from ``make``."""
        return remembered_arrays(self._cache, key(phase, self._about), make)

    def _calibrated(self) -> Calibration:
        def make() -> dict[str, NDArray[Any]]:
            made = calibrate(self.model, self.network, self.samples, self._progress, ranked=self._ranked)
            codes = {f"codes {t}": np.array([q.scale, q.zero_point]) for t, q in made.quantizations.items()}
            return codes | {f"mean {t}": mean for t, mean in made.means.items()}

        kept = self._kept("ranges", make)
        quantizations, means = (
            {name.removeprefix(kind): value for name, value in kept.items() if name.startswith(kind)}
            for kind in ("codes ", "mean ")
        )
        return Calibration({t: Quantization(float(q[0]), int(q[1])) for t, q in quantizations.items()}, means)

    def head(self, cut: str, bits: Bits) -> tuple[Head, dict[str, int]]:
        """A head, and the index of its tensor for each ONNX tensor."""
        made = lower(self.network, self.calibration, cut, bits, self._name, self.samples.preprocess)
        return made.head(), made.index

    def sites(self) -> list[MeasuredCut]:
        """The measurements at the offered cuts, with the 8-bit head."""
        offered = [p.cut for p in self.places if p.offered]
        head, index = self.head(offered[-1].tensor, 8)
        taps = [index[cut.tensor] for cut in offered]
        spots = [
            tail_runs.spot(self.model, self.network, head.header.tensors[t], cut)
            for cut, t in zip(offered, taps, strict=True)
        ]
        codes = self.calibration.quantizations.get(self.network.graph.output)
        if self._ranked and codes is not None and spots[-1].load is None and spots[-1].quantization == codes:
            spots[-1] = replace(spots[-1], least=float(codes.values()[0]))
        histograms = self._histograms(head, taps, spots)
        judged, outputs = self.samples[self.judged], self.outputs[self.judged]
        fitted = self._families(head, taps, spots)
        macs = self.network.macs(self.network.layers)
        measured = spots, histograms, head, taps, fitted, judged, outputs, self._enough, macs
        share = 1.0 if self._effort.exact else accuracy.SHARE
        found = accuracy.cut_noises(*measured, self._progress, self._cache, self._digest, share)
        for histogram, own, noise in zip(histograms, fitted, found, strict=True):
            known = {(one.rule, one.bits) for one in noise.codecs}
            histogram.keep({(one.rule, one.bits): one.codec for one in own if (one.rule, one.bits) in known})
        weights = [{la.out: la.weight.size for la in self.network.weighted(cut.tensor)} for cut in offered]
        return [MeasuredCut(*each) for each in zip(spots, histograms, found, weights, strict=True)]

    def _histograms(self, head: Head, taps: list[int], spots: Sequence[OfferedCut]) -> list[Histogram]:
        floats = [s.tensor for s in spots if s.quantization is None]
        coded = {s.tensor: tap for tap, s in zip(taps, spots, strict=True) if s.quantization is not None}

        def values() -> dict[str, NDArray[Any]]:
            found = activations.count_values(self.model, self.network.graph, floats, self.samples, self._progress)
            return {f"values {t}": v for t, (v, _) in found.items()} | {f"counts {t}": c for t, (_, c) in found.items()}

        def codes() -> dict[str, NDArray[Any]]:
            found = accuracy.count_codes(head, list(coded.values()), self.samples, self._progress)
            return dict(zip(coded, found, strict=True))

        real = self._kept("values", values) if floats else {}
        counts = self._kept("histograms", codes) if coded else {}
        pictures = [picture_of(p.cut, self.samples.preprocess) for p in self.places if p.offered]
        return [
            Histogram(real[f"values {s.tensor}"], real[f"counts {s.tensor}"])
            if s.quantization is None
            else Histogram(s.quantization.values(), counts[s.tensor], picture)
            for s, picture in zip(spots, pictures, strict=True)
        ]

    def _families(self, head: Head, taps: list[int], spots: Sequence[OfferedCut]) -> list[list[Fitted]]:
        """Codecs fitted to the tensor at each cut.

        There are none at the output, where nothing is sent, nor for an image, which uses JPEG.
        """
        self._progress("codecs of cuts", 0, len(spots))
        values = codec_search.gather(head, taps, [spot.quantization for spot in spots], self.samples[SEEN])
        pictures = {p.cut.index for p in self.places if picture_of(p.cut, self.samples.preprocess)}

        def fitted(place: int) -> list[Fitted]:
            spot, own = spots[place], values[place]
            if spot.load is None or spot.index in pictures:
                return []
            floats = spot.quantization is None
            make = functools.partial(codec_search.fit, own, floats=floats)
            return remembered(self._cache, key("codecs of a cut", own, str(floats)), list[Fitted], make)

        found = []
        for codecs in in_order(fitted, range(len(spots))):
            found.append(codecs)
            self._progress("codecs of cuts", len(found), len(spots))
        return found

    def layer_noises(self) -> dict[str, LayerNoise]:
        """The noise and size of each layer with weights, on each grid."""
        if not self.weighted:
            return {}
        head = lower(self.network, self.calibration, self._deepest, 8)

        def rounder(layer: layers.Weighted, bits: int) -> Rounded:
            return self.calibration.rounded(layer, bits, head.header.tensors[head.index[layer.inputs[0]]].scale)

        def sizes(layer: layers.Weighted) -> list[int]:
            embeds = isinstance(layer, layers.Embed)
            return [file_bytes(rounder(layer, grid), self.calibration.width(layer.out, grid), embeds) for grid in grids]

        grids = (*WIDTHS, *EVEN) if self.calibration.roundings else WIDTHS
        share = 1.0 if self._effort.exact else sensitivity.SHARE
        probe = Probe(self.model, self.network, self.samples[self.judged], self._enough, self._cache, share)
        found, n = probe.layers(self.weighted, rounder, grids, self._progress), len(WIDTHS)
        return {
            layer.out: LayerNoise(short(layer.name), layer.weight.size, fit(layer.out, noise[:n]), noise[n:], size)
            for layer, noise, size in zip(self.weighted, found, in_order(sizes, self.weighted), strict=True)
        }

    def accuracy_model(
        self, sites: Sequence[MeasuredCut], noises: dict[str, LayerNoise]
    ) -> tuple[AccuracyModel, list[Trial]]:
        """The accuracy model, fitted to trials of whole heads.

        Its noise is the sum of the parts' noises, which is the value that a planner knows.
        """
        judged, outputs = self.samples[self.judged], self.outputs[self.judged]
        step = -(-len(judged) // trials.most(math.prod(self.samples.preprocess.shape), outputs[0].size))
        judged, outputs = judged[::step], outputs[::step]
        metric = metrics.of(self._metric, self._output, judged.classes)
        found, deltas = trials.run(
            sites,
            {tensor: layer.noise for tensor, layer in noises.items()},
            metric.energy(outputs),
            lambda site, bits: self.head(site.spot.tensor, bits)[0],
            judged,
            outputs,
            metric.compare,
            self._progress,
            self._effort.trials,
            self._cache,
            self._about,
        )
        return metric.fit(outputs, deltas, [trial.predicted for trial in found]), found

    def other_bytes(self, noises: dict[str, LayerNoise]) -> dict[int, int]:
        """The segment size of each offered cut without its weights."""
        offered = [p.cut for p in self.places if p.offered]

        def other(cut: Cut) -> int:
            name = key("segment", self._about, self._name, cut.tensor)  # the header names the model
            return remembered(self._cache, name, int, lambda: measured(cut))

        def measured(cut: Cut) -> int:
            made = lower(self.network, self.calibration, cut.tensor, 8, self._name, self.samples.preprocess)
            weights = self.network.weighted(cut.tensor)
            return len(made.segment()) - sum(noises[la.out].coded_bytes[WIDTHS.index(8)] for la in weights)

        found = {}
        for cut, size in zip(offered, in_order(other, offered), strict=True):
            found[cut.index] = size
            self._progress("segments", len(found), len(offered))
        return found

    def tail_ms(self) -> dict[int, float]:
        """The time of the tail of each offered cut on this machine, in milliseconds."""
        offered = [p.cut.index for p in self.places if p.offered]
        name = key("times of tails", self._digest, f"{offered} {platform.node()} {os.cpu_count()}")
        return remembered(self._cache, name, dict[int, float], self._tail_ms)

    def _tail_ms(self) -> dict[int, float]:
        offered, found = [p.cut for p in self.places if p.offered], {}
        for cut in offered:
            found[cut.index] = tail_runs.tail_ms(self.model, self.network.graph, cut)
            self._progress("tails", len(found), len(offered))
        return found


def calibrate(
    model: onnx.ModelProto,
    network: layers.Network,
    samples: Samples,
    progress: Progress = _quiet,
    ranked: bool | None = None,
) -> Calibration:
    """The quantization of every tensor of a head, and the mean inputs of its layers; both empty for a transformer.

    A tensor that an int8 file codes keeps the file's scale and zero point.

    ``ranked``: the outputs are those of classes, so only the greatest matter. If omitted: the samples have classes.
    """
    if network.source != "u8":
        return Calibration({}, {})
    graph, reachable = network.graph, network.reachable()
    held = [la.out for la in network.layers if la.out in reachable and la.out in graph.shapes]
    tensors = [graph.input, *(tensor for tensor in held if network.dtype(tensor) == "u8")]
    fed = {la.inputs[0] for la in network.layers if isinstance(la, layers.Conv)}
    found = activations.collect_statistics(model, graph, tensors, samples, progress, fed)
    quantizations = {t: activations.quantization(*activations.best_range(s)) for t, s in found.items()}
    if graph.output in found:
        known = samples.classes is not None if ranked is None else ranked
        chosen = _output_quantization(network, found[graph.output], known)
        quantizations |= dict.fromkeys((graph.output, _holder(network)), chosen)
    taken = {t: Quantization(*code) for t, code in quantized.codes(model).items()}
    quantizations |= {t: taken[t] for t in quantizations.keys() & taken.keys()}
    if graph.output in quantizations and (own := taken.get(graph.output, taken.get(_holder(network)))) is not None:
        quantizations |= dict.fromkeys((graph.output, _holder(network)), own)
    if samples.preprocess.kind == "image":
        quantizations[graph.input] = Quantization(*input_quantization(samples.preprocess))
    return Calibration(quantizations, {t: s.mean.astype(np.float32) for t, s in found.items() if t in fed})


def _holder(network: layers.Network) -> str:
    """The tensor whose codes the output has: a reshaped or transposed tensor keeps the codes of its source.

    It is the output itself if another layer reads that tensor too.
    """
    name = network.graph.output
    while isinstance(layer := network.made.get(name), layers.Reshape | layers.Transpose):
        name = layer.inputs[0]
        if name not in network.made or sum(name in other.inputs for other in network.layers) > 1:
            return network.graph.output
    return name


def _output_quantization(network: layers.Network, statistics: activations.Statistics, ranked: bool) -> Quantization:
    """The quantization of the output.

    A value far below a sample's greatest never becomes the answer, but codes for it widen the step, so that the
    greatest values tie. For ``ranked`` outputs the range therefore starts below ``least_top`` by the greater of:

    - ln(classes / `UNREACHABLE`), so that the softmax of the values below the range is negligible;
    - the room of `OUTPUT_ROOM`, here of the distance between the samples' maxima.
    """
    output = network.graph.output
    if isinstance(network.made[_holder(network)], layers.Softmax):
        return activations.quantization(0.0, 1.0)
    lo, hi = OUTPUT_ROOM * statistics.lo, OUTPUT_ROOM * statistics.hi
    if ranked:
        room = (OUTPUT_ROOM - 1) * (statistics.hi - statistics.least_top)
        classes = math.prod(network.graph.shapes[output])
        lo = max(lo, statistics.least_top - max(room, math.log(classes / UNREACHABLE)))
    return activations.quantization(lo, hi)


def _some_answers(model: onnx.ModelProto, samples: Samples) -> F32:
    """The float model's answers to the first samples, [n, ...] in ONNX layout."""
    run = runner(model)
    return np.concatenate([run(samples[i][None]) for i in range(min(ANSWERS, len(samples)))])
