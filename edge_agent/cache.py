"""What the agent keeps on disk: segments by their hash, and the profile of this machine. Never a frame."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from edge_agent import errors, limits
from edge_agent.head import segment
from edge_agent.protocol.messages import SegmentRef

_NAME = re.compile(r"[0-9a-f]{64}\.seg")


class Cache:
    """A folder of segments and profiles. Every failure to read or write it is an `errors.StoreError`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory) as probe:
                probe.write(b"splitedge")
        except OSError as error:
            raise _unusable(directory, error) from error

    def held(self) -> list[str]:
        """SHA-256 of the segments that are here, newest first; their contents are checked when they are read."""
        try:
            found = [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
            return [path.stem for path in sorted(found, key=lambda path: -path.stat().st_mtime)]
        except OSError as error:
            raise _unusable(self.directory, error) from error

    def path(self, ref: SegmentRef) -> Path:
        """Where the segment belongs. Raises `errors.ProtocolError` if its hash is none."""
        if not _NAME.fullmatch(f"{ref.sha256}.seg"):
            raise errors.ProtocolError(
                "the server names a segment by something that is not a SHA-256; upgrade the older side"
            )
        return self.directory / f"{ref.sha256}.seg"

    def read(self, ref: SegmentRef) -> bytes | None:
        """The segment, or None if it is not here or not whole; a damaged file is removed, to be fetched again."""
        path = self.path(ref)
        try:
            data = path.read_bytes() if path.exists() and path.stat().st_size == ref.size else b""
            if data and segment.digest(data) == ref.sha256:
                os.utime(path)
                return data
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self.directory, error) from error
        return None

    def prune(self) -> None:
        """Keep the `limits.CACHED_SEGMENTS` newest segments."""
        try:
            for sha256 in self.held()[limits.CACHED_SEGMENTS :]:
                (self.directory / f"{sha256}.seg").unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self.directory, error) from error


def _unusable(directory: Path, error: OSError) -> errors.StoreError:
    return errors.StoreError(
        f"the cache folder {directory} cannot be used ({error.strerror or error}); free space, make it writable, or set `cache_dir`"
    )
