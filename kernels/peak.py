"""The machine's own peak: integer products per second of the instruction that GEMM uses, on registers alone, one thread."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from kernels import emit, isa
from kernels.emit import I32, TARGET
from kernels.jit import kernel
from kernels.operators.gemm import GROUP

_TURNS = 20_000
#: Accumulators in flight: enough to hide the latency of any dot step, few enough for the registers that there are.
_CHAINS = 24 if TARGET.bits == 512 or isa.ARM else 12


@intrinsic
def _spin(typingctx, turns, seeds):
    """``turns`` times a step on each accumulator, its own operand too so that no step can leave the loop; a sum of them all, so that all are needed."""

    def codegen(context, b, sig, a):
        array = emit.array_pointer(context, b, sig.args[1], a[1])
        ints = emit.vector(I32, TARGET.lanes)
        operand = emit.vector(TARGET.element, TARGET.bits // TARGET.element.width)
        w = emit.load(b, operand, array)
        start = [emit.load(b, ints, array, (1 + i) * 64) for i in range(_CHAINS)]
        with emit.loop(b, a[0], *start) as (_, before, after):
            after += [_step(b, acc, b.bitcast(acc, operand), w) for acc in before]
        total = after[0]
        for acc in after[1:]:
            total = b.add(total, acc)
        return b.extract_element(total, I32(0))

    return types.int32(types.int64, seeds), codegen


def _step(b: ir.IRBuilder, acc: ir.Value, x: ir.Value, w: ir.Value) -> ir.Value:
    if TARGET.matrix:
        return emit.multiply_matrices(b, acc, x, w)
    if TARGET.pairs:
        halves = [emit.shuffle(b, x, x, range(at, at + 8)) for at in (0, 8)]
        return emit.dot(b, acc, halves, w)
    return emit.dot(b, acc, x, w)


@kernel
def _run(turns: int, seeds: NDArray[np.int32]) -> Any:
    return _spin(turns, seeds)


#: Operations of a `burst`: a product and its sum are two.
BURST = 2 * _TURNS * _CHAINS * TARGET.lanes * GROUP
_SEEDS = np.arange(16 * (1 + _CHAINS), dtype=np.int32) * 5 % 101


def burst() -> None:
    """`BURST` operations on registers, some tenths of a millisecond."""
    _run(_TURNS, _SEEDS)


def gops(repeats: int = 5) -> float:
    """10^9 operations per second: the best of ``repeats`` bursts."""
    burst()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        burst()
        best = min(best, time.perf_counter() - start)
    return BURST / best / 1e9
