"""Tails' times as a server process knows them, on a real bundle."""

from __future__ import annotations

import math
from typing import Any

import pytest

from calibration.bundle.bundle import Bundle
from device_profiles import from_dict
from device_profiles.predict import Heads
from edge_server.planning import head_times as module
from edge_server.planning.catalog import Catalog
from edge_server.planning.device_plan import make_plan
from edge_server.store.store import Store
from edge_server.tails import times
from edge_server.tails.pool import TailPool
from splitedge import errors
from splitedge.protocol.messages import Cut, Demand, DryRun, LinkEstimate, PlanRequest
from tests.raising import raises


def test_the_first_plan_counts_on_tails_that_were_run_here(
    store: Store, profile: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(times.time, "monotonic", lambda: 100.0)  # waits stay fresh however long the plan takes
    catalog, tails = Catalog(store), TailPool()
    request = PlanRequest(
        model="tiny",
        profile=profile,
        link=LinkEstimate(0.0, 1e4, 1e4),
        demand=Demand(max_drop_points=100.0, mode="server"),
    )
    tails.times.add_wait(7.0)
    found = make_plan(catalog, request, tails).prediction
    tails.close()
    bundle = catalog.bundle("tiny")
    assert found.server_ms > 0
    assert found.server_ms != bundle.tail_ms[0]
    assert found.server_ms == tails.times.predict(bundle, [0], pytest.fail)[0]
    assert found.queue_ms == 7.0


def test_a_tail_has_the_time_that_frames_took_and_the_others_scale_with_it(store: Store) -> None:
    bundle = Catalog(store).bundle("tiny")
    known = times.TailTimes()
    longest, other = sorted(bundle.offered[:-1], key=lambda cut: -bundle.tail_ms[cut])[:2]
    for ms in (40.0, 50.0, 900.0):
        known.add_run((bundle.sha256, longest), ms)
    known.add_run(("another", longest), 1.0)
    found = known.predict(bundle, [longest, other], pytest.fail)
    assert found == pytest.approx((50.0, 50.0 * bundle.tail_ms[other] / bundle.tail_ms[longest]))


def test_a_wait_counts_while_it_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    known, now = times.TailTimes(), 100.0
    monkeypatch.setattr(times.time, "monotonic", lambda: now)
    assert known.queue_ms() == 0.0
    known.add_wait(2.0)
    known.add_wait(6.0)
    assert known.queue_ms() == 4.0
    now += 60
    assert known.queue_ms() == 0.0


def heads_of(store: Store) -> tuple[Bundle, list[Cut], Heads]:
    catalog = Catalog(store)
    bundle = catalog.bundle("tiny")
    table, heads = catalog.table(bundle)
    return bundle, [option.cut for option in table.options], heads


def test_what_is_sent_must_be_coded_too(store: Store, profile: dict[str, Any]) -> None:
    bundle, cuts, heads = heads_of(store)
    profile["overhead"]["value_ns"] = 0.0
    plain = module.head_times(cuts, heads, from_dict(profile), {}, {})
    profile["overhead"]["value_ns"] = 1000.0
    found = module.head_times(cuts, heads, from_dict(profile), {}, {})
    sizes = [math.prod(bundle.cuts[cut].shape) for cut in bundle.offered]
    assert [after - before for after, before in zip(found, plain, strict=True)] == pytest.approx(
        [size / 1000 for size in sizes[:-1]] + [0.0]
    )


def test_what_sending_the_input_took_says_nothing_of_heads(store: Store, profile: dict[str, Any]) -> None:
    bundle, cuts, heads = heads_of(store)
    known = {"aa": bundle.offered[0]}
    plain = module.head_times(cuts, heads, from_dict(profile), {}, known)
    found = module.head_times(cuts, heads, from_dict(profile), {"aa": 77.0}, known)
    assert found == (77.0, *plain[1:])


def test_heads_are_beginnings_of_the_longest_and_have_the_times_that_were_rehearsed(
    store: Store, profile: dict[str, Any]
) -> None:
    _, cuts, heads = heads_of(store)
    profile["overhead"]["value_ns"] = 0.0
    ms = [2.0**i for i in range(max(heads.operators))]
    found = module.head_times(cuts, heads, from_dict(profile), {}, {}, ms)
    assert found == tuple(ms[count - 1] if count else 0.0 for count in heads.operators)


def test_frames_know_better_than_a_rehearsal(store: Store, profile: dict[str, Any]) -> None:
    bundle, cuts, heads = heads_of(store)
    profile["overhead"]["value_ns"] = 0.0
    ms = [1.0 + i for i in range(max(heads.operators))]
    known = {"aa": bundle.offered[-1]}
    found = module.head_times(cuts, heads, from_dict(profile), {"aa": 2 * ms[-1]}, known, ms)
    assert found[-1] == 2 * ms[-1]
    assert found[1] == pytest.approx(2 * ms[heads.operators[1] - 1])


@pytest.mark.parametrize("ms", [[], [1.0], [3.0, 2.0, 4.0, 5.0], [1.0, math.nan, 2.0, 3.0], [-1.0, 2.0, 3.0, 4.0]])
def test_a_rehearsal_of_another_model_is_refused(store: Store, profile: dict[str, Any], ms: list[float]) -> None:
    _, cuts, heads = heads_of(store)
    with raises(errors.ProtocolError, reason="rehearsal"):
        module.head_times(
            cuts, heads, from_dict(profile), {}, {}, (ms * 9)[: max(heads.operators)] if len(ms) > 1 else ms
        )


def test_a_rehearsal_of_the_model_before_it_was_replaced_says_nothing(store: Store, profile: dict[str, Any]) -> None:
    catalog = Catalog(store)
    asked = [
        PlanRequest(
            model="tiny",
            profile=profile,
            link=LinkEstimate(0.0, 1e4, 1e4),
            demand=Demand(max_drop_points=100.0),
            dry_run=one,
        )
        for one in (None, DryRun("0" * 64, [1.0]))
    ]
    without, stale = (make_plan(catalog, one).prediction for one in asked)
    assert without == stale
