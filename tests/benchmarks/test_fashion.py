"""Fashion-MNIST: the files, the parts that share no image, and the networks that are trained on it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fashion
from calibration.importing.graph import Graph
from calibration.lowering import layers
from splitedge import errors
from tests.raising import raises


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As small as it may be: every image is one shade, which tells its class and its part."""
    place = tmp_path_factory.mktemp("fashion")
    for part, count in (("train", 12_000), ("t10k", 10_000)):
        classes = (np.arange(count) % 10).astype(np.uint8)
        pixels = np.broadcast_to(20 * classes[:, None] + (5 if part == "t10k" else 0), (count, 784)).astype(np.uint8)
        (place / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes(), 1))
        (place / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + classes.tobytes(), 1))
    return place


def test_the_last_ten_thousand_training_images_calibrate(folder: Path) -> None:
    data = fashion.load(folder)
    assert [len(part.classes) for part in (data.train, data.calibration, data.test)] == [2_000, 10_000, 10_000]
    assert (data.calibration.pixels[7] == 140).all()
    assert (data.test.pixels[7] == 145).all()
    samples = data.calibration.samples(12)
    assert len(samples) == 12
    assert samples[7].shape == (28, 28, 1)
    assert samples[7].max() == np.float32(140 / 255)
    assert samples.classes is not None
    assert samples.classes[7] == 7


def test_a_missing_data_set_is_said_in_one_sentence(tmp_path: Path) -> None:
    with raises(errors.UsageError, reason="no-data"):
        fashion.load(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: gzip.compress(bytes(100)), lambda data: b""])
def test_damaged_files_are_refused(folder: Path, tmp_path: Path, damage: object) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "train-images-idx3-ubyte.gz"
    broken.write_bytes(damage(broken.read_bytes()))  # type: ignore[operator]
    with raises(errors.InputError, reason="damaged"):
        fashion.load(tmp_path)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", list(fashion.NETWORKS))
def test_a_network_learns_is_kept_and_is_a_head_to_its_end(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="the networks are trained with torch")
    monkeypatch.setenv("SPLITEDGE_CACHE_DIR", str(tmp_path))
    recipe = fashion.NETWORKS[name]
    monkeypatch.setitem(fashion.NETWORKS, name, fashion.Recipe(recipe.make, 6, recipe.rate))
    data = fashion.load(folder)
    model = fashion.network(name, data)
    assert fashion.accuracy(model, data.test) > 20  # of so few images and epochs, twice what guessing gets
    network = layers.build(Graph.of(model))
    assert not network.unsupported
    assert network.graph.output in network.reachable()
    monkeypatch.setattr(fashion, "_train", None)
    monkeypatch.setattr("inspect.getsource", lambda function: "")
    with pytest.raises(TypeError):  # other sources: it would be trained anew
        fashion.network(name, data)
