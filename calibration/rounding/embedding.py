"""Even grids for an embedding: rare tokens get coarser steps.

An answer uses few rows of the table, each as often as its token occurs. The mean cost of a row's rounding is its
squared step times this frequency. The size of a row in an entropy-coded file depends on the logarithm of its step. So
the least cost for given bytes has steps in proportion to 1 / sqrt(frequency): reverse water-filling (Cover and Thomas,
Elements of Information Theory, 2nd ed., 10.3.3). Frequencies come from the calibration samples. Unseen tokens share the
Good-Turing estimate of their frequency (Good, Biometrika 40, 1953).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calibration.lowering.layers import Embed
from calibration.rounding.quantizer import Rounded, entropy, few_digits
from calibration.samples.samples import Samples
from splitedge.head.compression import alike

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
S8 = NDArray[np.int8]

#: Minimum count of an unseen token, because other texts may contain it often.
UNSEEN: Final = 0.25
#: Maximum number of weights from which the entropy is estimated.
_ENOUGH: Final = 1 << 20
_TOP: Final = 127


def counts(samples: Samples, size: int) -> I64:
    """How often each of ``size`` tokens occurs in ``samples`` of ids: [size]."""
    found = np.zeros(size, np.int64)
    for x in samples:
        found += np.bincount(x.reshape(-1).astype(np.int64), minlength=size)[:size]
    return found


def ratios(counts: I64) -> F64:
    """Steps of the rows relative to that of the most common token, as powers of sqrt(2).

    ``counts`` [V] are occurrences.
    """
    once, never = int((counts == 1).sum()), int((counts == 0).sum())
    unseen = min(1.0, max(UNSEEN, once / max(1, never)))
    expected = np.maximum(counts, unseen)
    found: F64 = 2.0 ** (np.rint(np.log2(expected.max() / expected)) / 2)
    return found


def even(table: Embed, rates: Sequence[float], counts: I64) -> list[Rounded]:
    """The rows of ``table``, rounded to the nearest level, for each of ``rates`` bits per weight.

    The rates hold in an entropy-coded file. ``counts`` [V]: occurrences of the tokens.
    """
    relative, peak = ratios(counts), np.abs(table.weight).max(axis=1).astype(np.float64)
    return [_round(table, _steps(_base(table.weight, relative, peak, rate), relative, peak)) for rate in rates]


def _round(table: Embed, steps: F32) -> Rounded:
    return Rounded(_levels(table.weight, steps), steps, table.bias.astype(np.float64))


def _steps(base: float, relative: F64, peak: F64) -> F32:
    """The step of each row, large enough for at most `_TOP` levels per side.

    All are ``base`` times powers of sqrt(2), so there are few different ones.
    """
    least = np.ceil(2 * np.log2(np.maximum(peak, 1e-20) / (_TOP * base))) / 2
    return few_digits((base * np.maximum(relative, 2.0**least)).astype(np.float32))


def _levels(weight: F32, steps: F32) -> S8:
    levels: S8 = np.clip(np.rint(weight / steps[:, None]), -_TOP, _TOP).astype(np.int8)
    return levels


def _base(weight: F32, relative: F64, peak: F64, rate: float) -> float:
    """The step of the most common rows at which the table takes ``rate`` bits per weight."""
    some = slice(None, None, 1 + weight.size // _ENOUGH)
    weight, relative, peak = weight[some], relative[some], peak[some]
    most = max(float(peak.max(initial=0.0)), 1e-20)
    fine, coarse = most / _TOP / float(relative.max()), most
    for _ in range(24):
        middle = math.sqrt(fine * coarse)
        steps = _steps(middle, relative, peak)
        fine, coarse = (fine, middle) if _bits(_levels(weight, steps), steps) <= rate else (middle, coarse)
    return coarse


def _bits(levels: S8, steps: F32) -> float:
    """Bits per weight, with a separate entropy for the rows of each step."""
    return sum(entropy(levels[rows]) * levels[rows].size for rows in alike(steps)) / max(1, levels.size)
