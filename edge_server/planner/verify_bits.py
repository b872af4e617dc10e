"""An independent check of chosen bits: written from the definitions, shares no code with the search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_server.planner.allocation import Allocation, CutCodec, WeightLayer

F64 = NDArray[np.float64]
#: Bisection steps for the price of noise. Any price gives a bound; these find the best within 2e-6.
STEPS: Final = 30
_Choices: TypeAlias = list[tuple[int, float]]  # bytes and noise of each choice of a layer, or of the cut's codec


def verify_allocation(
    layers: Sequence[WeightLayer],
    budget: float,
    codecs: Sequence[CutCodec],
    frame_weight: float,
    found: Allocation | None,
) -> list[str]:
    """The faults of ``found``, a sentence each; None claims that nothing fits.

    Checks that it fits and that its sums are exact (`math.fsum` keeps their sign), tries each change of one choice, and compares it with
    the Lagrangian bound, found by bisection. An optimum is within one item's range of that bound, because the
    relaxation's optimum has at most one item between two choices.
    """
    items: list[_Choices] = [list(zip(_sizes(layer), layer.noise, strict=True)) for layer in layers]
    if codecs:
        items.append([(round(frame_weight * codec.frame_bytes), codec.noise) for codec in codecs])
    if found is None:
        return ["there are bits that fit"] if _fit(items, budget) else []
    if len(found.bits) != len(layers) or (found.codec is None) != (not codecs):
        return ["the answer has other layers or codecs"]
    taken = [b - 2 for b in found.bits] + ([found.codec or 0] if codecs else [])
    if any(not 0 <= i < len(item) for i, item in zip(taken, items, strict=True)):
        return ["a width or a codec does not exist"]
    now = [item[i] for i, item in zip(taken, items, strict=True)]
    if any(noise == float("inf") for _, noise in now):
        return ["a width is not allowed"]
    bytes_, over = sum(size for size, _ in now), math.fsum([*(noise for _, noise in now), -budget])
    size, noise = _rectangle(items)
    own_size, own_noise = np.array(now, np.float64).reshape(-1, 2, 1).transpose(1, 0, 2)
    saves = (size < own_size) & (noise - own_noise < -over * (1 - 1e-9))
    checks = {
        "the noise exceeds the budget": over <= 0,
        "the segment's size is wrong": found.segment_bytes == sum(size for size, _ in now[: len(layers)]),
        "the objective is wrong": found.objective == bytes_,
        "the noise is wrong": close(found.noise, math.fsum(noise for _, noise in now)),
        "the bound exceeds the objective": found.bound <= found.objective,
        "a change of one choice saves bytes": not saves.any(),
        "it is far from the relaxation's bound": bytes_ - _dual(size, noise, budget)
        <= 1 + np.ptp(size, axis=1).max(initial=0),
    }
    return [fault for fault, holds in checks.items() if not holds]


def close(a: float, b: float) -> bool:
    """Whether two sums of the same terms differ only by rounding."""
    return abs(a - b) <= 1e-9 * max(1.0, abs(a), abs(b))


def weight_bytes(layer: WeightLayer, bits: int) -> int:
    """Bytes of the weights of ``layer`` in a segment."""
    return layer.coded[bits - 2] if layer.coded else (layer.weights * bits + 7) // 8


def _sizes(layer: WeightLayer) -> Sequence[int]:
    return layer.coded or [weight_bytes(layer, bits) for bits in range(2, 2 + len(layer.noise))]


def _fit(items: list[_Choices], budget: float) -> bool:
    """Whether the choices of least noise fit into the budget."""
    return math.fsum([*(min(noise for _, noise in item) for item in items), -budget]) <= 0


def _rectangle(items: list[_Choices]) -> tuple[F64, F64]:
    """Bytes and noise [items, choices], least noise first; short items repeat their last choice."""
    width = max(map(len, items), default=1)
    padded = [pair for item in items for pair in item + item[-1:] * (width - len(item))]
    size, noise = np.array(padded, np.float64).reshape(-1, width, 2).transpose(2, 0, 1)
    order = noise.argsort(axis=1, kind="stable")
    return np.take_along_axis(size, order, 1), np.take_along_axis(noise, order, 1)


def _dual(size: F64, noise: F64, budget: float) -> float:
    """A lower bound of the bytes within the budget: the best price of noise, by bisection over its exponent."""
    low, high, best, each = -1000.0, 1000.0, 0.0, np.arange(len(size))
    for _ in range(STEPS):
        middle = (low + high) / 2
        taken = (size + 2.0**middle * noise).argmin(axis=1)  # the least noise among equals
        total = float(noise[each, taken].sum())
        best = max(best, float(size[each, taken].sum()) + 2.0**middle * (total - budget))
        low, high = (middle, high) if total > budget else (low, middle)
    return best
