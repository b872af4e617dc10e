"""The check of the kernels, which a child process imports and runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from edge_agent.doctor import kernel_library
from edge_agent.doctor.kernel_library import Facts, Probe
from splitedge import limits

DIES = "import os, signal\nos.kill(os.getpid(), signal.{})\n"


def replace(package: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put another ``package`` before the one that is installed."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


def test_the_kernels_of_this_machine_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITEDGE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("SPLITEDGE_KERNELS", "jit")
    found = kernel_library.probe()
    assert found.facts is not None
    assert (found.facts.missing, found.facts.ran) == (found.facts.steps, False)
    check = kernel_library.kernels(found)
    assert check.verdict == "warn"
    assert "edge-agent warm" in check.advice
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # nothing is compiled


def test_a_cache_that_cannot_be_used_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    monkeypatch.setenv("SPLITEDGE_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("SPLITEDGE_KERNELS", "jit")
    check = kernel_library.kernels(kernel_library.probe())
    assert check.verdict == "warn"
    assert "SPLITEDGE_CACHE_DIR" in check.advice


@pytest.mark.parametrize(
    ("package", "stage", "died"),
    [
        ("numpy", "numpy", signal.SIGILL),
        ("numpy", "numpy", signal.SIGBUS),
        ("msgspec", "start", signal.SIGSEGV),
        ("numba", "kernels", signal.SIGILL),
    ],
)
def test_a_crash_is_reported_with_its_signal_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, stage: str, died: signal.Signals
) -> None:
    monkeypatch.setenv("SPLITEDGE_KERNELS", "jit")
    replace(package, DIES.format(died.name), tmp_path, monkeypatch)
    found = kernel_library.probe()
    assert (found.facts, found.stage, found.signal) == (None, stage, died)
    check = kernel_library.kernels(found)
    assert check.verdict == "fail"
    assert died.name in check.found
    assert ("OPENBLAS_CORETYPE" in check.advice) == (package == "numpy" and died == signal.SIGILL)


def test_a_package_that_cannot_be_imported_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace("numpy", "raise ModuleNotFoundError('No module named numpy.core')", tmp_path, monkeypatch)
    found = kernel_library.probe()
    assert (found.facts, found.stage, found.signal) == (None, "numpy", None)
    assert "No module named" in kernel_library.kernels(found).found


def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROBE_TIMEOUT", 3.0)
    replace("numpy", "import time\ntime.sleep(600)\n", tmp_path, monkeypatch)
    found = kernel_library.probe()
    assert (found.facts, found.signal) == (None, None)
    assert "3 s" in kernel_library.kernels(found).found


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        (Facts("avx2.so", "", "/x/avx2.so", "", 17, 0, True), "ok"),
        (Facts("", "", "/x", "", 17, 0, True), "ok"),
        (Facts("", "", "/x", "", 17, 5, False), "warn"),
        (Facts("", "", "/x", "make it writable", 17, 0, False), "warn"),
    ],
)
def test_the_verdict_follows_the_facts(facts: Facts, verdict: str) -> None:
    assert kernel_library.kernels(Probe(facts)).verdict == verdict
