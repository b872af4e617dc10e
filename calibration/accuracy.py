"""What splitting costs in accuracy: every cut x weight bits x activation bits against the float model, on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.clipping import Histogram
from calibration.observe import Progress, Quantization, to_onnx
from calibration.samples import Samples
from edge_agent import codec
from edge_agent.head.executor import Head
from edge_agent.protocol.messages import Codec

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

WEIGHT_BITS: Final = (8, 6, 4)
ACTIVATION_BITS: Final = (8, 6, 4, 3, 2)
#: By activation bits: so many rules, those of least squared error at the cut, have their error at the output measured. At 8 bits all are alike.
FINALISTS: Final = {8: 1, 6: 2}
FINALISTS_FEW_BITS: Final = 4
CHOICE_SAMPLES: Final = 16
BATCH: Final = 16
#: Bytes of codes at the cuts that are held at once.
CHUNK_BYTES: Final = 128 << 20
Z95: Final = 1.959963984540054

Tail = Callable[[F32], F32]  # a batch at the cut, stored layout -> outputs [N, ...]


class GridPoint(msgspec.Struct):
    """What was measured at a cut with these bits.

    ``rule``: a clip rule, with `clipping.CHANNEL` at its end where each channel has its own range. ``drop``, ``low``, ``high``: points of the metric below the
    float model and the paired 95 % interval. ``agreement``: share of samples (0..1) with the float model's top-1. The input has points for 8 weight bits
    only and the output for 8 activation bits only, since nothing is computed before the one and nothing sent after the other.
    """

    cut: int
    weight_bits: int
    activation_bits: int
    rule: str
    drop: float
    low: float
    high: float
    agreement: float
    samples: int


@dataclass(frozen=True)
class Spot:
    """An offered cut as measurement sees it; ``load`` makes the tail, None at the output."""

    index: int
    tensor: str
    quantization: Quantization
    size: int
    load: Callable[[], Tail] | None


# --- statistics -------------------------------------------------------------------------------------------------------


def paired_drop(before: Bools, after: Bools) -> tuple[float, float, float]:
    """Points of accuracy lost from ``before`` to ``after`` (right or wrong, the same samples), and its 95 % interval.

    The score interval for a difference of paired proportions (Tango, Statistics in Medicine 17, 1998): sane for 20 samples and where no sample
    changed. With b samples lost, c gained, of n, it holds the D for which |b - c - n D| <= z sqrt(n (2 q + D (1 - D))), q the likeliest share of
    gained samples given D.
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
    """Where ``beyond`` begins on the way from ``inside`` to ``outside``."""
    if not beyond(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if beyond(middle) else (middle, outside)
    return inside


def compare(reference: I64, found: I64, classes: I64 | None) -> tuple[float, float, float, float]:
    """drop, low, high (points) and agreement (0..1) of the top-1 ``found`` against the float model's ``reference``.

    Without ``classes`` what disagrees with the float model counts as lost.
    """
    same = int((reference == found).sum())
    if classes is not None:
        return *paired_drop(reference == classes, found == classes), same / len(found)
    low, high = wilson(len(found) - same, len(found))
    return 100.0 * (1 - same / len(found)), 100.0 * low, 100.0 * high, same / len(found)


# --- measurement ------------------------------------------------------------------------------------------------------


def real_table(made: Codec, quantization: Quantization) -> F32:
    """What the server decodes for each code of the head's tensor, float32 [C, 256], C 1 for a range per tensor."""
    lo, scale = (np.array(v, np.float32)[:, None] for v in (made.lo, made.scale))
    return lo + scale * codec.tables(quantization.scale, quantization.zero_point, made).astype(np.float32)


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
    for i in range(len(samples)):
        for total, codes, c in zip(counts, head.taps(samples.codes(i, head.input), list(taps)), channels, strict=True):
            total += np.bincount((codes + 256 * np.arange(c)).reshape(-1), minlength=256 * c)
        progress("histograms", i + 1, len(samples))
    return [total.reshape(c, 256) for total, c in zip(counts, channels, strict=True)]


def choose_rules(
    spots: Sequence[Spot],
    histograms: Sequence[Histogram],
    head: Head,
    taps: Sequence[int],
    samples: Samples,
    outputs: F32,
    progress: Progress,
) -> dict[tuple[int, int], str]:
    """The rule of least mean squared error at the output for each (cut, activation bits), with the 8-bit head.

    The `FINALISTS` are tried on `CHOICE_SAMPLES` samples, evenly spread; ``outputs`` [n, ...] are the float model's.
    """
    chosen = {}
    few = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), CHOICE_SAMPLES)).round().astype(int))
    tapped = [head.taps(samples.codes(int(i), head.input), list(taps)) for i in few]
    for place, (spot, histogram) in enumerate(zip(spots, histograms, strict=True)):
        codes = np.stack([t[place] for t in tapped])
        run = spot.load() if spot.load else None
        for bits in ACTIVATION_BITS:
            rules = finalists(histogram, bits)
            if run is None or len(rules) == 1:
                chosen[spot.index, bits] = rules[0]
            else:
                chosen[spot.index, bits] = _least(spot, histogram, rules, bits, codes, run, outputs[few])
        progress("clip rules", place + 1, len(spots))
    return chosen


def finalists(histogram: Histogram, bits: int) -> list[str]:
    """The rules of least squared error at the cut, the best first."""
    error = {rule: histogram.squared_error(histogram.fit(rule, bits)) for rule in histogram.rules}
    return sorted(error, key=lambda rule: error[rule])[: FINALISTS.get(bits, FINALISTS_FEW_BITS)]


def _least(
    spot: Spot, histogram: Histogram, rules: Sequence[str], bits: int, codes: U8, run: Tail, outputs: F32
) -> str:
    """Of ``rules`` the one of least squared error at the output."""

    def error(rule: str) -> float:
        found = run_tail(run, codes, real_table(histogram.fit(rule, bits), spot.quantization))
        return float(((found - outputs) ** 2).mean())

    return min(rules, key=error)


def run_tail(run: Tail, codes: U8, table: F32) -> F32:
    """Outputs [n, ...] for ``codes`` [n, ...] at the cut, through ``table`` and the tail, in batches."""
    return np.concatenate([run(look_up(codes[i : i + BATCH], table)) for i in range(0, len(codes), BATCH)])


def top1(outputs: F32 | U8) -> I64:
    """The greatest output of each sample, the first among equals."""
    found: I64 = outputs.reshape(len(outputs), -1).argmax(axis=1)
    return found


def measure(
    spots: Sequence[Spot],
    histograms: Sequence[Histogram],
    rules: dict[tuple[int, int], str],
    heads: Callable[[int], tuple[Head, list[int]]],
    samples: Samples,
    reference: I64,
    progress: Progress,
) -> list[GridPoint]:
    """The whole grid. ``heads(weight bits)``: a head that reaches every spot, and the spots' tensors in it; ``reference`` [n]: the float top-1.

    Samples go through in chunks of `CHUNK_BYTES` of codes, so that memory does not grow with their number.
    """
    found: dict[tuple[int, int, int], list[I64]] = {}
    ready = {bits: heads(bits) for bits in WEIGHT_BITS}
    chunk = max(1, CHUNK_BYTES // (len(WEIGHT_BITS) * sum(s.size for s in spots)))
    starts = range(0, len(samples), chunk)
    done, total = 0, len(starts) * len(spots)
    for start in starts:
        part = range(start, min(start + chunk, len(samples)))
        tapped = {bits: _taps(head, taps, samples, part) for bits, (head, taps) in ready.items()}
        for place, spot in enumerate(spots):
            run = spot.load() if spot.load else None
            for weight_bits, bits in _points(spot):
                codes = tapped[weight_bits][place]
                if run is None:
                    answers = top1(codes)
                else:
                    made = histograms[place].fit(rules[spot.index, bits], bits)
                    answers = top1(run_tail(run, codes, real_table(made, spot.quantization)))
                found.setdefault((spot.index, weight_bits, bits), []).append(answers)
            done += 1
            progress("accuracy", done, total)
    return [
        GridPoint(
            cut,
            weight_bits,
            bits,
            rules[cut, bits],
            *compare(reference, np.concatenate(parts), samples.classes),
            len(samples),
        )
        for (cut, weight_bits, bits), parts in found.items()
    ]


def _taps(head: Head, taps: list[int], samples: Samples, part: range) -> list[U8]:
    each = [head.taps(samples.codes(i, head.input), taps) for i in part]
    return [np.stack(codes) for codes in zip(*each, strict=True)]


def _points(spot: Spot) -> Iterator[tuple[int, int]]:
    for weight_bits in WEIGHT_BITS if spot.index else WEIGHT_BITS[:1]:
        for bits in ACTIVATION_BITS if spot.load else ACTIVATION_BITS[:1]:
            yield weight_bits, bits


def float_outputs(run: Tail, samples: Samples) -> F32:
    """The float model's outputs [n, ...]."""
    parts = range(0, len(samples), BATCH)
    return np.concatenate([run(np.stack([samples[i] for i in range(p, min(p + BATCH, len(samples)))])) for p in parts])


def tail_of(run: Callable[[F32], F32], batched: bool) -> Tail:
    """``run`` (ONNX layout) as a `Tail` of any batch, one sample at a time where the model takes no more."""

    def tail(x: F32) -> F32:
        y = to_onnx(x)
        return run(y) if batched else np.concatenate([run(y[i : i + 1]) for i in range(len(y))])

    return tail
