"""Bits for each weight layer of a head, and a codec for its cut: the fewest bytes within a noise budget.

The weights of a layer at b bits take a known number of bytes in a segment and add ``noise[b]`` to the output (energy,
in any one unit). Noises add up. `allocate` is exact for tables of any form (proof: `knapsack`). The baselines are
`closed_form`, QPART's rule, and `uniform`, one width for all layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_server.planner import knapsack
from splitedge import errors, limits

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

WIDTHS: Final = tuple(range(2, 9))
MAX_BYTES: Final = 1 << 40
_MARGIN: Final = 1 + 1e-6  # the noise in a message, rounded and passed back, must suffice
#: A rung must save more than 2 % over a more accurate one: the content of frames changes their size by as much.
MIN_SAVING: Final = 1.02


@dataclass(frozen=True, slots=True)
class WeightLayer:
    """A layer with weights.

    ``noise[i]``: the noise of its weights at ``WIDTHS[i]`` bits; infinite for a width that is not allowed. It usually
    falls with the bits, but nothing depends on that. ``coded[i]``: their bytes in a segment; empty: the bytes of packed
    codes. Entries beyond `WIDTHS` belong to further grids (`calibration.rounding.rounder.EVEN`), numbered 9, 10 and so
    on; the baselines ignore them.
    """

    name: str
    weights: int
    noise: tuple[float, ...]
    coded: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each grid."""
        return self.coded or tuple(packed_bytes(self.weights, bits) for bits in WIDTHS)

    def size(self, bits: int) -> int:
        """Bytes at ``bits``."""
        return self.sizes[bits - WIDTHS[0]]


@dataclass(frozen=True, slots=True)
class CutCodec:
    """A codec for the tensor at a cut.

    ``frame_bytes``: of one frame, with its header. ``noise``: added to the output. ``work``: values that pass through
    each of `splitedge.codec.STAGES`, besides quantizing and packing.
    """

    rule: str
    bits: int
    frame_bytes: int
    noise: float
    work: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Allocation:
    """Bits for each layer, and the index of a codec (None if there were none).

    ``objective`` = ``segment_bytes`` (weights) + round(``frame_weight`` x frame bytes). ``bound``: no allocation within
    the budget has a smaller objective; if equal to ``objective``, this one is proven optimal. Baselines have bound 0.
    """

    bits: tuple[int, ...]
    codec: int | None
    segment_bytes: int
    noise: float
    objective: int
    bound: int = 0


def allocate(
    layers: Sequence[WeightLayer], budget: float, codecs: Sequence[CutCodec] = (), frame_weight: float = 0.0
) -> Allocation:
    """The allocation with the smallest objective and a total noise of at most ``budget``.

    ``frame_weight``: the bytes of a segment that one byte of every frame is worth (the frames expected of a segment, if
    both directions of the link are equally fast). Raises `errors.UsageError` for invalid tables and numbers,
    `errors.InfeasibleError` if the smallest noise exceeds the budget.
    """
    _check(layers, budget, codecs, frame_weight)
    costs = [list(layer.sizes) for layer in layers]
    noises = [list(layer.noise) for layer in layers]
    if codecs:
        costs.append([round(frame_weight * codec.frame_bytes) for codec in codecs])
        noises.append([codec.noise for codec in codecs])
    cost, noise = _rectangle(costs, 0).astype(np.int64), _rectangle(noises, np.inf)
    if (most := int(cost.max(axis=1, initial=0).sum())) >= MAX_BYTES:
        raise errors.UsageError(
            f"the head takes {most} bytes, over the limit of {MAX_BYTES}: expect fewer frames", reason="head-too-large"
        )
    found = knapsack.solve(cost, noise, budget)
    if found is None:
        raise _over_budget(noises, budget)
    choice = found.choice.tolist()
    codec = choice.pop() if codecs else None
    bits = tuple(WIDTHS[0] + i for i in choice)
    extra = 0.0 if codec is None else codecs[codec].noise
    return Allocation(
        bits, codec, segment_bytes(layers, bits), total_noise(layers, bits, extra), found.cost, found.bound
    )


def _over_budget(noises: Sequence[Sequence[float]], budget: float) -> errors.InfeasibleError:
    least = math.fsum(min(row) for row in noises) * _MARGIN
    return errors.InfeasibleError(
        f"no bit widths keep the noise within {budget:.8g}: allow {least:.8g}",
        reason="noise",
        binding=["noise"],
        nearest={"noise": least},
    )


def uniform(layers: Sequence[WeightLayer], budget: float) -> Allocation | None:
    """The fewest bits, equal for all layers, within the budget; None if 8 bits exceed it."""
    _check(layers, budget)
    for bits in WIDTHS:
        found = _baseline(layers, (bits,) * len(layers))
        if _fits(layers, found.bits, budget):
            return found
    return None


def closed_form(layers: Sequence[WeightLayer], budget: float) -> Allocation | None:
    """QPART's bits: b_l = log4(p_l sum(s) / (s_l C)), the continuous optimum for noise p_l 4^-b; None if nothing fits.

    p_l is fitted to the layer's table, in the mean of logarithms. b_l is rounded to the nearest of 2..8. While the
    tables' noise exceeds the budget C, the layer with the largest noise reduction per byte gets more bits.
    """
    _check(layers, budget)
    size = sum(layer.weights for layer in layers)
    bits = [_nearest_width(layer, size, budget) for layer in layers]
    while not _fits(layers, bits, budget):
        better = [
            (_reduction(layer, b, to), i, to)
            for i, (layer, b) in enumerate(zip(layers, bits, strict=True))
            for to in range(b + 1, 9)
        ]
        reduction, i, to = max(better, default=(0.0, 0, 0))
        if reduction <= 0:
            return None
        bits[i] = to
    return _baseline(layers, tuple(bits))


def pareto_front(codecs: Sequence[CutCodec], among: Iterable[int]) -> list[int]:
    """The codecs among these indices that no other beats in both bytes and noise, most accurate first."""
    found: list[int] = []
    for i in sorted(among, key=lambda i: (codecs[i].noise, codecs[i].frame_bytes)):
        if not found or codecs[i].frame_bytes < codecs[found[-1]].frame_bytes:
            found.append(i)
    return found


def ladder(codecs: Sequence[CutCodec], among: Iterable[int], chosen: int) -> list[int]:
    """The `pareto_front` of the codecs ``among``, and ``chosen``: most bytes first, at most `limits.MAX_LADDER`.

    Rungs that save no more than `MIN_SAVING` over a more accurate one are left out. ``chosen`` stays even if another
    codec beats it: that one takes longer to make.
    """
    rungs: list[int] = []
    for i in pareto_front(codecs, among):
        if i == chosen or not rungs or codecs[i].frame_bytes * MIN_SAVING < codecs[rungs[-1]].frame_bytes:
            rungs.append(i)
    if chosen not in rungs:
        rungs = sorted([*rungs, chosen], key=lambda i: (-codecs[i].frame_bytes, codecs[i].noise))
    return _thinned(rungs, [codecs[i].frame_bytes for i in rungs], chosen)


def _thinned(rungs: list[int], sizes: list[int], chosen: int) -> list[int]:
    """``rungs`` without the inner ones that save least over their predecessor, down to `limits.MAX_LADDER`."""
    while len(rungs) > limits.MAX_LADDER:
        saved = {k: sizes[k - 1] / sizes[k] for k in range(1, len(rungs) - 1) if rungs[k] != chosen}
        least = min(saved, key=lambda k: saved[k])
        rungs, sizes = rungs[:least] + rungs[least + 1 :], sizes[:least] + sizes[least + 1 :]
    return rungs


def packed_bytes(weights: int, bits: int) -> int:
    """Bytes of ``weights`` codes of ``bits`` each, packed without padding."""
    return -(-weights * bits // 8)


def segment_bytes(layers: Sequence[WeightLayer], bits: Sequence[int]) -> int:
    """Bytes of all weights. Scales, biases and the header do not count: they do not depend on the bits."""
    return sum(layer.size(b) for layer, b in zip(layers, bits, strict=True))


def total_noise(layers: Sequence[WeightLayer], bits: Sequence[int], extra: float = 0.0) -> float:
    """The noise of all layers at these bits plus ``extra``, correctly rounded."""
    return math.fsum([extra, *(layer.noise[b - WIDTHS[0]] for layer, b in zip(layers, bits, strict=True))])


def _fits(layers: Sequence[WeightLayer], bits: Sequence[int], budget: float) -> bool:
    """Whether the noise is within the budget; exact, because rounding keeps the sign of the sum."""
    return total_noise(layers, bits, -budget) <= 0


def _baseline(layers: Sequence[WeightLayer], bits: tuple[int, ...]) -> Allocation:
    size = segment_bytes(layers, bits)
    return Allocation(bits, None, size, total_noise(layers, bits), size)


def _nearest_width(layer: WeightLayer, size: int, budget: float) -> int:
    logs = [math.log(noise, 4) + bits for noise, bits in zip(layer.noise, WIDTHS, strict=False) if 0 < noise < math.inf]
    if not logs:
        return WIDTHS[0]
    if not budget:
        return WIDTHS[-1]
    wanted = math.fsum(logs) / len(logs) + math.log(size / layer.weights, 4) - math.log(budget, 4)
    return min(max(round(wanted), WIDTHS[0]), WIDTHS[-1])


def _reduction(layer: WeightLayer, bits: int, to: int) -> float:
    """Noise removed per byte added by going from ``bits`` to ``to``."""
    before, after = layer.noise[bits - WIDTHS[0]], layer.noise[to - WIDTHS[0]]
    return 0.0 if before <= after else (before - after) / max(1, layer.size(to) - layer.size(bits))


def _rectangle(rows: Sequence[Sequence[float]], fill: float) -> F64:
    """``rows`` as one array, short rows padded with ``fill``."""
    table = np.full((len(rows), max(map(len, rows), default=1)), fill, np.float64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def _check(
    layers: Sequence[WeightLayer], budget: float, codecs: Sequence[CutCodec] = (), frame_weight: float = 0.0
) -> None:
    for name, value in (("the noise budget", budget), ("frame_weight", frame_weight)):
        if not (math.isfinite(value) and value >= 0):
            raise errors.UsageError(f"{name} is {value}: pass a number of 0 or more", reason="number")
    for layer in layers:
        sized = len(layer.sizes) == len(layer.noise) >= len(WIDTHS) and min(layer.sizes) >= 0
        if layer.weights < 1 or not sized or not all(noise >= 0 for noise in layer.noise):
            raise errors.UsageError(
                f"the layer {layer.name!r} has {layer.weights} weights, {len(layer.sizes)} sizes and "
                f"{len(layer.noise)} noises; it needs at least 1 weight and {len(WIDTHS)} sizes and noises of 0 or "
                "more: add the model again",
                reason="layer",
            )
    for codec in codecs:
        if not (codec.noise >= 0 and codec.frame_bytes >= 0):
            raise errors.UsageError(
                f"the codec {codec.rule} at {codec.bits} bits has {codec.frame_bytes} bytes and noise {codec.noise}, "
                "which must be 0 or more: add the model again",
                reason="codec",
            )
