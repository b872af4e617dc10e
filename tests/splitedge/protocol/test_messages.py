"""The JSON of messages whose Python names differ from the wire's."""

from __future__ import annotations

import json

import pytest

from splitedge.protocol.messages import DryRun, LinkEstimate, MeasuredTimes, PlanRequest, decode, encode


@pytest.mark.parametrize(
    ("times", "wire"),
    [
        (MeasuredTimes(), {}),
        (MeasuredTimes({"a" * 64: 1.5}), {"a" * 64: 1.5}),
        (MeasuredTimes({"a" * 64: 1.5}, 2.0, 3.0), {"a" * 64: 1.5, "sending": 2.0, "beside": 3.0}),
        (MeasuredTimes(overhead_ms=0.0), {"beside": 0.0}),
    ],
)
def test_measured_times_are_one_object_of_numbers(times: MeasuredTimes, wire: dict[str, float]) -> None:
    assert times.to_wire() == wire
    assert MeasuredTimes.from_wire(wire) == times


def test_a_plan_request_keeps_its_keys() -> None:
    request = PlanRequest(
        model="m", profile={}, link=LinkEstimate(1.0, 2.0, 3.0), measured={"beside": 1.0}, dry_run=DryRun("b", [1.0])
    )
    value = json.loads(encode(request))
    assert value["rehearsal"] == {"bundle": "b", "ms": [1.0]}
    assert value["measured"] == {"beside": 1.0}
    assert decode(encode(request), PlanRequest) == request
