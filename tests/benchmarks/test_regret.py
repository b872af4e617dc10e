"""How the frames of three plans are told off, with boards that answer from a table."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from benchmarks.board import Board, Timings
from benchmarks.regret import CHOSEN, DEVICES, FRAMES, TURN, Run, expected, identity, parts, row, summary, timed
from benchmarks.slower import slower
from splitedge.protocol.messages import Candidate, Cut, Plan
from tests.small_server import make_plan, segment_file


class Told(Board):
    """Every frame of a plan takes as long as ``ms`` says; nothing runs."""

    def __init__(self, ms: dict[str, float]) -> None:
        super().__init__("told", [], {}, Path())
        self.ms, self.counts = ms, dict.fromkeys(ms, 0)

    def frames(self, name: str, count: int) -> Timings:
        self.counts[name] += count
        stages = {f"{s}_ms": 0.0 for s in ("wait", "preprocess", "encode", "link", "queue", "tail")}
        return [stages | {"head_ms": self.ms[name], "total_ms": self.ms[name] + 4.0, "preprocess_ms": 4.0}] * count


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    data = segment_file()
    cuts = {
        CHOSEN: Cut(3, "a", "a", [4], "inside"),
        "device": Cut(9, "b", "b", [4], "output"),
        "server": Cut(0, "x", "x", [4], "input"),
    }
    return {name: make_plan("split" if name == CHOSEN else name, data, cut=cut) for name, cut in cuts.items()}


def test_regret_is_over_the_best_of_the_three_and_gain_over_the_better_extreme(plans: dict[str, Plan]) -> None:
    lost = row(DEVICES[0], 4, 20, timed(Told({CHOSEN: 12.0, "device": 10.0, "server": 11.0}), plans, FRAMES, 60))
    won = row(DEVICES[0], 16, 20, timed(Told({CHOSEN: 5.0, "device": 10.0, "server": 8.0}), plans, FRAMES, 60))
    assert lost["regret %"] == pytest.approx(20.0)
    assert won["regret %"] == 0.0
    assert won["gain"] == pytest.approx(1.6)
    found = summary([lost, won])
    assert found["worst_regret_percent"] == pytest.approx(20.0)
    assert found["best_gain_times"] == pytest.approx(1.6)
    assert (found["links_where_split_wins"], found["links"]) == (1, 2)


def test_noise_is_the_spread_of_turns_and_a_regret_below_it_is_told_apart(plans: dict[str, Plan]) -> None:
    class Restless(Told):
        """The chosen plan's turns take 10 to 16 ms, in turn."""

        def frames(self, name: str, count: int) -> Timings:
            self.ms[CHOSEN] = 10.0 + (self.counts[CHOSEN] // 5) % 4 * 2
            return super().frames(name, count)

    unsteady = row(
        DEVICES[0], 4, 20, timed(Restless({CHOSEN: 10.0, "device": 12.2, "server": 20.0}), plans, FRAMES, 60)
    )
    steady = row(DEVICES[0], 4, 20, timed(Told({CHOSEN: 12.0, "device": 10.0, "server": 11.0}), plans, FRAMES, 60))
    assert steady["noise %"] == 0.0
    assert 5 < unsteady["regret %"] < unsteady["noise %"]
    found = summary([unsteady, steady])
    assert (found["regret_over_5_percent"], found["regret_over_5_percent_and_noise"]) == (2, 1)


def test_parts_are_those_of_the_plan_that_was_run(plans: dict[str, Plan]) -> None:
    def with_codec(plan: Plan, rule: str) -> Plan:
        return msgspec.structs.replace(
            plan, ladder=[msgspec.structs.replace(plan.ladder[plan.codec], rule=rule)], codec=0
        )

    server = with_codec(plans["server"], "jpeg-80")
    told = msgspec.structs.replace(plans[CHOSEN].prediction, device_ms=77.0)
    rival = Candidate(
        cut=server.cut, weight_bits=0.0, activation_bits=server.ladder[0].bits, rule="jpeg-80", prediction=told
    )
    chosen = msgspec.structs.replace(plans[CHOSEN], runners_up=[rival])
    assert expected(chosen, server) == told
    assert expected(chosen, with_codec(server, "minmax")) is None
    assert expected(chosen, chosen) == chosen.prediction
    assert parts(Run(server), None) == "?/- ?/- ?/- -/-"


def test_weights_bits_make_no_other_plan_and_codecs_do(plans: dict[str, Plan]) -> None:
    device, server = plans["device"], plans["server"]
    other = msgspec.structs.replace(device.segment, sha256="f" * 64)
    assert identity(msgspec.structs.replace(device, segment=other)) == identity(device)
    coarser = [msgspec.structs.replace(server.ladder[server.codec], bits=2)]
    assert identity(msgspec.structs.replace(server, ladder=coarser, codec=0)) != identity(server)


def test_a_plan_without_hope_is_not_run_again(plans: dict[str, Plan]) -> None:
    board = Told({CHOSEN: 10.0, "device": 19.0, "server": 5000.0})
    runs = timed(board, plans, FRAMES, 60)
    assert board.counts["server"] == 1
    assert board.counts["device"] == 1 + TURN
    assert len(runs[CHOSEN].timings) == FRAMES
    assert runs["server"].ms == 5000.0


def test_a_choice_that_is_an_extreme_is_run_once_and_has_no_regret(plans: dict[str, Plan]) -> None:
    board = Told({CHOSEN: 10.0, "device": 9.0, "server": 12.0})
    runs = timed(board, plans | {CHOSEN: plans["device"]}, FRAMES, 60)
    assert board.counts["device"] == 0
    assert row(DEVICES[0], 4, 20, runs)["regret %"] == 0.0


@pytest.mark.skipif(os.geteuid() != 0, reason="a slower core needs root")
def test_a_core_is_itself_again_after_the_context() -> None:
    core = max(os.sched_getaffinity(0))
    with slower(core, 3):
        assert thieves() == 1
    assert thieves() == 0


def thieves() -> int:
    """Children of this process that make a core slower."""
    listed = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True, check=True
    )
    return listed.stdout.count("benchmarks.slower")
