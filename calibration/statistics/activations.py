"""Statistics of a network's tensors over the calibration samples.

ONNX Runtime runs the samples; histograms of the values give the ranges of uint8 codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.importing.graph import Graph, with_batch
from calibration.importing.sessions import session
from calibration.parallel import in_order
from calibration.samples.samples import evenly
from splitedge import errors

T = TypeVar("T")
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BINS: Final = 2048
#: Maximum values of one tensor of one sample in its histogram. Minimum, maximum and mean use all values.
HISTOGRAM_VALUES: Final = 16_384
#: Maximum number of samples, evenly spread, that enter histograms.
HISTOGRAM_SAMPLES: Final = 128
#: Maximum bytes of activations that one run of ONNX Runtime returns. A run per core, and one more, are in memory.
RUN_BYTES: Final = 96 << 20

Progress = Callable[[str, int, int], None]  # phase, done, total


@dataclass
class Statistics:
    """Statistics of one tensor over all samples.

    Minimum, maximum, a histogram of ``BINS`` bins between them, and the mean of each channel. ``least_top``: the least
    of the samples' maxima.
    """

    lo: float
    hi: float
    counts: NDArray[np.int64]
    mean: F64
    least_top: float = math.inf


@dataclass(frozen=True)
class Quantization:
    """value = scale * (code - zero_point); ``scale`` is an exact float32."""

    scale: float
    zero_point: int

    def codes(self, values: F64) -> NDArray[np.uint8]:
        """The nearest codes."""
        codes: NDArray[np.uint8] = np.clip(np.rint(values / self.scale) + self.zero_point, 0, 255).astype(np.uint8)
        return codes

    def values(self) -> F64:
        """The value of each code 0..255."""
        return self.scale * (np.arange(256.0) - self.zero_point)


def collect_statistics(
    model: onnx.ModelProto,
    graph: Graph,
    tensors: Sequence[str],
    samples: Sequence[F32],
    progress: Progress,
    means: Collection[str] | None = None,
) -> dict[str, Statistics]:
    """`Statistics` of ``tensors`` over ``samples`` (float32, stored layout).

    Runs two passes; the second one, for the histograms, takes at most `HISTOGRAM_SAMPLES` samples. ``means``: the
    tensors whose means are needed; None: all. Raises `errors.ModelError` if a tensor is not finite.
    """
    found: dict[str, Statistics] = {}
    groups = list(in_parts(tensors, lambda tensor: 4 * math.prod(graph.shapes[tensor]), RUN_BYTES))
    counted = evenly(len(samples), HISTOGRAM_SAMPLES).tolist()
    done, total = 0, len(groups) * (len(samples) + len(counted))
    for group in groups:
        tap = Tap(model, graph, group, threads=1)
        wanted = set(group) if means is None else set(group) & set(means)

        def ends(i: int, tap: Tap = tap, wanted: Collection[str] = wanted) -> dict[str, _Ends]:
            return {name: _ends(value, graph, name, i, name in wanted) for name, value in tap.of(samples[i]).items()}

        def histograms(i: int, tap: Tap = tap) -> dict[str, I64]:
            return {name: _counts(found[name], value) for name, value in tap.of(samples[i]).items()}

        for each in in_order(ends, range(len(samples))):
            for name, (lo, hi, mean) in each.items():
                _widen(found, name, lo, hi, mean)
            done += 1
            progress("observe", done, total)
        for each_counts in in_order(histograms, counted):
            for name, counts in each_counts.items():
                found[name].counts += counts
            done += 1
            progress("observe", done, total)
    for statistics in found.values():
        statistics.mean /= len(samples)
    return found


def count_values(
    model: onnx.ModelProto, graph: Graph, tensors: Sequence[str], samples: Sequence[F32], progress: Progress
) -> dict[str, tuple[F64, I64]]:
    """Histograms of the channels of float ``tensors`` over ``samples``, as `clipping.Histogram` takes them.

    For each tensor: 256 values [C, 256] from the minimum to the maximum of each channel, and how often each was the
    nearest, [C, 256]. Runs two passes. Raises `errors.ModelError` if a tensor is not finite.
    """
    found: dict[str, tuple[F64, I64]] = {}
    groups = list(in_parts(tensors, lambda tensor: 4 * math.prod(graph.shapes[tensor]), RUN_BYTES))
    done, total = 0, 2 * len(groups) * len(samples)
    for group in groups:
        tap = Tap(model, graph, group, threads=1)
        ends: dict[str, tuple[F32, F32]] = {}

        def limits(i: int, tap: Tap = tap) -> dict[str, tuple[F32, F32]]:
            made = {}
            for name, value in tap.of(samples[i]).items():
                refuse_nonfinite(value, graph, name, i)
                rows = stored_rows(value)
                made[name] = rows.min(axis=0), rows.max(axis=0)
            return made

        def codes(i: int, tap: Tap = tap, ends: Mapping[str, tuple[F32, F32]] = ends) -> dict[str, I64]:
            return {name: _count_codes(stored_rows(value), *ends[name]) for name, value in tap.of(samples[i]).items()}

        for each in in_order(limits, range(len(samples))):
            for name, (lo, hi) in each.items():
                known = ends.get(name, (lo, hi))
                ends[name] = np.minimum(known[0], lo), np.maximum(known[1], hi)
            done += 1
            progress("histograms", done, total)
        for name, (lo, hi) in ends.items():
            steps = np.arange(256) / 255
            found[name] = (
                lo[:, None] + steps * (hi - lo).astype(np.float64)[:, None],
                np.zeros((len(lo), 256), np.int64),
            )
        for each_counts in in_order(codes, range(len(samples))):
            for name, counts in each_counts.items():
                found[name][1][:] += counts
            done += 1
            progress("histograms", done, total)
    return found


def stored_rows(value: F32) -> F32:
    """A tensor [1, ...] in the ONNX layout as rows of its channels, [n, C]."""
    x = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
    return x.reshape(-1, x.shape[-1])


def _count_codes(rows: F32, lo: F32, hi: F32) -> I64:
    width = (hi - lo).astype(np.float64)
    codes = np.rint((rows - lo) * (255 / np.where(width > 0, width, 1.0))).astype(np.int64)
    return np.bincount((codes + 256 * np.arange(len(lo))).reshape(-1), minlength=256 * len(lo)).reshape(-1, 256)


class Tap:
    """The float model with some of its tensors as outputs. ``threads`` as in `sessions.session`."""

    def __init__(self, model: onnx.ModelProto, graph: Graph, tensors: Sequence[str], threads: int = 0) -> None:
        opened = with_batch(model, 1)
        infos = [onnx.helper.make_tensor_value_info(t, onnx.TensorProto.FLOAT, None) for t in tensors]
        del opened.graph.output[:]
        opened.graph.output.extend(infos)
        self._session, self._tensors, self._graph = session(opened, threads), list(tensors), graph

    def of(self, sample: F32) -> dict[str, F32]:
        """The tensors (ONNX layout) for one sample (stored layout). Threads may share a tap."""
        found = self._session.run(self._tensors, feed(self._graph, sample[None]))
        return dict(zip(self._tensors, found, strict=True))

    def over(self, samples: Iterable[F32]) -> Iterator[dict[str, F32]]:
        """`of` each of ``samples``."""
        yield from map(self.of, samples)


def feed(graph: Graph, x: F32) -> dict[str, NDArray[np.generic]]:
    """The model's inputs for a batch ``x`` (stored layout). Token ids become integers."""
    return {graph.input: x.astype(np.int64) if graph.takes_ids else to_onnx(x)}


def to_onnx(x: F32) -> F32:
    """Convert a batch from the stored layout [N, H, W, C] to the ONNX layout [N, C, H, W].

    Other ranks stay unchanged.
    """
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x


def best_range(statistics: Statistics) -> tuple[float, float]:
    """The range [lo, hi] around zero whose 256 uniform codes have the least squared error over the histogram.

    The error of a range is the exact clipping error over the bins, plus step^2 / 12 for all other values except zero,
    which has its own code. The whole range stays if a narrower one gains less than a tenth, because outliers matter
    more than their number suggests.
    """
    lo, hi = min(statistics.lo, 0.0), max(statistics.hi, 0.0)
    width = (statistics.hi - statistics.lo) / BINS
    centres: F64 = statistics.lo + (np.arange(BINS, dtype=np.float64) + 0.5) * width
    counts = np.where((centres - width / 2 <= 0) & (centres + width / 2 > 0), 0, statistics.counts).astype(np.float64)
    shares = np.geomspace(0.05, 1.0, 97)
    lows: F64 = lo * shares
    highs: F64 = hi * shares
    below, above = _clipped(-centres[::-1], counts[::-1], -lows), _clipped(centres, counts, highs)
    error: F64 = np.add.outer(below, above)
    error += counts.sum() * (highs[None, :] - lows[:, None]) ** 2 / 255**2 / 12
    if error.min() > 0.9 * error[-1, -1]:
        return lo, hi
    row, column = np.unravel_index(int(error.argmin()), error.shape)
    return float(lows[row]), float(highs[column])


def quantization(lo: float, hi: float) -> Quantization:
    """uint8 codes for [lo, hi], widened to contain zero."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = float(np.float32((hi - lo) / 255)) or 1.0
    return Quantization(scale, int(np.clip(np.rint(-lo / scale), 0, 255)))


def _clipped(centres: F64, counts: F64, highs: F64) -> F64:
    """Squared error of clipping at each of ``highs``: sum of counts * (centre - high)^2 over the centres above."""
    above = [np.concatenate([np.cumsum((counts * centres**k)[::-1])[::-1], [0.0]]) for k in range(3)]
    at = np.searchsorted(centres, highs, side="right")
    error: F64 = above[2][at] - 2 * highs * above[1][at] + highs**2 * above[0][at]
    return np.maximum(error, 0.0)


def in_parts(items: Sequence[T], size: Callable[[T], int], room: int) -> Iterator[list[T]]:
    """``items`` in order, in parts whose total size is at most ``room``. A larger item forms its own part."""
    part: list[T] = []
    left = room
    for item in items:
        if part and size(item) > left:
            yield part
            part, left = [], room
        part.append(item)
        left -= size(item)
    if part:
        yield part


def refuse_nonfinite(value: F32, graph: Graph, name: str, sample: int) -> None:
    """Refuse NaN or infinity in ``value``, the tensor ``name`` of a sample. Raises `errors.ModelError`."""
    if not (math.isfinite(value.min()) and math.isfinite(value.max())):
        where = graph.producer.get(name, name)
        raise errors.ModelError(
            f"sample {sample} gives NaN or infinity after {where}; check the model and the preprocessing",
            reason="not-finite",
        )


_Ends: TypeAlias = tuple[float, float, F64]  # least and greatest value, and the mean of each channel


def _ends(value: F32, graph: Graph, name: str, sample: int, mean: bool) -> _Ends:
    lo, hi = float(value.min()), float(value.max())
    if not (math.isfinite(lo) and math.isfinite(hi)):
        refuse_nonfinite(value, graph, name, sample)
    axes = (0, 2, 3) if value.ndim == 4 else tuple(range(value.ndim - 1))
    return lo, hi, value.mean(axis=axes, dtype=np.float64) if mean else np.zeros(())


def _widen(found: dict[str, Statistics], name: str, lo: float, hi: float, mean: F64) -> None:
    if name not in found:
        found[name] = Statistics(lo, hi, np.zeros(BINS, np.int64), np.zeros(mean.shape))
    known = found[name]
    known.lo, known.hi = min(known.lo, lo), max(known.hi, hi)
    known.least_top = min(known.least_top, hi)
    known.mean += mean


def _counts(statistics: Statistics, value: F32) -> I64:
    flat = value.reshape(-1)
    step = -(-flat.size // HISTOGRAM_VALUES) | 1  # odd, because even steps would skip columns of a plane
    # bins that float32 cannot tell apart are useless, for example if all values are equal
    least = 2 * BINS * float(np.spacing(np.float32(max(abs(statistics.lo), abs(statistics.hi), 1e-30))))
    top = max(statistics.hi, statistics.lo + least)
    places = ((flat[::step].astype(np.float64) - statistics.lo) * (BINS / (top - statistics.lo))).astype(np.int64)
    return np.bincount(np.minimum(places, BINS - 1), minlength=BINS)
