"""The benchmark of the accuracy bound: what it measures is what the split network answers, and its table counts rightly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import accuracy_bound as bound
from benchmarks import cache
from benchmarks.accuracy_bound import Task, Verdict
from calibration.accuracy.tail_runs import runner
from calibration.importing.importer import batched, simplify
from calibration.samples.samples import Samples
from edge_server.planner import Pick, Query, Table, choose
from edge_server.planning.pattern_tables import build_table
from splitedge import errors
from splitedge.protocol.messages import Preprocess
from tests.raising import raises
from tests.small_models import Net

FASHION = Path("/usr/share/datasets/fashion-mnist")


def network() -> onnx.ModelProto:
    net = Net([1, 12], seed=3)
    for outs, ins in ((32, 12), (16, 32)):
        net.gemm(outs, ins)
        net.add("Relu")
    net.gemm(5, 16)
    return batched(simplify(net.model()))


def some(model: onnx.ModelProto, count: int, seed: int) -> Samples:
    """Samples that the float model has right nine times in ten."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 12)).astype(np.float32)
    classes = runner(model)(x).argmax(axis=1)
    other = random.random(count) < 0.1
    classes[other] = random.integers(5, size=int(other.sum()))
    return Samples(Preprocess("tensor", [12]), list(x), classes)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> bound.Subject:
    model = network()
    task = Task("tiny", lambda: model, some(model, 400, 1), some(model, 400, 2), 200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "cache_base", lambda: tmp_path_factory.mktemp("cache"))
        return bound.prepare(task, tmp_path_factory.mktemp("work"))


@pytest.mark.thorough
@pytest.mark.slow
def test_a_bundle_promises_for_the_folds_size(subject: bound.Subject) -> None:
    assert subject.bundle.accuracy.promise_samples == 200


def _choice(table: Table, query: Query) -> Pick | None:
    """The planner's choice; None for a demand that no plan meets."""
    try:
        return choose(table, query)
    except errors.InfeasibleError:
        return None


@pytest.mark.thorough
@pytest.mark.slow
def test_a_plan_is_run_once_and_a_fine_one_answers_nearly_as_the_float_model(subject: bound.Subject) -> None:
    table = build_table(subject.bundle)
    random = np.random.default_rng(0)
    pick = next(filter(None, (_choice(table, bound.draw(random, [1] * len(table.options))) for _ in range(20))))
    right = subject.measure(table, pick)
    assert subject.measure(table, pick) is right
    assert (right == subject.right).mean() > 0.9


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("rule", bound.RULES)
def test_every_demand_that_can_be_met_gets_a_plan_within_its_bound(subject: bound.Subject, rule: str) -> None:
    found, asked = bound.judge(subject, bound.RULES[rule], np.random.default_rng(1), 15)
    assert len(found) == 15 <= asked
    assert len({one.plan for one in found}) > 1
    for one in found:
        assert one.low <= one.expected <= one.high
        assert rule != bound.OURS or one.high <= one.demanded
        assert rule != bound.QPARTS or one.expected <= one.demanded


def test_demands_are_reproducible_and_within_their_ranges() -> None:
    board = [0.0, 0.5, 5.0]
    drawn = [bound.draw(np.random.default_rng(5), board) for _ in range(2)]
    assert drawn[0] == drawn[1]
    random = np.random.default_rng(6)
    for _ in range(100):
        request = bound.draw(random, board)
        assert bound.POINTS[0] <= request.demand.max_drop_points <= bound.POINTS[1]
        assert bound.UPLINK[0] <= request.link.uplink_mbps <= bound.UPLINK[1]
        assert request.head_ms[0] == 0 < request.head_ms[1] < request.head_ms[2]
        assert bound.DEVICE_MS[0] <= request.head_ms[2] <= bound.DEVICE_MS[1]


def verdict(demanded: float, fold: float, lost: float = 0.0, expected: float = 0.0) -> Verdict:
    return Verdict(demanded, fold, lost, expected, 0.0, 1.0, (0, 0, 0))


@pytest.mark.thorough
@pytest.mark.slow
def test_a_violation_is_a_fold_that_loses_more_than_demanded(subject: bound.Subject) -> None:
    found = [verdict(1.0, 1.0), verdict(1.0, 1.1), verdict(0.5, -0.2), verdict(0.5, 0.0)]
    assert bound.row(subject, bound.OURS, found, 6)["violations %"] == 25.0
    assert bound.row(subject, bound.OURS, found, 6)["refused"] == 2
    assert bound.row(subject, bound.OURS, [], 0)["violations %"] == 0.0


def test_the_error_counts_only_where_there_is_enough_to_measure() -> None:
    def row(rule: str, evaluated: int, demands: int, violations: float, error: float) -> dict[str, object]:
        return {
            "rule": rule, "evaluated": evaluated, "demands": demands, "violations %": violations, "error": error
        }  # fmt: skip

    rows = [
        row(bound.OURS, 10_000, 60, 0.0, 0.2),
        row(bound.OURS, 250, 20, 10.0, 3.0),
        row(bound.QPARTS, 250, 5, 40.0, 3.0),
    ]
    found = bound.summary(rows)
    assert found["violations_percent"] == 2.5
    assert found["violations_percent_mean_rule"] == 40.0
    assert (found["mean_abs_error_points"], found["demands"], found["networks"]) == (0.2, 80.0, 2.0)


def test_the_plot_is_a_picture_or_says_what_it_needs(tmp_path: Path) -> None:
    pairs = {"a": [(0.1, 0.2, 0.0, 0.5), (0.1, 0.2, 0.0, 0.5)], "none": []}
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with raises(errors.UsageError, reason="no-matplotlib"):
            bound.plot(tmp_path / "a.png", pairs)
        return
    bound.plot(tmp_path / "a.png", pairs)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with raises(errors.UsageError, reason="cannot-write"):
        bound.plot(tmp_path / "missing" / "a.png", pairs)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    bound.main(["--json", str(out), "--quick"])
    found = json.loads(out.read_text())["summary"]
    assert found["demands"] == bound.QUICK_DEMANDS
    assert found["violations_percent"] <= 20
    assert "mean_abs_error_points" in capsys.readouterr().out
