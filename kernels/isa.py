"""Which instruction set the JIT may use: decided once, before numba is imported.

``SPLITEDGE_ISA`` (a name in `ISAS`) overrides the choice, where the machine has that set: another would abort the process. Every choice gives
the same bits; they differ in speed.

On x86 LLVM finds the processor's features itself. On ARM it never finds dotprod and i8mm: they would come only with the name of a core that it
knows. So there the Linux kernel is asked (its hardware capabilities hold on every core of the machine), and numba is told a generic core with
exactly the features that were chosen. SVE is never among them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import llvmlite.binding as llvm

X86: Final = platform.machine() in ("x86_64", "AMD64")
ARM: Final = platform.machine() in ("aarch64", "arm64") and sys.maxsize > 2**32

X86_ISAS: Final = ("avx512vnni", "avxvnni", "avx2", "portable")
ARM_ISAS: Final = ("i8mm", "dotprod", "neon", "portable")
ISAS: Final = X86_ISAS if X86 else ARM_ISAS if ARM else ("portable",)

_AVX512: Final = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")
#: The features that each set needs: LLVM's names on x86, those of /proc/cpuinfo on ARM. A server may have AVX-512 VNNI and not AVX-VNNI.
_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "avx512vnni": _AVX512,
    "avxvnni": ("avx2", "avxvnni"),
    "avx2": ("avx2",),
    "i8mm": ("asimddp", "i8mm"),
    "dotprod": ("asimddp",),
    "neon": (),
    "portable": (),
}
# What LLVM is told of the processor: on x86 only when a lower set is asked for, so that the loops it vectorizes itself keep to it too.
_HASWELL: Final = "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt"
_MODEL: Final = {
    "avxvnni": ("haswell", f"{_HASWELL},+avxvnni"),
    "avx2": ("haswell", _HASWELL),
    "portable": ("x86-64", ""),
}
ARM_MODEL: Final = {
    "i8mm": ("generic", "+fp-armv8,+neon,+dotprod,+i8mm"),
    "dotprod": ("generic", "+fp-armv8,+neon,+dotprod"),
    "neon": ("generic", "+fp-armv8,+neon"),
    "portable": ("generic", "+fp-armv8,+neon"),
}

# Bits of the auxiliary vector, as in Linux's asm/hwcap.h: (entry, bit).
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_HWCAPS: Final = {"asimd": (_AT_HWCAP, 1), "asimddp": (_AT_HWCAP, 20), "sve": (_AT_HWCAP, 22), "i8mm": (_AT_HWCAP2, 13)}


@dataclass(frozen=True)
class Choice:
    """``isa`` is used; ``told`` is the core and the features that numba must be told of, if any; ``problem`` is for a warning, or empty."""

    isa: str
    told: tuple[str, str] | None
    problem: str = ""


def host_features() -> frozenset[str]:
    """The CPU features of this machine: LLVM's names on x86, those of /proc/cpuinfo on ARM."""
    if ARM:
        return _auxiliary_vector() or cpuinfo_features(Path("/proc/cpuinfo"))
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def usable(features: frozenset[str]) -> list[str]:
    """The sets in `ISAS` that ``features`` allow, fastest first."""
    return [name for name in ISAS if features.issuperset(_NEEDS[name])]


def best(features: frozenset[str]) -> str:
    """The fastest of them."""
    return usable(features)[0]


def lower() -> list[str]:
    """The sets that this machine has below the one in use, fastest first."""
    return [name for name in usable(host_features()) if ISAS.index(name) > ISAS.index(ISA)]


def decide(features: frozenset[str], asked: str, numba_loaded: bool) -> Choice:
    """The choice for a machine with ``features`` where the user ``asked`` for a set (or for none: an empty string)."""
    available = used = best(features)
    problem = ""
    if asked and asked not in usable(features):
        problem = f"SPLITEDGE_ISA={asked[:40]} is not available here; using {available}"
    elif asked:
        used = asked
    told = ARM_MODEL[used] if ARM else _MODEL.get(used) if X86 and used != available else None
    if told and numba_loaded:
        problem = "SPLITEDGE_ISA has only part of its effect: numba was imported before kernels"
        if ARM and used in ("i8mm", "dotprod"):  # LLVM would abort on an instruction that it was not told of
            used, told = "neon", None
            problem = "the dot-product instructions stay unused: numba was imported before kernels"
    return Choice(used, told, problem)


def choose() -> str:
    """The set to use: the best one, or a lower one named by ``SPLITEDGE_ISA``. Tells numba of it where that is needed."""
    loaded = "numba" in sys.modules
    if not loaded and (names := take_over(os.environ)):
        problem = (
            f"{', '.join(names)} in the environment has no effect here: splitedge decides how its kernels are compiled"
        )
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
    choice = decide(host_features(), os.environ.get("SPLITEDGE_ISA", ""), loaded)
    if choice.problem:
        warnings.warn(choice.problem, RuntimeWarning, stacklevel=2)
    if choice.told:
        os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = choice.told
    return choice.isa


def take_over(environment: MutableMapping[str, str]) -> list[str]:
    """Remove numba's variables from ``environment``; returns the names of those that a user set.

    Some make LLVM abort (a processor without the instructions that kernels name), some slow down the kernels that are kept, one switches the
    compiler off.
    """
    told = environment.get("NUMBA_CPU_NAME"), environment.get("NUMBA_CPU_FEATURES")
    ours = told in (*_MODEL.values(), *ARM_MODEL.values())  # a parent process of ours told it
    names = sorted(name for name in environment if name.startswith("NUMBA_"))
    for name in names:
        del environment[name]
    return [name for name in names if not (ours and name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"))]


def explain() -> str:
    """What was found, what was chosen and why, in one line for people."""
    features = host_features()
    found = ", ".join(sorted(features & {*_AVX512, "avxvnni", "avx2", *_HWCAPS})) or "nothing that matters"
    available = best(features)
    why = "the fastest set for that" if available == ISA else f"slower than {available}, the fastest set for that"
    told = [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    return f"{ISA}, {why}: {'the Linux kernel reports' if ARM else 'LLVM finds'} {found}" + (
        f"; compiled for {told[0]} {told[1]}" if told[0] else ""
    )


def cpuinfo_features(path: Path) -> frozenset[str]:
    """The features that all cores in /proc/cpuinfo share; empty where there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return frozenset()
    cores = [frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("Features")]
    return frozenset.intersection(*cores) if cores else frozenset()


def _auxiliary_vector() -> frozenset[str]:
    """Capabilities from the C library's getauxval; empty where there is none."""
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (AttributeError, OSError):
        return frozenset()
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return frozenset(name for name, (entry, bit) in _HWCAPS.items() if getauxval(entry) >> bit & 1)


ISA: Final = choose()
