"""Atomic writes, and checks of the files that a user names before minutes of work begin."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, get_args

from splitedge import errors

#: Names of files that are not yet whole begin so.
PARTIAL: Final = ".new-"
PictureForm = Literal["png", "svg"]


def picture_form(name: str) -> PictureForm:
    """The picture format of the file ``name``. Raises `errors.UsageError` for another than PNG and SVG."""
    forms: tuple[PictureForm, ...] = get_args(PictureForm)
    for form in forms:
        if name.lower().endswith(f".{form}"):
            return form
    raise errors.UsageError(
        f"{name[-40:]} is not a picture format that splitedge draws; end the name in .svg or .png",
        reason="picture-format",
    )


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
            f"files cannot be written to the folder {path} ({error.strerror}); name another", reason="cannot-write"
        ) from error


def write(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """The file is written whole or not at all. ``mode``: as in `replace`. Raises `errors.StoreError` if ``path`` cannot
    be written.
    """
    try:
        if path.exists() and not path.is_file():  # a device or a pipe, which nothing can take the place of
            path.write_bytes(data)
        else:
            replace(path.resolve(), data, mode=mode)
    except OSError as error:
        raise _unwritable(path, error) from error


def rewrite(path: Path, data: bytes) -> None:
    """Like `write`, for a file that exists: permissions and, if this user may set them, owner and group stay."""
    try:
        old = path.stat()
        write(path, data, mode=stat.S_IMODE(old.st_mode))
        with suppress(PermissionError):
            os.chown(path, old.st_uid, old.st_gid)
        path.chmod(stat.S_IMODE(old.st_mode))
    except OSError as error:
        raise _unwritable(path, error) from error


def replace(path: Path, data: bytes, *, mode: int = 0o666, durable: bool = True) -> None:
    """Write ``path`` atomically: readers, and the next start after a power cut, see the old content or the new.

    The folder must exist. ``mode`` is subject to the umask. ``durable`` flushes file and folder to the disk; without it
    a power cut may leave an empty file. Raises `OSError`.
    """
    temporary = path.with_name(PARTIAL + secrets.token_hex(8))
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        rename(temporary, path, durable=durable)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def rename(source: Path, target: Path, *, durable: bool = True) -> None:
    """Rename the flushed file ``source`` to ``target`` in the same folder; ``durable`` also flushes the folder.

    Raises `OSError`.
    """
    source.replace(target)
    if durable:
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _unwritable(path: Path, error: OSError) -> errors.StoreError:
    return errors.StoreError(f"{path} cannot be written ({error.strerror}); name another file", reason="cannot-write")
