"""The .tflite models for LiteRT: the same computation as our heads, run by XNNPACK alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from benchmarks import heads, lite0, models, rivals
from calibration.export import tflite
from calibration.importing.importer import batched, simplify
from splitedge import errors
from splitedge.head import load
from splitedge.head import segment as seg
from tests import small_models as small
from tests.raising import raises

pytest.importorskip("ai_edge_litert", reason="LiteRT has no package for this system")


def answers(model: bytes, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """LiteRT's answer to ``codes`` in ours; fails where XNNPACK does not run all of the model."""
    made = rivals.interpreter(model, 1)
    assert rivals.only_xnnpack(made)
    made.set_tensor(made.get_input_details()[0]["index"], tflite.signed(codes)[None])
    made.invoke()
    return tflite.unsigned(made.get_tensor(made.get_output_details()[0]["index"])[0])


def compare(segment: bytes, same: float) -> None:
    """No code differs by more than 2 (float32 against fixed-point rounding), and a share of ``same`` does not differ at all."""
    head = load(segment)
    model = tflite.network(segment)
    for seed in range(3):
        codes = np.random.default_rng(seed).integers(0, 256, head.input.shape).astype(np.uint8)
        ours = head.run(codes)
        assert ours.std() > 2  # an answer that says something
        apart = np.abs(ours.astype(int) - answers(model, codes))
        assert apart.max() <= 2
        assert (apart == 0).mean() >= same


def torch_like(size: int) -> onnx.ModelProto:
    """Symmetric padding at stride 2, which is not SAME, before a convolution, a depthwise one and a maximum; SAME at stride 1."""
    net = small.Net([1, 3, size, size])
    net.conv(16, 3, 7, strides=[2, 2], pads=[3, 3, 3, 3])
    net.add("Relu")
    net.add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    net.conv(16, 16, 5, groups=16, strides=[2, 2], pads=[2, 2, 2, 2])
    net.conv(24, 16, 3)
    net.add("Relu")
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.gemm(40, 24)
    return net.model()


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (small.cnn(40), 16),
        (small.resnet(40), 16),
        (small.mobilenet(40), 16),
        (torch_like(64), 64),
        (torch_like(57), 57),
    ],
    ids=["flattened", "residuals", "relu6", "even", "odd"],
)
def test_litert_computes_what_our_head_computes(model: onnx.ModelProto, size: int) -> None:
    compare(heads.our_segment(batched(simplify(model)), [size, size, 3]), same=0.8)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(heads.NETWORKS))
def test_litert_computes_our_whole_networks(key: str) -> None:
    needed = lite0.PACKAGE if key == "lite0" else "torch"
    pytest.importorskip(needed, reason="it makes the network")
    model = models.load(heads.NETWORKS[key][1])
    compare(heads.our_segment(model, heads.SHAPE), same=0.5)


def convolution_then(*operator: Any, **attributes: Any) -> onnx.ModelProto:
    net = small.Net([1, 3, 8, 8])
    net.conv(4, 3)
    net.add(*operator, **attributes)
    return net.model()


@pytest.mark.parametrize(
    "model",
    [
        convolution_then("Sigmoid"),
        convolution_then("AveragePool", kernel_shape=[2, 2]),
        convolution_then("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),  # pads with less than its least code
    ],
    ids=["table", "average", "maximum"],
)
def test_what_tflite_cannot_say_is_refused(model: onnx.ModelProto) -> None:
    with raises(errors.ModelError, reason="no-tflite-form"):
        tflite.network(heads.our_segment(batched(simplify(model)), [8, 8, 3]))


def test_a_clamp_within_the_range_is_refused() -> None:
    segment = seg.parse(heads.our_segment(batched(simplify(small.resnet())), [16, 16, 3]))
    tflite.network(seg.build(segment.header, segment.blob.tobytes()))
    segment.header.ops[0].hi = 200  # type: ignore[union-attr]
    with raises(errors.ModelError, reason="no-tflite-form"):
        tflite.network(seg.build(segment.header, segment.blob.tobytes()))


@pytest.mark.parametrize(
    ("arguments", "options", "shape", "operator"),
    [
        ((14, 14, 80, 112, 1), {}, [1, 14, 14, 112], "CONV_2D"),
        ((15, 13, 8, 16, 3, 2), {"relu6": False}, [1, 8, 7, 16], "CONV_2D"),
        ((14, 14, 24, 24, 5, 2, True), {}, [1, 7, 7, 24], "DEPTHWISE_CONV_2D"),
        ((1, 1, 64, 100, 1), {}, [1, 1, 1, 100], "FULLY_CONNECTED"),
        ((14, 14, 24, 24, 3, 1, True), {"chain": 4}, [1, 14, 14, 24], "DEPTHWISE_CONV_2D"),
    ],
)
def test_single_convolutions_run_in_xnnpack(
    arguments: tuple[Any, ...], options: dict[str, Any], shape: list[int], operator: str
) -> None:
    made = rivals.interpreter(tflite.convolution(*arguments, **options), 1)
    assert rivals.only_xnnpack(made)
    names = [op["op_name"] for op in made._get_ops_details()]
    assert names == [operator] * options.get("chain", 1) + ["DELEGATE"]
    source, target = made.get_input_details()[0], made.get_output_details()[0]
    noise = np.random.default_rng(0).integers(-128, 128, source["shape"]).astype(np.int8)
    made.set_tensor(source["index"], noise)
    made.invoke()
    assert list(target["shape"]) == shape
    assert made.get_tensor(target["index"]).std() > 2


def test_convolutions_that_cannot_be_are_refused() -> None:
    with raises(errors.UsageError, reason="depthwise-channels"):
        tflite.convolution(8, 8, 4, 8, 3, depthwise=True)
    for out_channels, stride in ((8, 1), (4, 2)):
        with raises(errors.UsageError, reason="chain"):
            tflite.convolution(8, 8, 4, out_channels, 3, stride, chain=2)


def test_codes_go_there_and_back() -> None:
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(tflite.signed(codes), np.arange(-128, 128))
    assert np.array_equal(tflite.unsigned(tflite.signed(codes)), codes)
