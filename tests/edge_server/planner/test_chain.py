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

from edge_server.planner import INPUT, Chain, CutCodec, Device, Layer, Level, Place, Route, share, verify_route
from splitedge import errors
from splitedge.codec import STAGES
from splitedge.protocol.messages import Cut, Demand, LinkEstimate
from tests.drawn import drawn

GIGABIT = LinkEstimate(0.5, 1000.0, 1000.0)
Steps = list[tuple[int, int, int, int | None, int | None]]  # device, start, end, codec, target
SLOW = LinkEstimate(5.0, 2.0, 2.0)


def places(layers: int, rng: np.random.Generator, *, coded: bool = False) -> tuple[Place, ...]:
    """Cuts at the input, after every layer, and the output; at each, codecs that only pack, and where ``coded`` two of fewer bytes that take time."""
    weights = [
        Layer(f"layer{i}", 100, tuple(rng.uniform(0.1, 1) * 4.0**-b for b in range(2, 9))) for i in range(layers)
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
        found.append(Place(cut, tuple(weights[:i]), () if kind == "output" else tuple(codecs), 0.0, 0, inside))
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
    found = places(len(times), np.random.default_rng(0))
    count = len(found)
    tails = changes.pop("tail_ms", (1000.0,) * (count - 1) + (0.0,))
    made = Chain(
        "net", found, (Level(1.0, 1.0),), Demand(), "latency", tuple(Device(spans(times, speed)) for speed in speeds),
        links, np.zeros((count + 1, count)), tails,  # type: ignore[arg-type]
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def routes(made: Chain, device: int = 0, start: int = INPUT) -> Iterator[Steps]:
    """Every way on from ``device``, where place ``start`` has arrived: (device, start, end, codec, target) of each step."""
    count = len(made.devices)
    for end in range(max(0, start), len(made.places)):
        if made.spread and (end == start or made.places[end].cut.kind != "inside"):
            continue
        if made.places[end].cut.kind == "output":
            yield [(device, start, end, None, None)]
            continue
        for target in range(device + 1, count + 1):
            if (device, target) not in made.links or (made.spread and target != device + 1):
                continue
            for codec in range(len(made.places[end].codecs)):
                step = (device, start, end, codec, target)
                if target == count:
                    yield [step]
                else:
                    for rest in routes(made, target, end):
                        yield [step, *rest]


def costs(made: Chain, steps: Steps) -> tuple[float, float, float] | None:
    """Total, pace and least noise of a way; None where it breaks the demand."""
    total = pace = noise = 0.0
    came: CutCodec | None = None
    for device, start, end, codec, target in steps:
        one = made.devices[device]
        used = [c for c in (came, None if codec is None else made.places[end].codecs[codec]) if c is not None]
        stages = [(one.stage_ns[STAGES.index(s)], values) for c in used for s, values in c.work.items()]
        span = float(one.span_ms[start + 1, end]) + sum(ns * values / 1e6 for ns, values in stages)
        if one.memory_bytes is not None and made.span_bytes[start + 1, end] > one.memory_bytes:
            return None
        total, pace = total + span, max(pace, span)
        if codec is None or target is None:
            continue
        came = how = made.places[end].codecs[codec]
        link = made.links[device, target]
        sending = how.frame_bytes * 8 / link.uplink_mbps / 1000
        total, pace, noise = total + sending + link.rtt_ms, max(pace, sending), noise + how.noise
        if device == 0 and made.demand.keep == "input" and made.places[end].cut.kind == "input":
            return None
    last = made.places[steps[-1][2]]
    noise += last.noise + sum(min(layer.noise) for layer in last.layers)
    if steps[-1][3] is not None:
        tail = made.tail_ms[steps[-1][2]]
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


def as_told(route: Route) -> Steps:
    return [(s.device, s.start, s.end, s.codec, s.to) for s in route.steps]


def any_chain(rng: np.random.Generator) -> Chain:
    """One to three boards of all kinds, with a demand that may be more than they can do."""
    layers, devices = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    found = places(layers, rng, coded=True)
    speeds = rng.choice([0.2, 1.0, 1.0, 5.0], devices)
    made_links = {
        (i, j): LinkEstimate(float(rng.choice([0.0, 1.0, 30.0])), float(rng.choice([0.5, 8.0, 100.0])), 10.0)
        for i, j in itertools.combinations(range(devices + 1), 2)
        if j == i + 1 or rng.random() < 0.4
    }
    times = rng.uniform(0.5, 20, layers).tolist()
    return Chain(
        model="net", places=found, levels=(Level(0.5, 0.002), Level(1.0, 0.05), Level(5.0, 1.0)),
        demand=Demand(
            max_drop_points=float(rng.choice([0.1, 0.5, 1.0, 5.0])), keep=str(rng.choice(["nothing", "input"])),
            max_latency_ms=float(rng.uniform(10, 80)) if rng.random() < 0.3 else None,
            min_rate_fps=float(rng.uniform(5, 200)) if rng.random() < 0.3 else None,
        ),
        objective="rate" if rng.random() < 0.5 else "latency",
        devices=tuple(
            Device(
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
            share(made)
        return
    route = share(made)
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
        route = share(made)
    except errors.InfeasibleError:
        return
    which = int(rng.integers(len(route.steps)))
    step = route.steps[which]
    for name in ("device", "start", "end", "work_ms", "sending_ms", "rtt_ms"):
        assert verify_route(made, with_step(route, which, **{name: getattr(step, name) + 1})), name
    for name in ("queue_ms", "server_ms", "total_ms", "pace_ms", "noise"):
        assert verify_route(made, dataclasses.replace(route, **{name: getattr(route, name) + 1})), name
    assert verify_route(made, with_step(route, which, codec=99, to=99))
    assert verify_route(made, dataclasses.replace(route, steps=route.steps[1:]))
    assert verify_route(made, dataclasses.replace(route, steps=route.steps[:-1]))
    assert verify_route(made, dataclasses.replace(route, bits=(*route.bits, 2)))
    if route.bits:
        assert verify_route(made, dataclasses.replace(route, bits=(10,) * len(route.bits)))


@drawn(100)
@given(st.integers(0, 2**32 - 1), st.data())
def test_the_verifier_refuses_another_route_only_for_being_worse(seed: int, data: st.DataObject) -> None:
    """Told with its own true times and best bits, so that nothing but the comparison can betray it."""
    made = any_chain(np.random.default_rng(seed))
    allowed = [way for way in routes(made) if costs(made, way) is not None]
    told_apart = [way for way in allowed if len({step[2] for step in way}) == len(way)]
    if not told_apart:
        return
    way = data.draw(st.sampled_from(told_apart))
    faults = verify_route(made, route_of(made, way))
    assert set(faults) <= {"another cut or codec of one link would be better"}
    if faults:
        assert better(made, way, allowed)
    assert faults or not better(made, way, [other for other in allowed if one_change_from(way, other)])


def better(made: Chain, way: Steps, others: list[Steps]) -> bool:
    """Whether any of ``others`` takes less than ``way``."""
    wanted = made.objective == "rate"
    taken = [cost[wanted] for cost in (costs(made, one) for one in (way, *others)) if cost is not None]
    return any(one < taken[0] * (1 - 1e-8) for one in taken[1:])


def one_change_from(way: Steps, other: Steps) -> bool:
    """Whether ``other`` has the same devices and another cut or codec of one link."""
    if [(s[0], s[4]) for s in way] != [(s[0], s[4]) for s in other]:
        return False
    return sum(one[2:4] != two[2:4] for one, two in zip(way, other, strict=True)) == 1


def with_step(route: Route, which: int, **changes: object) -> Route:
    steps = list(route.steps)
    steps[which] = dataclasses.replace(steps[which], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(route, steps=tuple(steps))


def route_of(made: Chain, way: Steps) -> Route:
    """The best answer among those that go this way: what `share` says of a chain that leaves no other."""
    places = list(made.places)
    devices = [dataclasses.replace(one, span_ms=np.full_like(one.span_ms, math.inf)) for one in made.devices]
    for device, start, end, codec, _ in way:
        devices[device].span_ms[start + 1, end] = made.devices[device].span_ms[start + 1, end]
        if codec is not None:
            places[end] = dataclasses.replace(places[end], codecs=made.places[end].codecs[codec : codec + 1])
    links = {(d, to): made.links[d, to] for d, _, _, _, to in way if to is not None}
    if not links:
        links = made.links
    only = share(dataclasses.replace(made, places=tuple(places), devices=tuple(devices), links=links))
    steps = tuple(
        dataclasses.replace(one, codec=codec) for one, (_, _, _, codec, _) in zip(only.steps, way, strict=True)
    )
    return dataclasses.replace(only, steps=steps)


def test_two_boards_of_one_type_take_half_each_for_the_rate() -> None:
    made = chain([10.0] * 4, [1.0, 1.0], {(0, 1): GIGABIT, (1, 2): GIGABIT}, objective="rate")
    route = share(made)
    assert [(s.device, s.start, s.end) for s in route.steps] == [(0, INPUT, 2), (1, 2, 4)]
    assert route.pace_ms == pytest.approx(20.0)


def test_a_faster_board_takes_more() -> None:
    made = chain([10.0] * 4, [1.0, 3.0], {(0, 1): GIGABIT, (1, 2): GIGABIT}, objective="rate")
    assert [s.end for s in share(made).steps] == [1, 4]


def test_for_least_latency_a_slow_board_is_left_out() -> None:
    links = {(0, 1): GIGABIT, (1, 2): GIGABIT, (0, 2): GIGABIT}
    fast_server = chain([10.0] * 4, [1.0, 0.1], links, tail_ms=(1.0, 1.0, 1.0, 1.0, 0.0))
    assert [s.device for s in share(fast_server).steps] == [0]


def test_a_board_that_nothing_leads_past_passes_the_tensor_on() -> None:
    made = chain([10.0] * 4, [1.0, 0.01], {(0, 1): GIGABIT, (1, 2): GIGABIT}, tail_ms=(1.0, 1.0, 1.0, 1.0, 0.0))
    first, second = share(made).steps
    assert second.start == second.end == first.end


def test_every_board_takes_part_where_that_is_asked_for() -> None:
    links = {(0, 1): SLOW, (1, 2): SLOW, (0, 2): GIGABIT}
    made = chain([10.0] * 4, [5.0, 0.1], links, tail_ms=(1.0,) * 5, spread=True)
    first, second = share(made).steps
    assert INPUT < 0 < first.end == second.start < second.end < 4
    assert second.to == 2


def test_memory_spreads_a_network_that_no_board_holds() -> None:
    made = chain([10.0] * 4, [1.0, 1.0], {(0, 1): GIGABIT, (1, 2): GIGABIT}, span_bytes=spans([100.0] * 4))
    roomy = dataclasses.replace(made, devices=(Device(made.devices[0].span_ms, 400), made.devices[1]))
    tight = dataclasses.replace(made, devices=tuple(Device(one.span_ms, 200) for one in made.devices))
    assert [(s.start, s.end) for s in share(roomy).steps] == [(INPUT, 4)]
    assert [(s.start, s.end) for s in share(tight).steps] == [(INPUT, 2), (2, 4)]


def test_a_slow_link_takes_fewer_bits_where_the_accuracy_allows_it() -> None:
    quick = chain([10.0] * 4, [1.0, 1.0], {(0, 1): GIGABIT, (1, 2): GIGABIT}, objective="rate")
    slow = dataclasses.replace(quick, links={(0, 1): SLOW, (1, 2): GIGABIT})
    strict = dataclasses.replace(slow, levels=(Level(1.0, 1e-3),))
    codec = share(slow).steps[0].codec
    assert codec is not None
    assert slow.places[share(slow).steps[0].end].codecs[codec].bits == 2
    assert share(strict).pace_ms >= share(slow).pace_ms


def test_noises_of_codecs_add_up() -> None:
    """Two links of 2 bits are over the bound of one."""
    made = chain([10.0] * 4, [1.0, 1.0], {(0, 1): SLOW, (1, 2): SLOW}, tail_ms=(0.0,) * 5)
    made = dataclasses.replace(made, demand=Demand(keep="input"))
    least = min(place.codecs[-1].noise for place in made.places[1:-1])
    tight = dataclasses.replace(made, levels=(Level(1.0, 1.5 * least + 1e-3),))
    for one in (made, tight):
        route = share(one)
        assert route.noise <= one.levels[0].noise
        assert by_hand(one) == pytest.approx((route.total_ms, costs(one, as_told(route))[1]))  # type: ignore[index]


def test_what_no_chain_can_do_is_said_with_what_to_allow() -> None:
    made = chain([10.0] * 4, [1.0, 1.0], {(0, 1): GIGABIT, (1, 2): GIGABIT})
    with pytest.raises(errors.InfeasibleError, match="frames/s: allow a rate of"):
        share(dataclasses.replace(made, demand=Demand(min_rate_fps=1000)))
    with pytest.raises(errors.InfeasibleError, match="ms: allow"):
        share(dataclasses.replace(made, demand=Demand(max_latency_ms=1)))
    with pytest.raises(errors.InfeasibleError, match="points: allow"):
        share(dataclasses.replace(made, demand=Demand(max_drop_points=0.1)))
    with pytest.raises(errors.InfeasibleError, match="memory"):
        share(
            dataclasses.replace(
                made, span_bytes=np.full((6, 5), 10.0), devices=(Device(made.devices[0].span_ms, 1),) * 2
            )
        )


def test_a_chain_that_makes_no_sense_is_refused() -> None:
    made = chain([10.0] * 4, [1.0, 1.0], {(0, 1): GIGABIT, (1, 2): GIGABIT})
    for wrong in (
        {"devices": ()}, {"links": {}}, {"links": {(1, 0): GIGABIT}}, {"tail_ms": (1.0,)}, {"window": 0},
        {"demand": Demand(mode="split")}, {"links": {(0, 1): LinkEstimate(-1.0, 1.0, 1.0)}},
    ):  # fmt: skip
        with pytest.raises(errors.UsageError):
            share(dataclasses.replace(made, **wrong))  # type: ignore[arg-type]


def test_a_deep_network_over_four_boards_is_planned_in_a_moment() -> None:
    times = np.random.default_rng(1).uniform(1, 5, 40).tolist()
    links = {(i, i + 1): LinkEstimate(1.0, 50.0, 50.0) for i in range(4)}
    made = chain(times, [1.0, 0.5, 2.0, 1.0], links, objective="rate", tail_ms=(5.0,) * 41)
    route = share(made)
    assert len(route.steps) == 4
    assert route.pace_ms < sum(times)
