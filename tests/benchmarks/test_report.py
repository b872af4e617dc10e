"""How benchmarks print numbers and names."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks.report import in_turn, plain, report


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10976.0, "10976"),
        (10976.4, "10976"),
        (24.0, "24"),
        (0.0, "0"),
        (-13.7983, "-13.80"),
        (91.66667, "91.67"),
        (1.07912, "1.079"),
        (0.000123456, "0.0001235"),
        (3e9, "3000000000"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_are_plain(value: float, text: str) -> None:
    assert plain(value) == text


def test_a_name_of_one_word_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"what": "many words " * 20, "rule": "aciq-laplace", "GOPS": "-"}
    report("table", [row], {"bytes": 10976.0})
    shown = capsys.readouterr().out
    assert "aciq-laplace" in shown
    assert "bytes = 10976\n" in shown


def test_calls_are_taken_in_turn_after_a_warm_up() -> None:
    order: list[str] = []
    calls = {name: partial(order.append, name) for name in "ab"}
    times = in_turn(calls, repeats=2, warmup=1, rest=1e-4)
    assert "".join(order) == "ababab"
    assert [len(taken) for taken in times.values()] == [2, 2]


def test_a_table_that_is_wider_than_high_is_turned(capsys: pytest.CaptureFixture[str]) -> None:
    wide = [
        {"network": name, **{f"figure {i}": float(i) for i in range(20)}, "none": None} for name in ("one", "other")
    ]
    report("Wide", wide, {})
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[1:6:2] == ["network", "one", "other"] for line in lines)
    assert any(line.replace("│", " ").split() == ["figure", "7", "7.000", "7.000"] for line in lines)
    assert any(line.replace("│", " ").split() == ["none", "-", "-"] for line in lines)
