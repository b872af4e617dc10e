"""The bound on what waits: so many frames and so many bytes, and the next one is refused at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edge_agent import errors, limits


class Admission:
    """Counts frames and bytes between their coming and their answer. For one event loop; nothing here waits."""

    def __init__(self, frames: int = limits.MAX_QUEUED_FRAMES, size: int = limits.MAX_QUEUED_BYTES) -> None:
        self.max_frames, self.max_bytes = frames, size
        self.frames = 0
        self.bytes = 0

    @contextmanager
    def slot(self, size: int) -> Iterator[None]:
        """Hold a place for a frame of ``size`` bytes. Raises `errors.BusyError` if there is none."""
        if self.frames >= self.max_frames or self.bytes + size > self.max_bytes:
            raise errors.BusyError(
                f"{self.frames} frames of {self.bytes} bytes are waiting already; try again when some are answered",
                frames=self.frames, bytes=self.bytes,
            )  # fmt: skip
        self.frames += 1
        self.bytes += size
        try:
            yield
        finally:
            self.frames -= 1
            self.bytes -= size
