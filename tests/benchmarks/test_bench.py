"""The rows and figures of benchmarks.bench and benchmarks.predictions."""

from __future__ import annotations

import pytest

from benchmarks import bench, predictions
from edge_agent.bench import statistics
from tests.edge_agent.bench.test_statistics import result, row


def test_a_failed_backend_is_a_row_of_the_table() -> None:
    rows, summary = bench.networks_table(result(row([1.0, 1.2]), row([], backend="litert", failure="it is missing")))
    assert [one["backend"] for one in rows] == ["native", "litert"]
    assert (rows[1]["ms"], rows[1]["failure"]) == (None, "it is missing")
    assert (summary["bench.rows"], summary["bench.rows_failed_as_rows"]) == (2, 1)
    assert summary["bench.net_1_p50_ms"] == pytest.approx(1.0)


def test_decisions_are_counted() -> None:
    same = result(row([1.0, 1.01, 0.99]))
    slow = result(row([1.2, 1.21, 1.19]))
    found = [statistics.compare(old, new)[0] for old, new in ((same, same), (same, slow), (slow, same))]
    counted = bench._decided("x", found)
    assert [counted[name] for name in ("pairs", "no change", "slower", "faster")] == [3, 1, 1, 1]


def test_errors_of_predictions() -> None:
    rows = [{"error %": error, "threads": threads} for error, threads in ((-10.0, 1), (4.0, 1), (30.0, 2))]
    assert predictions.figures(rows) == {
        "self.networks": 2.0,
        "self.median_abs_error_percent": 10.0,
        "self.median_abs_error_percent_one_thread": 7.0,
        "self.max_abs_error_percent": 30.0,
    }
