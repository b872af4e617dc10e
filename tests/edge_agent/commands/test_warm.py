"""`edge-agent warm`: nothing is left to compile when a service starts."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numba.core.registry import CPUDispatcher

import kernels
from kernels import native, warm
from splitedge import codec
from splitedge.errors import SegmentError
from splitedge.head import Head, executor
from splitedge.head import segment as seg
from splitedge.protocol.messages import Codec
from tests.raising import raises
from tests.segment_builder import Builder

NOT_SERVED = {"kernels.peak.run"}  # profiles and benchmarks run it
SERVE = """
import kernels
from tests.edge_agent.commands.test_warm import serve
serve()
"""


def convolutions() -> seg.Segment:
    """The operators of an EfficientNet-Lite0, and those of other networks, in small."""
    b = Builder([24, 24, 3])
    x = b.conv(b.input, 16, (3, 3), (2, 2), (0, 0, 1, 1))
    x = b.conv(b.conv(x, 16, (3, 3), pad=(1, 1, 1, 1), groups=16), 24, bits=4)
    wide = b.conv(b.conv(x, 96), 96, (5, 5), pad=(2, 2, 2, 2), groups=96, bits=2)
    y = b.conv(wide, 24)
    y = b.append(seg.Add, [12, 12, 24], a=x, b=y, multiplier_a=0.5, multiplier_b=0.5, lo=0, hi=255)
    window = {"kernel": [12, 12], "stride": [1, 1], "pad": [0] * 4, "count_pad": True, "multiplier": 1.0}
    y = b.append(seg.Pool, [1, 1, 24], x=y, kind="avg", lo=0, hi=255, **window)
    y = b.append(seg.Reshape, [24], x=y)
    b.append(seg.Softmax, [10], x=b.conv(y, 10), scale=1 / 256, lo=0, hi=255)
    return b.finish()


def transformer() -> seg.Segment:
    """One layer of an encoder over token ids."""
    b = Builder([8], dtype="i32")
    x = b.norm(b.embed(b.input, 24))
    a = b.attention(b.linear(x, 72, bits=4), 2, ids=b.input)
    x = b.norm(b.linear(a, 24, residual=x))
    b.linear(b.linear(x, 48, activation="gelu"), 24, residual=x)
    return b.finish()


def serve() -> None:
    """What a service does with kernels: heads on one thread and more, their golden check, and the codec at every width."""
    for segment in (convolutions(), transformer()):
        for threads in (1, 3):
            with raises(SegmentError, reason="golden-answer"):  # tests' segments promise no hash: the check has run
                executor.load(seg.build(segment.header, segment.blob.tobytes()), threads)
        head = Head(segment, check_golden=False, threads=2)
        out = head.run(seg.golden_frame(segment.header))
        for bits in codec.BITS:
            for width in (1, out.shape[-1]):
                at_cut = Codec("minmax", bits, (0.0,) * width, (0.5,) * width)
                tensor = out.astype(np.float32)
                data = (
                    codec.encode(tensor, at_cut) if out.dtype == np.float32 else codec.encode_codes(out, 0.5, 3, at_cut)
                )
                codec.encode(tensor, at_cut)
                codec.decode(data, at_cut, out.shape)
    tensor = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    for family in codec.FAMILIES:
        fitted = codec.fit_samples(tensor[None], family, 2)
        codec.decode(codec.encode(tensor, fitted), fitted, tensor.shape)


def files(cache: Path) -> dict[str, int]:
    """Every file with the time it was written."""
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


def python(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", *arguments]
    environment = os.environ | {"SPLITEDGE_CACHE_DIR": str(cache)}
    return subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )


def dispatchers() -> dict[str, Any]:
    """Every kernel of the package that keeps compiled code: `inline` helpers are compiled with those that call them."""
    modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(kernels.__path__, "kernels.")]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, CPUDispatcher)]
    return {f"{each.py_func.__module__}.{each.__name__}": each for each in found if each._cache.cache_path}


@pytest.mark.skipif(native.LIBRARY is not None or bool(warm.problem()), reason="kernels are not kept here")
def test_every_kernel_is_on_the_list() -> None:
    listed = {f"{step.kernel.py_func.__module__}.{step.kernel.__name__}" for step in warm.steps()}
    assert listed == set(dispatchers()) - NOT_SERVED
    assert "kernels.program.run" in listed


@pytest.mark.slow
@pytest.mark.thorough  # compiles every kernel
@pytest.mark.timeout(1200)
def test_after_it_heads_and_codecs_compile_nothing(tmp_path: Path) -> None:
    first = python(tmp_path, "-m", "edge_agent", "warm")
    assert first.returncode == 0, first.stderr
    assert f"0 of {len(warm.steps())} kernels were compiled already" in first.stdout
    assert "heads of transformers    compiled in" in first.stdout
    kept = files(tmp_path)
    served = python(tmp_path, "-c", SERVE)
    assert served.returncode == 0, served.stderr
    again = python(tmp_path, "-m", "edge_agent", "warm")
    assert f"{len(warm.steps())} of {len(warm.steps())} kernels were compiled already, 0 now" in again.stdout
    assert files(tmp_path) == kept


class Breaking(ProcessPoolExecutor):
    """Its processes end as if the system had killed them."""

    def submit(self, *_: Any) -> Any:  # type: ignore[override]
        return super().submit(os._exit, 1)


@pytest.mark.skipif(native.LIBRARY is not None, reason="nothing is compiled")
def test_steps_of_processes_that_end_are_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    class Slow(NamedTuple):
        name: str
        kernel: object = None

        def is_kept(self) -> bool:
            return False

        def compile(self) -> None:
            compiled.append(self.name)

    monkeypatch.setattr(warm, "steps", lambda: [Slow("a"), Slow("b"), Slow("c")])
    monkeypatch.setattr(warm, "ProcessPoolExecutor", Breaking)
    told: list[str] = []
    assert warm.compile_missing(2, lambda name, _: told.append(name)) == 3
    assert compiled == told == ["a", "b", "c"]


def test_where_nothing_can_be_kept_it_says_so_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    done = python(tmp_path / "file", "-m", "edge_agent", "warm")
    assert done.returncode == 12
    assert done.stderr.count("\n") == 1
    assert "SPLITEDGE_CACHE_DIR" in done.stderr
