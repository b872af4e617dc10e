"""Progress of a long command."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from edge_server.commands.progress import EVERY_S, Phases, Work, duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_share_counts_all_phases() -> None:
    work = Work({"a": 30.0, "b": 60.0, "c": 10.0}, 0.0)
    assert work.share == 0
    work.done("a", 0.5)
    assert work.share == pytest.approx(0.15)
    work.done("b", 0.0)
    assert work.share == pytest.approx(0.3)
    work.done("a", 1.0)  # phases overlap; the share never falls
    work.done("unknown", 1.0)
    assert work.share == pytest.approx(0.3)
    work.done("c", 1.0)
    assert work.share == pytest.approx(1.0)


def test_the_pace_corrects_the_time_left() -> None:
    work = Work({"a": 100.0}, 10.0)
    assert work.left(10.0) == pytest.approx(100.0)
    work.done("a", 0.5)
    assert work.left(60.0) == pytest.approx(50.0)
    assert work.left(110.0) == pytest.approx(50.0 * 110 / 60)  # half as fast as estimated, with a prior of a tenth
    assert Work({}, 0.0).left(1.0) is None


def test_lines_without_a_terminal_are_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Phases(Console(file=io.StringIO()), clock) as progress:
        progress.expect({"rounding": 100.0, "trials": 100.0})
        for step in range(1000):
            clock.now = step / 10
            progress("rounding", step, 1000)
        progress("trials", 1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 100 / EVERY_S + 2
    assert "75 %" in lines[-1]


def test_a_terminal_shows_one_bar_for_all_phases() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80, color_system=None)
    with Phases(console, Clock()) as progress:
        progress("first look", 0, 0)
        progress.expect({"rounding": 10.0, "trials": 10.0})
        progress("rounding", 1, 2)
        progress("trials", 1, 2)
        assert progress._bar is not None
        progress._bar.refresh()
        assert len(progress._bar.tasks) == 1
    assert "75 %" in shown.getvalue()


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (7200, "2.0 h")]
)
def test_durations(seconds: float, wanted: str) -> None:
    assert duration(seconds) == wanted
