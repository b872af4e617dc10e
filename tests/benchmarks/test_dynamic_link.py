"""The arithmetic of the dynamic link: traces, the oracle, windows, the relay's direction."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import links
from benchmarks.dynamic_link import FASHION, Bench, Outcome, row, stand_in, summary, windows_held
from benchmarks.dynamic_plots import Lane, draw
from benchmarks.traces import SPARE, TRACES, UNLIMITED, Trace, oracle
from splitedge.link.estimate import wire_bytes
from splitedge.protocol.messages import Codec, Rung
from tests.small_server import make_plan, segment_file


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_is_the_same_every_time_and_binds(name: str) -> None:
    points = TRACES[name](30.0)
    assert points == TRACES[name](30.0)
    assert points[0][0] == 0.0
    assert all(a[0] < b[0] for a, b in pairwise(points))
    assert points[-1][1] > 0
    rates = [rate for _, rate in points]
    assert 0 <= min(rates) < 1.4
    assert 3.9 < max(rates) <= UNLIMITED


def test_quantpipes_schedule_keeps_its_proportions() -> None:
    rates = dict(TRACES["quantpipe"](100.0))
    assert list(rates) == [0.0, 10.0, 30.0, 50.0, 70.0]
    assert rates[10.0] / rates[30.0] == pytest.approx(10.0)
    assert rates[50.0] / rates[30.0] == pytest.approx(5.0)


def test_what_a_trace_carries_is_its_integral() -> None:
    trace = Trace([(0.0, 10.0), (1.0, 0.0), (3.0, 4.0)])
    assert trace.carried(0.5, 4.0) == pytest.approx(5.0 + 0.0 + 4.0)
    assert [trace.rate(at) for at in (0.0, 0.99, 1.0, 3.0, 99.0)] == [10.0, 10.0, 0.0, 4.0, 4.0]


def test_the_oracle_takes_the_most_accurate_rung_that_fits_a_window() -> None:
    trace = Trace([(0.0, 100.0 / SPARE), (1.0, 49.0 / SPARE), (2.0, 9.0)])
    assert oracle(trace, [100, 50, 20], 1.0, 3, 1.0) == [0, 2, None]


def outcome(frames: list[list[Any]], best: list[int | None]) -> Outcome:
    return Outcome("adaptive", "step_down", Trace([(0.0, 1.0)]), frames, {}, [], best)


def test_a_window_is_held_by_frames_that_are_answered_in_time() -> None:
    good = [[i / 20, i / 20 + 0.1, 8, 1, 0, "answered"] for i in range(20)]
    one_late = [*good[:19], [0.95, 1.9, 8, 1, 0, "answered"]]
    two_lost = [*good[:18], *([f[0], f[0] + 0.5, 0, -1, None, "aged"] for f in good[18:])]
    for frames, held in ((good, True), (one_late, True), (two_lost, False)):
        assert windows_held(outcome(frames, [0])) == [held]
    assert windows_held(outcome(two_lost, [None])) == [None]


def test_the_gap_is_to_the_oracles_codecs_on_the_same_frames() -> None:
    data = segment_file()
    right = np.array([[True, True, False, True], [True, False, False, False]])  # of two rungs
    plan = make_plan(
        "split",
        data,
        rungs=[
            Rung(payload_bytes=800, noise=0.0, drop_points=0.0, drop_high=0.1),
            Rung(payload_bytes=200, noise=0.1, drop_points=0.1, drop_high=0.2),
        ],
    )
    bench = Bench(
        FASHION, None, None, plan, right, np.array([True, True, True, True]), np.array([0, 1, 2, 3]), [810, 210]
    )  # type: ignore[arg-type]
    frames = [
        [0.0, 0.1, 400, 0, 0, "answered"],
        [0.5, 0.6, 600, 9, 1, "answered"],
        [1.0, 1.1, 200, 9, 1, "answered"],
        [2.0, 2.5, 0, -1, None, "aged"],
    ]
    found = outcome(frames, [0, None, 0])
    found.status = {"frames": {"answered": 3, "dropped": {"aged": 1}, "failed": {}}, "link": {"overloads_total": 0}}
    made = row(bench, found)
    assert made["gap of these frames"] == pytest.approx(
        100.0 * (1.0 - 0.5)
    )  # the third frame's window could not be held
    assert made["gap"] == pytest.approx(100.0 * (0.0 + (0.75 - 0.25)) / 2)  # by four samples, of two frames
    assert made["drop"] == pytest.approx(100.0 * (1.0 - 1 / 3))
    assert bench.sizes == [wire_bytes(810), wire_bytes(210)]
    assert (made["unaccounted"], made["lost"], made["answered"], made["bytes"]) == (0, 1, 3, 400.0)
    found.status["frames"]["dropped"] = {}
    assert row(bench, found)["unaccounted"] == 1


def test_a_width_that_the_ladder_lacks_is_stood_in_for_over_a_link_of_another_rate() -> None:
    plan = make_plan("split", segment_file())
    plan.cut.shape = [10, 10, 100]
    coded = Codec("entropy", 8, (0.0,), (0.1,), tables=((4096,),), table=(0,))
    plan.ladder = [Codec("minmax", 8, (0.0,), (0.1,)), coded, coded]
    plan.rungs = [
        Rung(payload_bytes=10_040, noise=0.0, drop_points=0.0, drop_high=0.1),
        Rung(payload_bytes=3_000, noise=0.1, drop_points=0.1, drop_high=0.2),
        Rung(payload_bytes=2_000, noise=0.1, drop_points=0.1, drop_high=0.2),
    ]
    assert stand_in(plan, 0) == stand_in(plan, 8) == 1.0
    assert stand_in(plan, 2) == pytest.approx(wire_bytes(2_540) / wire_bytes(2_000))
    assert stand_in(plan, 32) == pytest.approx(wire_bytes(40_040) / wire_bytes(10_040))


def test_the_summary_weighs_windows_and_frames() -> None:
    def made(name: str, held: float, windows: int, gap: float, answered: int) -> dict[str, Any]:
        rest = {"unaccounted": 0, "p99 ms": 1.0, "lost": 5}
        gaps = {"gap": gap, "gap of these frames": 2 * gap}
        return {"controller": name, "held %": held, "windows": windows, "answered": answered, **gaps, **rest}

    found = summary(
        [made("adaptive", 100.0, 30, 0.1, 100), made("adaptive", 50.0, 10, 0.5, 300), made("fixed8", 0.0, 10, 0.0, 1)]
    )
    assert found["held_percent"] == pytest.approx(87.5)
    assert found["accuracy_gap_points"] == pytest.approx(0.4)
    assert found["frames_gap_points"] == pytest.approx(0.8)
    assert (found["frames_unaccounted"], found["fixed8.held_percent"], found["held_percent_worst"]) == (0, 0, 50)


def test_a_picture_is_drawn(tmp_path: Any) -> None:
    lane = Lane("adaptive", [(0.1, 0), (1.2, 1)], [1.5], [True, False, None], [0, 1, None], "held 50 %")
    sizes = [1200, 400]  # of one width, as with an entropy stage, or of several
    draw(tmp_path / "out.png", "title", Trace([(0.0, 1e5), (1.0, 3e4)]), sizes, [8.1, 2.6], 50.0, [lane, lane], 1.0)
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"


# --- the relay's direction --------------------------------------------------------------------------------------------


def packet(size: int) -> bytes:
    return links._VNET.pack(0, 0, 0, 0, 0, 0) + bytes(size)


def arrivals(direction: links._Direction, until: float) -> list[float]:
    found = []
    while (due := direction.next_due()) <= until:
        assert direction.due(due - 1e-6) is None
        assert direction.due(due + 1e-9) is not None
        found.append(due)
    return found


def test_packets_leave_at_the_rate_and_arrive_half_a_round_trip_later() -> None:
    direction = links._Direction(0.0)
    direction.shape(8.0, 10.0, 0.0)  # a byte a microsecond
    for _ in range(3):
        direction.take(packet(1000), 0.0)
    assert arrivals(direction, 1.0) == pytest.approx([0.011, 0.012, 0.013])


def test_what_waits_leaves_at_the_new_rate_and_an_outage_holds_it() -> None:
    direction = links._Direction(0.0)
    direction.shape(8.0, 10.0, 0.0)
    for _ in range(4):
        direction.take(packet(1000), 0.0)
    direction.shape(0.8, 10.0, 0.0015)  # half of the second is through
    assert arrivals(direction, 0.0175) == pytest.approx([0.011, 0.0165])
    direction.shape(0.0, 10.0, 0.0175)  # the third is through, and a tenth of the fourth
    assert arrivals(direction, 1.0) == pytest.approx([0.0265])
    assert direction.next_due() == math.inf
    direction.shape(8.0, 10.0, 2.0)
    assert arrivals(direction, 3.0) == pytest.approx([2.0109])


@given(
    sizes=st.lists(st.integers(40, 1500), min_size=1, max_size=40),
    changes=st.lists(st.tuples(st.floats(0.0, 0.05), st.floats(0.0, 50.0)), max_size=10),
)
def test_no_packet_is_lost_however_the_rate_changes(sizes: list[int], changes: list[tuple[float, float]]) -> None:
    direction, now = links._Direction(0.0), 0.0
    for size in sizes:
        direction.take(packet(size), now)
    for wait, mbps in [*changes, (0.1, 10.0)]:
        now += wait
        direction.shape(mbps, 5.0, now)
    seen = 0
    while direction.due(1e6) is not None:
        seen += 1
    assert seen == len(sizes)
    assert direction.next_due() == math.inf
