"""Which instruction set the JIT may use: decided once, before numba is imported.

``SPLITEDGE_ISA`` (``avx512vnni``, ``avx2`` or ``portable``) overrides the choice, downwards only: a set that the machine lacks would abort the
process. Every choice gives the same bits; they differ in speed.
"""

from __future__ import annotations

import os
import platform
import sys
import warnings
from typing import Final

import llvmlite.binding as llvm

ISAS: Final = ("avx512vnni", "avx2", "portable")

_AVX512: Final = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")
# What LLVM is told of the processor when a lower set is asked for, so that the loops it vectorizes itself keep to it too.
_MODEL: Final = {
    "avx2": ("haswell", "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt"),
    "portable": ("x86-64", ""),
}


X86: Final = platform.machine() in ("x86_64", "AMD64")


def host_features() -> frozenset[str]:
    """The CPU features that LLVM finds on this machine."""
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def best(features: frozenset[str]) -> str:
    """The fastest set in `ISAS` that ``features`` allows."""
    if not X86:
        return "portable"
    if features.issuperset(_AVX512):
        return "avx512vnni"
    return "avx2" if "avx2" in features else "portable"


def choose() -> str:
    """The set to use: the best one, or a lower one named by ``SPLITEDGE_ISA``. Tells numba of a lower choice."""
    available = best(host_features())
    asked = os.environ.get("SPLITEDGE_ISA", "")
    if not asked:
        return available
    if asked not in ISAS or ISAS.index(asked) < ISAS.index(available):
        warnings.warn(f"SPLITEDGE_ISA={asked} is not available here; using {available}", RuntimeWarning, stacklevel=2)
        return available
    if asked != available and asked in _MODEL and X86:
        if "numba" in sys.modules:
            warnings.warn(
                "SPLITEDGE_ISA has only part of its effect: numba was imported before kernels",
                RuntimeWarning,
                stacklevel=2,
            )
        os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = _MODEL[asked]
    return asked


ISA: Final = choose()
