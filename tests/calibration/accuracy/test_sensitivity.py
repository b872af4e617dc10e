"""Noise of each layer's bits on the logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.accuracy import sensitivity, subsampling
from calibration.accuracy.sensitivity import Probe, fit
from calibration.bundle import creation
from calibration.bundle.cache import Cache
from calibration.importing.graph import Graph
from calibration.importing.importer import batched, session, simplify
from calibration.lowering import layers
from calibration.lowering.layers import Weighted
from calibration.lowering.lower import lower
from calibration.rounding.quantizer import Rounded, nearest
from calibration.rounding.rounder import WIDTHS
from calibration.rounding.weight_substitution import substitute_weights, weights
from calibration.samples.samples import Samples
from calibration.statistics.activations import feed, to_onnx
from splitedge import codec
from splitedge.head import segment
from splitedge.head.executor import Head
from splitedge.protocol.messages import Preprocess
from tests import small_models as small
from tests import small_transformers as transformers


def vit() -> onnx.ModelProto:
    return transformers.vit_model("fused", "mean", "conv")


def cut_image() -> onnx.ModelProto:
    """A ViT with a class token, a product for each of queries, keys and values, and squares cut by views."""
    return transformers.vit_model("separate", "token", "linear")


def encoder() -> onnx.ModelProto:
    return transformers.encoder_model()


def masked() -> onnx.ModelProto:
    net = transformers.Encoder(seed=1)
    stream = net.last
    mask = net.mask()
    net.last = stream
    net.block(mask, gelu="erf")
    return net.model()


CNNS = [small.cnn, small.mlp, small.mobilenet, small.resnet]
TRANSFORMERS = [vit, cut_image, encoder, masked]
MAKERS = [*CNNS, *TRANSFORMERS]


def network_of(make: Callable[[], onnx.ModelProto]) -> tuple[onnx.ModelProto, layers.Network, Samples]:
    model = batched(simplify(make()))
    network = layers.build(Graph.of(model))
    shape = network.graph.stored_shape("x")
    random = np.random.default_rng(0)
    if network.graph.takes_ids:
        arrays = list(random.integers(0, 50, (20, *shape)).astype(np.float32))
    else:
        arrays = list(random.normal(size=(20, *shape)).astype(np.float32))
    return model, network, Samples(Preprocess("tensor", shape), arrays)


def rounder(layer: Weighted, bits: int) -> Rounded:
    return nearest(layer.weight, layer.bias, bits, np.zeros(len(layer.weight), np.float32))


def exact(layer: Weighted) -> Rounded:
    return Rounded(layer.weight, np.ones(len(layer.weight), np.float32), layer.bias.astype(float))  # type: ignore[arg-type]


def quiet(phase: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def padded() -> onnx.ModelProto:
    """A padding wider than the window, rows times a matrix, an affine map of a flattened tensor."""
    net = small.Net([1, 6, 9, 11])
    net.add("Pad", "x", net.constant([0, 0, 3, 3, 0, 0, 3, 3], np.int64))
    net.conv(4, 6, groups=2, strides=[2, 1], dilations=[2, 1])
    net.add("Clip", net.last, net.constant(-0.5), net.constant(0.5))
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.add("Relu")
    net.add("Mul", net.last, net.constant([1.0, 2.0, 3.0, 4.0]))
    net.gemm(5, 4)
    return net.model()


def rows() -> onnx.ModelProto:
    net = small.Net([1, 5, 16])
    net.add("MatMul", "x", net.random_weight(16, 24, scale=0.25))
    net.add("Add", net.last, net.random_weight(24, scale=0.5))
    return net.model()


@pytest.mark.parametrize("make", [*MAKERS, padded, rows], ids=lambda f: f.__name__)
def test_a_network_computed_from_the_layers_own_weights_is_itself(make: Callable[[], onnx.ModelProto]) -> None:
    model, network, samples = network_of(make)
    found = network.weighted(network.graph.output)
    x = feed(network.graph, np.stack(list(samples))[:1])
    wanted = session(model).run(None, x)[0]
    feeds: dict[str, np.ndarray] = {}
    for layer in found:
        feeds |= weights(layer, layer.weight, layer.bias)
    given = session(substitute_weights(model, network, found)).run(None, {**x, **feeds})[0]
    baked = session(substitute_weights(model, network, found, feeds)).run(None, x)[0]
    np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(baked, wanted, rtol=1e-4, atol=1e-5)
    name = next(iter(weights(found[0], found[0].weight, found[0].bias)))
    changed = session(substitute_weights(model, network, found)).run(None, {**x, **feeds, name: 0 * feeds[name]})[0]
    assert np.abs(changed - wanted).max() > 1e-2


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_a_layers_noise_is_that_of_the_whole_network_with_only_it_rounded(make: Callable[[], onnx.ModelProto]) -> None:
    model, network, samples = network_of(make)
    probe = Probe(model, network, samples, 32, share=1.0)
    found = network.weighted(network.graph.output)
    for layer, noise in zip(found, probe.layers(found, rounder, WIDTHS, quiet), strict=True):
        one = fit(layer.out, noise)
        for bits in (2, 5, 8):
            wanted = probe.noise({la.out: rounder(la, bits) if la is layer else exact(la) for la in found})
            assert one.at(bits) == pytest.approx(wanted, rel=1e-2, abs=1e-10)
        assert one.at(2) > one.at(4) > one.at(8) > 0
        assert one.error < 1


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_few_samples_tell_nearly_what_all_tell(
    make: Callable[[], onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subsampling, "WORK", 0)  # small networks run on all samples
    model, network, samples = network_of(make)
    found = network.weighted(network.graph.output)
    few, every = (
        np.array(Probe(model, network, samples, 32, share=share).layers(found, rounder, WIDTHS, quiet))
        for share in (0.25, 1.0)
    )
    assert (few != every).any()
    assert np.sqrt((np.log2(few / every) ** 2).mean()) / 2 < 0.5  # bits: half the distance between two widths
    np.testing.assert_allclose(few[:, WIDTHS.index(6)], every[:, WIDTHS.index(6)], rtol=1e-6)


def test_fit_of_an_exact_law_and_of_none() -> None:
    made = fit("t", [3.0 * 4.0**-bits for bits in WIDTHS])
    assert (made.coefficient, made.error) == (pytest.approx(3.0), pytest.approx(0, abs=1e-9))
    off = fit("t", [3.0 * 4.0 ** -(bits + (-1) ** bits) for bits in WIDTHS])
    assert off.error == pytest.approx(1, abs=0.02)
    assert fit("t", [0.0] * len(WIDTHS)).coefficient == 0
    int8 = fit("t", [3.0 * 4.0**-bits if bits < 8 else 0.0 for bits in WIDTHS])  # an int8 file's weights at 8 bits
    assert int8.coefficient == pytest.approx(3.0)


def test_only_what_changed_is_measured_again(tmp_path: Path) -> None:
    model, network, samples = network_of(small.resnet)
    found = network.weighted(network.graph.output)
    probe = Probe(model, network, samples, 32, cache=Cache(tmp_path))
    first = probe.layers(found, rounder, WIDTHS, quiet)
    kept = set(tmp_path.iterdir())
    assert len(kept) == len(found)
    for path in kept:
        Cache(tmp_path).write(path.name, b"[7,6,5,4,3,2,1]")
    changed = found[2]
    second = probe.layers(found, lambda la, b: rounder(la, 2 if la is changed else b), WIDTHS, quiet)
    assert [one[0] == 7 for one in second] == [la is not changed for la in found]
    assert len(set(tmp_path.iterdir()) - kept) == 1
    others = Probe(model, network, samples[:5], 32, cache=Cache(tmp_path)).layers(found, rounder, WIDTHS, quiet)
    assert all(one[0] != 7 for one in others)
    for path in kept:
        path.write_bytes(path.read_bytes()[:-3])  # a file that was cut short is no answer
    assert probe.layers(found, rounder, WIDTHS, quiet) == first


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_noise_of_a_cut_falls_with_its_bits(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    model, network, samples = network_of(make)
    probe = Probe(model, network, samples, 32, cache=Cache(tmp_path))
    places = [p.cut.tensor for p in sensitivity.cuts.find(network) if p.offered]
    codecs = {}
    for tensor in places:
        values = probe._values(tensor)
        codecs[tensor] = [codec.fit(values, "minmax", bits) for bits in WIDTHS]
    steps: list[tuple[str, int, int]] = []
    found = probe.cuts(codecs, lambda *step: steps.append(step))
    assert steps[-1] == ("sensitivity of cuts", len(places), len(places))
    for tensor, noise in zip(places, found, strict=True):
        one = fit(tensor, noise)
        assert one.at(2) > one.at(5) > one.at(8) > 0
        assert one.error < 1
    made = codecs[places[-1]][2]  # of the output: its noise is the codec's own error
    values = to_onnx(probe.logits)
    coded = [codec.decode(codec.encode(v, made), made, v.shape) for v in values]
    assert found[-1][2] == pytest.approx(float(((np.stack(coded) - values) ** 2).mean()), rel=1e-3)
    assert probe.cuts(codecs, quiet) == found


def test_few_outputs_want_many_samples_but_not_of_a_network_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(small.mobilenet)[1]
    assert [sensitivity.enough(network, outputs) for outputs in (10, 1000, 100_000)] == [1639, 17, 16]
    monkeypatch.setattr(sensitivity, "WORK", 100.0 * network.macs(network.layers))
    assert sensitivity.enough(network, 10) == 100
    assert sensitivity.enough(network, 1000) == 17
    monkeypatch.setattr(sensitivity, "WORK", 1.0)
    assert sensitivity.enough(network, 10) == 16


@pytest.mark.parametrize("make", [small.cnn, small.mobilenet, small.resnet, vit, encoder], ids=lambda f: f.__name__)
def test_multiply_accumulates_of_layers_are_those_that_the_head_computes(make: Callable[[], onnx.ModelProto]) -> None:
    model, network, samples = network_of(make)
    made = lower(network, creation.calibrate(model, network, samples), network.graph.output, 8)
    head = Head(segment.parse(made.segment()))
    timings = head.profile(samples.codes(0, head.input), repeats=1)
    owners = {made.index[la.out]: la for la in network.weighted(network.graph.output)}
    computed = {op.out: t.macs for op, t in zip(head.header.ops, timings, strict=True) if op.out in owners}
    assert computed == {tensor: network.macs([layer]) for tensor, layer in owners.items()}
    assert sum(computed.values()) > 0
