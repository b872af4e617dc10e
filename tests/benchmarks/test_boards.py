"""What-if tables: times grow with the cut, the planner chooses as the link says, and everything is marked as a prediction."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from benchmarks import boards
from benchmarks.published import shares
from device_profiles import known
from device_profiles.measurement import one_operator
from device_profiles.schema import Shape
from splitedge.protocol.messages import Cut

SIZE = [56, 56, 64]


def place(index: int, depth: int, kind: str, tail_ms: float) -> boards.Place:
    """A cut behind ``depth`` convolutions that leave as many values as they find."""
    header = one_operator("conv", Shape(*SIZE, 64, k=3), chain=max(depth, 1)).header
    if not depth:
        header.ops.clear()
    shape = {"input": [56, 56, 3], "inside": SIZE, "output": [1, 1, 10]}[kind]
    return boards.Place(Cut(index, f"layer{index}", f"layer{index}", shape, kind), header, tail_ms)  # type: ignore[arg-type]


@pytest.fixture
def found() -> list[boards.Place]:
    return [
        place(0, 0, "input", 4.0),
        place(1, 1, "inside", 2.0),
        place(2, 2, "inside", 1.0),
        place(3, 4, "output", 0.0),
    ]


def test_heads_take_longer_the_later_the_cut(found):
    row = boards.head_row("pi4", known.load("pi4"), found)
    assert row["is"] == "prediction"
    assert row["100 % fast"] < row["100 %"] < row["100 % slow"]
    times = [row[f"{share} %"] for share in boards.SHARES]
    assert times == sorted(times)
    assert times[3] == pytest.approx(4 * times[0], rel=0.05)


@pytest.mark.parametrize(("link", "mode"), [((0.5, 0.5, 200.0), "device"), ((1e5, 1e5, 0.1), "server")])
def test_the_planner_goes_where_the_link_lets_it(found, link, mode):
    row = boards.plan_row("pi4", known.load("pi4"), found, link)
    assert (row["mode"], row["is"]) == (mode, "prediction")
    assert row["ms"] == pytest.approx(min(row["all on server"], row["all on board"]))
    assert row["J a frame"].endswith("(declared)")


def test_the_choice_is_the_fastest_of_all_that_were_weighed(found):
    rng = np.random.default_rng(5)
    for name in known.names():
        up, down, rtt = (float(x) for x in 10 ** rng.uniform(-1, 3, 3))
        profile, link = known.load(name), boards.LinkEstimate(rtt, up, down)
        pick, cut = boards.best(profile, found, link)
        each = [boards.best(profile, [one], link)[0].total_ms for one in found]
        assert pick.total_ms == pytest.approx(min(each))
        assert found[each.index(min(each))].cut == cut


def held_out(board: str, ms: float) -> boards.HeldOut:
    """A run on ``board`` that took ``ms``, whose band is 8 to 20 ms."""
    row = msgspec.structs.replace(boards.published_runs()[0].row, board=board, ms=ms)
    one = shares.run(row, boards.data.load().boards[board])
    return boards.HeldOut(one, shares.Band(8.0, 10.0, 20.0))


def test_coverage_is_the_share_of_figures_inside_and_the_error_a_median_of_logs():
    found = [held_out("pi4", 9.0), held_out("pi4", 20.0), held_out("pi5", 21.0), held_out("pi5", 5.0)]
    assert boards.measures(found) == pytest.approx({"inside %": 50.0, "band": 2.5, "error": np.log(2)})
    rows = boards.part_rows(found)
    assert [(row["of"], row["inside %"], row["runs"]) for row in rows] == [("pi4", 100.0, 2), ("pi5", 0.0, 2)]
    assert {row["left out"] for row in boards.fold_rows({"board": found, "core": found})} == {"a board", "a core"}


def test_figures_that_do_not_count_are_shown_with_their_mark():
    rows = boards.other_rows()
    assert {row["mark"] for row in rows} == {"target", "converted", "measured"}
    for row in rows:
        described = row["network"].split()[0] in boards.networks.NAMES
        assert (row["predicted ms"] is not None) == described
        assert not (described and row["mark"] == "measured")
        assert not described or row["10 %"] < row["predicted ms"] < row["90 %"]
