"""A cache folder of calibration results, so that only changed results are computed again.

The name of an entry is a hash of everything that it depends on, source code included. An entry is a file: the SHA-256
of the content, then the content. A truncated or changed entry counts as missing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration import arrays
from splitedge import errors, files, limits

T = TypeVar("T")
Part: TypeAlias = bytes | str | NDArray[np.generic]
_DIGEST: Final = hashlib.sha256().digest_size
_ROOT: Final = Path(__file__).resolve().parents[2]
_PACKAGES: Final = ("numpy", "onnx", "onnxruntime", "PIL")
_PROGRAMS: Final = ("calibration", "splitedge/codec", "splitedge/head", "kernels")


def key(kind: str, *parts: Part) -> str:
    """The name of an entry: a hash of ``kind``, of ``parts`` (arrays with type and shape), and of the source code."""
    made = hashlib.sha256(programs(_ROOT))
    for part in (kind, *parts):
        told = f"{part.dtype.str} {part.shape} " if isinstance(part, np.ndarray) else ""
        data = part.encode() if isinstance(part, str) else part
        data = np.ascontiguousarray(data).tobytes() if isinstance(data, np.ndarray) else data
        made.update(f"{told}{len(data)} ".encode() + data)
    return made.hexdigest()


@functools.cache
def programs(root: Path) -> bytes:
    """Hash of the sources in ``root`` and of the packages that compute entries.

    The sources replace version numbers of their own, which are easily forgotten.
    """
    made = hashlib.sha256(" ".join(f"{name} {_version(name)}" for name in _PACKAGES).encode())
    for folder in _PROGRAMS:
        for path in sorted((root / folder).rglob("*.py")):
            source = path.read_bytes()
            made.update(f"{path.relative_to(root)} {len(source)} ".encode() + source)
    return made.digest()


def _version(module: str) -> str:
    """The version of ``module``, which several packages may provide (onnxruntime, onnxruntime-gpu)."""
    return str(importlib.import_module(module).__version__)


def remembered(cache: Cache | None, name: str, kind: type[T], make: Callable[[], T]) -> T:
    """The entry ``name``, of type ``kind``; computed by ``make`` and stored if the cache lacks it.

    The result is the same to the bit in all cases, because it always passes through msgspec's JSON.
    """
    known = cache.read(name) if cache else None
    if known is None:
        known = msgspec.json.encode(make())
        if cache:
            cache.write(name, known)
    try:
        return msgspec.json.decode(known, type=kind)
    except msgspec.ValidationError as error:  # infinity and NaN are null in JSON
        raise errors.ModelError(
            "the model computes values too large for float32; check its weights and the preprocessing",
            reason="too-large",
        ) from error


def remembered_arrays(
    cache: Cache | None, name: str, make: Callable[[], Mapping[str, NDArray[Any]]]
) -> Mapping[str, NDArray[Any]]:
    """As `remembered`, for arrays by name, in the order of their names."""
    known = cache.read(name) if cache else None
    made = make() if known is None else arrays.load(known)
    if cache and known is None:
        cache.write(name, arrays.save(made))
    return dict(sorted(made.items()))


class Cache:
    """Entries in ``folder``, which is created if missing. Several processes may share it.

    Read and write failures raise `errors.StoreError`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        """The entry ``name`` (of `key`) if it exists and is intact, else None. Marks it as used now."""
        try:
            data = (self.folder / name).read_bytes()
            os.utime(self.folder / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        whole = hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]
        return data[_DIGEST:] if whole else None

    def write(self, name: str, data: bytes) -> None:
        """Store ``data`` as ``name`` atomically."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.replace(
                self.folder / name, hashlib.sha256(data).digest() + data, durable=False
            )  # a damaged entry is a miss
        except OSError as error:
            raise self._unusable(error) from error

    def prune(self) -> None:
        """Delete the least recently used entries beyond `limits.CALIBRATION_CACHE_BYTES`.

        Also deletes unfinished files of killed processes.
        """
        try:
            room, oldest = limits.CALIBRATION_CACHE_BYTES, time.time() - limits.LEFTOVER_AGE
            for path, used in sorted(_entries(self.folder), key=lambda entry: -entry[1].st_mtime):
                room -= used.st_size
                if room < 0 or (path.name.startswith(files.PARTIAL) and used.st_mtime < oldest):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> errors.StoreError:
        return errors.StoreError(
            f"the cache folder {self.folder} is not usable ({error.strerror or error}); "
            "free space, make it writable, or delete it",
            reason="cache-folder",
        )


def _entries(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """The files of ``folder``, which may be missing. Files that another process deletes meanwhile are skipped."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            found.append((path, path.stat()))
    return found
