"""A bundle: a folder with a calibrated model and all data for planning, building segments and running tails.

bundle.json          `manifest.Manifest`: cuts, quantization of every tensor, noise of layers and codecs, the accuracy
                     model, hashes of the other files
model.onnx           the simplified float model
stats.safetensors    ``counts/CUT`` [C, 256]: histogram of each channel at each offered cut; for a transformer also
                     its values ``values/CUT`` [C, 256]; ``mean/TENSOR`` [C]: mean inputs of layers
tokenizer.json       the tokenizer of a text model, if it was given
codecs.json          codecs at the cuts that are not fitted to a histogram (`accuracy.codec_search`), as
                     ``CUT/RULE/BITS``
names.json           class names that were set later and replace the manifest's; the only file that may change
weights.safetensors  the rounded weights of each layer on each grid (`rounding.packed_weights`), if rounding used
                     the samples

The bundle stores rounded weights, because BLAS rounds differently on other machines, and because their computation
needs covariances that are larger than the weights. They take 35 bits per weight, about as much as the float model. A
bundle is written atomically and never changed.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import safetensors.numpy
from numpy.typing import NDArray

from calibration.accuracy.metrics import AccuracyModel
from calibration.bundle.manifest import CODECS, FORMAT, MANIFEST, MODEL, STATISTICS, Manifest, file_hash
from calibration.importing.graph import Graph, tail_model
from calibration.lowering import layers
from calibration.lowering.lower import Bits, Calibration, Lowered, lower
from calibration.rounding import packed_weights
from calibration.samples.labels import NAMES
from calibration.statistics.activations import Quantization
from calibration.statistics.clipping import Histogram
from splitedge import codec, errors
from splitedge.codec import image_file
from splitedge.head import segment as seg
from splitedge.protocol.messages import Codec, Cut, ModelInfo, Preprocess

I64 = NDArray[np.int64]


class Bundle:
    """An open bundle. Methods may be called from several threads."""

    def __init__(self, path: Path, manifest: Manifest, sha256: str) -> None:
        self.path, self.manifest, self.sha256 = path, manifest, sha256
        self.name, self.metric, self.labels = manifest.name, manifest.metric, manifest.labels
        self.samples, self.preprocess, self.tokenizer = manifest.samples, manifest.preprocess, manifest.tokenizer
        self.accuracy: AccuracyModel = manifest.accuracy
        self.other_bytes, self.output = manifest.other_bytes, manifest.output
        self.layers = {layer.noise.tensor: layer for layer in manifest.layers}
        self.cut_noises = manifest.noises_at_cuts()
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
            text = (path / MANIFEST).read_bytes()
            _check_format(path, msgspec.json.decode(text, type=_Version).format)
            manifest = msgspec.json.decode(text, type=Manifest)
            for name, wanted in manifest.files.items():
                if file_hash(path / name) != wanted:
                    raise errors.ModelError(
                        f"{path / name} is damaged; add the model to the server again", reason="damaged"
                    )
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise errors.ModelError(
                f"{path} is not a readable bundle; add the model to the server again", reason="not-a-bundle"
            ) from error
        made = cls(path, manifest, hashlib.sha256(text).hexdigest())
        made.labels = _names(path) or made.labels
        return made

    @property
    def names_set(self) -> list[str]:
        """The class names that were set after calibration; empty if none were."""
        return self.labels if self.labels != self.manifest.labels else []

    def info(self) -> ModelInfo:
        """The bundle as a model listing shows it."""
        return ModelInfo(
            name=self.name,
            bundle=self.sha256,
            metric=self.metric,
            samples=self.samples,
            cuts=self.cuts,
            unsupported=self.unsupported,
            preprocess=self.preprocess,
            float_top1=self.manifest.float_top1,
            tokenizer=self.tokenizer,
            output=self.output,
            offered=self.offered,
        )

    def header(self, cut: int, weight_bits: Bits = 8, start: int = 0) -> seg.Header:
        """The header of a segment, without the golden hash. Computes no weights."""
        if not isinstance(weight_bits, int):
            return self._lower(cut, weight_bits, start).header
        key = start, cut, weight_bits
        if key not in self._headers:
            self._headers[key] = self._lower(cut, weight_bits, start).header
        return self._headers[key]

    def segment(self, cut: int, weight_bits: Bits, start: int = 0) -> bytes:
        """The segment file from the cut ``start`` (0: the input) to ``cut``; deterministic.

        ``weight_bits``: as in `lower`, with the names of `weight_layers`. Raises `errors.UsageError` for a cut that no
        head reaches, and for bits that do not match its layers.
        """
        return self._lower(cut, weight_bits, start).segment()

    def tail(self, cut: int) -> bytes | None:
        """ONNX model from the cut's tensor (float32, ONNX layout) to the output.

        The whole model for cut 0, None at the output.
        """
        if self.cuts[cut].kind == "output":
            return None
        if not self.cuts[cut].shape:
            raise errors.UsageError(f"unknown shape at cut {cut}; choose one of {self.offered}", reason="unknown-shape")
        tensor = self.cuts[cut].tensor
        made: bytes = tail_model(self._model, tensor, self._network.graph.shapes[tensor][1:]).SerializeToString()
        return made

    def exact_codec(self, cut: int) -> Codec:
        """The lossless codec for the tensor at ``cut``: its 8-bit codes, or its floats."""
        header = self.header(cut)
        tensor = header.tensors[header.output]
        if tensor.dtype != "u8":
            return Codec("exact", 32, (0.0,), (1.0,))
        return codec.exact(tensor.scale, tensor.zero_point)

    def codec(self, cut: int, rule: str, bits: int) -> Codec:
        """The codec for an offered ``cut``, fitted to the calibration samples.

        ``rule``: as in `evaluation.CodecNoise`.
        """
        if cut not in self._histograms:
            self._histograms[cut] = Histogram(
                self._cut_values(cut), self.counts(cut), picture_of(self.cuts[cut], self.preprocess)
            )
        kept = self._codecs.get(f"{cut}/{rule}/{bits}")
        return kept or self._histograms[cut].fit(rule, bits)

    def counts(self, cut: int) -> I64:
        """The histogram of each channel at an offered ``cut``: [C, 256]. Raises `errors.UsageError` for another cut."""
        if cut not in self.offered:
            raise errors.UsageError(f"cut {cut} is not offered; choose one of {self.offered}", reason="not-offered")
        counts: I64 = self._stats[f"counts/{cut}"]
        return counts

    def _cut_values(self, cut: int) -> NDArray[np.float64]:
        """The values of the histogram's bins: [256], or [C, 256] if each channel has its own."""
        if f"values/{cut}" in self._stats:
            return self._stats[f"values/{cut}"]
        header = self.header(cut)
        return Quantization(header.tensors[header.output].scale, header.tensors[header.output].zero_point).values()

    def weight_layers(self, cut: int, start: int = 0) -> list[str]:
        """The outputs of the layers with weights between the cuts ``start`` and ``cut``, in order.

        They are the keys of a mapping of bits.
        """
        return [layer.out for layer in self._network.weighted(self._reached(cut), self._start(start))]

    def _start(self, start: int) -> str:
        """The tensor at ``start``. A head may start at token ids, although none ends there."""
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
        return onnx.load(self.path / MODEL)

    @functools.cached_property
    def _network(self) -> layers.Network:
        return layers.build(Graph.of(self._model))

    @functools.cached_property
    def _stats(self) -> dict[str, NDArray[Any]]:
        stats: dict[str, NDArray[Any]] = safetensors.numpy.load_file(self.path / STATISTICS)
        return stats

    @functools.cached_property
    def _calibration(self) -> Calibration:
        quantizations = {t: Quantization(*q) for t, q in self.manifest.quantizations.items()}
        means = {k.removeprefix("mean/"): v.astype(np.float32) for k, v in self._stats.items() if k.startswith("mean/")}
        if packed_weights.FILE not in self.manifest.files:
            return Calibration(quantizations, means)
        return Calibration(
            quantizations, means, packed_weights.PackedWeights(self.path / packed_weights.FILE, self._network)
        )


def picture_of(cut: Cut, preprocess: Preprocess) -> Preprocess | None:
    """``preprocess`` if the tensor at ``cut`` is the image that it produces, else None."""
    whole = cut.kind == "input" and preprocess.kind == "image" and image_file.fits(tuple(preprocess.shape))
    return preprocess if whole else None


class _Version(msgspec.Struct):
    """What the manifest of every format has."""

    format: int


def _check_format(path: Path, found: int) -> None:
    if found > FORMAT:
        raise errors.ModelError(
            f"{path} has bundle format {found}, newer than {FORMAT}; upgrade splitedge", reason="newer-format"
        )
    if found < FORMAT:
        raise errors.ModelError(
            f"{path} has bundle format {found}, older than {FORMAT}; add the model again with `edge-server add --replace`",
            reason="format",
        )


def _names(path: Path) -> list[str]:
    """The class names that were set after calibration; empty without a file."""
    try:
        return msgspec.json.decode((path / NAMES).read_bytes(), type=list[str])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.ModelError(f"{path / NAMES} is damaged; delete it", reason="damaged", file=NAMES) from error
