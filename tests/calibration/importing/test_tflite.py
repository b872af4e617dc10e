"""The reader of .tflite files against LiteRT, operator by operator, and for int8 files code by code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tflite import ActivationFunctionType, MirrorPadMode, Padding, TensorType

from benchmarks import rivals
from calibration.bundle import creation
from calibration.export import tflite as export
from calibration.importing import importer, quantized, tflite, tflite_file
from calibration.importing.graph import Graph, inputs
from calibration.lowering import layers
from calibration.lowering.lower import lower
from calibration.samples.samples import Samples
from splitedge import errors
from splitedge.protocol.messages import Preprocess
from tests import small_models as small
from tests.calibration.importing.tflite_builder import Built
from tests.raising import raises

pytest.importorskip("ai_edge_litert", reason="LiteRT has no package for this system")

SAME, VALID = Padding.SAME, Padding.VALID
RELU, RELU6 = ActivationFunctionType.RELU, ActivationFunctionType.RELU6
WINDOW = {"StrideH": 1, "StrideW": 1}
CONV = {**WINDOW, "DilationHFactor": 1, "DilationWFactor": 1, "Padding": SAME}
PLANE = (1, 6, 8, 4)


def litert(data: bytes, x: NDArray[Any]) -> NDArray[Any]:
    made = rivals.interpreter(data, 1)
    made.set_tensor(made.get_input_details()[0]["index"], x)
    made.invoke()
    found: NDArray[Any] = made.get_tensor(made.get_output_details()[0]["index"])
    return found


def conv(b: Built, kernel: int = 3, outs: int = 5, **fields: int) -> int:
    """A convolution of stride 1 of the last tensor."""
    shape, depth = b._shapes[b.last][:3], b._shapes[b.last][3]
    given = [b.last, b.weight(outs, kernel, kernel, depth), b.weight(outs)]
    return b.op("CONV_2D", given, (*shape, outs), "Conv2DOptions", **{**CONV, **fields})


def strided(b: Built) -> None:
    given = [b.last, b.weight(5, 3, 3, 4), b.weight(5)]
    fields = {**CONV, "StrideH": 2, "StrideW": 2, "FusedActivationFunction": RELU6}
    b.op("CONV_2D", given, (1, 3, 4, 5), "Conv2DOptions", **fields)


def dilated(b: Built) -> None:
    given = [b.last, b.weight(5, 3, 3, 4), b.weight(5)]
    fields = {**CONV, "DilationHFactor": 2, "DilationWFactor": 2, "Padding": VALID, "FusedActivationFunction": RELU}
    b.op("CONV_2D", given, (1, 2, 4, 5), "Conv2DOptions", **fields)


def depthwise(b: Built) -> None:
    given = [b.last, b.weight(1, 3, 3, 8), b.weight(8)]
    fields = {**CONV, "StrideH": 2, "StrideW": 2, "DepthMultiplier": 2}
    b.op("DEPTHWISE_CONV_2D", given, (1, 3, 4, 8), "DepthwiseConv2DOptions", **fields)


def transposed(padding: int, kernel: int, height: int, width: int) -> Callable[[Built], None]:
    def make(b: Built) -> None:
        given = [b.ints(1, height, width, 5), b.weight(5, kernel, kernel, 4), b.last, b.weight(5)]
        fields = {"Padding": padding, "StrideH": 2, "StrideW": 2}
        b.op("TRANSPOSE_CONV", given, (1, height, width, 5), "TransposeConvOptions", **fields)

    return make


def dense(b: Built) -> None:
    b.op("FULLY_CONNECTED", [b.last, b.weight(7, 192), b.weight(7)], (1, 7), "FullyConnectedOptions")


def dense_rows(b: Built) -> None:
    fields = {"KeepNumDims": True, "FusedActivationFunction": RELU}
    b.op("FULLY_CONNECTED", [b.last, b.weight(7, 4), b.weight(7)], (1, 6, 8, 7), "FullyConnectedOptions", **fields)


def unary(name: str, options: str = "", **fields: Any) -> Callable[[Built], None]:
    return lambda b: void(b.op(name, [b.last], PLANE, options, **fields))


def binary(name: str, options: str, *shape: int) -> Callable[[Built], None]:
    """With a constant of ``shape``, else of two computed tensors, after a convolution."""

    def make(b: Built) -> None:
        conv(b, outs=4)
        other = b.weight(*shape) if shape else b.op("ABS", [b.source], PLANE)
        b.op(name, [b.last if shape else b.last - 1, other], PLANE, options)

    return make


def void(_: object) -> None:
    """A builder gives nothing back."""


def pool(name: str, padding: int) -> Callable[[Built], None]:
    shape = (1, 3, 4, 4) if padding == SAME else (1, 2, 3, 4)
    fields = {"StrideH": 2, "StrideW": 2, "FilterHeight": 3, "FilterWidth": 3, "Padding": padding}
    return lambda b: void(b.op(name, [b.last], shape, "Pool2DOptions", **fields))


def reduced(name: str, axes: tuple[int, ...], shape: tuple[int, ...], keep: bool) -> Callable[[Built], None]:
    def make(b: Built) -> None:
        conv(b, outs=4)
        b.op(name, [b.last, b.ints(*axes)], shape, "ReducerOptions", KeepDims=keep)

    return make


def resized(name: str, height: int, width: int, **fields: bool) -> Callable[[Built], None]:
    options = "ResizeBilinearOptions" if "BILINEAR" in name else "ResizeNearestNeighborOptions"
    return lambda b: void(b.op(name, [b.last, b.ints(height, width)], (1, height, width, 4), options, **fields))


def padded(b: Built) -> None:
    b.op("PAD", [b.last, b.fixed([[0, 0], [1, 2], [0, 3], [0, 2]], np.int32)], (1, 9, 11, 6), "PadOptions")


def padded_with(b: Built) -> None:
    given = [b.last, b.fixed([[0, 0], [1, 2], [0, 3], [0, 0]], np.int32), b.fixed(-2.5)]
    b.op("PADV2", given, (1, 9, 11, 4), "PadV2Options")


def mirrored(b: Built) -> None:
    given = [b.last, b.fixed([[0, 0], [1, 2], [0, 3], [0, 0]], np.int32)]
    b.op("MIRROR_PAD", given, (1, 9, 11, 4), "MirrorPadOptions", Mode=MirrorPadMode.REFLECT)


def reshaped(b: Built) -> None:
    conv(b)
    b.op("RESHAPE", [b.last, b.ints(1, 48, 5)], (1, 48, 5), "ReshapeOptions")


def flattened(b: Built) -> None:
    conv(b)
    mean = b.op("MEAN", [b.last, b.ints(1, 2)], (1, 1, 1, 5), "ReducerOptions", KeepDims=True)
    flat = b.op("SQUEEZE", [mean], (1, 5), "SqueezeOptions", SqueezeDims=b._numbers([1, 2], np.int32))
    b.op("EXPAND_DIMS", [flat, b.fixed(1, np.int32)], (1, 1, 5), "ExpandDimsOptions")


def turned(*perm: int) -> Callable[[Built], None]:
    def make(b: Built) -> None:
        conv(b, outs=4)
        b.op("TRANSPOSE", [b.last, b.ints(*perm)], tuple(PLANE[p] for p in perm), "TransposeOptions")

    return make


def joined(axis: int, shape: tuple[int, ...]) -> Callable[[Built], None]:
    def make(b: Built) -> None:
        a = conv(b, outs=4)
        b.op("CONCATENATION", [a, b.op("ABS", [b.source], PLANE)], shape, "ConcatenationOptions", Axis=axis)

    return make


def packed(b: Built) -> None:
    rows = b.op("MEAN", [b.last, b.ints(1, 2)], (1, 4), "ReducerOptions", KeepDims=False)
    b.op("PACK", [rows, b.op("NEG", [rows], (1, 4), "NegOptions")], (1, 2, 4), "PackOptions", Axis=1, ValuesCount=2)


def sliced(b: Built) -> None:
    conv(b)
    b.op("SLICE", [b.last, b.ints(0, 1, 2, 1), b.ints(1, 3, -1, 2)], (1, 3, 6, 2), "SliceOptions")


def strided_slice(shape: tuple[int, ...], ends: tuple[tuple[int, ...], ...], **masks: int) -> Callable[[Built], None]:
    def make(b: Built) -> None:
        conv(b, outs=4)
        b.op("STRIDED_SLICE", [b.last, *(b.ints(*e) for e in ends)], shape, "StridedSliceOptions", **masks)

    return make


def gathered(b: Built) -> None:
    conv(b)
    b.op("GATHER", [b.last, b.ints(3, 0, 3)], (1, 6, 8, 3), "GatherOptions", Axis=3)


def product(b: Built) -> None:
    rows = b.op("RESHAPE", [b.last, b.ints(1, 48, 4)], (1, 48, 4), "ReshapeOptions")
    b.op("BATCH_MATMUL", [rows, rows], (1, 48, 48), "BatchMatMulOptions", AdjX=False, AdjY=True)


def parametric(b: Built) -> None:
    conv(b, outs=4)
    b.op("PRELU", [b.last, b.weight(1, 1, 4)], PLANE)


def blocks(name: str, options: str, shape: tuple[int, ...]) -> Callable[[Built], None]:
    def make(b: Built) -> None:
        conv(b, outs=4)
        b.op(name, [b.last], shape, options, BlockSize=2)

    return make


def half(b: Built) -> None:
    weight = b.fixed(b.random.normal(size=(5, 3, 3, 4)), np.float16)
    real = b.op("DEQUANTIZE", [weight], (5, 3, 3, 4), "DequantizeOptions")
    b.op("CONV_2D", [b.source, real, b.weight(5)], (1, 6, 8, 5), "Conv2DOptions", **CONV)


def sparse(b: Built) -> None:
    whole = np.where(b.random.random((7, 192)) < 0.2, b.random.normal(size=(7, 192)), 0).astype(np.float32)
    real = b.op("DENSIFY", [b.sparse(whole)], (7, 192), "DensifyOptions")
    b.op("FULLY_CONNECTED", [b.source, real, b.weight(7)], (1, 7), "FullyConnectedOptions")


def tiled(b: Built) -> None:
    b.op("TILE", [b.last, b.ints(1, 2, 1, 3)], (1, 12, 8, 12), "TileOptions")


def squashed(b: Built) -> None:
    positive = b.op("EXP", [b.last], PLANE, "ExpOptions")
    b.op("RSQRT", [b.op("SQUARE", [positive], PLANE, "SquareOptions")], PLANE)


FORMS: dict[str, Callable[[Built], None]] = {
    "conv": strided,
    "conv, dilated": dilated,
    "depthwise": depthwise,
    "transpose_conv same": transposed(SAME, 3, 12, 16),
    "transpose_conv odd": transposed(SAME, 3, 11, 15),
    "transpose_conv valid": transposed(VALID, 3, 13, 17),
    "transpose_conv gap": transposed(VALID, 1, 11, 15),
    "fully connected": dense,
    "fully connected rows": dense_rows,
    "batch matmul": product,
    "add": binary("ADD", "AddOptions"),
    "add channels": binary("ADD", "AddOptions", 4),
    "mul": binary("MUL", "MulOptions", 1, 1, 1, 4),
    "sub": binary("SUB", "SubOptions", 6, 1, 1),
    "sub scalar": binary("SUB", "SubOptions", 1),
    "maximum": binary("MAXIMUM", "MaximumMinimumOptions"),
    "minimum": binary("MINIMUM", "MaximumMinimumOptions", 4),
    "squared difference": binary("SQUARED_DIFFERENCE", "SquaredDifferenceOptions"),
    "relu": unary("RELU"),
    "relu6": unary("RELU6"),
    "relu -1 to 1": unary("RELU_N1_TO_1"),
    "leaky": unary("LEAKY_RELU", "LeakyReluOptions", Alpha=0.3),
    "prelu": parametric,
    "elu": unary("ELU"),
    "gelu": unary("GELU", "GeluOptions", Approximate=False),
    "gelu, approximate": unary("GELU", "GeluOptions", Approximate=True),
    "hard swish": unary("HARD_SWISH", "HardSwishOptions"),
    "logistic": unary("LOGISTIC"),
    "tanh": unary("TANH"),
    "abs": unary("ABS", "AbsOptions"),
    "rsqrt": squashed,
    "softmax": unary("SOFTMAX", "SoftmaxOptions", Beta=0.7),
    "log softmax": unary("LOG_SOFTMAX", "LogSoftmaxOptions"),
    "l2 norm": unary("L2_NORMALIZATION", "L2NormOptions"),
    "lrn": unary(
        "LOCAL_RESPONSE_NORMALIZATION", "LocalResponseNormalizationOptions", Radius=1, Bias=1.0, Alpha=0.5, Beta=0.75
    ),
    "max pool same": pool("MAX_POOL_2D", SAME),
    "max pool": pool("MAX_POOL_2D", VALID),
    "average pool same": pool("AVERAGE_POOL_2D", SAME),
    "mean": reduced("MEAN", (1, 2), (1, 4), False),
    "mean kept": reduced("MEAN", (1, 2), (1, 1, 1, 4), True),
    "mean of rows": reduced("MEAN", (1,), (1, 8, 4), False),
    "mean of channels": reduced("MEAN", (3,), (1, 6, 8), False),
    "sum": reduced("SUM", (-1,), (1, 6, 8, 1), True),
    "greatest": reduced("REDUCE_MAX", (2,), (1, 6, 1, 4), True),
    "bilinear": resized("RESIZE_BILINEAR", 12, 16, AlignCorners=False, HalfPixelCenters=True),
    "bilinear, asymmetric": resized("RESIZE_BILINEAR", 12, 16, AlignCorners=False, HalfPixelCenters=False),
    "bilinear, aligned": resized("RESIZE_BILINEAR", 11, 15, AlignCorners=True, HalfPixelCenters=False),
    "bilinear, down": resized("RESIZE_BILINEAR", 4, 5, AlignCorners=False, HalfPixelCenters=True),
    "nearest": resized("RESIZE_NEAREST_NEIGHBOR", 12, 16, AlignCorners=False, HalfPixelCenters=True),
    "nearest, asymmetric": resized("RESIZE_NEAREST_NEIGHBOR", 9, 17, AlignCorners=False, HalfPixelCenters=False),
    "nearest, aligned": resized("RESIZE_NEAREST_NEIGHBOR", 11, 15, AlignCorners=True, HalfPixelCenters=False),
    "pad": padded,
    "pad with": padded_with,
    "mirror pad": mirrored,
    "reshape": reshaped,
    "squeeze, expand": flattened,
    "transpose to first": turned(0, 3, 1, 2),
    "transpose to last": turned(0, 2, 3, 1),
    "transpose": turned(0, 2, 1, 3),
    "concat channels": joined(3, (1, 6, 8, 8)),
    "concat rows": joined(-3, (1, 12, 8, 4)),
    "pack": packed,
    "slice": sliced,
    "strided slice": strided_slice((1, 3, 3, 4), ((0, 0, 1, 0), (1, 6, -1, 4), (1, 2, 2, 1)), BeginMask=2, EndMask=8),
    "strided slice, one": strided_slice((1, 8, 4), ((0, -2, 0, 0), (1, 0, 8, 4), (1, 1, 1, 1)), ShrinkAxisMask=2),
    "gather": gathered,
    "tile": tiled,
    "space to depth": blocks("SPACE_TO_DEPTH", "SpaceToDepthOptions", (1, 3, 4, 16)),
    "depth to space": blocks("DEPTH_TO_SPACE", "DepthToSpaceOptions", (1, 12, 16, 1)),
    "half-precision weights": half,
    "sparse weights": sparse,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_operator_answers_as_litert_does(tmp_path: Path, name: str) -> None:
    built = Built(*PLANE)
    FORMS[name](built)
    data = built.data()
    (tmp_path / "model.tflite").write_bytes(data)
    x = built.random.normal(size=PLANE).astype(np.float32)

    model = tflite.read(tmp_path / "model.tflite")
    tflite.refuse_unconverted(model)
    (found,) = importer.session(model).run(None, {inputs(model.graph)[0].name: x})

    wanted = litert(data, x)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5 * max(1.0, np.abs(wanted).max()))


def test_a_network_of_planes_keeps_no_transposition(tmp_path: Path) -> None:
    built = Built(1, 12, 16, 3)
    conv(built, outs=8)
    built.op("ADD", [conv(built, outs=8), built.last - 3], (1, 12, 16, 8), "AddOptions")
    built.op("MEAN", [built.last, built.ints(1, 2)], (1, 8), "ReducerOptions", KeepDims=False)
    built.op("FULLY_CONNECTED", [built.last, built.weight(5, 8), built.weight(5)], (1, 5), "FullyConnectedOptions")
    (tmp_path / "model.tflite").write_bytes(built.data())
    model = importer.load(str(tmp_path / "model.tflite"))
    assert "Transpose" not in {node.op_type for node in model.graph.node}
    network = layers.build(Graph.of(model))
    assert not network.unsupported
    assert network.graph.stored_shape(network.graph.input) == [12, 16, 3]


def test_an_operator_without_a_conversion_is_named_and_may_be_cut_off(tmp_path: Path) -> None:
    built = Built(*PLANE)
    built.op("SEGMENT_SUM", [conv(built), built.ints(0)], (1, 6, 8, 5), "SegmentSumOptions")
    path = tmp_path / "model.tflite"
    path.write_bytes(built.data())
    with raises(errors.ModelError, reason="tflite-operator", operator="SEGMENT_SUM"):
        importer.load(str(path))
    assert importer.load(str(path), output=f"tensor_{built.last - 2}").graph.node


def test_a_damaged_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    built = Built(*PLANE)
    strided(built)
    data, random = built.data(), np.random.default_rng(0)
    path = tmp_path / "model.tflite"
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 3):
            damaged[place] = random.integers(256)
        path.write_bytes(bytes(damaged[: random.integers(8, len(data) + 1)]))
        try:
            importer.load(str(path))
        except errors.ModelError as error:
            assert error.data["reason"]  # noqa: PT017  many files still have a meaning
    path.write_bytes(b"not a model")
    with raises(errors.ModelError, reason="not-tflite"):
        tflite_file.read(path)


@pytest.mark.parametrize("make", [small.resnet, small.mobilenet], ids=["resnet", "mobilenet"])
def test_an_int8_file_keeps_its_integers(tmp_path: Path, make: Callable[[], Any]) -> None:
    """Every scale and zero point of the file is taken over, and a head answers with LiteRT's codes."""
    network = layers.build(Graph.of(importer.simplify(make())))
    shape = network.graph.stored_shape(network.graph.input)
    random = np.random.default_rng(0)
    given = Samples(Preprocess("tensor", shape), [random.normal(size=shape).astype(np.float32) for _ in range(6)])
    first = creation.calibrate(importer.simplify(make()), network, given)
    data = export.network(lower(network, first, network.graph.output, 8).segment())
    path = tmp_path / "model.tflite"
    path.write_bytes(data)

    model = importer.load(str(path))

    assert not quantized.is_quantized(model)
    codes = quantized.codes(model)
    network = layers.build(Graph.of(model))
    assert not network.unsupported
    calibration = creation.calibrate(model, network, given)
    assert {t: (q.scale, q.zero_point) for t, q in calibration.quantizations.items()} == {
        t: codes[t] for t in calibration.quantizations
    }
    for layer in network.weighted(network.graph.output):
        assert calibration.rounded(layer, 8, calibration.quantizations[layer.inputs[0]].scale).exact
    head = lower(network, calibration, network.graph.output, 8).head()
    for _ in range(4):
        x = random.integers(0, 256, shape).astype(np.uint8)
        apart = np.abs(head.run(x).astype(int) - export.unsigned(litert(data, export.signed(x)[None])[0]).astype(int))
        assert apart.max() <= 1  # averages of LiteRT round halves up
        assert (apart == 0).mean() >= 0.9


def with_coded_weights(kind: int, levels: NDArray[np.int8], scales: NDArray[np.float32]) -> bytes:
    """FULLY_CONNECTED of real numbers and ``levels`` [outs, ins] of 4 or 8 bits, with a scale for each output."""
    built = Built(1, levels.shape[1])
    raw = levels
    if kind == TensorType.INT4:
        flat = np.append(levels.reshape(-1), np.zeros(levels.size % 2, np.int8)).reshape(-1, 2)
        raw = ((flat[:, 0] & 15) | (flat[:, 1] << 4)).astype(np.int8)
    built._buffers.append(built._table("Buffer", Data=built._builder.CreateByteVector(raw.tobytes())))
    weight = built._tensor(list(levels.shape), kind, len(built._buffers) - 1, scales, 0)
    built.op("FULLY_CONNECTED", [built.last, weight, -1], (1, len(levels)), "FullyConnectedOptions")
    return built.data()


@pytest.mark.parametrize(("kind", "most"), [(TensorType.INT8, 127), (TensorType.INT4, 7)])
def test_coded_weights_of_real_products_become_real(tmp_path: Path, kind: int, most: int) -> None:
    random = np.random.default_rng(0)
    levels = random.integers(-most, most + 1, (5, 7)).astype(np.int8)
    scales = random.uniform(0.01, 0.1, 5).astype(np.float32)
    (tmp_path / "model.tflite").write_bytes(with_coded_weights(kind, levels, scales))
    model = importer.load(str(tmp_path / "model.tflite"))
    x = random.normal(size=(1, 7)).astype(np.float32)
    (found,) = importer.session(model).run(None, {inputs(model.graph)[0].name: x})
    np.testing.assert_allclose(found, x @ (levels * scales[:, None]).T, rtol=1e-5, atol=1e-6)
