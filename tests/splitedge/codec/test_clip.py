"""Clip rules: the published factors, exactness on histograms, and the order of squared errors."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitedge import codec, errors
from splitedge.codec import clip
from tests.drawn import drawn
from tests.raising import raises

LAPLACE = {2: 2.8307, 3: 3.8972, 4: 5.0286, 5: 6.2048, 6: 7.4131, 7: 8.6456, 8: 9.8968}
GAUSS = {2: 1.7106, 3: 2.1516, 4: 2.5591, 5: 2.9362, 6: 3.2869, 7: 3.6151, 8: 3.9240}

RNG = np.random.default_rng(11)
X = RNG.normal(0, 2, 20_000)
TENSORS = {
    "laplace": RNG.laplace(0.3, 1.5, 20_000),
    "gauss": X,
    "relu": np.maximum(X, 0),
    "relu6": np.clip(X + 2, 0, 6),
    "hard-swish": X * np.clip(X + 3, 0, 6) / 6,
    "uniform": RNG.uniform(-1, 3, 20_000),
    "student": RNG.standard_t(2, 20_000),
    "outliers": np.concatenate([X, [900.0, -4000.0]]),
    "sparse": np.concatenate([np.zeros(50_000), [1.0, 2.0, 3.0]]),
    "two values": np.repeat([-1.0, 5.0], [3, 7]),
    "few levels": RNG.integers(0, 5, 500) * 0.25,
}
TENSORS = {name: values.astype(np.float32) for name, values in TENSORS.items()}


@pytest.fixture(params=TENSORS)
def tensor(request):
    return TENSORS[request.param]


def error(values, rule, bits):
    return codec.squared_error(values, None, codec.fit(values, rule, bits))


def span(fitted):
    return fitted.lo[0], fitted.lo[0] + fitted.scale[0] * (2**fitted.bits - 1)


@pytest.mark.parametrize("bits", LAPLACE)
def test_the_laplace_factor_is_the_published_one_and_solves_its_equation(bits):
    factor = clip.laplace_factor(bits)
    assert round(factor, 4) == LAPLACE[bits]
    assert factor * math.exp(factor) == pytest.approx(3 * 4**bits)


@pytest.mark.parametrize("bits", GAUSS)
def test_the_gauss_factor_is_the_published_one_and_minimises_the_expected_error(bits):
    def expected(a):
        return (
            (1 + a * a) * math.erfc(a / math.sqrt(2))
            - math.sqrt(2 / math.pi) * a * math.exp(-a * a / 2)
            + a * a / (3 * 4**bits)
        )

    factor = clip.gauss_factor(bits)
    assert round(factor, 4) == GAUSS[bits]
    assert factor == pytest.approx(min(np.arange(1, 6, 1e-4), key=expected), abs=2e-4)


@pytest.mark.parametrize("bits", [4, 6])  # at 2 bits the formulas' even noise within a step is too rough
def test_an_analytic_rule_is_best_for_its_own_density(bits):
    laplace = RNG.laplace(0, 1, 100_000).astype(np.float32)
    gauss = RNG.normal(0, 1, 100_000).astype(np.float32)
    rectified = np.maximum(laplace, 0)
    assert error(laplace, "aciq-laplace", bits) < error(laplace, "aciq-gauss", bits)
    assert error(gauss, "aciq-gauss", bits) < error(gauss, "aciq-laplace", bits)
    for rule in ("aciq-laplace", "aciq-gauss", "minmax"):
        assert error(rectified, "aciq-onesided", bits) < error(rectified, rule, bits)


def test_the_onesided_rule_takes_the_factor_of_one_bit_more_and_ignores_what_is_rectified():
    d = clip.distribution([0.0, 0.5, 1.0, 1.5, 100.0], [10_000, 300, 400, 300, 1])
    above = (0.5 * 300 + 400 + 1.5 * 300 + 100) / 1001
    assert clip.clip_range(d, "aciq-onesided", 4) == (0.0, pytest.approx(clip.laplace_factor(5) * above))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_least_squares_is_never_worse_than_another_rule(tensor, bits):
    least = error(tensor, "mse", bits)
    for rule in codec.RULES:
        assert least <= error(tensor, rule, bits) * (1 + 1e-9)


@drawn(40)
@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)), st.integers(2, 8))
def test_least_squares_is_never_worse_than_another_rule_on_any_values(values, bits):
    least = error(values, "mse", bits)
    for rule in codec.RULES:
        assert least <= error(values, rule, bits) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["laplace", "gauss", "relu", "hard-swish", "uniform", "student"])
@pytest.mark.parametrize("bits", [2, 4])
def test_least_squares_is_within_a_percent_of_an_exhaustive_search(name, bits):
    values = TENSORS[name][:2000]
    cells = clip._Cells(clip.distribution(values), bits)
    ends = np.linspace(values.min(), values.max(), 250)
    ranges = np.array([(lo, hi) for lo in ends for hi in ends if lo < hi])
    assert error(values, "mse", bits) <= 1.01 * cells.errors(ranges).min()


@pytest.mark.parametrize("bits", [2, 8])
def test_the_search_counts_errors_as_the_codec_makes_them(tensor, bits):
    d = clip.distribution(tensor)
    lo, hi = clip.clip_range(d, "aciq-laplace", bits)
    [counted] = clip._Cells(d, bits).errors(np.array([[lo, hi]]))
    assert counted == pytest.approx(error(tensor, "aciq-laplace", bits), rel=1e-3)


@pytest.mark.parametrize("rule", ["minmax", "percentile", "aciq-laplace", "aciq-gauss", "aciq-onesided"])
@pytest.mark.parametrize("bits", [2, 8])
def test_a_range_never_goes_beyond_the_data(tensor, rule, bits):
    lo, hi = clip.clip_range(clip.distribution(tensor), rule, bits)
    assert tensor.min() <= lo < hi <= tensor.max()


@pytest.mark.parametrize("rule", codec.RULES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_histogram_gives_the_codec_of_the_tensor_that_it_counts(rule, bits):
    codes = np.clip(RNG.normal(90, 25, 30_000), 0, 255).astype(np.uint8)
    levels = np.float32(0.05) * (np.arange(256) - 80).astype(np.float32)
    histogram = np.bincount(codes, minlength=256)
    assert codec.fit(levels, rule, bits, weights=histogram) == codec.fit(levels[codes], rule, bits)


@pytest.mark.parametrize("rule", codec.RULES)
def test_channel_histograms_give_the_codec_of_the_channels(rule):
    codes = np.clip(RNG.normal([60, 128, 200], [5, 30, 15], (4000, 3)), 0, 255).astype(np.uint8)
    levels = np.float32(0.05) * (np.arange(256) - 80).astype(np.float32)
    histograms = np.stack([np.bincount(column, minlength=256) for column in codes.T])
    fitted = codec.fit_channels(levels, rule, 4, weights=histograms)
    assert fitted == codec.fit_channels(levels[codes], rule, 4)
    assert len(fitted.lo) == len(fitted.scale) == 3
    assert fitted.lo[1] == codec.fit(levels[codes[:, 1]], rule, 4).lo[0]
    assert codec.squared_error(levels, histograms, fitted) == pytest.approx(
        codec.squared_error(levels[codes], None, fitted)
    )


def test_the_percentile_clips_so_much_of_each_side():
    values = np.arange(1000, dtype=np.float32)
    lo, hi = clip.clip_range(clip.distribution(values), "percentile", 8, 99.0)
    assert (lo, hi) == (9, 989)
    assert clip.clip_range(clip.distribution(values), "percentile", 8, 100.0) == (0, 999)


def test_a_percentile_that_sees_one_value_only_falls_back_to_the_whole_range():
    assert span(codec.fit(TENSORS["sparse"], "percentile", 4)) == (0, pytest.approx(3))


def test_weights_of_zero_leave_a_value_out():
    assert span(codec.fit([1.0, 2.0, np.nan, 9.0], "minmax", 2, weights=[1, 1, 0, 0])) == (1, pytest.approx(2))


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [1, np.nan], [1], [1, 1, 1]])
def test_weights_that_are_no_counts_are_refused(weights):
    with raises(errors.CodecError, reason="weights"):
        codec.fit([1.0, 2.0], "minmax", 4, weights=weights)


@pytest.mark.parametrize("rule", codec.RULES)
def test_values_at_the_ends_of_float32_are_fitted_or_refused(rule):
    for values in ([-3e38, 0, 1, 3e38], [0, 1e-45], [-1e-45, 1e-45, 1], [3e38, 3.2e38], [-3e38] * 500 + [3e38, 1]):
        with contextlib.suppress(errors.CodecError):
            codec.validate(codec.fit(values, rule, 4))


@pytest.mark.parametrize(
    ("values", "rule", "bits", "percentile", "says"),
    [
        ([1.0, np.nan, np.inf], "minmax", 4, 99.9, "not-finite"),
        ([1.0, 1e300], "minmax", 4, 99.9, "not-finite"),
        ([-3e38, 3e38], "minmax", 4, 99.9, "codec-range"),
        ([1.0], "kl", 4, 99.9, "unknown-clip-rule"),
        ([1.0], "minmax", 1, 99.9, "bits"),
        ([1.0], "minmax", 9, 99.9, "bits"),
        ([1.0], "percentile", 4, 50.0, "percentile"),
        ([1.0], "percentile", 4, 101.0, "percentile"),
    ],
)
def test_what_cannot_be_fitted_is_refused(values, rule, bits, percentile, says):
    with raises(errors.CodecError, reason=says):
        codec.fit(values, rule, bits, percentile=percentile)


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        (np.empty((0, 3)), None),
        (np.float32(1), None),
        (np.ones((2, 2)), np.ones((2, 2))),
        (np.ones(2), np.ones(2)),
        (np.ones(2), np.zeros((3, 2))),
    ],
)
def test_channels_without_values_are_refused(values, weights):
    with pytest.raises(errors.CodecError):
        codec.fit_channels(values, "minmax", 4, weights=weights)
