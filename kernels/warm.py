"""A list of every kernel that a service calls, so that all of them can be compiled before it starts, and their place.

With a library in the package (`kernels.native`) nothing is compiled.

A kernel is compiled for the types of its arguments. These do not depend on the number of threads, the shapes, or the
bit widths of weights and codecs, so the list is short. A test checks that it is complete: it contains every kernel, and
heads and codecs compile nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels import codec, native, program, team
from kernels.codec import projection
from kernels.program import OPERATOR, Kind, Memory
from kernels.rans import adaptive, static

if native.LIBRARY is None:  # else Numba is not needed, and may not be installed
    from kernels import jit

#: Memory of a process that compiles the largest kernel, in bytes (346 MiB measured).
JOB_BYTES: Final = 400 << 20


class Step(NamedTuple):
    """One compilation: its purpose for people, the kernel, and arguments with the types of a real call."""

    name: str
    kernel: Any
    arguments: tuple[Any, ...]

    def is_kept(self) -> bool:
        """Whether it is in a library or in the cache."""
        return native.LIBRARY is not None or jit.is_kept(self.kernel, self.arguments)

    def compile(self) -> None:
        """Load it from the cache or compile it, which takes seconds, and on a small board minutes."""
        if native.LIBRARY is None:
            jit.compile_for(self.kernel, self.arguments)


def steps() -> list[Step]:
    """All compilations, in the order of use."""
    codes, reals = np.zeros(8, np.uint8), np.zeros(1, np.float32)
    words, counts, places = np.zeros(2, np.uint32), np.ones((1, 2), np.int64), np.zeros(2, np.int64)
    table, short = np.zeros((1, 2), np.float32), np.zeros(2, np.uint16)
    rows = _readonly(np.zeros((1, 2), np.float32))
    frame, tensor = _readonly(np.zeros(8, np.uint8)), _readonly(np.zeros(8, np.float32))
    return [
        Step("segment files", adaptive.decode, (words, codes, counts, places, codes)),
        Step("their upgrades", adaptive.encode, (codes, codes, counts, places, words)),
        Step("weights", codec.unpack, (codes, 8, codes)),
        Step("packing weights", codec.pack, (codes, 8, codes)),
        _head("heads of convolutions", Kind.CONV),
        _head("heads of transformers", Kind.LINEAR),
        Step("threads", program.dismiss, (np.zeros(team.SYNC, np.int64),)),
        Step("encoding values", codec.encode, (tensor, reals, reals, reals, 0, 8, codes)),
        Step("encoding 8-bit codes", codec.encode_codes, (frame, frame, 8, codes)),
        Step("decoding", codec.decode, (frame, reals, reals, reals, table, 0, 8, np.zeros(8, np.float32))),
        Step("rotating", codec.rotate, (tensor, 8, np.float32(1), np.zeros(8, np.float32))),
        Step("changing the basis", projection.project, (rows, reals, np.zeros((1, 1, 2), np.float32), table)),
        Step("measuring ranges", codec.measure, (rows, True, table)),
        Step("quantizing", codec.quantize, (tensor, reals, reals, reals, reals, table, 8, codes)),
        Step("and back", codec.dequantize, (codes, reals, reals, reals, table, 8, np.zeros(8, np.float32))),
        Step("entropy coding", static.encode, (codes, places, words, np.zeros(2, np.uint64), words, short)),
        Step("and back", static.decode, (words, short, places, words, places, codes, codes)),
    ]


def compile_missing(jobs: int, report: Callable[[str, float], object]) -> int:
    """Compile the steps that are not in the cache, and return how many these were.

    ``jobs``: processes that compile at the same time, each in `JOB_BYTES`. ``report(name, seconds)`` is called after
    each step. If the system ends a process, for instance for its memory, this process compiles the rest.
    """
    every = steps()
    todo = [index for index, step in enumerate(every) if not step.is_kept()]
    todo.sort(key=lambda index: every[index].kernel is not program.run)  # heads take longest, so they start first
    left = set(todo)
    if jobs > 1 and len(todo) > 1:
        with (
            suppress(BrokenProcessPool),
            ProcessPoolExecutor(min(jobs, len(todo)), get_context("spawn")) as pool,
        ):
            for done in as_completed([pool.submit(_compile, index) for index in todo]):
                index, seconds = done.result()
                left.remove(index)
                report(every[index].name, seconds)
    for index in todo:
        if index in left:
            report(every[index].name, _compile(index)[1])
    return len(todo)


def _compile(index: int) -> tuple[int, float]:
    """Compile the step ``index`` of `steps`. Returns it with its seconds."""
    started = time.monotonic()
    steps()[index].compile()
    return index, time.monotonic() - started


def folder() -> Path:
    """The library, or the folder where compiled kernels are kept."""
    return jit.CACHE_DIR if native.LIBRARY is None else native.LIBRARY.path


def fingerprint() -> str:
    """Identifies the compiled code, in 16 hexadecimal digits."""
    return folder().name.removeprefix("kernels-") if native.LIBRARY is None else native.LIBRARY.sha256[:16]


def problem() -> str:
    """Why compiled kernels cannot be kept, so that every start compiles them again; or an empty string."""
    return jit.CACHE_PROBLEM if native.LIBRARY is None else ""


def advice() -> str:
    """One sentence for people about a `problem`: what it is and what to do. Otherwise an empty string."""
    if not problem():
        return ""
    return (
        f"compiled kernels cannot be kept in {folder()} ({problem()}), so every start compiles them again; "
        "make the folder writable by this user only, or set SPLITEDGE_CACHE_DIR to another folder"
    )


def more() -> list[Step]:
    """What a library has too: heads with operators of both sets, which few models have, and the peak for profiles.

    A board without a library compiles them when it loads such a head.
    """
    from kernels import peak

    return [_head("heads of both", Kind.CONV, Kind.LINEAR), Step("the peak", peak.run, (1, peak.SEEDS))]


def missing() -> list[str]:
    """Names of the steps that are not in the cache. Compiles nothing and takes a fraction of a second."""
    return [step.name for step in steps() if not step.is_kept()]


def _head(name: str, *kinds: Kind) -> Step:
    return Step(name, program.run, (_memory(), *program.operator_sets(kinds), 0, 0, 0, 0, 1))


def _memory() -> Memory:
    u8, f32 = np.zeros(64, np.uint8), np.zeros(16, np.float32)
    return Memory(
        operators=np.zeros(1, OPERATOR),
        arena=u8,
        weights=u8,
        biases=np.zeros(16, np.int32),
        multipliers=f32,
        tables=u8,
        ints=np.zeros((1, 1), np.int32),
        floats=np.zeros((1, 1), np.float32),
        taps=np.zeros((1, 1), np.int64),
        sync=np.zeros(team.SYNC, np.int64),
    )


def _readonly(x: NDArray[Any]) -> NDArray[Any]:
    x.flags.writeable = False
    return x
