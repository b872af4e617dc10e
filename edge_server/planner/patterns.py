"""Offline: the optimal bits for every cut and accuracy level, computed once per bundle (QPART's first algorithm).

The noise of the codec leaves less for the weights, so a pattern depends on the codec too. For each cut, level and
codec the weights get the optimal bits within the rest of the level's noise. Then every codec is combined with every
pattern of its cut: a board that holds a segment of a stricter level reuses it at no cost. Each pair within the loosest
level is a candidate of the online choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_server.planner import refusals
from edge_server.planner.allocation import Allocation, CutCodec, WeightLayer, allocate, segment_bytes, total_noise
from edge_server.planner.verify_bits import verify_allocation
from splitedge import errors
from splitedge.codec import STAGES
from splitedge.protocol.messages import Cut

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Level:
    """An accuracy level: ``noise`` at the output costs at most ``drop_points``."""

    drop_points: float
    noise: float


@dataclass(frozen=True, slots=True)
class CutOption:
    """A cut that a plan may choose, with its head's weight layers and the codecs for its tensor.

    ``codecs``: none at the output, where nothing is sent. ``tail_ms``: of the tail behind it. ``memory_bytes``: needed
    on the board. ``inside``: names of all layers whose output the head computes. ``is_input``: the head's
    output reveals the input. ``operators``: kinds in the head. ``other_bytes``: of the segment besides weights.
    ``noise``: of the head's activations.
    """

    cut: Cut
    layers: tuple[WeightLayer, ...]
    codecs: tuple[CutCodec, ...]
    tail_ms: float
    memory_bytes: int
    inside: frozenset[str] = frozenset()
    is_input: bool = False
    other_bytes: int = 0
    noise: float = 0.0
    operators: frozenset[str] = frozenset()

    @property
    def sends_input(self) -> bool:
        """Whether the input itself leaves the board."""
        return self.is_input or self.cut.kind == "input"


@dataclass(frozen=True, slots=True)
class Pattern:
    """Bits for each weight layer of the option of index ``option``.

    ``segment_bytes``: of the whole segment. ``noise``: of the weights.
    """

    option: int
    bits: tuple[int, ...]
    segment_bytes: int
    noise: float


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A model as the online choice sees it.

    Candidate i is ``patterns[pattern[i]]`` with codec ``codec[i]`` of ``options[option[i]]`` (-1: nothing is sent).
    Candidates are sorted by ``level[i]``, the strictest level that they meet; ``ends[k]`` of them meet level k.
    """

    model: str
    options: tuple[CutOption, ...]
    levels: tuple[Level, ...]
    patterns: tuple[Pattern, ...]
    option: I64
    pattern: I64
    codec: I64
    level: I64
    noise: F64
    frame_bytes: F64
    segment_bytes: F64
    codec_work: F64  # [len(codec.STAGES), candidates]: values that pass through each stage of the codec
    ends: I64


def precompute(
    model: str,
    options: Sequence[CutOption],
    levels: Sequence[Level],
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """The table of a model. ``progress`` is called with the number of options done and their total.

    Raises `errors.UsageError` for levels that do not rise in both fields, and if no option meets the loosest one.
    """
    return tabulate(model, options, levels, best_patterns(options, levels, progress))


def best_patterns(
    options: Sequence[CutOption], levels: Sequence[Level], progress: Callable[[int, int], None] | None = None
) -> list[Pattern]:
    """The distinct optimal patterns of every option: nearly all of a table's work. ``progress`` as in `precompute`.

    Raises `errors.UsageError` for levels that do not rise in both fields.
    """
    for a, b in pairwise(levels):
        if not (a.drop_points < b.drop_points and a.noise < b.noise):
            raise errors.UsageError(
                f"the accuracy levels {a} and {b} do not rise in drop and in noise: add the model again",
                reason="levels",
            )
    if not levels:
        raise errors.UsageError("the model has no accuracy levels: add the model again", reason="levels")
    patterns: list[Pattern] = []
    for index, option in enumerate(options):
        patterns += _patterns(index, option, levels)
        if progress:
            progress(index + 1, len(options))
    return patterns


class _Candidate(NamedTuple):
    option: int
    pattern: int
    codec: int
    noise: float
    frame_bytes: int


def tabulate(model: str, options: Sequence[CutOption], levels: Sequence[Level], patterns: Sequence[Pattern]) -> Table:
    """The table of ``patterns`` with every codec of their cuts.

    Raises `errors.UsageError` if no pair meets the loosest level.
    """
    codecs = [_codecs(option) for option in options]
    candidates: list[_Candidate] = []
    for number, pattern in enumerate(patterns):
        for codec, (frame_bytes, noise) in codecs[pattern.option].items():
            total = total_noise(options[pattern.option].layers, pattern.bits, noise)
            if total <= levels[-1].noise:
                candidates.append(_Candidate(pattern.option, number, codec, total, frame_bytes))
    if not candidates:
        raise errors.UsageError(
            f"no bit widths of {model} keep the accuracy within {levels[-1].drop_points:g} points: "
            "add the model again with more or other samples",
            reason="no-bit-widths",
        )
    return _table(model, tuple(options), tuple(levels), tuple(patterns), candidates)


def make_pattern(index: int, option: CutOption, bits: tuple[int, ...]) -> Pattern:
    """The pattern of ``bits`` for ``option``, whose index is ``index``."""
    size = segment_bytes(option.layers, bits) + option.other_bytes
    return Pattern(index, bits, size, total_noise(option.layers, bits))


def _codecs(option: CutOption) -> dict[int, tuple[int, float]]:
    """By codec: frame bytes, and the noise of codec and activations; -1 stands for no codec."""
    if option.cut.kind == "output":
        return {-1: (0, option.noise)}
    return {i: (codec.frame_bytes, option.noise + codec.noise) for i, codec in enumerate(option.codecs)}


def _patterns(index: int, option: CutOption, levels: Sequence[Level]) -> list[Pattern]:
    """The distinct optimal patterns of one option.

    The optimum of a budget is also the optimum of every smaller budget that it fits.
    """
    found: dict[tuple[int, ...], Pattern] = {}
    best: Allocation | None = None
    budgets = {level.noise - noise for level in levels for _, noise in _codecs(option).values()}
    for budget in sorted((one for one in budgets if one >= 0), reverse=True):
        if best is not None and best.noise <= budget:
            continue
        best = _best(option.layers, budget)
        if best is None:  # nor does anything fit a smaller budget
            break
        found.setdefault(best.bits, make_pattern(index, option, best.bits))
    return list(found.values())


def _best(layers: Sequence[WeightLayer], budget: float) -> Allocation | None:
    """The verified allocation of fewest bytes within ``budget``; None if nothing fits. Raises `errors.PlanError`."""
    try:
        found = allocate(layers, budget)
    except errors.InfeasibleError:
        found = None
    refusals.require_valid(verify_allocation(layers, budget, (), 0.0, found))
    return found


def _table(
    model: str,
    options: tuple[CutOption, ...],
    levels: tuple[Level, ...],
    patterns: tuple[Pattern, ...],
    candidates: Sequence[_Candidate],
) -> Table:
    option, pattern, codec = (np.array([one[i] for one in candidates], np.int64) for i in range(3))
    noise, frame_bytes = (np.array([one[i] for one in candidates], np.float64) for i in (3, 4))
    level = np.searchsorted([one.noise for one in levels], noise)
    size = np.array([patterns[i].segment_bytes for i in pattern], np.float64)
    order = np.lexsort((noise, size, level))
    return Table(
        model=model,
        options=options,
        levels=levels,
        patterns=patterns,
        option=option[order],
        pattern=pattern[order],
        codec=codec[order],
        level=level[order],
        noise=noise[order],
        frame_bytes=frame_bytes[order],
        segment_bytes=size[order],
        codec_work=_codec_work(options, option[order], codec[order]),
        ends=np.searchsorted(level[order], np.arange(len(levels)), side="right"),
    )


def _codec_work(options: Sequence[CutOption], option: I64, codec: I64) -> F64:
    """`Table.codec_work`."""
    most = max((len(one.codecs) for one in options), default=0)
    counts = np.zeros((len(STAGES), len(options), most + 1))  # the last one, index -1: nothing is sent
    for index, one in enumerate(options):
        for number, made in enumerate(one.codecs):
            for stage, amount in made.work.items():
                counts[STAGES.index(stage), index, number] = amount
    found: F64 = counts[:, option, codec]
    return found
