"""The planner against a brute-force twin, its own verifier, and the answers a person would expect."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import errors
from edge_agent.protocol.messages import Cut, Demand, LinkEstimate, Weights
from edge_server.planner import Choice, Point, Power, Problem, Site, plan, verify_plan

LINK = LinkEstimate(rtt_ms=10.0, uplink_mbps=20.0, downlink_mbps=20.0)


def site(index: int, kind: str, head: float, tail: float, shape: list[int], memory: int = 1000) -> Site:
    layers = frozenset(f"layer{i}" for i in range(1, index + 1))
    return Site(Cut(index, f"layer{index}" if index else "input", f"t{index}", shape, kind), head, tail, memory, layers)


def grid(cut: int, drops: dict[tuple[int, int], float], rule: str = "mse") -> list[Point]:
    return [Point(cut, w, a, rule, d, d - 0.5, d + 0.5, 250) for (w, a), d in drops.items()]


def small(**changes: object) -> Problem:
    """Three places: input (big tensor), a middle cut (small tensor), the output (slow device)."""
    sites = (
        site(0, "input", 0.1, 5.0, [224, 224, 3]),
        site(1, "inside", 8.0, 3.0, [14, 14, 40]),
        site(2, "output", 60.0, 0.0, [1000], memory=5000),
    )
    points = grid(0, {(8, 8): 0.0, (8, 4): 0.3}) + grid(1, {(8, 8): 0.1, (8, 4): 0.5, (8, 2): 30.0, (4, 8): 4.0})
    points += grid(2, {(8, 8): 0.4, (4, 8): 5.0})
    problem = Problem(
        "net", sites, tuple(points), LINK, Demand(), {(1, 8): 4000}, layers=("layer1", "layer2", "layer3")
    )
    return dataclasses.replace(problem, **changes)  # type: ignore[arg-type]


def demand(**fields: object) -> Demand:
    return Demand(**fields)  # type: ignore[arg-type]


def test_takes_the_middle_cut_with_the_fewest_bits_that_meet_the_drop() -> None:
    choice = plan(small())
    assert (choice.chosen.cut.index, choice.chosen.weight_bits, choice.chosen.activation_bits) == (1, 8, 4)
    assert [p.activation_bits for p in choice.ladder] == [8, 4]
    assert choice.codec == 1
    assert verify_plan(small(), choice) == []


def test_prediction_counts_header_packed_codes_and_round_trip() -> None:
    p = plan(small()).chosen.prediction
    assert p.payload_bytes == 40 + 14 * 14 * 40 * 4 // 8
    assert p.transfer_ms == pytest.approx(p.payload_bytes * 8 / 20e6 * 1e3 + 10)
    assert (p.float_bytes, p.segment_bytes, p.energy_source) == (4 * 14 * 14 * 40, 4000, "unknown")


def test_runners_up_say_why_each_lost() -> None:
    reasons = {c.cut.kind: c.reason for c in plan(small(demand=demand(keep="input", max_drop_points=1.0))).runners_up}
    assert reasons["input"] == "lets the input leave the device"
    assert reasons["output"].startswith("+")
    assert reasons["output"].endswith("time: device 60 ms")


def test_a_drop_over_the_demand_is_named() -> None:
    problem = small(points=tuple(grid(0, {(8, 8): 4.0}) + grid(1, {(8, 8): 0.1})))
    assert plan(problem).runners_up[0].reason == "drop 4 points > 1"


def test_device_plan_sends_nothing_and_has_no_ladder() -> None:
    problem = small(link=LinkEstimate(rtt_ms=500.0, uplink_mbps=0.1, downlink_mbps=1.0))
    choice = plan(problem)
    assert (choice.chosen.cut.kind, choice.ladder, choice.chosen.prediction.payload_bytes) == ("output", (), 0)
    assert verify_plan(problem, choice) == []


def test_a_head_that_only_moves_bytes_still_lets_the_input_leave() -> None:
    sites = small().sites
    moves = (sites[0], dataclasses.replace(sites[1], is_input=True), sites[2])
    assert plan(small(sites=moves, demand=demand(keep="input"))).chosen.cut.kind == "output"


@pytest.mark.parametrize(("keep", "expected"), [("nothing", 1), ("input", 1), ("layer1", 1), ("layer2", 2)])
def test_keep_names_the_first_tensor_that_may_leave(keep: str, expected: int) -> None:
    assert plan(small(demand=demand(keep=keep))).chosen.cut.index == expected


def test_unknown_layer_is_an_error_that_names_some_that_exist() -> None:
    with pytest.raises(errors.UsageError, match=r"no layer 'layerX'.*layer1"):
        plan(small(demand=demand(keep="layerX")))


def test_the_limits_of_a_demand_are_said_as_a_person_writes_them() -> None:
    with pytest.raises(errors.InfeasibleError, match=r"at least 100000 frames/s"):
        plan(small(demand=demand(min_rate_fps=100_000.0)))


def test_a_kept_layer_behind_every_offered_cut_is_infeasible() -> None:
    problem = small(sites=small().sites[:2], demand=demand(keep="layer3"))
    with pytest.raises(errors.InfeasibleError, match=r"keep = 'layer3'.*allow keep = 'layer1'") as caught:
        plan(problem)
    assert caught.value.data["binding"] == ["keep"]


def test_a_held_segment_costs_no_bytes_and_wins_a_tie() -> None:
    points = tuple(grid(1, {(8, 8): 0.1, (6, 8): 0.2}))
    fresh = plan(small(points=points, segment_bytes={(1, 8): 4000, (1, 6): 3000}))
    held = plan(small(points=points, segment_bytes={(1, 8): 0, (1, 6): 3000}))
    assert (fresh.chosen.weight_bits, held.chosen.weight_bits) == (6, 8)
    assert held.chosen.prediction.segment_bytes == 0


def test_energy_is_counted_from_declared_watts() -> None:
    problem = small(power=Power(5.0, 2.0), demand=demand(weights=Weights(0.0, 1.0, 0.0)))
    p = plan(problem).chosen.prediction
    assert p.energy_source == "declared"
    assert p.energy_j == pytest.approx((5.0 * p.device_ms + 2.0 * (p.transfer_ms - 10)) / 1000)


def test_weighing_energy_without_watts_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="no watts"):
        plan(small(demand=demand(weights=Weights(1.0, 0.1, 0.0))))


def test_infeasible_names_each_single_way_out() -> None:
    with pytest.raises(errors.InfeasibleError) as caught:
        plan(small(demand=demand(max_drop_points=0.2, max_latency_ms=23.0)))
    assert set(caught.value.data["binding"]) == {"max_drop_points", "max_latency_ms"}
    assert caught.value.data["all_of"] is False
    assert str(caught.value).endswith("allow a drop of 0.5 points or 24.2 ms of latency")


def test_infeasible_in_two_ways_at_once_names_both() -> None:
    problem = small(points=tuple(grid(1, {(8, 8): 0.1})), demand=demand(max_drop_points=0.0, max_latency_ms=1.0))
    with pytest.raises(errors.InfeasibleError, match=r"allow a drop of 0\.1 points and 24\.2 ms") as caught:
        plan(problem)
    assert caught.value.data["all_of"] is True


def test_memory_keeps_a_head_off_a_small_board() -> None:
    choice = plan(small(memory_bytes=2000, demand=demand(keep="input")))
    assert "MiB free on the device" in {c.cut.kind: c.reason for c in choice.runners_up}["output"]


@pytest.mark.parametrize(
    "bad",
    [
        {"max_drop_points": -1.0},
        {"max_drop_points": math.nan},
        {"max_latency_ms": 0.0},
        {"min_rate_fps": -3.0},
        {"weights": Weights(-1.0)},
    ],
)
def test_senseless_demands_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(errors.UsageError, match="give a number"):
        plan(small(demand=demand(**bad)))


def test_a_link_without_bandwidth_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="uplink_mbps"):
        plan(small(link=LinkEstimate(1.0, 0.0, 1.0)))


def test_verifier_notices_tampering() -> None:
    problem = small()
    choice = plan(problem)
    worse = msgspec.structs.replace(choice.chosen.prediction, drop_points=50.0, payload_bytes=1, objective=0.0)
    forged = dataclasses.replace(choice, chosen=msgspec.structs.replace(choice.chosen, prediction=worse), codec=9)
    faults = verify_plan(problem, forged)
    assert {"the drop is over the demand", "the payload's size is wrong", "the objective is wrong"} <= set(faults)
    assert "the chosen codec is not on the ladder" in faults


def test_verifier_notices_a_twisted_ladder_and_a_better_rival() -> None:
    problem = small()
    choice = plan(problem)
    twisted = dataclasses.replace(choice, ladder=choice.ladder[::-1], codec=0)
    assert "the ladder is not ordered from most to fewest bits" in verify_plan(problem, twisted)
    stray = dataclasses.replace(choice, ladder=(*choice.ladder, grid(1, {(8, 2): 30.0})[0]))
    assert "a codec of the ladder is over the demanded drop" in verify_plan(problem, stray)
    worse = next(c for c in choice.runners_up if c.cut.kind == "output")
    swapped = dataclasses.replace(choice, chosen=worse, ladder=(), runners_up=(choice.chosen, choice.chosen))
    faults = verify_plan(problem, swapped)
    assert {"a cut appears twice", "a runner-up has no reason", "cut 1 meets the demand at a smaller objective"} <= set(
        faults
    )


# --- properties -----------------------------------------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    count = draw(st.integers(2, 5))
    ms = st.floats(0.0, 100.0)
    sites, points, sizes = [], [], {}
    for index in range(count):
        kind = (
            "input" if index == 0 else draw(st.sampled_from(["inside", "output"])) if index == count - 1 else "inside"
        )
        shape = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
        drawn = site(index, kind, draw(ms), draw(ms), shape, draw(st.integers(0, 10**6)))
        sites.append(dataclasses.replace(drawn, is_input=index == 0 or (index == 1 and draw(st.booleans()))))
        for w in draw(st.sets(st.sampled_from([8, 6, 4]), min_size=1)):
            sizes[index, w] = draw(st.integers(0, 10**6))
            for a in draw(st.sets(st.sampled_from([8, 6, 4, 3, 2]), min_size=1)):
                for rule in draw(st.sets(st.sampled_from(["minmax", "mse"]), min_size=1)):
                    points += grid(index, {(w, a): draw(st.floats(-1.0, 20.0))}, rule)
    optional = st.none() | st.floats(1.0, 200.0)
    wanted = Demand(
        max_drop_points=draw(st.floats(0.0, 10.0)),
        max_latency_ms=draw(optional),
        min_rate_fps=draw(optional),
        weights=Weights(*(draw(st.floats(0.0, 5.0)) for _ in range(3))),
        keep=draw(st.sampled_from(["nothing", "input", "layer1", f"layer{count}"])),
    )
    link = LinkEstimate(draw(ms), draw(st.floats(0.1, 1000.0)), 10.0)
    memory = draw(st.none() | st.integers(0, 10**6))
    names = tuple(f"layer{i}" for i in range(1, count + 1))
    return Problem("net", tuple(sites), tuple(points), link, wanted, sizes, Power(3.0, 1.0), memory, names)


def brute_force(problem: Problem) -> float | None:
    """The least objective that meets the demand, by the definitions and nothing else."""
    best, d = None, problem.demand
    for p in problem.points:
        s = problem.sites[p.cut]
        sends = s.cut.kind != "output"
        size = 40 + math.ceil(math.prod(s.cut.shape) * p.activation_bits / 8)
        sending = size * 8 / (problem.link.uplink_mbps * 1e3) if sends else 0.0
        transfer = sending + problem.link.rtt_ms if sends else 0.0
        server = s.tail_ms if sends else 0.0
        total = s.head_ms + transfer + server
        slowest = max(s.head_ms, sending, server)
        meets = p.drop <= d.max_drop_points
        meets &= d.max_latency_ms is None or total <= d.max_latency_ms
        meets &= d.min_rate_fps is None or slowest * d.min_rate_fps <= 1000 * (1 + 1e-9)
        meets &= problem.memory_bytes is None or s.memory_bytes <= problem.memory_bytes
        if sends and d.keep != "nothing":
            meets &= not s.is_input if d.keep == "input" else d.keep in s.layers
        joules = (3.0 * s.head_ms + 1.0 * sending) / 1e3
        value = d.weights.time * total / 1e3 + d.weights.energy * joules + d.weights.cost * server / 1e3
        if meets and (best is None or value < best):
            best = value
    return best


def _collapsed(problem: Problem) -> Problem:
    """Without the points the planner does not weigh: fewer weight bits at the input, fewer activation bits at the output."""
    kept = []
    for p in problem.points:
        same = [q for q in problem.points if q.cut == p.cut]
        kind = problem.sites[p.cut].cut.kind
        if kind == "input" and p.weight_bits < max(q.weight_bits for q in same):
            continue
        if kind == "output" and p.activation_bits < max(q.activation_bits for q in same):
            continue
        kept.append(p)
    return dataclasses.replace(problem, points=tuple(kept))


def relaxed(wanted: Demand, nearest: dict[str, object]) -> Demand:
    changes = {}
    for name, value in nearest.items():
        # one part in 10^9 for the rounding of 1000 / (1000 / x)
        changes[name] = value * (1 - 1e-9) if name == "min_rate_fps" else value  # type: ignore[operator]
    return msgspec.structs.replace(wanted, **changes)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_agrees_with_brute_force_and_with_the_verifier(problem: Problem) -> None:
    best = brute_force(_collapsed(problem))
    choice: Choice | None
    try:
        choice = plan(problem)
    except errors.InfeasibleError as error:
        choice = None
        check_way_out(problem, error)
    assert (choice is None) == (best is None)
    if choice is not None and best is not None:
        assert choice.chosen.prediction.objective == pytest.approx(best)
        assert verify_plan(problem, choice) == []
        assert {c.cut.index for c in choice.runners_up} == {p.cut for p in problem.points} - {choice.chosen.cut.index}


def check_way_out(problem: Problem, error: errors.InfeasibleError) -> None:
    """The nearest demand an `InfeasibleError` names is feasible, in each way it offers."""
    nearest = error.data["nearest"]
    assert set(nearest) == set(error.data["binding"])
    ways = [nearest] if error.data["all_of"] else [{name: value} for name, value in nearest.items()]
    for way in ways:
        memory = way.get("memory", problem.memory_bytes)
        wanted = relaxed(problem.demand, {k: v for k, v in way.items() if k != "memory"})
        plan(dataclasses.replace(problem, memory_bytes=memory, demand=wanted))
