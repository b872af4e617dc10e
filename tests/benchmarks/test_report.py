"""How benchmarks print numbers and names."""

from __future__ import annotations

import pytest

from benchmarks.report import plain, report


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
