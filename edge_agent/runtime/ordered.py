"""Work on many items at once, with the results in the order of the items."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

from splitedge import limits

T = TypeVar("T")
R = TypeVar("R")

IN_PROGRESS: Final = limits.WINDOW + limits.FRAMES_AHEAD  # frames that keep head and link busy
_END: Final[Any] = object()


async def in_order(
    items: Iterable[T] | AsyncIterable[T], work: Callable[[T], Awaitable[R]], window: int
) -> AsyncGenerator[tuple[T, R], None]:
    """Each item with the result of ``work``, in order, as soon as it is there.

    At most ``window`` items are in progress.

    A plain iterable is read in a thread, so it may block. The first exception ends the iteration and cancels the items
    behind it; so does closing this generator.
    """
    source = aiter(items) if isinstance(items, AsyncIterable) else _read(iter(items))
    coming: asyncio.Task[T] | None = asyncio.create_task(_next(source))
    tasks: deque[tuple[T, asyncio.Task[R]]] = deque()
    try:
        while coming is not None or tasks:
            waiting: set[asyncio.Task[Any]] = {tasks[0][1]} if tasks else set()
            if coming is not None and len(tasks) < window:
                waiting.add(coming)
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if coming is not None and coming in done:
                item, coming = coming.result(), None
                if item is not _END:
                    tasks.append((item, asyncio.create_task(_call(work, item))))
                    coming = asyncio.create_task(_next(source))
            while tasks and tasks[0][1].done():
                item, task = tasks.popleft()
                yield item, task.result()
    finally:
        left: list[asyncio.Task[Any]] = [task for _, task in tasks] + ([coming] if coming is not None else [])
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _next(source: AsyncIterator[T]) -> T:
    return await anext(source, _END)


async def _call(work: Callable[[T], Awaitable[R]], item: T) -> R:
    return await work(item)


async def _read(items: Any) -> AsyncIterator[Any]:
    """The items of a plain iterator, each read in a thread."""
    while (item := await asyncio.to_thread(next, items, _END)) is not _END:
        yield item
