"""The planner's bit allocation as a mixed integer program for HiGHS: an independent check of the optimum."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

# HiGHS meets a constraint within about 1e-6. Scaled to this budget, the noise is within about 1e-12 of it.
_BUDGET = 1e6


def solve(
    cost: NDArray[np.int64], noise: NDArray[np.float64], budget: float, seconds: float = 60.0
) -> NDArray[np.int64] | None:
    """Choose a column of each row of ``cost`` [L, K] with the least sum and total ``noise`` [L, K] <= ``budget``.

    The result is optimal to HiGHS's tolerance; None if it does not finish within ``seconds`` or finds no solution.
    Infinite noise marks a forbidden choice.
    """
    rows, columns = cost.shape
    one_each = sparse.kron(sparse.eye_array(rows), np.ones((1, columns)), format="csr")
    share = np.where(noise <= budget, noise, 2 * budget) / budget * _BUDGET
    with _no_output():
        found = optimize.milp(
            cost.ravel().astype(np.float64),
            integrality=np.ones(cost.size),
            bounds=optimize.Bounds(0, (noise <= budget).ravel().astype(np.float64)),
            constraints=[
                optimize.LinearConstraint(one_each, 1, 1),
                optimize.LinearConstraint(share.reshape(1, -1), -np.inf, _BUDGET),
            ],
            options={"mip_rel_gap": 0.0, "time_limit": seconds},
        )
    if found.status != 0:
        return None
    return np.asarray(found.x.reshape(rows, columns).argmax(axis=1), np.int64)


@contextmanager
def _no_output() -> Iterator[None]:
    """Suppress standard output: HiGHS 1.12 prints a line for some solutions regardless of its options.

    C's buffer is flushed before the output is restored.
    """
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
