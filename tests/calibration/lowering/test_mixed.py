"""Networks with planes and tokens become heads of both forms, which answer as the float model does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from calibration.bundle import creation
from calibration.bundle.bundle import Bundle
from calibration.importing import cuts, importer
from calibration.importing.graph import Graph, tail_model
from calibration.importing.importer import session
from calibration.lowering import layers
from calibration.lowering.layers import mixed
from calibration.lowering.lower import lower
from calibration.samples.samples import Samples
from calibration.statistics.activations import feed, to_onnx
from splitedge.head import Head, load
from splitedge.head import segment as seg
from splitedge.head.preprocess import quantize_tensor
from splitedge.protocol.messages import Preprocess
from tests import models
from tests import reference_head as twin
from tests import small_models as small
from tests.small_transformers import SIZE, vit_model

NAMES = ["mobilevit-14", "mobilevit-17", "mobilevit-new", "recognizer-14", "recognizer-new"]


def stored(name: str) -> tuple[onnx.ModelProto, layers.Network, Samples]:
    model = importer.load(models.path(name), [1, 3, SIZE, SIZE])
    frames = list(np.random.default_rng(2).normal(size=(12, SIZE, SIZE, 3)).astype(np.float32))
    return model, layers.build(Graph.of(model)), Samples(Preprocess("tensor", [SIZE, SIZE, 3]), frames)


def values(head: Head, tensor: seg.Tensor, found: np.ndarray) -> np.ndarray:
    if tensor.dtype == "f32":
        return found
    return (tensor.scale * (found.astype(np.float32) - tensor.zero_point)).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


@pytest.mark.parametrize("name", NAMES)
def test_planes_and_tokens_answer_as_the_float_model(name: str) -> None:
    model, network, samples = stored(name)
    assert network.unsupported == []
    assert mixed.is_mixed(network.graph)
    calibration = creation.calibrate(model, network, samples)
    data = lower(network, calibration, network.graph.output, 8).segment()
    head, segment = load(data), seg.parse(data)
    kinds = {type(op).__name__ for op in segment.header.ops}
    assert {"Conv", "Dequantize", "Linear", "Norm"} <= kinds
    assert ("Quantize" in kinds) == name.startswith("mobilevit")
    for frame in samples:
        codes = quantize_tensor(frame, head.input)
        found = head.run(codes)
        np.testing.assert_array_equal(found, twin.run(segment, codes)[segment.header.output])
        wanted = session(model).run(None, feed(network.graph, frame[None]))[0][0]
        assert cosine(values(head, head.output, found), wanted) > 0.999


@pytest.mark.parametrize("name", ["mobilevit-17", "recognizer-new"])
def test_every_cut_of_both_forms_has_a_tail(name: str) -> None:
    model, network, samples = stored(name)
    calibration = creation.calibrate(model, network, samples)
    places = [place for place in cuts.find(network) if place.offered][1:-1]
    kinds = {network.dtype(place.cut.tensor) for place in places}
    assert kinds == ({"u8"} if name == "mobilevit-17" else {"u8", "f32"})
    wanted = session(model).run(None, feed(network.graph, samples[0][None]))[0]
    for place in places:
        tensor = place.cut.tensor
        head = load(lower(network, calibration, tensor, 8).segment())
        found = values(head, head.output, head.run(quantize_tensor(samples[0], head.input)))
        tail = session(tail_model(model, tensor, network.graph.shapes[tensor][1:]))
        assert cosine(tail.run(None, {tensor: to_onnx(found[None])})[0], wanted) > 0.999


def test_two_stages_of_both_forms_give_the_bits_of_one() -> None:
    model, network, samples = stored("recognizer-14")
    calibration = creation.calibrate(model, network, samples)
    output = network.graph.output
    whole = load(lower(network, calibration, output, 8).segment())
    codes = quantize_tensor(samples[0], whole.input)
    for place in [place for place in cuts.find(network) if place.offered][1:-1]:
        first = load(lower(network, calibration, place.cut.tensor, 8).segment())
        second = load(lower(network, calibration, output, 8, start=place.cut.tensor).segment())
        assert second.input.dtype == network.dtype(place.cut.tensor)
        np.testing.assert_array_equal(second.run(first.run(codes)), whole.run(codes))


def test_a_bundle_of_both_forms_has_codecs_for_each(tmp_path_factory: pytest.TempPathFactory) -> None:
    model, network, samples = stored("recognizer-14")
    made = creation.create(tmp_path_factory.mktemp("bundle") / "b", "net", model, samples, rounding="gptq")
    assert isinstance(made, Bundle)
    tensors = [place.cut.tensor for place in cuts.find(network) if place.cut.index in made.offered]
    assert {network.dtype(tensor) for tensor in tensors} == {"u8", "f32"}
    head = load(made.segment(made.offered[-1], 8))
    assert head.output.dtype == "f32"


def test_a_plane_that_is_added_to_tokens_becomes_values() -> None:
    """As in TinyViT: the residual of an attention is a plane, and a convolution reads the sum."""
    net = small.Net([1, 8, 4, 4], seed=3)
    net.conv(8, 8, 3, pads=[1, 1, 1, 1])
    plane = net.add("Transpose", net.last, perm=[0, 2, 3, 1])
    x = net.add("LayerNormalization", plane, net.constant(np.ones(8)), net.constant(np.zeros(8)), axis=-1)
    x = net.add("Reshape", x, net.constant([1, 16, 8], np.int64))
    query, key, value = (net.add("MatMul", x, net.random_weight(8, 8, scale=0.4)) for _ in range(3))
    scores = net.add("Softmax", net.add("MatMul", query, net.add("Transpose", key, perm=[0, 2, 1])), axis=-1)
    mixed_rows = net.add("MatMul", net.add("MatMul", scores, value), net.random_weight(8, 8, scale=0.4))
    summed = net.add("Add", plane, net.add("Reshape", mixed_rows, net.constant([1, 4, 4, 8], np.int64)))
    net.conv(8, 8, 3, x=net.add("Transpose", summed, perm=[0, 3, 1, 2]))
    model = importer.batched(importer.simplify(net.model()))
    network = layers.build(Graph.of(model))
    assert network.unsupported == []
    frames = list(np.random.default_rng(4).normal(size=(4, 4, 4, 8)).astype(np.float32))
    calibration = creation.calibrate(model, network, Samples(Preprocess("tensor", [4, 4, 8]), frames))
    head = load(lower(network, calibration, network.graph.output, 8).segment())
    kinds = [type(op).__name__ for op in head.header.ops]
    assert kinds == ["Conv", "Dequantize", "Norm", "Linear", "Attention", "Linear", "Quantize", "Conv"]
    wanted = session(model).run(None, feed(network.graph, frames[0][None]))[0][0].transpose(1, 2, 0)
    assert cosine(values(head, head.output, head.run(quantize_tensor(frames[0], head.input))), wanted) > 0.999


def test_other_networks_are_not_mixed() -> None:
    assert not mixed.is_mixed(Graph.of(small.resnet()))
    assert layers.build(Graph.of(vit_model())).source == "f32"


def test_pixels_that_do_not_stay_whole_end_the_head() -> None:
    """Tokens made of rows of a plane instead of its pixels."""
    net = small.Net([1, 8, 4, 8])
    net.conv(8, 8, 1)
    x = net.add("Reshape", net.last, net.constant([1, 32, 8], np.int64))  # [C, H] x W
    x = net.add("MatMul", x, net.random_weight(8, 8))
    scores = net.add("MatMul", x, net.add("Transpose", x, perm=[0, 2, 1]))
    net.add("MatMul", net.add("Softmax", scores, axis=-1), x)
    network = layers.build(Graph.of(net.model()))
    assert any("whole tokens" in why or "something else" in why for _, why in network.unsupported)
