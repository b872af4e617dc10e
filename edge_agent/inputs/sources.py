"""Sources of frames for `edge-agent infer`: files, folders, globs, standard input."""

from __future__ import annotations

import glob
import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from splitedge import errors, limits

if TYPE_CHECKING:  # a command checks its files before it loads numpy
    import numpy as np
    from numpy.typing import NDArray

STDIN = "standard input"
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".npy"))


class Text(str):
    """A text for the model. `Agent.infer` refuses a plain ``str`` that names a file, but not a `Text`."""

    __slots__ = ()


def refuse_file_name(text: str) -> None:
    """Raise `errors.InputError` if ``text`` names an existing file and is not a `Text`. Reads the disk."""
    if isinstance(text, Text) or len(text) > limits.MAX_PATH:
        return
    with suppress(OSError, ValueError):  # not a valid file name
        if Path(text).is_file():
            raise errors.InputError(
                f"{spelled(text)} is the name of a file; pass pathlib.Path(...) for the file, or edge_agent.Text(...) "
                "for the text",
                reason="file-name",
            )


class Source(NamedTuple):
    """One frame that is not read yet.

    ``read`` returns a text or bytes; it blocks, and raises `errors.InputError`. ``path``: its file, if it has one.

    ``name`` is printable: bytes of a file name that are not UTF-8 are escaped, as in ``caf\\xe9.jpg``.
    """

    name: str
    read: Callable[[], bytes | str]
    path: Path | None = None


def spoken(text: str) -> Source:
    """A text from the command line."""
    shown = spelled(text)
    return Source(shown if len(shown) <= 60 else f"{shown[:59]}…", partial(_unicode, Text(text)))


def spelled(name: str | Path) -> str:
    """``name``, a path or a command line argument, with bytes that are not UTF-8 escaped."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _unicode(text: str) -> str:
    if spelled(text) != text:
        raise errors.InputError(f"the text {spelled(text)[:60]} is not UTF-8; send it as UTF-8", reason="not-utf8")
    return text


def expand(pattern: str, stdin: BinaryIO) -> Iterator[Source]:
    """The frames that ``pattern`` names.

    ``-`` is standard input. A folder stands for its images and .npy arrays, sorted by name; without any, for its .txt
    files.

    An existing file has precedence over a pattern, even if its name contains ``*`` or ``?``. Raises
    `errors.InputError` if nothing matches.
    """
    path = Path(pattern)
    if pattern == "-":
        yield Source(STDIN, partial(_read_stdin, stdin))
    elif path.is_dir():
        yield from _folder(path)
    elif path.exists() or not glob.has_magic(pattern):
        yield Source(spelled(pattern), partial(read_file, path), path)
    else:
        names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  pathlib refuses absolute patterns
        matches = [Path(name) for name in names]
        if not matches:
            raise errors.InputError(
                f"nothing matches {spelled(pattern)}; check the pattern", name=spelled(pattern), reason="no-matches"
            )
        yield from (Source(spelled(match), partial(read_file, match), match) for match in matches if not match.is_dir())


def read_bounded(file: BinaryIO, name: str, limit: int = limits.MAX_IMAGE_BYTES) -> bytes:
    """The content of ``file``. Holds at most ``limit`` + 1 bytes. Raises `errors.InputError` for a larger file."""
    data = file.read(limit + 1)
    if len(data) > limit:
        raise errors.InputError(
            f"{name} exceeds the limit of {limit} bytes; give a smaller file", name=name, reason="too-large"
        )
    return data


def file_bytes(path: Path) -> int:
    """The memory that `read_file` needs at most. Raises `errors.InputError` if ``path`` does not exist."""
    try:
        return min(path.stat().st_size, limits.MAX_IMAGE_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def read_file(path: Path) -> bytes:
    """The content of an image, text or array file.

    Raises `errors.InputError` for a file that is unreadable or too large.
    """
    try:
        with path.open("rb") as file:
            return read_bounded(file, spelled(path))
    except OSError as error:
        raise _unreadable(path, error) from error


def is_array(data: bytes) -> bool:
    """Whether ``data`` begins like a .npy array."""
    return data.startswith(b"\x93NUMPY")


def load_array(data: bytes, name: str = "the array") -> NDArray[np.generic]:
    """The array in ``data`` (.npy; never pickled). Raises `errors.InputError` for anything else."""
    if len(data) > limits.MAX_IMAGE_BYTES:
        raise errors.InputError(
            f"{name} has {len(data)} bytes; the limit is {limits.MAX_IMAGE_BYTES}",
            name=name,
            reason="too-large",
        )
    import numpy as np

    try:
        array: NDArray[np.generic] = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy's parser raises ValueError, EOFError, OSError, tokenize and Unicode errors
        raise errors.InputError(
            f"{name} is not a whole .npy array of numbers; save it with numpy.save", name=name, reason="not-an-array"
        ) from error
    if not isinstance(array, np.ndarray):
        raise errors.InputError(f"{name} is an archive of arrays; give one .npy array", name=name, reason="archive")
    return array


def _folder(path: Path) -> Iterator[Source]:
    try:
        every = sorted(file for file in path.iterdir() if file.is_file())
        files = [file for file in every if file.suffix.lower() in SUFFIXES]
        files = files or [file for file in every if file.suffix.lower() == ".txt"]
    except OSError as error:
        raise errors.InputError(
            f"the folder {spelled(path)} cannot be read ({error.strerror}); make it readable",
            name=spelled(path),
            reason="folder-unreadable",
        ) from error
    if not files:
        raise errors.InputError(
            f"the folder {spelled(path)} holds no images, arrays or texts; give another folder",
            name=spelled(path),
            reason="no-inputs",
        )
    yield from (Source(spelled(file), partial(read_file, file), file) for file in files)


def _read_stdin(stdin: BinaryIO) -> bytes:
    data = read_bounded(stdin, STDIN)
    if not data:
        raise errors.InputError(
            f"{STDIN} is empty; send an image, a text or a .npy array through it", name=STDIN, reason="empty"
        )
    return data


def _unreadable(path: Path, error: OSError) -> errors.InputError:
    return errors.InputError(
        f"{spelled(path)} cannot be read ({error.strerror})", name=spelled(path), reason="unreadable"
    )
