"""Bits for every weight layer of a head, and a codec for its cut: least bytes under a bound on the noise that quantization adds.

A layer's weights at b bits take so many bytes of a segment, coded or packed, and add ``noise[b]`` to the output (energy, in any one unit); noises add up. `allocate` is
exact (proof: `knapsack`), whatever the tables look like. `closed_form` is QPART's rule and `uniform` one width for all: baselines.
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
MOST_BYTES: Final = 1 << 40
_HAIR: Final = 1 + 1e-6  # so that the number in a message, given back, is enough
#: A rung must spare more than this over a more accurate one: less is within what the content of frames changes of their size.
NEAR: Final = 1.02


@dataclass(frozen=True, slots=True)
class Layer:
    """``noise[i]``: what the weights at ``WIDTHS[i]`` bits add; infinite where they may not have so many. As a rule it falls with every bit, but
    nothing here depends on that. ``coded[i]``: the bytes that they take in a segment; without it, those of packed codes count. More entries than
    `WIDTHS` are of further grids (`calibration.rounding.rounder.EVEN`), called 9, 10 and so on, which baselines do not know.
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
    """One way to send the tensor at the cut: a frame's bytes, header included, and the noise that it adds.

    ``work``: what is done beside quantizing and packing, by `codec.STAGES`, and to how many values.
    """

    rule: str
    bits: int
    frame_bytes: int
    noise: float
    work: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Allocation:
    """``objective`` = ``segment_bytes`` (packed weights) + round(``frame_weight`` x frame bytes); no other meets the budget below ``bound``.

    ``bound`` = ``objective`` means proven optimal. Baselines have ``bound`` 0.
    """

    bits: tuple[int, ...]
    codec: int | None  # index into the codecs; None where there were none
    segment_bytes: int
    noise: float
    objective: int
    bound: int = 0


def allocate(
    layers: Sequence[Layer], budget: float, codecs: Sequence[CutCodec] = (), frame_weight: float = 0.0
) -> Allocation:
    """The allocation of least objective with a total noise <= ``budget``, of those of equal bytes one.

    ``frame_weight``: how many bytes of segment a byte of every frame is worth (frames expected of a segment, where both ways of the link are alike).
    Raises `errors.UsageError` for tables and numbers that make no sense, `errors.InfeasibleError` where even the least noise is over the budget.
    """
    _check(layers, budget, codecs, frame_weight)
    costs = [list(layer.sizes) for layer in layers]
    noises = [list(layer.noise) for layer in layers]
    if codecs:
        costs.append([round(frame_weight * codec.frame_bytes) for codec in codecs])
        noises.append([codec.noise for codec in codecs])
    cost, noise = _table(costs, 0).astype(np.int64), _table(noises, np.inf)
    if (most := int(cost.max(axis=1, initial=0).sum())) >= MOST_BYTES:
        raise errors.UsageError(f"a head of {most} bytes is over {MOST_BYTES}: expect fewer frames of it")
    found = knapsack.solve(cost, noise, budget)
    if found is None:
        least = math.fsum(min(row) for row in noises) * _HAIR
        raise errors.InfeasibleError(
            f"no bit widths keep the noise within {budget:.8g}: allow {least:.8g}",
            binding=["noise"],
            nearest={"noise": least},
        )
    choice = found.choice.tolist()
    codec = choice.pop() if codecs else None
    bits = tuple(WIDTHS[0] + i for i in choice)
    extra = 0.0 if codec is None else codecs[codec].noise
    return Allocation(
        bits, codec, segment_bytes(layers, bits), total_noise(layers, bits, extra), found.cost, found.bound
    )


def uniform(layers: Sequence[Layer], budget: float) -> Allocation | None:
    """The fewest bits, the same for all layers, that meet the budget; None where 8 do not."""
    _check(layers, budget)
    for bits in WIDTHS:
        found = _plain(layers, (bits,) * len(layers))
        if _fits(layers, found.bits, budget):
            return found
    return None


def closed_form(layers: Sequence[Layer], budget: float) -> Allocation | None:
    """QPART's bits: b_l = log4(p_l sum(s) / (s_l C)), the continuous optimum for noise p_l 4^-b, then made to fit; None where they cannot be.

    p_l is fitted to the layer's table in the mean of the logarithm. b_l is rounded to the nearest of 2..8; while the tables' own noise is over the
    budget C, the change to more bits that takes away most noise per byte is made.
    """
    _check(layers, budget)
    size = sum(layer.weights for layer in layers)
    bits = [_nearest(layer, size, budget) for layer in layers]
    while not _fits(layers, bits, budget):
        better = [
            (_relief(layer, b, to), i, to)
            for i, (layer, b) in enumerate(zip(layers, bits, strict=True))
            for to in range(b + 1, 9)
        ]
        relief, i, to = max(better, default=(0.0, 0, 0))
        if relief <= 0:
            return None
        bits[i] = to
    return _plain(layers, tuple(bits))


def front(codecs: Sequence[CutCodec], among: Iterable[int]) -> list[int]:
    """Of the codecs numbered ``among`` those that no other of them beats in bytes and noise, most accurate first; of equals the first."""
    found: list[int] = []
    for i in sorted(among, key=lambda i: (codecs[i].noise, codecs[i].frame_bytes)):
        if not found or codecs[i].frame_bytes < codecs[found[-1]].frame_bytes:
            found.append(i)
    return found


def ladder(codecs: Sequence[CutCodec], among: Iterable[int], own: int) -> list[int]:
    """The `front` of the codecs numbered ``among`` and the chosen one, ``own``: most bytes first, at most `limits.MAX_LADDER`.

    Rungs that spare no more than `NEAR` over one as accurate are left out. ``own`` stays, even where another beats it, for that one takes longer to make.
    """
    rungs: list[int] = []
    for i in front(codecs, among):
        if i == own or not rungs or codecs[i].frame_bytes * NEAR < codecs[rungs[-1]].frame_bytes:
            rungs.append(i)
    if own not in rungs:
        rungs = sorted([*rungs, own], key=lambda i: (-codecs[i].frame_bytes, codecs[i].noise))
    return _thinned(rungs, [codecs[i].frame_bytes for i in rungs], own)


def _thinned(rungs: list[int], sizes: list[int], own: int) -> list[int]:
    """``rungs`` without the inner ones that spare least over the one before, until `limits.MAX_LADDER` are left."""
    while len(rungs) > limits.MAX_LADDER:
        spared = {k: sizes[k - 1] / sizes[k] for k in range(1, len(rungs) - 1) if rungs[k] != own}
        least = min(spared, key=lambda k: spared[k])
        rungs, sizes = rungs[:least] + rungs[least + 1 :], sizes[:least] + sizes[least + 1 :]
    return rungs


def packed_bytes(weights: int, bits: int) -> int:
    """Bytes that ``weights`` codes of ``bits`` take, packed without padding."""
    return -(-weights * bits // 8)


def segment_bytes(layers: Sequence[Layer], bits: Sequence[int]) -> int:
    """Bytes of all weights; scales, biases and the header are not counted, for they do not depend on the bits."""
    return sum(layer.size(b) for layer, b in zip(layers, bits, strict=True))


def total_noise(layers: Sequence[Layer], bits: Sequence[int], extra: float = 0.0) -> float:
    """The noise of all layers at these bits and ``extra``, correctly rounded."""
    return math.fsum([extra, *(layer.noise[b - WIDTHS[0]] for layer, b in zip(layers, bits, strict=True))])


def _fits(layers: Sequence[Layer], bits: Sequence[int], budget: float) -> bool:
    """Whether the noise is within the budget; exact, for the sum's sign survives its rounding."""
    return total_noise(layers, bits, -budget) <= 0


def _plain(layers: Sequence[Layer], bits: tuple[int, ...]) -> Allocation:
    size = segment_bytes(layers, bits)
    return Allocation(bits, None, size, total_noise(layers, bits), size)


def _nearest(layer: Layer, size: int, budget: float) -> int:
    logs = [math.log(noise, 4) + bits for noise, bits in zip(layer.noise, WIDTHS, strict=False) if 0 < noise < math.inf]
    if not logs:
        return WIDTHS[0]
    if not budget:
        return WIDTHS[-1]
    wanted = math.fsum(logs) / len(logs) + math.log(size / layer.weights, 4) - math.log(budget, 4)
    return min(max(round(wanted), WIDTHS[0]), WIDTHS[-1])


def _relief(layer: Layer, bits: int, to: int) -> float:
    """Noise taken away for each byte added."""
    before, after = layer.noise[bits - WIDTHS[0]], layer.noise[to - WIDTHS[0]]
    return 0.0 if before <= after else (before - after) / max(1, layer.size(to) - layer.size(bits))


def _table(rows: Sequence[Sequence[float]], fill: float) -> F64:
    """``rows`` as a rectangle, short ones filled up."""
    table = np.full((len(rows), max(map(len, rows), default=1)), fill, np.float64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def _check(layers: Sequence[Layer], budget: float, codecs: Sequence[CutCodec] = (), frame_weight: float = 0.0) -> None:
    for name, value in (("the noise budget", budget), ("frame_weight", frame_weight)):
        if not (math.isfinite(value) and value >= 0):
            raise errors.UsageError(f"{name} is {value}: give a number of 0 or more")
    for layer in layers:
        sized = len(layer.sizes) == len(layer.noise) >= len(WIDTHS) and min(layer.sizes) >= 0
        if layer.weights < 1 or not sized or not all(noise >= 0 for noise in layer.noise):
            raise errors.UsageError(
                f"layer {layer.name} needs weights, and {len(WIDTHS)} or more sizes and noises of 0 or more: calibrate it again"
            )
    if not all(codec.noise >= 0 and codec.frame_bytes >= 0 for codec in codecs):
        raise errors.UsageError("a codec needs bytes and a noise of 0 or more: calibrate it again")
