"""The estimate of the link against links whose rate is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge.link.estimate import LAST, Estimator, wire_bytes
from splitedge.link.tcp import TcpSample
from tests.drawn import drawn


def carry(
    estimator: Estimator, rate: float, trip: float, size: int, gap: float, frames: int, server: float = 0.0
) -> float:
    """Send ``frames`` of ``size`` bytes, ``gap`` seconds apart, over a link of ``rate``; the time of the last answer."""
    events, free = [], 0.0
    for seq in range(frames):
        sent = seq * gap
        free = max(free, sent) + size / rate
        events += [(sent, 0, seq), (free + trip + server, 1, seq)]
    for now, kind, seq in sorted(events):
        if kind:
            estimator.acked(seq, now, server)
        else:
            estimator.sent(seq, size, now)
    return max(events)[0]


@drawn(60)
@given(
    rate=st.floats(1e4, 1e8), trip=st.floats(0.0, 0.3), size=st.integers(200, 200_000), load=st.floats(0.05, 3.0),
    server=st.floats(0.0, 0.05),
)  # fmt: skip
def test_a_steady_link_is_known_whether_it_is_full_or_idle_between_frames(rate, trip, size, load, server):
    estimator = Estimator(trip)
    took = max(size / rate, 100e-6)  # a quicker passage is beyond the clocks' grain
    rate = size / took
    end = carry(estimator, rate, trip, size, took / load, 20, server)
    assert estimator.rate(end) == pytest.approx(rate, rel=0.02)
    assert estimator.backlog(end) == 0.0


@drawn(60)
@given(before=st.floats(1e5, 1e7), share=st.floats(0.02, 0.6))
def test_a_drop_is_known_after_a_few_frames(before, share):
    estimator, size = Estimator(0.01), 5000
    end = carry(estimator, before, 0.01, size, size / before * 1.2, 20)
    after = before * share
    for seq in range(100, 100 + LAST):
        estimator.sent(seq, size, end)
        end += 0.01 + size / after
        estimator.acked(seq, end)
    assert estimator.rate(end) == pytest.approx(after, rel=0.01)


def test_one_late_answer_says_little():
    estimator = Estimator(0.01)
    end = carry(estimator, 1e6, 0.01, 5000, 0.01, 20)
    estimator.sent(100, 5000, end)
    estimator.acked(100, end + 0.2)
    assert estimator.rate(end + 0.2) == pytest.approx(1e6, rel=0.02)


def test_a_frame_that_does_not_arrive_lowers_the_estimate_the_more_the_longer_it_takes():
    estimator = Estimator(0.01)
    end = carry(estimator, 1e6, 0.01, 5000, 0.01, 20)
    estimator.sent(100, 5000, end)
    seen = [estimator.rate(end + 0.05 * i) for i in range(1, 12)]
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 12_000


def test_a_stalled_server_is_not_the_links_fault_where_the_kernel_says_so():
    estimator = Estimator(0.01)
    end = carry(estimator, 1e6, 0.01, 5000, 0.01, 20)
    for seq in (100, 101):
        estimator.sent(seq, 5000, end)
    estimator.tcp(TcpSample(idle=True, trip_s=0.01), end + 0.02)
    assert estimator.rate(end + 2.0) == pytest.approx(1e6, rel=0.02)
    assert estimator.backlog(end + 2.0) == 0.0
    estimator.acked(100, end + 2.0)
    estimator.acked(101, end + 2.0)
    assert estimator.rate(end + 2.0) > 4e5


def test_the_round_trip_is_the_kernels_where_it_says_one():
    estimator = Estimator(0.01)
    estimator.tcp(TcpSample(idle=False, trip_s=None), 1.0)
    assert estimator.trip_s == 0.01
    estimator.tcp(TcpSample(idle=False, trip_s=0.05), 2.0)
    assert estimator.trip_s == 0.05


def test_before_the_first_answer_the_plans_estimate_holds_and_an_outage_lowers_it():
    estimator = Estimator(0.01, rate=1e6)
    assert estimator.rate(0.0) == 1e6
    estimator.sent(0, 5000, 0.0)
    assert estimator.rate(1.04) == pytest.approx(5000, rel=0.01)
    estimator.disconnected()
    assert estimator.rate(1.03) == 1e6
    assert Estimator(0.01).rate(0.0) is None


def test_what_is_beyond_the_round_trip_is_backlog():
    estimator = Estimator(0.01)
    end = carry(estimator, 1e6, 0.01, 5000, 0.01, 20)
    for seq in range(100, 106):
        estimator.sent(seq, 5000, end)
    assert estimator.backlog(end) == pytest.approx(20_000, rel=0.02)
    estimator.lost(100)
    assert estimator.backlog(end) == pytest.approx(15_000, rel=0.02)


def test_an_answer_to_an_unknown_frame_says_nothing():
    estimator = Estimator(0.01)
    estimator.acked(7, 1.0)
    estimator.lost(7)
    assert estimator.rate(1.0) is None


def test_packets_headers_count():
    assert (wire_bytes(0), wire_bytes(1440), wire_bytes(1441)) == (8 + 52, 1448 + 52, 1449 + 104)
