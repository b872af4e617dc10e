"""Summaries of times, and comparisons, against independent definitions."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.schema import Condition, Machine
from edge_agent.bench import statistics
from edge_agent.bench.results import SCHEMA_VERSION, Method, Result, Row

MS = st.floats(0.001, 1e6)


def result(*rows: Row) -> Result:
    state = Condition(None, None, None, None)
    board = Machine("a board", "a core", "aarch64", ["neon"], "neon", 4, 4, 4, None, 1 << 30, 1 << 29, 1 << 20, "Linux")
    now = datetime.now(UTC).isoformat()
    return Result(
        SCHEMA_VERSION, now, "0.1.0", "", board, "", False, state, state, Method(100, 0.0, 5, 0.0, 3), list(rows)
    )


def row(rounds, *, backend="native", failure="") -> Row:
    made = Row("net", backend, "int8", 1, failure=failure)
    if not failure:
        made.times = statistics.times([[float(ms)] * 4 for ms in rounds])
    return made


@given(st.lists(MS, min_size=1, max_size=300), st.sampled_from([50, 90, 95, 99, 99.9]))
def test_nearest_rank_is_the_least_value_that_enough_values_do_not_exceed(values, per_cent):
    found = statistics.nearest_rank(sorted(values), per_cent)
    enough = [v for v in values if sum(other <= v for other in values) >= per_cent / 100 * len(values) - 1e-6]
    assert found == min(enough)


@given(st.lists(st.lists(MS, min_size=1, max_size=9), min_size=1, max_size=5))
def test_the_summary_of_rounds(rounds):
    found = statistics.times(rounds)
    runs = [ms for one in rounds for ms in one]
    assert (found.runs, found.least_ms) == (len(runs), min(runs))
    assert found.rounds_ms == [min(one) for one in rounds]
    assert math.isclose(found.mean_ms, np.mean(runs), rel_tol=1e-9)
    assert math.isclose(found.sd_ms, np.std(runs), rel_tol=1e-6, abs_tol=1e-6)
    assert found.p50_ms <= found.p90_ms <= found.p99_ms <= found.p999_ms <= max(runs)


@pytest.mark.parametrize(
    ("runs", "rule"), [([1.0] * 1024, "1,024 queries"), ([1.0] * 1023, ""), ([6000.0] * 10, "60 s")]
)
def test_the_rules_of_single_stream(runs, rule):
    assert statistics.single_stream(runs) == rule


@pytest.mark.parametrize("freedom", [1.0, 2.5, 4.0, 8.0, 30.0])
@pytest.mark.parametrize("probability", [0.9, 0.975, 0.99, 0.999])
def test_students_quantile(probability, freedom):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.t.ppf(probability, freedom)
    assert math.isclose(statistics.student_quantile(probability, freedom), expected, rel_tol=2e-3)


def test_welch_is_the_interval_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(1)
    one, two = random.normal(0, 1, 6), random.normal(0.5, 2, 5)
    low, middle, high = statistics.welch(one.tolist(), two.tolist(), 0.05)
    expected = stats.ttest_ind(two, one, equal_var=False).confidence_interval(0.95)
    assert math.isclose(middle, two.mean() - one.mean(), rel_tol=1e-12)
    assert math.isclose(low, expected.low, rel_tol=2e-3)
    assert math.isclose(high, expected.high, rel_tol=2e-3)


def test_noise_is_no_change_and_five_per_cent_is_one():
    """200 pairs of results with 1 % of noise between processes, and as many with a slowdown."""
    random = np.random.default_rng(2)

    def drawn_at(factor: float) -> Result:
        return result(row(10 * factor * np.exp(random.normal(0, 0.01, 5))))

    same = [statistics.compare(drawn_at(1.0), drawn_at(1.0))[0].verdict for _ in range(200)]
    slower = [statistics.compare(drawn_at(1.0), drawn_at(1.05))[0].verdict for _ in range(200)]
    faster = [statistics.compare(drawn_at(1.05), drawn_at(1.0))[0].verdict for _ in range(200)]
    assert same.count("no change") >= 190
    assert slower.count("slower") >= 180
    assert faster.count("faster") >= 180


def test_a_change_below_the_least_is_none():
    old, new = result(row([10.0, 10.0, 10.0001])), result(row([10.1, 10.1, 10.1001]))
    assert statistics.compare(old, new, 2.0)[0].verdict == "no change"
    assert statistics.compare(old, new, 0.5)[0].verdict == "slower"


def test_rows_that_cannot_be_compared_say_why():
    old = result(row([1.0, 1.0]), row([], backend="litert", failure="it is not installed"), row([1.0], backend="a"))
    new = result(row([1.0, 1.0]), row([1.0, 1.0], backend="litert"), row([1.0], backend="a"), row([1.0], backend="b"))
    found = {change.key[1]: change.verdict for change in statistics.compare(old, new)}
    assert found["native"] == "no change"
    assert all(found[name].startswith("not comparable") for name in ("litert", "a", "b"))
