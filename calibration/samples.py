"""Calibration samples: a folder of images, a folder of ``.npy`` arrays, or one ``.npy`` of many; and their labels."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from edge_agent import errors, limits
from edge_agent.head.preprocess import (
    code_table,
    load_image,
    normalise,
    pixels_to_codes,
    prepare_image,
    quantize_tensor,
)
from edge_agent.head.segment import DTYPES, Tensor
from edge_agent.protocol.messages import Preprocess

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

IMAGES: Final = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
#: What a label beyond 64 bits becomes: no model has so many outputs.
NO_CLASS: Final = 2**63 - 1
#: Decoded pixels that are kept between the passes of a calibration.
KEPT_BYTES: Final = 256 << 20


class Samples(Sequence[F32]):
    """``samples[i]`` is what the float model sees: float32, channels last, no batch axis. ``classes`` [n] are the labels, if there are any."""

    def __init__(
        self, preprocess: Preprocess, sources: Sequence[Path | NDArray[np.generic]], classes: I64 | None = None
    ) -> None:
        if not 0 < len(sources) <= limits.MAX_CALIBRATION_SAMPLES:
            raise errors.UsageError(f"there are {len(sources)} samples; give 1 to {limits.MAX_CALIBRATION_SAMPLES}")
        self.preprocess, self.sources, self.classes = preprocess, sources, classes
        self._kept: dict[int, U8] = {}
        self._room = KEPT_BYTES

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, index: int) -> F32: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> F32 | Samples:
        if isinstance(index, slice):
            classes = None if self.classes is None else self.classes[index]
            return Samples(self.preprocess, self.sources[index], classes)
        if self.preprocess.kind == "image":
            return normalise(self._pixels(index), self.preprocess)
        return self._array(index)

    def check_classes(self, outputs: int) -> None:
        """Raises `errors.InputError` where a label is not the index of one of the model's ``outputs``."""
        if self.classes is None:
            return
        wrong = np.flatnonzero((self.classes < 0) | (self.classes >= outputs))
        if len(wrong):
            source, found = self.sources[wrong[0]], int(self.classes[wrong[0]])
            where = source.name if isinstance(source, Path) else f"sample {wrong[0]}"
            raise errors.InputError(
                f"the label of {where} is class {found}, and the model's {outputs} outputs are classes 0 to {outputs - 1}; "
                f"correct the labels ({len(wrong)} of {len(self)} are wrong)"
            )

    def codes(self, index: int, tensor: Tensor) -> NDArray[Any]:
        """What the integer head sees: codes of its input ``tensor``, or the float32 values or int32 token ids that it holds."""
        if tensor.dtype != "u8":
            return np.ascontiguousarray(self[index], DTYPES[tensor.dtype])
        if self.preprocess.kind == "image":
            return pixels_to_codes(self._pixels(index), code_table(self.preprocess, tensor))
        return quantize_tensor(self._array(index), tensor)

    def _pixels(self, index: int) -> U8:
        kept = self._kept.get(index)
        if kept is None:
            path = self.sources[index]
            assert isinstance(path, Path)
            try:
                kept = prepare_image(load_image(_read(path)), self.preprocess)
            except errors.InputError as error:
                raise errors.InputError(f"{path.name}: {error}") from error
            if kept.nbytes <= self._room:
                self._room -= kept.nbytes
                self._kept[index] = kept
        return kept

    def _array(self, index: int) -> F32:
        source = self.sources[index]
        array = _load_array(source) if isinstance(source, Path) else np.asarray(source)
        if list(array.shape) != self.preprocess.shape:
            where = source.name if isinstance(source, Path) else f"sample {index}"
            wanted = self.preprocess.shape
            raise errors.InputError(
                f"{where} has shape {list(array.shape)}; the model takes {wanted}, channels last", shape=wanted
            )
        return array.astype(np.float32)


def open_samples(place: Path, preprocess: Preprocess, labels: str | None = None, most: int | None = None) -> Samples:
    """The samples in ``place``: a folder of images or ``.npy`` arrays, or one ``.npy`` [n, ...]; at most ``most``, evenly spread.

    ``labels``: a CSV file with rows of file name, class index and perhaps more (a heading is skipped), a ``.npy`` of class indices in the order of
    the samples, or a regular expression whose one group is the class index in the file's name, such as ``_(\\d+)\\.jpg$``; None: a ``labels.csv``
    in the folder, else no labels. Raises `errors.UsageError` or `errors.InputError`.
    """
    sources: Sequence[Path | NDArray[np.generic]]
    if place.is_file() and place.suffix == ".npy":
        sources = list(_load_array(place))
    elif place.is_dir():
        kinds = IMAGES if preprocess.kind == "image" else {".npy"}
        sources = sorted(p for p in place.iterdir() if p.suffix.lower() in kinds)
    else:
        raise errors.UsageError(f"there is no folder of samples {place}; check the path")
    if not sources:
        wanted = "images" if preprocess.kind == "image" else ".npy arrays"
        raise errors.UsageError(f"{place} holds no {wanted} to calibrate with; give a folder that does")
    beside = place / "labels.csv"
    if labels is None and beside.is_file():
        labels = str(beside)
    classes = None if labels is None else read_classes(labels, sources)
    if most is not None and most < len(sources):
        chosen = evenly(len(sources), most)
        sources, classes = [sources[i] for i in chosen], None if classes is None else classes[chosen]
    return Samples(preprocess, sources, classes)


def evenly(among: int, count: int) -> I64:
    """At most ``count`` of the numbers 0 .. ``among`` - 1, ascending and evenly spread."""
    return np.unique(np.linspace(0, among - 1, min(among, count)).round().astype(np.int64))


def read_names(path: Path) -> list[str]:
    """Class names: a text file with one a line, a CSV of index and name, or JSON, a list or an object from index to name."""
    text = _read(path).decode("utf-8", "replace")
    try:
        if path.suffix == ".json":
            value = json.loads(text)
            return (
                _by_index({int(k): _last(v) for k, v in value.items()})
                if isinstance(value, dict)
                else [_last(v) for v in value]
            )
        if path.suffix == ".csv":
            rows = [r for r in csv.reader(text.splitlines()) if len(r) > 1]
            numbers = [[i for i, cell in enumerate(r) if cell.strip().isdigit()] for r in rows]
            return _by_index({int(r[n[0]]): r[-1].strip() for r, n in zip(rows, numbers, strict=True) if n})
    except (ValueError, TypeError, AttributeError) as error:
        raise errors.UsageError(f"{path} is not a list of class names; give one name a line") from error
    return [line.strip() for line in text.splitlines() if line.strip()][: limits.MAX_LABELS]


def _last(value: object) -> str:
    return str(value[-1] if isinstance(value, list) else value)


def _by_index(names: dict[int, str]) -> list[str]:
    size = max(names, default=-1) + 1
    if size > limits.MAX_LABELS or min(names, default=0) < 0:
        raise ValueError("an index out of range")
    return [names.get(i, str(i)) for i in range(size)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.UsageError(f"{path} cannot be read ({error.strerror}); check the path") from error


def _load_array(path: Path) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise errors.InputError(f"{path} is not a readable .npy array; save it with numpy.save") from error
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise errors.InputError(f"{path} holds {array.dtype} values; save numbers")
    return array


def read_classes(labels: str, sources: Sequence[object]) -> I64:
    """The class index of each of ``sources``, from ``labels`` as in `open_samples`; those that are no files go by their numbers. Raises `errors.UsageError`."""
    path = Path(labels)
    if path.suffix == ".npy" and path.is_file():
        found = _load_array(path).reshape(-1).astype(np.int64)
        if len(found) != len(sources):
            raise errors.UsageError(f"{path} has {len(found)} labels for {len(sources)} samples; give one for each")
        return found
    names = [s.name if isinstance(s, Path) else str(i) for i, s in enumerate(sources)]
    known = _from_csv(path, names) if path.is_file() else _from_names(labels, names)
    missing = [n for n in names if n not in known]
    if missing:
        raise errors.UsageError(f"{labels} gives no label for {len(missing)} samples, {missing[0]} for one; add them")
    return np.array([min(known[n], NO_CLASS) for n in names], np.int64)


def _from_csv(path: Path, names: Sequence[str]) -> dict[str, int]:
    wanted = set(names)
    rows = csv.reader(_read(path).decode("utf-8", "replace").splitlines())
    return {r[0]: int(r[1]) for r in rows if len(r) > 1 and r[0] in wanted and r[1].strip().isdigit()}


def _from_names(pattern: str, names: Sequence[str]) -> dict[str, int]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise errors.UsageError(f"{pattern} is neither a labels file nor a regular expression; check it") from error
    if expression.groups != 1:
        raise errors.UsageError(f"there is no labels file {pattern}; check the path")
    matches = {name: expression.search(name) for name in names}
    return {name: int(m[1]) for name, m in matches.items() if m and m[1].isdigit()}
