"""How near the answers of each backend are to those of the float model: a fast wrong backend must not win."""

from __future__ import annotations

import csv
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.bench.cases import Case
from edge_agent.bench.measuring import FailedError, Say, Worker
from edge_agent.bench.results import Fidelity
from edge_agent.inputs.sources import expand
from splitedge.errors import InputError, UsageError
from splitedge.head.preprocess import load_image, normalise, prepare_image
from splitedge.protocol.messages import Preprocess

F32 = NDArray[np.float32]
MOST_FRAMES: Final = 256
LABELS: Final = "labels.csv"
#: The usual normalization of networks for ImageNet, in pixel values.
MEAN: Final = (123.675, 116.28, 103.53)
STD: Final = (58.395, 57.12, 57.375)
_RESIZE: Final = 256 / 224


class Frames(NamedTuple):
    """Two files of float32 frames [n, H, W, C], and the classes of the second's frames, if known."""

    calibration: Path
    evaluation: Path
    classes: list[int] | None


class Normalization(NamedTuple):
    """In pixel values, one number or one for each channel."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def preprocess(self, shape: list[int]) -> Preprocess:
        """The usual preparation of pictures: the short side 8/7 of the input's, then the centre."""
        channels = shape[2]
        mean, std = ([math.fsum(v) / len(v)] if channels == 1 else list(v) for v in self)
        return Preprocess("image", shape, round(_RESIZE * min(shape[:2])), mean=mean, std=std)


def frames(
    pattern: str,
    shape: Sequence[int],
    folder: Path,
    normalization: Normalization,
    preprocess: Preprocess | None = None,
) -> Frames:
    """Make frames of the pictures that ``pattern`` names, at most `MOST_FRAMES` and evenly spread.

    Every other picture is for calibration. ``shape``: of the model's input. ``preprocess``: what the
    model's file prescribes. A file `LABELS` in a folder of pictures gives their classes. Raises `UsageError`,
    `InputError`.
    """
    sources = list(expand(pattern, sys.stdin.buffer))
    if len(sources) < 2:
        raise UsageError(f"{pattern} has fewer than 2 pictures; give a folder of pictures", reason="few-pictures")
    sources = sources[:: -(-len(sources) // MOST_FRAMES)]
    preprocess = preprocess or normalization.preprocess(frame_shape(shape))
    made = []
    for source in sources:
        data = source.read()
        if isinstance(data, str):
            raise InputError(f"{source.name} is no picture; give a folder of pictures", reason="no-picture")
        made.append(normalise(prepare_image(load_image(data), preprocess), preprocess))
    known = _classes(Path(pattern) / LABELS)
    names = [source.path.name if source.path else "" for source in sources[1::2]]
    found = Frames(
        folder / "calibration.npy",
        folder / "evaluation.npy",
        [known[name] for name in names] if all(name in known for name in names) else None,
    )
    np.save(found.calibration, np.stack(made[::2]), allow_pickle=False)
    np.save(found.evaluation, np.stack(made[1::2]), allow_pickle=False)
    return found


def frame_shape(shape: Sequence[int]) -> list[int]:
    """Height, width and channels of a model's input of this ``shape``. Raises `InputError` if it takes no pictures."""
    plane = list(shape[1:]) if len(shape) == 4 else list(shape)
    if len(plane) == 3 and plane[2] in (1, 3):
        return plane
    if len(plane) == 3 and plane[0] in (1, 3):
        return [plane[1], plane[2], plane[0]]
    raise InputError(
        f"a model with an input of the shape {list(shape)} takes no pictures; omit --images", reason="no-pictures"
    )


def _classes(path: Path) -> dict[str, int]:
    """The class index by file name, from the first two columns of a CSV file; empty without it."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row[0]: int(row[1]) for row in csv.reader(file) if len(row) > 1 and row[1].strip().isdecimal()}
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}


def compare(cases: Sequence[Case], found: Frames, say: Say) -> dict[Path, Fidelity]:
    """The fidelity of each file of one model against its float32 file. A file whose backend fails has none."""
    answers: dict[Path, F32] = {}
    reference: F32 | None = None
    for case in cases:
        if case.file is None or case.file in answers:
            continue
        say(f"{case.model}: answers of {case.backend.name}")
        with tempfile.TemporaryDirectory() as folder:
            try:
                worker = Worker(case)
            except FailedError:
                continue
            try:
                worker.ask(frames=str(found.evaluation), outputs=f"{folder}/answers.npy")
                answers[case.file] = np.load(f"{folder}/answers.npy", allow_pickle=False)
            except FailedError:
                continue
            finally:
                worker.end()
        if reference is None and worker.ready.precision == "float32":
            reference = answers[case.file]
    return {
        file: fidelity(one, reference, found.classes)
        for file, one in answers.items()
        if reference is not None and one.shape == reference.shape
    }


def fidelity(answers: F32, reference: F32, classes: Sequence[int] | None) -> Fidelity:
    """``answers`` [n, values] against those of the float model, and against the right ``classes``."""
    one, two = answers.astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    cosines = np.divide((one * two).sum(axis=1), lengths, out=np.zeros(len(one)), where=lengths > 0)
    top = one.argmax(axis=1)
    right = None if classes is None else 100 * float(np.mean(top == np.asarray(classes)))
    mean = float(np.clip(cosines.mean(), -1, 1))
    return Fidelity(len(one), mean, 100 * float(np.mean(top == two.argmax(axis=1))), right)
