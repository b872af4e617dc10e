import math

from hypothesis import given
from hypothesis import strategies as st

from splitedge import limits
from splitedge.protocol.flight import Flight
from splitedge.protocol.frames import Answer, Frame, Refusal


def balanced(flight: Flight) -> bool:
    s = flight.stats
    return s.in_flight == len(flight) and s.accepted == s.answered + s.refused + s.aged + s.failed + s.in_flight


def test_a_frame_ages_out_once_and_its_late_answer_is_dropped():
    flight = Flight(4)
    seq = flight.accept(b"abc", 2, deadline=5.0)
    assert flight.next_deadline() == 5.0
    assert flight.expire(4.9) == []
    assert flight.expire(5.0) == [seq]
    assert flight.expire(6.0) == []
    assert flight.settle(Answer(seq, 0, 0, b""), 6.0) is False
    assert flight.stats.late == 1
    assert flight.next_deadline() == math.inf
    assert balanced(flight)


def test_a_frame_says_how_long_it_may_still_wait():
    flight = Flight(4)
    seq = flight.accept(b"abc", 2, deadline=5.0)
    assert flight.frame(seq, 4.5) == Frame(seq, 2, 500, b"abc")
    assert flight.frame(seq, 6.0).wait_ms == 1
    assert flight.stats.resent == 1
    assert flight.stats.payload_bytes_up == 6


def test_room_is_bounded_in_frames_and_bytes():
    flight = Flight(2)
    big = bytes(limits.MAX_INFLIGHT_BYTES)
    seq = flight.accept(big, 0, 1.0)
    assert flight.has_room(0)
    assert not flight.has_room(1)
    flight.settle(Answer(seq, 0, 0, b""), 0.0)
    flight.accept(b"", 0, 1.0)
    flight.accept(b"", 0, 1.0)
    assert not flight.has_room(0)


def test_round_trip_leaves_out_the_server_and_repeated_frames():
    flight = Flight(8)
    first, second = flight.accept(b"", 0, 9.0), flight.accept(b"", 0, 9.0)
    flight.frame(first, 1.0)
    flight.settle(Answer(first, 30_000, 20_000, b""), 1.1)
    assert math.isclose(flight.stats.rtt_ms, 50.0)
    flight.frame(second, 1.0)
    flight.frame(second, 2.0)
    flight.settle(Answer(second, 0, 0, b""), 3.0)
    assert math.isclose(flight.stats.rtt_ms, 50.0)


@given(st.lists(st.tuples(st.sampled_from("aaarefs"), st.integers(0, 20)), max_size=60))
def test_accounts_always_balance(script):
    flight, ended = Flight(5), []
    for now, (act, seq) in enumerate(script):
        if act == "a" and flight.has_room(1):
            flight.accept(b"x", 0, now + 4.0)
        elif act == "s" and flight.size(seq) is not None:
            flight.frame(seq, now)
        elif act == "r" and flight.settle(Answer(seq, 0, 0, b"") if seq % 2 else Refusal(seq, {}), now):
            ended.append(seq)
        elif act == "e":
            ended += flight.expire(now)
        elif act == "f":
            ended += flight.fail_all()
        assert balanced(flight)
    assert len(ended) == len(set(ended))
    assert sorted([*ended, *flight]) == list(range(flight.stats.accepted))
