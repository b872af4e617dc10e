from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_agent.runtime.results import BUCKETS, Counters, Result, Timing, from_json, phases, to_json, top_classes
from splitedge import errors
from tests.raising import raises


def test_a_class_without_a_label_is_named_by_its_index():
    assert [c.label for c in top_classes([(0, 0.5), (7, 0.5)], ["cat"])] == ["cat", "7"]


def test_every_ending_is_counted_once():
    counters = Counters()
    for error in (
        errors.BusyError("full"),
        errors.InputError("bad"),
        errors.LinkLostError("gone"),
        errors.InputError("bad"),
    ):
        counters.count_error(error)
    for total in (0.5, 3.0, 1e6):
        counters.count_answer(
            Result([], Timing(head_ms=total / 2, link_ms=total / 2, total_ms=total), 10, "p", "split")
        )
    counters.count_answer(Result([], Timing(), 0, "p", "split", cached=True, saved_bytes=10))
    assert counters.dropped == {"queue_full": 1}
    assert counters.failed == {"input": 2, "link_lost": 1}
    assert (counters.answered, counters.reused, counters.total) == (3, 1, 8)
    assert (counters.payload_bytes, counters.saved_bytes) == (30, 10)
    assert sum(counters.latency) == counters.served == 4
    assert counters.latency[0] == 2
    assert counters.latency[len(BUCKETS)] == 1


def test_json_is_one_line_with_the_extras_first():
    line = to_json(Result(top_classes([(0, 1.0)], ["a\nb"]), Timing(total_ms=2.0), 3, "p", "split"), image="x.jpg")
    assert b"\n" not in line
    value = json.loads(line)
    assert next(iter(value)) == "image"
    assert value["top"] == [{"index": 0, "label": "a\nb", "probability": 1.0}]
    assert value["output"] is None


def test_json_holds_a_whole_output_as_nested_lists():
    output = np.array([[0.1, -2.0], [3.0, 4.5]], np.float32)
    value = json.loads(to_json(Result([], Timing(), 3, "p", "split", kind="tensor", output=output)))
    assert (value["kind"], value["top"]) == ("tensor", [])
    np.testing.assert_array_equal(np.array(value["output"], np.float32), output)


def test_stages_name_everything_but_the_total():
    assert [name for name, _ in phases(Timing())] == ["wait", "preprocess", "head", "encode", "link", "queue", "tail"]


@given(
    output=st.none()
    | arrays(np.float32, (2, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
    | arrays(np.int64, (4,)),
    ms=st.floats(0, 1e6),
)
def test_json_is_read_back(output, ms):
    made = Result(top_classes([(0, 0.1)], ["a"]), Timing(total_ms=ms), 3, "p", "split", rung=2, output=output)
    found = from_json(to_json(made, image="x"))
    assert msgspec.structs.replace(found, output=None) == msgspec.structs.replace(made, output=None)
    assert (found.output is None) == (output is None)
    if output is not None:
        assert found.output.dtype == output.dtype
        np.testing.assert_array_equal(found.output, output)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"\xff", b'{"top": 1, "timing": {}, "output": null}', b'{"top": [], "timing": {}, "output": null}',
             b'{"top": [], "timing": {}, "output": [[1], [1, 2]], "payload_bytes": 1, "plan": "p", "mode": "split"}'],
)  # fmt: skip
def test_json_that_is_no_result_is_refused(data):
    with raises(errors.ProtocolError, reason="malformed-answer"):
        from_json(data)
