"""Calibrates a model: measures it on the samples and writes its bundle."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from calibration import arrays
from calibration.accuracy import codec_search, cosine_model, drop_model, tail_runs, trials
from calibration.accuracy import evaluation as accuracy
from calibration.accuracy.codec_search import Fitted
from calibration.accuracy.evaluation import OfferedCut
from calibration.accuracy.sensitivity import Probe, enough, fit
from calibration.accuracy.tail_runs import runner
from calibration.accuracy.trials import MeasuredCut, Trial
from calibration.bundle.bundle import Bundle, picture_of
from calibration.bundle.cache import Cache, key, remembered
from calibration.bundle.manifest import (
    CODECS,
    FORMAT,
    MODEL,
    STATISTICS,
    TOKENIZER,
    AccuracyModel,
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
from calibration.importing import cuts, outputs
from calibration.importing.graph import Graph, short
from calibration.lowering import layers
from calibration.lowering.lower import Bits, Calibration, lower
from calibration.parallel import in_order
from calibration.rounding import packed_weights
from calibration.rounding.quantizer import Rounded, file_bytes
from calibration.rounding.rounder import EVEN, RATES, SEEN, UNSEEN, WIDTHS, Rounding, round_layers
from calibration.samples.samples import Samples
from calibration.statistics import activations
from calibration.statistics.activations import Progress, Quantization
from calibration.statistics.clipping import Histogram
from splitedge.head.executor import Head
from splitedge.head.preprocess import input_quantization
from splitedge.head.text import Tokenizer
from splitedge.protocol.messages import Cut, OutputKind

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

#: Number of float answers from which the kind of the output is derived.
ANSWERS: Final = 16
#: Range of the output's codes, as a multiple of the observed range. Otherwise two clipped logits would tie for the
#: first place.
OUTPUT_ROOM: Final = 1.2
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
) -> Bundle:
    """Calibrate ``model`` with ``samples`` and write its bundle to ``path``, which must not exist.

    - ``model``: from `calibration.importing.importer.load`.
    - ``labels``: class names.
    - ``progress(phase, done, total)`` is called often.
    - ``rounding``: of weights. "gptq" minimizes the output error on the samples and loses much less below 8 bits
      (`calibration.rounding.rounder`).
    - ``cache``: a folder for rounded layers and measurements, so that only changed parts are computed again.
    - ``metric``: only "top1" uses the samples' classes.
    - ``tokenizer``: the tokenizer of the samples' texts, which agents use too.
    - ``output_kind``: as in `outputs.describe`.

    Raises `errors.ModelError`, `errors.InputError` (samples, classes or class names do not match the model),
    `errors.UsageError` (a metric that needs classes, without any) and `errors.StoreError` (the folder is not writable).
    """
    network = layers.build(Graph.of(model))
    check_shape(network.graph, samples.preprocess)
    check_ids(network, samples)
    answers = _some_answers(model, samples)
    has_classes = bool(labels) or samples.classes is not None
    output = outputs.of_model(model, answers, output_kind, classes=has_classes, embedding=metric == "cosine")
    judged_by = metric_for(metric, samples, output)
    if judged_by != "top1":
        samples = Samples(samples.preprocess, samples.sources)
    labels = labels if output.has_classes else ()
    check_output(answers[0].size)
    check_classes(answers[0].size, samples, labels)
    kept = None if cache is None else Cache(cache)
    ranked = judged_by != "cosine" and has_classes
    work = _Calibrator(model, network, cut_places(network), samples, name, progress, rounding, judged_by, ranked, kept)
    sites = work.sites()
    noises = work.layer_noises()
    accuracy_model, tried = work.accuracy_model(sites, noises)
    top1 = None if samples.classes is None else 100.0 * float((work.answers == samples.classes).mean())
    stats: dict[str, NDArray[np.generic]] = {f"mean/{t}": m for t, m in work.calibration.means.items()}
    stats |= {f"counts/{site.spot.index}": site.histogram.counts for site in sites}
    stats |= {f"values/{site.spot.index}": site.histogram.values for site in sites if site.spot.quantization is None}
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
        [site.noise for site in sites],
        work.other_bytes(noises),
        tried,
        accuracy_model,
        work.tail_ms(),
        {},
        output,
        top1,
        None if tokenizer is None else tokenizer.reference(),
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
        ranked: bool,
        cache: Cache | None,
    ) -> None:
        self.model, self.network, self.places, self.samples = model, network, places, samples
        self._name, self._progress, self._metric, self._cache = name, progress, metric, cache
        self._digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        self._ranked = ranked
        self.calibration = calibrate(model, network, samples, progress, ranked=ranked)
        deepest = [place.cut.tensor for place in places if place.reachable][-1]
        if rounding == "plain":
            self.calibration.means = {}  # without mean inputs, biases are not corrected
        if rounding == "gptq":
            self.calibration.roundings = round_layers(
                model, network, self.calibration, deepest, samples[SEEN], progress, rates=RATES, cache=cache
            )
        self.weighted = network.weighted(deepest)
        self._deepest = deepest
        self.outputs = accuracy.float_outputs(runner(model), samples, progress)
        self.answers = accuracy.top1(self.outputs)
        self._enough = enough(network, self.outputs[0].size)
        #: Samples for the accuracy bound: those that rounding did not use, because it shows too little noise on the
        #: others.
        self.judged = UNSEEN if self.calibration.roundings and len(samples) > 1 else slice(None)

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
        found = accuracy.cut_noises(*measured, progress=self._progress, cache=self._cache, model=self._digest)
        for histogram, own, noise in zip(histograms, fitted, found, strict=True):
            known = {(one.rule, one.bits) for one in noise.codecs}
            histogram.keep({(one.rule, one.bits): one.codec for one in own if (one.rule, one.bits) in known})
        weights = [{la.out: la.weight.size for la in self.network.weighted(cut.tensor)} for cut in offered]
        return [MeasuredCut(*each) for each in zip(spots, histograms, found, weights, strict=True)]

    def _histograms(self, head: Head, taps: list[int], spots: Sequence[OfferedCut]) -> list[Histogram]:
        floats = [s.tensor for s in spots if s.quantization is None]
        values = activations.count_values(self.model, self.network.graph, floats, self.samples, self._progress)
        taken = [tap for tap, s in zip(taps, spots, strict=True) if s.quantization is not None]
        counts = iter(accuracy.count_codes(head, taken, self.samples, self._progress) if taken else [])
        pictures = [picture_of(p.cut, self.samples.preprocess) for p in self.places if p.offered]
        return [
            Histogram(*values[s.tensor])
            if s.quantization is None
            else Histogram(s.quantization.values(), next(counts), picture)
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
        probe = Probe(self.model, self.network, self.samples[self.judged], self._enough, self._cache)
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
        flat, cosine = outputs.reshape(len(outputs), -1), self._metric == "cosine"
        found, deltas = trials.run(
            sites,
            {tensor: layer.noise for tensor, layer in noises.items()},
            cosine_model.energy(flat) if cosine else drop_model.threshold(flat),
            lambda site, bits: self.head(site.spot.tensor, bits)[0],
            judged,
            outputs,
            cosine_model.compare if cosine else functools.partial(_compare_answers, judged.classes),
            self._progress,
        )
        each, noises_of = [delta.reshape(flat.shape) for delta in deltas], [trial.predicted for trial in found]
        if cosine:
            return cosine_model.fit(flat, each, noises_of), found
        return drop_model.fit(flat, judged.classes, each, noises_of), found

    def other_bytes(self, noises: dict[str, LayerNoise]) -> dict[int, int]:
        """The segment size of each offered cut without its weights."""
        offered = [p.cut for p in self.places if p.offered]

        def other(cut: Cut) -> int:
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
        return {p.cut.index: tail_runs.tail_ms(self.model, self.network.graph, p.cut) for p in self.places if p.offered}


def _compare_answers(classes: I64 | None, outputs: F32, found: F32) -> tuple[float, float, float, float]:
    return accuracy.compare(accuracy.top1(outputs), accuracy.top1(found), classes)


def calibrate(
    model: onnx.ModelProto,
    network: layers.Network,
    samples: Samples,
    progress: Progress = _quiet,
    ranked: bool | None = None,
) -> Calibration:
    """The quantization of every tensor of a head, and the mean inputs of its layers; both empty for a transformer.

    ``ranked``: the outputs are those of classes, so only the greatest matter. If omitted: the samples have classes.
    """
    if network.source != "u8":
        return Calibration({}, {})
    graph, reachable = network.graph, network.reachable()
    held = [la.out for la in network.layers if la.out in reachable and la.out in graph.shapes]
    tensors = [graph.input, *(tensor for tensor in held if network.dtype(tensor) == "u8")]
    found = activations.collect_statistics(model, graph, tensors, samples, progress)
    quantizations = {t: activations.quantization(*activations.best_range(s)) for t, s in found.items()}
    if graph.output in found:
        known = samples.classes is not None if ranked is None else ranked
        chosen = _output_quantization(network, found[graph.output], known)
        quantizations |= dict.fromkeys((graph.output, _holder(network)), chosen)
    if samples.preprocess.kind == "image":
        quantizations[graph.input] = Quantization(*input_quantization(samples.preprocess))
    fed = {la.inputs[0] for la in network.layers if isinstance(la, layers.Conv)}
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
