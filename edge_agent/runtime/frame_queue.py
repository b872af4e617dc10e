"""Where frames wait for head and link: so few are let ahead that each is coded for the link as it is, and those that wait too long are dropped.

What waits here costs nothing but its input: it has not been through the head, and its codec is not chosen. First come, first served, so what ages out
is always the oldest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from splitedge import errors
from splitedge.link.stream_client import AGED


class Gate:
    """Lets ``places`` frames ahead at once. For one event loop."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def place(self, deadline: float | None = None) -> AsyncIterator[Callable[[], None]]:
        """Hold a place, until the function that is yielded is called or the block ends.

        Raises `errors.AgedError` if there was none by ``deadline``, in the event loop's time.
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
        """Frames that have waited since then or longer. Any thread may ask: the copy is made in one step."""
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
            elif turn.done() and not turn.cancelled():  # it came just then: on to the next
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
