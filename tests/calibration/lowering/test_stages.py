"""Segments from one cut to a later one: one after another they are the head in one piece."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.bundle import creation
from calibration.bundle.bundle import Bundle
from calibration.importing import cuts
from calibration.importing.graph import Graph
from calibration.importing.importer import batched, simplify
from calibration.lowering import layers
from calibration.lowering.lower import Calibration, lower
from calibration.samples.samples import Samples
from splitedge import codec, errors
from splitedge.head import executor
from splitedge.head import segment as seg
from splitedge.head.preprocess import quantize_tensor
from splitedge.protocol.messages import Preprocess
from tests import small_models as small
from tests import small_transformers as transformers
from tests.raising import raises

MAKERS = {"cnn": small.cnn, "resnet": small.resnet, "mobilenet": small.mobilenet, "mlp": small.mlp}


def calibrated(model: onnx.ModelProto) -> tuple[layers.Network, Calibration, Samples]:
    network = layers.build(Graph.of(model))
    shape = network.graph.stored_shape(network.graph.input)
    frames = list(np.random.default_rng(1).normal(size=(6, *shape)).astype(np.float32))
    samples = Samples(Preprocess("tensor", shape), frames)
    return network, creation.calibrate(model, network, samples), samples


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    frames = list(np.random.default_rng(5).normal(size=(24, 16, 16, 3)).astype(np.float32))
    inputs = Samples(Preprocess("tensor", [16, 16, 3]), frames)
    return creation.create(tmp_path_factory.mktemp("bundle") / "b", "net", batched(simplify(small.resnet())), inputs)


@pytest.mark.parametrize("name", MAKERS)
def test_two_segments_give_the_bits_of_one_wherever_they_meet(name: str) -> None:
    network, calibration, samples = calibrated(batched(simplify(MAKERS[name]())))
    places = [place.cut.tensor for place in cuts.find(network) if place.reachable]
    output = network.graph.output
    whole = executor.load(lower(network, calibration, output, 5).segment())
    codes = quantize_tensor(samples[0], whole.input)
    wanted = whole.run(codes)
    for middle in places:
        first = executor.load(lower(network, calibration, middle, 5).segment())
        second = executor.load(lower(network, calibration, output, 5, start=middle).segment())
        assert (first.output.scale, first.output.zero_point) == (second.input.scale, second.input.zero_point)
        np.testing.assert_array_equal(second.run(first.run(codes)), wanted)


@pytest.mark.parametrize("make", [transformers.vit_model, transformers.encoder_model])
def test_stages_of_a_transformer_pass_the_stream_on(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    network, calibration = layers.build(Graph.of(model)), Calibration({}, {})
    output = network.graph.output
    x = transformers.frame(network.graph)
    wanted = executor.load(lower(network, calibration, output, 8).segment()).run(x)
    met = []
    for place in cuts.find(network):
        if not place.reachable or place.cut.tensor == network.graph.input:
            continue
        first = executor.load(lower(network, calibration, place.cut.tensor, 8).segment())
        try:
            second = executor.load(lower(network, calibration, output, 8, start=place.cut.tensor).segment())
        except errors.UsageError:  # the ids that say what is padding are needed behind it
            continue
        assert second.input.dtype == "f32"
        np.testing.assert_array_equal(second.run(first.run(x)), wanted)
        met.append(place)
    assert met


def test_a_chain_with_exact_codecs_gives_the_bits_of_one_head(made: Bundle) -> None:
    """Any two cuts on the way, weights of mixed bits, and each tensor sent as the codes that it has."""
    last = made.offered[-1]
    bits = {name: 3 + i % 5 for i, name in enumerate(made.weight_layers(last))}
    whole = executor.load(made.segment(last, bits))
    codes = quantize_tensor(np.random.default_rng(2).normal(size=(16, 16, 3)).astype(np.float32), whole.input)
    wanted = whole.run(codes)
    for a, b in combinations(made.offered[:-1], 2):
        x, start = codes, 0
        for end in (a, b, last):
            own = {name: bits[name] for name in made.weight_layers(end, start)}
            head = executor.load(made.segment(end, own, start))
            x, start = head.run(x), end
            if end != last:
                exact = made.exact_codec(end)
                sent = codec.encode_codes(x, head.output.scale, head.output.zero_point, exact)
                assert sent == x.tobytes()
                x = quantize_tensor(codec.decode(sent, exact, x.shape), head.output)
        np.testing.assert_array_equal(x, wanted)


def test_a_segment_that_ends_where_it_begins_computes_nothing(made: Bundle) -> None:
    cut = made.offered[2]
    head = executor.load(made.segment(cut, {}, cut))
    codes = np.arange(np.prod(head.input.shape), dtype=np.int64).astype(np.uint8).reshape(head.input.shape)
    np.testing.assert_array_equal(head.run(codes), codes)
    assert not head.header.ops
    assert head.header.preprocess == Preprocess("tensor", made.cuts[cut].shape)


def test_a_later_segment_is_the_same_bytes_each_time_and_no_other(made: Bundle) -> None:
    a, b = made.offered[1], made.offered[-1]
    data = made.segment(b, 4, a)
    assert data == made.segment(b, 4, a) == Bundle.open(made.path).segment(b, 4, a)
    assert data != made.segment(b, 4)
    assert seg.parse(data).header.golden != seg.parse(made.segment(b, 4)).header.golden


def test_cuts_in_the_wrong_order_are_refused(made: Bundle) -> None:
    with raises(errors.UsageError, reason="other-cut"):
        made.segment(made.offered[1], 8, made.offered[-1])


def test_floats_are_sent_exactly_as_floats(tmp_path: Path) -> None:
    model = transformers.vit_model("fused", "mean", "conv")
    graph = Graph.of(model)
    frames = [transformers.frame(graph, seed) for seed in range(6)]
    inputs = Samples(Preprocess("tensor", graph.stored_shape(graph.input)), frames)
    opened = creation.create(tmp_path / "b", "net", model, inputs, rounding="nearest")
    middle, last = opened.offered[2], opened.offered[-1]
    whole, first, second = (executor.load(opened.segment(b, 6, a)) for a, b in ((0, last), (0, middle), (middle, last)))
    sent, exact = first.run(frames[0]), opened.exact_codec(middle)
    arrived = codec.decode(codec.encode(sent, exact), exact, sent.shape)
    np.testing.assert_array_equal(second.run(arrived), whole.run(frames[0]))
