"""The time of a head on a board, predicted from its profile: a sum over the operators.

The time of a convolution or product is its multiply-accumulates over a throughput, that of any other operator its bytes
over a rate. Both are interpolated between the measurements of the same kind, weighted by 1 / distance^2 in the space of
log2(output positions), log2(terms of a sum), log2(output channels): twice the size is one unit away, and a measured
shape gets its own figure. Each operator adds `Overhead.op_us`, each call `Overhead.call_us`. `refined` corrects
predictions by the device's own measurements of heads.

Times of a board that was not measured have a band (`schema.Band`). Predictions count on its end `DeviceProfile.pace`,
by default the slow one; `device_profiles.band.times` returns all three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from device_profiles.band import pace_factor
from device_profiles.schema import KINDS, DeviceProfile, Kernel, KernelKind, Machine
from splitedge import codec
from splitedge.errors import ProtocolError
from splitedge.head.segment import (
    Add,
    AnyOp,
    Attention,
    Conv,
    Dequantize,
    Embed,
    Function,
    Gate,
    Gather,
    Header,
    Linear,
    Mean,
    Mul,
    Norm,
    Normalize,
    Patches,
    Pool,
    Position,
    Quantize,
    Resample,
    RmsNorm,
    Rotary,
    Softmax,
    Sum,
    Tensor,
    WindowAttention,
)
from splitedge.head.verify import inputs
from splitedge.protocol.messages import Codec

# The measured kind for operators that the profile does not measure.
_LIKE: Final[dict[type, KernelKind]] = {Add: "add", Mul: "add", Pool: "pool", Normalize: "add", Resample: "add"}
#: The work of a softmax (an exponential and a division), in bytes of an addition, counted from the fixed sequence.
_SOFTMAX_WORK: Final = 8
#: The work of a float32 GELU (a rational function and a division), in passes over its tensor.
_GELU_WORK: Final = 2
_PRODUCTS: Final = ("conv", "depthwise", "pointwise", "dense")

Point = tuple[float, float, float]
Point2 = tuple[float, float]
F64 = NDArray[np.float64]


def best_threads(profile: DeviceProfile) -> int:
    """The number of threads for heads: that of the least total time of the measured kernels; 1 if a kind is missing."""
    whole = _time_by_threads(profile.kernels)
    return min(whole, key=lambda threads: (whole[threads], threads), default=1)


def explain_threads(kernels: list[Kernel], machine: Machine) -> str:
    """The number of threads for heads and the reason, in one line for people."""
    whole = _time_by_threads(kernels)
    if len(whole) < 2:
        quota = f", quota {machine.cpu_quota:g} cores" if machine.cpu_quota is not None else ""
        return f"1: this process has {machine.usable_cores} of {machine.logical_cores} threads of the processor{quota}"
    best, *others = sorted(whole, key=lambda threads: (whole[threads], threads))
    slower = ", ".join(f"{whole[threads] / 1000:.2f} ms on {threads}" for threads in others)
    return f"{best}: the measured kernels took {whole[best] / 1000:.2f} ms together, against {slower}"


def _time_by_threads(kernels: list[Kernel]) -> dict[int, float]:
    """The total microseconds of the measured kernels, for each number of threads with every kind."""
    counts = {kernel.threads for kernel in kernels}
    groups = {threads: [kernel for kernel in kernels if kernel.threads == threads] for threads in counts}
    return {t: sum(k.time_us for k in group) for t, group in groups.items() if {k.kind for k in group} >= set(KINDS)}


class Heads:
    """Heads of one network as work of measured kinds, analysed once: each device then costs a small matrix product.

    ``operators``: the number of operators of each head.
    """

    def __init__(self, headers: Sequence[Header]) -> None:
        heads = [[part for op in header.ops for part in _work_items(op, header)] for header in headers]
        columns: dict[tuple[KernelKind, Point], int] = {}
        for item in (item for items in heads for item in items):
            columns.setdefault((item.kind, item.point), len(columns))
        self._points: dict[KernelKind, list[tuple[int, Point]]] = {}
        for (kind, point), column in columns.items():
            self._points.setdefault(kind, []).append((column, point))
        self.operators = [len(header.ops) for header in headers]
        self._ops = np.array(self.operators, np.float64)
        self._work = np.zeros((len(headers), len(columns)))
        for row, items in zip(self._work, heads, strict=True):
            for item in items:
                row[columns[item.kind, item.point]] += item.work

    def ms(self, profile: DeviceProfile) -> list[float]:
        """Predicted milliseconds of one run of each head on `best_threads`; 0 for a head without operators.

        For a board that was not measured, those of its pace. Raises `ProtocolError` if the profile lacks a kind that is
        needed.
        """
        threads, inverse = best_threads(profile), np.zeros(self._work.shape[1])
        for kind, points in self._points.items():
            inverse[[column for column, _ in points]] = 1 / _rates(
                kind, [point for _, point in points], profile, threads
            )
        us = self._work @ inverse + self._ops * profile.overhead.op_us + (self._ops > 0) * profile.overhead.call_us
        times: list[float] = (us / 1000 * pace_factor(profile)).tolist()
        return times


def head_ms(header: Header, profile: DeviceProfile) -> float:
    """As `Heads.ms`, for one head."""
    return Heads([header]).ms(profile)[0]


def encode_ms(elements: int, profile: DeviceProfile) -> float:
    """Predicted milliseconds to quantize and pack a tensor of ``elements`` values."""
    return 1e-6 * elements * profile.overhead.value_ns


def coding_ms(made: Codec, shape: Sequence[int], profile: DeviceProfile) -> float:
    """As `encode_ms`, with the further stages of the codec ``made``; a stage that the profile lacks counts 0."""
    known, stages = profile.overhead.stage_ns, codec.work(made, shape).items()
    return encode_ms(math.prod(shape), profile) + 1e-6 * sum(amount * known.get(stage, 0.0) for stage, amount in stages)


def refined(predicted: Sequence[float], measured: Mapping[int, float]) -> tuple[float, ...]:
    """Times of heads in ms: ``predicted``, corrected by the device's own measurements of some, by index.

    A measured head has its own time. The others follow the line from (0, 0) through the measured ones, ordered by their
    predictions: heads of one network begin alike, so the error of a longer one is near that of its neighbours. Beyond
    the longest measured head its ratio holds. If that is above 1, it counts less for much longer heads: a head that
    looks too slow would never be tried, and so never be measured.
    """
    points = [(0.0, 0.0)]
    for expected, found in sorted((predicted[i], ms) for i, ms in measured.items() if predicted[i] > 0):
        points.append((expected, max(found, points[-1][1])))
    if len(points) == 1:
        return tuple(measured.get(i, ms) for i, ms in enumerate(predicted))
    last, at_last = points[-1]
    return tuple(
        measured[i] if i in measured else _on_line(ms, points) if ms < last else ms * _beyond(at_last / last, last / ms)
        for i, ms in enumerate(predicted)
    )


def _beyond(ratio: float, share: float) -> float:
    """The ratio for a head; the longest measured one has this share of its predicted time."""
    return min(ratio, 1 + (ratio - 1) * share)


def _on_line(x: float, points: Sequence[Point2]) -> float:
    """The line through ``points`` (ascending) at ``x``, which is below the last."""
    (x0, y0), (x1, y1) = next((a, b) for a, b in pairwise(points) if a[0] <= x < b[0])
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def op_ms(op: AnyOp, header: Header, profile: DeviceProfile, threads: int = 1) -> float:
    """Predicted milliseconds of one operator. Raises `ProtocolError` if the profile lacks its kind."""
    us = [item.work / _rates(item.kind, [item.point], profile, threads)[0] for item in _work_items(op, header)]
    return float(sum(us) + profile.overhead.op_us) / 1000


@dataclass(frozen=True)
class _WorkItem:
    """Work of a measured kind at a point: multiply-accumulates or bytes."""

    kind: KernelKind
    point: Point
    work: float


def _work_items(op: AnyOp, header: Header) -> list[_WorkItem]:
    """The work of ``op``."""
    return _transformer_items(op, header) or [_WorkItem(op_kind(op, header), op_point(op, header), _work(op, header))]


def _transformer_items(op: AnyOp, header: Header) -> list[_WorkItem]:
    """The work of a transformer's operator: products as of a convolution, float work as additions; else empty."""
    out = header.tensors[op.out]
    rows, channels = _positions(out), out.shape[-1]
    if isinstance(op, Linear):
        depth = header.tensors[op.x].shape[-1]
        floats = 4 * rows * (depth + channels * (1 + (_GELU_WORK if op.activation == "gelu" else 0)))
        return [_product(rows, depth, channels), _floats(rows, channels, floats)]
    if isinstance(op, Attention | WindowAttention):
        each, tokens = rows * op.heads, rows // (op.windows if isinstance(op, WindowAttention) else 1)
        scores, mixed = _product(each, channels // op.heads, tokens), _product(each, tokens, channels // op.heads)
        added = 4 * ((op.bias != -1) + (op.mask != -1)) if isinstance(op, WindowAttention) else 0
        return [scores, mixed, _floats(rows, channels, each * tokens * (_SOFTMAX_WORK + added) + 16 * rows * channels)]
    if isinstance(op, Norm | Embed | Patches | Position | Mean):
        read = 4 * _elements(header.tensors[op.x]) if isinstance(op, Mean) else 0
        return [_floats(rows, channels, read + 4 * rows * channels * (3 if isinstance(op, Norm) else 2))]
    if isinstance(op, Function | Gate | RmsNorm | Sum | Rotary | Gather | Quantize | Dequantize):
        passes = 2 + (_GELU_WORK if isinstance(op, Function | Gate) else 1)
        return [_floats(rows, channels, 4 * rows * channels * passes)]
    return []


def _product(rows: int, depth: int, channels: int) -> _WorkItem:
    point = math.log2(rows), math.log2(depth), math.log2(channels)
    return _WorkItem("dense" if rows == 1 else "pointwise", point, rows * depth * channels)


def _floats(rows: int, channels: int, work: float) -> _WorkItem:
    return _WorkItem("add", (math.log2(rows), 0.0, math.log2(channels)), work)


def op_kind(op: AnyOp, header: Header) -> KernelKind:
    """The kind of measurement that predicts ``op``."""
    if not isinstance(op, Conv):
        return _LIKE.get(type(op), "add" if isinstance(op, Softmax) else "lut")
    channels = header.tensors[op.x].shape[-1]
    if op.groups > 1 and op.groups == channels == header.tensors[op.out].shape[-1]:
        return "depthwise"
    if op.kernel != [1, 1] or op.groups > 1:
        return "conv"
    return "dense" if _positions(header.tensors[op.out]) == 1 else "pointwise"


def op_macs(op: AnyOp, header: Header) -> int:
    """Multiply-accumulates of one run; 0 for all operators but `Conv`."""
    return _elements(header.tensors[op.out]) * _depth(op, header) if isinstance(op, Conv) else 0


def op_bytes(op: AnyOp, header: Header) -> int:
    """Bytes of activations read and written, once each, and of weights as the kernels hold them (one byte each)."""
    read = sum(_elements(header.tensors[i]) for i in inputs(op))
    weights = header.tensors[op.out].shape[-1] * _depth(op, header) if isinstance(op, Conv) else 0
    return read + _elements(header.tensors[op.out]) + weights


def op_point(op: AnyOp, header: Header) -> Point:
    """The point of ``op`` among the measurements: log2 of output positions, terms of a sum, output channels."""
    out = header.tensors[op.out]
    terms = _depth(op, header) if isinstance(op, Conv) else math.prod(op.kernel) if isinstance(op, Pool) else 1
    return math.log2(_positions(out)), math.log2(terms), math.log2(out.shape[-1])


def kernel_point(kernel: Kernel) -> Point:
    """As `op_point`, of a measurement."""
    shape = kernel.shape
    positions = -(-shape.h // shape.stride) * -(-shape.w // shape.stride) if kernel.kind != "pool" else 1
    terms = {"depthwise": shape.k**2, "pool": shape.h * shape.w, "add": 1, "lut": 1}
    return math.log2(positions), math.log2(terms.get(kernel.kind, shape.k**2 * shape.c)), math.log2(shape.oc)


def _rates(kind: KernelKind, points: Sequence[Point], profile: DeviceProfile, threads: int) -> F64:
    """Multiply-accumulates or bytes a microsecond at each of ``points``, from the measurements of ``kind``.

    Raises `ProtocolError` if there are none.
    """
    rows = [kernel for kernel in profile.kernels if kernel.kind == kind and kernel.threads == threads]
    if not rows:
        raise ProtocolError(
            f"the device profile lacks '{kind}' on {threads} threads: run 'edge-agent profile' again",
            reason="not-measured",
        )
    rate = _macs_rate if kind in _PRODUCTS else _bytes_rate
    away = np.array(points)[:, None] - np.array([kernel_point(row) for row in rows])
    weights: F64 = 1 / ((away**2).sum(axis=2) + 1e-6)
    found: F64 = weights @ np.array([rate(row) for row in rows]) / weights.sum(axis=1)
    return found


def _macs_rate(kernel: Kernel) -> float:
    return max(kernel.macs, 1) / kernel.time_us


def _bytes_rate(kernel: Kernel) -> float:
    return max(kernel.bytes, 1) / kernel.time_us


def _work(op: AnyOp, header: Header) -> int:
    """Multiply-accumulates, or bytes as in the profile; a pool's inputs count each time they are read."""
    if isinstance(op, Conv):
        return op_macs(op, header)
    if isinstance(op, Pool):
        return _elements(header.tensors[op.out]) * (math.prod(op.kernel) + 1)
    return op_bytes(op, header) * (_SOFTMAX_WORK if isinstance(op, Softmax) else 1)


def _depth(op: Conv, header: Header) -> int:
    """Terms of one sum: kernel cells x input channels of the group."""
    return math.prod(op.kernel) * max(1, header.tensors[op.x].shape[-1] // max(1, op.groups))


def _elements(tensor: Tensor) -> int:
    return math.prod(tensor.shape)


def _positions(tensor: Tensor) -> int:
    return max(1, math.prod(tensor.shape[:-1]))
