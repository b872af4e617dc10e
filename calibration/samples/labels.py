"""Reads the classes of samples and class names from files and folders."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitedge import errors, limits

I64 = NDArray[np.int64]

#: File in a bundle's folder with class names that were set after calibration.
NAMES: Final = "names.json"
#: Stands for an index beyond 64 bits; no model has this many outputs.
NO_CLASS: Final = 2**63 - 1
_INTEGER: Final = re.compile(r"[+-]?[0-9]+")


class Labels(NamedTuple):
    """``classes`` [n]: class index of each sample.

    ``origins``: source of each, for messages. ``names``: of all classes, or empty.
    """

    classes: I64
    origins: list[str]
    names: list[str]

    def take(self, chosen: I64) -> Labels:
        """The labels of some samples."""
        return Labels(self.classes[chosen], [self.origins[i] for i in chosen], self.names)


def read(labels: str, files: Sequence[str], names: Sequence[str] = (), outputs: int | None = None) -> Labels:
    """The class of each of ``files``.

    These are names, paths below the samples' folder, or numbers for samples that are not files.

    ``labels`` is one of

    - a table with file, class, and optionally the class name. It is CSV with commas, semicolons or tabs, or file and
      class with a space between them. The class is an index or a name. Rows of other files, such as a heading, are
      skipped. A table of one column has one class per sample, in order;
    - a ``.npy`` of class indices in the order of the samples;
    - a regular expression with one group that matches the class in the file's name, such as ``_(\\d+)\\.jpg$``.

    ``names``: class names, if known. `by_name` maps class names to indices. Raises `errors.UsageError` and
    `errors.InputError`.
    """
    path = Path(labels)
    there = _is_file(path)
    if there and path.suffix == ".npy":
        return _of_array(path, len(files), names)
    found, origins, told = _of_table(path, files) if there else _of_pattern(labels, files)
    indices = [_index(label) for label in found]
    if all(index is None for index in indices):
        known, order = by_name(set(found), names, outputs, labels)
        return Labels(np.array([known[label] for label in found], np.int64), origins, order)
    if None in indices:
        wrong = indices.index(None)
        raise errors.InputError(
            f"{origins[wrong]}: {found[wrong][:40]!r} is not a class index; correct it", reason="not-an-index"
        )
    classes = np.array(indices, np.int64)
    return Labels(classes, origins, list(names) or _names_told(classes, told, origins, outputs))


def by_name(
    found: Collection[str], names: Sequence[str], outputs: int | None, where: str | Path
) -> tuple[dict[str, int], list[str]]:
    """The index of each class name in ``found``, and the names of all classes.

    The order is that of ``names``. Without ``names`` it is alphabetical, as in torchvision's ImageFolder, if their
    number matches the model's ``outputs`` (None: any number). Raises `errors.UsageError`.
    """
    if names:
        return _among(found, names, where), list(names)
    order = sorted(found)
    if outputs is not None and len(order) != outputs:
        raise errors.UsageError(
            f"{where} has {len(order)} classes and the model has {outputs}; give --class-names with one name for "
            "each class in the model's order, "
            "or --metric agreement to ignore the classes",
            reason="class-count",
        )
    if all(_INTEGER.fullmatch(name) for name in order) and order != sorted(order, key=int):
        raise errors.UsageError(
            f"{where}: the classes {', '.join(order[:3])} ... are numbers whose alphabetical order differs from "
            "their order by value; "
            "give --class-names with one name for each class in the model's order",
            reason="numeric-names",
        )
    return {name: index for index, name in enumerate(order)}, order


def read_names(path: Path) -> list[str]:
    """Read class names from a text file with one per line, a CSV file of index and name, or JSON.

    JSON is a list, or an object from index to name or from name to index.
    """
    text = read_text(path)
    try:
        names = _parsed(text, path.suffix.lower())
    except (ValueError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise errors.UsageError(
            f"{path} is not a list of class names; give one name per line", reason="not-names"
        ) from error
    if not names:
        raise errors.UsageError(f"{path} contains no class names; give one name per line", reason="no-names")
    if len(names) > limits.MAX_LABELS:
        raise errors.UsageError(
            f"{path} contains {len(names)} class names (the maximum is {limits.MAX_LABELS}); shorten it",
            reason="too-many-names",
        )
    return names


def read_text(path: Path) -> str:
    """The text in ``path``, UTF-8 with or without a byte-order mark.

    Raises `errors.UsageError` and `errors.InputError`.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise errors.UsageError(
            f"{path} cannot be read ({error.strerror}); check the path", reason="unreadable"
        ) from error
    except UnicodeDecodeError as error:
        raise errors.InputError(
            f"{path} is not UTF-8 text (byte {error.start}); save it in that encoding", reason="not-utf8"
        ) from error


# --- names ----------------------------------------------------------------------------------------------------------


def _parsed(text: str, suffix: str) -> list[str]:
    if suffix == ".json":
        value = json.loads(text)
        return _of_object(value) if isinstance(value, dict) else [_last(one) for one in value]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if suffix == ".csv":
        rows = [row for row in csv.reader(lines, delimiter=_delimiter(lines) or ",") if len(row) > 1]
        numbers = [[i for i, cell in enumerate(row) if cell.strip().isdecimal()] for row in rows]
        if rows:
            return _by_index({int(row[n[0]]): row[-1].strip() for row, n in zip(rows, numbers, strict=True) if n})
    return lines


def _of_object(value: dict[str, Any]) -> list[str]:
    if all(_INTEGER.fullmatch(key) for key in value):
        return _by_index({int(key): _last(one) for key, one in value.items()})
    return _by_index({int(one): key for key, one in value.items()})


def _last(value: object) -> str:
    return str(value[-1] if isinstance(value, list) else value)


def _by_index(names: dict[int, str]) -> list[str]:
    size = max(names, default=-1) + 1
    if size > limits.MAX_LABELS or min(names, default=0) < 0:
        raise ValueError("an index out of range")
    return [names.get(i, str(i)) for i in range(size)]


def _among(found: Collection[str], names: Sequence[str], where: str | Path) -> dict[str, int]:
    """The index of each of ``found`` in ``names``.

    A match is exact, or ignores case, spaces, dashes and underscores.
    """
    exact, loose = _places(names), _places([_loose(name) for name in names])
    known = {}
    for name in sorted(found):
        places = exact.get(name) or loose.get(_loose(name), [])
        if len(places) != 1:
            why = "is not a class name" if not places else f"is the name of the classes {places[0]} and {places[1]}"
            raise errors.UsageError(
                f"{where}: {name[:80]!r} {why} ({len(names)} names are known); correct one of them",
                reason="ambiguous-name" if places else "unknown-name",
            )
        known[name] = places[0]
    return known


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(name, []).append(index)
    return places


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()


def _names_told(classes: I64, told: Sequence[str], origins: Sequence[str], outputs: int | None) -> list[str]:
    """Names of all classes from the names beside the indices. Classes without a name are named by their index."""
    known: dict[int, tuple[str, str]] = {}
    for index, name, origin in zip(classes.tolist(), told, origins, strict=True):
        if name and known.setdefault(index, (name, origin))[0] != name:
            before, there = known[index]
            warnings.warn(
                f"{origin}: class {index} is {name[:40]!r}, and {before[:40]!r} in {there}: the third column is "
                "ignored",
                stacklevel=2,
            )
            return []
    size = outputs if outputs is not None else max(known, default=-1) + 1
    return [known[i][0] if i in known else str(i) for i in range(min(size, limits.MAX_LABELS))] if known else []


# --- labels ---------------------------------------------------------------------------------------------------------

_Found = tuple[list[str], list[str], list[str]]  # label of each sample, its source, and the name of its class


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a pattern that is too long for a file name
        return False


def _index(label: str) -> int | None:
    if not _INTEGER.fullmatch(label):
        return None
    return int(label) if len(label) < 19 else NO_CLASS


def _of_array(path: Path, count: int, names: Sequence[str]) -> Labels:
    found = load_array(path).reshape(-1)
    if len(found) != count:
        raise errors.UsageError(
            f"{path} has {len(found)} labels for {count} samples; give one for each", reason="label-count"
        )
    if found.dtype.kind == "f" and not (found == np.rint(found)).all():
        raise errors.InputError(
            f"{path} contains values that are not class indices; save integers", reason="not-indices"
        )
    limited = np.clip(found, -NO_CLASS, NO_CLASS) if found.dtype.kind in "uf" else found
    return Labels(limited.astype(np.int64), [f"{path.name}: entry {i}" for i in range(count)], list(names))


def load_array(path: Path) -> NDArray[np.generic]:
    """The numbers in the ``.npy`` file ``path``. Raises `errors.InputError`."""
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python and raises many types of errors
        raise errors.InputError(
            f"{path} is not a readable .npy array; save it with numpy.save", reason="not-npy"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or array.ndim == 0:
        raise errors.InputError(f"{path} is not an array of numbers; save one with numpy.save", reason="not-numbers")
    return array


def _of_table(path: Path, files: Sequence[str]) -> _Found:
    rows = [(f"{path.name}: row {number}", row) for number, row in enumerate(_rows(path), 1) if row]
    if rows and all(len(row) == 1 for _, row in rows):
        if len(rows) != len(files):
            raise errors.UsageError(
                f"{path} has {len(rows)} rows of one column for {len(files)} samples; "
                "give file and class in two columns, or one class for each sample",
                reason="row-count",
            )
        return [row[0] for _, row in rows], [origin for origin, _ in rows], [""] * len(rows)
    known = _by_file(path, rows, files)
    missing = [name for i, name in enumerate(files) if i not in known]
    if missing:
        raise errors.UsageError(
            f"{path} has no label for {len(missing)} of {len(files)} samples, for example {missing[0]}; "
            "its first column must contain the file names",
            reason="no-label",
            missing=len(missing),
        )
    chosen = [known[i] for i in range(len(files))]
    return [r[1] for _, r in chosen], [o for o, _ in chosen], [r[2] if len(r) > 2 else "" for _, r in chosen]


def _by_file(
    path: Path, rows: Sequence[tuple[str, list[str]]], files: Sequence[str]
) -> dict[int, tuple[str, list[str]]]:
    """The row of each file, by its index in ``files``.

    A row names a file by its path in the folder, or by its name if that is unique.
    """
    whole = {_key(name): i for i, name in enumerate(files)}
    last = {base: places[0] for base, places in _places([_base(name) for name in files]).items() if len(places) == 1}
    known: dict[int, tuple[str, list[str]]] = {}
    for origin, row in rows:
        place = whole.get(_key(row[0]), last.get(_base(row[0])))
        if place is None or len(row) < 2:
            continue
        before = known.setdefault(place, (origin, row))
        if before[1][1] != row[1]:
            raise errors.InputError(
                f"{origin}: {row[0]} has the class {row[1][:40]!r}, and {before[1][1][:40]!r} in "
                f"{before[0].removeprefix(f'{path.name}: ')}; "
                "keep one of them",
                reason="contradiction",
            )
    return known


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def _base(name: str) -> str:
    return _key(name).rpartition("/")[2]


def _rows(path: Path) -> Iterator[list[str]]:
    """Rows of stripped cells; a blank line gives an empty row."""
    text = read_text(path)
    delimiter = _delimiter(text.splitlines())
    if delimiter is None:
        yield from (_pair(line) for line in text.splitlines())
        return
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            yield [cell.strip() for cell in row] if any(cell.strip() for cell in row) else []
    except csv.Error as error:
        raise errors.InputError(f"{path} is not a readable CSV file ({error}); correct it", reason="not-csv") from error


def _delimiter(lines: Sequence[str]) -> str | None:
    """The delimiter: comma, semicolon or tab; None if no line contains any of them.

    It is the most frequent one in the first line with any of them.
    """
    line = next((line for line in lines if any(one in line for one in ",;\t")), None)
    return None if line is None else max(",;\t", key=line.count)


def _pair(line: str) -> list[str]:
    """Split a line into a file and its class.

    The class is the last word if that is a number, else everything after the first word.
    """
    words = line.split()
    if len(words) < 2:
        return words
    return line.strip().rsplit(None, 1) if _INTEGER.fullmatch(words[-1]) else line.strip().split(None, 1)


def _of_pattern(pattern: str, files: Sequence[str]) -> _Found:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise errors.UsageError(
            f"{pattern} is neither a labels file nor a regular expression; check it", reason="not-a-pattern"
        ) from error
    if expression.groups != 1:
        raise errors.UsageError(f"the labels file {pattern} does not exist; check the path", reason="no-file")
    matches = [expression.search(name) for name in files]
    missing = [name for name, match in zip(files, matches, strict=True) if not (match and match[1])]
    if missing:
        raise errors.UsageError(
            f"{pattern} finds no class in {len(missing)} of {len(files)} names, for example {missing[0]}; change it",
            reason="no-class-in-name",
        )
    return [match[1] for match in matches if match], [f"{name}: the name" for name in files], [""] * len(files)
