"""Measures the cost of splitting: intervals of the accuracy drop, and the output noise of codecs at the cuts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.accuracy.codec_search import Fitted, cost, worth_a_run
from calibration.accuracy.sensitivity import law
from calibration.accuracy.subsampling import each_once, enough, interpolated, mean_noises, sample_noises
from calibration.bundle.cache import Cache, key, remembered
from calibration.importing.graph import short
from calibration.parallel import in_order
from calibration.samples.samples import Samples, evenly
from calibration.statistics.activations import Progress, Quantization, to_onnx
from calibration.statistics.clipping import Histogram
from kernels import reference
from splitedge import codec, errors
from splitedge.codec import image_file, padding_mask
from splitedge.head.executor import Head
from splitedge.head.segment import Tensor
from splitedge.protocol.messages import Codec, ImageFormat

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Bits of the codecs at a cut.
ACTIVATION_BITS: Final = (8, 6, 4, 3, 2)
#: Number of rules, by activation bits, whose output noise is measured: those with the least squared error at the cut.
#: At 8 bits the rules barely differ.
FINALISTS: Final = {8: 1, 6: 2}
FINALISTS_FEW_BITS: Final = 3
#: Qualities of image files, if the input is an image. The sizes and errors of formats other than JPEG are measured on
#: this many samples: they take ten times longer.
QUALITIES: Final = (95, 90, 80, 65, 50)
SIZED: Final = 64
#: Maximum number of samples on which the noise of a codec is measured, and on which its error at the cut is compared.
MOST, TRIED = 512, 16
#: Share of these samples on which codecs of a large network run (`subsampling`), and the bits of the packed codec that
#: runs on all of them. Half of the share chooses among the finalists.
SHARE: Final = 0.25
REFERENCE_BITS: Final = 4
#: Samples per run of a tail: more take 13 % longer, because their activations leave the cache.
BATCH: Final = 4
Z95: Final = 1.959963984540054

Values = NDArray[Any]  # a head's tensor: uint8 codes, or float32 in a transformer
Arrival = Callable[[Values], F32]  # a batch of a head's tensor -> the tail's input


class CodecNoise(msgspec.Struct, frozen=True):
    """The output ``noise`` if this codec sends the tensor at a cut; it includes the head's own noise.

    ``rule``: a clip rule, with the suffix `clipping.CHANNEL` for ranges per channel; or a format of image files and a quality;
    or a rule of `calibration.accuracy.codec_search`, whose codec the bundle stores. ``payload``: bytes of a frame
    without its header, or their mean if they depend on the content. ``work``: as `codec.work`.
    """

    bits: int
    rule: str
    noise: float
    payload: int
    work: dict[str, float] = {}


class CutNoise(msgspec.Struct, frozen=True):
    """Output noise of an integer head with 8-bit weights: mean squared difference from the float model's outputs.

    ``head``: without a codec. ``codecs``: with each codec, most bits first; empty at the output, where nothing is sent.
    """

    cut: int
    head: float
    codecs: list[CodecNoise]

    def apart(self) -> tuple[CutNoise, list[CodecNoise]]:
        """This noise without the image files that older programs do not know, and their noise."""
        known: list[CodecNoise] = []
        named: list[CodecNoise] = []
        for one in self.codecs:
            (named if one.work.keys() & set(image_file.NAMED) else known).append(one)
        return msgspec.structs.replace(self, codecs=known), named

    def fit(self) -> tuple[float, float] | None:
        """`sensitivity.law` of the noise that packed codecs add to the head's; None for fewer than two such codecs."""
        added = [(one.noise - self.head, one.bits) for one in self.codecs if not one.work and one.noise > self.head]
        return law(*zip(*added, strict=True)) if len(added) > 1 else None


class Tail(Protocol):
    """The network after a cut: computes the outputs [N, ...] from a batch at the cut in the stored layout."""

    def __call__(self, x: F32, ids: I64 | None = None, /) -> F32:
        """``ids`` [N, T]: token ids, if the model takes them. A tail whose cut has `Cut.padding` reads them."""


@dataclass(frozen=True)
class OfferedCut:
    """An offered cut, prepared for measurement.

    ``load`` creates the tail; it is None at the output. ``quantization`` is None if the tensor holds floats.
    ``tokens``: length of the padding mask in a frame (`Cut.padding`); 0 without one. ``least``: outputs below it do not
    matter, so the codes of a network's output may start there; a difference below it is no noise.
    """

    index: int
    tensor: str
    quantization: Quantization | None
    size: int
    load: Callable[[], Tail] | None
    tokens: int = 0
    least: float = -math.inf


# --- statistics -------------------------------------------------------------------------------------------------------


def paired_drop(before: Bools, after: Bools) -> tuple[float, float, float]:
    """Points of accuracy lost from ``before`` to ``after`` (correct or not, same samples), and the 95 % interval.

    It is the score interval for a difference of paired proportions (Tango, Statistics in Medicine 17, 1998). It is
    sound for 20 samples and if no sample changed. With b samples lost and c gained of n, it holds each D with |b - c -
    n D| <= z sqrt(n (2 q + D (1 - D))), where q is the most likely share of gained samples given D.
    """
    n = len(before)
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    drop = (lost - gained) / n

    def beyond(delta: float) -> bool:
        a, b = 2.0 * n, (2.0 * n - lost + gained) * delta - lost - gained
        c = -gained * delta * (1.0 - delta)
        q = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
        return abs(lost - gained - n * delta) > Z95 * math.sqrt(max(n * (2.0 * q + delta * (1.0 - delta)), 0.0))

    return 100.0 * drop, 100.0 * _edge(beyond, drop, -1.0), 100.0 * _edge(beyond, drop, 1.0)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % score interval of the share hits / n (Wilson, 1927)."""
    share, spread = hits / n, Z95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def _edge(beyond: Callable[[float], bool], inside: float, outside: float) -> float:
    """The point between ``inside`` and ``outside`` at which ``beyond`` becomes true."""
    if not beyond(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if beyond(middle) else (middle, outside)
    return inside


def compare(reference: I64, found: I64, classes: I64 | None) -> tuple[float, float, float, float]:
    """drop, low, high (points) and agreement (0..1) of the top-1 ``found`` against the float model's ``reference``.

    Without ``classes`` every disagreement with the float model counts as lost.
    """
    same = int((reference == found).sum())
    if classes is not None:
        return *paired_drop(reference == classes, found == classes), same / len(found)
    low, high = wilson(len(found) - same, len(found))
    return 100.0 * (1 - same / len(found)), 100.0 * low, 100.0 * high, same / len(found)


# --- measurement ------------------------------------------------------------------------------------------------------


def real_table(made: Codec, quantization: Quantization) -> F32:
    """The value that the server decodes for each code of the head's tensor: float32 [C, 256].

    C is 1 for a range per tensor.
    """
    lo, scale = (np.array(v, np.float32)[:, None] for v in (made.lo, made.scale))
    levels = np.array(made.levels, np.float32) if made.levels else None
    codes = codec.tables(quantization.scale, quantization.zero_point, made)
    return reference.codec_dequantize(codes, lo, scale, levels)


def quantization_of(tensor: Tensor) -> Quantization | None:
    """The quantization of a head's ``tensor``; None if it holds floats."""
    return Quantization(tensor.scale, tensor.zero_point) if tensor.dtype == "u8" else None


def arrival(quantization: Quantization | None, made: Codec | None) -> Arrival:
    """The function from a head's tensor to the tail's input, through the codec ``made`` (None: without a codec).

    Without a ``quantization`` the tensor holds floats.
    """
    if quantization is not None and made is not None and codec.work(made, [1]):
        return lambda x: np.stack([codec.decode(sent(quantization, made, one), made, one.shape) for one in x])
    if quantization is not None:
        own = quantization.values().astype(np.float32)[None]
        table = own if made is None else real_table(made, quantization)
        return lambda codes: look_up(codes, table)
    if made is None:
        return lambda x: x
    return lambda x: np.stack([codec.decode(sent(None, made, one), made, one.shape) for one in x])


def sent(quantization: Quantization | None, made: Codec, values: Values) -> bytes:
    """The payload of one frame of a head's tensor."""
    if quantization is None:
        return codec.encode(values, made)
    return codec.encode_codes(values, quantization.scale, quantization.zero_point, made)


def look_up(codes: U8, table: F32) -> F32:
    """``codes`` [..., C] through ``table`` [C or 1, 256]."""
    if len(table) == 1:
        real: F32 = table[0][codes]
    else:
        real = table.reshape(-1)[codes + 256 * np.arange(codes.shape[-1])]
    return real


def count_codes(head: Head, taps: Sequence[int], samples: Samples, progress: Progress) -> list[I64]:
    """Counts [C, 256] of the codes of each of the header's tensors ``taps`` over all samples."""
    channels = [head.header.tensors[t].shape[-1] for t in taps]
    counts = [np.zeros(256 * c, np.int64) for c in channels]
    run = functools.partial(_taps, head, list(taps), samples)
    for i, tapped in enumerate(in_order(run, range(len(samples)))):
        for total, codes, c in zip(counts, tapped, channels, strict=True):
            total += np.bincount((codes + 256 * np.arange(c)).reshape(-1), minlength=256 * c)
        progress("histograms", i + 1, len(samples))
    return [total.reshape(c, 256) for total, c in zip(counts, channels, strict=True)]


def _taps(head: Head, taps: list[int], samples: Samples, index: int) -> list[Values]:
    return head.taps(samples.codes(index, head.input), taps)


def cut_noises(
    spots: Sequence[OfferedCut],
    histograms: Sequence[Histogram],
    head: Head,
    taps: Sequence[int],
    families: Sequence[Sequence[Fitted]],
    samples: Samples,
    outputs: F32,
    count: int,
    macs: int,
    progress: Progress,
    cache: Cache | None = None,
    model: str = "",
    share: float = SHARE,
) -> list[CutNoise]:
    """The `CutNoise` of each cut, with the 8-bit ``head``.

    For each of `ACTIVATION_BITS` it holds the rule with the least output noise. It also holds image files if the tensor is
    an image, and those codecs of its ``families`` that are worth a run.

    The `FINALISTS` run on ``count`` samples, evenly spread, but at most `MOST`; if the network has many ``macs``, on a
    ``share`` of them. ``outputs`` [n, ...] are the float model's. ``cache``: results for the same ``model`` (its hash)
    and the same values at a cut are reused.
    """
    few = evenly(len(samples), min(MOST, count))
    progress("noise of cuts", 0, len(spots))
    tapped = [head.taps(samples.codes(int(i), head.input), list(taps)) for i in few]
    ids, known = token_ids(head, samples, few), outputs[few]
    chosen = evenly(len(few), enough(len(few), share, macs))

    def measured(place: int) -> CutNoise:
        spot, histogram, own = spots[place], histograms[place], families[place]
        values = np.stack([t[place] for t in tapped])
        wanted = np.maximum(known, np.float32(spot.least))
        measure = functools.partial(_noise_of, spot, histogram, own, values, wanted, ids, chosen)
        name = _entry(model, spot, histogram, own, [values, wanted, np.zeros(0) if ids is None else ids, chosen])
        return remembered(cache, name, CutNoise, measure)

    found = []
    for noise in in_order(measured, range(len(spots))):
        found.append(noise)
        progress("noise of cuts", len(found), len(spots))
    return found


def _noise_of(
    spot: OfferedCut,
    histogram: Histogram,
    fitted: Sequence[Fitted],
    values: Values,
    outputs: F32,
    ids: I64 | None,
    chosen: I64,
) -> CutNoise:
    packed = [] if spot.load is None else _packed(spot, histogram)
    coded, squares = _coded(spot, fitted, values)
    pictures, sizes = _pictures(spot, histogram, values)
    files, file_squares = _files(spot, histogram, values, [jpeg for jpeg, _ in pictures], sizes)
    squares = [*file_squares, *squares]
    tried = [*packed, *pictures, *files, *coded]
    run = spot.load() if spot.load else None

    def noises(made: Codec | None, which: I64) -> F64:
        arrive = arrival(spot.quantization, made)
        return sample_noises(output_of(run, values[which], arrive, None if ids is None else ids[which]), outputs[which])

    once = each_once(noises, [*(made for _, made in tried), None], len(values))
    best = _best(once, [one.bits for one, _ in packed], chosen[::2] if len(chosen) < len(values) else chosen)
    others = range(len(packed), len(tried))
    at_cut = dict(zip(others[len(others) - len(squares) :], squares, strict=True))
    families = [] if len(chosen) == len(values) else _families([(i, tried[i][0].rule) for i in at_cut])
    skipped = {place for family in families for place in family[1:-1:2]}
    kept = [place for place in (*best, *others) if place not in skipped]
    references = [0, *[1 + i for i, place in enumerate(kept) if tried[place][0].bits == REFERENCE_BITS][:1]]
    own, *means = mean_noises(once, [len(tried), *kept], references, chosen, len(values))
    if not math.isfinite(own):
        raise errors.ModelError(
            f"the model answers NaN or infinity if {short(spot.tensor)} has 8 bits; export it without operators that "
            "are undefined for some numbers, such as the logarithm of 0",
            reason="not-finite-at-8-bits",
        )
    found = dict(zip(kept, means, strict=True))
    for family in families:
        found |= _between(family, found, at_cut, own) or dict(
            zip(family, mean_noises(once, family, [], chosen, len(values)), strict=True)
        )
    done = [msgspec.structs.replace(tried[place][0], noise=found[place]) for place in (*best, *others)]
    return CutNoise(spot.index, own, [one for one in done if math.isfinite(one.noise)])


def _best(noises: Callable[[int, I64], F64], bits: Sequence[int], which: I64) -> list[int]:
    """For each number of ``bits``, the index of the codec with the least noise on the samples ``which``."""
    least: dict[int, tuple[float, int]] = {}
    for place, own in enumerate(bits):
        rivals = bits.count(own) > 1
        mean = float(noises(place, which).mean()) if rivals else 0.0
        least[own] = min(least.get(own, (math.inf, place)), (mean if math.isfinite(mean) else math.inf, place))
    return [place for _, place in least.values()]


def _families(rules: Sequence[tuple[int, str]]) -> list[list[int]]:
    """The indices of rules that differ only in their rate (`entropy-2`, `entropy-3`); only families of at least 3."""
    found: dict[str, list[int]] = {}
    for place, rule in rules:
        found.setdefault(rule.rpartition("-")[0] or rule, []).append(place)
    return [family for family in found.values() if len(family) >= 3]


def _between(
    family: Sequence[int], found: Mapping[int, float], errors: Mapping[int, float], own: float
) -> dict[int, float] | None:
    """The noise of each codec of ``family``: that ``found``, else interpolated over the error at the cut.

    ``own``: the noise without a codec. None if a codec adds no noise.
    """
    known = [place for place in family if place in found]
    added = np.array([found[place] - own for place in known])
    every = np.array([errors[place] for place in family])
    made = interpolated(added, np.array([errors[place] for place in known]), every)
    if made is None:
        return None
    return {place: found.get(place, own + float(noise)) for place, noise in zip(family, made, strict=True)}


def _entry(
    model: str, spot: OfferedCut, histogram: Histogram, fitted: Sequence[Fitted], measured: Sequence[Values]
) -> str:
    """The cache name of a `CutNoise`, from everything that it depends on."""
    about = [model, spot.tensor, f"{spot.index} {spot.quantization} {spot.size} {spot.tokens} {histogram.picture}"]
    about += _formats(histogram)
    codecs = msgspec.json.encode([(one.rule, one.bits, one.codec) for one in fitted])
    return key("noise of a cut", *about, histogram.values, histogram.counts, codecs, *measured)


def finalists(histogram: Histogram, bits: int) -> list[str]:
    """The rules with the least squared error at the cut, best first."""
    error = {rule: histogram.squared_error(histogram.fit(rule, bits)) for rule in histogram.rules}
    return sorted(error, key=lambda rule: error[rule])[: FINALISTS.get(bits, FINALISTS_FEW_BITS)]


def _packed(spot: OfferedCut, histogram: Histogram) -> list[tuple[CodecNoise, Codec]]:
    """The finalists at each of `ACTIVATION_BITS`, before their noise is measured."""
    return [
        (CodecNoise(bits, rule, math.nan, codec.packed_bytes(spot.size, bits) + padding_mask.size(spot.tokens)), made)
        for bits in ACTIVATION_BITS
        for rule in finalists(histogram, bits)
        for made in [histogram.fit(rule, bits)]
    ]


def _pictures(
    spot: OfferedCut, histogram: Histogram, values: Values
) -> tuple[list[tuple[CodecNoise, Codec]], list[list[int]]]:
    """JPEG at each of `QUALITIES`, if the tensor is an image, and the bytes of each of ``values`` at each quality."""
    found, sizes = [], []
    for quality in QUALITIES if histogram.picture is not None else ():
        made = histogram.fit(f"jpeg-{quality}", 8)
        sizes.append([len(sent(spot.quantization, made, one)) for one in values])
        found.append((_of_file(made, sum(sizes[-1]) / len(values), values), made))
    return found, sizes


def _files(
    spot: OfferedCut, histogram: Histogram, values: Values, jpegs: Sequence[CodecNoise], sizes: Sequence[Sequence[int]]
) -> tuple[list[tuple[CodecNoise, Codec]], list[float]]:
    """Image files of other formats than JPEG at each of `QUALITIES`, and their squared errors at the cut.

    Their sizes are those on `SIZED` samples, scaled as JPEG's of the same quality. ``jpegs`` and ``sizes`` are those of
    `_pictures`.
    """
    found, squares = [], []
    places = evenly(len(values), min(SIZED, len(values)))
    some = values[places]
    real = some.astype(np.float32) if spot.quantization is None else spot.quantization.values().astype(np.float32)[some]
    for kind in _formats(histogram):
        for quality, jpeg, known in zip(QUALITIES, jpegs, sizes, strict=True):
            made = histogram.fit(f"{kind}-{quality}", 8)
            data = [sent(spot.quantization, made, one) for one in some]
            back = np.stack([codec.decode(one, made, some.shape[1:]) for one in data])
            squares.append(float(((back - real) ** 2).mean()))
            payload = sum(map(len, data)) * jpeg.payload / sum(known[place] for place in places)
            found.append((_of_file(made, payload, values), made))
    return found, squares


def _of_file(made: Codec, payload: float, values: Values) -> CodecNoise:
    """The codec ``made`` of image files with a mean of ``payload`` bytes, before its noise is measured."""
    return CodecNoise(8, made.rule, math.nan, math.ceil(payload), codec.work(made, values.shape[1:]))


def _formats(histogram: Histogram) -> list[ImageFormat]:
    """The formats other than JPEG in which the tensor may be sent."""
    if histogram.picture is None:
        return []
    return [kind for kind in image_file.available() if image_file.fits(tuple(histogram.picture.shape), kind)]


def _coded(
    spot: OfferedCut, fitted: Sequence[Fitted], values: Values
) -> tuple[list[tuple[CodecNoise, Codec]], list[float]]:
    """The codecs of ``fitted`` that no other one beats on ``values`` in both bytes and error, and their errors."""
    own = spot.quantization
    some = values[:TRIED] if own is None else own.values().astype(np.float32)[values[:TRIED]]
    costs = [cost(one.codec, some) for one in fitted]
    kept = worth_a_run(costs)
    sizes = [math.ceil(costs[i][0] + padding_mask.size(spot.tokens)) for i in kept]
    found = [fitted[i] for i in kept]
    made = [
        (CodecNoise(one.bits, one.rule, math.nan, size, codec.work(one.codec, some.shape[1:])), one.codec)
        for one, size in zip(found, sizes, strict=True)
    ]
    return made, [costs[i][1] for i in kept]


def split_outputs(head: Head, made: Codec | None, run: Tail | None, samples: Samples) -> F32:
    """The outputs [n, ...] of a split network.

    The integer ``head`` runs, the codec ``made`` (None: no codec) carries its tensor, and the tail ``run`` (None at the
    output) answers.
    """
    arrive = arrival(quantization_of(head.output), made)
    parts = (range(len(samples))[start : start + BATCH] for start in range(0, len(samples), BATCH))
    return np.concatenate(
        [output_of(run, head_values(head, samples, part), arrive, token_ids(head, samples, part)) for part in parts]
    )


def head_values(head: Head, samples: Samples, which: Iterable[int]) -> Values:
    """The tensor [n, ...] that ``head`` yields for each of the samples ``which``."""
    return np.stack([head.run(samples.codes(i, head.input)) for i in which])


def token_ids(head: Head, samples: Samples, which: Iterable[int]) -> I64 | None:
    """The token ids [n, T] of the samples ``which`` if ``head`` takes token ids, else None."""
    return np.stack([samples[int(i)] for i in which]).astype(np.int64) if head.input.dtype == "i32" else None


def output_of(run: Tail | None, values: Values, arrive: Arrival, ids: I64 | None = None) -> F32:
    """Outputs [n, ...] for ``values`` [n, ...] of a head's tensor, through the tail in batches.

    Without a tail the values are the output itself.
    """
    return to_onnx(arrive(values)) if run is None else run_tail(run, values, arrive, ids)


def run_tail(run: Tail, values: Values, arrive: Arrival, ids: I64 | None = None) -> F32:
    """Outputs [n, ...] for ``values`` [n, ...] of a head's tensor, through the tail in batches.

    ``ids``: as in `Tail`.
    """
    parts = (slice(i, i + BATCH) for i in range(0, len(values), BATCH))
    return np.concatenate([run(arrive(values[part]), None if ids is None else ids[part]) for part in parts])


def top1(outputs: F32 | U8) -> I64:
    """The index of the largest output of each sample, the first among equals."""
    found: I64 = outputs.reshape(len(outputs), -1).argmax(axis=1)
    return found


def float_outputs(run: Tail, samples: Samples, progress: Progress | None = None) -> F32:
    """The float model's outputs [n, ...]; ``run`` may run in several threads."""

    def answer(start: int) -> F32:
        return run(np.stack([samples[i] for i in range(start, min(start + BATCH, len(samples)))]))

    found: list[F32] = []
    for start, outputs in zip(starts := range(0, len(samples), BATCH), in_order(answer, starts), strict=True):
        found.append(outputs)
        for i, output in enumerate(outputs, start):
            if not np.isfinite(output).all():
                raise errors.ModelError(
                    f"the model answers NaN or infinity to sample {i}; check the model and the preprocessing",
                    reason="not-finite",
                )
        if progress is not None:
            progress("answers", start + len(outputs), len(samples))
    return np.concatenate(found)


def tail_of(run: Callable[[F32, I64 | None], F32], batched: bool) -> Tail:
    """``run`` (ONNX layout) as a `Tail` for any batch; one sample at a time if the model is not ``batched``."""

    def tail(x: F32, ids: I64 | None = None, /) -> F32:
        y = to_onnx(x)
        parts = [slice(None)] if batched else [slice(i, i + 1) for i in range(len(y))]
        return np.concatenate([run(y[part], None if ids is None else ids[part]) for part in parts])

    return tail
