"""Metrics of boxes and pixels: what counts as lost, and that the fitted curves predict variants that the fit has not seen."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.accuracy import metrics
from splitedge import errors
from splitedge.protocol.messages import Columns, Detection, Output, Segmentation
from tests.raising import raises

F32 = NDArray[np.float32]
CELLS, CLASSES = 10, 3
BOXES = Output(
    "tensor", [CELLS, 4 + CLASSES], task=Detection(Columns(0, 0, 4), Columns(0, 4, CLASSES), score=0.5, iou=0.9)
)
MAP = Output("tensor", [CLASSES, 8, 9], task=Segmentation(0))


def answers(count: int, seed: int = 0) -> F32:
    """Boxes in a row that do not overlap, some of them with a score above 0.5."""
    random = np.random.default_rng(seed)
    found = np.zeros((count, CELLS, 4 + CLASSES), np.float32)
    found[:, :, 0] = (np.arange(CELLS) + 0.5) / CELLS
    found[:, :, 1], found[:, :, 2], found[:, :, 3] = 0.5, 0.9 / CELLS, 0.3
    found[:, :, 4:] = random.uniform(0, 1, (count, CELLS, CLASSES))
    return found


def maps(count: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(size=(count, CLASSES, 8, 9)).astype(np.float32)


def noises(outputs: F32, count: int, seed: int, most: float) -> tuple[list[F32], list[float]]:
    """Deltas of growing energy, and these energies."""
    random = np.random.default_rng(seed)
    energies = np.geomspace(1e-5, most, count)
    deltas = [random.normal(size=outputs.shape).astype(np.float32) * np.float32(np.sqrt(e)) for e in energies]
    return deltas, energies.tolist()


def test_a_box_counts_where_it_has_no_partner() -> None:
    metric, known = metrics.of("boxes", BOXES, None), answers(1)
    known[0, :, 4:] = 0
    known[0, :4, 4] = 0.9
    found = known.copy()
    assert metric.compare(known, found)[0] == 0.0
    found[0, 0, 4] = 0.4  # lost
    found[0, 1, 4:] = [0.1, 0.9, 0.1]  # of another class: one lost, one gained
    found[0, 2, 0] += 0.5 / CELLS  # moved by half of its width: neither finds a partner
    drop, low, high, agreement = metric.compare(known, found)
    assert drop == pytest.approx(100 * 5 / 7)
    assert (low < drop < high, agreement) == (True, pytest.approx(2 / 7))


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "output", "make"), [("boxes", BOXES, answers), ("pixels", MAP, maps)])
def test_a_curve_predicts_other_variants_and_other_samples(name: metrics.Name, output: Output, make: object) -> None:
    metric, others = metrics.of(name, output, None), make(100, 99)  # type: ignore[operator]
    drops: dict[float, list[float]] = {3e-4: [], 2e-3: []}
    for noise, found in drops.items():
        for seed in range(4):
            delta = np.random.default_rng(seed).normal(size=others.shape) * np.sqrt(noise)
            found.append(metric.compare(others, (others + delta).astype(np.float32))[0])
    inside, expected = [], []
    for fit in range(3):
        known = make(40, fit)  # type: ignore[operator]
        model = metric.fit(known, *noises(known, 16, fit, 3e-3))
        assert (model.metric, model.samples) == (name, 40)
        assert model.expected == sorted(model.expected)
        assert model.at(1.0).high == model.worst == 100.0
        for noise, found in drops.items():
            promised = model.promising(100).at(noise)
            expected.append(promised.expected / np.mean(found))
            inside += [promised.low <= drop <= promised.high for drop in found]
    assert np.mean(expected) == pytest.approx(1.0, abs=0.25)
    assert np.mean(inside) >= 0.9


def test_noise_that_changes_no_pixel_is_extrapolated_by_its_amplitude() -> None:
    known = maps(24)
    model = metrics.of("pixels", MAP, None).fit(known, *noises(known, 16, 3, 1e-2))
    small, smaller = (model.at(noise) for noise in (4e-8, 1e-8))
    assert small.expected == pytest.approx(2 * smaller.expected, rel=0.05)
    assert 0 < smaller.expected < smaller.high < 1.0


def test_samples_without_boxes_are_refused() -> None:
    known = answers(4)
    known[:, :, 4:] = 0.1
    with raises(errors.InputError, reason="no-boxes"):
        metrics.of("boxes", BOXES, None).fit(known, *noises(known, 4, 0, 1e-3))


@pytest.mark.thorough
def test_more_boxes_give_a_tighter_promise() -> None:
    metric = metrics.of("boxes", BOXES, None)
    few, many = (metric.fit(answers(n), *noises(answers(n), 16, 3, 3e-3)) for n in (10, 60))
    assert many.at(1e-4).high < few.at(1e-4).high
