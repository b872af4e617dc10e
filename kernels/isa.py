"""The choice of the instruction set, made once, before Numba is imported.

``SPLITEDGE_ISA`` (a name in `ISAS`) overrides the choice if the machine has that set; any other set would abort the
process. All sets give the same bits and differ in speed.

On x86, LLVM detects the features of the processor. On ARM it detects neither dotprod nor i8mm unless it knows the name
of the core. There the choice relies on the hardware capabilities that the Linux kernel reports, which hold on every
core, and Numba compiles for a generic core with exactly the chosen features. SVE is never one of them.

To add an instruction set, add its name to `X86_ISAS` or `ARM_ISAS`, its features to `_NEEDS`, its compiler options to
`_MODEL` or `ARM_MODEL`, and its description to `kernels.emit.TARGETS`.
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

#: The machine and the set to compile a library for (`kernels.build`), whether this machine has it or not.
BUILD_MACHINE: Final = "SPLITEDGE_BUILD_MACHINE"
BUILD: Final = "SPLITEDGE_BUILD_ISA"

#: The kind of processor, as ``uname -m`` says it.
MACHINE: Final = os.environ.get(BUILD_MACHINE) or platform.machine()
X86: Final = MACHINE in ("x86_64", "AMD64")
ARM: Final = MACHINE in ("aarch64", "arm64") and sys.maxsize > 2**32

X86_ISAS: Final = ("avx512vnni", "avxvnni", "avx2", "portable")
ARM_ISAS: Final = ("i8mm", "dotprod", "neon", "portable")
#: The sets that libraries are compiled for, by machine.
SETS: Final = {"x86_64": X86_ISAS, "aarch64": ARM_ISAS}
ISAS: Final = X86_ISAS if X86 else ARM_ISAS if ARM else ("portable",)

_AVX512: Final = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")
#: The features that each set needs: LLVM's names on x86, those of /proc/cpuinfo on ARM. A processor may have AVX-512
#: VNNI without AVX-VNNI.
_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "avx512vnni": _AVX512,
    "avxvnni": ("avx2", "avxvnni"),
    "avx2": ("avx2",),
    "i8mm": ("asimddp", "i8mm"),
    "dotprod": ("asimddp",),
    "neon": (),
    "portable": (),
}
# Processor name and features for LLVM. On x86 only for a library and for a set below the best one, so that loops that
# LLVM vectorizes keep to it too.
_HASWELL: Final = "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt"
_MODEL: Final = {
    "avx512vnni": ("x86-64-v4", "+avx512vnni"),
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

# (entry, bit) in the auxiliary vector, from asm/hwcap.h of Linux.
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_HWCAPS: Final = {"asimd": (_AT_HWCAP, 1), "asimddp": (_AT_HWCAP, 20), "sve": (_AT_HWCAP, 22), "i8mm": (_AT_HWCAP2, 13)}


@dataclass(frozen=True)
class Choice:
    """The chosen instruction set."""

    isa: str
    model: tuple[str, str] | None  # processor name and features for Numba, or None for its own detection
    problem: str = ""  # a warning, or empty


def host_features() -> frozenset[str]:
    """The CPU features of this machine: LLVM's names on x86, those of /proc/cpuinfo on ARM."""
    if ARM:
        return _auxiliary_vector() or cpuinfo_features(Path("/proc/cpuinfo"))
    return cpuinfo_features(Path("/proc/cpuinfo")) or _llvm_features()


def usable(features: frozenset[str]) -> list[str]:
    """The sets in `ISAS` that a processor with ``features`` has, fastest first."""
    return [name for name in ISAS if features.issuperset(_NEEDS[name])]


def best(features: frozenset[str]) -> str:
    """The fastest set that a processor with ``features`` has."""
    return usable(features)[0]


def lower() -> list[str]:
    """The slower sets that this machine has besides the one in use, fastest first."""
    return [name for name in usable(host_features()) if ISAS.index(name) > ISAS.index(ISA)]


def decide(features: frozenset[str], asked: str, numba_loaded: bool) -> Choice:
    """The choice for a machine with ``features``; ``asked``: the set that the user requests, or an empty string."""
    available = used = best(features)
    problem = ""
    if asked and asked not in usable(features):
        problem = f"SPLITEDGE_ISA={asked[:40]} is not available on this machine; using {available}"
    elif asked:
        used = asked
    model = ARM_MODEL[used] if ARM else _MODEL.get(used) if X86 and used != available else None
    if model and numba_loaded:
        problem = "SPLITEDGE_ISA has only a partial effect, because numba was imported before kernels"
        if ARM and used in ("i8mm", "dotprod"):  # LLVM aborts on an instruction that is not in its features
            used, model = "neon", None
            problem = "the dot-product instructions are not used, because numba was imported before kernels"
    return Choice(used, model, problem)


def choose() -> str:
    """The set to use: the best one, or the one in ``SPLITEDGE_ISA``. Configures Numba for it if necessary."""
    loaded = "numba" in sys.modules
    if building := os.environ.get(BUILD, ""):
        os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = (ARM_MODEL if ARM else _MODEL)[building]
        return building
    if not loaded and (names := take_over(os.environ)):
        problem = f"{', '.join(names)} in the environment has no effect: splitedge decides how its kernels are compiled"
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
    choice = decide(host_features(), os.environ.get("SPLITEDGE_ISA", ""), loaded)
    if choice.problem:
        warnings.warn(choice.problem, RuntimeWarning, stacklevel=2)
    if choice.model:
        os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"] = choice.model
    return choice.isa


def take_over(environment: MutableMapping[str, str]) -> list[str]:
    """Remove Numba's variables from ``environment``; return the names of those that a user set.

    Some make LLVM abort (a processor without the instructions that kernels use), some slow down the cached kernels, and
    one switches the compiler off.
    """
    model = environment.get("NUMBA_CPU_NAME"), environment.get("NUMBA_CPU_FEATURES")
    ours = model in (*_MODEL.values(), *ARM_MODEL.values())  # set by a parent process that imported this module
    names = sorted(name for name in environment if name.startswith("NUMBA_"))
    for name in names:
        del environment[name]
    return [name for name in names if not (ours and name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"))]


def explain() -> str:
    """One line for people: the features found, the set chosen, and why."""
    features = host_features()
    found = ", ".join(sorted(features & {*_AVX512, "avxvnni", "avx2", *_HWCAPS})) or "no relevant features"
    available = best(features)
    why = "the fastest set here" if available == ISA else f"slower than {available}, the fastest set here"
    model = [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    line = f"{ISA}, {why}: the Linux kernel reports {found}"
    return f"{line}; compiled for {model[0]} {model[1]}" if model[0] else line


def cpuinfo_features(path: Path) -> frozenset[str]:
    """The features that all cores in /proc/cpuinfo share; empty if there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return frozenset()
    names = ("Features", "flags")  # on ARM, on x86
    cores = [frozenset(line.partition(":")[2].split()) for line in lines if line.partition("\t")[0].strip() in names]
    shared = frozenset.intersection(*cores) if cores else frozenset()
    return shared | {name.replace("_", "") for name in shared & {"avx512_vnni", "avx_vnni"}}  # LLVM's names


def _llvm_features() -> frozenset[str]:
    """The features that LLVM finds, on a system without /proc/cpuinfo; empty without LLVM."""
    try:
        import llvmlite.binding as llvm
    except ImportError:
        return frozenset()
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def _auxiliary_vector() -> frozenset[str]:
    """Hardware capabilities from getauxval of the C library; empty if there is none."""
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (AttributeError, OSError):
        return frozenset()
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return frozenset(name for name, (entry, bit) in _HWCAPS.items() if getauxval(entry) >> bit & 1)


ISA: Final = choose()
