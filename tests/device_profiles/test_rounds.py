"""The interval of a median: its level, its ends, and when it is tight."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from device_profiles import rounds


@pytest.mark.parametrize("count", range(rounds.LEAST, 14))
def test_the_ranks_are_the_closest_with_the_stated_probability(count):
    """Twin: every sequence of draws below and above the true median, all equally probable."""
    below = [sum(draws) for draws in product((0, 1), repeat=count)]

    def covered(rank: int) -> float:
        """The value at ``rank`` is at most the median, and the one from the other end at least."""
        return float(np.mean([rank < number < count - rank for number in below]))

    found = rounds.interval(list(range(1, count + 1)))
    rank = int(found.low_us) - 1
    assert found.high_us == count - rank
    assert covered(rank) >= rounds.CONFIDENCE > covered(rank + 1)


def test_the_interval_contains_the_median_of_a_skewed_distribution_often_enough():
    random = np.random.default_rng(0)
    found = [rounds.interval(random.exponential(1.0, 9).tolist()) for _ in range(2000)]
    assert np.mean([one.low_us <= np.log(2) <= one.high_us for one in found]) > 0.95


def test_one_disturbed_round_in_nine_leaves_the_interval_tight():
    assert rounds.interval([100.0] * 8 + [400.0]).tight
    assert not rounds.interval([100.0] * 5 + [400.0]).tight
    assert not rounds.interval([97.0, 97.0, 100, 100, 100, 100, 100, 103, 103]).tight


@pytest.mark.parametrize("noise", [0.005, 0.015, 0.03])
def test_to_stop_when_it_is_tight_hardly_lowers_the_level(noise):
    random, inside = np.random.default_rng(0), []
    for _ in range(400):
        medians = np.exp(noise * random.standard_normal(rounds.MOST)).tolist()
        found = (rounds.interval(medians[:count]) for count in range(rounds.LEAST, rounds.MOST + 1))
        last = next((one for one in found if one.tight), rounds.interval(medians))
        inside.append(last.low_us <= 1 <= last.high_us)
    assert np.mean(inside) > 0.91
