"""Two profiles: noise is no change, a slow kernel is found, and what cannot be compared says why."""

from __future__ import annotations

import copy
import math

import msgspec
import numpy as np
import pytest

from device_profiles import rounds
from edge_agent.profiling import comparison
from tests.round_profile import round_profile


def drawn(random: np.random.Generator, *, noise: float = 0.02, slower: dict[str, float] | None = None):
    """A profile whose rounds differ by ``noise``, with some kernels ``slower`` by a factor."""
    profile = round_profile()
    for row in profile.kernels:
        factor = (slower or {}).get(row.name, 1.0)
        medians = row.time_us * factor * np.exp(noise * random.standard_normal(9))
        row.interval = rounds.interval(medians.tolist())
        row.time_us = float(np.median(medians))
    return profile


def test_a_profile_and_itself_have_no_change():
    profile = drawn(np.random.default_rng(0))
    found = comparison.compare(profile, copy.deepcopy(profile))
    assert len(found) == len(profile.kernels)
    assert {one.verdict for one in found} == {"no change"}
    assert all(one.percent == 0 and one.low < 0 < one.high for one in found)


@pytest.mark.thorough
@pytest.mark.parametrize("noise", [0.005, 0.02, 0.1])
def test_noise_is_rarely_called_a_change(noise):
    random = np.random.default_rng(1)
    wrong = [
        any(one.verdict != "no change" for one in comparison.compare(*(drawn(random, noise=noise) for _ in "ab")))
        for _ in range(200)
    ]
    assert sum(wrong) <= 10  # 5 % of pairs of profiles, each of 13 kernels


def test_a_kernel_that_became_slower_or_faster_is_found():
    random = np.random.default_rng(2)
    names = [row.name for row in round_profile().kernels]
    changed = {names[0]: 1.15, names[5]: 0.85}
    for _ in range(50):
        found = comparison.compare(drawn(random), drawn(random, slower=changed))
        assert {one.name: one.verdict for one in found if one.verdict != "no change"} == {
            names[0]: "slower",
            names[5]: "faster",
        }


def test_a_change_below_the_least_does_not_count():
    random = np.random.default_rng(3)
    name = round_profile().kernels[0].name
    pair = drawn(random, noise=0.001), drawn(random, noise=0.001, slower={name: 1.04})
    assert {one.verdict for one in comparison.compare(*pair)} == {"no change"}
    assert [one.name for one in comparison.compare(*pair, least=2) if one.verdict == "slower"] == [name]


def test_the_interval_of_the_change_contains_it():
    """Twin: with symmetric intervals the method is the sum of two variances."""
    old, new = round_profile(), round_profile()
    for profile, width in ((old, 0.03), (new, 0.04)):
        for row in profile.kernels:
            low, high = (row.time_us * math.exp(sign * width) for sign in (-1, 1))
            row.interval = msgspec.convert(
                {"low_us": low, "high_us": high, "rounds": 9, "tight": False}, rounds.Interval
            )
    found = comparison.compare(old, new)
    wider = math.log(1 + found[0].high / 100) / 0.05
    assert 1.6 < wider < 1.8  # for 13 rows at 2 %: 3.17 / 1.96 standard deviations
    assert math.isclose(math.log(1 + found[0].low / 100), -0.05 * wider)


def test_what_cannot_be_compared_says_why():
    full, older = drawn(np.random.default_rng(4)), round_profile()
    found = comparison.compare(older, full)
    assert all(one.verdict.startswith("not comparable: the first") and math.isnan(one.percent) for one in found)
    missing = msgspec.structs.replace(full, kernels=full.kernels[1:])
    assert comparison.compare(full, missing)[0].verdict == "not comparable: only in the first"
    assert comparison.compare(missing, full)[-1].verdict == "not comparable: only in the second"
