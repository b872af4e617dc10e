"""Intervals, fits and the grid's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.accuracy import evaluation
from calibration.accuracy.evaluation import (
    CodecNoise,
    CutNoise,
    Histogram,
    compare,
    look_up,
    paired_drop,
    real_table,
    wilson,
)
from calibration.accuracy.trials import Trial, additivity
from calibration.statistics.activations import Quantization
from calibration.statistics.clipping import CHANNEL, LEAST_COUNT, RULES
from splitedge import codec


def pairs(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.repeat([True, True, False, False], [both, lost, gained, neither])
    after = np.repeat([True, False, True, False], [both, lost, gained, neither])
    return before, after


def score(lost: int, gained: int, n: int, delta: float) -> float:
    """Tango's statistic with the constrained likelihood maximised by brute force."""
    q = np.linspace(max(0.0, -delta), min(1.0, 1.0 - delta) if delta > 0 else 1.0, 200_001)[1:-1]
    p, rest = q + delta, 1.0 - 2 * q - delta
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = lost * np.log(p) + gained * np.log(q) + (n - lost - gained) * np.log(rest)
    best = q[np.nanargmax(np.where((p > 0) & (rest > 0), likelihood, -np.inf))]
    return (lost - gained - n * delta) / np.sqrt(n * (2 * best + delta * (1 - delta)))


@pytest.mark.parametrize("counts", [(9, 3, 1, 7), (15, 4, 2, 4), (200, 9, 6, 35), (30, 1, 5, 4)])
def test_ends_of_the_interval_are_where_the_score_is_significant(counts: tuple[int, int, int, int]) -> None:
    _, low, high = paired_drop(*pairs(*counts))
    _, lost, gained, _ = counts
    assert score(lost, gained, sum(counts), low / 100) == pytest.approx(1.96, abs=0.01)
    assert score(lost, gained, sum(counts), high / 100) == pytest.approx(-1.96, abs=0.01)


def test_interval_without_any_change_has_a_width_that_shrinks() -> None:
    widths = [paired_drop(*pairs(n, 0, 0, 0))[2] for n in (20, 200, 2000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(100 * 3.8415 / (20 + 3.8415), rel=1e-3)
    assert paired_drop(*pairs(20, 0, 0, 0))[0] == 0.0


def test_interval_holds_its_drop_and_is_mirrored() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        before, after = rng.random(25) < 0.8, rng.random(25) < 0.7
        drop, low, high = paired_drop(before, after)
        assert -100 <= low <= drop <= high <= 100
        back = paired_drop(after, before)
        assert back == (pytest.approx(-drop), pytest.approx(-high), pytest.approx(-low))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(600):
        kinds = rng.choice(4, 40, p=[0.75, 0.10, 0.05, 0.10])
        before, after = np.isin(kinds, (0, 1)), np.isin(kinds, (0, 2))
        _, low, high = paired_drop(before, after)
        hits += low <= 5.0 <= high
    assert 0.92 < hits / 600 < 0.99


def test_wilson_interval() -> None:
    assert wilson(0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
    assert wilson(10, 20) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))


def test_without_labels_disagreement_is_the_drop() -> None:
    reference, found = np.array([1, 2, 3, 4]), np.array([1, 2, 3, 0])
    drop, low, high, agreement = compare(reference, found, None)
    assert (drop, agreement) == (25.0, 0.75)
    assert low < 25.0 < high
    drop, _, _, agreement = compare(reference, found, np.array([1, 0, 0, 0]))
    assert (drop, agreement) == (-25.0, 0.75)


def histogram(channels: int = 6, seed: int = 0) -> tuple[np.ndarray, Histogram, Quantization]:
    rng = np.random.default_rng(seed)
    codes = np.clip(rng.normal(90, 20 + 10 * np.arange(channels), (4000, channels)), 0, 255).astype(np.uint8)
    quantization = Quantization(float(np.float32(0.05)), 90)
    counts = np.stack([np.bincount(codes[:, c], minlength=256) for c in range(channels)])
    return codes, Histogram(quantization.values(), counts), quantization


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_fitted_table_is_what_the_codec_sends(rule: str, bits: int) -> None:
    codes, made_of, quantization = histogram()
    made = made_of.fit(rule, bits)
    x = (np.float32(quantization.scale) * (codes.astype(np.float32) - quantization.zero_point)).astype(np.float32)
    decoded = codec.decode(codec.encode(x, made), made, x.shape)
    np.testing.assert_array_equal(look_up(codes, real_table(made, quantization)), decoded)
    assert made_of.squared_error(made) == pytest.approx(
        ((decoded.astype(np.float64) - x) ** 2).sum(), rel=1e-3, abs=1e-3
    )


@pytest.mark.parametrize("family", ["lloyd-max", "lloyd-max-channel", "hadamard"])
def test_a_table_of_a_codebook_is_what_the_codec_sends(family: str) -> None:
    codes, _, quantization = histogram(6)
    x = quantization.values().astype(np.float32)[codes]
    made = codec.fit_samples(x, family, 2)
    assert made.levels
    assert not codec.work(made, x.shape)
    np.testing.assert_array_equal(
        look_up(codes, real_table(made, quantization)), codec.decode(codec.encode(x, made), made, x.shape)
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_least_squares_of_all_channels_at_once_is_as_good_as_one_by_one(bits: int) -> None:
    _, made_of, _ = histogram()
    ours = made_of.squared_error(made_of.fit("mse" + CHANNEL, bits))
    theirs = codec.fit_channels(made_of.values, "mse", bits, weights=made_of.counts)
    assert ours <= 1.06 * made_of.squared_error(theirs)
    for rule in RULES:
        if rule.endswith(CHANNEL):
            assert ours <= 1.06 * made_of.squared_error(made_of.fit(rule, bits))


def test_channel_rules_equal_those_of_the_codec() -> None:
    _, made_of, _ = histogram()
    for rule in ("minmax", "percentile", "aciq-laplace", "aciq-gauss", "aciq-onesided"):
        assert made_of.fit(rule + CHANNEL, 4) == codec.fit_channels(made_of.values, rule, 4, weights=made_of.counts)


def test_a_constant_channel_is_exact() -> None:
    _, made_of, quantization = histogram()
    made_of.counts[2] = 0
    made_of.counts[2, 33] = 500
    table = real_table(made_of.fit("mse" + CHANNEL, 2), quantization)
    assert table[2, 33] == np.float32(made_of.values[33])


def test_channels_seen_seldom_get_no_range_of_their_own() -> None:
    _, made_of, _ = histogram()
    assert set(made_of.rules) == set(RULES)
    few = Histogram(made_of.values, np.eye(6, 256, dtype=np.int64) * (LEAST_COUNT - 1))
    assert not [r for r in few.rules if r.endswith(CHANNEL)]


def test_a_cuts_packed_codecs_follow_the_law_of_bits_as_layers_do():
    """p x 4^-b of what they add; codecs that do more than pack, and those that add nothing, say nothing of it."""
    packed = [CodecNoise(b, "mse", 0.01 + 3.0 * 4.0**-b, 10) for b in (6, 4, 3, 2)]
    others = [CodecNoise(8, "minmax", 0.01, 10), CodecNoise(8, "entropy-2", 9.0, 10, {"entropy": 100.0})]
    assert CutNoise(1, 0.01, [*packed, *others]).fit() == pytest.approx((3.0, 0.0), abs=1e-9)
    bent = [CodecNoise(b, "mse", 3.0 * 4.0 ** -(b + (-1) ** b), 10) for b in (2, 3, 4, 5)]
    assert CutNoise(1, 0.0, bent).fit() == pytest.approx((3.0, 1.0))
    assert CutNoise(1, 0.0, packed[:1]).fit() is None


def test_how_whole_heads_agree_with_their_parts_is_said_in_a_line():
    def trial(predicted, measured):
        return Trial(1, {}, 4, predicted, measured, 0.0, 0.0, 0.0, 1.0)

    told = additivity([trial(0.1, 0.09), trial(0.2, 0.26), trial(0.0, 0.0)])
    assert told == "noise of whole heads over the sum of their parts: 0.9 to 1.3 in 2 trials"
    assert additivity([trial(0.0, 0.1)]) == ""


def test_rates_of_one_family_belong_together() -> None:
    rules = ["hadamard", "entropy-2", "entropy-3", "pca-1.25", "entropy-4", "pca-2"]
    assert evaluation._families(list(enumerate(rules))) == [[1, 2, 4]]


def test_a_rate_between_two_measured_ones_follows_the_error_at_the_cut() -> None:
    errors = {3: 1.0, 4: 0.25, 5: 0.0625}
    found = evaluation._between([3, 4, 5], {3: 8.5, 5: 1.0}, errors, 0.5)
    assert found is not None
    assert (found[3], found[5]) == (8.5, 1.0)
    assert found[4] == pytest.approx(0.5 + 2.0)  # 8 and 0.5 are added to the head's noise, in proportion to the error
    assert evaluation._between([3, 4, 5], {3: 0.5, 5: 1.0}, errors, 0.5) is None


def test_the_rule_of_least_noise_is_chosen_for_each_width() -> None:
    means = [9.0, 3.0, 2.0, np.inf, 7.0]
    asked: list[int] = []

    def noises(place: int, which: np.ndarray) -> np.ndarray:
        asked.append(place)
        return np.full(len(which), means[place])

    assert evaluation._best(noises, [8, 4, 4, 2, 2], np.arange(2)) == [0, 2, 4]
    assert asked == [1, 2, 3, 4]  # a width with one rule needs no measurement
