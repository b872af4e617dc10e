"""Delays between attempts."""

from __future__ import annotations

from splitedge import limits
from splitedge.backoff import Backoff


def test_delays_double_up_to_the_greatest_and_start_again_after_a_reset() -> None:
    backoff = Backoff(0.5, 3.0)
    delays, bases = [], []
    for _ in range(5):
        delays.append(backoff.next())
        bases.append(backoff.base)
    assert bases == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert all(base / 2 <= delay <= base for delay, base in zip(delays, bases, strict=True))
    backoff.reset()
    assert backoff.base == 0
    assert backoff.next() <= 0.5


def test_delays_of_two_boards_differ() -> None:
    assert len({Backoff().next() for _ in range(20)}) > 1
    assert Backoff().next() <= limits.BACKOFF_FIRST
