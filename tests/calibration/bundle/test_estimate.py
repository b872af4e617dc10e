"""Estimated times of a calibration."""

from __future__ import annotations

import pytest

from calibration.bundle import estimate
from calibration.effort import EFFORTS
from calibration.importing.graph import Graph
from calibration.importing.importer import batched, simplify
from calibration.lowering import layers
from tests import small_models as small

NETWORK = layers.build(Graph.of(batched(simplify(small.mobilenet()))))


def total(samples: int, sample_s: float, effort: str) -> float:
    return sum(estimate.seconds(NETWORK, samples, 10, sample_s, EFFORTS[effort]).values())  # type: ignore[index]


def test_more_effort_samples_and_a_slower_model_take_longer() -> None:
    assert total(500, 0.02, "quick") < total(500, 0.02, "normal") < total(500, 0.02, "best")
    assert total(50, 0.02, "normal") < total(500, 0.02, "normal")
    assert total(50, 0.02, "normal") < total(50, 0.2, "normal")


def test_quick_does_not_grow_with_the_samples_beyond_its_limit() -> None:
    assert total(100, 0.02, "quick") == pytest.approx(total(9000, 0.02, "quick"))


def test_no_phase_takes_negative_time() -> None:
    assert min(estimate.seconds(NETWORK, 1, 10, 0.0, EFFORTS["normal"]).values()) >= 0
