"""Files that a command writes where its user says: checked before the work begins, which may take minutes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Literal, get_args

from splitedge import errors

PictureForm = Literal["png", "svg"]


def picture_form(name: str) -> PictureForm:
    """The picture format of the file ``name``. Raises `errors.UsageError` for another than PNG and SVG."""
    forms: tuple[PictureForm, ...] = get_args(PictureForm)
    for form in forms:
        if name.lower().endswith(f".{form}"):
            return form
    raise errors.UsageError(f"{name[-40:]} is not a picture format that splitedge draws; end the name in .svg or .png")


def require_writable(path: Path) -> None:
    """Return if ``path`` can be written; a file that is there keeps its content. Raises as `write` does."""
    try:
        there = path.exists()
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def make_folder(path: Path) -> None:
    """Make the folder ``path`` unless it is there. Raises `errors.StoreError` if it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise errors.StoreError(
            f"files cannot be written to the folder {path} ({error.strerror}); name another"
        ) from error


def write(path: Path, data: bytes) -> None:
    """The file is written whole or not at all. Raises `errors.StoreError` if ``path`` cannot be written."""
    try:
        if path.exists() and not path.is_file():  # a device or a pipe, which nothing can take the place of
            path.write_bytes(data)
        else:
            _replace(path.resolve(), data)
    except OSError as error:
        raise _unwritable(path, error) from error


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name[:200]}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> errors.StoreError:
    return errors.StoreError(f"{path} cannot be written ({error.strerror}); name another file")
