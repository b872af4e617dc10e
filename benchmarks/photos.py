"""The demo's 20 labelled ImageNet photographs, from a package: half calibrate, half are unseen by calibration."""

from __future__ import annotations

import csv
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image

from splitedge import errors

ROOT: Final = Path(__file__).resolve().parent.parent
CACHE: Final = ROOT / ".cache" / "demo"
#: The wheel is read as a zip file and never installed.
PACKAGE: Final = "foolbox==3.3.4"
WHEEL: Final = "foolbox-3.3.4-py3-none-any.whl"
SHA256: Final = "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb"
VIEWS: Final = 5  # per calibration photo: the whole, and four corners
_PHOTO: Final = re.compile(r"foolbox/data/imagenet_(\d+)_(\d+)\.jpg")


class Photo(NamedTuple):
    """A photograph, its ImageNet class, and whether it calibrates."""

    path: Path
    label: int
    seen: bool = False


def demo() -> list[Photo]:
    """Return the 20 photographs, downloaded once and unpacked under `CACHE`. Raises `errors.InputError`."""
    folder, found = CACHE / "photos", []
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(_wheel()) as archive:
        for name in sorted(archive.namelist()):
            if photo := _PHOTO.fullmatch(name):
                path = folder / Path(name).name
                if not path.exists():
                    path.write_bytes(archive.read(name))
                found.append(Photo(path, int(photo[2]), int(photo[1]) % 2 == 0))
    return found


def labelled(folder: Path, labels: Path | None = None, most: int | None = None) -> list[Photo]:
    """Return the photographs of a folder with a CSV of file name and class, at most ``most``, evenly chosen.

    ``labels``: the CSV, by default labels.csv in the folder. Raises `errors.InputError`.
    """
    try:
        rows = list(csv.reader((labels or folder / "labels.csv").read_text().splitlines()))
        found = [Photo(folder / name, int(label)) for name, label, *_ in rows if label.strip().isdecimal()]
    except (OSError, ValueError) as error:
        raise errors.InputError(
            f"{labels or folder / 'labels.csv'} is not a list of file names and classes ({error})", reason="no-labels"
        ) from error
    step = max(1, -(-len(found) // most)) if most else 1
    return found[::step]


def calibration_views(photos: Sequence[Photo]) -> Path:
    """Return a folder with `VIEWS` of each calibration photo and their labels.csv; ten photographs are too few."""
    folder = CACHE / "calibration"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for photo in (photo for photo in photos if photo.seen):
        for number, view in enumerate(_views(photo.path)):
            path = folder / f"{photo.path.stem}_{number}.png"
            if not path.exists():
                view.save(path)
            rows.append((path.name, photo.label))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "class"), *rows])
    return folder


def _views(path: Path) -> list[Image.Image]:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    w, h = image.width * 4 // 5, image.height * 4 // 5
    corners = [(0, 0), (image.width - w, 0), (0, image.height - h), (image.width - w, image.height - h)]
    return [image, *(image.crop((x, y, x + w, y + h)) for x, y in corners)]


def _wheel() -> Path:
    """Return the wheel; download it from the package index the first time. Raises `errors.InputError`."""
    wheel = CACHE / WHEEL
    if not wheel.exists():
        _download(wheel)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise errors.InputError(f"{wheel} is not the wheel of {PACKAGE}; delete it and run again", reason="other-file")
    return wheel


def _download(wheel: Path) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest"]
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", *options, folder, PACKAGE]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise errors.InputError(
                f"{PACKAGE}, which carries the photos, could not be downloaded; see the message above and run again",
                reason="no-download",
            )
        (Path(folder) / WHEEL).rename(wheel)
