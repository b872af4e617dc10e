"""What part of the roofline real programs reach: a hierarchical model of published runs, and predictions with a band.

The model. Run i has the limits t_ik of its layers of kind k (`roofline.limits`). Its time is

    T_i = sum_k t_ik exp(s_k) * exp(x_i . u) * exp(e_i),    e_i ~ N(0, sigma^2)

so exp(-s_k) is the share of the roofline that layers of kind k reach, before the effects u of the precision, the
program, the threads, the memory, the year, the core and the board; see `_effects`. All effects of a group g have the
prior N(0, sigma_g^2), so that a core or a board that nobody measured has the spread of those that somebody did.

The fit. With w_ik, the part of the time of run i in kind k, log T is nearly linear in s, and the means are those of a
ridge regression with a penalty for each group,

    A = Z'Z / sigma^2 + diag(1 / sigma_g^2),    mean = A^-1 Z'y / sigma^2

The variances maximize the evidence by MacKay's fixed point (Bayesian interpolation, Neural Computation 4, 1992), for
each group: gamma_g = n_g - tr(A^-1)_g / sigma_g^2, sigma_g^2 = |mean_g|^2 / gamma_g, sigma^2 = |residual|^2 / (n - sum
gamma). A prior of one effect (`PRIOR_SD`) keeps a group of few effects from vanishing. w and the variances alternate.

The groups were chosen by the log density of runs on boards that a fit left out. Threads and precision by core lowered
it. Runs on a kind of core that a fit left out had no part in the choice, but come from the same figures.

The prediction for a run z is log-normal: mean z . mean, variance z' A^-1 z + sigma^2, where each effect that the fit
has not seen adds its sigma_g^2.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.published import data, roofline
from benchmarks.published.data import Board, Measurement
from benchmarks.published.networks import KINDS

F64 = NDArray[np.float64]
#: Group and label of an effect.
Key = tuple[str, str]

#: Rounds of the fixed point. Against 80 rounds, bands of the published runs differ by less than 0.02 %.
ROUNDS: Final = 20
PRIOR_SD: Final = 0.15
#: Standard deviation of effects with a flat prior.
FLAT_SD: Final = 10.0
FLAT: Final = ("all",)
#: Quantile of the standard normal distribution at 90 %.
Z90: Final = 1.2815515655446004


@dataclass(frozen=True)
class Band:
    """Milliseconds that a tenth, half and nine tenths of such runs stay below."""

    fast: float
    middle: float
    slow: float

    @property
    def ratio(self) -> float:
        return self.slow / self.fast


@dataclass(frozen=True)
class Run:
    """A run, its limits by kind in seconds, and its effects with their factors."""

    row: Measurement
    board: Board
    seconds: F64
    effects: dict[Key, float]


@dataclass(frozen=True)
class Model:
    """A fitted model: the columns, their means, the inverse of A, the standard deviations of groups and of noise."""

    columns: Mapping[Key, int]
    mean: F64
    inverse: F64
    group_sd: Mapping[str, float]
    noise_sd: float

    def shares(self) -> F64:
        """s_k, in the order of `KINDS`."""
        return np.array([self.mean[self.columns["kind", kind]] for kind in KINDS])


def run(row: Measurement, board: Board, found: roofline.Limits | None = None) -> Run:
    """The run ``row`` with its roofline, or with other limits ``found``."""
    found = found or roofline.limits(row, board)
    return Run(row, board, np.array([found.seconds[kind] for kind in KINDS]), _effects(row, board, found))


@functools.cache
def of_all() -> Model:
    """The model of all published runs."""
    published = data.load()
    return fit([run(row, published.boards[row.board]) for row in published.compared])


def _effects(row: Measurement, board: Board, found: roofline.Limits) -> dict[Key, float]:
    """The effects of a run beside those of the kinds, and their factors."""
    split, memory = math.log2(row.threads), found.memory / found.total
    floats = "int8" if row.precision == "int8" else "float"
    return {
        ("all", "all"): 1.0,
        ("precision", row.precision): 1.0,
        ("program", row.runtime): 1.0,
        ("threads", "all"): split,
        ("memory", "all"): memory,
        ("year", floats): row.year - 2023.0,
        ("network", row.network): 1.0,
        ("order", "in" if roofline.CORES[board.core].in_order else "out"): 1.0,
        ("core", board.core): 1.0,
        ("board", board.board): 1.0,
        ("board precision", f"{board.board} {board.core} {floats}"): 1.0,
        ("board threads", f"{board.board} {board.core}"): split,
    }


def _kind_effects(one: Run, parts: F64) -> dict[Key, float]:
    """The effects of the kinds: of all, of the core and of the board; ``parts``: of the time in each kind.

    Products of matrices have groups of their own: programs had poor kernels for them on some cores, which says nothing
    about the spread of the other kinds.
    """
    made: dict[Key, float] = {}
    for kind, part in zip(KINDS, parts.tolist(), strict=True):
        group = "matmul" if kind == "matmul" else "kind"
        made["kind", kind] = part
        made[f"core {group}", f"{one.board.core} {kind}"] = part
        made[f"board {group}", f"{one.board.board} {one.board.core} {kind}"] = part
    return made


def _parts(one: Run, s: F64) -> tuple[F64, float]:
    """The part of each kind in the time at shares ``s``, and the constant of the linear form, log T - w . s."""
    times = one.seconds * np.exp(s)
    total = float(times.sum())
    parts = times / total
    return parts, math.log(total) - float(parts @ s)


def fit(runs: Sequence[Run], without: Collection[str] = ()) -> Model:
    """Fit the model to ``runs``, ``without`` some groups of effects; see the module's docstring."""
    y = np.array([math.log(one.row.ms / 1000) for one in runs])
    s = np.zeros(len(KINDS))
    start = [one.effects | _kind_effects(one, _parts(one, s)[0]) for one in runs]
    keys = dict.fromkeys(key for effects in start for key in effects if key[0] not in without)
    columns = {key: i for i, key in enumerate(keys)}
    groups = np.array([group for group, _ in columns])
    names = [name for name in dict.fromkeys(groups.tolist()) if name not in FLAT]
    sd, noise = dict.fromkeys(names, 0.3) | dict.fromkeys(FLAT, FLAT_SD), 0.3
    for _ in range(ROUNDS):
        z, offset = _design(runs, s, columns)
        prior = np.array([sd[group] ** -2 for group in groups])
        inverse = np.linalg.inv(z.T @ z / noise**2 + np.diag(prior))
        mean = inverse @ (z.T @ (y - offset)) / noise**2
        free = 1 - np.diag(inverse) * prior
        for name in names:
            inside = groups == name
            sd[name] = math.sqrt(
                (float(mean[inside] @ mean[inside]) + PRIOR_SD**2) / (max(float(free[inside].sum()), 0.0) + 1)
            )
        rest = y - offset - z @ mean
        noise = math.sqrt(float(rest @ rest) / (len(y) - float(free.sum())))
        s = mean[[columns["kind", kind] for kind in KINDS]]
    return Model(columns, mean, np.asarray(inverse, np.float64), sd, noise)


def _design(runs: Sequence[Run], s: F64, columns: Mapping[Key, int]) -> tuple[F64, F64]:
    """The matrix Z and the constants of the linear form at shares ``s``."""
    z, offset = np.zeros((len(runs), len(columns))), np.zeros(len(runs))
    for i, one in enumerate(runs):
        parts, offset[i] = _parts(one, s)
        for key, factor in (one.effects | _kind_effects(one, parts)).items():
            if (column := columns.get(key)) is not None:
                z[i, column] = factor
    return z, offset


def moments(model: Model, one: Run) -> tuple[float, float]:
    """Mean and standard deviation of the log of the seconds of ``one``."""
    parts, offset = _parts(one, model.shares())
    z, unseen = np.zeros(len(model.columns)), 0.0
    for key, factor in (one.effects | _kind_effects(one, parts)).items():
        if (column := model.columns.get(key)) is not None:
            z[column] = factor
        else:
            unseen += (model.group_sd.get(key[0], 0.0) * factor) ** 2
    variance = float(z @ model.inverse @ z) + unseen + model.noise_sd**2
    return offset + float(z @ model.mean), math.sqrt(variance)


def predict(model: Model, one: Run) -> Band:
    """The band of the time of ``one``."""
    mean, sd = moments(model, one)
    return Band(*(1000 * math.exp(mean + z * sd) for z in (-Z90, 0.0, Z90)))


def elsewhere(one: Run) -> Run:
    """The run ``one`` as if it were on a board with a kind of core that nobody published."""
    effects: dict[Key, float] = {}
    for (group, label), factor in one.effects.items():
        effects[group, "elsewhere" if group.startswith(("core", "board")) else label] = factor
    board = msgspec.structs.replace(one.board, board="elsewhere")
    return dataclasses.replace(one, board=board, effects=effects)


@dataclass(frozen=True)
class HeldOut:
    """A run, and its band from a fit that saw none of its board (or core, or network)."""

    run: Run
    band: Band

    @property
    def inside(self) -> bool:
        return self.band.fast <= self.run.row.ms <= self.band.slow

    @property
    def log_error(self) -> float:
        """log(measured / predicted)."""
        return math.log(self.run.row.ms / self.band.middle)


#: What one fold leaves out.
FOLDS: Final[Mapping[str, Callable[[Run], str]]] = {
    "board": lambda one: one.board.board,
    "core": lambda one: one.board.core,
    "network": lambda one: one.row.network,
}


def cross_validate(
    runs: Sequence[Run], fold: str, only: Iterable[str] | None = None, without: Collection[str] = ()
) -> list[HeldOut]:
    """Predict each run from a fit without its board, core or network; ``only``: some folds; ``without``: as `fit`."""
    label = FOLDS[fold]
    kept = list(dict.fromkeys(map(label, runs))) if only is None else list(only)
    found = []
    for left_out in kept:
        model = fit([one for one in runs if label(one) != left_out], without)
        found += [HeldOut(one, predict(model, one)) for one in runs if label(one) == left_out]
    return found
