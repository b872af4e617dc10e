"""The exact solver: one choice for each item, least total cost under a bound on total noise (a multiple-choice knapsack).

From the choices of least noise, which cost most, a solution saves ``gain`` and spends ``load`` of the slack that the budget leaves. The linear
relaxation is solved by marginal analysis: on the upper hull of each item's (load, gain), take the steps of most gain per load until the slack is
used up. It bounds what any set of items can still gain with a given slack, but is not itself an answer: the last step is a fraction.

**Why the answer is optimal.** Let m be the relaxation's price (gain per load) and G some solution's gain. (1) Every solution gains at most
U = sum_l max_j (g_lj - m d_lj) + m slack, and one that takes choice j of item l at most U less (max_i (g_li - m d_li) - (g_lj - m d_lj)): where that
is under G the choice is removed. (2) Over what is left a search goes item by item through all partial solutions. It drops one only if another has
no less gain at no more load (whatever completes the one completes the other), or if the relaxation's bound on the rest cannot bring it to G. So
an optimal one survives, unless more were left than the width allowed; then G has grown, and both steps run again with a width eight times larger.
Only where the greatest width does not suffice is ``bound`` below ``cost``.

**Arithmetic.** Costs are integers. Noise is counted in integers too: steps of 2^-60 of the budget (rounded up, so the budget holds), which is exact for
every value above 2^-8 of the budget. Only bounds are floating point; they err by less than `_TOLERANCE` of the greatest cost, and that much is
added before anything is dropped. So the gap is exactly 0, with convex and other tables alike.
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
MOST_WIDTH: Final = 1 << 17  # partial solutions at a time: about 40 MB for 60 items
_STEPS: Final = 60  # bits of the budget: twice that and a load that is absent still fit 63
_ABSENT: Final = 1 << 61
_TOLERANCE: Final = 1e-11


@dataclass(frozen=True, slots=True)
class Solution:
    """``choice[l]`` is the column taken in row l. ``bound`` <= every feasible cost; equal to ``cost`` where optimality is proven."""

    choice: I64
    cost: int
    bound: int


class _Core(NamedTuple):
    """Items and what may still be chosen: maximise the sum of gains with the sum of loads <= slack. Each row holds a load and gain of 0, and no more gain at that load."""

    gain: I64  # [L, K]
    load: I64  # [L, K]; _ABSENT where there is no such choice
    slack: int


class _Steps(NamedTuple):
    """The hulls' steps, of most gain per load first."""

    item: I64
    column: I64
    gain: F64
    load: F64


def solve(cost: I64, noise: F64, budget: float, most_width: int = MOST_WIDTH) -> Solution | None:
    """The choice of least cost (then of least noise, if found) with total noise <= ``budget``; None where there is none.

    ``cost`` int64 [L, K], 0 <= cost < 2^40; ``noise`` float64 [L, K], >= 0, infinite or NaN where there is no such choice; L = 0 is allowed.
    """
    load = _in_steps(noise, budget)
    items, base = np.arange(len(load)), _lightest(-cost, load)
    least, dearest = load[items, base], cost[items, base]
    slack = (_in_steps(np.array([budget]), budget).item() if budget > 0 else 0) - sum(least.tolist())
    if slack < 0:
        return None
    extra = load - least[:, None]
    core = _Core(dearest[:, None] - cost, np.where(extra <= slack, extra, _ABSENT), slack)
    total, error = int(dearest.sum()), 1e-3 + _TOLERANCE * float(cost.max(axis=1, initial=0).sum())
    steps = _hulls(core)
    choice, width = _greedy(core, steps), min(FIRST_WIDTH, most_width)
    while True:
        bound, choice = _search(core, steps, choice, width, error)
        gained = int(core.gain[items, choice].sum())
        if bound <= gained or width >= most_width:
            return Solution(choice, total - gained, total - max(gained, bound))
        width = min(8 * width, most_width)


def _in_steps(noise: F64, budget: float) -> I64:
    """``noise`` in steps of which the budget has 2^59 to 2^60, rounded up; `_ABSENT` where it is over the budget on its own."""
    shift = _STEPS - math.frexp(budget)[1]
    fits = noise <= budget
    return np.where(fits, np.ceil(np.ldexp(np.where(fits, noise, 0.0), shift)), float(_ABSENT)).astype(np.int64)


def _lightest(gain: I64, load: I64) -> I64:
    """For each row the column of least load, of those the one of most gain."""
    least = load.min(axis=1, keepdims=True)
    columns: I64 = np.where(load == least, gain, -_ABSENT).argmax(axis=1)
    return columns


def _hulls(core: _Core) -> _Steps:
    """The upper hulls of (load, gain), from load 0 to the greatest gain, for all items at once."""
    gain, load = core.gain.astype(np.float64), core.load.astype(np.float64)
    here = _lightest(core.gain, core.load)
    items, found = np.arange(len(gain)), []
    while len(items):
        step_gain = gain[items] - gain[items, here][:, None]
        step_load = load[items] - load[items, here][:, None]
        onwards = (step_gain > 0) & (step_load > 0) & (core.load[items] < _ABSENT)
        ratio = np.divide(step_gain, step_load, out=np.full_like(gain[items], -1.0), where=onwards)
        ahead = ratio.argmax(axis=1)
        rows = np.flatnonzero(onwards.any(axis=1))
        items, here = items[rows], ahead[rows]
        found.append(_Steps(items, here, step_gain[rows, here], step_load[rows, here]))
    item, column, gain, load = (np.concatenate(part) for part in zip(_NO_STEPS, *found, strict=True))
    order = np.argsort(-gain / load, kind="stable")
    return _Steps(item[order], column[order], gain[order], load[order])


_NO_STEPS: Final = _Steps(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


def _greedy(core: _Core, steps: _Steps) -> I64:
    """A solution: the steps before the slack is used up; then, again and again, the change of most gain per load that still fits."""
    items = np.arange(len(core.gain))
    choice = _lightest(core.gain, core.load)
    # 2^-40 of the slack is held back for the rounding of the steps' sums.
    whole = int(np.searchsorted(np.cumsum(steps.load), core.slack * (1 - 2.0**-40)))
    choice[steps.item[:whole]] = steps.column[:whole]  # an item's later step overwrites its earlier one
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


def _search(core: _Core, steps: _Steps, choice: I64, width: int, error: float) -> tuple[int, I64]:
    """No solution gains more than the first; the second gains at least as much as ``choice``. ``width``: partial solutions to keep."""
    items = np.arange(len(choice))
    goal = int(core.gain[items, choice].sum())
    kept = _promising(core, steps, goal, error)
    free = np.flatnonzero(kept.sum(axis=1) > 1)
    reach = np.where(kept, core.gain, 0).max(axis=1, initial=0)
    free = free[np.argsort(-reach[free], kind="stable")]
    least = _lightest(core.gain, np.where(kept, core.load, _ABSENT))  # the only choice where there is but one
    gained, spent = core.gain[items, least], core.load[items, least]
    extra = np.where(kept, core.load - spent[:, None], _ABSENT)
    inner = _Core(core.gain[free] - gained[free, None], extra[free], core.slack - int(spent.sum()))
    base = int(gained.sum())
    bound, found = _walk(inner, goal - base, width, error)
    if found is None:
        return base + bound, choice
    least[free] = found
    return base + bound, least


def _promising(core: _Core, steps: _Steps, goal: int, error: float) -> NDArray[np.bool_]:
    """The choices that a solution which gains ``goal`` may hold: [L, K]."""
    used = np.cumsum(steps.load)
    last = int(np.searchsorted(used, core.slack))
    price = steps.gain[last] / steps.load[last] if last < len(used) else 0.0
    worth = np.where(core.load < _ABSENT, core.gain - price * core.load, -np.inf)
    best = worth.max(axis=1, initial=-np.inf)
    spare = best.sum() + price * core.slack - goal
    kept: NDArray[np.bool_] = best[:, None] - worth <= spare + error
    return kept


def _walk(core: _Core, goal: int, width: int, error: float) -> tuple[int, I64 | None]:
    """Item by item through the partial solutions that may still gain ``goal``: what bounds every gain, and the best solution found."""
    steps = _hulls(core)
    gain, load, dropped, trail = np.zeros(1, np.int64), np.zeros(1, np.int64), -_ABSENT, []
    for item in range(len(core.gain)):
        columns = np.flatnonzero(core.load[item] < _ABSENT)
        new_gain = (gain[:, None] + core.gain[item, columns]).ravel()
        new_load = (load[:, None] + core.load[item, columns]).ravel()
        later = steps.item > item
        spend = np.concatenate(([0.0], np.cumsum(steps.load[later])))
        earn = np.concatenate(([0.0], np.cumsum(steps.gain[later])))
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
    """Indices, of most gain first, of the pairs for which no other has as much gain at no more load; of equals, one."""
    order = np.lexsort((load, -gain))
    sorted_load = load[order]
    best = np.minimum.accumulate(sorted_load)
    keep = np.ones(len(order), np.bool_)
    keep[1:] = sorted_load[1:] < best[:-1]
    found: I64 = order[keep]
    return found
