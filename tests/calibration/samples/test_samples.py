"""Samples, labels and class names, good and bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.samples.samples import Samples, open_samples
from splitedge import errors
from splitedge.head.segment import Tensor
from splitedge.protocol.messages import Preprocess
from tests.raising import raises

IMAGE = Preprocess("image", [8, 8, 3], resize=8, mean=[127.0], std=[128.0])
ARRAY = Preprocess("tensor", [4, 3])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(tmp_path / f"cat_{i}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_images_become_what_the_model_and_the_head_see(folder: Path) -> None:
    samples = open_samples(folder, IMAGE)
    assert len(samples) == 6
    assert samples.classes is None
    tensor = Tensor([8, 8, 3], 1 / 128, 127, 0)
    codes = samples.codes(2, tensor)
    np.testing.assert_allclose(samples[2], (codes.astype(np.float32) - 127) / 128, atol=1e-6)


def test_labels_from_a_file_beside_a_named_file_and_the_names(folder: Path, tmp_path: Path) -> None:
    rows = "".join(f"cat_{i}.png,{i * 10},cat\n" for i in range(6))
    named = tmp_path / "elsewhere.csv"
    named.write_text("file,index,name\n" + rows)
    assert list(open_samples(folder, IMAGE, str(named)).classes) == [0, 10, 20, 30, 40, 50]
    assert list(open_samples(folder, IMAGE, r"_(\d+)\.png$").classes) == [0, 1, 2, 3, 4, 5]
    (folder / "labels.csv").write_text(rows)
    assert list(open_samples(folder, IMAGE).classes) == [0, 10, 20, 30, 40, 50]
    assert list(open_samples(folder, IMAGE, most=3).classes) == [0, 20, 50]
    part = open_samples(folder, IMAGE)[1::2]
    assert isinstance(part, Samples)
    assert list(part.classes) == [10, 30, 50]


def test_arrays_in_a_folder_and_in_one_file(tmp_path: Path) -> None:
    values = np.arange(36, dtype=np.float64).reshape(3, 4, 3)
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", values[i])
    np.testing.assert_array_equal(open_samples(tmp_path, ARRAY)[1], values[1])
    together = tmp_path / "all" / "x.npy"
    together.parent.mkdir()
    np.save(together, values)
    np.save(together.parent / "y.npy", np.array([4, 5, 6]))
    samples = open_samples(together, ARRAY, str(together.parent / "y.npy"))
    np.testing.assert_array_equal(samples[2], values[2])
    assert list(samples.classes) == [4, 5, 6]
    assert samples.codes(0, Tensor([4, 3], 1.0, 0, 0)).dtype == np.uint8


@pytest.mark.parametrize("labels", ["absent.csv", r"_(\d+)_(\d+)", "(", r"dog_(\d+)"])
def test_labels_that_do_not_fit_are_refused(folder: Path, labels: str) -> None:
    with pytest.raises(errors.UsageError):
        open_samples(folder, IMAGE, labels)


def test_a_label_that_is_no_class_names_its_row_and_the_range(folder: Path) -> None:
    huge = "9" * 30
    (folder / "labels.csv").write_text(
        "file,class\n" + "".join(f"cat_{i}.png,{huge if i == 4 else i}\n" for i in range(6))
    )
    samples = open_samples(folder, IMAGE)
    with raises(errors.InputError, reason="label-out-of-range", origin="labels.csv: row 6", classes=10):
        samples.check_classes(10)
    samples[:4].check_classes(4)
    with raises(errors.InputError, reason="label-out-of-range", origin="labels.csv: row 5", value=3):
        samples[:4].check_classes(3)


def test_labels_of_another_length_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 3)))
    np.save(tmp_path / "y.npy", np.zeros(2, int))
    with raises(errors.UsageError, reason="label-count"):
        open_samples(tmp_path / "x.npy", ARRAY, str(tmp_path / "y.npy"))


def test_places_without_samples_are_refused(tmp_path: Path) -> None:
    with raises(errors.UsageError, reason="no-folder"):
        open_samples(tmp_path / "absent", IMAGE)
    with raises(errors.UsageError, reason="no-samples"):
        open_samples(tmp_path, IMAGE)


def test_samples_that_are_no_samples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"not an image")
    with raises(errors.InputError, reason="not-an-image", file=str(tmp_path / "a.jpg")):
        open_samples(tmp_path, IMAGE)[0]
    np.save(tmp_path / "b.npy", np.array([[0.0, np.nan, 1.0]] * 4))
    with raises(errors.InputError, reason="not-finite"):
        open_samples(tmp_path, ARRAY)[0]
    np.save(tmp_path / "b.npy", np.zeros((2, 2)))
    with raises(errors.InputError, reason="other-shape"):
        open_samples(tmp_path, ARRAY)[0]
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY")
    with raises(errors.InputError, reason="not-npy"):
        open_samples(tmp_path, ARRAY)[0]
    np.save(tmp_path / "b.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with raises(errors.InputError, reason="not-npy"):
        open_samples(tmp_path, ARRAY)[0]


def test_a_folder_for_each_class(folder: Path) -> None:
    for i in range(6):
        inner = folder / ("b_cat" if i % 2 else "a dog")
        inner.mkdir(exist_ok=True)
        (folder / f"cat_{i}.png").rename(inner / f"{i}.png")
    (folder / ".hidden").mkdir()
    (folder / "b_cat" / "._1.png").write_bytes(b"a Mac's other half")
    samples = open_samples(folder, IMAGE, outputs=2)
    assert samples.labels is not None
    assert (list(samples.classes), samples.labels.names) == ([0, 0, 0, 1, 1, 1], ["a dog", "b_cat"])
    named = open_samples(folder, IMAGE, names=["x", "B cat", "y", "A-Dog"], outputs=4)
    assert list(named.classes) == [3, 3, 3, 1, 1, 1]
    with raises(errors.UsageError, reason="class-count"):
        open_samples(folder, IMAGE, outputs=10)
    with raises(errors.UsageError, reason="unknown-name"):
        open_samples(folder, IMAGE, names=["b_cat", "cow"], outputs=2)
    (folder / "labels.csv").write_text("".join(f"a dog/{i}.png,7\nb_cat/{i + 1}.png,8\n" for i in (0, 2, 4)))
    assert list(open_samples(folder, IMAGE, outputs=10).classes) == [7, 7, 7, 8, 8, 8]


def test_other_pixels_are_not_decoded_again(folder: Path) -> None:
    samples = open_samples(folder, IMAGE)
    before = samples[0]
    for path in folder.glob("*.png"):
        path.unlink()
    after = samples.normalised_by([0.0], [255.0])[0]
    np.testing.assert_allclose(after * 255, before * 128 + 127, atol=1e-4)
