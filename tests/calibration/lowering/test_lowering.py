"""Every operator's lowering against ONNX Runtime's floats, and the fast executor against the slow twin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from calibration.bundle import creation
from calibration.importing import cuts
from calibration.importing.graph import Graph
from calibration.importing.importer import batched, session, simplify
from calibration.lowering import layers
from calibration.lowering.lower import Bits, Lowered, lower
from calibration.samples.samples import Samples
from calibration.statistics.activations import to_onnx
from splitedge import errors
from splitedge.head import segment as seg
from splitedge.head.executor import Head
from splitedge.head.preprocess import quantize_tensor
from splitedge.protocol.messages import Preprocess
from tests import reference_head as twin
from tests import small_models as small
from tests.raising import raises

Net = small.Net


def head_of(model: onnx.ModelProto, bits: Bits = 8, count: int = 12) -> tuple[Lowered, Samples, layers.Network]:
    """The whole model as a head, calibrated with normal noise."""
    network = layers.build(Graph.of(model))
    assert not network.unsupported
    shape = network.graph.stored_shape(network.graph.input)
    arrays = list(np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32))
    samples = Samples(Preprocess("tensor", shape), arrays)
    calibration = creation.calibrate(model, network, samples)
    return lower(network, calibration, network.graph.output, bits), samples, network


def check(model: onnx.ModelProto, tolerance: float = 3.0, bits: Bits = 8) -> Lowered:
    """The head's outputs lie within ``tolerance`` codes of ONNX Runtime's (root mean square), and equal the twin's exactly."""
    model = simplify(model)
    lowered, samples, network = head_of(model, bits)
    data = lowered.segment()
    assert data == head_of(model, bits)[0].segment()
    head = Head(seg.parse(data))
    run = session(model)
    out = head.output
    squares = []
    for sample in samples:
        codes = quantize_tensor(sample, head.input)
        found = head.run(codes)
        wanted = run.run(None, {network.graph.input: to_onnx(sample[None])})[0]
        stored = wanted.transpose(0, 2, 3, 1)[0] if wanted.ndim == 4 else wanted[0]
        assert list(found.shape) == list(stored.shape)
        squares.append(((found.astype(float) - out.zero_point) - stored / out.scale) ** 2)
    np.testing.assert_array_equal(twin.run(seg.parse(data), codes)[head.header.output], found)
    assert np.sqrt(np.mean(squares)) < tolerance
    return lowered


def one(shape: list[int], *steps: Callable[[Net], object]) -> onnx.ModelProto:
    net = Net(shape)
    for step in steps:
        step(net)
    return net.model()


IMAGE = [1, 6, 9, 11]
CONVS = {
    "plain": {"kernel": 3},
    "pointwise": {"kernel": 1},
    "strided": {"kernel": 3, "strides": [2, 3]},
    "dilated": {"kernel": 3, "dilations": [2, 1], "pads": [2, 1, 2, 1]},
    "asymmetric": {"kernel": 3, "pads": [0, 1, 2, 0]},
    "same upper": {"kernel": 4, "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "same lower": {"kernel": 4, "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    "valid": {"kernel": 3, "auto_pad": "VALID"},
    "grouped": {"kernel": 3, "groups": 2},
    "depthwise": {"kernel": 5, "groups": 6},
    "padded beyond its window": {"kernel": 1, "pads": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("kind", CONVS)
def test_convolution(kind: str) -> None:
    check(one(IMAGE, lambda n: n.conv(6, 6, **CONVS[kind])))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_weights_of_every_width(bits: int) -> None:
    tolerance = {2: 40.0, 3: 25.0, 4: 12.0, 5: 6.0}.get(bits, 4.0)
    check(one(IMAGE, lambda n: n.conv(8, 6)), tolerance, bits)


def test_each_layer_has_bits_of_its_own() -> None:
    lowered, _, network = head_of(simplify(small.mobilenet()))
    outs = [layer.out for layer in network.weighted(network.graph.output)]
    assert len(outs) == len([o for o in lowered.header.ops if isinstance(o, seg.Conv)])
    wanted = {out: 2 + i % 7 for i, out in enumerate(outs)}
    check(small.mobilenet(), 40.0, wanted)
    mixed = head_of(simplify(small.mobilenet()), wanted)[0]
    assert [o.bits for o in mixed.header.ops if isinstance(o, seg.Conv)] == list(wanted.values())
    assert mixed.header.weight_bits == 8
    same = head_of(simplify(small.mobilenet()), dict.fromkeys(outs, 5))[0]
    assert same.segment() == head_of(simplify(small.mobilenet()), 5)[0].segment()


@pytest.mark.parametrize(("change", "message"), [(1, "bits"), (9, "bits"), (None, "bits-of-layers")])  # fmt: skip
def test_bits_that_do_not_fit_the_layers_are_refused(change: int | None, message: str) -> None:
    network = layers.build(Graph.of(simplify(small.mlp())))
    bits = {layer.out: 4 for layer in network.weighted(network.graph.output)}
    out = next(iter(bits))
    if change is None:
        del bits[out]
    else:
        bits[out] = change
    with raises(errors.UsageError, reason=message):
        head_of(simplify(small.mlp()), bits)
    if change is None:
        with raises(errors.UsageError, reason="bits-of-layers", layer="nothing"):
            head_of(simplify(small.mlp()), bits | {out: 4, "nothing": 4})


UNARY = {
    "Relu": {}, "Sigmoid": {}, "Tanh": {}, "Erf": {}, "Abs": {}, "Neg": {}, "Exp": {}, "Softplus": {}, "Mish": {}, "HardSwish": {},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4}, "LeakyRelu": {"alpha": 0.2}, "Elu": {"alpha": 0.7},
}  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_element_wise_function_is_a_table(op: str) -> None:
    lowered = check(one(IMAGE, lambda n: n.add(op, **UNARY[op])))
    assert [type(o) for o in lowered.header.ops] == [seg.Lut]


def test_gelu_and_powers() -> None:
    net = Net(IMAGE, opset=20)
    net.add("Gelu")
    net.add("Pow", net.last, net.constant(2.0))
    check(net.model())


def test_activation_of_a_convolution_costs_no_operator() -> None:
    net = Net(IMAGE)
    net.conv(8, 6)
    net.add("Clip", net.last, net.constant(0.0), net.constant(0.5))
    lowered = check(net.model())
    assert [type(o) for o in lowered.header.ops] == [seg.Conv]
    assert lowered.header.ops[0].lo == lowered.header.tensors[1].zero_point


def test_clip_with_attributes_of_an_old_operator_set() -> None:
    net = Net(IMAGE, opset=9)
    net.conv(8, 6)
    net.add("Clip", min=0.0, max=0.6)
    check(net.model())


@pytest.mark.parametrize("gate", ["Sigmoid", "HardSigmoid"])
def test_a_gate_of_the_tensor_itself_is_one_table(gate: str) -> None:
    net = Net(IMAGE)
    net.add("Mul", "x", net.add(gate, "x"))
    assert [type(o) for o in check(net.model()).header.ops] == [seg.Lut]


def test_gelu_written_out_is_one_table() -> None:
    net = Net(IMAGE)
    net.add("Div", "x", net.constant(2**0.5))
    net.add("Erf")
    net.add("Add", net.last, net.constant(1.0))
    net.add("Mul", "x", net.last)
    net.add("Mul", net.last, net.constant(0.5))
    assert [type(o) for o in check(net.model()).header.ops] == [seg.Lut]


@pytest.mark.parametrize("op", ["Add", "Mul", "Sub", "Div"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_constant_operand(op: str, per_channel: bool) -> None:
    net = Net(IMAGE)
    values = net.random.uniform(0.5, 2.0, (6, 1, 1) if per_channel else ())
    net.add(op, "x", net.constant(values))
    lowered = check(net.model())
    assert [type(o) for o in lowered.header.ops] == [seg.Conv if per_channel else seg.Lut]


@pytest.mark.parametrize("bits", [2, 4])
def test_constants_for_channels_are_exact_at_few_bits(bits: int) -> None:
    net = Net(IMAGE)
    net.add("Mul", "x", net.constant(net.random.normal(size=(6, 1, 1))))
    net.add("Add", net.last, net.constant(net.random.normal(size=(6, 1, 1))))
    assert len(check(net.model(), bits=bits).header.ops) == 1


def test_constant_of_a_vector_and_of_rows() -> None:
    for shape in ([1, 12], [1, 5, 12]):
        net = Net(shape)
        net.add("Mul", "x", net.random_weight(12, scale=1.0))
        check(net.model())


def test_constant_minus_tensor() -> None:
    net = Net(IMAGE)
    net.add("Sub", net.constant(1.0), "x")
    check(net.model())


@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize("swap", [False, True])
def test_two_tensors_and_broadcast_over_the_plane(op: str, swap: bool) -> None:
    net = Net(IMAGE)
    wide = net.conv(6, 6)
    net.add("GlobalAveragePool", "x")
    gate = net.add("Sigmoid")
    net.add(op, *((gate, wide) if swap else (wide, gate)))
    check(net.model())


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("GlobalAveragePool", {}),
        ("GlobalMaxPool", {}),
    ],
)
def test_pooling(op: str, attrs: dict) -> None:
    check(one(IMAGE, lambda n: n.add(op, **attrs)))


@pytest.mark.parametrize("keep", [0, 1])
def test_mean_over_the_plane(keep: int) -> None:
    net = Net(IMAGE)
    net.add("ReduceMean", "x", net.constant([-1, -2], np.int64), keepdims=keep)
    check(net.model())


def test_concat_of_tensors_of_different_scale() -> None:
    net = Net(IMAGE)
    small_one, large = net.conv(5, 6), net.add("Mul", "x", net.constant(7.0))
    net.add("Concat", small_one, large, axis=1)
    lowered = check(net.model())
    assert any(isinstance(o, seg.Concat) for o in lowered.header.ops)


def test_flattened_plane_keeps_the_order_of_the_matrix_after_it() -> None:
    net = Net(IMAGE)
    net.add("Flatten")
    net.gemm(7, 6 * 9 * 11)
    lowered = check(net.model())
    assert not any(isinstance(o, seg.Transpose) for o in lowered.header.ops)


def test_flattened_plane_as_output_is_transposed() -> None:
    lowered = check(one(IMAGE, lambda n: n.add("Flatten")))
    assert any(isinstance(o, seg.Transpose) for o in lowered.header.ops)


@pytest.mark.parametrize("shape", [[1, 66, 9], [1, 6, 99], [1, 3, 18, 11], [1, 594]])
def test_reshape_keeps_the_onnx_order(shape: list[int]) -> None:
    net = Net(IMAGE)
    net.add("Reshape", "x", net.constant(shape, np.int64))
    check(net.model())


def test_reshape_from_rows_to_a_plane() -> None:
    net = Net([1, 12, 10])
    net.add("Reshape", "x", net.constant([1, 4, 6, 5], np.int64))
    check(net.model())


@pytest.mark.parametrize(("shape", "perm"), [(IMAGE, [0, 2, 3, 1]), (IMAGE, [0, 1, 3, 2]), ([1, 4, 7], [0, 2, 1])])
def test_transpose(shape: list[int], perm: list[int]) -> None:
    check(one(shape, lambda n: n.add("Transpose", perm=perm)))


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([2], [5], [1], [1]),
        ([1, 2], [8, 11], [2, 3], [1, 1]),
        ([0, 1, 0], [6, 9, 2**62], [1, 2, 3], [2, 3, 2]),
        ([-4], [-1], [-3], [1]),
        ([0], [2**62], [1], [1]),
    ],
)
def test_slice(starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> None:
    net = Net(IMAGE)
    net.add("Slice", "x", *(net.constant(values, np.int64) for values in (starts, ends, axes, steps)))
    check(net.model())


def test_a_slice_that_reverses_is_unsupported() -> None:
    net = Net(IMAGE)
    net.add("Slice", "x", *(net.constant(values, np.int64) for values in ([4], [0], [1], [-1])))
    assert layers.build(Graph.of(net.model())).unsupported


@pytest.mark.parametrize(("shape", "axis"), [(IMAGE, 1), (IMAGE, 3), ([1, 12, 10], 2), ([1, 12, 10], 1)])
def test_split(shape: list[int], axis: int) -> None:
    net = Net(shape)
    first = net.add("Split", "x", net.constant([2, shape[axis] - 2], np.int64), axis=axis, outputs=2)
    second = f"{first}_1"
    net.add("Relu", second)
    net.add("Slice", net.last, *(net.constant([v], np.int64) for v in (0, 2, axis)))
    net.add("Add", net.last, first)
    check(net.model())


@pytest.mark.parametrize("groups", [2, 3])
def test_a_shuffle_of_channels(groups: int) -> None:
    channels, height, width = IMAGE[1:]
    net = Net(IMAGE)
    net.conv(6, 6, 1)
    net.add("Reshape", net.last, net.constant([1, groups, channels // groups, height, width], np.int64))
    net.add("Transpose", perm=[0, 2, 1, 3, 4])
    net.add("Reshape", net.last, net.constant(IMAGE, np.int64))
    net.conv(4, 6, 3)
    lowered = check(net.model())
    assert [type(op) for op in lowered.header.ops] == [seg.Conv, seg.View, seg.Conv]


@pytest.mark.parametrize("places", [[0, 2, 4, 1, 3, 5], [3], [1, 1, 4, 4], [5, 5, 5]])
def test_gathered_channels(places: list[int]) -> None:
    net = Net(IMAGE)
    net.add("Gather", "x", net.constant(places, np.int64), axis=1)
    check(net.model())


def test_channels_at_uneven_distances_are_unsupported() -> None:
    net = Net(IMAGE)
    net.add("Gather", "x", net.constant([0, 1, 3, 4, 2], np.int64), axis=1)
    assert layers.build(Graph.of(net.model())).unsupported


@pytest.mark.parametrize("factors", [(2, 2), (1, 3), (4, 1), (3, 2)])
@pytest.mark.parametrize(
    ("coordinates", "rounding"),
    [("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")],
)
def test_resize_to_the_nearest(factors: tuple[int, int], coordinates: str, rounding: str) -> None:
    net = Net(IMAGE)
    scales = net.constant([1.0, 1.0, *map(float, factors)])
    net.add(
        "Resize", "x", "", scales, mode="nearest", coordinate_transformation_mode=coordinates, nearest_mode=rounding
    )
    check(net.model())


@pytest.mark.parametrize(
    ("scales", "attributes"),
    [
        ([1, 1, 1.5, 2], {"mode": "nearest"}),
        ([1, 1, 2, 2], {"mode": "nearest", "nearest_mode": "ceil", "coordinate_transformation_mode": "asymmetric"}),
        ([1, 1, 3, 3], {"mode": "nearest", "coordinate_transformation_mode": "align_corners"}),
        ([1, 1, 2, 2], {"mode": "linear"}),
        ([1, 1, 0.5, 0.7], {"mode": "linear"}),
        ([1, 1, 2.5, 3], {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
        ([1, 1, 2, 1.3], {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}),
        ([1, 1, 1.7, 3], {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}),
        ([1, 1, 1.7, 0.4], {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
    ],
)
def test_resize_between_elements(scales: list[float], attributes: dict[str, str]) -> None:
    net = Net([1, 6, 8, 9])
    net.add("Resize", "x", "", net.constant(scales), **attributes)
    lowered = check(net.model(), 1.0)
    assert [type(op) for op in lowered.header.ops] == [seg.Resample]


def test_resize_to_sizes_linearly() -> None:
    net = Net([1, 6, 8, 9])
    net.add("Resize", "x", "", "", net.constant([1, 6, 13, 31], np.int64), mode="linear")
    check(net.model(), 1.0)


@pytest.mark.parametrize(
    ("scales", "attributes"),
    [
        ([1, 1, 2, 2], {"mode": "cubic"}),
        ([1, 1, 0.5, 0.5], {"mode": "linear", "antialias": 1}),
    ],
)
def test_resizes_with_more_neighbours_are_unsupported(scales: list[float], attributes: dict[str, str]) -> None:
    net = Net([1, 6, 8, 8])
    net.add("Resize", "x", "", net.constant(scales), **attributes)
    assert layers.build(Graph.of(net.model())).unsupported


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    net = Net([1, 8, 5, 7])
    net.conv(12, 8)
    net.add("DepthToSpace", blocksize=2, mode=mode)
    net.conv(4, 3)
    check(net.model())


def test_space_to_depth() -> None:
    net = Net([1, 3, 6, 8])
    net.add("SpaceToDepth", blocksize=2)
    net.conv(4, 12, 1)
    check(net.model())


def test_windows_by_reshapes_of_six_axes() -> None:
    net = Net([1, 5, 6, 8])
    net.add("Reshape", "x", net.constant([1, 5, 3, 2, 2, 4], np.int64))
    net.add("Transpose", perm=[0, 2, 4, 3, 5, 1])
    net.add("Reshape", net.last, net.constant([1, 6 * 8, 5], np.int64))
    net.add("Mul", net.last, net.constant([2.0]))
    lowered = check(net.model())
    assert [type(op) for op in lowered.header.ops] == [seg.View, seg.Lut]


def test_a_transposition_there_and_back_costs_nothing() -> None:
    net = Net(IMAGE)
    net.conv(6, 6)
    net.add("Transpose", perm=[0, 2, 3, 1])
    net.add("Reshape", net.last, net.constant([1, IMAGE[2] * IMAGE[3], 6], np.int64))
    net.add("Transpose", perm=[0, 2, 1])
    net.add("Reshape", net.last, net.constant([1, 6, *IMAGE[2:]], np.int64))
    net.conv(6, 6)
    lowered = check(net.model())
    assert {type(op) for op in lowered.header.ops} <= {seg.Conv, seg.Reshape}


@pytest.mark.parametrize(
    ("pads", "mode"),
    [
        ([0, 0, 1, 2, 0, 0, 2, 1], "reflect"),
        ([0, 0, 0, 2, 0, 0, 3, 0], "edge"),
        ([0, 0, 1, 2, 0, 0, 2, 1], "wrap"),
        ([0, 0, -1, 1, 0, 0, 2, -1], "edge"),
        ([0, 0, -1, 0, 0, 0, 0, -2], "constant"),
        ([0, -1, -1, 0, 0, -2, 0, -2], "constant"),
        ([0, 2, 0, 0, 0, 3, 0, 0], "constant"),
        ([0, 0, 0, 0, 0, 6, 0, 0], "constant"),
    ],
)
def test_pads(pads: list[int], mode: str) -> None:
    net = Net([1, 6, 9, 7], opset=19)
    net.add("Tanh", "x")
    net.add("Pad", net.last, net.constant(pads, np.int64), mode=mode)
    check(net.model())


@pytest.mark.parametrize("pads", [[0, 1, 2, 0, 3, 0], [0, 0, 2, 0, 0, 1], [0, 2, 0, 0, 0, 0]])
def test_pads_of_rows(pads: list[int]) -> None:
    net = Net([1, 1, 9, 7], opset=19)
    net.conv(1, 1)
    net.add("Reshape", net.last, net.constant([1, 9, 7], np.int64))
    net.add("Pad", net.last, net.constant(pads, np.int64))
    net.add("Mul", net.last, net.constant([2.0]))
    check(net.model())


@pytest.mark.parametrize("shape", [[1, 1, 12, 10], [1, 6, 12, 1], [1, 6, 1, 10], [1, 1, 1, 1]])
@pytest.mark.parametrize("kind", ["Mul", "Add", "Sub"])
def test_pairs_that_repeat(kind: str, shape: list[int]) -> None:
    net = Net([1, 6, 12, 10])
    x = net.conv(6, 6)
    axes = [axis for axis in (1, 2, 3) if shape[axis] == 1]
    net.add("ReduceMean", x, net.constant(axes, np.int64))
    net.add("Sigmoid")
    net.add(kind, net.last, x) if kind != "Sub" else net.add(kind, x, net.last)
    check(net.model())


def test_both_of_a_pair_repeat() -> None:
    net = Net([1, 6, 12, 10])
    x = net.conv(6, 6)
    a = net.add("ReduceMean", x, net.constant([2], np.int64))
    b = net.add("ReduceMean", x, net.constant([1], np.int64))
    net.add("Mul", a, b)
    check(net.model())


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceMax", "ReduceSum"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [([1, 6, 12, 10], axes) for axes in ([1], [2], [3], [2, 3], [1, 2, 3], [-1])]
    + [([1, 12, 10], [1]), ([1, 12, 10], [2]), ([1, 12, 10], [1, 2]), ([1, 10], [1])],
)
def test_reductions(kind: str, shape: list[int], axes: list[int], keepdims: int) -> None:
    if len(shape) - len(axes) < 2 and not keepdims:
        pytest.skip("an answer without axes")
    net = Net(shape)
    net.add("Tanh")
    net.add(kind, net.last, net.constant(axes, np.int64), keepdims=keepdims)
    check(net.model())


@pytest.mark.parametrize(("shape", "axis"), [([1, 6, 12, 10], 2), ([1, 6, 12, 10], 3), ([1, 12, 10], 1)])
def test_joined_along_other_axes(shape: list[int], axis: int) -> None:
    net = Net(shape)
    a = net.add("Tanh", "x")
    b = net.add("Exp", "x")
    net.add("Concat", a, b, a, axis=axis)
    check(net.model())


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm(affine: bool) -> None:
    net = Net([1, 6, 12, 10])
    net.conv(6, 6)
    constants = [net.constant(np.linspace(0.5, 2, 6)), net.constant(np.linspace(-1, 1, 6))]
    net.add("InstanceNormalization", net.last, *constants)
    if affine:
        net.add("Mul", net.last, net.constant(np.linspace(-1, 1, 6).reshape(6, 1, 1)))
    net.add("Relu")
    lowered = check(net.model())
    assert [type(op) for op in lowered.header.ops] == [seg.Conv, seg.Normalize]


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_as_torch_exports_it(groups: int) -> None:
    net = Net([1, 6, 12, 10])
    net.conv(6, 6)
    net.add("Reshape", net.last, net.constant([0, groups, -1], np.int64))
    net.add("InstanceNormalization", net.last, net.constant(np.ones(groups)), net.constant(np.zeros(groups)))
    net.add("Reshape", net.last, net.constant([1, 6, 12, 10], np.int64))
    net.add("Mul", net.last, net.constant(np.linspace(0.5, 2, 6).reshape(6, 1, 1)))
    net.add("Add", net.last, net.constant(np.linspace(-1, 1, 6).reshape(6, 1, 1)))
    lowered = check(net.model())
    assert [type(op) for op in lowered.header.ops] == [seg.Conv, seg.Normalize]


@pytest.mark.parametrize("groups", [1, 3])
def test_group_norm_of_operator_set_21(groups: int) -> None:
    net = Net([1, 6, 12, 10], opset=21)
    net.conv(6, 6)
    constants = [net.constant(np.linspace(0.5, 2, 6)), net.constant(np.linspace(-1, 1, 6))]
    net.add("GroupNormalization", net.last, *constants, num_groups=groups)
    check(net.model())


@pytest.mark.parametrize("shape", [[1, 12, 10], [1, 10]])
def test_layer_norm_of_rows(shape: list[int]) -> None:
    net = Net([1, 3, 12 if len(shape) == 3 else 1, 10])
    net.conv(1, 3, 1)
    net.conv(1, 1)
    net.add("Reshape", net.last, net.constant(shape, np.int64))
    constants = [net.constant(np.linspace(0.5, 2, 10)), net.constant(np.linspace(-1, 1, 10))]
    net.add("LayerNormalization", net.last, *constants, epsilon=1e-4)
    check(net.model())


def test_a_block_with_channels_last_inside() -> None:
    """As ConvNeXt: depthwise, layer norm, two products with a GELU between, scaled, and the sum."""
    channels = 8
    net = Net([1, channels, 9, 7])
    x = net.conv(channels, channels)
    net.conv(channels, channels, 7, groups=channels)
    net.add("Transpose", perm=[0, 2, 3, 1])
    constants = [net.constant(np.linspace(0.5, 2, channels)), net.constant(np.linspace(-1, 1, channels))]
    net.add("LayerNormalization", net.last, *constants, epsilon=1e-6)
    net.add("MatMul", net.last, net.random_weight(channels, 4 * channels))
    net.add("Add", net.last, net.random_weight(4 * channels, scale=0.2))
    y = net.last
    net.add("Div", y, net.constant([2**0.5]))
    net.add("Erf")
    net.add("Add", net.last, net.constant([1.0]))
    net.add("Mul", y, net.last)
    net.add("Mul", net.last, net.constant([0.5]))
    net.add("MatMul", net.last, net.random_weight(4 * channels, channels))
    net.add("Add", net.last, net.random_weight(channels, scale=0.2))
    net.add("Transpose", perm=[0, 3, 1, 2])
    net.add("Mul", net.last, net.constant(np.linspace(0.2, 1, channels).reshape(channels, 1, 1)))
    net.add("Add", net.last, x)
    lowered = check(net.model())
    kinds = [type(op) for op in lowered.header.ops]
    assert kinds == [seg.Conv, seg.Conv, seg.Normalize, seg.Conv, seg.Lut, seg.Conv, seg.Add]


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        (2, {"strides": [2, 2]}),
        (4, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        (3, {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        (3, {"strides": [3, 3], "pads": [0, 1, 1, 0]}),
        (3, {"strides": [1, 1], "pads": [1, 1, 1, 1]}),
        (3, {"strides": [2, 2], "dilations": [2, 1]}),
        (3, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        (2, {"strides": [4, 4], "output_padding": [3, 1]}),
        (5, {"strides": [2, 2], "pads": [2, 2, 2, 2], "output_padding": [1, 0]}),
    ],
)
def test_transposed_convolutions(kernel: int, attributes: dict[str, object]) -> None:
    net = Net([1, 6, 5, 7])
    net.add(
        "ConvTranspose", "x", net.random_weight(6, 4, kernel, kernel, scale=0.3), net.random_weight(4), **attributes
    )
    net.add("Mul", net.last, net.constant(np.linspace(0.5, 2, 4).reshape(4, 1, 1)))
    net.add("Add", net.last, net.constant(np.linspace(-1, 1, 4).reshape(1, 4, 1, 1)))
    net.add("Relu")
    net.conv(3, 4)
    lowered = check(net.model())
    assert [type(op) for op in lowered.header.ops if not isinstance(op, seg.View)] == [seg.Conv, seg.Conv]


@pytest.mark.parametrize(("outs", "attributes"), [(1, {"strides": [2, 2]}), (2, {"pads": [1, 1, 1, 1]})])
def test_transposed_convolutions_of_groups(outs: int, attributes: dict[str, object]) -> None:
    net = Net([1, 6, 5, 7])
    net.add("ConvTranspose", "x", net.random_weight(6, outs, 3, 3, scale=0.3), group=6, **attributes)
    check(net.model())


def test_slopes_of_channels() -> None:
    net = Net([1, 6, 5, 7])
    net.conv(6, 6)
    net.add("PRelu", net.last, net.constant(np.linspace(-0.5, 1.5, 6).reshape(6, 1, 1)))
    check(net.model())


def test_quotients_sums_and_means_of_several() -> None:
    net = Net([1, 6, 5, 7])
    a, b = net.conv(6, 6), net.conv(6, 6, x="x")
    c = net.add("Sum", a, b, "x")
    d = net.add("Exp", net.add("Tanh", b))
    net.add("Mean", net.add("Div", c, d), a)
    check(net.model())


def test_lines_are_planes_of_height_one() -> None:
    net = Net([1, 3, 40])
    net.add("Conv", "x", net.random_weight(8, 3, 5), net.random_weight(8), pads=[2, 2], strides=[2])
    net.add("Mul", net.last, net.constant(np.linspace(0.5, 2, 8).reshape(1, 8, 1)))
    net.add("Relu")
    x = net.last
    net.add("Conv", x, net.random_weight(8, 2, 3), pads=[2, 2], dilations=[2], group=4)
    net.add("Add", net.last, x)
    net.add("MaxPool", kernel_shape=[3], strides=[2], pads=[1, 1])
    net.add("ConvTranspose", net.last, net.random_weight(8, 6, 4), strides=[2], pads=[1, 1])
    net.add("Concat", net.last, net.add("AveragePool", x, kernel_shape=[1]), axis=1)
    net.add("ReduceMean", net.last, net.constant([2], np.int64), keepdims=0)
    net.gemm(5, 14)
    lowered = check(net.model())
    assert not any(isinstance(op, seg.Transpose) for op in lowered.header.ops[1:])


def test_lines_that_become_rows() -> None:
    net = Net([1, 4, 1, 12])
    net.conv(6, 4, 1)
    net.add("Squeeze", net.last, net.constant([2], np.int64))
    net.add("Conv", net.last, net.random_weight(8, 6, 3), pads=[1, 1])
    net.add("Transpose", perm=[0, 2, 1])
    net.add("MatMul", net.last, net.random_weight(8, 5))
    lowered = check(net.model())
    assert {type(op) for op in lowered.header.ops} <= {seg.Conv, seg.Reshape}


def test_a_block_of_a_detector_and_its_neck() -> None:
    """Split channels, a bottleneck, everything joined; then rows and columns doubled and joined with a skip."""
    net = Net([1, 3, 16, 16])

    def silu(x: str) -> str:
        return net.add("Mul", x, net.add("Sigmoid", x))

    skip = silu(net.conv(8, 3, 3, strides=[2, 2]))
    first = net.add("Split", skip, net.constant([4, 4], np.int64), axis=1, outputs=2)
    second = f"{first}_1"
    inner = net.add("Add", second, silu(net.conv(4, 4, 3, x=second)))
    silu(net.conv(8, 12, 1, x=net.add("Concat", first, second, inner, axis=1)))
    silu(net.conv(8, 8, 3, strides=[2, 2]))
    net.add("Resize", net.last, "", net.constant([1, 1, 2, 2]), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    net.conv(6, 16, 3, x=net.add("Concat", net.last, skip, axis=1))
    check(net.model())


def test_squeeze_and_unsqueeze() -> None:
    net = Net(IMAGE)
    net.add("GlobalAveragePool")
    net.add("Squeeze", net.last, net.constant([2, 3], np.int64))
    net.add("Unsqueeze", net.last, net.constant([1], np.int64))
    check(net.model())


def test_padding_alone_and_before_a_convolution() -> None:
    net = Net(IMAGE)
    net.add("Pad", "x", net.constant([0, 0, 1, 2, 0, 0, 3, 0], np.int64))
    check(net.model())
    net.conv(5, 6, pads=[0, 0, 0, 0], kernel=5)
    check(net.model())


def test_padding_wider_than_the_window_stays_an_operator() -> None:
    net = Net(IMAGE)
    net.add("Pad", "x", net.constant([0, 0, 3, 3, 0, 0, 3, 3], np.int64))
    net.conv(5, 6)
    assert [type(o) for o in check(net.model()).header.ops] == [seg.Pad, seg.Conv]


def test_softmax_over_classes_and_channels() -> None:
    check(one([1, 10], lambda n: n.add("Softmax", axis=-1)))
    check(one(IMAGE, lambda n: n.add("Softmax", axis=1)))


@pytest.mark.parametrize(("shape", "attrs"), [([1, 10], {}), ([1, 10, 1, 1], {}), ([1, 5, 10], {"axis": 2}), ([1, 1, 10], {"axis": 1})])  # fmt: skip
def test_softmax_of_an_old_operator_set(shape: list[int], attrs: dict) -> None:
    net = Net(shape, opset=11)
    net.add("Softmax", **attrs)
    check(net.model())


@pytest.mark.parametrize(("shape", "attrs"), [(IMAGE, {}), ([1, 5, 10], {}), (IMAGE, {"axis": 3}), (IMAGE, {"axis": -1})])  # fmt: skip
def test_softmax_of_an_old_operator_set_that_flattens_more_is_unsupported(shape: list[int], attrs: dict) -> None:
    net = Net(shape, opset=11)
    net.add("Softmax", **attrs)
    assert [node.op for node, _ in layers.build(Graph.of(simplify(net.model()))).unsupported] == ["Softmax"]


@pytest.mark.parametrize("exponent", [np.inf, -np.inf, np.nan, 0.5, -1.0])
def test_an_exponent_that_is_no_count_is_unsupported(exponent: float) -> None:
    net = Net(IMAGE)
    net.add("Pow", "x", net.constant(exponent))
    assert len(layers.build(Graph.of(net.model())).unsupported) == 1


def test_matrix_product_of_rows_with_a_constant() -> None:
    net = Net([1, 5, 16])
    net.add("MatMul", "x", net.random_weight(16, 24, scale=0.25))
    net.add("Add", net.last, net.random_weight(24, scale=0.5))
    check(net.model())


def test_gemm_with_factors_and_without_transposition() -> None:
    net = Net([1, 16])
    weight, bias = net.random_weight(16, 24, scale=0.25), net.random_weight(1, 24, scale=0.5)
    net.add("Gemm", "x", weight, bias, alpha=0.5, beta=2.0)
    check(net.model())


def test_batch_norm_without_a_convolution_before_it() -> None:
    for shape, channels in ((IMAGE, 6), ([1, 12], 12)):
        net = Net(shape)
        net.add("Relu")
        net.batch_norm(channels)
        model = simplify(net.model())
        assert "BatchNormalization" not in {n.op_type for n in model.graph.node}
        check(net.model())


@pytest.mark.parametrize("make", [small.cnn, small.mlp, small.resnet, small.mobilenet], ids=lambda f: f.__name__)
def test_whole_networks(make: Callable[[], onnx.ModelProto]) -> None:
    check(make(), tolerance=6.0)


@pytest.mark.parametrize("make", [small.cnn, small.resnet, small.mobilenet], ids=lambda f: f.__name__)
def test_a_head_and_its_tail_make_the_model(make: Callable[[], onnx.ModelProto]) -> None:
    """At every cut: the tail on the float tensor gives the model's output."""
    from calibration.importing.graph import tail_model
    from calibration.statistics.activations import Tap

    model = batched(simplify(make()))
    graph = Graph.of(model)
    places = [p for p in cuts.find(layers.build(graph)) if p.reachable and p.cut.kind != "output"]
    x = np.random.default_rng(0).normal(size=graph.stored_shape("x")).astype(np.float32)
    wanted = session(model).run(None, {"x": to_onnx(x[None])})[0]
    values = next(iter(Tap(model, graph, [p.cut.tensor for p in places if p.cut.index]).over([x])))
    for place in places:
        tail = session(tail_model(model, place.cut.tensor, graph.shapes[place.cut.tensor][1:]))
        value = values.get(place.cut.tensor, to_onnx(x[None]))
        np.testing.assert_allclose(tail.run(None, {place.cut.tensor: value})[0], wanted, rtol=1e-4, atol=1e-4)
