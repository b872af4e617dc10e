"""Work on all cores."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from calibration import parallel


@pytest.fixture(params=[1, 3])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(parallel, "cores", lambda: request.param)
    return int(request.param)


def test_results_come_in_order(workers: int) -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.02 if number < workers else 0)
        return number * number

    assert list(parallel.in_order(slow_at_first, range(10))) == [n * n for n in range(10)]


def test_items_are_drawn_in_the_callers_thread_and_few_ahead(workers: int) -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            assert threading.current_thread() is threading.main_thread()
            drawn.append(number)
            yield number

    for found in parallel.in_order(lambda number: number, items()):
        assert len(drawn) <= found + workers + 1


def test_an_error_ends_the_work(workers: int) -> None:
    made: list[int] = []

    def fails(number: int) -> int:
        made.append(number)
        if number == 2:
            raise KeyError(number)
        return number

    with pytest.raises(KeyError):
        list(parallel.in_order(fails, range(1000)))
    assert len(made) < 10 + workers
