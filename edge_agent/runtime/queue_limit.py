"""The bound on what waits: so many frames and so many bytes, and the next one is refused at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from splitedge import errors, limits


class Admission:
    """Counts frames and bytes between their coming and their answer. For one event loop; only `room` waits."""

    def __init__(self, frames: int = limits.MAX_QUEUED_FRAMES, size: int = limits.MAX_QUEUED_BYTES) -> None:
        self.max_frames, self.max_bytes = frames, size
        self.frames = 0
        self.bytes = 0
        self._busy_s, self._busy_since = 0.0, 0.0
        self._freed = asyncio.Event()

    @property
    def busy_s(self) -> float:
        """Seconds in which at least one frame was under way."""
        return self._busy_s + (time.monotonic() - self._busy_since if self.frames else 0.0)

    @contextmanager
    def slot(self, size: int) -> Iterator[None]:
        """Hold a place for a frame of ``size`` bytes. Raises `errors.BusyError` if there is none."""
        if not self._fits(size):
            raise errors.BusyError(
                f"{self.frames} frames of {self.bytes} bytes are waiting already; try again when some are answered",
                frames=self.frames, bytes=self.bytes,
            )  # fmt: skip
        if not self.frames:
            self._busy_since = time.monotonic()
        self.frames += 1
        self.bytes += size
        try:
            yield
        finally:
            self._busy_s = self.busy_s
            self.frames -= 1
            self.bytes -= size
            self._busy_since = time.monotonic()
            self._freed.set()

    async def room(self, size: int) -> None:
        """Wait until `slot` would take ``size`` bytes: for a caller that rather waits than loses a frame."""
        while not self._fits(size):
            self._freed.clear()
            await self._freed.wait()

    def _fits(self, size: int) -> bool:
        """A frame alone always fits: its own bound is `limits.MAX_IMAGE_BYTES`."""
        return not self.frames or (self.frames < self.max_frames and self.bytes + size <= self.max_bytes)
