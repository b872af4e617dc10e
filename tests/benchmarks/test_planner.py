"""The benchmark of the planner, on small networks."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import milp, planner
from edge_server.planner import Pick
from splitedge import errors


@pytest.mark.parametrize("name", ["EfficientNet", "ResNet"])
def test_a_row_has_times_and_gaps_and_its_summary_the_worst(name: str) -> None:
    row = planner.row(name, 8, budgets=3, devices=5)
    assert (row["network"], row["layers"], row["gap %"]) == (name, 8, 0.0)
    assert row["MILPs"] > 0
    for rule in ("closed", "uniform"):
        assert row[f"{rule} +%"] >= row[f"{rule}, same widths +%"] >= 0
    assert row["choice + check p99 ms"] > row["plan p99 ms"]
    slower = row | {"plan p99 ms": row["plan p99 ms"] + 1, "gap %": 0.5}
    figures = planner.summary([row, slower])
    assert figures["p99_ms_8_layers"] == slower["plan p99 ms"]
    assert figures["optimality_gap_max_percent"] == 0.5
    assert figures["closed_form_gap_same_widths_percent"] == row["closed, same widths +%"]
    assert figures["checked_p99_ms_8_layers"] == row["choice + check p99 ms"]
    assert figures["plans_per_s"] == pytest.approx(row["plans/s"])


@pytest.mark.parametrize(("make", "weights"), [(planner.efficient, (1e6, 2e7)), (planner.residual, (1e7, 5e7))])
def test_made_networks_have_the_sizes_of_real_ones(make: planner.Maker, weights: tuple[float, float]) -> None:
    made = make(50)
    assert len(made) == 50
    assert weights[0] < sum(size for size, _ in made) < weights[1]


def test_demands_that_nothing_meets_are_told_apart_and_what_they_are_told_is_enough() -> None:
    rng = np.random.default_rng(8)
    made = planner.residual(8)
    layers = planner.with_noise(made, rng)
    table = planner.precompute("net", planner.options(made, layers, rng), planner.levels(layers))
    asked = [planner.request(table, rng) for _ in range(60)]
    times, checked = planner.online(table, asked)
    refused = [one for one in asked if isinstance(planner.answer(table, one), errors.InfeasibleError)]
    assert len(times) == len(checked) == len(asked) - len(refused)
    assert refused
    for one in refused:
        error = planner.answer(table, one)
        assert isinstance(error, errors.InfeasibleError)
        assert all(isinstance(planner.answer(table, less), Pick) for less in planner.relaxed(one, error))


def test_an_answer_with_faults_ends_the_benchmark() -> None:
    planner.must([])
    with pytest.raises(SystemExit, match="the verifier found: it is wrong"):
        planner.must(["it is wrong"])


def test_the_integer_program_takes_the_only_fitting_choice() -> None:
    cost, noise = np.array([[1, 5], [1, 7]]), np.array([[3.0, 1.0], [2.0, np.inf]])
    assert (choice := milp.solve(cost, noise, 3.0)) is not None
    assert choice.tolist() == [1, 0]
    assert milp.solve(cost, noise, 2.0) is None
