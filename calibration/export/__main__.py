"""`python -m calibration.export MODEL FOLDER [--frames FILE.npy] [--shape 1,3,224,224]`: write all files of a model.

Prints JSON: for each file its name and an empty string, or why it was not made. ``--frames``: float32 frames [n, ...],
channels last, to calibrate on. A model that cannot be imported ends with its error on standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from calibration.export import whole
from calibration.importing import importer
from calibration.samples.samples import Samples
from splitedge.errors import SplitEdgeError
from splitedge.protocol.messages import Preprocess


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m calibration.export")
    options.add_argument("model")
    options.add_argument("folder", type=Path)
    options.add_argument("--frames", type=Path)
    options.add_argument("--shape", type=lambda text: [int(size) for size in text.split(",")])
    given = options.parse_args()
    try:
        samples = None
        if given.frames is not None:
            frames = np.load(given.frames, allow_pickle=False)
            samples = Samples(Preprocess("tensor", list(frames.shape[1:])), list(frames))
        files = whole.make(importer.load(given.model, given.shape), samples)
    except SplitEdgeError as error:
        sys.exit(f"{error}")
    reasons = {}
    for name, made in files.items():
        reasons[name] = str(made) if isinstance(made, SplitEdgeError) else ""
        if not isinstance(made, SplitEdgeError):
            (given.folder / name).write_bytes(made)
    print(json.dumps(reasons))


if __name__ == "__main__":
    main()
