"""The benchmark of payloads: its arithmetic on small networks, and quick runs where Fashion-MNIST is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import fashion, payload
from calibration.importing.graph import Graph
from calibration.importing.importer import batched, simplify
from calibration.lowering import layers
from calibration.rounding.rounder import WIDTHS
from calibration.samples.samples import Samples
from edge_server.planner import allocation
from splitedge import errors
from splitedge.head import segment as seg
from splitedge.protocol.messages import Preprocess
from tests import small_models as small
from tests.raising import raises


@pytest.fixture(scope="module")
def case() -> payload.Case:
    """Random answers of a random network: every sample is of the class that the network names."""
    model = batched(simplify(small.cnn()))
    graph = Graph.of(model)
    x = np.random.default_rng(0).normal(size=(400, *graph.stored_shape(graph.input))).astype(np.float32)
    spec = Preprocess("tensor", list(x.shape[1:]))
    classes = payload.floats(model, Samples(spec, list(x))).argmax(axis=1)
    return payload.Case(
        "small", model, Samples(spec, list(x[:200]), classes[:200]), Samples(spec, list(x[200:]), classes[200:]), 20.0
    )


@pytest.fixture(scope="module")
def tables(case: payload.Case) -> payload.Tables:
    network = layers.build(Graph.of(case.model))
    return payload.tabulate(case, network, list(payload.fixed_cuts(network, (0.5, 1.0)).values()))


def test_cuts_lie_where_their_share_of_the_products_is() -> None:
    network = layers.build(Graph.of(simplify(small.cnn())))
    # products: 16 x 16 x 8 x 27 = 55,296; 4 x 4 x 12 x 72 = 13,824 (after the pool, by steps of 2); 192 x 16 and 16 x 10
    first, _, output = payload.fixed_cuts(network, (0.7, 0.9, 1.0)).values()
    assert network.graph.stored_shape(first) == [8, 8, 8]  # behind the pool, where it is narrower
    assert output == network.graph.output


def test_an_exact_plan_is_no_larger_than_a_baseline_and_keeps_the_budget(tables: payload.Tables) -> None:
    cut = tables.network.graph.output

    def size(plan: payload.Plan) -> int:
        return sum(tables.points[la.out][i].size for la, i in zip(tables.layers(cut), plan.choice, strict=True))

    def noise(plan: payload.Plan) -> float:
        return sum(tables.points[la.out][i].noise for la, i in zip(tables.layers(cut), plan.choice, strict=True))

    budget = sum(points[2].noise for points in tables.points.values())
    best = payload.exact(tables, cut, budget)
    assert best is not None
    assert noise(best) <= budget
    for rule in (allocation.uniform, allocation.closed_form):
        other = payload.by_widths(tables, cut, budget, rule)
        assert other is not None
        assert noise(other) <= budget
        assert size(best) <= size(other)
    assert payload.exact(tables, cut, 0.0) is None


def test_the_segment_holds_the_plans_own_integers_and_takes_what_was_foreseen(tables: payload.Tables) -> None:
    cut = tables.network.graph.output
    for i in (3, len(WIDTHS) + 3):
        plan = payload.Plan((i,) * len(tables.layers(cut)), None)
        data = payload.build(tables, cut, plan)
        foreseen = sum(tables.points[la.out][i].size for la in tables.layers(cut))
        assert foreseen < len(data) < foreseen + 1500
        assert seg.parse(data).header.cut


def test_a_row_counts_file_and_frame_against_float32(case: payload.Case, tables: payload.Tables) -> None:
    judge = payload.Judge(tables)
    cut = next(iter(tables.codecs))
    weights, tensor = (
        sum(la.weight.size for la in tables.layers(cut)),
        math.prod(tables.network.graph.stored_shape(cut)),
    )

    def row(place: str, size: int, frame: int) -> dict[str, Any]:
        found = {place: {"exact": payload.Found("exact", (size, frame), judge.outputs, "")}}
        fold = payload.Fold(case, judge.outputs, {place: judge.whole(place)}, found)
        return payload.row([fold], 0.5, place, "exact")

    found = row(cut, weights, tensor)
    assert found["payload %"] == pytest.approx(25.0)
    assert found["drop"] == 0
    assert found["agree"] == 100
    output = tables.network.graph.output
    whole = sum(la.weight.size for la in tables.layers(output))
    assert row(output, whole, 0)["payload %"] == pytest.approx(25.0)


@pytest.mark.parametrize(("few", "chosen"), [(True, [payload.FEWEST]), (False, ["exact", "closed form", "uniform"])])
def test_a_goal_that_no_plan_is_expected_to_meet_is_told(
    case: payload.Case, monkeypatch: pytest.MonkeyPatch, few: bool, chosen: list[str]
) -> None:
    if not few:
        monkeypatch.setattr(payload, "MANY", len(case.evaluation))
    for goal, missed in ((case.goal, []), (-100.0, chosen)):
        rows = payload.measure(replace(case, goal=goal), (1.0,))
        assert [row["method"] for row in rows if not row.get("expected", True)] == missed
        assert len(payload.notes(rows)) - len(payload.NOTES) == (1 if missed else 0)


@pytest.mark.thorough
def test_of_a_crossed_case_every_sample_is_evaluated_once(case: payload.Case) -> None:
    once, crossed = (payload.measure(replace(case, crossed=way), (1.0,)) for way in (False, True))
    assert [row["method"] for row in once] == [row["method"] for row in crossed]
    assert {row["samples"] for row in once} == {200}
    assert {row["samples"] for row in crossed} == {400}
    assert all(b["segment"] >= a["segment"] for a, b in zip(once, crossed, strict=True))


def test_real_frames_lose_what_their_codec_loses(case: payload.Case, tables: payload.Tables) -> None:
    cut, codecs = next(iter(tables.codecs.items()))
    plan = [payload.Plan((6,) * len(tables.layers(cut)), made) for made, _ in codecs[: len(WIDTHS)]]
    judge = payload.Judge(tables)
    noise = [float(((judge.answers(cut, one, case.evaluation) - judge.outputs) ** 2).mean()) for one in plan]
    assert noise[0] > 2 * noise[2] > 2 * noise[-1] > 0


def test_the_forecast_rises_with_changed_answers_and_falls_with_samples() -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(4000, 10)).astype(np.float32) * 3
    chances = np.exp(outputs - outputs.max(1, keepdims=True))
    classes = np.array([rng.choice(10, p=p / p.sum()) for p in chances.astype(np.float64)])
    forecast = payload.Forecast(outputs, classes)
    few, many = (outputs + rng.normal(size=outputs.shape).astype(np.float32) * size for size in (0.05, 0.5))
    assert forecast.upper(outputs, 10_000) < forecast.upper(few, 10_000) < forecast.upper(many, 10_000)
    assert forecast.upper(few, 100_000) < forecast.upper(few, 2_000)
    # what is expected is what comes: the drop of answers whose classes were never used
    after = many.argmax(1)
    drop = 100 * float((outputs.argmax(1) == classes).mean() - (after == classes).mean())
    assert forecast.upper(many, payload.ENOUGH - 1) == pytest.approx(drop, abs=1.0)


@pytest.mark.parametrize(
    ("weight", "size"),
    [([0, 0, 0, 0, 0, 0, 0, 5], 4 + 1), ([1] * 8, 32 + 1), ([0] * 600 + [7], 4 + 1 + 2), ([0.0] * 16, 0)],
)
def test_sparse_weights_are_stored_the_cheaper_way(weight: list[float], size: int) -> None:
    assert payload.sparse_bytes(np.array(weight, np.float32)) == size


def test_the_worst_cut_is_the_summary(case: payload.Case) -> None:
    rows = [
        {"method": method, "cut %": cut, "payload %": percent, "drop": 0.1, "high": high}
        for method, cut, percent, high in (("exact", 25, 8.0, 0.3), ("exact", 50, 9.0, 0.2), ("uniform", 25, 12.0, 0.3))
    ]
    found = payload.summarize(case, rows)
    assert found["small.payload_percent"] == 9.0
    assert found["small.payload_percent_uniform"] == 12.0
    assert found["small.payload_percent_at_25"] == 8.0
    assert found["small.drop_points_high"] == 0.3


def test_what_a_server_plans_stands_apart(case: payload.Case) -> None:
    rows = {row["method"].removesuffix(", chosen"): row for row in payload.planned(case)}
    assert set(rows) == {"split", "server", "device"}
    assert sum(row["method"].endswith("chosen") for row in rows.values()) == 1
    assert rows["device"]["frame"] == 0 < rows["server"]["frame"]
    shape = case.calibration.preprocess.shape
    sent = rows["server"]["segment"] + rows["server"]["frame"]
    assert rows["server"]["payload %"] == pytest.approx(100 * sent / (4 * math.prod(shape)))
    assert rows["device"]["payload %"] < 26 + 100 * 4000 / rows["device"]["segment"]


def test_a_network_that_is_none_is_refused() -> None:
    with raises(errors.UsageError, reason="unknown-network"):
        payload.main(["--networks", "alexnet"])
    with raises(errors.UsageError, reason="unknown-rows"):
        payload.main(["--networks", "mlp", "--rows", "all"])


def test_photographs_are_asked_for() -> None:
    with raises(errors.UsageError, reason="no-photographs"):
        payload.main(["--networks", "lite0"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_quick_run_sends_a_tenth(tmp_path: Path) -> None:
    if not fashion.FOLDER.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    out = tmp_path / "out.json"
    payload.main(["--networks", "mlp", "--rows", "fixed", "--json", str(out), "--quick"])
    document = json.loads(out.read_text())
    assert {row["cut %"] for row in document["rows"]} == {50, 100}
    found = document["summary"]
    assert found["mlp.payload_percent"] < 12
    assert found["mlp.payload_percent"] < found["mlp.payload_percent_uniform"]
    payload.main(["--networks", "mlp", "--rows", "own", "--json", str(out), "--quick"])
    assert {row["cut %"] for row in json.loads(out.read_text())["rows"]} == {"own"}
