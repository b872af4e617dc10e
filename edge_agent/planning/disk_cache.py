"""The agent's cache folder: segments and tokenizers by their hash, and this machine's measurements. It never holds a frame."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_agent import config
from edge_agent.config import Settings
from kernels import jit
from splitedge import errors, limits
from splitedge.head.segment import Header, parse_header

_SEGMENT: Final = re.compile(r"[0-9a-f]{64}\.segment")
_PART: Final = re.compile(
    r"[0-9a-f]{64}(-[0-9a-f]{64})?\.part"
)  # of a download, or of a patch from one segment to another
#: The files of each kind that `DiskCache.prune` keeps: the last used. Measurements have one file for each build of the kernels.
_KEPT: Final = {
    _SEGMENT: limits.CACHED_SEGMENTS,
    re.compile(r"[0-9a-f]{64}\.tokenizer"): limits.CACHED_SEGMENTS,
    re.compile(r"profile-[0-9a-f]{16}\.json"): limits.CACHED_PROFILES,
    re.compile(r"timings-[0-9a-f]{16}\.json"): limits.CACHED_PROFILES,
    re.compile(r"rehearsals-[0-9a-f]{16}\.json"): limits.CACHED_PROFILES,
}
_HEADER_BYTES: Final = 256 * 1024  # segments with a longer header are skipped
_STALE_S: Final = 86_400.0  # an unfinished download untouched for a day is removed


def folder(settings: Settings) -> Path:
    """The cache folder that ``settings`` name, else the default one."""
    return config.path_of(settings.cache_dir) if settings.cache_dir else jit.cache_base()


def build_file(settings: Settings, kind: str) -> Path:
    """The file for measurements of ``kind`` that hold for this build of the kernels."""
    return folder(settings) / f"{kind}-{jit.CACHE_DIR.name.removeprefix('kernels-')}.json"


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
        """The best segment of ``model`` to patch into one that ends at layer ``cut``: the last used with that cut, else the last used."""
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
        """Remove all but the last used files of each kind (`limits`), and unfinished downloads that nothing continues."""
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


def _unusable(directory: Path, error: OSError) -> errors.StoreError:
    return errors.StoreError(
        f"the cache folder {directory} cannot be used ({error.strerror or error}); free space, make it writable, or set `cache_dir`"
    )
