"""Boxes and maps, wherever the network is cut: what the float model's own outputs decode to, within the promised noise."""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path

import aiohttp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image

from calibration.bundle import creation
from calibration.importing import importer, joining
from calibration.importing.graph import Graph
from calibration.samples.samples import Samples
from device_profiles import known
from edge_agent.api import app
from edge_agent.commands import drawing
from edge_agent.commands.infer import OutputFiles, text
from edge_agent.runtime.results import from_json, to_json
from edge_server.commands import survey
from edge_server.commands.explain import explain
from edge_server.importing.task import TaskOptions
from edge_server.planning.device_plan import request_of
from edge_server.store.store import Store
from splitedge import errors
from splitedge.head.segment import OPERATORS
from splitedge.protocol.messages import Demand, LinkEstimate, Mode, Preprocess, Segmentation, Task
from splitedge.tasks import detection, segmentation
from tests.end_to_end.agents import agent_of as any_agent_of
from tests.end_to_end.conftest import World
from tests.small_models import Net

F32 = NDArray[np.float32]
pytestmark = pytest.mark.slow

PICTURE = Preprocess("image", [24, 32, 3], 32, "stretch", "bilinear", [127.5], [127.5], 0)
MODES: list[Mode] = ["server", "split", "device"]


def detector() -> onnx.ModelProto:
    """Boxes [48, 4] and scores [48, 2] of a grid of 6 x 8 cells, as RT-DETR has them."""
    net = Net([1, 3, 24, 32])
    net.conv(8, 3, strides=[2, 2])
    net.add("Relu")
    trunk = net.conv(12, 8, strides=[2, 2])
    trunk = net.add("Relu")
    ends = []
    for columns, last in ((4, "Sigmoid"), (2, "Mul")):
        net.conv(columns, 12, x=trunk)
        net.add("Transpose", perm=[0, 2, 3, 1])
        net.add("Reshape", net.last, net.constant([1, 48, columns], np.int64))
        ends.append(net.add(last, net.last, *([net.constant(4.0)] if last == "Mul" else [])))
    model = net.model()
    del model.graph.output[:]
    for name in ends:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return onnx.shape_inference.infer_shapes(model)


def segmenter() -> onnx.ModelProto:
    net = Net([1, 3, 24, 32])
    net.conv(8, 3, strides=[2, 2])
    net.add("Relu")
    net.conv(6, 8)
    net.add("Relu")
    net.conv(5, 6)
    net.add("Mul", net.last, net.constant(3.0))
    return net.model()


MODELS = {
    "detector": (detector, TaskOptions("detection", "rt-detr", score=0.5, iou=0.6)),
    "segmenter": (segmenter, TaskOptions("segmentation")),
    "outputs": (detector, TaskOptions()),
}


def photos(count: int, seed: int = 1, size: tuple[int, int] = (64, 64)) -> list[bytes]:
    """Photographs of blurred noise, as PNG."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        file, small = io.BytesIO(), random.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BILINEAR).save(file, "PNG")
        found.append(file.getvalue())
    return found


def inputs_of(images: list[bytes]) -> F32:
    """The float model's inputs [n, 3, 24, 32]: 64 x 64 pixels become 24 x 24 between borders of 4."""
    found = np.full((len(images), 24, 32, 3), -1.0, np.float32)
    for i, data in enumerate(images):
        small = Image.open(io.BytesIO(data)).resize((24, 24), Image.Resampling.BILINEAR)
        found[i, :, 4:28] = (np.asarray(small, np.float32) - 127.5) / 127.5
    return found.transpose(0, 3, 1, 2)


def outputs_of(model: onnx.ModelProto, images: list[bytes]) -> list[F32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    each = [session.run(None, {"x": x[None]}) for x in inputs_of(images)]
    return [np.concatenate([one[i] for one in each]) for i in range(len(each[0]))]


def task_of(name: str) -> Task | None:
    make, options = MODELS[name]
    shapes = [[d.dim_value for d in one.type.tensor_type.shape.dim][1:] for one in make().graph.output]
    return options.task_of(shapes, (32, 24))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "store"
    files = [folder.parent / f"{i}.png" for i in range(24)]
    for file, data in zip(files, photos(24, seed=0), strict=True):
        file.write_bytes(data)
    with Store(folder) as opened:
        for name, (make, _) in MODELS.items():
            onnx.save(make(), folder / "model.onnx")
            model = importer.load(str(folder / "model.onnx"), output=[])
            labels = ["cat", "dog"] if name == "detector" else []
            with opened.bundles.create(name) as path:
                samples = Samples(PICTURE, files)
                creation.create(path, name, model, samples, labels, rounding="nearest", task=task_of(name))
        (folder / "token").write_text(opened.tokens.add("board"))
    return folder


agent_of = functools.partial(any_agent_of, **{"demand.max_drop_points": 20.0, "link.controller": "fixed"})


@pytest.mark.parametrize("mode", MODES)
async def test_boxes_are_those_of_the_float_model(world: World, store: Path, tmp_path: Path, mode: Mode) -> None:
    images, task = photos(8), task_of("detector")
    assert isinstance(task, detection.Detection)
    async with agent_of(world, store, tmp_path, "detector", **{"demand.mode": mode}) as agent:
        results = [await agent.infer(image) for image in images]
    wanted = [
        detection.decode([boxes[i], scores[i]], task)
        for boxes, scores in [outputs_of(detector(), images)]
        for i in range(8)
    ]
    assert sum(map(len, wanted)) > 20
    pairs = every = 0
    for result, floats in zip(results, wanted, strict=True):
        assert (result.task, result.output, result.map) == ("detection", None, None)
        found = detection.Boxes(
            np.array([box.index for box in result.boxes], np.int64),
            np.array([box.score for box in result.boxes], np.float32),
            # 24 x 24 of the 32 x 24 pixels show the image of 64 x 64 pixels
            np.array([[(b.left * 24 / 64 + 4) / 32, b.top / 64, (b.right * 24 / 64 + 4) / 32, b.bottom / 64] for b in result.boxes], np.float32).reshape(-1, 4),
            np.zeros((len(result.boxes), 0, 2), np.float32),
        )  # fmt: skip
        assert {box.label for box in result.boxes} <= {"cat", "dog"}
        pairs += 2 * detection.matched(found, floats)
        every += len(found) + len(floats)
    assert pairs / every > 0.8


@pytest.mark.parametrize("mode", MODES)
async def test_maps_are_those_of_the_float_model(world: World, store: Path, tmp_path: Path, mode: Mode) -> None:
    images = photos(6)
    async with agent_of(world, store, tmp_path, "segmenter", **{"demand.mode": mode}) as agent:
        results = [await agent.infer(image) for image in images]
    (values,) = outputs_of(segmenter(), images)
    for result, one in zip(results, values, strict=True):
        assert result.map is not None
        assert (result.task, result.map.shape, result.boxes) == ("segmentation", (12, 16), [])
        assert (result.map == segmentation.decode(one, Segmentation(0))).mean() > 0.9
        assert sum(region.share for region in result.regions) == pytest.approx(1.0)
        assert result.placement == pytest.approx((-4 * 64 / 24, 0.0, 32 * 64 / 24, 64.0))


@pytest.mark.parametrize("mode", MODES)
async def test_several_outputs_keep_their_names_and_units(
    world: World, store: Path, tmp_path: Path, mode: Mode
) -> None:
    images, model = photos(6), detector()
    async with agent_of(world, store, tmp_path, "outputs", **{"demand.mode": mode}) as agent:
        results = [await agent.infer(image) for image in images]
        assert agent.plan is not None
        noise, parts = agent.plan.prediction.noise, agent.plan.output.parts
    names = [one.name for one in model.graph.output]
    assert [part.name for part in parts] == names
    errors_of = []
    for part, wanted in zip(parts, outputs_of(model, images), strict=True):
        found = np.stack([result.outputs[part.name] for result in results])
        assert found.shape == wanted.shape
        errors_of.append(((found - wanted) / part.scale).ravel())
    assert np.square(np.concatenate(errors_of)).mean() <= 4 * noise + 1e-9


async def test_complete_outputs_come_with_the_boxes_and_the_api_answers_json_and_npz(
    world: World, store: Path, tmp_path: Path
) -> None:
    [image] = photos(1)
    async with agent_of(world, store, tmp_path, "detector", topk=0) as agent:
        direct = await agent.infer(image)
        runner, url = await app.serve(app.Front(agent), "127.0.0.1", 0)
        try:
            async with aiohttp.ClientSession(url) as http:
                async with http.post("/v1/infer", data=image) as response:
                    value = await response.json()
                async with http.post("/v1/infer", data=image, headers={"Accept": app.NPY}) as response:
                    stored = np.load(io.BytesIO(await response.read()), allow_pickle=False)
        finally:
            await runner.cleanup()
    assert set(stored) == set(value["outputs"]) == set(direct.outputs)
    for name, values in direct.outputs.items():
        np.testing.assert_array_equal(stored[name], values)
        np.testing.assert_array_equal(np.array(value["outputs"][name], np.float32), values)
    assert [box["label"] for box in value["boxes"]] == [box.label for box in direct.boxes]
    files = OutputFiles(tmp_path).write("a/photo.jpg", direct)
    assert [np.load(file).shape for file in files] == [(48, 4), (48, 2)]


async def test_answers_survive_json_and_are_drawn(world: World, store: Path, tmp_path: Path) -> None:
    [image] = photos(1, size=(300, 300))
    for name in ("detector", "segmenter"):
        async with agent_of(world, store, tmp_path, name) as agent:
            result = await agent.infer(image)
        again = from_json(to_json(result))
        assert (again.boxes, again.regions, again.task) == (result.boxes, result.regions, result.task)
        if result.map is not None:
            np.testing.assert_array_equal(again.map, result.map)
            png = Image.open(io.BytesIO(base64.b64decode(__import__("json").loads(to_json(result))["map"])))
            assert png.size == (16, 12)
        drawn, plain = (
            np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)
            for data in (drawing.draw(image, again), image)
        )
        assert drawn.shape == plain.shape
        assert np.abs(drawn - plain).max() > 50
        assert all(len(line) <= 80 for line in text("photo.jpg", result, [], 80).splitlines())


async def test_only_boxes_and_maps_of_images_are_drawn(world: World, store: Path, tmp_path: Path) -> None:
    [image] = photos(1)
    async with agent_of(world, store, tmp_path, "outputs") as agent:
        plain = await agent.infer(image)
    with pytest.raises(errors.UsageError) as usage:
        drawing.draw(image, plain)
    assert usage.value.data["reason"] == "no-task"


async def test_an_agent_that_does_not_know_boxes_gets_no_plan(
    world: World, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.planning.plan_request.TASKS", ["parts"])
    with pytest.raises(errors.ProtocolError) as refused:
        async with agent_of(world, store, tmp_path, "detector"):
            pass
    assert refused.value.data["reason"] == "protocol-output"
    assert refused.value.data["missing"] == ["detection", "pad"]


def test_outputs_of_very_different_sizes_count_alike(tmp_path: Path) -> None:
    model = detector()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(640), "size"))
    first = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Mul", [first, "size"], ["pixels"], "pixels"))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [1, 48, 4]))
    onnx.save(model, tmp_path / "model.onnx")
    loaded = importer.load(str(tmp_path / "model.onnx"), output=[])
    session = importer.session(loaded)
    answers = np.concatenate([session.run(None, {"x": x[None]})[0] for x in inputs_of(photos(4))])
    even, scaled = joining.balanced(loaded, answers)
    assert [part.shape for part in joining.joined(even)] == [[48, 4], [48, 2]]
    greatest = [np.abs(scaled[:, :192]).max(), np.abs(scaled[:, 192:]).max()]
    assert greatest == pytest.approx([1.0, 1.0])
    found = importer.session(even).run(None, {"x": inputs_of(photos(4))[:1]})[0]
    np.testing.assert_allclose(found[0], scaled[0], atol=1e-5)
    assert Graph.of(even).nodes[-1].op == "Concat"


def test_the_server_explains_a_detector_for_a_board_of_this_version(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link, demand = LinkEstimate(10.0, 20.0, 20.0), Demand(max_drop_points=20.0)
    explain(store, "detector", known.load("pi5"), link, demand, None, json=False)
    assert "boxes" in capsys.readouterr().out
    survey.explain(store, "detector", {"pi5": known.load("pi5")}, [link], demand, None, json=False)
    assert "pi5" in capsys.readouterr().out
    assert set(request_of("detector", known.load("pi5"), link, demand).operators) == OPERATORS
