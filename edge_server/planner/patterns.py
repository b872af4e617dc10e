"""Offline: the best bits for every cut and accuracy level, computed once for a bundle (QPART's first algorithm).

A cut's pattern depends on the codec too, for what the codec adds in noise the weights must save. So for each cut, level and codec the weights get
the optimal bits for what the codec leaves of the level's noise; then every codec is tried with every pattern of its cut, since a device that holds a
segment at a stricter level uses it for free. Each pair that meets the loosest level is a candidate of the online choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edge_server.planner import refusals
from edge_server.planner.allocation import Allocation, CutCodec, Layer, allocate, segment_bytes, total_noise
from edge_server.planner.verify_bits import verify_allocation
from splitedge import errors
from splitedge.codec import STAGES
from splitedge.protocol.messages import Cut

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Level:
    """An accuracy level: so much noise on the output costs at most ``drop_points``."""

    drop_points: float
    noise: float


@dataclass(frozen=True, slots=True)
class Place:
    """A cut, the weights of its head, and the codecs for its tensor: none at the output, where nothing is sent.

    ``inside`` names every layer whose output is computed in the head; ``memory_bytes`` is what the head needs on the board; ``other_bytes`` is what a
    segment holds beside weights, which no bits change; ``noise`` is that of the head's activations; ``is_input``: the head only moves bytes about,
    so what leaves is the input itself.
    """

    cut: Cut
    layers: tuple[Layer, ...]
    codecs: tuple[CutCodec, ...]
    tail_ms: float
    memory_bytes: int
    inside: frozenset[str] = frozenset()
    is_input: bool = False
    other_bytes: int = 0
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Pattern:
    """Bits for each weight layer of a place; ``segment_bytes`` counts all of the segment, ``noise`` that of the weights."""

    place: int
    bits: tuple[int, ...]
    segment_bytes: int
    noise: float


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """All that the online choice needs of a model. Candidate i: ``patterns[pattern[i]]`` with codec ``codec[i]`` (-1: nothing is sent).

    Candidates are in order of ``level[i]``, the strictest level that they meet; ``ends[k]``: how many meet level k.
    """

    model: str
    places: tuple[Place, ...]
    levels: tuple[Level, ...]
    patterns: tuple[Pattern, ...]
    place: I64
    pattern: I64
    codec: I64
    level: I64
    noise: F64
    frame_bytes: F64
    segment_bytes: F64
    staged: F64  # [len(codec.STAGES), candidates]: values that go through each stage of the codec
    ends: I64


def precompute(
    model: str,
    places: Sequence[Place],
    levels: Sequence[Level],
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """The table of a model. ``progress`` hears how many places of all are done.

    Raises `errors.UsageError` for levels that do not rise in both columns, or where no place meets the loosest one.
    """
    return tabulate(model, places, levels, best_patterns(places, levels, progress))


def best_patterns(
    places: Sequence[Place], levels: Sequence[Level], progress: Callable[[int, int], None] | None = None
) -> list[Pattern]:
    """The optimal patterns of every place, each once: nearly all of the work of a table. ``progress`` as in `precompute`.

    Raises `errors.UsageError` for levels that do not rise in both columns.
    """
    rises = all(a.drop_points < b.drop_points and a.noise < b.noise for a, b in pairwise(levels))
    if not levels or not rises:
        raise errors.UsageError("accuracy levels must rise in drop and in noise: calibrate the model again")
    patterns: list[Pattern] = []
    for index, place in enumerate(places):
        patterns += _patterns(index, place, levels)
        if progress:
            progress(index + 1, len(places))
    return patterns


def tabulate(model: str, places: Sequence[Place], levels: Sequence[Level], patterns: Sequence[Pattern]) -> Table:
    """The table of these ``patterns``, with every codec of their places. Raises `errors.UsageError` where no pair meets the loosest level."""
    codecs = [_codecs(place) for place in places]
    rows: list[tuple[int, int, int, float, int]] = []
    for number, pattern in enumerate(patterns):
        for codec, (frame_bytes, noise) in codecs[pattern.place].items():
            total = total_noise(places[pattern.place].layers, pattern.bits, noise)
            if total <= levels[-1].noise:
                rows.append((pattern.place, number, codec, total, frame_bytes))
    if not rows:
        raise errors.UsageError(
            f"no bit widths of {model} keep any accuracy that may be asked for: add the model again, with more samples or other ones"
        )
    return _table(model, tuple(places), tuple(levels), tuple(patterns), rows)


def pattern_of(index: int, place: Place, bits: tuple[int, ...]) -> Pattern:
    """The pattern of these ``bits`` at ``place``, whose number is ``index``."""
    size = segment_bytes(place.layers, bits) + place.other_bytes
    return Pattern(index, bits, size, total_noise(place.layers, bits))


def _codecs(place: Place) -> dict[int, tuple[int, float]]:
    """Frame bytes of each codec, and its noise with the place's own; where nothing is sent, of none."""
    if place.cut.kind == "output":
        return {-1: (0, place.noise)}
    return {i: (codec.frame_bytes, place.noise + codec.noise) for i, codec in enumerate(place.codecs)}


def _patterns(index: int, place: Place, levels: Sequence[Level]) -> list[Pattern]:
    """Those of one place."""
    found: dict[tuple[int, ...], Pattern] = {}
    for level in levels:
        for _, noise in _codecs(place).values():
            best = _best(place.layers, level.noise - noise)
            if best is not None and best.bits not in found:
                found[best.bits] = pattern_of(index, place, best.bits)
    return list(found.values())


def _best(layers: Sequence[Layer], budget: float) -> Allocation | None:
    """The fewest bytes within ``budget``, checked; None where nothing is. Raises `errors.PlanError` for an answer that is wrong."""
    if budget < 0:
        return None
    try:
        found = allocate(layers, budget)
    except errors.InfeasibleError:
        found = None
    refusals.hold(verify_allocation(layers, budget, (), 0.0, found))
    return found


def _table(
    model: str,
    places: tuple[Place, ...],
    levels: tuple[Level, ...],
    patterns: tuple[Pattern, ...],
    rows: list[tuple[int, int, int, float, int]],
) -> Table:
    place, pattern, codec = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    noise, frame_bytes = (np.array([row[i] for row in rows], np.float64) for i in (3, 4))
    level = np.searchsorted([one.noise for one in levels], noise)
    segment_bytes = np.array([patterns[i].segment_bytes for i in pattern], np.float64)
    order = np.lexsort((noise, segment_bytes, level))
    return Table(
        model, places, levels, patterns, place[order], pattern[order], codec[order], level[order], noise[order], frame_bytes[order],
        segment_bytes[order], _staged(places, place[order], codec[order]), np.searchsorted(level[order], np.arange(len(levels)), side="right"),
    )  # fmt: skip


def _staged(places: Sequence[Place], place: I64, codec: I64) -> F64:
    """Values that go through each of `STAGES` with each candidate."""
    most = max((len(one.codecs) for one in places), default=0)
    counts = np.zeros((len(STAGES), len(places), most + 1))  # the last, -1: nothing is sent
    for index, one in enumerate(places):
        for number, made in enumerate(one.codecs):
            for stage, amount in made.work.items():
                counts[STAGES.index(stage), index, number] = amount
    found: F64 = counts[:, place, codec]
    return found
