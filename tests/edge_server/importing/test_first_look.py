"""The float model before calibration: wrong pixels are noticed, right ones are left alone."""

from __future__ import annotations

import typing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from calibration.importing import importer
from calibration.samples.samples import Samples, open_samples
from edge_server import cli
from edge_server.importing import preprocessing
from edge_server.importing.first_look import FirstLook
from edge_server.importing.task import TaskOptions
from splitedge import errors
from tests.raising import raises

CLASSES, SIDE = 12, 16


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy pictures of twelve patterns, a folder for each, and beside them ``net.onnx``: how near a picture is to each pattern, for pixels as `imagenet`."""
    folder, random = tmp_path_factory.mktemp("patterns"), np.random.default_rng(0)
    preset = preprocessing.PRESETS["imagenet"]
    patterns = random.choice([-1.0, 1.0], (CLASSES, SIDE, SIDE, 3))
    for index, pattern in enumerate(patterns):
        inner = folder / f"{index:02}"
        inner.mkdir()
        for i in range(4):
            pixels = np.array(preset.mean) + 50 * pattern + random.normal(scale=40, size=pattern.shape)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(inner / f"{i}.png")
    bright = np.linspace(-2, 2, CLASSES)[:, None, None, None]  # pixels that are all too bright look like the last class
    kernel = (patterns + bright).transpose(0, 3, 1, 2).astype(np.float32) / 200
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "match"), helper.make_node("Flatten", ["c"], ["y"], "flat")]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    leave = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph(nodes, "patterns", [entry], [leave], [numpy_helper.from_array(kernel, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "net.onnx")
    return folder


def look(place: Path, preset: str, *, labelled: bool = True, **options: object) -> FirstLook:
    model = importer.load(str(place / "net.onnx"))
    spec = preprocessing.of_images(preprocessing.read(None, {"preset": preset, "fit": "stretch"}), [SIDE, SIDE, 3])
    found = open_samples(place, spec, outputs=CLASSES, labelled=labelled)
    return FirstLook(model, found, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("labelled", [True, False])
def test_the_right_pixels_are_left_alone(place: Path, labelled: bool) -> None:
    seen = look(place, "imagenet", labelled=labelled)
    assert seen.look is not None
    assert (seen.look.samples, seen.look.right) == (48, 48 if labelled else None)
    assert seen.better() is None


@pytest.mark.parametrize("labelled", [True, False])
def test_wrong_pixels_are_noticed_and_the_preset_that_fits_is_named(place: Path, labelled: bool) -> None:
    seen = look(place, "raw", labelled=labelled)
    better = seen.better()
    assert seen.look is not None
    assert better is not None
    assert "imagenet" in better.presets
    assert "raw" not in better.presets
    if labelled:
        assert seen.look.right is not None
        assert better.right is not None
        assert seen.look.right < 24 < better.right


def test_an_output_without_classes_is_not_judged(place: Path) -> None:
    seen = look(place, "raw", labelled=False, kind="tensor")
    assert (seen.look, seen.better()) == (None, None)


def test_few_samples_without_labels_tell_nothing(place: Path) -> None:
    model = importer.load(str(place / "net.onnx"))
    raw = preprocessing.of_images(preprocessing.read(None, {"preset": "raw"}), [SIDE, SIDE, 3])
    assert FirstLook(model, Samples(raw, sorted(place.glob("*/0.png"))[:9])).better() is None


def test_labels_are_checked_before_anything_is_said(place: Path) -> None:
    model = importer.load(str(place / "net.onnx"))
    raw = preprocessing.of_images(preprocessing.read(None, {"preset": "raw"}), [SIDE, SIDE, 3])
    files = sorted(place.glob("*/0.png"))
    with raises(errors.InputError, reason="label-out-of-range", classes=CLASSES):
        FirstLook(model, Samples(raw, files, np.full(len(files), CLASSES)))


def look_for_boxes(place: Path, tmp_path: Path, score: float) -> FirstLook:
    """What a detector of two boxes finds, each with this ``score`` on every picture."""
    corners = np.array([[1, 1, 9, 9, score, 0], [4, 4, 14, 14, score, 1]], np.float32)
    weights = [
        numpy_helper.from_array(np.zeros((12, 3, SIDE, SIDE), np.float32), "w"),
        numpy_helper.from_array(corners.ravel(), "b"),
        numpy_helper.from_array(np.array([0, 2, 6]), "s"),
    ]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"), helper.make_node("Reshape", ["c", "s"], ["y"], "rows")]  # fmt: skip
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    leave = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 6])
    graph = helper.make_graph(nodes, "boxes", [entry], [leave], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "boxes.onnx"
    )
    spec = preprocessing.of_images(preprocessing.read(None, {"preset": "unit", "fit": "stretch"}), [SIDE, SIDE, 3])
    task = TaskOptions("detection", "yolov10").task_of([[2, 6]], (SIDE, SIDE))
    found = open_samples(place, spec, labelled=False)
    return FirstLook(importer.load(str(tmp_path / "boxes.onnx")), found, task=task)


def test_boxes_are_counted(place: Path, tmp_path: Path) -> None:
    found = look_for_boxes(place, tmp_path, 0.9)
    assert found.look is None
    assert found.boxes == 2 * 4 * CLASSES
    assert found.words()


def test_a_detector_that_finds_nothing_is_refused_at_once(place: Path, tmp_path: Path) -> None:
    with raises(errors.InputError, reason="no-boxes"):
        look_for_boxes(place, tmp_path, 0.1)


def test_a_preset_fits_the_channels() -> None:
    assert set(preprocessing.fitting(1)) == {"inception", "efficientnet-lite", "mnist", "unit", "raw"}
    with raises(errors.ConfigError, reason="preset-channels"):
        preprocessing.of_images(preprocessing.read(None, {"preset": "imagenet"}), [28, 28, 1])
    made = preprocessing.of_images(preprocessing.read(None, {"preset": "mnist"}), [28, 28, 1])
    assert (made.resize, made.interpolation, len(made.mean)) == (28, "bilinear", 1)


def test_options_win_over_the_preset() -> None:
    spec = preprocessing.read(None, {"preset": "clip", "std": [1.0], "interpolation": "bilinear", "resize": 300})
    made = preprocessing.of_images(spec, [224, 224, 3])
    assert (made.resize, made.interpolation, made.std) == (300, "bilinear", [1.0])
    assert made.mean == preprocessing.PRESETS["clip"].mean
    assert preprocessing.of_images(preprocessing.read(None, {"preset": "imagenet"}), [224, 224, 3]).resize == 256


@pytest.mark.parametrize("options", [{}, {"mean": [127.0]}, {"std": [128.0]}, {"resize": 256}])
def test_preprocessing_that_is_not_stated_is_refused(options: dict[str, object]) -> None:
    with raises(errors.ConfigError, reason="no-normalization"):
        preprocessing.check_stated(preprocessing.read(None, options))


def test_a_preset_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_bytes(b'\xef\xbb\xbfpreset = "imagnet"\r\n')
    with raises(errors.ConfigError, reason="unknown-preset"):
        preprocessing.read(tmp_path / "p.toml", {})


def test_the_command_line_offers_every_preset() -> None:
    (command,) = [one for one in cli.app.registered_commands if one.callback is cli.add]
    assert command.callback is not None
    offered = typing.get_type_hints(command.callback)["preset"]
    (literal,) = [one for one in typing.get_args(offered) if one is not type(None)]
    assert list(typing.get_args(literal)) == list(preprocessing.PRESETS)
