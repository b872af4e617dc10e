"""Trade-offs around a plan: their figures against the planner, and the pictures."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_server.commands.explain import explain, profile_of
from edge_server.planner import choose, closed_form, uniform
from edge_server.planning import curves
from edge_server.planning.catalog import Catalog
from edge_server.planning.device_plan import PlanChoice, choose_plan
from edge_server.store.store import Store
from splitedge import errors
from splitedge.files import PictureForm, picture_form
from splitedge.protocol.messages import Demand, LinkEstimate, PlanRequest
from tests.raising import raises

LINK = LinkEstimate(rtt_ms=2.0, uplink_mbps=10.0, downlink_mbps=30.0)


@pytest.fixture
def chosen(store: Store, profile: dict[str, Any]) -> PlanChoice:
    return choose_plan(
        Catalog(store), PlanRequest(model="tiny", profile=profile, link=LINK, demand=Demand(max_drop_points=50.0))
    )


def test_the_payload_falls_with_what_may_be_lost_and_the_exact_is_the_least(chosen: PlanChoice) -> None:
    table = chosen.table
    for index, option in enumerate(table.options):
        if not option.layers:
            continue
        found = curves.payload_curve(table, index)
        whole = 4 * (sum(layer.weights for layer in option.layers) + math.prod(option.cut.shape))
        exact = [one.exact for one in found if one.exact is not None]
        assert exact == sorted(exact, reverse=True)
        assert exact[-1] * whole / 100 == pytest.approx((table.segment_bytes + table.frame_bytes)[table.option == index].min())  # fmt: skip
        for one in found:
            for other in (one.closed_form, one.uniform):
                assert other is None or (one.exact is not None and one.exact <= other + 1e-9)


def test_a_baseline_is_its_rule_with_the_best_codec(chosen: PlanChoice) -> None:
    index = next(i for i, option in enumerate(chosen.table.options) if option.layers and option.codecs)
    option, level = chosen.table.options[index], chosen.table.levels[-1]
    last = curves.payload_curve(chosen.table, index)[-1]
    whole = 4 * (sum(layer.weights for layer in option.layers) + math.prod(option.cut.shape)) / 100
    for rule, shown in ((closed_form, last.closed_form), (uniform, last.uniform)):
        sizes = []
        for codec in option.codecs:
            made = rule(option.layers, max(0.0, level.noise - option.noise - codec.noise))
            if made is not None and made.noise + option.noise + codec.noise <= level.noise:
                sizes.append(made.segment_bytes + option.other_bytes + codec.frame_bytes)
        assert shown == pytest.approx(min(sizes) / whole)


def test_the_plan_at_each_bandwidth_is_the_planners(chosen: PlanChoice) -> None:
    found = curves.curves(chosen.table, chosen.query, chosen.pick)
    assert [one.uplink_mbps for one in found.bandwidth] == list(curves.RATES)
    for one in found.bandwidth[::10]:
        link = LinkEstimate(2.0, one.uplink_mbps, 3 * one.uplink_mbps)
        pick = choose(chosen.table, dataclasses.replace(chosen.query, link=link))
        assert one.objective == pytest.approx(pick.objective)
        assert one.cut == curves.option_name(chosen.table.options[pick.option])
        assert one.server is not None
        assert one.device is not None
        assert one.objective <= min(one.server, one.device)
    assert found.bandwidth[0].server > found.bandwidth[-1].server  # type: ignore[operator]


def test_where_nothing_meets_the_demand_there_is_no_plan(chosen: PlanChoice) -> None:
    hurried = dataclasses.replace(chosen.query, demand=Demand(max_drop_points=50.0, max_latency_ms=1e-3))
    assert all(one.objective is None and one.cut == "" for one in curves.curves(chosen.table, hurried, chosen.pick).bandwidth)  # fmt: skip


@pytest.mark.parametrize("form", ["png", "svg"])
def test_pictures(chosen: PlanChoice, form: PictureForm) -> None:
    found = curves.curves(chosen.table, chosen.query, chosen.pick)
    image = curves.draw(found, form)
    assert image[:8] == b"\x89PNG\r\n\x1a\n" if form == "png" else b"<svg" in image[:1000]
    assert picture_form(f"a.{form.upper()}") == form


def test_names_that_look_like_markup_are_drawn(chosen: PlanChoice) -> None:
    found = curves.curves(chosen.table, chosen.query, chosen.pick)
    for name in ("_private", r"a$\nosuch{b$", "x" * 100):
        found.cut = found.model = name
        found.bandwidth = [
            curves.Best(one.uplink_mbps, one.objective, name, one.server, one.device) for one in found.bandwidth
        ]
        assert b"<svg" in curves.draw(found, "svg")[:1000]


def test_a_server_without_matplotlib_says_so(chosen: PlanChoice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with raises(errors.PlatformError, reason="no-matplotlib"):
        curves.draw(curves.curves(chosen.table, chosen.query, chosen.pick), "svg")


def test_another_format_is_refused() -> None:
    with raises(errors.UsageError, reason="picture-format"):
        picture_form("curves.pdf")


def test_explained_for_a_known_board(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, board, demand = store.folder, profile_of(None, "pi4"), Demand(max_drop_points=50.0)
    explain(folder, "tiny", board, LINK, demand, tmp_path / "c.svg", json=False)
    few = capsys.readouterr().out
    assert "Raspberry Pi 4" in few
    assert "10 Mbit/s up" in few
    assert "edge-agent" not in few
    assert "QPART" not in few
    assert (tmp_path / "c.svg").stat().st_size > 1000
    explain(folder, "tiny", board, LINK, demand, None, json=False, layers=True, verbose=True)
    more = " ".join(capsys.readouterr().out.split())
    for words in (
        "8-bit activations",
        "97 % of measurements on 1000 samples",
        "50 points",
        "QPART",
        "in 16 trials",
        "p x 4^-bits",
    ):
        assert words in more, words
    explain(folder, "tiny", board, LINK, demand, None, json=True)
    made = json.loads(capsys.readouterr().out)
    assert made["plan"]["model"] == made["curves"]["model"] == "tiny"
    assert made["pace"] == "slow"
    assert made["device_ms"]["slow"] == pytest.approx(made["plan"]["prediction"]["device_ms"])
    explain(folder, "tiny", profile_of(None, "pi4", "fast"), LINK, demand, None, json=True)
    fast = json.loads(capsys.readouterr().out)
    assert fast["device_ms"]["fast"] == pytest.approx(fast["plan"]["prediction"]["device_ms"])
    assert fast["plan"]["prediction"]["device_ms"] <= made["plan"]["prediction"]["device_ms"]
    assert made["curves"]["uplink_mbps"] == 10.0


def test_a_picture_that_cannot_be_written_is_refused_before_the_work(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board, demand = profile_of(None, "pi4"), Demand(max_drop_points=50.0)
    with raises(errors.StoreError, reason="cannot-write"):
        explain(store.folder, "tiny", board, LINK, demand, tmp_path / "no" / "c.svg", json=False)
    assert capsys.readouterr().out == ""


def test_the_plan_is_printed_though_the_picture_fails(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(errors.PlatformError):
        explain(
            store.folder,
            "tiny",
            profile_of(None, "pi4"),
            LINK,
            Demand(max_drop_points=50.0),
            tmp_path / "c.svg",
            json=False,
        )
    assert "tiny" in capsys.readouterr().out
    assert not (tmp_path / "c.svg").exists()


def test_one_device_is_named() -> None:
    for both in ((None, None), (Path("x"), "pi4")):
        with raises(errors.UsageError, reason="one-device"):
            profile_of(*both)
