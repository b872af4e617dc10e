"""Even grids for an embedding: rare tokens on coarser steps.

An answer holds few of a table's rows, each as often as its token occurs. What its rounding costs answers in the mean is its squared step times that
frequency, what it takes in an entropy-coded file is the logarithm of its step: the least cost for given bytes has steps in proportion to
1 / sqrt(frequency), as reverse water-filling has it (Cover and Thomas, Elements of Information Theory, 2nd ed., 10.3.3). Frequencies are those of
calibration's samples; tokens that they lack share what Good and Turing expect of such (Good, Biometrika 40, 1953).
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

#: A token that was never seen counts for no less: other texts than calibration's may be full of it.
UNSEEN: Final = 0.25
#: Weights whose entropy stands for all.
_ENOUGH: Final = 1 << 20
_TOP: Final = 127


def counts(samples: Samples, size: int) -> I64:
    """How often each of ``size`` tokens occurs in ``samples`` of ids: [size]."""
    found = np.zeros(size, np.int64)
    for x in samples:
        found += np.bincount(x.reshape(-1).astype(np.int64), minlength=size)[:size]
    return found


def ratios(counts: I64) -> F64:
    """Steps of rows to that of the commonest token's, powers of sqrt(2): of the tokens that occurred ``counts`` times [V]."""
    once, never = int((counts == 1).sum()), int((counts == 0).sum())
    unseen = min(1.0, max(UNSEEN, once / max(1, never)))
    expected = np.maximum(counts, unseen)
    found: F64 = 2.0 ** (np.rint(np.log2(expected.max() / expected)) / 2)
    return found


def even(table: Embed, rates: Sequence[float], counts: I64) -> list[Rounded]:
    """The rows of ``table`` at each of ``rates`` bits a weight in an entropy-coded file, to the nearest level; their tokens occurred ``counts`` times [V]."""
    relative, peak = ratios(counts), np.abs(table.weight).max(axis=1).astype(np.float64)
    return [_round(table, _steps(_base(table.weight, relative, peak, rate), relative, peak)) for rate in rates]


def _round(table: Embed, steps: F32) -> Rounded:
    return Rounded(_levels(table.weight, steps), steps, table.bias.astype(np.float64))


def _steps(base: float, relative: F64, peak: F64) -> F32:
    """Of each row; none with more than `_TOP` levels on a side. All are ``base`` times powers of sqrt(2), so there are few different ones."""
    least = np.ceil(2 * np.log2(np.maximum(peak, 1e-20) / (_TOP * base))) / 2
    return few_digits((base * np.maximum(relative, 2.0**least)).astype(np.float32))


def _levels(weight: F32, steps: F32) -> S8:
    levels: S8 = np.clip(np.rint(weight / steps[:, None]), -_TOP, _TOP).astype(np.int8)
    return levels


def _base(weight: F32, relative: F64, peak: F64, rate: float) -> float:
    """The step of the commonest rows at which all take ``rate`` bits a weight."""
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
    """Bits a weight, those of rows with another step counted apart."""
    return sum(entropy(levels[rows]) * levels[rows].size for rows in alike(steps)) / max(1, levels.size)
