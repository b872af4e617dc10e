"""A bundle: a folder with a calibrated model, all that a server needs to plan, to build segments and to run tails.

    bundle.json         `Manifest`: cuts, codes of every tensor, noise of layers and codecs, the accuracy model, hashes of the other files
    model.onnx          the simplified float model
    stats.safetensors   ``counts/CUT`` [C, 256]: codes at each offered cut, or, of a transformer, of the values ``values/CUT`` [C, 256]; ``mean/TENSOR`` [C]: mean inputs of layers
    tokenizer.json      of a text model that was given one
    codecs.json         codecs at the cuts that no histogram tells (`calibration.accuracy.codec_search`), as ``CUT/RULE/BITS``
    names.json          class names that replace the manifest's, where they were set later: the one file that may change
    weights.safetensors the weights of each layer at 2 to 8 bits, where they were rounded with the samples' help (`calibration.rounding.packed_weights`)

Weights so rounded are stored and not made again: their making goes through BLAS, which rounds differently from machine to machine, and needs
matrices larger than they are. They take 35 bits a weight, about as much as the float model. The bundle is written whole or not at all, and never changed.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

import msgspec
import numpy as np
import onnx
import safetensors.numpy
from numpy.typing import NDArray

from calibration.accuracy import codec_search, cosine_model, drop_model, trials
from calibration.accuracy import evaluation as accuracy
from calibration.accuracy.codec_search import Fitted
from calibration.accuracy.evaluation import CutNoise, Spot, Tail
from calibration.accuracy.sensitivity import Probe, Sensitivity, enough, fit
from calibration.accuracy.trials import Site, Trial
from calibration.bundle.cache import Cache, key, remembered
from calibration.importing import cuts, outputs
from calibration.importing.graph import Graph, short, tail_model
from calibration.importing.sessions import session
from calibration.lowering import layers
from calibration.lowering.lower import Bits, Calibration, Lowered, lower
from calibration.parallel import in_order
from calibration.rounding import packed_weights
from calibration.rounding.quantizer import Rounded, file_bytes
from calibration.rounding.rounder import EVEN, RATES, SEEN, UNSEEN, WIDTHS, Rounding, round_layers
from calibration.samples.labels import NAMES
from calibration.samples.samples import Samples
from calibration.statistics import activations
from calibration.statistics.activations import Progress, Quantization
from calibration.statistics.clipping import Histogram
from splitedge import codec, errors
from splitedge.codec import jpeg
from splitedge.head import segment as seg
from splitedge.head.executor import Head
from splitedge.head.preprocess import input_quantization
from splitedge.head.text import Tokenizer
from splitedge.protocol.messages import Codec, Cut, ModelInfo, Output, OutputKind, Preprocess, TokenizerRef

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

FORMAT: Final = 6
CODECS: Final = "codecs.json"
TOKENIZER: Final = "tokenizer.json"
TAIL_RUNS: Final = 9
ANSWERS: Final = 16  # of the float model, which tell what its output is
OUTPUT_ROOM: Final = 1.2

#: What is lost: right answers, answers as the float model's, or the cosine to its outputs; "auto" is the first with labels, else the second.
Metric = Literal["auto", "top1", "agreement", "cosine"]
Model = drop_model.AccuracyModel | cosine_model.FidelityModel


class Listed(msgspec.Struct):
    """A cut, whether a head reaches it, and, unless it is offered, why not."""

    cut: Cut
    reachable: bool
    reason: str


class LayerNoise(msgspec.Struct):
    """A layer with weights: how many, the noise that its bits alone put on the output, that of its even grids (`rounding.EVEN`; none where weights go
    to the nearest), and the bytes that they take in a segment, for all of `WIDTHS` and then of the even grids."""

    name: str
    weights: int
    noise: Sensitivity
    even: list[float]
    coded_bytes: list[int]

    @property
    def noises(self) -> list[float]:
        """Of all grids, as ``coded_bytes``."""
        return [*self.noise.noise, *self.even]


class Manifest(msgspec.Struct):
    format: int
    name: str
    metric: Literal["top1", "agreement", "cosine"]
    labels: list[str]
    samples: int
    preprocess: Preprocess
    cuts: list[Listed]
    unsupported: list[str]
    quantizations: dict[str, tuple[float, int]]
    layers: list[LayerNoise]
    cut_noises: list[CutNoise]
    other_bytes: dict[int, int]  # what the segment of an offered cut holds beside its weights
    trials: list[Trial]
    accuracy: Model
    tail_ms: dict[int, float]
    files: dict[str, str]  # SHA-256
    output: Output
    float_top1: float | None = None  # per cent of the samples that the float model has right; None without labels
    tokenizer: TokenizerRef | None = None


def _quiet(phase: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


class Bundle:
    """An open bundle. Methods may be called from several threads."""

    def __init__(self, path: Path, manifest: Manifest, sha256: str) -> None:
        self.path, self.manifest, self.sha256 = path, manifest, sha256
        self.name, self.metric, self.labels = manifest.name, manifest.metric, manifest.labels
        self.samples, self.preprocess, self.tokenizer = manifest.samples, manifest.preprocess, manifest.tokenizer
        self.accuracy: Model = manifest.accuracy
        self.other_bytes, self.output = manifest.other_bytes, manifest.output
        self.layers = {layer.noise.tensor: layer for layer in manifest.layers}
        self.cut_noises = {noise.cut: noise for noise in manifest.cut_noises}
        self.cuts: list[Cut] = [listed.cut for listed in manifest.cuts]
        self.offered: list[int] = [listed.cut.index for listed in manifest.cuts if not listed.reason]
        self.reasons: list[str] = [listed.reason for listed in manifest.cuts]
        self.unsupported, self.tail_ms = manifest.unsupported, manifest.tail_ms
        self._histograms: dict[int, Histogram] = {}
        self._headers: dict[tuple[int, int, int], seg.Header] = {}

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """The bundle in ``path``. Raises `errors.ModelError` if a file is missing or damaged."""
        try:
            text = (path / "bundle.json").read_bytes()
            manifest = msgspec.json.decode(text, type=Manifest)
            for name, wanted in manifest.files.items():
                if _digest(path / name) != wanted:
                    raise errors.ModelError(
                        f"{path / name} is damaged; add the model to the server again", reason="damaged"
                    )
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise errors.ModelError(
                f"{path} is not a readable bundle; add the model to the server again", reason="not-a-bundle"
            ) from error
        if manifest.format != FORMAT:
            raise errors.ModelError(
                f"{path} has bundle format {manifest.format}, not {FORMAT}; add the model again", reason="format"
            )
        made = cls(path, manifest, hashlib.sha256(text).hexdigest())
        made.labels = _names(path) or made.labels
        return made

    @property
    def names_set(self) -> list[str]:
        """The class names that were set later, in place of the manifest's; none without any."""
        return self.labels if self.labels != self.manifest.labels else []

    def info(self) -> ModelInfo:
        """The bundle as a model listing shows it."""
        return ModelInfo(
            name=self.name, bundle=self.sha256, metric=self.metric, samples=self.samples, cuts=self.cuts, unsupported=self.unsupported, preprocess=self.preprocess,
            float_top1=self.manifest.float_top1, tokenizer=self.tokenizer, output=self.output, offered=self.offered,
        )  # fmt: skip

    def header(self, cut: int, weight_bits: Bits = 8, start: int = 0) -> seg.Header:
        """The segment's header without its golden hash; computes no weights."""
        if not isinstance(weight_bits, int):
            return self._lower(cut, weight_bits, start).header
        key = start, cut, weight_bits
        if key not in self._headers:
            self._headers[key] = self._lower(cut, weight_bits, start).header
        return self._headers[key]

    def segment(self, cut: int, weight_bits: Bits, start: int = 0) -> bytes:
        """The segment file from the cut ``start`` (0: the input) to ``cut``; always the same bytes. ``weight_bits`` as in `lower`, by the names in
        `weight_layers`.

        Raises `errors.UsageError` for a cut that no head reaches, and for bits that do not fit its layers.
        """
        return self._lower(cut, weight_bits, start).segment()

    def tail(self, cut: int) -> bytes | None:
        """ONNX model from the cut's tensor (float32, ONNX layout) to the output; the whole model for cut 0, None at the output."""
        if self.cuts[cut].kind == "output":
            return None
        if not self.cuts[cut].shape:
            raise errors.UsageError(
                f"nobody knows the shape at cut {cut}; choose one of {self.offered}", reason="unknown-shape"
            )
        tensor = self.cuts[cut].tensor
        made: bytes = tail_model(self._model, tensor, self._network.graph.shapes[tensor][1:]).SerializeToString()
        return made

    def exact_codec(self, cut: int) -> Codec:
        """The codec that sends the tensor at ``cut`` as it is, its 8-bit codes or its floats, so that the next stage computes on with the same bits."""
        header = self.header(cut)
        tensor = header.tensors[header.output]
        if tensor.dtype != "u8":
            return Codec("exact", 32, (0.0,), (1.0,))
        return codec.exact(tensor.scale, tensor.zero_point)

    def codec(self, cut: int, rule: str, bits: int) -> Codec:
        """The codec for an offered ``cut``, fitted to what its tensor was at calibration; ``rule`` as in `CodecNoise`."""
        if cut not in self._histograms:
            self._histograms[cut] = Histogram(
                self._cut_values(cut), self.counts(cut), picture_of(self.cuts[cut], self.preprocess)
            )
        kept = self._codecs.get(f"{cut}/{rule}/{bits}")
        return kept or self._histograms[cut].fit(rule, bits)

    def counts(self, cut: int) -> I64:
        """How often each code, or each of 256 values, occurred in each channel of an offered ``cut`` at calibration: [C, 256]."""
        if cut not in self.offered:
            raise errors.UsageError(f"cut {cut} is not offered; choose one of {self.offered}", reason="not-offered")
        counts: I64 = self._stats[f"counts/{cut}"]
        return counts

    def _cut_values(self, cut: int) -> NDArray[np.float64]:
        """What the counts are counts of: codes' values [256], or those of each channel [C, 256]."""
        if f"values/{cut}" in self._stats:
            return self._stats[f"values/{cut}"]
        header = self.header(cut)
        return Quantization(header.tensors[header.output].scale, header.tensors[header.output].zero_point).values()

    def weight_layers(self, cut: int, start: int = 0) -> list[str]:
        """The tensors that the layers with weights from the cut ``start`` to ``cut`` yield, in order: the keys of a mapping of bits."""
        return [layer.out for layer in self._network.weighted(self._reached(cut), self._start(start))]

    def _start(self, start: int) -> str:
        """The tensor at ``start``; of token ids, which no head yields, a head begins all the same."""
        return self._network.graph.input if start == 0 else self._reached(start)

    def _reached(self, cut: int) -> str:
        if not (0 <= cut < len(self.cuts) and self.manifest.cuts[cut].reachable):
            deepest = max(listed.cut.index for listed in self.manifest.cuts if listed.reachable)
            raise errors.UsageError(f"no integer head reaches cut {cut}; the deepest is {deepest}", reason="no-head")
        return self.cuts[cut].tensor

    def _lower(self, cut: int, weight_bits: Bits, start: int) -> Lowered:
        ends = self._reached(cut), self._start(start)
        return lower(self._network, self._calibration, ends[0], weight_bits, self.name, self.preprocess, ends[1])

    @functools.cached_property
    def _codecs(self) -> dict[str, Codec]:
        return msgspec.json.decode((self.path / CODECS).read_bytes(), type=dict[str, Codec])

    @functools.cached_property
    def _model(self) -> onnx.ModelProto:
        return onnx.load(self.path / "model.onnx")

    @functools.cached_property
    def _network(self) -> layers.Network:
        return layers.build(Graph.of(self._model))

    @functools.cached_property
    def _stats(self) -> dict[str, NDArray[Any]]:
        stats: dict[str, NDArray[Any]] = safetensors.numpy.load_file(self.path / "stats.safetensors")
        return stats

    @functools.cached_property
    def _calibration(self) -> Calibration:
        quantizations = {t: Quantization(*q) for t, q in self.manifest.quantizations.items()}
        means = {k.removeprefix("mean/"): v.astype(np.float32) for k, v in self._stats.items() if k.startswith("mean/")}
        if packed_weights.FILE not in self.manifest.files:
            return Calibration(quantizations, means)
        return Calibration(quantizations, means, packed_weights.Stored(self.path / packed_weights.FILE, self._network))


# --- making one -------------------------------------------------------------------------------------------------------


def create(
    path: Path,
    name: str,
    model: onnx.ModelProto,
    samples: Samples,
    labels: Sequence[str] = (),
    progress: Progress = _quiet,
    rounding: Rounding = "gptq",
    cache: Path | None = None,
    metric: Metric = "auto",
    tokenizer: Tokenizer | None = None,
    output_kind: OutputKind | None = None,
) -> Bundle:
    """Calibrate ``model`` (from `calibration.importing.importer.load`) with ``samples`` and write its bundle to ``path``, which must not exist.

    ``labels`` are class names. ``progress(phase, done, total)`` is called often. ``rounding`` of weights: to the nearest grid point, with or without
    biases corrected for it, or by what it does to the samples (`calibration.rounding.rounder`), which loses much less below 8 bits. ``cache``: a folder for
    rounded layers and for what was measured of layers, cuts and tails, so that only what changed is made again. ``metric``: the samples' classes are
    looked at for "top1" alone. ``tokenizer``: made the samples' ids of texts, and is to do so for agents. ``output_kind``: as `outputs.describe` takes it. Raises `errors.ModelError`,
    `errors.InputError` (samples, their classes, or class names that do not fit the model), `errors.UsageError` (a metric that needs classes, and
    there are none), `errors.StoreError` (the folder cannot be written).
    """
    network = layers.build(Graph.of(model))
    check_shape(network.graph, samples.preprocess)
    check_ids(network, samples)
    answers = _some_answers(model, samples)
    has_classes = bool(labels) or samples.classes is not None
    output = outputs.of_model(model, answers, output_kind, classes=has_classes, embedding=metric == "cosine")
    judged_by = _metric(metric, samples, output)
    if judged_by != "top1":
        samples = Samples(samples.preprocess, samples.sources)
    labels = labels if output.has_classes else ()
    _check_output(answers[0].size)
    _check_classes(answers[0].size, samples, labels)
    kept = None if cache is None else Cache(cache)
    work = _Making(model, network, _places(network), samples, name, progress, rounding, judged_by, kept)
    sites = work.sites()
    noises = work.layer_noises()
    accuracy_model, tried = work.accuracy_model(sites, noises)
    top1 = None if samples.classes is None else 100.0 * float((work.answers == samples.classes).mean())
    stats: dict[str, NDArray[np.generic]] = {f"mean/{t}": m for t, m in work.calibration.means.items()}
    stats |= {f"counts/{site.spot.index}": site.histogram.counts for site in sites}
    stats |= {f"values/{site.spot.index}": site.histogram.values for site in sites if site.spot.quantization is None}
    manifest = Manifest(
        FORMAT, name, judged_by, list(labels), len(samples), samples.preprocess,
        [Listed(p.cut, p.reachable, p.reason) for p in work.places], cuts.unsupported(network),
        {t: (q.scale, q.zero_point) for t, q in work.calibration.quantizations.items()}, list(noises.values()),
        [site.noise for site in sites], work.other_bytes(noises), tried, accuracy_model, work.tail_ms(), {}, output, top1,
        None if tokenizer is None else tokenizer.reference(),
    )  # fmt: skip
    codecs = {
        f"{site.spot.index}/{rule}/{bits}": made for site in sites for (rule, bits), made in site.histogram.kept.items()
    }
    files = {
        "model.onnx": model.SerializeToString(),
        "stats.safetensors": safetensors.numpy.save(stats),
        CODECS: msgspec.json.encode(codecs),
    }
    if tokenizer is not None:
        files[TOKENIZER] = tokenizer.data
    if work.calibration.roundings:
        files[packed_weights.FILE] = packed_weights.save(work.calibration.roundings)
    _write(path, manifest, files)
    if kept:
        kept.prune()
    return Bundle.open(path)


class _Making:
    """A bundle in the making."""

    def __init__(
        self,
        model: onnx.ModelProto,
        network: layers.Network,
        places: list[cuts.Place],
        samples: Samples,
        name: str,
        progress: Progress,
        rounding: Rounding,
        metric: Literal["top1", "agreement", "cosine"],
        cache: Cache | None,
    ) -> None:
        self.model, self.network, self.places, self.samples = model, network, places, samples
        self._name, self._progress, self._metric, self._cache = name, progress, metric, cache
        self._digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        self.calibration = calibrate(model, network, samples, progress)
        deepest = [place.cut.tensor for place in places if place.reachable][-1]
        if rounding == "plain":
            self.calibration.means = {}  # what biases are corrected by
        if rounding == "gptq":
            self.calibration.roundings = round_layers(
                model, network, self.calibration, deepest, samples[SEEN], progress, rates=RATES, cache=cache
            )
        self.weighted = network.weighted(deepest)
        self._deepest = deepest
        self.outputs = accuracy.float_outputs(runner(model), samples, progress)
        self.answers = accuracy.top1(self.outputs)
        self._enough = enough(network, self.outputs[0].size)
        #: Rounding flatters what it has seen, so all that is promised is measured on the rest.
        self.judged = UNSEEN if self.calibration.roundings and len(samples) > 1 else slice(None)

    def head(self, cut: str, bits: Bits) -> tuple[Head, dict[str, int]]:
        """A head that runs, and its header's tensor for each ONNX tensor."""
        made = lower(self.network, self.calibration, cut, bits, self._name, self.samples.preprocess)
        return made.head(), made.index

    def sites(self) -> list[Site]:
        """What is measured at the offered cuts with the 8-bit head."""
        offered = [p.cut for p in self.places if p.offered]
        head, index = self.head(offered[-1].tensor, 8)
        taps = [index[cut.tensor] for cut in offered]
        spots = [
            spot(self.model, self.network, head.header.tensors[t], cut) for cut, t in zip(offered, taps, strict=True)
        ]
        histograms = self._histograms(head, taps, spots)
        judged, outputs = self.samples[self.judged], self.outputs[self.judged]
        fitted = self._families(head, taps, spots)
        measured = spots, histograms, head, taps, fitted, judged, outputs, self._enough
        found = accuracy.cut_noises(*measured, progress=self._progress, cache=self._cache, model=self._digest)
        for histogram, own, noise in zip(histograms, fitted, found, strict=True):
            known = {(one.rule, one.bits) for one in noise.codecs}
            histogram.keep({(one.rule, one.bits): one.codec for one in own if (one.rule, one.bits) in known})
        weights = [{la.out: la.weight.size for la in self.network.weighted(cut.tensor)} for cut in offered]
        return [Site(*each) for each in zip(spots, histograms, found, weights, strict=True)]

    def _histograms(self, head: Head, taps: list[int], spots: Sequence[Spot]) -> list[Histogram]:
        graph, tensors = self.network.graph, [s.tensor for s in spots]
        if self.network.source != "u8":
            counted = activations.count_values(self.model, graph, tensors, self.samples, self._progress)
            return [Histogram(*counted[tensor]) for tensor in tensors]
        counts = accuracy.count_codes(head, taps, self.samples, self._progress)
        known = [s.quantization for s in spots]
        pictures = [picture_of(p.cut, self.samples.preprocess) for p in self.places if p.offered]
        return [
            Histogram(q.values(), c, picture)
            for q, c, picture in zip(known, counts, pictures, strict=True)
            if q is not None
        ]

    def _families(self, head: Head, taps: list[int], spots: Sequence[Spot]) -> list[list[Fitted]]:
        """What is fitted to each cut's tensor beside rules for histograms: nothing at the output, where nothing is sent, and to a picture, which has JPEG."""
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
        """What the bits of each layer do alone."""
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

    def accuracy_model(self, sites: Sequence[Site], noises: dict[str, LayerNoise]) -> tuple[Model, list[Trial]]:
        """From trials of whole heads on the judged samples. Its noise is what the parts sum to, for that is what a planner knows."""
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
        """Of each offered cut, by building its segment with weights of 8 bits."""
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
        """Of each offered cut, on this machine."""
        offered = [p.cut.index for p in self.places if p.offered]
        name = key("times of tails", self._digest, f"{offered} {platform.node()} {os.cpu_count()}")
        return remembered(self._cache, name, dict[int, float], self._tail_ms)

    def _tail_ms(self) -> dict[int, float]:
        return {p.cut.index: _tail_ms(self.model, self.network.graph, p.cut) for p in self.places if p.offered}


def _compare_answers(classes: I64 | None, outputs: F32, found: F32) -> tuple[float, float, float, float]:
    return accuracy.compare(accuracy.top1(outputs), accuracy.top1(found), classes)


def _places(network: layers.Network) -> list[cuts.Place]:
    """Where it may be cut. Raises `errors.ModelError` where that is nowhere."""
    places = cuts.find(network)
    if not any(place.offered for place in places):
        reason = "; ".join(f"{node}: {why}" for node, why in network.unsupported[:1])
        raise errors.ModelError(
            f"a device can compute no part of this model, whose token ids are not sent as they are ({reason}); "
            "export a model that begins as docs/architecture/transformers.md says",
            reason="nothing-for-a-device",
        )
    return places


def _metric(wanted: Metric, samples: Samples, output: Output) -> Literal["top1", "agreement", "cosine"]:
    """What ``samples`` are judged by."""
    if not output.has_classes and wanted in ("auto", "cosine"):
        return "cosine"
    if not output.has_classes:
        raise errors.UsageError(
            f"--metric {wanted} compares classes and the output, a tensor of {output.shape}, has none: leave it out, or choose cosine",
            reason="metric-without-classes",
        )
    if wanted == "auto":
        return "agreement" if samples.classes is None else "top1"
    if wanted == "top1" and samples.classes is None:
        raise errors.UsageError(
            "--metric top1 needs labels: give --labels or a labels.csv, or choose agreement or cosine",
            reason="no-labels",
        )
    return wanted


def check_shape(graph: Graph, preprocess: Preprocess) -> None:
    """Raises `errors.InputError` where preprocessing does not yield the model's input, or makes no sense."""
    wanted = graph.stored_shape(graph.input)
    if preprocess.shape != wanted:
        raise errors.InputError(
            f"preprocessing gives {preprocess.shape}, the model takes {wanted} (channels last); make them the same",
            reason="other-shape",
        )
    if preprocess.kind == "image" and (len(wanted) != 3 or wanted[2] not in (1, 3)):
        raise errors.InputError(
            f"the model's input {wanted} is not an image; calibrate it with .npy arrays", reason="no-image"
        )
    if preprocess.kind == "image":
        lengths = {len(preprocess.mean), len(preprocess.std)}
        if not lengths <= {1, wanted[2]} or not all(s > 0 for s in preprocess.std):
            raise errors.InputError(
                "mean and std need one number, or one for each channel, and std above 0; correct them",
                reason="mean-and-std",
            )


def calibrate(
    model: onnx.ModelProto, network: layers.Network, samples: Samples, progress: Progress = _quiet
) -> Calibration:
    """The codes of every tensor that a head yields, and the mean inputs of its layers; a transformer's stream needs neither."""
    if network.source != "u8":
        return Calibration({}, {})
    graph, reachable = network.graph, network.reachable()
    tensors = [graph.input, *(la.out for la in network.layers if la.out in reachable and la.out in graph.shapes)]
    found = activations.observe(model, graph, tensors, samples, progress)
    quantizations = {t: activations.quantization(*activations.best_range(s)) for t, s in found.items()}
    if graph.output in found:
        quantizations[graph.output] = _output_quantization(network, found[graph.output])
    if samples.preprocess.kind == "image":
        quantizations[graph.input] = Quantization(*input_quantization(samples.preprocess))
    fed = {la.inputs[0] for la in network.layers if isinstance(la, layers.Conv)}
    return Calibration(quantizations, {t: s.mean.astype(np.float32) for t, s in found.items() if t in fed})


def _output_quantization(network: layers.Network, statistics: activations.Statistics) -> Quantization:
    """Codes of the answer: a fifth more than was seen, because two clipped logits would tie for the first place."""
    if isinstance(network.made[network.graph.output], layers.Softmax):
        return activations.quantization(0.0, 1.0)
    return activations.quantization(OUTPUT_ROOM * statistics.lo, OUTPUT_ROOM * statistics.hi)


def check_ids(network: layers.Network, samples: Samples) -> None:
    """Raises `errors.InputError` for token ids that the model's table does not hold."""
    tables = [len(layer.weight) for layer in network.layers if isinstance(layer, layers.Embed)]
    for index in range(len(samples) if tables else 0):
        ids = samples[index]
        if not (ids.min() >= 0 and ids.max() < min(tables)):
            raise errors.InputError(
                f"sample {index} has token ids from {ids.min():.0f} to {ids.max():.0f}, and the model knows the token ids 0 to {min(tables) - 1}; "
                "use the tokenizer of this model",
                reason="token-ids",
            )


def _some_answers(model: onnx.ModelProto, samples: Samples) -> F32:
    """What the float model answers to the first samples, [n, ...] in ONNX order."""
    run = runner(model)
    return np.concatenate([run(samples[i][None]) for i in range(min(ANSWERS, len(samples)))])


def _check_output(values: int) -> None:
    if values < 2:
        raise errors.ModelError(
            "the model has one output value, for which no --metric means anything (top-1 is always the same, a cosine only "
            "tells its sign); give a model with two outputs or more",
            reason="one-output",
        )


def _check_classes(outputs: int, samples: Samples, names: Sequence[str]) -> None:
    samples.check_classes(outputs)
    if names and len(names) != outputs:
        raise errors.InputError(
            f"there are {len(names)} class names and the model has {outputs} outputs; "
            "give one name for each, with one for a background class where the model has that",
            reason="class-names",
        )


def picture_of(cut: Cut, preprocess: Preprocess) -> Preprocess | None:
    """``preprocess`` where the tensor at ``cut`` is the picture that it makes."""
    whole = cut.kind == "input" and preprocess.kind == "image" and jpeg.fits(tuple(preprocess.shape))
    return preprocess if whole else None


def spot(model: onnx.ModelProto, network: layers.Network, tensor: seg.Tensor, cut: Cut) -> Spot:
    load: Callable[[], Tail] | None = None
    if cut.kind != "output":
        load = functools.partial(tail_runner, model, network.graph, cut.tensor, threads=1)
    tokens = 0 if cut.padding is None else math.prod(network.graph.shapes[network.graph.input])
    return Spot(cut.index, cut.tensor, accuracy.quantization_of(tensor), math.prod(cut.shape), load, tokens)


def tail_runner(model: onnx.ModelProto, graph: Graph, tensor: str, threads: int = 0) -> Tail:
    """The part of ``model`` behind ``tensor``, ready to run."""
    return runner(tail_model(model, tensor, graph.shapes[tensor][1:]), threads)


def runner(model: onnx.ModelProto, threads: int = 0) -> Tail:
    """``model``, or a tail of it, ready to run."""
    made = session(model, threads)
    entry, *more = made.get_inputs()
    kind = np.int64 if entry.type == "tensor(int64)" else np.float32

    def run(x: F32, ids: I64 | None) -> F32:
        found: F32 = made.run(None, {entry.name: x.astype(kind, copy=False)} | {one.name: ids for one in more})[0]
        return found

    return accuracy.tail_of(run, _batched(model))


def _batched(model: onnx.ModelProto) -> bool:
    return bool(Graph.input_of(model).type.tensor_type.shape.dim[0].HasField("dim_param"))


def _tail_ms(model: onnx.ModelProto, graph: Graph, cut: Cut) -> float:
    """Median milliseconds of a tail for one frame, on all cores; 0 at the output."""
    if cut.kind == "output":
        return 0.0
    run, x = tail_runner(model, graph, cut.tensor), np.zeros((1, *cut.shape), np.float32)
    ids = np.zeros(graph.shapes[graph.input], np.int64) if graph.takes_ids else None
    times = []
    for _ in range(TAIL_RUNS + 2):
        start = time.perf_counter()
        run(x, ids)
        times.append(time.perf_counter() - start)
    return 1000.0 * median(times[2:])


def _names(path: Path) -> list[str]:
    """Class names set later; none where there is no such file."""
    try:
        return msgspec.json.decode((path / NAMES).read_bytes(), type=list[str])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.ModelError(f"{path / NAMES} is damaged; delete it", reason="damaged", file=NAMES) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, manifest: Manifest, files: dict[str, bytes]) -> None:
    """All files into a folder beside ``path``, which then takes its name."""
    manifest.files = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    if path.exists():
        raise errors.StoreError(f"{path} exists already; remove it or choose another name", reason="exists")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".bundle-", dir=path.parent))
    except OSError as error:
        raise errors.StoreError(
            f"{path.parent} cannot be written ({error.strerror}); choose another folder", reason="cannot-write"
        ) from error
    try:
        for name, data in files.items():
            (work / name).write_bytes(data)
        (work / "bundle.json").write_bytes(msgspec.json.encode(manifest))
        work.chmod(0o755)
        work.rename(path)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise errors.StoreError(
            f"the bundle {path} cannot be written ({error.strerror}); make room and try again", reason="cannot-write"
        ) from error
