"""A plan in use on a board, for callers' frames or as a later stage of a chain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from edge_agent.runtime.engine import Encoded, Engine
from edge_agent.runtime.frame_queue import FrameQueue
from splitedge import limits
from splitedge.link.adaptation import Adaptation
from splitedge.link.stream_client import FrameStream, LinkState


class ActivePlan:
    """A plan's engine, its stream and adaptation (None if the board makes the answer itself), and the queue in front of
    them.
    """

    def __init__(self, engine: Engine, stream: FrameStream | None, adaptation: Adaptation | None) -> None:
        self.engine, self.stream, self.adaptation = engine, stream, adaptation
        self.queue = FrameQueue(limits.FRAMES_AHEAD)
        self.users = 0  # frames in progress
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def link_up(self) -> bool:
        """Whether frames flow, or need no link."""
        return self.stream is None or self.stream.state is LinkState.STREAMING

    @property
    def failed(self) -> bool:
        """Whether the stream ended with an error that no retry cures."""
        return self.stream is not None and self.stream.state is LinkState.FAILED

    @property
    def reconnects(self) -> int:
        return self.stream.stats.reconnects if self.stream is not None else 0

    @property
    def overloads(self) -> int:
        return self.adaptation.overloads if self.adaptation is not None else 0

    def choose(self, late_s: float) -> int:
        """The rung for the frame that is encoded now; runs in the head's thread.

        Frames queued for ``late_s`` count as late.
        """
        if self.adaptation is None:
            return self.engine.codec
        now = time.monotonic()
        return self.adaptation.choose(now, self.queue.waiting(now - late_s))

    def overhead_ms(self, encoded: Encoded, turn_ms: float) -> float:
        """The part of a frame's turn of ``turn_ms`` in the head's thread that is neither head nor codec."""
        return max(0.0, turn_ms - encoded.head_ms - encoded.encode_ms)

    @asynccontextmanager
    async def use(self) -> AsyncIterator[None]:
        """Count one frame in progress."""
        self.users += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.users -= 1
            if not self.users:
                self._idle.set()

    async def retire(self) -> None:
        """Let frames in progress end for at most `limits.DRAIN_TIMEOUT`, then close the stream."""
        await self.drained(limits.DRAIN_TIMEOUT)
        await self.close()

    async def drained(self, timeout: float) -> None:
        """Wait until no frame is in progress, at most ``timeout`` seconds.

        Closing the stream fails those that are left.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)

    async def close(self) -> None:
        """Close the stream."""
        if self.stream is not None:
            await self.stream.__aexit__(None, None, None)
