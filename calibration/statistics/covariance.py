"""Mean and covariance of each layer's inputs over the calibration samples."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from calibration.lowering.layers import Conv, Linear, Network, Pad, Patches, Weighted
from calibration.parallel import in_order
from calibration.samples.samples import Samples, evenly
from calibration.statistics.activations import Progress, Tap, in_parts
from kernels import reference

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Product: TypeAlias = Conv | Linear

#: Maximum positions of one sample that enter the moments of a layer, evenly spread. A plane of 14 x 14 enters whole. Of
#: depthwise layers fewer suffice, down to the second number, if all samples have `WIDE` positions per input.
POSITIONS: Final = 196
LEAST_POSITIONS: Final = 49
#: Number of samples, evenly spread: enough for `WIDE` positions per input, but within `SAMPLES`. Layers with few
#: positions per sample use more: up to `DEEP` positions per input, at most `MOST_SAMPLES` samples.
SAMPLES: Final = (64, 256)
WIDE: Final = 100
MOST_SAMPLES: Final = 4096
DEEP: Final = 16
#: Positions that are multiplied at once. From 419 positions of 5 x 5 inputs on, OpenBLAS starts its threads for each
#: channel's small product, which is 100 times slower.
TOGETHER: Final = 1024
TOGETHER_GROUPED: Final = 196
#: Maximum bytes of moments that one pass over the samples sums.
PASS_BYTES: Final = 512 << 20


@dataclass(frozen=True)
class Moments:
    """``mean`` [G, K] and ``covariance`` [G, K, K] of a layer's inputs for each group, over ``count`` positions.

    K = KH KW C / groups inputs form one output. Inputs have the order of the stored weights [KH, KW, C / groups];
    padding counts as zeros. If positions have different weights, ``count`` is the equivalent number of equally weighted
    ones.
    """

    mean: F64
    covariance: F64
    count: int


def collect(
    model: onnx.ModelProto, network: Network, layers: Sequence[Product], samples: Samples, progress: Progress
) -> Iterator[tuple[Product, Moments]]:
    """Each of ``layers`` with the `Moments` of its inputs in the float model. Few moments are in memory at once."""
    parts = list(in_parts(layers, lambda la: 8 * groups(la) * math.prod(la.weight.shape[1:]) ** 2, PASS_BYTES))
    for index, part in enumerate(parts):
        wanted = [min(len(samples), _wanted(network, layer)) for layer in part]
        sums = [_Sums(network, layer, count) for layer, count in zip(part, wanted, strict=True)]
        chosen = [set(evenly(max(wanted), count).tolist()) for count in wanted]
        tap = Tap(model, network.graph, sorted({t for s in sums for t in s.tensors}), threads=1)
        places = evenly(len(samples), max(wanted)).tolist()
        for i, values in enumerate(in_order(functools.partial(_tapped, tap, samples), places, ahead=0)):
            for total, own in zip(sums, chosen, strict=True):
                if i in own:
                    total.add(values)
            progress("moments", index * max(wanted) + i + 1, len(parts) * max(wanted))
        while sums:
            total = sums.pop(0)
            yield total.layer, total.moments()


def _tapped(tap: Tap, samples: Samples, index: int) -> dict[str, F32]:
    return tap.of(samples[index])


def _wanted(network: Network, layer: Product) -> int:
    """Number of samples that enter the layer's moments."""
    made = next(iter(layer.products)) if isinstance(layer, Linear) else layer.out
    positions = min(POSITIONS, math.prod(network.graph.stored_shape(made)[:-1]))
    depth = math.prod(layer.weight.shape[1:])
    enough = min(max(SAMPLES[0], -(-WIDE * depth // positions)), SAMPLES[1])
    return min(MOST_SAMPLES, max(enough, -(-DEEP * depth // positions)))


def groups(layer: Weighted) -> int:
    """Number of groups of outputs that read separate inputs."""
    return layer.groups if isinstance(layer, Conv) else 1


class _Sums:
    """Running sums of one layer's inputs."""

    def __init__(self, network: Network, layer: Product, samples: int) -> None:
        self.layer, self._entry = layer, entry(network, layer)
        enough = -(-WIDE * math.prod(layer.weight.shape[1:]) // samples)
        self._most = min(POSITIONS, max(LEAST_POSITIONS, enough))
        #: A product that is added to the stream. Each position is weighted by 1 / variance, because the next norm
        #: divides by the deviation.
        self._stream = layer.out if isinstance(layer, Linear) and len(layer.inputs) > 1 else None
        self.tensors = [self._entry.tensor, *([self._stream] if self._stream else [])]
        count, depth = groups(layer), math.prod(layer.weight.shape[1:])
        self._sum, self._square = np.zeros((count, depth)), np.zeros((count, depth, depth))
        self._about: F32 | None = None
        self._held: list[F32] = []
        self._shares: list[F32] = []
        self._count = self._squares = 0.0

    def add(self, values: Mapping[str, F32]) -> None:
        plane = self._entry.read(values[self._entry.tensor])
        read = (
            _windows(plane, self.layer, self._entry.pad, self._most) if isinstance(self.layer, Conv) else _rows(plane)
        )
        self._held.append(read)
        if self._stream:
            self._shares.append(1 / np.maximum(_rows(values[self._stream])[0].var(axis=1), np.float32(1e-12)))
        if sum(x.shape[1] for x in self._held) >= (TOGETHER if len(self._sum) == 1 else TOGETHER_GROUPED):
            self._flush()

    def _flush(self) -> None:
        x = np.concatenate(self._held, axis=1)
        self._held = []
        if self._about is None:  # sums of differences to a mean keep more digits
            self._about = x.mean(axis=1, keepdims=True)
        x -= self._about
        share = np.concatenate(self._shares) if self._stream else np.ones(x.shape[1], np.float32)
        self._shares = []
        weighed = x * share[:, None] if self._stream else x
        self._sum += weighed.sum(axis=1, dtype=np.float64)
        self._square += x.transpose(0, 2, 1) @ weighed
        self._count += float(share.sum(dtype=np.float64))
        self._squares += float((share.astype(np.float64) ** 2).sum())

    def moments(self) -> Moments:
        if self._held:
            self._flush()
        mean = self._sum / self._count
        covariance = self._square / self._count - mean[:, :, None] * mean[:, None, :]
        assert self._about is not None
        return Moments(mean + self._about[:, 0], covariance, round(self._count**2 / self._squares))


@dataclass(frozen=True)
class Entry:
    """The model's tensor that a layer reads, and its form.

    ``view``: shape under which the stored ``tensor`` is read (None: its own). ``pad``: padding around it. ``square``:
    size of the squares that it is cut into, or 0.
    """

    tensor: str
    view: list[int] | None = None
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    square: int = 0

    def read(self, value: F32) -> F32:
        """The layer's input from a sample [1, ...] of the tensor in the ONNX layout, without padding."""
        x = (value.transpose(0, 2, 3, 1) if value.ndim == 4 else value)[0]
        if self.square:
            return reference.patches(np.ascontiguousarray(x), self.square)
        plane: F32 = x if self.view is None else x.reshape(self.view)
        return plane


def entry(network: Network, layer: Weighted) -> Entry:
    """The input of ``layer`` in the float model."""
    name = layer.inputs[0]
    before = network.made.get(name)
    if isinstance(before, Patches):
        return Entry(before.inputs[0], square=before.size)
    if not isinstance(layer, Conv):
        return Entry(name)
    if isinstance(before, Pad) and name not in network.graph.shapes:
        total = [own + other for own, other in zip(layer.pad, before.pad, strict=True)]
        return Entry(before.inputs[0], layer.view, (total[0], total[1], total[2], total[3]))
    return Entry(name, layer.view, layer.pad)


def _rows(x: F32) -> F32:
    """At most `POSITIONS` rows of x [..., K]: [1, positions, K]."""
    rows = x.reshape(1, -1, x.shape[-1])
    return np.ascontiguousarray(rows[:, :: math.ceil(rows.shape[1] / POSITIONS) | 1])


def _windows(x: F32, layer: Conv, pad: tuple[int, int, int, int], most: int) -> F32:
    """The inputs of the outputs at up to ``most`` positions of ``x`` [H, W, C]: [G, positions, K]."""
    top, left, bottom, right = pad
    x = np.pad(x, ((top, bottom), (left, right), (0, 0)))
    high, wide = ((n - 1) * d + 1 for n, d in zip(layer.weight.shape[1:3], layer.dilation, strict=True))
    windows = sliding_window_view(x, (high, wide), axis=(0, 1))
    windows = windows[:: layer.stride[0], :: layer.stride[1], :, :: layer.dilation[0], :: layer.dilation[1]]
    rows, columns, channels = windows.shape[:3]
    step = math.ceil(rows * columns / most) | 1  # odd, because even steps would skip columns
    at = np.arange(0, rows * columns, step)
    taken = windows[at // columns, at % columns]  # [positions, C, KH, KW]
    grouped = taken.reshape(len(at), layer.groups, channels // layer.groups, *taken.shape[2:]).transpose(1, 0, 3, 4, 2)
    made: F32 = np.ascontiguousarray(grouped).reshape(layer.groups, len(at), -1)
    return made
