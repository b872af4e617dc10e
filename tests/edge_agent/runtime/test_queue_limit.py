from __future__ import annotations

import asyncio

import pytest

from edge_agent.runtime import queue_limit
from edge_agent.runtime.queue_limit import QueueLimit
from splitedge import errors


def test_the_frame_beyond_the_bound_is_refused_and_its_place_is_given_back():
    limit = QueueLimit(frames=2, size=100)
    with limit.slot(10), limit.slot(10):
        with pytest.raises(errors.BusyError) as caught, limit.slot(10):
            pass
        assert caught.value.http_status == 429
    assert (limit.frames, limit.bytes) == (0, 0)


def test_bytes_are_bounded_too_but_a_lone_frame_always_fits():
    limit = QueueLimit(frames=9, size=100)
    with limit.slot(101), pytest.raises(errors.BusyError), limit.slot(1):
        pass
    with limit.slot(60), pytest.raises(errors.BusyError), limit.slot(41):
        pass


def test_the_time_with_frames_under_way_is_counted_once_however_many_there_are(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(queue_limit.time, "monotonic", lambda: now[0])
    limit = QueueLimit()
    first, second = limit.slot(1), limit.slot(1)
    now[0] = 12.0
    with first:
        now[0] = 13.0
        with second:
            now[0] = 14.0
            assert limit.busy_s == 2.0
        now[0] = 15.0
    now[0] = 20.0
    assert limit.busy_s == 3.0
    with limit.slot(1):
        now[0] = 21.0
    assert limit.busy_s == 4.0


async def test_a_patient_caller_waits_for_room():
    limit, order = QueueLimit(frames=1, size=100), []

    async def patient(name: int) -> None:
        await limit.wait_for_room(50)
        with limit.slot(50):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.wait_for(asyncio.gather(*(patient(i) for i in range(5))), 5)
    assert sorted(order) == [0, 1, 2, 3, 4]
