"""Integer weights, biases and ranges."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.rounding.quantizer import Weights, integers, least_scale, nearest, own_grid, pack, top_level
from calibration.statistics.activations import BINS, Quantization, Statistics, best_range, quantization
from kernels.reference import unpack_bits, weight_levels
from splitedge import errors
from tests.raising import raises

NO_BIAS = np.zeros(5, np.float32)


def weights(seed: int = 0, outs: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(outs, 3, 3, 4)).astype(np.float32)


def quantize(
    w: np.ndarray, bias: np.ndarray, bits: int, scale_x: float, zero_x: int, mean_x: np.ndarray | None = None
) -> Weights:
    return integers(nearest(w, bias, bits, least_scale(bias, scale_x), mean_x), scale_x, zero_x)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_stand_for_their_levels(bits: int) -> None:
    made = quantize(weights(), NO_BIAS, bits, 0.1, 7)
    assert np.abs(made.weight).max() == top_level(bits)
    codes = unpack_bits(pack(made.weight, bits), bits, made.weight.size)
    np.testing.assert_array_equal(weight_levels(bits)[codes], made.weight.reshape(-1))
    assert bits == 2 or codes.max() < 2**bits - 1


@pytest.mark.parametrize(("bits", "loss"), [(2, 0.125), (3, 0.05), (4, 0.02), (5, 0.006), (6, 0.002), (8, 0.0002)])
def test_loss_of_gaussian_weights(bits: int, loss: float) -> None:
    w = np.random.default_rng(0).normal(size=(8, 1, 1, 4096)).astype(np.float32)
    made = quantize(w, np.zeros(8, np.float32), bits, 0.1, 0)
    assert ((made.weight * made.scale[:, None, None, None] - w) ** 2).mean() < loss


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bias_takes_the_zero_point_in(bits: int) -> None:
    bias = np.array([0.5, -0.25, 3.0, 0.0, 100.0], np.float32)
    made = quantize(weights(), bias, bits, 0.05, 100)
    real = (made.bias + 100 * made.weight.astype(np.int64).sum(axis=(1, 2, 3))) * 0.05 * made.scale
    np.testing.assert_allclose(real, bias, atol=0.05 * float(made.scale.max()))


def test_mean_error_is_taken_out_of_the_bias() -> None:
    rng = np.random.default_rng(0)
    w, mean = weights(), rng.uniform(1, 3, 4).astype(np.float32)
    made = quantize(w, NO_BIAS, 3, 0.01, 0, mean)
    error = ((w - made.weight * made.scale[:, None, None, None]).sum(axis=(1, 2)) * mean).sum(axis=1)
    np.testing.assert_allclose(made.bias * 0.01 * made.scale, error, atol=0.01 * float(made.scale.max()))
    grouped = quantize(w, NO_BIAS, 3, 0.01, 0, np.tile(mean, 5))
    np.testing.assert_array_equal(grouped.bias, made.bias)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_channels_of_zeros_keep_their_bias(bits: int) -> None:
    w = weights()
    w[1] = 0.0
    bias = np.array([0.0, 2.5, 0.0, 0.0, 0.0], np.float32)
    made = quantize(w, bias, bits, 0.02, 3)
    codes = np.full(36, 200)
    real = ((codes * made.weight[1].reshape(-1)).sum() + made.bias[1]) * 0.02 * float(made.scale[1])
    assert real == pytest.approx(2.5, abs=1e-3)


def test_sums_that_32_bits_cannot_hold_are_refused() -> None:
    with raises(errors.ModelError, reason="overflow"):
        quantize(np.ones((1, 1, 1, 70_000), np.float32), np.zeros(1, np.float32), 8, 0.1, 0)


@pytest.mark.parametrize(("lo", "hi"), [(-1.0, 3.0), (0.0, 6.0), (2.0, 5.0), (-4.0, -1.0), (0.0, 0.0)])
def test_every_range_holds_zero_exactly(lo: float, hi: float) -> None:
    made = quantization(lo, hi)
    assert 0 <= made.zero_point <= 255
    assert made.scale > 0
    values = made.values()
    assert 0.0 in values
    assert values[0] <= min(lo, 0) + made.scale
    assert values[-1] >= max(hi, 0) - made.scale


def statistics(values: np.ndarray) -> Statistics:
    lo, hi = float(values.min()), float(values.max())
    return Statistics(lo, hi, np.histogram(values, BINS, (lo, hi))[0], np.zeros(1))


def squared_error(values: np.ndarray, made: Quantization) -> float:
    return float(((made.values()[made.codes(values)] - values) ** 2).mean())


def test_range_of_a_lonely_outlier_is_cut_and_less_wrong() -> None:
    values = np.append(np.random.default_rng(0).normal(size=500_000), 30.0)
    cut = quantization(*best_range(statistics(values)))
    whole = quantization(values.min(), values.max())
    assert squared_error(values, cut) < 0.7 * squared_error(values, whole)


def test_range_of_even_values_stays_whole() -> None:
    values = np.random.default_rng(0).uniform(0, 6, 10_000)
    assert best_range(statistics(values)) == (0.0, pytest.approx(6.0, abs=0.01))


def test_constant_tensor_has_a_range() -> None:
    assert best_range(Statistics(0.0, 0.0, np.zeros(BINS, np.int64), np.zeros(1))) == (0.0, 0.0)


@pytest.mark.parametrize("most", [1, 2, 50, 63, 64, 90, 127])
def test_weights_of_an_int8_file_are_on_their_own_grid(most: int) -> None:
    """The real weights are the levels found times their scale, whatever the greatest integer of a row is."""
    random = np.random.default_rng(most)
    levels = random.integers(-most, most + 1, (6, 3, 3, 8))
    levels[:, 0, 0, 0], levels[2] = most, 0
    scale = random.uniform(1e-4, 1e-1, 6).astype(np.float32)
    weight = (levels * scale[:, None, None, None]).astype(np.float32)
    bias = random.normal(size=6).astype(np.float32)
    found = own_grid(weight, bias, 0.05)
    assert found is not None
    assert found.exact
    np.testing.assert_allclose(found.values(), weight, rtol=1e-6, atol=0)
    np.testing.assert_array_equal(found.bias, bias)
    if most >= 64:
        np.testing.assert_array_equal(found.levels, levels)


def test_other_weights_have_no_own_grid() -> None:
    random = np.random.default_rng(0)
    assert own_grid(random.normal(size=(4, 16)).astype(np.float32), np.zeros(4, np.float32), None) is None
    mixed = np.stack([np.arange(16.0), random.normal(size=16)]).astype(np.float32)
    assert own_grid(mixed, np.zeros(2, np.float32), None) is None


def test_a_bias_beyond_32_bits_makes_the_steps_of_its_row_longer() -> None:
    weight = np.array([[1, 2, 127], [1, 2, 127]], np.float32) * np.float32(1e-12)
    bias = np.array([0, 5], np.float32)
    found = own_grid(weight, bias, 0.1)
    assert found is not None
    np.testing.assert_array_equal(found.levels[0], [1, 2, 127])
    made = integers(found, 0.1, 3)
    assert made.bias[1] * 0.1 * found.scale[1] == pytest.approx(5, rel=1e-6)
