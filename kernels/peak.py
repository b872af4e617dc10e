"""The peak of the machine: integer products per second of GEMM's dot instruction, on registers only, with one thread.
For benchmarks and device profiles.
"""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels import emit, isa
from kernels.define import intrinsic, ir, kernel, types
from kernels.emit import I32, TARGET
from kernels.operators.gemm import GROUP

_TURNS: Final = 20_000
#: Accumulators in flight: enough to hide the latency of the dot step, and few enough for the registers.
_CHAINS: Final = 24 if TARGET.bits == 512 or isa.ARM else 12


@intrinsic
def _spin(typingctx, turns, seeds):
    """``turns`` dot steps on each accumulator; returns the sum of all accumulators.

    Each accumulator is an operand of its own step, so that LLVM cannot move a step out of the loop. The sum uses all of
    them.
    """

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
def run(turns: int, seeds: NDArray[np.int32]) -> Any:
    return _spin(turns, seeds)


#: Operations in a `burst`; a product and its sum are two.
BURST: Final = 2 * _TURNS * _CHAINS * TARGET.lanes * GROUP
SEEDS = np.arange(16 * (1 + _CHAINS), dtype=np.int32) * 5 % 101


def burst() -> None:
    """Run `BURST` operations on registers: some tenths of a millisecond."""
    run(_TURNS, SEEDS)


def gops(repeats: int = 5) -> float:
    """10^9 operations per second: the best of ``repeats`` bursts."""
    burst()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        burst()
        best = min(best, time.perf_counter() - start)
    return BURST / best / 1e9
