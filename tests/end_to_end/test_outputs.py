"""What callers get of each kind of output, wherever the network is cut: the float model's own answers within the noise that the plan promises."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import aiohttp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from calibration.bundle import creation
from calibration.importing import importer
from calibration.samples.samples import Samples
from edge_agent.api import app
from edge_agent.commands.infer import OutputFiles
from edge_server.store.store import Store
from splitedge.protocol.messages import Mode, OutputKind, Preprocess
from tests.end_to_end.agents import agent_of
from tests.end_to_end.conftest import World
from tests.small_models import Net

F32 = NDArray[np.float32]
pytestmark = pytest.mark.slow

TENSOR = Preprocess("tensor", [16, 16, 3])


def softmax_before_a_flatten() -> onnx.ModelProto:
    net = Net([1, 3, 16, 16])
    net.conv(6, 3)
    net.add("AveragePool", kernel_shape=[8, 8], strides=[8, 8])
    net.conv(5, 6, 2, pads=[0, 0, 0, 0])
    net.add("Mul", net.last, net.constant(6.0))
    net.add("Softmax", axis=1)
    net.add("Flatten")
    return net.model()


def softmax_in_parts() -> onnx.ModelProto:
    net = Net([1, 3, 16, 16])
    net.conv(6, 3)
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.gemm(5, 6)
    powers = net.add("Exp")
    net.add("Div", powers, net.add("ReduceSum", powers, net.constant([1], np.int64)))
    return net.model()


def tags() -> onnx.ModelProto:
    net = Net([1, 3, 16, 16])
    net.conv(6, 3)
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.gemm(4, 6)
    net.add("Mul", net.last, net.constant(8.0))
    net.add("Sigmoid")
    return net.model()


def embedding() -> onnx.ModelProto:
    net = Net([1, 3, 16, 16])
    net.conv(6, 3)
    net.add("Relu")
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.gemm(12, 6)
    net.add("LpNormalization", axis=1)
    return net.model()


def scores_of_places(*, indices: bool = False) -> onnx.ModelProto:
    net = Net([1, 3, 16, 16])
    net.conv(6, 3, strides=[2, 2])
    net.add("Relu")
    net.conv(4, 6)
    if not indices:
        return net.model()
    net.add("ArgMax", axis=1, keepdims=0)
    model = net.model()
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return model


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], OutputKind]] = {
    "softmax-before-flatten": (softmax_before_a_flatten, "probabilities"),
    "softmax-in-parts": (softmax_in_parts, "probabilities"),
    "tags": (tags, "scores"),
    "embedding": (embedding, "tensor"),
    "plane": (scores_of_places, "tensor"),
}
STORED = {name: make for name, (make, _) in MODELS.items()} | {
    "places": functools.partial(scores_of_places, indices=True)
}


def modes(name: str) -> list[Mode]:
    """Those that a plan may have: the integer head lacks the last operators of two models."""
    return ["server", "split", *([] if name in ("embedding", "softmax-in-parts") else ["device"])]


def frames(count: int, seed: int = 1) -> list[F32]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(16, 16, 3)).astype(np.float32) for _ in range(count)]


def answers_of(model: onnx.ModelProto, inputs: list[F32]) -> F32:
    """What ONNX Runtime answers without any optimization."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": x.transpose(2, 0, 1)[None]})[0] for x in inputs])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with every model of `STORED`."""
    folder = tmp_path_factory.mktemp("outputs") / "store"
    with Store(folder) as opened:
        for name, make in STORED.items():
            with opened.bundles.create(name) as path:
                samples = Samples(TENSOR, frames(24, seed=0))
                onnx.save(make(), folder / "model.onnx")
                creation.create(path, name, importer.load(str(folder / "model.onnx")), samples, rounding="nearest")
        (folder / "token").write_text(opened.tokens.add("board"))
    return folder


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name in MODELS for mode in modes(name)])
async def test_every_mode_answers_as_the_float_model(
    world: World, store: Path, tmp_path: Path, name: str, mode: Mode
) -> None:
    make, kind = MODELS[name]
    inputs = frames(6)
    wanted = answers_of(make(), inputs)
    async with agent_of(
        world, store, tmp_path, name, **{"demand.mode": mode, "topk": 0, "link.controller": "fixed"}
    ) as agent:
        assert agent.plan is not None
        assert (agent.plan.output.kind, agent.plan.mode) == (kind, mode)
        results = [await agent.infer(x) for x in inputs]
        noise = agent.plan.prediction.noise
    found = np.stack([result.output for result in results if result.output is not None])
    assert found.shape == wanted.shape
    assert np.square(found - wanted).mean() <= 4 * noise + 1e-9
    for result, output in zip(results, found, strict=True):
        if kind == "tensor":
            assert result.top == []
        else:
            order = np.argsort(-output, kind="stable")[:5]
            assert [(one.index, one.probability) for one in result.top] == [(i, output[i]) for i in order.tolist()]


@pytest.mark.parametrize("mode", ["server", "split", "device"])
async def test_the_classes_of_places_are_answered_in_indices(
    world: World, store: Path, tmp_path: Path, mode: Mode
) -> None:
    inputs, options = frames(6), {"demand.mode": mode, "demand.max_drop_points": 1.0, "link.controller": "fixed"}
    async with agent_of(world, store, tmp_path, "places", **options) as agent:
        results = [await agent.infer(x) for x in inputs]
        assert agent.plan is not None
        assert agent.plan.output.shape == [8, 8]
        noise = agent.plan.prediction.noise
    found = np.stack([result.output for result in results if result.output is not None])
    wanted = answers_of(scores_of_places(indices=True), inputs)
    assert found.dtype == wanted.dtype == np.int64
    two = np.sort(answers_of(scores_of_places(), inputs), axis=1)[:, -2:]
    sure = two[:, 1] - two[:, 0] > 6 * np.sqrt(noise)
    assert sure.mean() > 0.25
    np.testing.assert_array_equal(found[sure], wanted[sure])


async def test_the_api_gives_a_tensor_as_json_and_as_npy(world: World, store: Path, tmp_path: Path) -> None:
    [x] = frames(1)
    async with agent_of(world, store, tmp_path, "plane") as agent:
        runner, url = await app.serve(app.Front(agent), "127.0.0.1", 0)
        body, headers = x.tobytes(), {"X-Shape": "16,16,3"}
        try:
            async with aiohttp.ClientSession(url) as http:
                async with http.post("/v1/infer", data=body, headers=headers) as response:
                    value = await response.json()
                async with http.post("/v1/infer", data=body, headers=headers | {"Accept": app.NPY}) as response:
                    assert response.content_type == app.NPY
                    array = np.load(io.BytesIO(await response.read()), allow_pickle=False)
        finally:
            await runner.cleanup()
    assert (value["kind"], value["top"]) == ("tensor", [])
    np.testing.assert_array_equal(np.array(value["output"], np.float32), array)
    assert array.shape == (4, 8, 8)


async def test_a_reused_answer_holds_the_whole_tensor(world: World, store: Path, tmp_path: Path) -> None:
    [x] = frames(1)
    options = {"demand.mode": "split", "reuse.threshold": 0.01}
    async with agent_of(world, store, tmp_path, "embedding", **options) as agent:
        first, second = await agent.infer(x), await agent.infer(x)
    assert (first.cached, second.cached) == (False, True)
    assert first.output is not None
    np.testing.assert_array_equal(first.output, second.output)


async def test_whole_outputs_go_into_files_with_names_of_their_own(world: World, store: Path, tmp_path: Path) -> None:
    files = OutputFiles(tmp_path)
    async with agent_of(world, store, tmp_path, "tags", topk=0) as agent:
        result = await agent.infer(frames(1)[0])
    names = ("a/cat.jpg", "b/cat.png", "../..", "é /x.npy")
    paths = [path for name in names for path in files.write(name, result)]
    assert [path.name for path in paths] == ["cat.npy", "cat-2.npy", "frame.npy", "x.npy"]
    for path in paths:
        np.testing.assert_array_equal(np.load(path, allow_pickle=False), result.output)
