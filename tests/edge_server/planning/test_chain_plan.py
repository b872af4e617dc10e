"""Plans for chains of boards, from a real bundle."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_server.planner import Chain, Route, plan_route
from edge_server.planning import chain_plan
from edge_server.planning.catalog import Catalog
from edge_server.store.store import Store
from splitedge import codec, errors, limits
from splitedge.head import executor
from splitedge.head.preprocess import quantize_tensor
from splitedge.head.segment import OPERATORS
from splitedge.protocol.messages import ChainDevice, ChainRequest, Codec, Demand, LinkEstimate, Plan
from tests.raising import raises

NEAR = LinkEstimate(rtt_ms=0.0, uplink_mbps=10_000.0, downlink_mbps=10_000.0)
SLOW = LinkEstimate(rtt_ms=1.0, uplink_mbps=0.05, downlink_mbps=0.05)
FAR = LinkEstimate(rtt_ms=500.0, uplink_mbps=0.1, downlink_mbps=0.1)


def board(profile: dict[str, Any], name: str, speed: float = 1.0, **fields: Any) -> ChainDevice:
    own = copy.deepcopy(profile)
    for kernel in own["kernels"]:
        kernel["time_us"] = float(kernel["time_us"]) / speed
    own["overhead"]["op_us"] /= speed
    known = {"next": NEAR, "server": FAR, "operators": sorted(OPERATORS)}
    return ChainDevice(device=name, profile=own, **known | fields)


def request(*devices: ChainDevice, **fields: Any) -> ChainRequest:
    demand = Demand(**{"max_drop_points": 100.0} | fields.pop("demand", {}))
    return ChainRequest(model="tiny", devices=list(devices), demand=demand, **fields)


def plans(store: Store, asked: ChainRequest) -> list[Plan]:
    """Of all boards, the first as it was answered, the others as the server knows them."""
    found = [chain_plan.make_chain(Catalog(store), asked)]
    while found[-1].stage is not None and found[-1].stage.downstream:
        found.append(store.plans.get(found[-1].stage.downstream))
    return found


def shared_by_two(store: Store, profile: dict[str, Any], **fields: Any) -> list[Plan]:
    """Two like boards, far from the server, that are to answer as many frames as they can: each gets a part."""
    pair = board(profile, "a"), board(profile, "b", next=None)
    return plans(store, request(*pair, objective="rate", **fields))


def test_two_like_boards_share_a_model_and_each_has_its_plan(store: Store, profile: dict[str, Any]) -> None:
    first, second = shared_by_two(store, profile)
    assert first.stage is not None
    assert second.stage is not None
    assert (first.stage.upstream, first.stage.device, second.stage.device) == ("", "a", "b")
    assert (second.stage.upstream, second.stage.downstream) == (first.id, "")
    assert (second.stage.start, second.stage.incoming) == (first.cut, first.ladder)
    assert first.stage.route == second.stage.route
    assert first.stage.rate_fps == pytest.approx(1000 / max(r.device_ms for r in first.stage.route), rel=0.2)
    assert (first.mode, second.mode) == ("split", "device")
    assert store.plans.get(first.id) == first


def test_the_segments_of_a_chain_compute_what_one_head_does(store: Store, profile: dict[str, Any]) -> None:
    first, second = shared_by_two(store, profile, exact=True)
    heads = [executor.load(store.segments.path(p.segment.sha256).read_bytes()) for p in (first, second)]  # type: ignore[union-attr]
    bundle = Catalog(store).bundle("tiny")
    hashes = [first.segment.sha256, second.segment.sha256]
    (start, cut, some_bits), (then, end, all_bits) = map(store.segments.known(bundle.sha256, hashes).get, hashes)  # type: ignore[misc]
    assert (start, cut, then, end) == (0, first.cut.index, first.cut.index, second.cut.index)
    names = bundle.weight_layers(second.cut.index)
    whole = executor.load(bundle.segment(second.cut.index, dict(zip(names, some_bits + all_bits, strict=True))))
    x = quantize_tensor(np.random.default_rng(0).normal(size=(16, 16, 3)).astype(np.float32), whole.input)
    sent = heads[0].run(x)
    [made] = first.ladder
    payload = codec.encode_codes(sent, heads[0].output.scale, heads[0].output.zero_point, made)
    again = quantize_tensor(codec.decode(payload, made, sent.shape), heads[1].input)
    np.testing.assert_array_equal(heads[1].run(again), whole.run(x))


def test_each_plan_predicts_from_its_own_board_on(store: Store, profile: dict[str, Any]) -> None:
    first, second = shared_by_two(store, profile)
    p, q = first.prediction, second.prediction
    assert p.total_ms == pytest.approx(p.device_ms + p.transfer_ms + p.queue_ms + p.server_ms)
    assert p.server_ms == pytest.approx(q.total_ms - q.queue_ms)
    assert (p.noise, p.drop_high) == (q.noise, q.drop_high)
    shares = [sum(layer.noise_share for layer in plan.layers) + plan.codec_share for plan in (first, second)]
    assert sum(shares) + first.head_share == pytest.approx(1.0)


def test_a_slow_board_with_a_good_way_past_it_gets_nothing(store: Store, profile: dict[str, Any]) -> None:
    slow = board(profile, "b", speed=0.001, next=None)
    [only] = plans(store, request(board(profile, "a", server=NEAR), slow))
    assert only.stage is not None
    assert (only.stage.downstream, len(only.stage.route)) == ("", 1)


def test_measured_times_of_a_board_move_the_cut(store: Store, profile: dict[str, Any]) -> None:
    first, second = shared_by_two(store, profile)
    slow = {second.segment.sha256: 50 * second.prediction.device_ms}
    pair = board(profile, "a"), board(profile, "b", next=None, measured=slow)
    again = plans(store, request(*pair, objective="rate"))
    assert again[0].cut.index > first.cut.index


def test_a_held_segment_is_not_fetched(store: Store, profile: dict[str, Any]) -> None:
    first, second = shared_by_two(store, profile)
    assert second.prediction.segment_bytes == second.segment.size
    pair = board(profile, "a"), board(profile, "b", next=None, held=[second.segment.sha256])
    again = plans(store, request(*pair, objective="rate"))
    assert (again[1].segment, again[1].prediction.segment_bytes) == (second.segment, 0)
    assert again[0].id != first.id


def test_the_ladder_of_each_link_meets_the_demand_together(store: Store, profile: dict[str, Any]) -> None:
    three = board(profile, "a"), board(profile, "b"), board(profile, "c", next=None, server=NEAR)
    found = plans(store, request(*three, objective="rate"))
    levels = Catalog(store).table(Catalog(store).bundle("tiny"))[0].levels
    assert sum(bool(plan.ladder) for plan in found) >= 2
    for plan in found:
        sizes, noises = ([getattr(one, name) for one in plan.rungs] for name in ("payload_bytes", "noise"))
        assert sizes == sorted(set(sizes), reverse=True)
        others = [noise for i, noise in enumerate(noises) if i != plan.codec]
        assert others == sorted(others)
        assert plan.prediction.noise <= levels[-1].noise


def with_stages(profile: dict[str, Any], ns: float) -> dict[str, Any]:
    """``profile`` of a board that takes ``ns`` a value for everything that a codec may do beside packing."""
    return profile | {"overhead": profile["overhead"] | {"stage_ns": dict.fromkeys(codec.STAGES, ns)}}


def over_a_slow_link(store: Store, first: dict[str, Any], second: dict[str, Any]) -> list[Plan]:
    """The first board is so slow that it only does what it must, and sends a large tensor."""
    pair = board(first, "a", speed=0.001, next=SLOW), board(second, "b", next=None)
    return plans(store, request(*pair, spread=True, demand={"keep": "input"}))


def coded(made: Codec) -> bool:
    """Whether anything is done to values beside packing them."""
    return bool(codec.work(made, [1]))


def test_boards_send_to_each_other_by_codecs_that_take_time_where_it_pays(
    store: Store, profile: dict[str, Any]
) -> None:
    first, second = over_a_slow_link(store, profile, profile)
    assert coded(first.ladder[first.codec])
    assert second.stage is not None
    assert second.stage.incoming == first.ladder


@pytest.mark.parametrize("slow", ["the one that sends", "the one that receives"])
def test_a_board_that_codes_slowly_is_spared_that(store: Store, profile: dict[str, Any], slow: str) -> None:
    both = profile, with_stages(profile, 1e7)
    first, _ = over_a_slow_link(store, *(both if slow == "the one that receives" else both[::-1]))
    assert not any(coded(one) for one in first.ladder)


def test_what_coding_takes_is_part_of_both_boards_times(store: Store, profile: dict[str, Any]) -> None:
    quick, slower = [over_a_slow_link(store, p, p) for p in (with_stages(profile, ns) for ns in (0.0, 100.0))]
    for plain, now in zip(quick, slower, strict=True):
        assert plain.cut == now.cut
        assert now.prediction.device_ms > plain.prediction.device_ms
    made = slower[0].ladder[slower[0].codec]
    extra = 1e-4 * sum(codec.work(made, slower[0].cut.shape).values())
    assert made == quick[0].ladder[quick[0].codec]
    assert slower[0].prediction.device_ms - quick[0].prediction.device_ms == pytest.approx(extra)


def test_the_next_board_decodes_whatever_a_ladder_holds(store: Store, profile: dict[str, Any]) -> None:
    first, second = over_a_slow_link(store, profile, profile)
    head, after = (executor.load(store.segments.path(p.segment.sha256).read_bytes()) for p in (first, second))  # type: ignore[union-attr]
    x = quantize_tensor(np.random.default_rng(0).normal(size=(16, 16, 3)).astype(np.float32), head.input)
    sent, tensor = head.run(x), head.output
    values = (sent.astype(np.float32) - tensor.zero_point) * np.float32(tensor.scale)
    for made in first.ladder:
        payload = codec.encode_codes(sent, tensor.scale, tensor.zero_point, made)
        found = codec.decode(payload, made, sent.shape)
        assert np.abs(found - values).max() < np.ptp(values)
        assert after.run(quantize_tensor(found, after.input)).shape == tuple(second.cut.shape)


def test_a_route_that_its_check_refuses_becomes_no_plan(
    store: Store, profile: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(chain: Chain) -> Route:
        route = plan_route(chain)
        return dataclasses.replace(route, total_ms=route.total_ms / 2)

    monkeypatch.setattr(chain_plan, "plan_route", wrong)
    with raises(errors.PlanError, reason="contradiction") as caught:
        shared_by_two(store, profile)
    assert len(caught.value.data["faults"]) == 1


def test_what_must_stay_on_the_first_board_stays(store: Store, profile: dict[str, Any]) -> None:
    pair = board(profile, "a"), board(profile, "b", speed=100.0, next=None)
    assert plans(store, request(*pair))[0].cut.kind == "input"
    kept = plans(store, request(*pair, demand={"keep": "body"}))
    assert kept[0].cut.layer not in ("x", "stem")


def test_a_plan_of_a_chain_survives_the_wire(store: Store, profile: dict[str, Any]) -> None:
    first, second = shared_by_two(store, profile)
    assert msgspec.json.decode(msgspec.json.encode(second), type=Plan) == second
    assert msgspec.json.decode(msgspec.json.encode(first), type=Plan) == first


@pytest.mark.parametrize("wrong", ["none", "twice", "many", "nameless", "no link", "version"])
def test_chains_that_are_none_are_refused(store: Store, profile: dict[str, Any], wrong: str) -> None:
    a, b = board(profile, "a"), board(profile, "b", next=None)
    devices = {
        "none": [], "twice": [a, a], "many": [board(profile, str(i)) for i in range(limits.MAX_STAGES + 1)],
        "nameless": [board(profile, "")], "no link": [board(profile, "a", next=None), b],
    }  # fmt: skip
    asked = request(*devices.get(wrong, [a, b]))
    asked.protocol -= wrong == "version"
    with pytest.raises(errors.ProtocolError):
        chain_plan.make_chain(Catalog(store), asked)
