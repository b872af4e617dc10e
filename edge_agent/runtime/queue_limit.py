"""The bound on queued frames, in frames and bytes. The next frame is refused at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from splitedge import errors, limits


class QueueLimit:
    """Counts frames and bytes from acceptance to answer. For one event loop; only `wait_for_room` waits."""

    def __init__(self, frames: int = limits.MAX_QUEUED_FRAMES, size: int = limits.MAX_QUEUED_BYTES) -> None:
        self.max_frames, self.max_bytes = frames, size
        self.frames = 0
        self.bytes = 0
        self._busy_s, self._busy_since = 0.0, 0.0
        self._freed = asyncio.Event()

    @property
    def busy_s(self) -> float:
        """Seconds during which at least one frame was in progress."""
        return self._busy_s + (time.monotonic() - self._busy_since if self.frames else 0.0)

    @contextmanager
    def slot(self, size: int) -> Iterator[None]:
        """Hold a place for a frame of ``size`` bytes. Raises `errors.BusyError` if there is none."""
        if not self._fits(size):
            raise errors.BusyError(
                f"the queue is full ({self.frames} frames, {self.bytes} bytes); try again when some are answered",
                frames=self.frames,
                bytes=self.bytes,
                reason="queue",
            )
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

    async def wait_for_room(self, size: int) -> None:
        """Wait until `slot` accepts ``size`` bytes, for a caller that must not lose a frame."""
        while not self._fits(size):
            self._freed.clear()
            await self._freed.wait()

    def _fits(self, size: int) -> bool:
        """A lone frame always fits: `limits.MAX_IMAGE_BYTES` bounds it."""
        return not self.frames or (self.frames < self.max_frames and self.bytes + size <= self.max_bytes)
