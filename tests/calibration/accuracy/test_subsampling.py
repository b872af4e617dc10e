"""Noise of many variants from few samples."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.accuracy.subsampling import (
    LEAST,
    WORK,
    each_once,
    enough,
    interpolated,
    mean_noises,
    noisiest,
    sample_noises,
)

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class Measured:
    """Noises [variants, samples], and how many were looked at."""

    def __init__(self, noises: F64) -> None:
        self.noises, self.looked_at = noises, 0

    def __call__(self, variant: int, samples: I64) -> F64:
        self.looked_at += len(samples)
        return self.noises[variant][samples]


def test_variants_in_proportion_to_the_reference_are_told_by_few_samples() -> None:
    each = np.random.default_rng(0).gamma(0.5, size=40)
    noises = Measured(np.outer([1.0, 0.25, 7.0], each))
    found = mean_noises(noises, [0, 1, 2], [0], noisiest(each, 10), 40)
    np.testing.assert_allclose(found, noises.noises.mean(axis=1))
    assert noises.looked_at == 40 + 2 * 10


def test_a_variant_is_scaled_as_the_reference_of_nearest_noise() -> None:
    quiet, loud = np.array([1.0, 1, 1, 1, 5, 5]), np.array([80.0, 80, 80, 80, 10, 10])
    noises = Measured(np.stack([quiet, loud, 1.5 * quiet, 0.7 * loud]))
    found = mean_noises(noises, [0, 1, 2, 3], [0, 1], np.arange(4), 6)
    np.testing.assert_allclose(found, noises.noises.mean(axis=1))


def test_without_noise_in_the_references_every_sample_is_measured() -> None:
    random = np.random.default_rng(1)
    noises = Measured(np.concatenate([np.zeros((1, 12)), random.random((2, 12))]))
    assert mean_noises(noises, [0, 1, 2], [0], np.arange(4), 12) == noises.noises.mean(axis=1).tolist()


def test_what_is_not_finite_stays_so() -> None:
    noises = Measured(np.array([[1.0, 2, 3, 4, 5], [1, 1, 1, np.nan, 1], [np.inf, 1, 1, 1, 1], [0, 0, 0, 0, 0]]))
    one, nan, infinity, none = mean_noises(noises, [0, 1, 2, 3], [0], np.arange(4), 5)
    assert one == 3
    assert np.isnan(nan)
    assert np.isinf(infinity)
    assert none == 0


@pytest.mark.parametrize(
    ("samples", "macs", "wanted"),
    [
        (2, 10 * WORK, 2),
        (7, 10 * WORK, LEAST),
        (100, 10 * WORK, 25),
        (100, WORK // 50, 50),
        (100, WORK // 1000, 100),
        (100, 0, 100),
    ],
)
def test_small_networks_run_on_more_samples(samples: int, macs: int, wanted: int) -> None:
    assert enough(samples, 0.25, macs) == wanted


def test_the_noisiest_samples() -> None:
    noises = np.random.default_rng(2).random(30)
    found = noisiest(noises, 7)
    assert found.tolist() == sorted(np.argsort(noises)[-7:])
    noises[1] = np.nan
    assert noisiest(noises, 7).tolist() == list(range(30))


def test_interpolation_is_exact_for_a_power_law_and_at_the_anchors() -> None:
    errors = 4.0 ** -np.arange(2, 9)
    law, anchors = 3 * errors**1.2, [0, 2, 5]
    found = interpolated(law[anchors], errors[anchors], errors)
    assert found is not None
    np.testing.assert_allclose(found[:6], law[:6])
    np.testing.assert_allclose(found[6] / found[5], errors[6] / errors[5])  # beyond the anchors their ratio stays
    measured = law[anchors] * [1.5, 0.8, 1.1]
    crooked = interpolated(measured, errors[anchors], errors)
    assert crooked is not None
    np.testing.assert_allclose(crooked[anchors], measured)
    reordered = interpolated(measured[::-1], errors[anchors][::-1], errors)
    np.testing.assert_array_equal(crooked, reordered)


@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan, -1.0])
def test_without_positive_numbers_nothing_is_interpolated(bad: float) -> None:
    assert interpolated(np.zeros(0), np.zeros(0), np.ones(3)) is None
    assert interpolated(np.array([1.0, bad]), np.ones(2), np.ones(3)) is None
    assert interpolated(np.ones(2), np.array([bad, 1.0]), np.ones(3)) is None
    assert interpolated(np.ones(2), np.ones(2), np.array([1.0, 1.0, bad])) is None


def test_noise_of_each_sample() -> None:
    outputs = np.zeros((2, 3, 2), np.float32)
    found = outputs.copy()
    found[1, 0] = 3
    assert sample_noises(found, outputs).tolist() == [0, 3]


def test_each_sample_of_a_variant_is_measured_once() -> None:
    noises = Measured(np.arange(12.0).reshape(2, 6))
    once = each_once(noises, [1, 0], 6)
    assert once(0, np.array([1, 3])).tolist() == [7, 9]
    assert once(0, np.array([0, 1, 3])).tolist() == [6, 7, 9]
    assert once(1, np.array([5])).tolist() == [5]
    assert noises.looked_at == 4
