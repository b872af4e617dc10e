"""Where networks may be cut, and what says no."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from calibration.importing import cuts
from calibration.importing.graph import Graph
from calibration.importing.importer import simplify
from calibration.lowering import layers
from tests import small_models as small


def places(model: onnx.ModelProto) -> list[cuts.Place]:
    return cuts.find(layers.build(Graph.of(simplify(model))))


def test_first_is_the_input_and_last_the_output() -> None:
    for make in (small.cnn, small.mlp, small.resnet, small.mobilenet):
        found = places(make())
        assert [p.cut.index for p in found] == list(range(len(found)))
        assert found[0].cut.kind == "input"
        assert found[-1].cut.kind == "output"
        assert found[0].offered
        assert found[-1].offered
        assert {p.cut.kind for p in found[1:-1]} == {"inside"}
        assert all(p.reachable for p in found)


def test_shapes_are_channels_last() -> None:
    assert [p.cut.shape for p in places(small.cnn())][:3] == [[16, 16, 3], [16, 16, 8], [8, 8, 8]]


def test_no_cut_between_a_convolution_and_its_activation() -> None:
    layer_names = [p.cut.layer for p in places(small.cnn())]
    assert layer_names == ["x", "conv0", "maxpool2", "conv3", "fc6", "fc8"]


def test_no_cut_inside_a_residual_block() -> None:
    shapes = [p.cut.shape for p in places(small.resnet())]
    assert shapes == [[16, 16, 3], [16, 16, 8], [16, 16, 8], [8, 8, 16], [1, 1, 16], [10]]


def test_no_cut_between_branches_that_are_joined() -> None:
    net = small.Net([1, 4, 8, 8])
    left = net.conv(4, 4)
    net.add("Concat", left, net.conv(2, 4, x="x"), axis=1)
    net.conv(3, 6)
    assert [p.cut.shape for p in places(net.model())] == [[8, 8, 4], [8, 8, 6], [8, 8, 3]]


def test_wide_tensors_are_listed_and_not_offered() -> None:
    found = places(small.mobilenet())
    wide = [p for p in found if p.cut.shape[-1] == 24]
    assert not wide or not any(p.offered for p in wide)
    widths = [int(np.prod(p.cut.shape)) for p in places(small.mlp())]
    assert widths == [64, 48, 24, 10]
    assert all(p.offered for p in places(small.mlp()))  # narrower than all before: each spares the device the next


def test_an_expanded_tensor_tells_what_is_narrower() -> None:
    net = small.Net([1, 4, 8, 8])
    net.conv(2, 4, 1, pads=[0] * 4)
    net.conv(12, 2, 1, pads=[0] * 4)
    net.conv(2, 12, 1, pads=[0] * 4)
    net.conv(2, 2)
    found = places(net.model())
    assert [p.offered for p in found] == [True, True, False, True, True]
    assert found[2].reason == "wider than after conv0"


def test_an_unsupported_operator_limits_the_depth_and_is_named() -> None:
    net = small.Net([1, 4, 8, 8])
    net.conv(2, 4)
    net.add("Relu")
    net.add("LRN", name="norm", size=3)
    net.conv(2, 2)
    net.add("Resize", net.last, "", net.constant([1, 1, 2, 2]), name="up", mode="cubic")
    model = simplify(net.model())
    network = layers.build(Graph.of(model))
    found = cuts.find(network)
    assert cuts.unsupported(network) == ["LRN (norm)", "Resize (up)"]
    assert [p.reachable for p in found] == [True, True, False, False, False]
    assert [p.offered for p in found] == [True, True, False, False, False]
    assert all("LRN (norm)" in p.reason for p in found[2:])


def test_an_unsupported_operator_at_the_input_leaves_the_server() -> None:
    net = small.Net([1, 4, 8, 8])
    net.add("LRN", name="norm", size=3)
    net.conv(2, 4)
    found = places(net.model())
    assert [p.cut.index for p in found if p.offered] == [0]
    assert found[-1].reason.startswith("behind LRN (norm)")


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("Flatten", {"axis": 2}),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        (
            "AveragePool",
            {"kernel_shape": [2, 2], "ceil_mode": 1, "count_include_pad": 1, "pads": [1, 1, 1, 1], "strides": [2, 2]},
        ),
        ("ReduceMean", {"keepdims": 1}),
        ("ReduceMin", {"keepdims": 1}),
        ("ArgMax", {}),
        ("Transpose", {"perm": [1, 0, 2, 3]}),
        ("Softmax", {"axis": 2}),
        ("Sin", {}),
    ],
)
def test_uses_that_cannot_be_expressed_are_unsupported_not_guessed(op: str, attrs: dict) -> None:
    net = small.Net([1, 4, 8, 8])
    net.add(op, **attrs)
    network = layers.build(Graph.of(net.model()))
    assert [n.op for n, _ in network.unsupported] == [op]


def test_constant_along_the_plane_is_unsupported() -> None:
    net = small.Net([1, 4, 8, 8])
    net.add("Add", "x", net.random_weight(8, 1))
    assert layers.build(Graph.of(net.model())).unsupported


def test_padding_with_ones_is_unsupported() -> None:
    net = small.Net([1, 4, 8, 8])
    net.add("Pad", "x", net.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64), net.constant(1.0))
    assert len(layers.build(Graph.of(net.model())).unsupported) == 1


def test_layer_names_come_from_their_weights() -> None:
    assert {p.cut.layer for p in places(small.mlp())} == {"x", "fc0", "fc2", "fc4"}


@pytest.mark.parametrize("shape", [(3, 4, 3, 3, 3), (3, 4, 3)])
def test_convolutions_over_other_than_planes_are_unsupported(shape: tuple[int, ...]) -> None:
    net = small.Net([1, 4, *[8] * (len(shape) - 2)])
    net.add("Conv", "x", net.random_weight(*shape))
    assert layers.build(Graph.of(net.model())).unsupported


def test_products_of_two_tensors_are_unsupported() -> None:
    net = small.Net([1, 6, 6])
    net.add("MatMul", "x", "x")
    assert layers.build(Graph.of(net.model())).unsupported


def test_quotients_of_two_tensors_become_products_at_import() -> None:
    net = small.Net([1, 4, 8, 8])
    net.add("Div", net.conv(4, 4), net.conv(4, 4, x="x"))
    assert [n.op for n, _ in layers.build(Graph.of(net.model())).unsupported] == ["Div"]
    assert not layers.build(Graph.of(simplify(net.model()))).unsupported
