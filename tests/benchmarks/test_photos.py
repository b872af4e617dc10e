"""The demo's photographs."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import photos
from benchmarks.photos import Photo
from splitedge import errors
from tests.raising import raises


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the demo's cache, with a wheel of four photographs."""
    monkeypatch.setattr(photos, "CACHE", tmp_path)
    buffer = io.BytesIO()
    Image.new("RGB", (50, 40), (200, 30, 30)).save(buffer, "JPEG")
    wheel = tmp_path / photos.WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        for number in range(4):
            archive.writestr(f"foolbox/data/imagenet_0{number}_{number + 7}.jpg", buffer.getvalue())
        archive.writestr("foolbox/data/cifar10_00_3.jpg", b"another set")
    monkeypatch.setattr(photos, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return tmp_path


def test_every_other_photo_calibrates(cache: Path) -> None:
    found = photos.demo()
    assert [(photo.label, photo.seen) for photo in found] == [(7, True), (8, False), (9, True), (10, False)]
    assert all(photo.path.read_bytes().startswith(b"\xff\xd8") for photo in found)


def test_calibration_sees_five_views_of_each_of_its_photos_and_no_other(cache: Path) -> None:
    folder = photos.calibration_views(photos.demo())
    assert photos.calibration_views(photos.demo()) == folder
    rows = list(csv.reader((folder / "labels.csv").read_text().splitlines()))[1:]
    assert sorted(name for name, _ in rows) == sorted(path.name for path in folder.glob("*.png"))
    assert [label for _, label in rows] == ["7"] * photos.VIEWS + ["9"] * photos.VIEWS
    sizes = []
    for name, _ in rows[: photos.VIEWS]:
        with Image.open(folder / name) as view:
            sizes.append(view.size)
    assert sizes == [(50, 40)] + [(40, 32)] * 4


def test_another_wheel_is_refused(cache: Path) -> None:
    (cache / photos.WHEEL).write_bytes(b"PK")
    with raises(errors.InputError, reason="other-file"):
        photos.demo()


def test_labelled_photos_are_read_from_a_csv_evenly(tmp_path: Path) -> None:
    lines = ["file,class,name", *(f"{i}.jpg,{i},thing" for i in range(10))]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    assert [photo.label for photo in photos.labelled(tmp_path)] == list(range(10))
    assert photos.labelled(tmp_path, most=4) == [Photo(tmp_path / f"{i}.jpg", i) for i in (0, 3, 6, 9)]


@pytest.mark.parametrize("text", [None, "a.jpg\n"])
def test_a_folder_without_labels_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    with raises(errors.InputError, reason="no-labels"):
        photos.labelled(tmp_path)
