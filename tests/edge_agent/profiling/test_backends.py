"""Backends on the reference network: one row for each that is installed, and a failure is a row."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from edge_agent import backends as available
from edge_agent.profiling import backends


@pytest.mark.slow
def test_each_installed_backend_has_a_time():
    found = backends.times(1, lambda _: None)
    assert [one.name for one in found] == [one.name for one in available.here()]
    assert all(one.ms > 0 and one.version and one.threads == 1 for one in found), found


def test_a_backend_that_fails_is_a_row_with_its_reason(tmp_path, monkeypatch):
    shutil.copytree(backends.FILES, tmp_path / "files")
    (tmp_path / "files/int8.segment").write_bytes(b"nothing")
    monkeypatch.setattr(backends, "FILES", tmp_path / "files")
    monkeypatch.setattr(backends, "here", lambda: [available.find("native")])
    (row,) = backends.times(1, lambda _: None)
    assert (row.name, row.ms) == ("native", None)
    assert row.failure


def test_the_files_of_the_package_are_small():
    assert {path.name for path in backends.FILES.iterdir()} == {"int8.segment", "int8.onnx", "int8.tflite"}
    assert sum(path.stat().st_size for path in backends.FILES.iterdir()) < 300_000


def test_what_measures_at_the_first_start_loads_no_foreign_runtime():
    script = (
        "import sys, edge_agent.planning.device; from device_profiles.measurement import measure, thread_counts; "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"onnxruntime", "ai_edge_litert", "tflite_runtime", "onnx", "matplotlib"} & set(done.stdout.split())
