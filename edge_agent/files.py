"""Files that a command writes where its user says: checked before the work begins, which may take minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from edge_agent import errors

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


def write(path: Path, data: bytes) -> None:
    """Raises `errors.StoreError` if ``path`` cannot be written."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> errors.StoreError:
    return errors.StoreError(f"{path} cannot be written ({error.strerror}); name another file")
