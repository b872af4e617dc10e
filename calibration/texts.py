"""Texts as calibration samples, from the places where people keep them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calibration.samples import I64, NO_CLASS, Samples, evenly, read_classes
from edge_agent import errors, limits
from edge_agent.head.text import Tokenizer, decode
from edge_agent.protocol.messages import Preprocess


class Texts(NamedTuple):
    """``sources``: files with a text each, or the texts. ``classes`` [n]: their labels, if there are any; ``names``: of the classes, where folders tell."""

    sources: Sequence[Path | str]
    classes: I64 | None
    names: list[str]


def find(place: Path, labels: str | None = None, names: Sequence[str] = ()) -> Texts:
    """The texts in ``place``, in UTF-8:

    a folder with one folder of ``.txt`` files for each class, whose names are the classes', in the order of ``names`` or of the alphabet; a folder of
    ``.txt`` files; a ``.txt`` of one text a line; or a ``.csv`` of texts and, behind them, perhaps their class indices (a heading is skipped).

    ``labels``: as in `samples.open_samples`, where ``place`` does not tell the classes. Raises `errors.UsageError` and `errors.InputError`.
    """
    if place.is_dir():
        found = _folders(place, names) if any(_files(one) for one in _inner(place)) else Texts(_files(place), None, [])
    elif place.is_file():
        found = _rows(place) if place.suffix.lower() == ".csv" else Texts(_lines(place), None, [])
    else:
        raise errors.UsageError(f"there are no texts {place}; check the path")
    if not found.sources:
        raise errors.UsageError(
            f"{place} holds no texts; give a folder of .txt files, or of one such folder for each class"
        )
    if labels is None:
        return found
    if found.classes is not None:
        raise errors.UsageError(f"{place} tells the classes of its texts; leave out --labels")
    return found._replace(classes=read_classes(labels, found.sources))


def samples(texts: Texts, tokenizer: Tokenizer, most: int | None = None) -> Samples:
    """The token ids of at most ``most`` of ``texts``, evenly spread. Raises `errors.InputError` for one that is no text, `errors.UsageError` for too many."""
    count, classes = len(texts.sources), texts.classes
    chosen = evenly(count, min(count, limits.MAX_CALIBRATION_SAMPLES + 1 if most is None else most))
    ids = [_ids(texts.sources[i], int(i), tokenizer) for i in chosen]
    return Samples(Preprocess("tensor", [tokenizer.tokens]), ids, None if classes is None else classes[chosen])


def _ids(source: Path | str, index: int, tokenizer: Tokenizer) -> I64:
    try:
        return tokenizer.ids(_read(source) if isinstance(source, Path) else source).astype(np.int64)
    except errors.InputError as error:
        where = str(source) if isinstance(source, Path) else f"text {index}"
        raise errors.InputError(f"{where}: {error.message}") from error


def _folders(place: Path, names: Sequence[str]) -> Texts:
    folders = [folder for folder in _inner(place) if _files(folder)]
    order = list(names) or [folder.name for folder in folders]
    if unknown := [folder.name for folder in folders if folder.name not in order]:
        raise errors.UsageError(f"{place / unknown[0]} is none of the class names; name the folders as the classes")
    files = [(path, order.index(folder.name)) for folder in folders for path in _files(folder)]
    return Texts([path for path, _ in files], np.array([label for _, label in files], np.int64), order)


def _inner(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt" and path.is_file())


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _read(path).splitlines() if line.strip()]


def _rows(path: Path) -> Texts:
    try:
        rows = [row for row in csv.reader(io.StringIO(_read(path), newline="")) if row and row[0].strip()]
    except csv.Error as error:
        raise errors.InputError(f"{path} is not a CSV file that can be read ({error}); correct it") from error
    if rows and len(rows[0]) > 1 and not _is_class(rows[0]):
        rows = rows[1:]
    texts = [row[0] for row in rows]
    if all(len(row) == 1 for row in rows):
        return Texts(texts, None, [])
    if wrong := [row[0] for row in rows if not _is_class(row)]:
        raise errors.InputError(
            f"{path} gives no class index behind {wrong[0][:40]!r}; write text and index in two columns, or texts alone"
        )
    return Texts(texts, np.array([min(int(row[1]), NO_CLASS) for row in rows], np.int64), [])


def _is_class(row: list[str]) -> bool:
    return len(row) > 1 and row[1].strip().isascii() and row[1].strip().isdigit()


def _read(path: Path) -> str:
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise errors.UsageError(f"{path} cannot be read ({error.strerror}); check the path") from error
