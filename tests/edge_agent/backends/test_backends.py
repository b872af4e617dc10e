"""Backends: each loads its file, takes what its ports say, and gives the float model's answer, as near as its bits allow."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from calibration.export import whole
from calibration.importing.importer import batched, simplify
from edge_agent import backends
from edge_agent.bench import feed
from splitedge.errors import UsageError
from tests import small_models as small
from tests.raising import raises


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    net = small.Net([1, 3, 16, 16])
    net.conv(8, 3, 3, strides=[2, 2])
    net.add("Relu")
    net.conv(8, 8, 3, groups=8)
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.gemm(5, 8)
    made = whole.make(batched(simplify(net.model())))
    for name, data in made.items():
        assert isinstance(data, bytes), (name, data)
        (folder / name).write_bytes(data)
    return folder


def answer(name: str, path, frame) -> np.ndarray:
    loaded = backends.find(name).load(path, 1)
    loaded.put(feed.frame(feed.resolved(loaded.ports, None), frame))
    loaded.run()
    return loaded.output()


@pytest.mark.parametrize(
    ("name", "file"),
    [("native", whole.SEGMENT), ("onnxruntime", whole.INT8_ONNX), ("litert", whole.TFLITE), ("tflite", whole.TFLITE)],
)
def test_an_int8_backend_answers_as_the_float_model(files, name, file):
    if reason := backends.find(name).missing():
        pytest.skip(reason)
    frame = np.random.default_rng(3).normal(size=(16, 16, 3)).astype(np.float32)
    exact = answer("onnxruntime", files / whole.FLOAT_ONNX, frame)
    near = answer(name, files / file, frame)
    assert near.dtype == np.float32
    assert near.shape == exact.shape == (5,)
    assert np.abs(near - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(("name", "file"), [("native", whole.SEGMENT), ("onnxruntime", whole.FLOAT_ONNX)])
def test_the_time_of_each_operator(files, name, file):
    loaded = backends.find(name).load(files / file, 1)
    loaded.put(feed.noise(feed.resolved(loaded.ports, None)))
    found = loaded.operators(3)
    assert len(found) >= 4
    assert all(one.us >= 0 and one.kind for one in found)


def test_litert_tells_no_times_of_operators(files):
    pytest.importorskip("ai_edge_litert", reason="LiteRT has no package for this system")
    with raises(UsageError, reason="no-operators"):
        backends.find("litert").load(files / whole.TFLITE, 1).operators(1)


def test_the_precision_of_a_file(files):
    loaded = {name: backends.find("onnxruntime").load(files / name, 1) for name in (whole.FLOAT_ONNX, whole.INT8_ONNX)}
    assert [one.precision for one in loaded.values()] == ["float32", "int8"]
    assert backends.find("native").load(files / whole.SEGMENT, 1).precision == "int8"


def test_an_unknown_backend_is_refused():
    with raises(UsageError, reason="no-backend"):
        backends.find("fast")


def test_a_backend_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert "pip install tflite-runtime" in backends.find("tflite").missing()
    assert backends.here() == [backends.find("native")]


def test_a_wheel_without_a_provider_is_missing_it():
    pytest.importorskip("onnxruntime")
    assert "TensorrtExecutionProvider" in backends.find("onnxruntime-tensorrt").missing()
