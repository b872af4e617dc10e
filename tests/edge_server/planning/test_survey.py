"""Where splitting pays: every cell of the grid against plans that agents would get, and what the page says of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest
from PIL import Image
from rich.console import Console

import device_profiles
from device_profiles import known
from edge_server.commands import survey as pages
from edge_server.commands.explain import links_of, profiles_of
from edge_server.planning.catalog import Catalog
from edge_server.planning.device_plan import choose_plan
from edge_server.planning.survey import MODES, ROUND_TRIP, UPLINKS, Case, Survey, Way, others, survey
from edge_server.store.store import Store
from splitedge import errors
from splitedge.protocol.messages import Demand, LinkEstimate, Mode, PlanRequest, Weights

LINKS = [LinkEstimate(20.0, rate, rate) for rate in (0.01, 1.0, 100.0)]
DEMAND = Demand(max_drop_points=50.0)


@pytest.fixture
def found(store: Store) -> Survey:
    return survey(Catalog(store), "tiny", {name: known.load(name) for name in ("pi4", "pi5")}, LINKS, DEMAND)


def test_every_case_holds_the_plans_that_an_agent_gets(store: Store, found: Survey) -> None:
    catalog = Catalog(store)
    for case in found.cases:
        profile = device_profiles.to_dict(known.load(case.board))
        for way in case.ways:
            demand = msgspec.structs.replace(DEMAND, mode=way.mode)
            request = PlanRequest(model="tiny", profile=profile, link=case.link, demand=demand)
            pick = choose_plan(catalog, request).pick
            assert bool(way.codec) == (way.mode != "device")
            assert (way.ms, way.payload_bytes, way.objective) == (pick.total_ms, pick.payload_bytes, pick.objective)
        assert [way.objective for way in case.ways] == sorted(way.objective for way in case.ways)
        assert {way.mode for way in case.ways} == set(MODES)


def test_a_case_is_sure_if_both_ends_of_the_band_have_the_same_winner(store: Store, found: Survey) -> None:
    for case in found.cases:
        winners = set()
        for pace in ("fast", "slow"):
            profile = msgspec.structs.replace(known.load(case.board), pace=pace)
            (one,) = survey(Catalog(store), "tiny", {case.board: profile}, [case.link], DEMAND).cases
            winners.add(one.winner)
        assert case.sure == (len(winners) == 1)


def test_other_demands_are_those_that_were_not_given(store: Store, found: Survey) -> None:
    assert [change.option for change in found.changes][:4] == [
        "",
        "--keep input",
        "--weight-megabyte 10",
        "--weight-cost 10",
    ]
    kept = found.changes[1].cases
    assert all(way.mode != "server" for case in kept for way in case.ways)
    given = Demand(keep="input", weights=Weights(cost=1.0, megabyte=1.0, energy=1.0), min_rate_fps=1.0)
    assert list(others(given, energy=True)) == []


def test_a_demand_for_one_mode_leaves_one_way(store: Store) -> None:
    demand = msgspec.structs.replace(DEMAND, mode="split")
    cases = survey(Catalog(store), "tiny", {"pi4": known.load("pi4")}, LINKS[:1], demand).cases
    assert [[way.mode for way in case.ways] for case in cases] == [["split"]]


def case(*ways: tuple[Mode, float]) -> Case:
    return Case("pi4", LINKS[0], [Way(mode, "layer", 1e3 * cost, 1, 0.0, 0.0, cost) for mode, cost in ways])


def test_a_gain_is_over_the_better_of_the_others() -> None:
    assert case(("split", 1.0), ("device", 1.5), ("server", 3.0)).gain == 1.5
    assert case(("device", 1.0), ("split", 1.5)).gain == 1.0
    assert (case(("split", 1.0)).gain, case(("split", 1.0)).only) == (1.0, True)
    assert (case().winner, case().gain, case().only) == ("", 1.0, False)


@pytest.mark.parametrize("width", [60, 80])
def test_the_page_fits_and_shows_every_board_and_winner(found: Survey, width: int) -> None:
    found.changes[0].cases[0] = msgspec.structs.replace(case(("split", 123.0), ("device", 456.0)), board="pi4")
    found.changes[0].cases[1] = msgspec.structs.replace(case(), board="pi4", link=LINKS[1])
    shown = io.StringIO()
    for part in pages.page(found, width, guessed=True):
        Console(file=shown, width=1000, color_system=None).print(part, soft_wrap=True, markup=False)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = shown.getvalue()
    assert all(word in text for word in ("pi4", "pi5", "split", "none", "--keep input", "Codec of the input", "bits"))


def test_the_command_prints_json_and_draws(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "survey.png"
    boards = profiles_of(None, [])
    assert list(boards) == list(known.names())
    links = links_of(None, None, None, UPLINKS, ROUND_TRIP)
    pages.explain(store.folder, "tiny", boards, links, DEMAND, file, json=True)
    value = json.loads(capsys.readouterr().out)
    assert len(value["changes"][0]["cases"]) == len(boards) * len(links)
    with Image.open(file) as image:
        assert image.width > 500


def test_an_unknown_board_or_model_is_one_sentence(store: Store) -> None:
    with pytest.raises(errors.SplitEdgeError):
        profiles_of(None, ["pi99"])
    with pytest.raises(errors.UnknownModelError):
        survey(Catalog(store), "other", {"pi4": known.load("pi4")}, LINKS, DEMAND)
