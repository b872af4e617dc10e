"""Layers scaled against each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from benchmarks import equalization
from calibration.importing.graph import Graph
from calibration.importing.importer import session, simplify
from calibration.lowering import layers
from tests import small_models as small


def uneven(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` whose channels have very different weights."""
    rng = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            w = onnx.numpy_helper.to_array(tensor)
            factor = np.exp(rng.normal(size=(len(w), *[1] * (w.ndim - 1)))).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(w * factor, tensor.name))
    return model


@pytest.mark.parametrize("make", [small.cnn, small.mlp, small.mobilenet, small.resnet], ids=lambda f: f.__name__)
def test_the_network_stays_what_it_was_and_pairs_have_alike_weights(make: Callable[[], onnx.ModelProto]) -> None:
    model = simplify(uneven(make()))
    scaled, network, count = equalization.equalized(model)
    found = equalization.pairs(network)
    assert len(found) == count
    x = np.random.default_rng(0).normal(size=network.graph.shapes["x"]).astype(np.float32)
    wanted = session(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(session(scaled).run(None, {"x": x})[0], wanted, rtol=1e-3, atol=1e-4 * wanted.std())
    for first, second in found:
        peaks = np.abs(first.weight).reshape(len(first.weight), -1).max(axis=1)
        assert first.clamp in equalization.HOMOGENEOUS
        if second.groups == 1 and second.weight.shape[3] == len(peaks):
            np.testing.assert_allclose(np.abs(second.weight).max(axis=(0, 1, 2)), peaks, rtol=0.01)


def test_only_pairs_are_scaled_between_which_a_factor_passes_and_nothing_else_reads() -> None:
    net = small.Net([1, 3, 8, 8])
    net.conv(4, 3)
    net.add("Relu")
    net.conv(6, 4)  # 0: behind a ReLU
    relu6 = net.add("Clip", net.last, net.constant(0), net.constant(6))
    net.conv(6, 6)  # behind a ReLU6: no pair
    net.add("Add", net.last, relu6)
    net.conv(5, 6)  # behind a sum: no pair
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.conv(4, 5)  # 1: behind pooling
    branch = net.last
    net.conv(4, 4)
    net.add("Add", net.last, branch)  # something else reads what the one before yields: no pair
    network = layers.build(Graph.of(simplify(net.model())))
    assert [(len(a.weight), len(b.weight)) for a, b in equalization.pairs(network)] == [(4, 6), (5, 4)]
