"""The queue: who goes ahead, who ages out, and that no place is lost."""

from __future__ import annotations

import asyncio
import time

import pytest

from edge_agent.runtime.frame_queue import FrameQueue
from splitedge import errors


async def hold(queue: FrameQueue, log: list[int], number: int, seconds: float, age: float | None = None) -> None:
    deadline = None if age is None else asyncio.get_running_loop().time() + age
    async with queue.place(deadline):
        log.append(number)
        await asyncio.sleep(seconds)


async def free(queue: FrameQueue, places: int) -> bool:
    """Whether so many places are free, and no more."""
    async with asyncio.timeout(30):
        entered = [queue.place() for _ in range(places)]
        for one in entered:
            await one.__aenter__()
        with pytest.raises(errors.AgedError):
            await hold(queue, [], 0, 0.0, age=0.01)
        for one in entered:
            await one.__aexit__(None, None, None)
    return True


async def test_places_are_given_in_turn():
    queue, log = FrameQueue(2), []
    await asyncio.gather(*(hold(queue, log, i, 0.001) for i in range(20)))
    assert log == list(range(20))
    assert await free(queue, 2)


async def test_a_place_that_is_left_early_is_given_on_once():
    queue, log = FrameQueue(1), []
    async with queue.place() as leave:
        later = asyncio.create_task(hold(queue, log, 1, 0.0))
        await asyncio.sleep(0)
        leave()
        leave()
        await later
    assert log == [1]
    assert await free(queue, 1)


async def test_what_waits_too_long_is_dropped_oldest_first_and_the_rest_goes_on():
    queue, log = FrameQueue(1), []
    tasks = [asyncio.create_task(hold(queue, log, 0, 0.1))]
    tasks += [asyncio.create_task(hold(queue, log, i, 0.0, age=0.03 * i)) for i in range(1, 3)]
    tasks.append(asyncio.create_task(hold(queue, log, 3, 0.0)))
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(f) for f in found] == [type(None), errors.AgedError, errors.AgedError, type(None)]
    assert log == [0, 3]
    assert await free(queue, 1)


async def test_cancelled_waiters_lose_no_place():
    queue, log = FrameQueue(1), []
    for pause in (0.0, 0.001, 0.002, 0.003):
        first = asyncio.create_task(hold(queue, log, 0, 0.002))
        waiting = [asyncio.create_task(hold(queue, log, 1, 0.0)) for _ in range(3)]
        await asyncio.sleep(pause)
        for task in waiting[:2]:
            task.cancel()
        await asyncio.gather(first, *waiting, return_exceptions=True)
    assert await free(queue, 1)


async def test_it_counts_who_has_waited_since():
    queue = FrameQueue(1)
    tasks = [asyncio.create_task(hold(queue, [], i, 0.02)) for i in range(3)]
    await asyncio.sleep(0.005)
    assert queue.waiting(time.monotonic()) == 2
    assert queue.waiting(time.monotonic() - 10) == 0
    await asyncio.gather(*tasks)
    assert queue.waiting(time.monotonic()) == 0
