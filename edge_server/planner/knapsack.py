"""The exact solver of a multiple-choice knapsack: one choice per item, the least total cost within a noise budget.

The search starts from the choices of least noise, which cost most. Against these, a solution saves ``gain`` and spends
``load`` of the slack that the budget leaves. The linear relaxation is solved by marginal analysis: take the edges of
the items' upper hulls of (load, gain), largest gain per load first, until the slack is used up. It bounds the gain of
any set of items with a given slack. It is not an answer, because its last edge is a fraction.

**Why the answer is optimal.** Let m be the relaxation's price (gain per load) and G the gain of some solution.

1. Every solution gains at most U = sum_l max_j (g_lj - m d_lj) + m slack. One that takes choice j of item l gains at
   most U - (max_i (g_li - m d_li) - (g_lj - m d_lj)). Choices for which this is below G are removed.
2. A search extends partial solutions item by item. It drops one only if another has at least as much gain at no more
   load (every completion of the first also completes the second), or if the relaxation's bound on the rest is below G.

So an optimal solution survives, unless more partial solutions were left than the width allows. Then G has grown, and
both steps run again with eight times the width. ``bound`` is below ``cost`` only if the largest width is too small.

**Arithmetic.** Costs are integers. Noise is counted in integers too: units of 2^-60 of the budget, rounded up so that
the budget holds; this is exact for every value above 2^-8 of the budget. Only bounds are floating point. Their error is
less than `_TOLERANCE` of the largest cost, and this much is added before anything is dropped. So the gap is exactly 0,
for convex and other tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FIRST_WIDTH: Final = 64
MAX_WIDTH: Final = 1 << 17  # partial solutions at a time: about 40 MB for 60 items
_UNIT_BITS: Final = 60  # of the budget in units; twice the budget plus `_ABSENT` still fits 63 bits
_ABSENT: Final = 1 << 61
_TOLERANCE: Final = 1e-11


@dataclass(frozen=True, slots=True)
class Solution:
    """``choice[l]``: the column of row l. ``bound`` <= every feasible cost; equal to ``cost`` if proven optimal."""

    choice: I64
    cost: int
    bound: int


class _Core(NamedTuple):
    """The problem: maximise the sum of gains with the sum of loads <= slack.

    Each row has a choice of load 0 and gain 0, and none of more gain at load 0.
    """

    gain: I64  # [L, K]
    load: I64  # [L, K]; _ABSENT for a choice that does not exist
    slack: int


class _HullEdges(NamedTuple):
    """The edges of all hulls, largest gain per load first."""

    item: I64
    column: I64
    gain: F64
    load: F64


def solve(cost: I64, noise: F64, budget: float, max_width: int = MAX_WIDTH) -> Solution | None:
    """The choice of least cost (then of least noise, if found) with total noise <= ``budget``; None if there is none.

    ``cost``: int64 [L, K], 0 <= cost < 2^40. ``noise``: float64 [L, K], >= 0, infinite or NaN for a choice that does
    not exist. L = 0 is allowed. ``max_width``: partial solutions at a time.
    """
    load = _in_units(noise, budget)
    items, base = np.arange(len(load)), _lightest(-cost, load)
    least, dearest = load[items, base], cost[items, base]
    slack = (_in_units(np.array([budget]), budget).item() if budget > 0 else 0) - sum(least.tolist())
    if slack < 0:
        return None
    extra = load - least[:, None]
    core = _Core(dearest[:, None] - cost, np.where(extra <= slack, extra, _ABSENT), slack)
    total, error = int(dearest.sum()), 1e-3 + _TOLERANCE * float(cost.max(axis=1, initial=0).sum())
    edges = _hulls(core)
    choice, width = _greedy(core, edges), min(FIRST_WIDTH, max_width)
    while True:
        bound, choice = _search(core, edges, choice, width, error)
        gained = int(core.gain[items, choice].sum())
        if bound <= gained or width >= max_width:
            return Solution(choice, total - gained, total - max(gained, bound))
        width = min(8 * width, max_width)


def _in_units(noise: F64, budget: float) -> I64:
    """``noise`` in units, rounded up; the budget has 2^59 to 2^60 of them. `_ABSENT` for noise above the budget."""
    shift = _UNIT_BITS - math.frexp(budget)[1]
    fits = noise <= budget
    return np.where(fits, np.ceil(np.ldexp(np.where(fits, noise, 0.0), shift)), float(_ABSENT)).astype(np.int64)


def _lightest(gain: I64, load: I64) -> I64:
    """For each row the column of least load; among equals the one of most gain."""
    least = load.min(axis=1, keepdims=True)
    columns: I64 = np.where(load == least, gain, -_ABSENT).argmax(axis=1)
    return columns


def _hulls(core: _Core) -> _HullEdges:
    """The upper hulls of (load, gain), from load 0 to the largest gain, for all items at once."""
    gain, load = core.gain.astype(np.float64), core.load.astype(np.float64)
    here = _lightest(core.gain, core.load)
    items, found = np.arange(len(gain)), []
    while len(items):
        edge_gain = gain[items] - gain[items, here][:, None]
        edge_load = load[items] - load[items, here][:, None]
        onwards = (edge_gain > 0) & (edge_load > 0) & (core.load[items] < _ABSENT)
        ratio = np.divide(edge_gain, edge_load, out=np.full_like(gain[items], -1.0), where=onwards)
        ahead = ratio.argmax(axis=1)
        rows = np.flatnonzero(onwards.any(axis=1))
        items, here = items[rows], ahead[rows]
        found.append(_HullEdges(items, here, edge_gain[rows, here], edge_load[rows, here]))
    item, column, gain, load = (np.concatenate(part) for part in zip(_NO_EDGES, *found, strict=True))
    order = np.argsort(-gain / load, kind="stable")
    return _HullEdges(item[order], column[order], gain[order], load[order])


_NO_EDGES: Final = _HullEdges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


def _greedy(core: _Core, edges: _HullEdges) -> I64:
    """A solution: the edges before the slack is used up, then repeatedly the change of most gain per load that fits."""
    items = np.arange(len(core.gain))
    choice = _lightest(core.gain, core.load)
    # The sums of loads are rounded: 2^-40 of the slack stays unused.
    whole = int(np.searchsorted(np.cumsum(edges.load), core.slack * (1 - 2.0**-40)))
    choice[edges.item[:whole]] = edges.column[:whole]  # an item's later edge overwrites its earlier one
    left = core.slack - int(core.load[items, choice].sum())
    while len(items):
        gain = core.gain - core.gain[items, choice][:, None]
        load = core.load - core.load[items, choice][:, None]
        ratio = np.where((gain > 0) & (load <= left), gain / np.maximum(load, 1), -1.0)
        item, column = divmod(int(ratio.argmax()), ratio.shape[1])
        if ratio[item, column] < 0:
            break
        left -= int(load[item, column])
        choice[item] = column
    return choice


def _search(core: _Core, edges: _HullEdges, choice: I64, width: int, error: float) -> tuple[int, I64]:
    """An upper bound of all gains, and a solution no worse than ``choice``. ``width``: partial solutions to keep."""
    items = np.arange(len(choice))
    goal = int(core.gain[items, choice].sum())
    kept = _promising(core, edges, goal, error)
    free = np.flatnonzero(kept.sum(axis=1) > 1)
    reach = np.where(kept, core.gain, 0).max(axis=1, initial=0)
    free = free[np.argsort(-reach[free], kind="stable")]
    least = _lightest(core.gain, np.where(kept, core.load, _ABSENT))  # items with one choice left take it
    gained, spent = core.gain[items, least], core.load[items, least]
    extra = np.where(kept, core.load - spent[:, None], _ABSENT)
    inner = _Core(core.gain[free] - gained[free, None], extra[free], core.slack - int(spent.sum()))
    base = int(gained.sum())
    bound, found = _walk(inner, goal - base, width, error)
    if found is None:
        return base + bound, choice
    least[free] = found
    return base + bound, least


def _promising(core: _Core, edges: _HullEdges, goal: int, error: float) -> NDArray[np.bool_]:
    """Bool [L, K]: the choices that a solution of gain ``goal`` may contain."""
    used = np.cumsum(edges.load)
    last = int(np.searchsorted(used, core.slack))
    price = edges.gain[last] / edges.load[last] if last < len(used) else 0.0
    worth = np.where(core.load < _ABSENT, core.gain - price * core.load, -np.inf)
    best = worth.max(axis=1, initial=-np.inf)
    spare = best.sum() + price * core.slack - goal
    kept: NDArray[np.bool_] = best[:, None] - worth <= spare + error
    return kept


def _walk(core: _Core, goal: int, width: int, error: float) -> tuple[int, I64 | None]:
    """Extend the partial solutions that may still gain ``goal``: an upper bound of all gains, and the best solution."""
    edges = _hulls(core)
    gain, load, dropped, trail = np.zeros(1, np.int64), np.zeros(1, np.int64), -_ABSENT, []
    for item in range(len(core.gain)):
        columns = np.flatnonzero(core.load[item] < _ABSENT)
        new_gain = (gain[:, None] + core.gain[item, columns]).ravel()
        new_load = (load[:, None] + core.load[item, columns]).ravel()
        later = edges.item > item
        spend = np.concatenate(([0.0], np.cumsum(edges.load[later])))
        earn = np.concatenate(([0.0], np.cumsum(edges.gain[later])))
        bound = new_gain + np.interp((core.slack - new_load).astype(np.float64), spend, earn)
        alive = np.flatnonzero((new_load <= core.slack) & (bound >= goal - error))
        alive = alive[_undominated(new_gain[alive], new_load[alive])]
        if len(alive) > width:
            order = np.argpartition(-bound[alive], width)
            dropped = max(dropped, math.floor(bound[alive[order[width:]]].max() + error))
            alive = np.sort(alive[order[:width]])
        gain, load = new_gain[alive], new_load[alive]
        trail.append((alive // len(columns), columns[alive % len(columns)]))
    if not len(gain):
        return dropped, None
    at = int(np.lexsort((load, -gain))[0])
    best, path = int(gain[at]), np.zeros(len(trail), np.int64)
    for item in range(len(trail) - 1, -1, -1):
        before, column = trail[item]
        path[item], at = column[at], int(before[at])
    return max(best, dropped), path


def _undominated(gain: I64, load: I64) -> I64:
    """Indices of the pairs that no other equals or beats in gain and load, most gain first; one of equals."""
    order = np.lexsort((load, -gain))
    sorted_load = load[order]
    best = np.minimum.accumulate(sorted_load)
    keep = np.ones(len(order), np.bool_)
    keep[1:] = sorted_load[1:] < best[:-1]
    found: I64 = order[keep]
    return found
