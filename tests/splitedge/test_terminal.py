"""Tables on terminals of any width: what is left out, what is shortened, and what stays whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from splitedge import terminal
from splitedge.terminal import Column, definitions, shorten, table, wrap

COLUMNS = [
    Column("name", alone=True),
    Column("ms", right=True),
    Column("tensor", optional=True),
    Column("codec", shortest=8),
    Column("reason", wrapped=True),
]
ROWS = [
    ("_blocks.1._project_conv", "1.5", "112x112x32", "aciq-gauss-channel", "+272 % time: transfer 4.95 ms"),
    ("_blocks.15._project_conv", "12.5", "7x7x320", "mse", "no better, and 120 kB more to fetch from the server"),
]


def lines(width: int) -> list[str]:
    return table(COLUMNS, ROWS, width).plain.splitlines()


@pytest.mark.parametrize("width", range(40, 160))
def test_no_line_is_too_wide_and_no_name_is_broken(width: int) -> None:
    shown = lines(width)
    assert max(map(len, shown)) <= width
    assert all(sum(row[0] in line for line in shown) == 1 for row in ROWS)


def test_a_wide_terminal_has_a_line_for_each_row() -> None:
    assert len(lines(140)) == 3
    assert lines(140)[1].split() == [word for cell in ROWS[0] for word in cell.split()]


def test_optional_columns_go_first_then_cells_are_shortened_then_the_name_has_a_line_of_its_own() -> None:
    assert "tensor" in lines(140)[0]
    without = lines(90)
    assert "tensor" not in without[0]
    assert "aciq-gauss-channel" in without[1]
    shortened = lines(75)
    assert shortened[0].startswith("name")
    assert "…" in shortened[1]
    alone = lines(60)
    assert alone[1] == ROWS[0][0]
    assert alone[2].startswith("   1.5")


def test_figures_are_flush_right() -> None:
    shown = table([Column("a"), Column("b", right=True)], [("x", "1"), ("y", "100")], 80).plain.splitlines()
    assert shown == ["a    b", "x    1", "y  100"]


def test_definitions_wrap_beside_their_names_and_words_stay_whole() -> None:
    path = "/var/cache/somebody/splitedge/kernels-0123456789abcdef"
    shown = definitions([("cache", f"a b {path} c"), (Text("x", "red"), "y")], 40).plain.splitlines()
    assert shown == ["cache  a b", f"       {path}", "       c", "x      y"]


def test_the_middle_of_a_text_is_left_out() -> None:
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghij", 5) == "ab…ij"
    assert all(len(shorten("x" * 100, length)) == length for length in range(1, 100))


def test_a_wrapped_text_keeps_its_words() -> None:
    assert wrap("", 10) == [""]
    assert wrap("one two-three four", 10, "  ") == ["one", "  two-three", "  four"]


def test_the_width_is_80_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert (terminal.width(), terminal.width(piped=7)) == (80, 7)
    monkeypatch.setenv("COLUMNS", "123")
    assert terminal.width(piped=7) == 123


def test_without_a_terminal_a_long_step_prints_a_line_and_a_short_one_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.Progress("edge-agent") as progress:
        progress("short")
        monkeypatch.setattr(terminal, "QUIET_S", 0.0)
        progress("long\x1b[2J")
        assert progress._timer is not None
        progress._timer.join(10)
    assert capsys.readouterr() == ("", "edge-agent: long[2J\n")


def test_on_a_terminal_a_step_is_a_spinner_until_it_ends() -> None:
    shown = io.StringIO()
    progress = terminal.Progress("edge-agent")
    progress._console = Console(file=shown, force_terminal=True)
    progress("measuring")
    assert progress._spinner is not None
    progress.stop()
    assert progress._spinner is None
    assert "measuring" in shown.getvalue()
