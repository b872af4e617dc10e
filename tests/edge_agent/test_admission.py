from __future__ import annotations

import asyncio

import pytest

from edge_agent import errors
from edge_agent.admission import Admission


def test_the_frame_beyond_the_bound_is_refused_and_its_place_is_given_back():
    admission = Admission(frames=2, size=100)
    with admission.slot(10), admission.slot(10):
        with pytest.raises(errors.BusyError) as caught, admission.slot(10):
            pass
        assert caught.value.http_status == 429
    assert (admission.frames, admission.bytes) == (0, 0)


def test_bytes_are_bounded_too_but_a_lone_frame_always_fits():
    admission = Admission(frames=9, size=100)
    with admission.slot(101), pytest.raises(errors.BusyError), admission.slot(1):
        pass
    with admission.slot(60), pytest.raises(errors.BusyError), admission.slot(41):
        pass


async def test_a_patient_caller_waits_for_room():
    admission, order = Admission(frames=1, size=100), []

    async def patient(name: int) -> None:
        await admission.room(50)
        with admission.slot(50):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.wait_for(asyncio.gather(*(patient(i) for i in range(5))), 5)
    assert sorted(order) == [0, 1, 2, 3, 4]
