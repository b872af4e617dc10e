"""The rivals of the benchmarks: made in silence, and asked in full."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from onnx import numpy_helper

from benchmarks import heads, rivals
from calibration.export import tflite
from calibration.importing.importer import batched, simplify
from splitedge.head import load
from tests.benchmarks.test_heads import network


def test_onnx_runtime_models_are_made_without_a_word(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    model = batched(simplify(network().model()))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "unused"))
    made = rivals.quantized(model)
    assert sorted(made) == [rivals.FLOAT, rivals.INT8]
    for data in made.values():
        assert rivals.onnx_runtime(data, 1, np.zeros([1, 3, 64, 64], np.float32))()[0].shape == (1, 4)
    assert len(made[rivals.INT8]) != len(made[rivals.FLOAT])
    assert caplog.records == []
    assert "".join(capfd.readouterr()) == ""


def test_both_runtimes_take_a_frame_of_noise() -> None:
    model = batched(simplify(network().model()))
    head = load(heads.our_segment(model, [64, 64, 3]))
    codes, frame = rivals.noise(head)
    assert head.run(codes).shape == (4,)
    assert rivals.onnx_runtime(rivals.quantized(model)[rivals.FLOAT], 1, frame)()[0].shape == (1, 4)


def test_a_model_that_xnnpack_runs_in_part_is_told_of() -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT has no package for this system")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rivals.litert(tflite.convolution(4, 4, 8, 8, 1), 1)()
    with pytest.warns(RuntimeWarning, match="XNNPACK"):
        rivals.litert(_scatter(), 1)


def _scatter() -> bytes:
    """A convolution, and an operator that XNNPACK does not have."""
    model = tflite._Model()
    source, middle, target = (model.activation([1, 4, 4, 4], 0.1, 0) for _ in range(3))
    model.operator("MIRROR_PAD", [source, model.constant(np.zeros((4, 2), np.int32))], middle, "MirrorPadOptions")
    weights, zeros = np.ones((4, 1, 1, 4), np.int8), np.zeros(4, np.int32)
    model.convolve(middle, target, weights, zeros, np.ones(4), [1, 1], [1, 1], 1, 0)
    return model.finish(source, target)
