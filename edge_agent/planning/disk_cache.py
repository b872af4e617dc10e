"""The agent's cache folder: segments and tokenizers by their hash, and this machine's measurements.

It never holds a frame.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from edge_agent import config
from edge_agent.config import Settings
from kernels import warm
from kernels.cache import cache_base
from splitedge import errors, files, limits
from splitedge.head.segment import Header, parse_header

T = TypeVar("T")

_SEGMENT: Final = re.compile(r"[0-9a-f]{64}\.segment")
#: An unfinished download of a file, or of a patch from one segment to another; an unfinished `write`.
_PART: Final = re.compile(rf"[0-9a-f]{{64}}(-[0-9a-f]{{64}})?\.part|{re.escape(files.PARTIAL)}[0-9a-f]+")
#: The files of each kind that `DiskCache.prune` keeps: the last used. Measurements have one file for each build of the
#: kernels.
_KEPT: Final = {
    _SEGMENT: limits.CACHED_SEGMENTS,
    re.compile(r"[0-9a-f]{64}\.tokenizer"): limits.CACHED_SEGMENTS,
    re.compile(r"profile-[0-9a-f]{16}\.json"): limits.CACHED_PROFILES,
    re.compile(r"timings-[0-9a-f]{16}\.json"): limits.CACHED_PROFILES,
    re.compile(r"rehearsals-[0-9a-f]{16}\.json"): limits.CACHED_PROFILES,
}
_HEADER_BYTES: Final = 256 * 1024  # segments with a longer header are skipped
_STALE_S: Final = 86_400.0  # an unfinished file untouched for a day is removed


def folder(settings: Settings) -> Path:
    """The cache folder that ``settings`` name, else the default one."""
    return config.path_of(settings.cache_dir) if settings.cache_dir else cache_base()


def writable(settings: Settings, environ: Mapping[str, str] = os.environ) -> tuple[Settings, errors.StoreError | None]:
    """``settings`` with a cache folder that can be written.

    If theirs cannot be (a full disk, a read-only file system), a service uses its ``RUNTIME_DIRECTORY``, which is in
    memory and starts with the measurements of the cache folder. The error says why.
    """
    place = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if not place:
        return settings, None
    old, new = folder(settings), Path(place)
    try:
        DiskCache(old)
    except errors.StoreError as error:
        with suppress(OSError):
            for path in [*old.glob("*-*.json"), old / "device-name"]:
                if path.is_file() and path.stat().st_size <= limits.MAX_DRY_RUNS_BYTES:
                    shutil.copy(path, new)
        return msgspec.structs.replace(settings, cache_dir=str(new)), error
    return settings, None


def write(path: Path, data: bytes) -> None:
    """Write ``path`` in the cache folder atomically. Raises `errors.StoreError`."""
    try:
        files.replace(path, data)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_json(path: Path, kind: type[T], limit: int) -> T | None:
    """The ``kind`` in the JSON file ``path``.

    None for a missing or damaged file, and one of another version. Raises `errors.StoreError`.
    """
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(limit), type=kind)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    except OSError as error:
        raise errors.StoreError(
            f"{path} cannot be read ({error.strerror}); make it readable, or set `cache_dir`", reason="unreadable"
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` among threads and processes. Raises `errors.StoreError`.

    The lock is a file of its own, since `write` replaces ``path``.
    """
    try:
        file = path.with_suffix(".lock").open("wb")
    except OSError as error:
        raise _unwritable(path, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_file(settings: Settings, kind: str) -> Path:
    """The file for measurements of ``kind`` that hold for this build of the kernels."""
    return folder(settings) / f"{kind}-{warm.fingerprint()}.json"


class DiskCache:
    """A folder of segments and tokenizers. `ServerClient` downloads into it and verifies each file's hash on every use.

    Every failure to read or write the folder is an `errors.StoreError`.
    """

    def __init__(self, directory: Path) -> None:
        """Creates the folder and checks that it is writable."""
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory) as probe:
                probe.write(b"splitedge")
        except OSError as error:
            raise _unusable(directory, error) from error

    def held(self) -> list[str]:
        """SHA-256 of the segments in the cache, last used first."""
        return [path.stem for path in self._files(_SEGMENT)]

    def nearest(self, model: str, cut: str) -> Path | None:
        """The best segment of ``model`` to patch into one that ends at layer ``cut``: the last used with that cut, else
        the last used.
        """
        others = []
        for path, header in self._headers(model):
            if header.cut == cut:
                return path
            others.append(path)
        return others[0] if others else None

    def operators(self, model: str) -> dict[str, int]:
        """The number of operators of each segment of ``model`` in the cache, by SHA-256."""
        return {path.stem: len(header.ops) for path, header in self._headers(model)}

    def _headers(self, model: str) -> Iterator[tuple[Path, Header]]:
        """Segments of ``model``, last used first."""
        for path in self._files(_SEGMENT):
            try:
                with path.open("rb") as file:
                    header = parse_header(file.read(_HEADER_BYTES))[0]
            except (OSError, errors.SegmentError):  # a damaged file is downloaded again when it is needed
                continue
            if header.model == model:
                yield path, header

    def read(self, path: Path) -> bytes:
        """The content of a downloaded file, which becomes the last used."""
        try:
            os.utime(path)
            return path.read_bytes()
        except OSError as error:
            raise _unusable(self.directory, error) from error

    def prune(self) -> None:
        """Remove all but the last used files of each kind (`limits`), and unfinished files that nothing continues."""
        try:
            old = [path for pattern, count in _KEPT.items() for path in self._files(pattern)[count:]]
            stale = [path for path in self._files(_PART) if time.time() - path.stat().st_mtime > _STALE_S]
            for path in old + stale:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self.directory, error) from error

    def _files(self, pattern: re.Pattern[str]) -> list[Path]:
        """The files whose name matches ``pattern``, last used first."""
        try:
            found = [path for path in self.directory.iterdir() if pattern.fullmatch(path.name)]
            return sorted(found, key=lambda path: -path.stat().st_mtime)
        except OSError as error:
            raise _unusable(self.directory, error) from error


def _unwritable(path: Path, error: OSError) -> errors.StoreError:
    return errors.StoreError(
        f"{path} cannot be written ({error.strerror}); free space, make it writable, or set `cache_dir`",
        reason="cannot-write",
    )


def _unusable(directory: Path, error: OSError) -> errors.StoreError:
    return errors.StoreError(
        f"the cache folder {directory} cannot be used ({error.strerror or error}); free space, make it writable, or "
        "set `cache_dir`",
        reason="cache-folder",
    )
