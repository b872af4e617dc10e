"""What the agent keeps on disk: segments and tokenizers by their hash, and the profile of this machine. Never a frame."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from splitedge import errors, limits
from splitedge.head.segment import Header, parse_header

_SEGMENT = re.compile(r"[0-9a-f]{64}\.segment")
_TOKENIZER = re.compile(r"[0-9a-f]{64}\.tokenizer")
_PART = re.compile(r"[0-9a-f]{64}(-[0-9a-f]{64})?\.part")  # of one of these, or of the way to a segment from another
_PROFILE = re.compile(r"profile-[0-9a-f]{16}\.json")
_TIMINGS = re.compile(r"timings-[0-9a-f]{16}\.json")
_HEADER_BYTES = 256 * 1024  # one that is longer is not looked at
_STALE_S = 86_400.0  # a download that nobody went on with for a day


class Cache:
    """A folder. Segments and tokenizers come into it by `ServerClient.fetch_segment` and `fetch_tokenizer`, which check the hash whenever one is asked for.

    Every failure to read or write it is an `errors.StoreError`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory) as probe:
                probe.write(b"splitedge")
        except OSError as error:
            raise _unusable(directory, error) from error

    def held(self) -> list[str]:
        """SHA-256 of the segments that are here, the last used first."""
        return [path.stem for path in self._files(_SEGMENT)]

    def nearest(self, model: str, cut: str) -> Path | None:
        """The segment of ``model`` from which one that ends at the layer ``cut`` may be made: of that cut if there is one, the last used."""
        others = []
        for path, header in self._headers(model):
            if header.cut == cut:
                return path
            others.append(path)
        return others[0] if others else None

    def operators(self, model: str) -> dict[str, int]:
        """How many operators each segment of ``model`` has that is here, by SHA-256."""
        return {path.stem: len(header.ops) for path, header in self._headers(model)}

    def _headers(self, model: str) -> Iterator[tuple[Path, Header]]:
        """Segments of ``model``, the last used first."""
        for path in self._files(_SEGMENT):
            try:
                with path.open("rb") as file:
                    header = parse_header(file.read(_HEADER_BYTES))[0]
            except (OSError, errors.SegmentError):  # one that is fetched again if it is ever asked for
                continue
            if header.model == model:
                yield path, header

    def read(self, path: Path) -> bytes:
        """A segment or tokenizer that was fetched; it counts as used now."""
        try:
            os.utime(path)
            return path.read_bytes()
        except OSError as error:
            raise _unusable(self.directory, error) from error

    def prune(self) -> None:
        """Keep the last used segments and tokenizers, the newest profiles (`limits`), and no part of a download that was given up."""
        try:
            old = self._files(_SEGMENT)[limits.CACHED_SEGMENTS :] + self._files(_PROFILE)[limits.CACHED_PROFILES :]
            old += self._files(_TIMINGS)[limits.CACHED_PROFILES :] + self._files(_TOKENIZER)[limits.CACHED_SEGMENTS :]
            for path in old + [p for p in self._files(_PART) if time.time() - p.stat().st_mtime > _STALE_S]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self.directory, error) from error

    def _files(self, pattern: re.Pattern[str]) -> list[Path]:
        try:
            found = [path for path in self.directory.iterdir() if pattern.fullmatch(path.name)]
            return sorted(found, key=lambda path: -path.stat().st_mtime)
        except OSError as error:
            raise _unusable(self.directory, error) from error


def _unusable(directory: Path, error: OSError) -> errors.StoreError:
    return errors.StoreError(
        f"the cache folder {directory} cannot be used ({error.strerror or error}); free space, make it writable, or set `cache_dir`"
    )
