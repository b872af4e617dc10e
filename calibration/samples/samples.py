"""Calibration samples: images, arrays, or token ids, with labels."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.parallel import in_order
from calibration.samples.labels import I64, Labels, by_name, load_array, read
from splitedge import errors, limits
from splitedge.head.preprocess import code_table, load_image, normalise, pixels_to_codes, prepare_image, quantize_tensor
from splitedge.head.segment import DTYPES, Tensor
from splitedge.protocol.messages import Preprocess

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

#: The labels file in a folder of samples.
LABELS: Final = "labels.csv"
IMAGES: Final = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
#: Maximum absolute value of arrays; larger values overflow float32 in a network.
LARGEST: Final = 1e15
#: Maximum bytes of decoded pixels in memory between the passes of a calibration.
KEPT_BYTES: Final = 256 << 20


class Samples(Sequence[F32]):
    """The samples as the float model takes them: ``samples[i]`` is float32, channels last, without a batch axis.

    ``labels``: their labels, or None.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        sources: Sequence[Path | NDArray[np.generic]],
        labels: Labels | I64 | None = None,
    ) -> None:
        if not 0 < len(sources) <= limits.MAX_CALIBRATION_SAMPLES:
            raise errors.UsageError(
                f"there are {len(sources)} samples; give 1 to {limits.MAX_CALIBRATION_SAMPLES}", reason="sample-count"
            )
        if isinstance(labels, np.ndarray):
            labels = Labels(labels, [f"sample {i}" for i in range(len(labels))], [])
        self.preprocess, self.sources, self.labels = preprocess, sources, labels
        self._decoded = _Decoded()

    @property
    def classes(self) -> I64 | None:
        """The class index of each sample [n], or None."""
        return None if self.labels is None else self.labels.classes

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, index: int) -> F32: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> F32 | Samples:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if self.preprocess.kind == "image":
            return normalise(self._pixels(index), self.preprocess)
        return self._array(index)

    def check_classes(self, outputs: int) -> None:
        """Check that every label is the index of one of the model's ``outputs``. Raises `errors.InputError`."""
        if self.labels is None:
            return
        classes = self.labels.classes
        wrong = np.flatnonzero((classes < 0) | (classes >= outputs))
        if len(wrong):
            raise errors.InputError(
                f"{self.labels.origins[wrong[0]]}: class {classes[wrong[0]]} is out of range (the model has "
                f"{outputs} classes, 0 to {outputs - 1}); "
                f"correct the labels ({len(wrong)} of {len(self)} are wrong)",
                reason="label-out-of-range",
                origin=self.labels.origins[wrong[0]],
                sample=int(wrong[0]),
                value=int(classes[wrong[0]]),
                classes=outputs,
                wrong=len(wrong),
            )

    def take(self, chosen: I64) -> Samples:
        """The samples with the indices ``chosen``."""
        labels = None if self.labels is None else self.labels.take(chosen)
        other = Samples(self.preprocess, [self.sources[i] for i in chosen], labels)
        other._decoded = self._decoded
        return other

    def unlabelled(self) -> Samples:
        """The same samples without labels."""
        other = Samples(self.preprocess, self.sources)
        other._decoded = self._decoded
        return other

    def digest(self) -> bytes:
        """A hash of the samples as the model takes them, and of their classes."""
        found = hashlib.sha256(msgspec.json.encode(self.preprocess))
        for data in in_order(self._raw, range(len(self))):
            found.update(data)
        found.update(b"" if self.classes is None else self.classes.tobytes())
        return found.digest()

    def _raw(self, index: int) -> bytes:
        return (self._pixels(index) if self.preprocess.kind == "image" else self._array(index)).tobytes()

    def normalised_by(self, mean: list[float], std: list[float]) -> Samples:
        """The same samples with another normalization. Decoded images are not decoded again."""
        other = Samples(msgspec.structs.replace(self.preprocess, mean=mean, std=std), self.sources, self.labels)
        other._decoded = self._decoded
        return other

    def codes(self, index: int, tensor: Tensor) -> NDArray[Any]:
        """A sample as the integer head takes it.

        It holds codes of the head's input ``tensor``, or its float32 values or int32 token ids.
        """
        if tensor.dtype != "u8":
            return np.ascontiguousarray(self[index], DTYPES[tensor.dtype])
        if self.preprocess.kind == "image":
            return pixels_to_codes(self._pixels(index), code_table(self.preprocess, tensor))
        return quantize_tensor(self._array(index), tensor)

    def _pixels(self, index: int) -> U8:
        path = self.sources[index]
        assert isinstance(path, Path)
        found = self._decoded.pixels.get(path)
        if found is None:
            try:
                found = prepare_image(load_image(_read(path)), self.preprocess)
            except errors.InputError as error:
                raise errors.InputError(
                    f"{path}: {error.message}, or remove the file from the folder", **error.data, file=str(path)
                ) from error
            self._decoded.keep(path, found)
        return found

    def _array(self, index: int) -> F32:
        source = self.sources[index]
        array = load_array(source) if isinstance(source, Path) else np.asarray(source)
        if list(array.shape) != self.preprocess.shape:
            where = source if isinstance(source, Path) else f"sample {index}"
            wanted = self.preprocess.shape
            raise errors.InputError(
                f"{where} has shape {list(array.shape)}; the model takes {wanted}, channels last",
                shape=wanted,
                reason="other-shape",
            )
        if array.size and not np.abs(array.astype(np.float64)).max() <= LARGEST:
            where = source if isinstance(source, Path) else f"sample {index}"
            raise errors.InputError(
                f"{where} contains NaN or values beyond {LARGEST:g}; give finite numbers", reason="not-finite"
            )
        return array.astype(np.float32)


class _Decoded:
    """Decoded pixels by file, shared by all parts of the same samples. Threads may share it."""

    def __init__(self) -> None:
        self.pixels: dict[Path, U8] = {}
        self._room = KEPT_BYTES

    def keep(self, path: Path, pixels: U8) -> None:
        """Keep ``pixels`` if there is room."""
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self.pixels[path] = pixels


def open_samples(
    place: Path,
    preprocess: Preprocess,
    labels: str | None = None,
    most: int | None = None,
    names: Sequence[str] = (),
    outputs: int | None = None,
    *,
    labelled: bool = True,
) -> Samples:
    """Open the samples in ``place``.

    ``place`` is a folder of images or ``.npy`` arrays, a folder with one such folder per class, or one ``.npy`` [n,
    ...]. Hidden files are skipped.

    - ``labels``: as in `labels.read`. None: a ``labels.csv`` in the folder, else the class folders, else no labels.
    - ``most``: maximum number of samples, evenly spread.
    - ``names``: names of the model's ``outputs`` classes, if known.
    - ``labelled``: False to open the samples without labels.

    Raises `errors.UsageError` or `errors.InputError`.
    """
    found, folder_of = _sources(place, preprocess)
    files = [_below(place, source) if isinstance(source, Path) else str(i) for i, source in enumerate(found)]
    beside = place / LABELS
    if labels is None and labelled and beside.is_file():
        labels = str(beside)
    known = None
    if labels is not None:
        known = read(labels, files, names, outputs)
    elif folder_of and labelled:
        indices, order = by_name(set(folder_of), names, outputs, place)
        known = Labels(np.array([indices[one] for one in folder_of], np.int64), files, order)
    if most is not None and most < len(found):
        chosen = evenly(len(found), most)
        found, known = [found[i] for i in chosen], None if known is None else known.take(chosen)
    return Samples(preprocess, found, known)


def _sources(place: Path, preprocess: Preprocess) -> tuple[Sequence[Path | NDArray[np.generic]], list[str]]:
    """The samples in ``place``, and the folder of each if there is one folder per class."""
    if place.is_file() and place.suffix == ".npy":
        if preprocess.kind == "image":
            raise errors.UsageError(f"{place} contains arrays, not images; pass it with --arrays", reason="arrays")
        return list(load_array(place)), []
    if not place.is_dir():
        raise errors.UsageError(f"the samples folder {place} does not exist; check the path", reason="no-folder")
    kinds = IMAGES if preprocess.kind == "image" else {".npy"}
    found = listed(place, kinds)
    inner = [(path, folder.name) for folder in folders(place) for path in listed(folder, kinds)]
    if found and len(found) < len(inner) and not (place / LABELS).is_file():
        raise errors.UsageError(
            f"{place} contains {found[0].name} beside folders with {len(inner)} samples; "
            f"move it into the folder of its class, or out of {place}",
            reason="stray-file",
        )
    if found:
        return found, []
    if not inner:
        wanted = "images" if preprocess.kind == "image" else ".npy arrays"
        raise errors.UsageError(
            f"{place} contains no {wanted}; give a folder of them, or one with a folder for each class",
            reason="no-samples",
        )
    return [path for path, _ in inner], [name for _, name in inner]


def listed(folder: Path, kinds: Collection[str]) -> list[Path]:
    """The files in ``folder`` with one of the suffixes ``kinds``, sorted, without hidden ones.

    Raises `errors.UsageError`.
    """
    return [path for path in _entries(folder) if path.suffix.lower() in kinds and not path.is_dir()]


def folders(place: Path) -> list[Path]:
    """The folders in ``place``, sorted, without hidden ones. Raises `errors.UsageError`."""
    return [path for path in _entries(place) if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise errors.UsageError(
            f"{folder} cannot be read ({error.strerror}); check its owner and mode", reason="unreadable"
        ) from error


def _below(place: Path, path: Path) -> str:
    return path.relative_to(place).as_posix()


def evenly(among: int, count: int) -> I64:
    """At most ``count`` of the numbers 0 .. ``among`` - 1, ascending and evenly spread: [n] int64."""
    return np.unique(np.linspace(0, among - 1, min(among, count)).round().astype(np.int64))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.UsageError(
            f"{path} cannot be read ({error.strerror}); check the path", reason="unreadable"
        ) from error
