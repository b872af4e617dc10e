"""Controllers: what they choose for what they see. Whole traces are in test_adapt.py."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge.link import controllers
from splitedge.link.controllers import CONTROLLERS, WINDOW, Adaptive, Fixed, PipeEdge, QuantPipe, RungCost, View, within

STEPS = [RungCost(bits, 1000.0 * bits, 4.0**-bits) for bits in (16, 8, 6, 4, 3, 2)]
FPS = 10.0


def view(now: float, rate: float | None, backlog: float = 0.0, **more: float) -> View:
    return View(now, rate, backlog, 1 / FPS, **more)  # type: ignore[arg-type]


def settle(controller: controllers.Controller, rate: float, seconds: float = 20.0, start: float = 0.0) -> list[int]:
    """The bits that are chosen over so long at ``rate`` bytes a second."""
    return [STEPS[controller.choose(view(start + i / FPS, rate), STEPS)].bits for i in range(int(seconds * FPS))]


def test_adaptive_takes_the_most_accurate_rung_that_fits():
    for bits, needed in ((16, 160_000), (8, 80_000), (6, 60_000), (4, 40_000), (3, 30_000), (2, 20_000)):
        assert settle(Adaptive(3), 1.15 * needed)[-1] == bits
    assert settle(Adaptive(0), 1_000.0)[-1] == 2


def test_adaptive_leaves_a_rung_that_a_cheaper_one_beats_and_never_takes_it():
    steps = [RungCost(8, 8000.0, 0.1), RungCost(2, 2000.0, 0.9), RungCost(1, 1500.0, 0.2)]
    controller = Adaptive(1)
    chosen = [controller.choose(view(i / FPS, 25_000.0), steps) for i in range(100)]
    assert set(chosen) == {2}
    chosen = [controller.choose(view(10 + i / FPS, 100_000.0 - 900 * i), steps) for i in range(100)]
    assert (chosen[20], chosen[-1], set(chosen)) == (0, 2, {0, 2})


def test_adaptive_falls_at_once_and_climbs_after_a_while():
    controller = Adaptive(3)
    settle(controller, 100_000.0)
    assert settle(controller, 22_000.0, start=20.0)[0] == 2
    climbing = settle(controller, 100_000.0, start=40.0)
    assert climbing[0] == 2
    assert climbing[5] == 8


def test_a_backlog_is_drained_before_a_climb_and_by_a_fall():
    controller = Adaptive(1)
    settle(controller, 100_000.0)
    assert STEPS[controller.choose(view(20.0, 100_000.0, backlog=30_000.0), STEPS)].bits < 8
    for i in range(50):
        assert STEPS[controller.choose(view(20.1 + i / FPS, 100_000.0, backlog=30_000.0), STEPS)].bits < 8


def test_a_demanded_latency_bounds_the_frame():
    controller = Adaptive(0)
    assert STEPS[controller.choose(view(0.0, 200_000.0, left_s=0.025), STEPS)].bits == 4


def test_frames_that_wait_too_long_press_down():
    controller = Adaptive(1)
    settle(controller, 100_000.0)
    assert STEPS[controller.choose(view(20.0, 100_000.0, waiting=10), STEPS)].bits < 4


def test_climbs_that_fail_are_tried_ever_more_rarely():
    """A link that looks wide whenever it is used little: every climb is taken back."""
    controller, changes, before = Adaptive(3), [], 3
    for i in range(1200):
        rate = 44_000.0 if before < 3 else 100_000.0
        now = controller.choose(view(i / FPS, rate), STEPS)
        if now < before:
            changes.append(i / FPS)
        before = now
    waits = [b - a for a, b in itertools.pairwise(changes)]
    assert waits[0] < 1.0
    assert waits[-1] >= Adaptive.PATIENCE_MOST_S - 0.2
    assert len(changes) < 40


@given(
    name=st.sampled_from(sorted(CONTROLLERS)),
    start=st.integers(0, 5),
    seen=st.lists(
        st.tuples(
            st.floats(0.001, 1.0), st.one_of(st.none(), st.floats(1.0, 1e9)), st.floats(0, 1e7), st.floats(1e-4, 10.0),
            st.integers(0, 40), st.one_of(st.just(math.inf), st.floats(0, 1.0)),
        ), max_size=200,
    ),
)  # fmt: skip
def test_whatever_a_controller_sees_it_stays_on_the_ladder(name, start, seen):
    controller, now = CONTROLLERS[name](start), 0.0
    for wait, rate, backlog, period, waiting, left in seen:
        now += wait
        assert 0 <= controller.choose(View(now, rate, backlog, period, waiting, left), STEPS) < len(STEPS)


@given(rate=st.floats(1e3, 1e6))
def test_adaptive_does_not_swing_on_a_steady_link(rate):
    bits = settle(Adaptive(3), rate)
    assert sum(a != b for a, b in itertools.pairwise(bits)) <= 2


@pytest.mark.parametrize(
    ("capacity", "bits"), [(33.0, 16), (31.0, 16), (17.0, 16), (15.0, 8), (9.0, 8), (7.9, 6), (6.5, 6), (6.3, 4), (4.1, 4), (3.9, 2), (1.0, 2)]
)  # fmt: skip
def test_quantpipes_rule(capacity, bits):
    """The link carries frames of so many bits at the rate: ratio = floor(32 / capacity) + 1."""
    chosen = settle(QuantPipe(1), capacity * 1000 * FPS, seconds=20.0)
    assert chosen[:WINDOW] == [8] * WINDOW
    assert set(chosen[WINDOW:]) == {bits}


def test_pipeedge_splits_a_window_between_two_widths_so_that_the_mean_rate_fits():
    chosen = settle(PipeEdge(0), 5.0 * 1000 * FPS, seconds=40.0)
    last = chosen[-WINDOW:]
    assert set(last) == {6, 4}
    assert sum(1000 * bits for bits in last) / WINDOW == pytest.approx(5000, rel=0.05)
    assert last == sorted(last, reverse=True)


def test_pipeedge_goes_to_the_ends_of_the_ladder_and_comes_back():
    controller = PipeEdge(2)
    assert settle(controller, 1e6)[-1] == 16
    assert settle(controller, 1e3, start=20.0, seconds=400.0)[-1] == 2
    assert settle(controller, 1e6, start=420.0, seconds=400.0)[-1] == 16


def test_fixed_stays():
    assert set(settle(Fixed(2), 1.0)) == {6}


def test_the_rung_of_at_most_so_many_bits():
    assert [within(STEPS, bits) for bits in (32, 16, 7, 2, 1)] == [0, 0, 2, 5, 5]
