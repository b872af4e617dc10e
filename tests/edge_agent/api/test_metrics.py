from __future__ import annotations

import re

from edge_agent.api.metrics import render
from edge_agent.runtime.results import Counters, Result, Timing
from splitedge import errors

SAMPLE = re.compile(r'splitedge_[a-z_]+(\{([a-z_]+="(\\.|[^"\\\n])*",?)*\})? [-+0-9.e]+')


def filled() -> Counters:
    counters = Counters()
    for total in (1.0, 20.0, 1e5):
        counters.count_answer(Result([], Timing(head_ms=total, total_ms=total), 100, "p", "split"))
    counters.count_answer(Result([], Timing(head_ms=1.0, total_ms=1.0), 0, "p", "split", cached=True, saved_bytes=100))
    counters.count_error(errors.BusyError("full"))
    counters.count_error(errors.LinkLostError("gone"))
    return counters


def test_every_line_is_a_comment_or_a_sample_and_families_are_whole():
    text = render(filled(), {"queue_frames": 2, "reconnects_total": 1}, {"cut": 'a "quoted"\nname\\'})
    for line in text.splitlines():
        assert line.startswith("# ") or SAMPLE.fullmatch(line), line
    assert len(re.findall("# TYPE", text)) == len(set(re.findall(r"# TYPE (\S+)", text)))


def test_outcomes_payload_and_gauges_are_there():
    text = render(filled(), {"queue_frames": 2, "reconnects_total": 1}, {"id": "p"})
    assert 'splitedge_frames_total{outcome="answered",reason=""} 3' in text
    assert 'splitedge_frames_total{outcome="reused",reason=""} 1' in text
    assert "splitedge_saved_bytes_total 100" in text
    assert 'splitedge_frames_total{outcome="dropped",reason="queue_full"} 1' in text
    assert 'splitedge_frames_total{outcome="failed",reason="link_lost"} 1' in text
    assert "splitedge_payload_bytes_total 300" in text
    assert "# TYPE splitedge_reconnects_total counter" in text
    assert 'splitedge_plan_info{id="p"} 1' in text


def test_the_histogram_is_cumulative_and_ends_with_the_count():
    text = render(filled(), {}, {})
    counts = [int(n) for n in re.findall(r"frame_seconds_bucket\{le=\"[^\"]+\"\} (\d+)", text)]
    assert counts == sorted(counts)
    assert counts[-1] == 4
    assert "splitedge_frame_seconds_count 4" in text
