"""The online choice against a plain loop over everything, its verifier, and the answers a person would expect."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_server.planner import (
    Allocation,
    CutCodec,
    CutOption,
    Level,
    Pick,
    PowerDraw,
    Query,
    Table,
    WeightLayer,
    allocate,
    choose,
    patterns,
    precompute,
    runners_up,
    verify_pick,
)
from edge_server.planner.allocation import MIN_SAVING, WIDTHS, segment_bytes, total_noise
from splitedge import errors
from splitedge.codec import STAGES
from splitedge.protocol.messages import Cut, Demand, LinkEstimate, Weights
from tests.drawn import drawn
from tests.raising import raises

LINK = LinkEstimate(rtt_ms=10.0, uplink_mbps=20.0, downlink_mbps=20.0)
LEVELS = (Level(0.25, 0.004), Level(1.0, 0.02), Level(5.0, 0.2))


def network(layers: int = 4, seed: int = 0, levels: tuple[Level, ...] = LEVELS, *, webp: bool = False) -> Table:
    """Cuts at the input, after every layer, and the output; tensors that shrink and weights that grow."""
    rng = np.random.default_rng(seed)
    weights = [
        WeightLayer(f"layer{i}", int(200 * 2**i), tuple((rng.uniform(0.2, 2) * 4.0**-b) for b in WIDTHS))
        for i in range(1, layers + 1)
    ]
    options = []
    for i in range(layers + 1):
        kind = "input" if i == 0 else "output" if i == layers else "inside"
        elements = 20_000 // 2**i
        codecs = [
            CutCodec("mse", b, 40 + elements * b // 8, float(0.3 * 4.0**-b * rng.uniform(0.5, 2))) for b in (8, 6, 4, 2)
        ]
        if i == 0:
            codecs.append(CutCodec("jpeg-80", 8, 40 + elements * 3 // 8, 0.003, {"jpeg": float(elements)}))
        if i == 0 and webp:
            codecs.append(CutCodec("webp-80", 8, 40 + elements * 2 // 8, 0.003, {"webp": float(elements)}))
        options.append(
            CutOption(
                cut=Cut(i, f"layer{i}" if i else "input", f"t{i}", [elements], kind),
                layers=tuple(weights[:i]),
                codecs=() if kind == "output" else tuple(codecs),
                tail_ms=float(layers - i),
                memory_bytes=1000 * (i + 1),
                inside=frozenset(f"layer{j}" for j in range(1, i + 1)),
                other_bytes=100 * i,
                operators=frozenset(["conv", "view"] if i > 2 else ["conv"]),
            )
        )
    return precompute("net", options, levels)


TABLE, WEBP = network(), network(webp=True)


def request(**changes: object) -> Query:
    made = Query(Demand(), LINK, (0.0, 3.0, 6.0, 12.0, 60.0), PowerDraw(2.0, 1.0))
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def demand(**fields: object) -> Demand:
    return Demand(**fields)  # type: ignore[arg-type]


def by_hand(table: Table, asked: Query) -> float:
    """The least objective of all pairs of pattern and codec, one at a time; infinite where none meets the demand."""
    wanted, link, best = asked.demand, asked.link, math.inf
    budget = max((level.noise for level in table.levels if level.drop_points <= wanted.max_drop_points), default=-1.0)
    for index, pattern in enumerate(table.patterns):
        option = table.options[pattern.option]
        away = option.cut.kind != "output"
        if asked.memory_bytes is not None and option.memory_bytes > asked.memory_bytes:
            continue
        if asked.operators is not None and not option.operators <= asked.operators:
            continue
        if (
            away
            and wanted.keep != "nothing"
            and (option.cut.kind == "input" if wanted.keep == "input" else wanted.keep not in option.inside)
        ):
            continue
        for codec in option.codecs or (CutCodec("", 0, 0, 0.0),):
            if pattern.noise + codec.noise > budget:
                continue
            if "webp" in codec.work and asked.formats is not None and "webp" not in asked.formats:
                continue
            sending = codec.frame_bytes * 8 / link.uplink_mbps / 1000
            tail = option.tail_ms if away else 0.0
            head = asked.head_ms[pattern.option] + 1e-6 * sum(
                amount * asked.stage_ns[STAGES.index(stage)] for stage, amount in codec.work.items()
            )
            total = head + sending + (link.rtt_ms + asked.sending_ms + asked.queue_ms + tail if away else 0.0)
            if wanted.max_latency_ms is not None and total > wanted.max_latency_ms:
                continue
            if wanted.min_rate_fps is not None and max(head, tail, sending) > 1000 / wanted.min_rate_fps:
                continue
            fetch = (
                0.0
                if asked.demand.frames is None or index in asked.held
                else pattern.segment_bytes * 8 / link.downlink_mbps / 1000 / asked.demand.frames
            )
            joules = ((asked.power.compute_w or 0) * head + (asked.power.transmit_w or 0) * sending) / 1000
            traffic = codec.frame_bytes
            if asked.demand.frames is not None and index not in asked.held:
                traffic += pattern.segment_bytes / asked.demand.frames
            w = wanted.weights
            price = w.energy * joules + w.cost * tail / 1000 + w.megabyte * traffic / 1e6
            best = min(best, w.time * (total + fetch) / 1000 + price)
    return best


several = st.one_of(st.none(), st.floats(0.1, 100))
demands = st.builds(
    Demand,
    max_drop_points=st.sampled_from([0.1, 0.25, 0.9, 1.0, 7.0]),
    max_latency_ms=several,
    min_rate_fps=several,
    weights=st.builds(
        Weights, time=st.floats(0, 1), energy=st.floats(0, 1), cost=st.floats(0, 1), megabyte=st.floats(0, 100)
    ),
    keep=st.sampled_from(["nothing", "nothing", "input", "layer2", "layer4"]),
    frames=st.none() | st.floats(1, 10_000),
)
requests = st.builds(
    Query,
    demand=demands,
    link=st.builds(
        LinkEstimate, rtt_ms=st.floats(0, 100), uplink_mbps=st.floats(0.1, 1000), downlink_mbps=st.floats(0.1, 1000)
    ),
    head_ms=st.tuples(*[st.floats(0, 50)] * 5),
    power=st.just(PowerDraw(3.0, 1.5)),
    memory_bytes=st.none() | st.integers(500, 6000),
    queue_ms=st.floats(0, 50),
    sending_ms=st.floats(0, 50),
    stage_ns=st.tuples(*[st.floats(0, 2000)] * len(STAGES)),
    held=st.frozensets(st.integers(0, len(TABLE.patterns) - 1), max_size=3),
    operators=st.sampled_from([None, None, frozenset(["conv", "view"]), frozenset(["conv"])]),
    formats=st.sampled_from([None, frozenset(["webp"]), frozenset()]),
)


@drawn(300)
@given(requests)
def test_equals_a_loop_over_everything(asked: Query) -> None:
    for table in (TABLE, WEBP):
        asked = dataclasses.replace(asked, held=asked.held & set(range(len(table.patterns))))
        least = by_hand(table, asked)
        if least == math.inf:
            with pytest.raises(errors.InfeasibleError):
                choose(table, asked)
            continue
        pick = choose(table, asked)
        assert pick.objective == pytest.approx(least, rel=1e-9, abs=1e-15)
        assert verify_pick(table, asked, pick) == []
        runners_up(table, asked, pick)


@drawn(150)
@given(requests)
def test_what_an_infeasible_answer_allows_is_enough(asked: Query) -> None:
    try:
        choose(WEBP, asked)
    except errors.InfeasibleError as error:
        nearest = error.data["nearest"]
        ways = [nearest] if error.data["all_of"] else [{name: value} for name, value in nearest.items()]
        for way in ways:
            choose(WEBP, relaxed(asked, way))


def relaxed(asked: Query, allowed: dict[str, float | str]) -> Query:
    """The request with each limit that is named moved to its value, and a hair beyond it where rounding counts."""
    hair = {"max_latency_ms": 1 + 1e-9, "min_rate_fps": 1 - 1e-9}
    fields = {
        name: value * hair[name] if name in hair and not isinstance(value, str) else value
        for name, value in allowed.items()
    }
    memory = fields.pop("memory", asked.memory_bytes)
    operators = None if fields.pop("operators", "") else asked.operators
    formats = None if fields.pop("formats", "") else asked.formats
    old = {
        name: getattr(asked.demand, name)
        for name in ("max_drop_points", "max_latency_ms", "min_rate_fps", "weights", "keep")
    }
    return dataclasses.replace(
        asked, demand=demand(**(old | fields)), memory_bytes=memory, operators=operators, formats=formats
    )


def test_every_level_and_codec_has_its_optimal_pattern() -> None:
    for index, option in enumerate(TABLE.options):
        for level, codec in itertools.product(LEVELS, option.codecs or (CutCodec("", 0, 0, 0.0),)):
            fits = [p for p in TABLE.patterns if p.option == index and p.noise + codec.noise <= level.noise]
            try:
                best = allocate(option.layers, level.noise - codec.noise).segment_bytes + option.other_bytes
            except errors.SplitEdgeError:  # the codec alone is over the level, or even 8 bits are
                assert fits == []
                continue
            assert min(pattern.segment_bytes for pattern in fits) == best


@drawn(60)
@given(requests, st.floats(0, 10), st.floats(0, 10))
def test_a_looser_demand_never_costs_more(asked: Query, one: float, other: float) -> None:
    tight, loose = (
        by_hand_or_choice(dataclasses.replace(asked, demand=demand(max_drop_points=drop)))
        for drop in sorted((one, other))
    )
    assert loose <= tight


def by_hand_or_choice(asked: Query) -> float:
    try:
        return choose(TABLE, asked).objective
    except errors.InfeasibleError:
        return math.inf


@pytest.mark.parametrize("seed", [8, 18, 27, 34])  # sums of three terms that differ in the last bit by their order
def test_a_demand_that_a_candidate_meets_to_the_last_bit_is_met(seed: int) -> None:
    """The greatest noise that calibration tried is often a candidate's own."""
    weights, head, codec = np.random.default_rng(seed).uniform(0.1, 1.0, 3).tolist()
    layer = WeightLayer("layer", 100, (weights,) * len(WIDTHS))
    cut = Cut(1, "layer", "t", [100], "inside")
    option = CutOption(cut, (layer,), (CutCodec("mse", 8, 140, codec),), 1.0, 1000, frozenset({"layer"}), noise=head)
    loose = precompute("net", [option], [Level(100.0, 4.0)])
    assert math.fsum((weights, head, codec)) > loose.noise.max()
    table = dataclasses.replace(loose, levels=(Level(100.0, float(loose.noise.max())),))
    asked = request(demand=demand(max_drop_points=100.0), head_ms=(1.0,))
    assert verify_pick(table, asked, choose(table, asked)) == []


def test_a_slow_link_moves_the_cut_towards_the_output() -> None:
    cuts = [choose(TABLE, request(link=LinkEstimate(10.0, mbps, 100.0))).option for mbps in (1000.0, 20.0, 3.0, 0.1)]
    assert cuts == sorted(cuts)
    assert (cuts[0], cuts[-1]) == (0, 4)


def test_on_the_device_nothing_is_sent() -> None:
    pick = choose(TABLE, request(link=LinkEstimate(500.0, 0.1, 1.0), queue_ms=7.0))
    assert (pick.option, pick.codec, pick.ladder, pick.payload_bytes) == (4, None, (), 0)
    assert (pick.transfer_ms, pick.queue_ms, pick.server_ms, pick.total_ms) == (0.0, 0.0, 0.0, 60.0)


def test_a_stage_that_takes_long_is_left_out() -> None:
    link = LinkEstimate(1.0, 20.0, 20.0)
    quick, slow = (
        choose(
            TABLE,
            request(
                link=link, demand=demand(mode="server", max_drop_points=0.25), stage_ns=(0.0, 0.0, 0.0, 0.0, ns, 0.0)
            ),
        )
        for ns in (1.0, 1e4)
    )
    rules = [TABLE.options[0].codecs[pick.codec or 0].rule for pick in (quick, slow)]
    assert rules == ["jpeg-80", "mse"]
    assert quick.device_ms == pytest.approx(0.02)
    assert quick.total_ms == pytest.approx(quick.device_ms + quick.transfer_ms + quick.server_ms)


def test_a_device_gets_only_image_files_that_it_knows() -> None:
    link = LinkEstimate(1.0, 20.0, 20.0)
    asked = request(link=link, demand=demand(mode="server", max_drop_points=1.0))
    known, other = (choose(WEBP, dataclasses.replace(asked, formats=frozenset(one))) for one in (["webp"], []))
    codecs = WEBP.options[0].codecs
    assert codecs[known.codec or 0].rule == "webp-80"
    assert "webp" not in {stage for i in other.ladder for stage in codecs[i].work}
    assert codecs[other.codec or 0].rule == "jpeg-80"
    assert "the device lacks an image format" in verify_pick(
        WEBP, dataclasses.replace(asked, formats=frozenset()), known
    )


def test_a_format_that_is_lacking_is_a_constraint_of_its_own() -> None:
    only = dataclasses.replace(WEBP.options[0], codecs=tuple(c for c in WEBP.options[0].codecs if "webp" in c.work))
    table = precompute("webp", [only], LEVELS)
    asked = request(demand=demand(mode="server", max_drop_points=1.0), head_ms=(0.1,))
    with raises(errors.InfeasibleError) as caught:
        choose(table, dataclasses.replace(asked, formats=frozenset()))
    assert caught.value.data["nearest"] == {"formats": "webp"}


def test_a_busy_server_drives_work_to_the_device() -> None:
    assert choose(TABLE, request()).option < 4
    assert choose(TABLE, request(queue_ms=1000.0)).option == 4
    assert choose(TABLE, request(sending_ms=1000.0)).option == 4


def test_a_segment_that_is_held_is_worth_more_than_a_smaller_one() -> None:
    """Few frames: fetching counts; held at a stricter level, the segment costs nothing and serves a looser demand."""
    keep = demand(keep="layer3", max_drop_points=5.0, frames=2.0)
    loose = choose(TABLE, request(demand=keep))
    strict = choose(TABLE, request(demand=demand(keep="layer3", max_drop_points=0.25, frames=2.0)))
    again = choose(TABLE, request(demand=keep, held=frozenset({strict.pattern})))
    assert (loose.option, strict.option, again.option) == (3, 3, 3)
    assert TABLE.patterns[strict.pattern].segment_bytes > loose.segment_bytes > again.segment_bytes == 0
    assert again.pattern == strict.pattern
    assert again.objective < loose.objective


def test_without_an_expected_number_of_frames_the_smaller_segment_still_wins_a_tie() -> None:
    pick = choose(TABLE, request(demand=demand(keep="layer3", max_drop_points=5.0)))
    same = (TABLE.pattern[(TABLE.option == pick.option) & (TABLE.codec == pick.codec)]).tolist()
    assert pick.segment_bytes == min(TABLE.patterns[i].segment_bytes for i in same)


def test_the_ladder_holds_every_width_that_the_pattern_leaves_room_for() -> None:
    pick = choose(TABLE, request(demand=demand(max_drop_points=5.0)))
    option, pattern = TABLE.options[pick.option], TABLE.patterns[pick.pattern]
    room = LEVELS[-1].noise - pattern.noise
    fitting = sorted((c for c in option.codecs if c.noise <= room), key=lambda c: c.noise)
    assert [option.codecs[i] for i in pick.ladder] == fitting


def test_an_agent_gets_no_head_with_an_operator_that_it_lacks() -> None:
    quick = request(head_ms=(50.0, 40.0, 30.0, 20.0, 0.1))
    assert choose(TABLE, quick).option == 4
    asked = dataclasses.replace(quick, operators=frozenset(["conv"]))
    pick = choose(TABLE, asked)
    assert pick.option < 3
    assert {one.pick.option: one.broken for one in runners_up(TABLE, asked, pick)}[4] == ("operators",)
    on_board = dataclasses.replace(asked, demand=demand(mode="device"))
    with pytest.raises(errors.InfeasibleError) as caught:
        choose(TABLE, on_board)
    assert "operators" in caught.value.data["binding"]


def test_rivals_are_the_best_of_each_other_cut_with_what_they_break() -> None:
    asked = request(demand=demand(keep="input"), memory_bytes=4500)
    pick = choose(TABLE, asked)
    found = runners_up(TABLE, asked, pick)
    assert sorted(runner_up.pick.option for runner_up in found) == [i for i in range(5) if i != pick.option]
    broken = {runner_up.pick.option: runner_up.broken for runner_up in found}
    assert (broken[0], broken[4]) == (("keep",), ("memory",))
    feasible = [runner_up.pick.objective for runner_up in found if not runner_up.broken]
    assert feasible == sorted(feasible)
    assert all(objective >= pick.objective for objective in feasible)


def test_the_drop_of_a_cut_that_loses_too_much_is_the_limit_that_admits_it() -> None:
    table = network(levels=(Level(0.25, 2e-5), Level(1.0, 3e-5), Level(5.0, 0.2)))

    def broken(max_drop: float) -> dict[int, tuple[tuple[str, ...], float]]:
        asked = request(demand=demand(max_drop_points=max_drop))
        found = runners_up(table, asked, choose(table, asked))
        return {one.pick.option: (one.broken, one.pick.drop_points) for one in found}

    beyond = {option: drop for option, (names, drop) in broken(0.25).items() if names}
    assert set(beyond.values()) == {1.0, 5.0}
    for option, drop in beyond.items():
        assert broken(drop).get(option, ((), drop))[0] == ()  # it is chosen, or loses for another reason
        assert broken(drop - 0.1)[option] == (("max_drop_points",), drop)


def test_infeasible_names_the_constraint_and_what_would_do() -> None:
    with raises(errors.InfeasibleError, binding=["max_latency_ms"], all_of=False) as caught:
        choose(TABLE, request(demand=demand(max_latency_ms=1.0)))
    assert caught.value.data["binding"] == ["max_latency_ms"]
    assert caught.value.data["all_of"] is False
    with raises(errors.InfeasibleError, nearest={"max_drop_points": 0.25}) as caught:
        choose(TABLE, request(demand=demand(max_drop_points=0.1)))
    assert caught.value.data["nearest"] == {"max_drop_points": 0.25}


@pytest.mark.parametrize(
    "changes",
    [
        {"head_ms": (1.0,)},
        {"head_ms": (0.0, 1.0, math.nan, 1.0, 1.0)},
        {"queue_ms": -1.0},
        {"sending_ms": math.nan},
        {"demand": Demand(frames=0.0)},
        {"held": frozenset({10_000})},
        {"demand": Demand(keep="layer9")},
        {"demand": Demand(max_drop_points=math.nan)},
        {"link": LinkEstimate(1.0, 0.0, 1.0)},
        {"demand": Demand(weights=Weights(energy=1.0)), "power": PowerDraw()},
    ],
)
def test_refuses_a_request_that_makes_no_sense(changes: dict[str, object]) -> None:
    with pytest.raises(errors.UsageError):
        choose(TABLE, request(**changes))


def test_a_layer_that_is_named_twice_cannot_be_kept() -> None:
    """What lies behind the first of the two would leave the device, against what its owner means."""
    options = [
        dataclasses.replace(option, cut=msgspec.structs.replace(option.cut, layer="norm"))
        for option in TABLE.options[1:3]
    ]
    twice = dataclasses.replace(TABLE, options=(TABLE.options[0], *options, *TABLE.options[3:]))
    with pytest.raises(errors.UsageError) as caught:
        choose(twice, request(demand=demand(keep="norm")))
    assert caught.value.data["cuts"] == [option.cut.index for option in options]


@pytest.mark.parametrize(
    "levels", [(), (Level(1.0, 0.1), Level(1.0, 0.2)), (Level(1.0, 0.2), Level(2.0, 0.1)), (Level(1.0, 1e-9),)]
)
def test_refuses_levels_that_do_not_rise_or_that_nothing_meets(levels: tuple[Level, ...]) -> None:
    with pytest.raises(errors.UsageError):
        network(levels=levels)


def test_progress_hears_of_every_place() -> None:
    heard: list[tuple[int, int]] = []
    precompute("net", TABLE.options, LEVELS, lambda done, total: heard.append((done, total)))
    assert heard == [(i, 5) for i in range(1, 6)]


@pytest.mark.parametrize("answer", ["over the budget", "too large", "none"])
def test_a_pattern_that_its_check_refuses_becomes_no_plan(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(layers: Sequence[WeightLayer], budget: float) -> Allocation:
        if answer == "none" and layers:
            raise errors.InfeasibleError("no")
        bits = (2 if answer == "over the budget" else 8,) * len(layers)
        size = segment_bytes(layers, bits)
        return Allocation(bits, None, size, total_noise(layers, bits), size)

    monkeypatch.setattr(patterns, "allocate", wrong)
    with raises(errors.PlanError, reason="contradiction"):
        network()


def test_the_verifier_finds_faults() -> None:
    asked = request(memory_bytes=10_000, demand=demand(frames=100.0))
    pick = choose(TABLE, asked)

    def faults(**changes: object) -> list[str]:
        return verify_pick(TABLE, asked, dataclasses.replace(pick, **changes))  # type: ignore[arg-type]

    assert faults() == []
    for name, fault in {
        "segment_bytes": "the segment's size is wrong",
        "payload_bytes": "the payload's size is wrong",
        "total_ms": "the total is not the sum of its parts",
        "energy_j": "the energy is wrong",
        "objective": "the objective is wrong",
    }.items():
        assert faults(**{name: getattr(pick, name) + 1}) == [fault]
    turned = faults(ladder=pick.ladder[::-1])
    assert turned == ["the ladder's bytes do not fall", "the ladder's noise does not rise"]
    assert faults(codec=None) == faults(option=pick.option + 1) == ["pattern, codec and cut do not belong together"]
    strict = dataclasses.replace(
        asked,
        demand=demand(max_drop_points=0.25, keep="input", max_latency_ms=0.1, min_rate_fps=1e6),
        memory_bytes=1,
        operators=frozenset(),
    )
    found = verify_pick(TABLE, strict, worst(asked))
    assert {"the noise exceeds the demand", "the latency exceeds the demand", "the rate is below the demand"} <= set(
        found
    )
    assert {"the device has too little memory", "the device lacks an operator", "the input leaves the device"} <= set(
        found
    )


def worst(asked: Query) -> Pick:
    """A pick at the input with the loosest demand."""
    return choose(
        TABLE,
        dataclasses.replace(
            asked, link=LinkEstimate(0.0, 1.0, 1.0), demand=demand(max_drop_points=5.0), head_ms=(0.0, *[1e6] * 4)
        ),
    )


def ladder_table(codecs: list[CutCodec]) -> Table:
    """One cut without weights, and these codecs."""
    option = CutOption(Cut(0, "input", "x", [100], "input"), (), tuple(codecs), 1.0, 1)
    return precompute("net", [option], [Level(1.0, 1.0)])


@given(
    codecs=st.lists(st.tuples(st.integers(41, 60), st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 1.5])), min_size=1, max_size=40),
    time=st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def test_the_ladder_is_the_front_of_bytes_against_noise(codecs: list[tuple[int, float]], time: float) -> None:
    table_codecs = [CutCodec(f"rule{i}", 8, size, noise) for i, (size, noise) in enumerate(codecs)]
    if all(codec.noise > 1.0 for codec in table_codecs):
        return
    table = ladder_table(table_codecs)
    asked = Query(Demand(weights=Weights(time=time, cost=1.0)), LINK, (0.0,), PowerDraw())
    pick = choose(table, asked)
    assert verify_pick(table, asked, pick) == []
    assert pick.codec in pick.ladder
    rungs = [codecs[i] for i in pick.ladder]
    fitting = [c for c in codecs if c[1] <= 1.0]
    front = {c for c in fitting if not any(d[0] <= c[0] and d[1] <= c[1] and d != c for d in fitting)}
    assert front.issuperset(rungs)
    assert all(any(r[0] <= MIN_SAVING * c[0] and r[1] <= c[1] for r in rungs) for c in front)


@pytest.mark.parametrize(
    ("ns", "limits", "ladder"),
    [
        (0.0, {}, (0, 2)),
        (40.0, {}, (0, 1, 2)),  # 10 ms of a frame that takes 62: another link may well want it
        (80.0, {}, (0, 1)),  # 20 ms
        (40.0, {"min_rate_fps": 100.0}, (0, 1)),
        (40.0, {"min_rate_fps": 60.0}, (0, 1, 2)),
        (40.0, {"max_latency_ms": 70.0}, (0, 1)),
        (40.0, {"max_latency_ms": 75.0}, (0, 1, 2)),
    ],
)
def test_a_codec_that_takes_longer_to_make_is_a_rung_unless_it_takes_too_long(
    ns: float, limits: dict[str, float], ladder: tuple[int, ...]
) -> None:
    """The last beats the second in bytes and noise; on a link so wide the second is the quickest all the same."""
    work = {"entropy": 250_000.0}
    table = ladder_table(
        [CutCodec("minmax", 8, 2000, 0.1), CutCodec("mse", 2, 1000, 0.5), CutCodec("pca-1", 8, 800, 0.2, work)]
    )
    stages = tuple(ns if stage == "entropy" else 0.0 for stage in STAGES)
    asked = Query(
        Demand(**limits),
        LinkEstimate(60.0, 1000.0, 1000.0),
        (1.0,),
        PowerDraw(),
        stage_ns=stages,  # type: ignore[arg-type]
    )
    pick = choose(table, asked)
    assert verify_pick(table, asked, pick) == []
    assert pick.ladder == ladder
    assert pick.codec == (1 if ns else 2)


@pytest.mark.parametrize(
    ("ladder", "fault"),
    [
        ((0, 1, 2, 3), "the ladder's bytes do not fall"),
        ((0, 3), "the ladder lacks a codec that none on it beats"),
        ((2, 3), "another codec beats one of the ladder"),
        ((0, 1), "the ladder lacks the chosen codec"),
    ],
)
def test_the_verifier_finds_faults_of_ladders(ladder: tuple[int, ...], fault: str) -> None:
    sizes = [(90, 0.1), (60, 0.2), (70, 0.3), (50, 0.4)]
    table = ladder_table([CutCodec("mse", 8, size, noise) for size, noise in sizes])
    asked = Query(Demand(), LINK, (0.0,), PowerDraw())
    pick = choose(table, asked)
    assert pick.ladder == (0, 1, 3)
    assert fault in verify_pick(table, asked, dataclasses.replace(pick, ladder=ladder))
