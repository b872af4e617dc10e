"""The queue in front of head and link.

It lets few frames ahead, so that each is encoded for the current link, and drops frames that wait too long.

A queued frame costs only its input: it has not passed the head, and its codec is not chosen. The order is first in,
first out, so the oldest frame ages out first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from splitedge import errors
from splitedge.link.stream_client import AGED


class FrameQueue:
    """Lets ``places`` frames ahead at a time. For one event loop."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def place(self, deadline: float | None = None) -> AsyncIterator[Callable[[], None]]:
        """Hold a place until the yielded function is called or the block ends.

        Raises `errors.AgedError` if no place is free by ``deadline``, in the event loop's time.
        """
        await self._enter(deadline)
        held = True

        def leave() -> None:
            nonlocal held
            if held:
                held = False
                self._leave()

        try:
            yield leave
        finally:
            leave()

    def waiting(self, since: float) -> int:
        """Frames that have waited at least since ``since``. Any thread may call it: it copies the queue in one step."""
        return sum(came <= since for came, future in tuple(self._waiting) if not future.done())

    async def _enter(self, deadline: float | None) -> None:
        if self._free > 0:
            self._free -= 1
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        entry = loop.time(), turn
        self._waiting.append(entry)
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif turn.done() and not turn.cancelled():  # it got a place at that moment: pass it on
                self._leave()
            if isinstance(error, TimeoutError):
                raise errors.AgedError(AGED) from None
            raise

    def _leave(self) -> None:
        while self._waiting:
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
