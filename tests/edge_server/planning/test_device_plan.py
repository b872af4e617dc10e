"""Plans from a real bundle."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from edge_server.planning import device_plan, plan_message
from edge_server.planning.catalog import Catalog
from edge_server.store.store import Store
from splitedge import codec, errors, limits
from splitedge.head import executor, segment
from splitedge.protocol.messages import (
    OLDEST_PROTOCOL,
    PROTOCOL_VERSION,
    TASKS,
    Columns,
    Demand,
    Detection,
    Greatest,
    LinkEstimate,
    Mode,
    Output,
    Part,
    Plan,
    PlanRequest,
    Prediction,
    Preprocess,
    Segmentation,
    Weights,
)
from tests.raising import raises

NEAR = LinkEstimate(rtt_ms=0.0, uplink_mbps=10_000.0, downlink_mbps=10_000.0)
FAR = LinkEstimate(rtt_ms=80.0, uplink_mbps=1.0, downlink_mbps=1.0)


def ask(store: Store, profile: dict[str, Any], link: LinkEstimate = NEAR, **fields: Any) -> Plan:
    held = fields.pop("held", [])
    demand = Demand(**{"max_drop_points": 100.0} | fields)
    return device_plan.make_plan(
        Catalog(store), PlanRequest(model="tiny", profile=profile, link=link, demand=demand, held=held)
    )


@pytest.mark.parametrize(("keep", "mode", "layer"), [("nothing", "server", "x"), ("input", "split", "stem"), ("body", "split", "body"), ("fc", "device", "fc")])  # fmt: skip
def test_a_slow_board_keeps_no_more_than_it_must(
    store: Store, profile: dict[str, Any], keep: str, mode: str, layer: str
) -> None:
    plan = ask(store, profile, keep=keep)
    assert (plan.mode, plan.cut.layer) == (mode, layer)


@pytest.mark.parametrize("mode", ["server", "split", "device"])
def test_a_mode_that_is_asked_for_is_kept_however_slow(store: Store, profile: dict[str, Any], mode: str) -> None:
    for link in (NEAR, FAR):
        plan = ask(store, profile, link, mode=mode)
        assert plan.mode == mode
        others = [c for c in plan.runners_up if c.cut.kind != plan.cut.kind]
        assert all("mode" in c.reason for c in others)


def test_a_mode_that_what_must_stay_here_forbids_is_infeasible(store: Store, profile: dict[str, Any]) -> None:
    with raises(errors.InfeasibleError, binding=["keep", "mode"]) as raised:
        ask(store, profile, mode="server", keep="input")
    assert raised.value.data["nearest"] == {"keep": "nothing", "mode": "device"}


def test_far_from_the_server_the_board_does_it_all(store: Store, profile: dict[str, Any]) -> None:
    plan = ask(store, profile, FAR)
    assert (plan.mode, plan.ladder, plan.prediction.payload_bytes) == ("device", [], 0)


def test_the_segment_of_a_plan_is_in_the_store_and_runs(store: Store, profile: dict[str, Any]) -> None:
    plan = ask(store, profile, keep="input")
    path = store.segments.path(plan.segment.sha256)
    assert path is not None
    data = path.read_bytes()
    assert (segment.digest(data), len(data)) == (plan.segment.sha256, plan.segment.size)
    header = executor.load(data).header
    assert header.tensors[header.output].shape == plan.cut.shape
    assert header.tensors[header.input].shape == plan.preprocess.shape


def test_the_ladder_is_codecs_of_the_cut(store: Store, profile: dict[str, Any]) -> None:
    plan = ask(store, profile, keep="input")
    assert len(plan.ladder) == len(plan.rungs) > 1
    assert plan.ladder[0].bits == 8
    for codec_, rung in zip(plan.ladder, plan.rungs, strict=True):
        assert rung.payload_bytes == pytest.approx(40 + codec.expected_bytes(codec_, [8, 8, 8]), rel=0.1)
    assert [rung.noise for rung in plan.rungs] == sorted(rung.noise for rung in plan.rungs)
    assert all(rung.drop_points <= rung.drop_high <= 100.0 for rung in plan.rungs)
    assert plan.rungs[plan.codec].noise == pytest.approx(plan.prediction.noise)
    for rung in plan.ladder:
        codec.validate(rung)
    assert plan.prediction.payload_bytes == plan.rungs[plan.codec].payload_bytes


def test_a_plan_survives_the_wire_and_the_store(store: Store, profile: dict[str, Any]) -> None:
    plan = ask(store, profile, keep="input")
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    assert store.plans.get(plan.id) == plan
    assert 0 < plan.expires_unix - time.time() <= limits.PLAN_LIFETIME


def test_a_held_segment_is_not_counted(store: Store, profile: dict[str, Any]) -> None:
    fresh = ask(store, profile, keep="input")
    held = ask(store, profile, keep="input", held=[fresh.segment.sha256])
    assert fresh.prediction.segment_bytes == fresh.segment.size > 0
    assert (held.segment, held.prediction.segment_bytes) == (fresh.segment, 0)


def test_a_segment_is_built_once(store: Store, profile: dict[str, Any]) -> None:
    first = ask(store, profile, keep="input")
    path = store.segments.path(first.segment.sha256)
    assert path is not None
    before = path.stat()
    assert ask(store, profile, keep="input").segment == first.segment
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_segment_sizes_are_foreseen(store: Store) -> None:
    catalog = Catalog(store)
    bundle = catalog.bundle("tiny")
    table, _ = catalog.table(bundle)
    for pattern in table.patterns[:: len(table.patterns) // 9]:
        cut = table.options[pattern.option].cut.index
        size = len(bundle.segment(cut, dict(zip(bundle.weight_layers(cut), pattern.bits, strict=True))))
        assert size == pytest.approx(pattern.segment_bytes, abs=40, rel=0.01)


def test_a_plan_tells_each_layers_bits_and_all_shares_of_the_noise(store: Store, profile: dict[str, Any]) -> None:
    plan = ask(store, profile, keep="input", max_drop_points=20.0)
    assert [layer.layer for layer in plan.layers] == ["stem"]
    path = store.segments.path(plan.segment.sha256)
    assert path is not None
    ops = executor.load(path.read_bytes()).header.ops
    assert len([op for op in ops if isinstance(op, segment.Conv)]) == len(plan.layers)
    assert 0 < plan.mean_bits() <= 8 * plan.segment.size / sum(layer.weights for layer in plan.layers)
    shares = [plan.codec_share, plan.head_share, *(layer.noise_share for layer in plan.layers)]
    assert all(share >= 0 for share in shares)
    assert sum(shares) == pytest.approx(1.0)


def test_the_promise_is_within_the_demand_and_stricter_demands_get_more_bits(
    store: Store, profile: dict[str, Any]
) -> None:
    strict, loose = (ask(store, profile, keep="body", max_drop_points=drop) for drop in (10.0, 50.0))
    for plan, drop in ((strict, 10.0), (loose, 50.0)):
        p = plan.prediction
        assert p.drop_low <= p.drop_points <= p.drop_high <= drop
    assert strict.prediction.noise < loose.prediction.noise
    assert strict.mean_bits() >= loose.mean_bits()


def test_expected_frames_share_the_segments_transfer(store: Store, profile: dict[str, Any]) -> None:
    plan = ask(store, profile, FAR, keep="input", frames=10.0)
    parts = plan.prediction.parts
    assert parts.fetch > 0
    assert sum((parts.time, parts.fetch, parts.energy, parts.cost)) == pytest.approx(plan.prediction.objective)
    again = ask(store, profile, FAR, keep="input", frames=10.0, held=[plan.segment.sha256])
    assert again.prediction.parts.fetch == 0.0


def test_energy_is_of_declared_watts(store: Store, profile: dict[str, Any]) -> None:
    p = ask(store, profile, keep="input", weights=Weights(0.0, 1.0, 0.0)).prediction
    assert p.energy_source == "declared"
    assert p.energy_j == pytest.approx((5.0 * p.device_ms + 2.0 * p.transfer_ms) / 1000)


def test_an_unknown_model_is_named_beside_the_known(store: Store, profile: dict[str, Any]) -> None:
    with raises(errors.UnknownModelError, reason="unknown-model", known=["tiny"]):
        device_plan.make_plan(Catalog(store), PlanRequest(model="huge", profile=profile, link=NEAR))


@pytest.mark.parametrize("protocol", [OLDEST_PROTOCOL - 1, PROTOCOL_VERSION + 1])
def test_another_protocol_is_refused(store: Store, profile: dict[str, Any], protocol: int) -> None:
    with raises(errors.ProtocolError, reason="protocol-version"):
        device_plan.make_plan(Catalog(store), PlanRequest(model="tiny", profile=profile, link=NEAR, protocol=protocol))


@pytest.mark.parametrize("protocol", range(OLDEST_PROTOCOL, PROTOCOL_VERSION + 1))
def test_a_plan_is_of_the_protocol_of_its_agent(store: Store, profile: dict[str, Any], protocol: int) -> None:
    request = PlanRequest(model="tiny", profile=profile, link=NEAR, protocol=protocol)
    assert device_plan.make_plan(Catalog(store), request).protocol == protocol


@pytest.mark.parametrize(
    "output", [Output("probabilities", [10]), Output("tensor", [10]), Output("tensor", [], Greatest(0, [10]))]
)
def test_protocol_3_knows_only_logits(output: Output) -> None:
    plain = Preprocess("tensor", [1])
    plan_message.check_output(3, [], Output("logits", [10]), plain)
    plan_message.check_output(4, [], output, plain)
    with raises(errors.ProtocolError, reason="protocol-output"):
        plan_message.check_output(3, [], output, plain)


@pytest.mark.parametrize(
    ("output", "fit", "missing"),
    [
        (Output("tensor", [8, 8], task=Segmentation()), "crop", ["segmentation"]),
        (Output("tensor", [4, 9], task=Detection(Columns(0, 0, 4), Columns(0, 4, 5))), "pad", ["detection", "pad"]),
        (Output("tensor", [5], parts=[Part("a", [2]), Part("b", [3])]), "crop", ["parts"]),
    ],
)
def test_an_agent_gets_no_answers_that_it_does_not_know(output: Output, fit: Any, missing: list[str]) -> None:
    border = {"border": 0} if fit == "pad" else {}
    preprocess = Preprocess("image", [8, 8, 3], fit="stretch", **border)
    plan_message.check_output(4, TASKS, output, preprocess)
    with raises(errors.ProtocolError, reason="protocol-output", missing=missing):
        plan_message.check_output(4, [], output, preprocess)


def test_a_profile_that_is_none_is_refused(store: Store) -> None:
    with raises(errors.ProtocolError, reason="schema-version"):
        device_plan.make_plan(Catalog(store), PlanRequest(model="tiny", profile={"kernels": 3}, link=NEAR))


def test_an_unknown_layer_is_refused_with_some_that_exist(store: Store, profile: dict[str, Any]) -> None:
    with raises(errors.UsageError, reason="unknown-layer") as caught:
        ask(store, profile, keep="nose")
    assert "stem" in caught.value.data["layers"]


def test_a_replaced_bundle_is_seen(store: Store, profile: dict[str, Any]) -> None:
    catalog = Catalog(store)
    before = catalog.bundle("tiny")
    text = (store.bundles.folder / "tiny" / "bundle.json").read_bytes()
    with store.bundles.create("tiny") as path:
        path.mkdir()
        for old in before.path.iterdir():
            (path / old.name).write_bytes(old.read_bytes())
        (path / "bundle.json").write_bytes(text.replace(b'"labels":[]', b'"labels":["a"]'))
    assert catalog.bundle("tiny").labels == ["a"]
    assert catalog.bundle("tiny").sha256 != before.sha256
    store.bundles.remove("tiny")
    with raises(errors.UnknownPlanError, reason="removed"):
        catalog.tail(before, before.cuts[0])


def test_a_damaged_bundle_is_one_sentence(store: Store) -> None:
    (store.bundles.folder / "tiny" / "model.onnx").write_bytes(b"x")
    with raises(errors.ModelError, reason="damaged"):
        Catalog(store).bundle("tiny")
    assert Catalog(store).models() == []


def test_what_a_device_measured_itself_counts_more_than_its_profile(store: Store, profile: dict[str, Any]) -> None:
    catalog = Catalog(store)
    whole = ask(store, profile, mode="device")
    request = PlanRequest(model="tiny", profile=profile, link=FAR, demand=Demand(max_drop_points=100.0, mode="device"))
    request.measured = {whole.segment.sha256: 1234.5, "0" * 64: 9.0}
    found = device_plan.make_plan(catalog, request)
    assert found.prediction.device_ms == 1234.5
    ratio = 1234.5 / whole.prediction.device_ms
    before = {c.cut.index: c.prediction.device_ms for c in whole.runners_up}
    after = {c.cut.index: c.prediction.device_ms for c in found.runners_up}
    assert after == pytest.approx({cut: ratio * ms for cut, ms in before.items()})


def test_what_sending_takes_beside_comes_on_top_of_what_is_sent(store: Store, profile: dict[str, Any]) -> None:
    def prediction(mode: Mode, **measured: float) -> Prediction:
        request = PlanRequest(
            model="tiny", profile=profile, link=FAR, demand=Demand(max_drop_points=100.0, mode=mode), measured=measured
        )
        return device_plan.make_plan(Catalog(store), request).prediction

    before, after = prediction("server"), prediction("server", sending=7.0)
    assert (before.sending_ms, after.sending_ms) == (0.0, 7.0)
    assert after.transfer_ms == pytest.approx(before.transfer_ms + 7.0)
    assert after.total_ms == pytest.approx(before.total_ms + 7.0)
    assert prediction("device", sending=7.0) == prediction("device")


@pytest.mark.parametrize("measured", [{"aa": -1.0}, {"aa": float("inf")}, dict.fromkeys(map(str, range(999)), 1.0)])
def test_measured_times_that_are_none_are_refused(
    store: Store, profile: dict[str, Any], measured: dict[str, float]
) -> None:
    request = PlanRequest(model="tiny", profile=profile, link=NEAR, demand=Demand(), measured=measured)
    with raises(errors.ProtocolError, reason="measured-times"):
        device_plan.make_plan(Catalog(store), request)
