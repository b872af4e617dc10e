"""What-if tables: times grow with the cut, the planner chooses as the link says, and everything is marked as a prediction."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import boards
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
