"""A network shared among boards: the planner against a loop over every route, and the answers a person would expect."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_server.planner import (
    INPUT,
    Chain,
    ChainBoard,
    CutCodec,
    CutOption,
    Level,
    Route,
    WeightLayer,
    plan_route,
    verify_route,
)
from splitedge import errors
from splitedge.codec import STAGES
from splitedge.protocol.messages import Cut, Demand, LinkEstimate
from tests.drawn import drawn

GIGABIT = LinkEstimate(0.5, 1000.0, 1000.0)
Hops = list[tuple[int, int, int, int | None, int | None]]  # device, start, end, codec, target
SLOW = LinkEstimate(5.0, 2.0, 2.0)


def options(layers: int, rng: np.random.Generator, *, coded: bool = False) -> tuple[CutOption, ...]:
    """Cuts at the input, after every layer, and the output; at each, codecs that only pack, and where ``coded`` two of fewer bytes that take time."""
    weights = [
        WeightLayer(f"layer{i}", 100, tuple(rng.uniform(0.1, 1) * 4.0**-b for b in range(2, 9))) for i in range(layers)
    ]
    found = []
    for i in range(layers + 1):
        kind = "input" if i == 0 else "output" if i == layers else "inside"
        elements = int(rng.integers(50, 2000))
        codecs = [CutCodec("mse", b, 40 + elements * b // 8, float(rng.uniform(0.5, 2) * 4.0**-b)) for b in (8, 4, 2)]
        if coded:
            work = {str(rng.choice(STAGES)): float(elements) for _ in range(2)}
            codecs.append(CutCodec("entropy", 3, 40 + elements // 4, float(rng.uniform(0.5, 2) * 4.0**-3), work))
            codecs.append(CutCodec("pca", 8, 40 + elements // 3, codecs[0].noise, work | {"basis": 8.0 * elements}))
        inside = frozenset(f"layer{j}" for j in range(i))
        cut = Cut(i, f"layer{i - 1}" if i else "input", f"t{i}", [elements], kind)  # type: ignore[arg-type]
        found.append(CutOption(cut, tuple(weights[:i]), () if kind == "output" else tuple(codecs), 0.0, 0, inside))
    return tuple(found)


def spans(times: list[float], speed: float = 1.0, call: float = 0.0) -> np.ndarray:
    """Of a device that takes ``times`` for the layers, ``speed`` times as fast, and ``call`` beside for whatever it does."""
    ends = np.concatenate([[0.0], np.cumsum(times)]) / speed
    made = np.full((len(ends) + 1, len(ends)), math.inf)
    for start, end in itertools.product(range(-1, len(ends)), range(len(ends))):
        if end >= start:
            made[start + 1, end] = ends[end] - ends[max(start, 0)] + call
    return made


def chain(
    times: list[float], speeds: list[float], links: dict[tuple[int, int], LinkEstimate], **changes: object
) -> Chain:
    found = options(len(times), np.random.default_rng(0))
    count = len(found)
    tails = changes.pop("tail_ms", (1000.0,) * (count - 1) + (0.0,))
    made = Chain(
        "net", found, (Level(1.0, 1.0),), Demand(), "latency", tuple(ChainBoard(spans(times, speed)) for speed in speeds),
        links, np.zeros((count + 1, count)), tails,  # type: ignore[arg-type]
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def routes(made: Chain, board: int = 0, start: int = INPUT) -> Iterator[Hops]:
    """Every way on from ``device``, where place ``start`` has arrived: (device, start, end, codec, target) of each step."""
    count = len(made.boards)
    for end in range(max(0, start), len(made.options)):
        if made.spread and (end == start or made.options[end].cut.kind != "inside"):
            continue
        if made.options[end].cut.kind == "output":
            yield [(board, start, end, None, None)]
            continue
        for target in range(board + 1, count + 1):
            if (board, target) not in made.links or (made.spread and target != board + 1):
                continue
            for codec in range(len(made.options[end].codecs)):
                hop = (board, start, end, codec, target)
                if target == count:
                    yield [hop]
                else:
                    for rest in routes(made, target, end):
                        yield [hop, *rest]


def costs(made: Chain, hops: Hops) -> tuple[float, float, float] | None:
    """Total, pace and least noise of a way; None where it breaks the demand."""
    total = pace = noise = 0.0
    came: CutCodec | None = None
    for board, start, end, codec, target in hops:
        one = made.boards[board]
        used = [c for c in (came, None if codec is None else made.options[end].codecs[codec]) if c is not None]
        stages = [(one.stage_ns[STAGES.index(s)], values) for c in used for s, values in c.work.items()]
        span = float(one.span_ms[start + 1, end]) + sum(ns * values / 1e6 for ns, values in stages)
        if one.memory_bytes is not None and made.span_bytes[start + 1, end] > one.memory_bytes:
            return None
        total, pace = total + span, max(pace, span)
        if codec is None or target is None:
            continue
        came = how = made.options[end].codecs[codec]
        link = made.links[board, target]
        sending = how.frame_bytes * 8 / link.uplink_mbps / 1000
        total, pace, noise = total + sending + link.rtt_ms, max(pace, sending), noise + how.noise
        if board == 0 and made.demand.keep == "input" and made.options[end].cut.kind == "input":
            return None
    last = made.options[hops[-1][2]]
    noise += last.noise + sum(min(layer.noise) for layer in last.layers)
    if hops[-1][3] is not None:
        tail = made.tail_ms[hops[-1][2]]
        total, pace = total + made.queue_ms + tail, max(pace, tail)
    pace = max(pace, total / made.window)
    allowed = max(
        (level.noise for level in made.levels if level.drop_points <= made.demand.max_drop_points), default=-1
    )
    late = made.demand.max_latency_ms is not None and total > made.demand.max_latency_ms
    slow = made.demand.min_rate_fps is not None and pace * made.demand.min_rate_fps > 1000
    return None if noise > allowed or late or slow or math.isinf(total) else (total, pace, noise)


def by_hand(made: Chain) -> tuple[float, float] | None:
    """Total and pace of the best of all routes."""
    found = [cost for cost in (costs(made, way) for way in routes(made)) if cost is not None]
    order = (lambda c: (c[1], c[0])) if made.objective == "rate" else (lambda c: (c[0], 0.0))
    return min(found, key=order, default=(0.0, 0.0, 0.0))[:2] if found else None


def as_told(route: Route) -> Hops:
    return [(s.board, s.start, s.end, s.codec, s.to) for s in route.hops]


def any_chain(rng: np.random.Generator) -> Chain:
    """One to three boards of all kinds, with a demand that may be more than they can do."""
    layers, boards = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    found = options(layers, rng, coded=True)
    speeds = rng.choice([0.2, 1.0, 1.0, 5.0], boards)
    made_links = {
        (i, j): LinkEstimate(float(rng.choice([0.0, 1.0, 30.0])), float(rng.choice([0.5, 8.0, 100.0])), 10.0)
        for i, j in itertools.combinations(range(boards + 1), 2)
        if j == i + 1 or rng.random() < 0.4
    }
    times = rng.uniform(0.5, 20, layers).tolist()
    return Chain(
        model="net", options=found, levels=(Level(0.5, 0.002), Level(1.0, 0.05), Level(5.0, 1.0)),
        demand=Demand(
            max_drop_points=float(rng.choice([0.1, 0.5, 1.0, 5.0])), keep=str(rng.choice(["nothing", "input"])),
            max_latency_ms=float(rng.uniform(10, 80)) if rng.random() < 0.3 else None,
            min_rate_fps=float(rng.uniform(5, 200)) if rng.random() < 0.3 else None,
        ),
        objective="rate" if rng.random() < 0.5 else "latency",
        boards=tuple(
            ChainBoard(
                spans(times, float(speed), float(rng.uniform(0, 1))), int(rng.choice([200, 500])) if rng.random() < 0.3 else None,
                tuple((rng.choice([0.0, 1.0, 100.0, 3000.0]) * rng.uniform(0.5, 1, len(STAGES))).tolist()),
            )
            for speed in speeds
        ),
        links=made_links, span_bytes=spans([100.0] * layers, 1.0, 100.0),
        tail_ms=(*rng.uniform(0.1, 20, layers).tolist(), 0.0), queue_ms=float(rng.choice([0.0, 3.0])),
        window=int(rng.choice([1, 2, 8])), spread=bool(rng.random() < 0.3),
    )  # fmt: skip


@drawn(100)
@given(st.integers(0, 2**32 - 1))
def test_no_route_is_better_than_the_one_chosen(seed: int) -> None:
    made = any_chain(np.random.default_rng(seed))
    best = by_hand(made)
    if best is None:
        with pytest.raises(errors.InfeasibleError):
            plan_route(made)
        return
    route = plan_route(made)
    told = costs(made, as_told(route))
    assert told is not None, "the route breaks the demand"
    assert (route.total_ms, route.pace_ms) == pytest.approx(told[:2])
    if made.objective == "rate":
        assert route.pace_ms == pytest.approx(best[1])
    assert made.objective == "rate" or route.total_ms == pytest.approx(best[0])
    allowed = max(level.noise for level in made.levels if level.drop_points <= made.demand.max_drop_points)
    assert route.noise <= allowed * (1 + 1e-9)
    assert verify_route(made, route) == []


@drawn(100)
@given(st.integers(0, 2**32 - 1))
def test_the_verifier_refuses_a_route_of_which_anything_is_changed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = any_chain(rng)
    try:
        route = plan_route(made)
    except errors.InfeasibleError:
        return
    which = int(rng.integers(len(route.hops)))
    hop = route.hops[which]
    for name in ("board", "start", "end", "work_ms", "sending_ms", "rtt_ms"):
        assert verify_route(made, with_hop(route, which, **{name: getattr(hop, name) + 1})), name
    for name in ("queue_ms", "server_ms", "total_ms", "pace_ms", "noise"):
        assert verify_route(made, dataclasses.replace(route, **{name: getattr(route, name) + 1})), name
    assert verify_route(made, with_hop(route, which, codec=99, to=99))
    assert verify_route(made, dataclasses.replace(route, hops=route.hops[1:]))
    assert verify_route(made, dataclasses.replace(route, hops=route.hops[:-1]))
    assert verify_route(made, dataclasses.replace(route, bits=(*route.bits, 2)))
    if route.bits:
        assert verify_route(made, dataclasses.replace(route, bits=(10,) * len(route.bits)))


@drawn(100)
@given(st.integers(0, 2**32 - 1), st.data())
def test_the_verifier_refuses_another_route_only_for_being_worse(seed: int, data: st.DataObject) -> None:
    """Told with its own true times and best bits, so that nothing but the comparison can betray it."""
    made = any_chain(np.random.default_rng(seed))
    allowed = [way for way in routes(made) if costs(made, way) is not None]
    told_apart = [way for way in allowed if len({hop[2] for hop in way}) == len(way)]
    if not told_apart:
        return
    way = data.draw(st.sampled_from(told_apart))
    faults = verify_route(made, route_of(made, way))
    assert set(faults) <= {"another cut or codec of one link is better"}
    if faults:
        assert better(made, way, allowed)
    assert faults or not better(made, way, [other for other in allowed if one_change_from(way, other)])


def better(made: Chain, way: Hops, others: list[Hops]) -> bool:
    """Whether any of ``others`` takes less than ``way``."""
    wanted = made.objective == "rate"
    taken = [cost[wanted] for cost in (costs(made, one) for one in (way, *others)) if cost is not None]
    return any(one < taken[0] * (1 - 1e-8) for one in taken[1:])


def one_change_from(way: Hops, other: Hops) -> bool:
    """Whether ``other`` has the same devices and another cut or codec of one link."""
    if [(s[0], s[4]) for s in way] != [(s[0], s[4]) for s in other]:
        return False
    return sum(one[2:4] != two[2:4] for one, two in zip(way, other, strict=True)) == 1


def with_hop(route: Route, which: int, **changes: object) -> Route:
    hops = list(route.hops)
    hops[which] = dataclasses.replace(hops[which], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(route, hops=tuple(hops))


def route_of(made: Chain, way: Hops) -> Route:
    """The best answer among those that go this way: what `share` says of a chain that leaves no other."""
    options = list(made.options)
    boards = [dataclasses.replace(one, span_ms=np.full_like(one.span_ms, math.inf)) for one in made.boards]
    for board, start, end, codec, _ in way:
        boards[board].span_ms[start + 1, end] = made.boards[board].span_ms[start + 1, end]
        if codec is not None:
            options[end] = dataclasses.replace(options[end], codecs=made.options[end].codecs[codec : codec + 1])
    links = {(d, to): made.links[d, to] for d, _, _, _, to in way if to is not None}
    if not links:
        links = made.links
    only = plan_route(dataclasses.replace(made, options=tuple(options), boards=tuple(boards), links=links))
    hops = tuple(dataclasses.replace(one, codec=codec) for one, (_, _, _, codec, _) in zip(only.hops, way, strict=True))
    return dataclasses.replace(only, hops=hops)


def test_two_boards_of_one_type_take_half_each_for_the_rate() -> None:
    made = chain([10.0] * 4, [1.0, 1.0], {(0, 1): GIGABIT, (1, 2): GIGABIT}, objective="rate")
    route = plan_route(made)
    assert [(s.board, s.start, s.end) for s in route.hops] == [(0, INPUT, 2), (1, 2, 4)]
    assert route.pace_ms == pytest.approx(20.0)


def test_a_faster_board_takes_more() -> None:
    made = chain([10.0] * 4, [1.0, 3.0], {(0, 1): GIGABIT, (1, 2): GIGABIT}, objective="rate")
    assert [s.end for s in plan_route(made).hops] == [1, 4]


def test_for_least_latency_a_slow_board_is_left_out() -> None:
    links = {(0, 1): GIGABIT, (1, 2): GIGABIT, (0, 2): GIGABIT}
    fast_server = chain([10.0] * 4, [1.0, 0.1], links, tail_ms=(1.0, 1.0, 1.0, 1.0, 0.0))
    assert [s.board for s in plan_route(fast_server).hops] == [0]


def test_a_board_that_nothing_leads_past_passes_the_tensor_on() -> None:
    made = chain([10.0] * 4, [1.0, 0.01], {(0, 1): GIGABIT, (1, 2): GIGABIT}, tail_ms=(1.0, 1.0, 1.0, 1.0, 0.0))
    first, second = plan_route(made).hops
    assert second.start == second.end == first.end


def test_every_board_takes_part_where_that_is_asked_for() -> None:
    links = {(0, 1): SLOW, (1, 2): SLOW, (0, 2): GIGABIT}
    made = chain([10.0] * 4, [5.0, 0.1], links, tail_ms=(1.0,) * 5, spread=True)
    first, second = plan_route(made).hops
    assert INPUT < 0 < first.end == second.start < second.end < 4
    assert second.to == 2


def test_memory_spreads_a_network_that_no_board_holds() -> None:
    made = chain([10.0] * 4, [1.0, 1.0], {(0, 1): GIGABIT, (1, 2): GIGABIT}, span_bytes=spans([100.0] * 4))
    roomy = dataclasses.replace(made, boards=(ChainBoard(made.boards[0].span_ms, 400), made.boards[1]))
    tight = dataclasses.replace(made, boards=tuple(ChainBoard(one.span_ms, 200) for one in made.boards))
    assert [(s.start, s.end) for s in plan_route(roomy).hops] == [(INPUT, 4)]
    assert [(s.start, s.end) for s in plan_route(tight).hops] == [(INPUT, 2), (2, 4)]


def test_a_slow_link_takes_fewer_bits_where_the_accuracy_allows_it() -> None:
    quick = chain([10.0] * 4, [1.0, 1.0], {(0, 1): GIGABIT, (1, 2): GIGABIT}, objective="rate")
    slow = dataclasses.replace(quick, links={(0, 1): SLOW, (1, 2): GIGABIT})
    strict = dataclasses.replace(slow, levels=(Level(1.0, 1e-3),))
    codec = plan_route(slow).hops[0].codec
    assert codec is not None
    assert slow.options[plan_route(slow).hops[0].end].codecs[codec].bits == 2
    assert plan_route(strict).pace_ms >= plan_route(slow).pace_ms


def test_noises_of_codecs_add_up() -> None:
    """Two links of 2 bits are over the bound of one."""
    made = chain([10.0] * 4, [1.0, 1.0], {(0, 1): SLOW, (1, 2): SLOW}, tail_ms=(0.0,) * 5)
    made = dataclasses.replace(made, demand=Demand(keep="input"))
    least = min(option.codecs[-1].noise for option in made.options[1:-1])
    tight = dataclasses.replace(made, levels=(Level(1.0, 1.5 * least + 1e-3),))
    for one in (made, tight):
        route = plan_route(one)
        assert route.noise <= one.levels[0].noise
        assert by_hand(one) == pytest.approx((route.total_ms, costs(one, as_told(route))[1]))  # type: ignore[index]


def test_what_no_chain_can_do_is_said_with_what_to_allow() -> None:
    made = chain([10.0] * 4, [1.0, 1.0], {(0, 1): GIGABIT, (1, 2): GIGABIT})
    small = (ChainBoard(made.boards[0].span_ms, 1),) * 2
    for binding, one in {
        "min_rate_fps": dataclasses.replace(made, demand=Demand(min_rate_fps=1000)),
        "max_latency_ms": dataclasses.replace(made, demand=Demand(max_latency_ms=1)),
        "max_drop_points": dataclasses.replace(made, demand=Demand(max_drop_points=0.1)),
        "memory": dataclasses.replace(made, span_bytes=np.full((6, 5), 10.0), boards=small),
    }.items():
        with pytest.raises(errors.InfeasibleError) as caught:
            plan_route(one)
        assert binding in caught.value.data["binding"]


def test_a_chain_that_makes_no_sense_is_refused() -> None:
    made = chain([10.0] * 4, [1.0, 1.0], {(0, 1): GIGABIT, (1, 2): GIGABIT})
    for wrong in (
        {"boards": ()}, {"links": {}}, {"links": {(1, 0): GIGABIT}}, {"tail_ms": (1.0,)}, {"window": 0},
        {"demand": Demand(mode="split")}, {"links": {(0, 1): LinkEstimate(-1.0, 1.0, 1.0)}},
    ):  # fmt: skip
        with pytest.raises(errors.UsageError):
            plan_route(dataclasses.replace(made, **wrong))  # type: ignore[arg-type]


def test_a_deep_network_over_four_boards_is_planned_in_a_moment() -> None:
    times = np.random.default_rng(1).uniform(1, 5, 40).tolist()
    links = {(i, i + 1): LinkEstimate(1.0, 50.0, 50.0) for i in range(4)}
    made = chain(times, [1.0, 0.5, 2.0, 1.0], links, objective="rate", tail_ms=(5.0,) * 41)
    route = plan_route(made)
    assert len(route.hops) == 4
    assert route.pace_ms < sum(times)
