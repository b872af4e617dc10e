"""An independent look at chosen bits: written from the definitions, sharing nothing with the search. `verify` does the same for whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_server.planner.allocation import Allocation, CutCodec, Layer

F64 = NDArray[np.float64]
_Choice: TypeAlias = list[tuple[int, float]]  # the bytes and the noise of each choice that a layer has, or the cut


def verify_allocation(
    layers: Sequence[Layer],
    budget: float,
    codecs: Sequence[CutCodec],
    frame_weight: float,
    found: Allocation | None,
) -> list[str]:
    """What is wrong with ``found``, a sentence each; empty if it fits, its arithmetic holds, and neither a change nor the relaxation betrays it.

    None: the answer is that nothing fits. Wholly by other means than the search: exact fractions, each change of one choice, and the Lagrangian bound
    by bisection. What is optimal lies within one item's range of that bound, for the relaxation's best has at most one item between two choices.
    """
    items: list[_Choice] = [list(zip(_sizes(layer), layer.noise, strict=True)) for layer in layers]
    if codecs:
        items.append([(round(frame_weight * codec.frame_bytes), codec.noise) for codec in codecs])
    if found is None:
        return ["there are bits that fit"] if _least(items) <= budget else []
    if len(found.bits) != len(layers) or (found.codec is None) != (not codecs):
        return ["it answers another question"]
    taken = [b - 2 for b in found.bits] + ([found.codec or 0] if codecs else [])
    if any(not 0 <= i < len(item) for i, item in zip(taken, items, strict=True)):
        return ["a width or a codec does not exist"]
    now = [item[i] for i, item in zip(taken, items, strict=True)]
    if any(noise == float("inf") for _, noise in now):
        return ["a width that is not allowed is taken"]
    bytes_, spare = sum(size for size, _ in now), Fraction(budget) - sum(Fraction(noise) for _, noise in now)
    size, noise = _rectangle(items)
    own_size, own_noise = np.array(now, np.float64).reshape(-1, 2, 1).transpose(1, 0, 2)
    spared = (size < own_size) & (noise - own_noise < float(spare) * (1 - 1e-9))
    checks = {
        "the noise is over the budget": spare >= 0,
        "the segment's size is wrong": found.segment_bytes == sum(size for size, _ in now[: len(layers)]),
        "the objective is wrong": found.objective == bytes_,
        "the noise is wrong": close(found.noise, float(Fraction(budget) - spare)),
        "the bound is over the objective": found.bound <= found.objective,
        "fewer bytes in one place would do": not spared.any(),
        "it is far from the relaxation's bound": bytes_ - _dual(size, noise, budget)
        <= 1 + np.ptp(size, axis=1).max(initial=0),
    }
    return [fault for fault, holds in checks.items() if not holds]


def close(a: float, b: float) -> bool:
    """Whether two sums of the same terms are equal but for rounding."""
    return abs(a - b) <= 1e-9 * max(1.0, abs(a), abs(b))


def weight_bytes(layer: Layer, bits: int) -> int:
    """What the weights of ``layer`` take in a segment."""
    return layer.coded[bits - 2] if layer.coded else (layer.weights * bits + 7) // 8


def _sizes(layer: Layer) -> Sequence[int]:
    return layer.coded or [weight_bytes(layer, bits) for bits in range(2, 2 + len(layer.noise))]


def _least(items: list[_Choice]) -> Fraction | float:
    """The least noise of all choices; infinite where an item has none that is allowed."""
    quiet = [min(noise for _, noise in item) for item in items]
    return float("inf") if float("inf") in quiet else sum(map(Fraction, quiet), Fraction(0))


def _rectangle(items: list[_Choice]) -> tuple[F64, F64]:
    """Bytes and noise [items, choices], least noise first; short items are filled up with their last choice, which changes nothing."""
    width = max(map(len, items), default=1)
    padded = [pair for item in items for pair in item + item[-1:] * (width - len(item))]
    size, noise = np.array(padded, np.float64).reshape(-1, width, 2).transpose(2, 0, 1)
    order = noise.argsort(axis=1, kind="stable")
    return np.take_along_axis(size, order, 1), np.take_along_axis(noise, order, 1)


def _dual(size: F64, noise: F64, budget: float) -> float:
    """A lower bound on the bytes of all that meets the budget: the best price of noise, found by halving an interval of exponents."""
    low, high, best, each = -1000.0, 1000.0, 0.0, np.arange(len(size))
    for _ in range(60):
        middle = (low + high) / 2
        taken = (size + 2.0**middle * noise).argmin(axis=1)  # of equals that of least noise
        total = float(noise[each, taken].sum())
        best = max(best, float(size[each, taken].sum()) + 2.0**middle * (total - budget))
        low, high = (middle, high) if total > budget else (low, middle)
    return best
