"""Reads texts as calibration samples from folders and files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calibration.samples.labels import I64, NO_CLASS, Labels, by_name, read
from calibration.samples.samples import Samples, evenly, folders, listed
from splitedge import errors, limits
from splitedge.head.text import Tokenizer, decode
from splitedge.protocol.messages import Preprocess


class Texts(NamedTuple):
    """``sources``: files with one text each, or the texts. ``labels``: their labels, or None."""

    sources: Sequence[Path | str]
    labels: Labels | None


def find(place: Path, labels: str | None = None, names: Sequence[str] = (), outputs: int | None = None) -> Texts:
    """The texts in ``place``, in UTF-8.

    ``place`` is one of

    - a folder with one folder of ``.txt`` files per class. The folder names are the class names, in the order of
      ``names`` or of the alphabet;
    - a folder of ``.txt`` files;
    - a ``.txt`` file with one text per line;
    - a ``.csv`` file with texts in the first column and optional class indices in the second (a heading is skipped).

    ``labels``: as in `labels.read`, if ``place`` does not contain the classes. ``names``: names of the model's
    ``outputs`` classes, if known. Raises `errors.UsageError` and `errors.InputError`.
    """
    if place.is_dir():
        found = _of_folder(place, names, outputs)
    elif place.is_file():
        found = _rows(place, names) if place.suffix.lower() == ".csv" else Texts(_lines(place), None)
    else:
        raise errors.UsageError(f"the texts {place} do not exist; check the path", reason="no-folder")
    if not found.sources:
        raise errors.UsageError(
            f"{place} contains no texts; give a folder of .txt files, or one with such a folder for each class",
            reason="no-texts",
        )
    if labels is None:
        return found
    if found.labels is not None:
        raise errors.UsageError(
            f"{place} already contains the classes of its texts; omit --labels", reason="classes-told"
        )
    files = [source.name if isinstance(source, Path) else str(i) for i, source in enumerate(found.sources)]
    return found._replace(labels=read(labels, files, names, outputs))


def samples(texts: Texts, tokenizer: Tokenizer, most: int | None = None) -> Samples:
    """The token ids of at most ``most`` of ``texts``, evenly spread.

    Raises `errors.InputError` for an invalid text, `errors.UsageError` for too many texts.
    """
    count = len(texts.sources)
    chosen = evenly(count, min(count, limits.MAX_CALIBRATION_SAMPLES + 1 if most is None else most))
    ids = [_ids(texts.sources[i], int(i), tokenizer) for i in chosen]
    labels = None if texts.labels is None else texts.labels.take(chosen)
    return Samples(Preprocess("tensor", [tokenizer.tokens]), ids, labels)


def _ids(source: Path | str, index: int, tokenizer: Tokenizer) -> I64:
    try:
        return tokenizer.ids(_read(source) if isinstance(source, Path) else source).astype(np.int64)
    except errors.InputError as error:
        where = {"file": str(source)} if isinstance(source, Path) else {"index": index}
        name = where.get("file", f"text {index}")
        raise errors.InputError(f"{name}: {error.message}", **error.data, **where) from error


def _of_folder(place: Path, names: Sequence[str], outputs: int | None) -> Texts:
    inner = [(path, folder.name) for folder in folders(place) for path in listed(folder, {".txt"})]
    if not inner:
        return Texts(listed(place, {".txt"}), None)
    indices, order = by_name({name for _, name in inner}, names, outputs, place)
    classes = np.array([indices[name] for _, name in inner], np.int64)
    return Texts([path for path, _ in inner], Labels(classes, [str(path) for path, _ in inner], order))


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _read(path).splitlines() if line.strip()]


def _rows(path: Path, names: Sequence[str]) -> Texts:
    try:
        rows = [
            (number, row)
            for number, row in enumerate(csv.reader(io.StringIO(_read(path), newline="")), 1)
            if row and row[0].strip()
        ]
    except csv.Error as error:
        raise errors.InputError(f"{path} is not a readable CSV file ({error}); correct it", reason="not-csv") from error
    if rows and len(rows[0][1]) > 1 and not _is_class(rows[0][1]):
        rows = rows[1:]
    texts = [row[0] for _, row in rows]
    if all(len(row) == 1 for _, row in rows):
        return Texts(texts, None)
    if wrong := [(number, row[0]) for number, row in rows if not _is_class(row)]:
        number, text = wrong[0]
        raise errors.InputError(
            f"{path}: row {number} has no class index after {text[:40]!r}; "
            "write text and index in two columns, or only texts",
            reason="no-index",
        )
    classes = np.array([min(int(row[1]), NO_CLASS) for _, row in rows], np.int64)
    return Texts(texts, Labels(classes, [f"{path.name}: row {number}" for number, _ in rows], list(names)))


def _is_class(row: list[str]) -> bool:
    return len(row) > 1 and row[1].strip().isascii() and row[1].strip().isdigit()


def _read(path: Path) -> str:
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise errors.UsageError(
            f"{path} cannot be read ({error.strerror}); check the path", reason="unreadable"
        ) from error
