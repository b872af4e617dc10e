"""Tuning of a head's weights all together, and the ONNX model as a torch function that it works through."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from calibration import bundle, layers
from calibration.graph import Graph
from calibration.importer import batched, session, simplify
from calibration.quantize import nearest
from calibration.samples import Samples
from calibration.sensitivity import Probe
from edge_agent import codec, errors
from edge_agent.protocol.messages import Preprocess
from tests import small_models as small
from tests import small_transformers

torch = pytest.importorskip("torch", reason="tuning wants torch")

from calibration import tuning  # noqa: E402
from calibration.torched import Torched  # noqa: E402


def quiet(phase: str, done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("make", [small.cnn, small.mlp, small.resnet, small.mobilenet, small_transformers.vit_model])
def test_torch_computes_what_onnx_runtime_computes(make: Callable[[], onnx.ModelProto]) -> None:
    model = batched(simplify(make()))
    name, shape = Graph.of(model).input, Graph.of(model).shapes[Graph.of(model).input]
    x = np.random.default_rng(0).normal(size=(3, *shape[1:])).astype(np.float32)
    wanted = session(model).run(None, {name: x})[0]
    found = Torched(torch, model)({name: torch.from_numpy(x)}).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_an_operator_that_is_not_known_is_refused_by_name() -> None:
    net = small.Net([1, 4])
    net.add("Selu")
    with pytest.raises(errors.ModelError, match="Selu"):
        Torched(torch, net.model())


@pytest.mark.parametrize("make", [small.cnn, small_transformers.vit_model])
def test_tuned_weights_answer_more_like_the_float_model_on_other_samples(make: Callable[[], onnx.ModelProto]) -> None:
    model = batched(simplify(make()))
    network = layers.build(Graph.of(model))
    shape = network.graph.stored_shape(network.graph.input)
    x = np.random.default_rng(0).normal(size=(640, *shape)).astype(np.float32)
    samples = Samples(Preprocess("tensor", shape), list(x))
    calibration = bundle.calibrate(model, network, samples[:64])
    cut = network.graph.output
    rounded = {
        la.out: (3, nearest(la.weight, la.bias, 3, np.full(len(la.bias), 1e-20, np.float32)))
        for la in network.weighted(cut)
    }
    options = tuning.Options(epochs=6, rate=0.02)
    tuned = tuning.tune(model, network, calibration, cut, rounded, x[:512], quiet, options=options)
    probe = Probe(model, network, samples[512:], 128)
    assert probe.noise(tuned) < 0.8 * probe.noise({out: known for out, (_, known) in rounded.items()})
    assert all(np.abs(tuned[out].levels.astype(int)).max() <= 3 for out in rounded)


def test_the_codec_at_the_cut_takes_part() -> None:
    x = torch.tensor([[-1.0, 0.3, 9.0]], requires_grad=True)
    made = codec.fit(np.array([0.0, 1.5], np.float32), "minmax", 2)
    network = layers.build(Graph.of(simplify(small.mlp())))
    changed = tuning._changed(torch, network, bundle.Calibration({}, {}), network.layers[0].out, made)
    (coded,) = [function(x) for function in changed.values()]
    wanted = codec.decode(codec.encode(x.detach().numpy(), made), made, (1, 3))
    np.testing.assert_array_equal(coded.detach().numpy(), wanted)
    coded.sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 0.0]]  # nothing pulls on what is clipped
