"""The time of a published run at its limits: products at the core's peak, bytes at the rate of the level that holds them.

The time of a layer is the greater of two: products (or steps) over the peak of the instruction that the program uses
for its precision, and bytes over the rate of the caches or the memory. Threads share products evenly. They share one
memory bus, and the last cache where it is shared. Real programs take longer; `shares` learns by how much.

Weights stay in the last cache between frames only if all weights and the largest tensors of the network fit. An
activation comes from the smallest level that holds the layer's input and output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from benchmarks.published import networks
from benchmarks.published.data import Board, Core, Measurement, Precision
from benchmarks.published.networks import KINDS, Layer, LayerKind


@dataclass(frozen=True)
class Peaks:
    """Products a cycle of one core, by instruction; ``l2_shared``: whether the cores share the second cache.

    Sources: Arm's software optimization guides of the cores, throughput of the 128-bit forms: FMLA; SDOT and SMMLA;
    without these SMULL, SMLAL2 and SADALP for 16 products, in 3 cycles on the one pipe of A53, in 2 on the others.
    ``l1_kib``: technical reference manuals.
    """

    fp32: int
    int8: float
    l1_kib: int
    l2_shared: bool
    fp16: int = 0  # no half-precision arithmetic
    in_order: bool = False  # waits for each load


CORES: Final[dict[Core, Peaks]] = {
    "cortex-a53": Peaks(4, 16 / 3, 32, True, in_order=True),
    "cortex-a55": Peaks(4, 16, 32, False, 8, in_order=True),
    "cortex-a57": Peaks(4, 8, 32, True),
    "cortex-a72": Peaks(4, 8, 32, True),
    "cortex-a73": Peaks(4, 8, 32, True),
    "cortex-a76": Peaks(8, 32, 64, False, 16),
    "cortex-a78ae": Peaks(8, 32, 64, False, 16),
    "neoverse-n2": Peaks(8, 64, 64, False, 16),
}
#: Products a cycle of SMLAL on bytes, on every core: what depthwise layers in integers use.
WIDENING: Final = 8
#: Fewer products of a 3x3 window by Winograd's F(4x4, 3x3), arXiv 1509.09308: 144 to 36. In integers the transformed
#: values have 16 bits, for which SMLAL has half the products.
WINOGRAD, WINOGRAD_INT8 = 4.0, 2.0
#: Programs with Winograd's method.
WITH_WINOGRAD: Final = ("ncnn",)
BYTES: Final[dict[Precision, int]] = {"int8": 1, "fp16": 2, "fp32": 4}
#: Bytes a cycle of one core from a level: Arm's guides (two loads of 128 bits in order, one out of order), and measured
#: rates of about 8 and 5 beyond.
L1_RATE, L2_RATE, L3_RATE = 16.0, 8.0, 5.0
#: Vector instructions for one step of a layer without products.
STEP_INSTRUCTIONS: Final = 2
#: Seconds to share a layer among threads: the figure of `benchmarks.known_boards`.
TEAM_S: Final = 5e-6


@dataclass(frozen=True)
class Limits:
    """Seconds at the limits by kind of layer, and the part in which the memory beyond the caches limits."""

    seconds: dict[LayerKind, float]
    memory: float

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def limits(row: Measurement, board: Board) -> Limits:
    """The limits of the run ``row`` on ``board``."""
    return limits_of(networks.layers(row.network), row, board, streamed=_streamed(row, board))


def limits_of(layers: Iterable[Layer], row: Measurement, board: Board, *, streamed: bool) -> Limits:
    """The limits of ``layers`` in the run ``row``; ``streamed``: weights come from memory in each frame."""
    seconds: dict[LayerKind, float] = dict.fromkeys(KINDS, 0.0)
    memory = 0.0
    for layer in layers:
        computing = _computing(layer, row, board)
        moving, beyond = _moving(layer, row, board, streamed)
        seconds[layer.kind] += max(computing, moving) + (TEAM_S if row.threads > 1 else 0.0)
        memory += beyond if moving > computing else 0.0
    return Limits(seconds, memory)


def _computing(layer: Layer, row: Measurement, board: Board) -> float:
    """Seconds of the products, or of the steps of a layer without them."""
    hertz = board.mhz * 1e6 * row.threads
    if not layer.macs:
        values = 16 / BYTES[row.precision]  # in one vector
        return layer.steps * STEP_INSTRUCTIONS / values / hertz
    return layer.macs / products_a_cycle(layer.kind, row, board.core) / hertz


def products_a_cycle(kind: LayerKind, row: Measurement, core: Core) -> float:
    """Products a cycle of one ``core`` in a layer of ``kind``; with Winograd's method, as many as it saves."""
    peaks = CORES[core]
    peak = {"fp32": peaks.fp32, "fp16": peaks.fp16 or peaks.fp32, "int8": peaks.int8}[row.precision]
    if kind == "depthwise" and row.precision == "int8":
        return WIDENING
    if kind == "conv3" and row.runtime in WITH_WINOGRAD:
        return max(peak, WIDENING * WINOGRAD_INT8) if row.precision == "int8" else peak * WINOGRAD
    return peak


def _moving(layer: Layer, row: Measurement, board: Board, streamed: bool) -> tuple[float, float]:
    """Seconds of the layer's bytes, and the part from memory."""
    size, hertz = BYTES[row.precision], board.mhz * 1e6
    held, moved = layer.weights * size, (layer.read + layer.written) * size
    levels = _levels(row, board)
    memory = board.copy_gbps * 1e9

    def inside(count: float, capacity: float) -> float:
        rate = next((rate for least, rate in levels if capacity <= least), 0.0)
        return count / rate / hertz if rate else count / memory

    activations, from_memory = inside(moved, moved), moved if moved > levels[-1][0] else 0
    weights = held / memory if streamed else inside(held, held + moved)
    return activations + weights, (from_memory + (held if streamed else 0)) / memory


def _levels(row: Measurement, board: Board) -> list[tuple[float, float]]:
    """Bytes that each level of the caches holds for this run, and the bytes a cycle of all its threads."""
    peaks, threads = CORES[board.core], row.threads
    found = [(peaks.l1_kib * 1024.0 * threads, L1_RATE * threads)]
    if board.l2_kib:
        found.append((board.l2_kib * 1024.0 * (1 if peaks.l2_shared else threads), L2_RATE * threads))
    if board.l3_kib:
        found.append((max(board.l3_kib * 1024.0, found[-1][0]), L3_RATE * threads))
    return found


def _streamed(row: Measurement, board: Board) -> bool:
    """Whether the network's weights come from memory in each frame."""
    size = BYTES[row.precision] * (networks.weights(row.network) + networks.largest_tensor(row.network))
    return size > _levels(row, board)[-1][0]
