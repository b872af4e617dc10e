"""Bit allocation against every combination, against an independent integer program, and the baselines against it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import milp
from edge_server.planner import knapsack, verify_allocation
from edge_server.planner.allocation import (
    MIN_SAVING,
    WIDTHS,
    Allocation,
    CutCodec,
    WeightLayer,
    allocate,
    closed_form,
    ladder,
    packed_bytes,
    pareto_front,
    total_noise,
    uniform,
)
from splitedge import errors, limits
from tests.drawn import drawn
from tests.raising import raises

falling = st.lists(st.floats(0, 1e6), min_size=7, max_size=7).map(lambda values: sorted(values, reverse=True))
any_table = st.lists(st.floats(0, 1e6) | st.just(math.inf), min_size=7, max_size=7)
few_values = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5, 1.0, 2.0]), min_size=7, max_size=7)
fitted = st.floats(1e-6, 1e6).map(lambda p: [p * 4.0**-b for b in WIDTHS])
sizes = st.integers(1, 10**7) | st.sampled_from([8, 64, 1024, 9216])
layer = st.builds(lambda s, n: WeightLayer("layer", s, tuple(n)), sizes, falling | any_table | few_values | fitted)
codec = st.builds(
    lambda b, s, n: CutCodec("mse", b, s, n), st.integers(2, 8), st.integers(0, 200_000), st.floats(0, 1e6)
)
share = st.floats(0, 1)
HAIR = 1 + 1e-12  # more than the rounding of a sum


def every(layers: list[WeightLayer], budget: float, codecs: list[CutCodec], weight: float) -> int | None:
    """The least objective by trying everything, in exact arithmetic."""
    items = [[(-(-one.weights * b // 8), n) for b, n in zip(WIDTHS, one.noise, strict=True)] for one in layers]
    items += [[(round(weight * c.frame_bytes), c.noise) for c in codecs]] if codecs else []
    exact = [[(size, Fraction(noise)) for size, noise in item if noise < math.inf] for item in items]
    states: dict[int, Fraction] = {0: Fraction(0)}
    for item in exact:
        grown: dict[int, Fraction] = {}
        for (size, noise), (more, louder) in itertools.product(states.items(), item):
            total = noise + louder
            if total <= budget and total < grown.get(size + more, math.inf):
                grown[size + more] = total
        states = grown
    return min(states, default=None)


def budget_of(layers: list[WeightLayer], codecs: list[CutCodec], part: float) -> float:
    """From what is hardly or not feasible to what forbids nothing."""
    tables = [[n for n in one.noise if n < math.inf] or [0.0] for one in layers]
    tables += [[c.noise for c in codecs]] if codecs else []
    low, high = math.fsum(min(t) for t in tables), math.fsum(max(t) for t in tables)
    return (low + (high - low) * part**3) * HAIR


@drawn(300)
@given(st.lists(layer, max_size=4), st.lists(codec, max_size=3), share, st.floats(0, 50))
def test_equals_brute_force(layers: list[WeightLayer], codecs: list[CutCodec], part: float, weight: float) -> None:
    budget = budget_of(layers, codecs, part)
    best = every(layers, budget, codecs, weight)
    if best is None:
        with pytest.raises(errors.InfeasibleError):
            allocate(layers, budget, codecs, weight)
        assert verify_allocation(layers, budget, codecs, weight, None) == []
        return
    found = allocate(layers, budget, codecs, weight)
    assert (found.objective, found.bound) == (best, best)
    assert verify_allocation(layers, budget, codecs, weight, found) == []


def network(seed: int, count: int, wobble: float) -> list[WeightLayer]:
    """Layers like a real network's: sizes in steps of channels, noise near p 4^-b; ``wobble``: how far from it."""
    rng = np.random.default_rng(seed)
    channels = np.sort(rng.choice([16, 24, 32, 40, 64, 80, 112, 192, 320], count))
    weights = channels * channels * rng.choice([1, 6, 9], count)
    noise = (
        np.exp(rng.normal(0, 1.5, count))[:, None]
        * 4.0 ** -np.array(WIDTHS)
        * np.exp(rng.normal(0, wobble, (count, 7)))
    )
    noise = np.maximum.accumulate(noise[:, ::-1], axis=1)[:, ::-1]
    return [
        WeightLayer(f"layer{i}", int(w), tuple(n.tolist())) for i, (w, n) in enumerate(zip(weights, noise, strict=True))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_six_layers_equal_every_one_of_their_117649_combinations(seed: int) -> None:
    layers = network(seed, 6, wobble=seed / 2)
    bits = np.array(list(itertools.product(WIDTHS, repeat=6)))
    sizes = sum(-(-one.weights * bits[:, i] // 8) for i, one in enumerate(layers))
    noise = sum(np.array(one.noise)[bits[:, i] - 2] for i, one in enumerate(layers))
    for part in (0.02, 0.2, 0.5, 0.9):
        budget = noise.min() * (noise.max() / noise.min()) ** part
        assert allocate(layers, budget).objective == sizes[noise <= budget].min()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "wobble"), [(10, 0.0), (10, 1.0), (20, 0.0), (20, 0.3), (40, 2.0), (60, 0.0), (200, 0.3)]
)
def test_equals_an_integer_program(count: int, wobble: float) -> None:
    """HiGHS keeps the budget to a tolerance only: what it finds is no better than ours with a hair more noise, and ours is no worse than it."""
    compared = 0
    for seed, part in enumerate((0.15, 0.4, 0.7)):
        layers = network(seed, count, wobble)
        budget = between(layers, part)
        cost = np.array([[packed_bytes(one.weights, b) for b in WIDTHS] for one in layers])
        choice = milp.solve(cost, np.array([one.noise for one in layers]), budget)
        assert choice is not None
        theirs = int(cost[np.arange(count), choice].sum())
        ours = allocate(layers, budget)
        assert ours.bound == ours.objective
        assert allocate(layers, budget * (1 + 1e-9)).objective <= theirs
        if total_noise(layers, [WIDTHS[i] for i in choice]) <= budget:
            assert ours.objective == theirs
            compared += 1
    assert compared


def between(layers: list[WeightLayer], part: float) -> float:
    low, high = (math.fsum(pick(one.noise) for one in layers) for pick in (min, max))
    return float(low * (high / low) ** part * HAIR)


@drawn(60)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0, 2), share, share)
def test_a_looser_demand_never_costs_more(seed: int, count: int, wobble: float, one: float, other: float) -> None:
    layers = network(seed, count, wobble)
    tight, loose = sorted(between(layers, part) for part in (one, other))
    assert allocate(layers, loose).objective <= allocate(layers, tight).objective


@drawn(100)
@given(st.lists(layer, min_size=1, max_size=12), share)
def test_no_baseline_beats_it(layers: list[WeightLayer], part: float) -> None:
    budget = budget_of(layers, [], part)
    for found in (closed_form(layers, budget), uniform(layers, budget)):
        if found is not None:
            assert sum(Fraction(one.noise[b - 2]) for one, b in zip(layers, found.bits, strict=True)) <= budget
            assert allocate(layers, budget).objective <= found.objective


@drawn(40)
@given(st.integers(0, 10**6), st.integers(7, 80), st.floats(0, 2), share)
def test_the_verifier_finds_no_fault_in_large_ones(seed: int, count: int, wobble: float, part: float) -> None:
    layers = network(seed, count, wobble)
    budget = between(layers, part)
    found = allocate(layers, budget)
    assert found.bound == found.objective
    assert verify_allocation(layers, budget, (), 0.0, found) == []


def test_equal_layers_are_hard_for_a_relaxation_and_exact_all_the_same() -> None:
    """Each step saves as much for as much noise: the relaxation's bound says nothing, only counting does."""
    layers = [WeightLayer("layer", 800, tuple(float(8 - b) for b in WIDTHS))] * 50
    for budget in (0.0, 0.5, 1.0, 77.5, 299.0, 300.0):
        assert allocate(layers, budget).objective == 100 * (50 * 8 - math.floor(budget))


def test_a_narrow_search_is_honest_about_what_it_did_not_prove() -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(1, 1000, (12, 7)).astype(np.float64)
    cost = (10_000 - noise).astype(np.int64)  # what one gains another loses: the relaxation tells nothing
    narrow, wide = (knapsack.solve(cost, noise, 3000.5, max_width=width) for width in (2, knapsack.MAX_WIDTH))
    assert narrow is not None
    assert wide is not None
    assert narrow.bound <= wide.bound <= wide.cost <= narrow.cost
    assert wide.bound == wide.cost
    assert narrow.bound < narrow.cost


def test_even_noise_too_small_for_a_float_sum_counts() -> None:
    layers = [WeightLayer("loud", 100, (1.0,) + (0.5,) * 6), WeightLayer("quiet", 100, (1e-30,) * 7)]
    assert allocate(layers, 1.0).bits == (3, 2)
    assert allocate(layers[:1], 1.0).bits == (2,)


def test_infeasible_names_the_least_noise() -> None:
    layers = [WeightLayer("a", 10, (7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.5)), WeightLayer("b", 10, (0.5,) * 7)]
    with raises(errors.InfeasibleError, reason="noise") as caught:
        allocate(layers, 1.99)
    assert caught.value.data["binding"] == ["noise"]
    assert caught.value.data["nearest"] == {"noise": pytest.approx(2.000002)}
    assert allocate(layers, caught.value.data["nearest"]["noise"]).bits == (8, 2)


def test_a_codec_with_heavy_frames_is_traded_for_weight_bits() -> None:
    layers = [WeightLayer("a", 1000, tuple(4.0**-b for b in WIDTHS))]
    codecs = [CutCodec("mse", 8, 1040, 0.0), CutCodec("mse", 2, 290, 0.002)]
    once, often = allocate(layers, 4.0**-4, codecs, 0.01), allocate(layers, 4.0**-4, codecs, 1000)
    assert (once.bits, once.codec, once.segment_bytes) == ((4,), 0, 500)
    assert (often.bits, often.codec, often.objective) == ((5,), 1, 625 + 290_000)


def test_the_front_is_what_no_other_codec_beats_most_accurate_first() -> None:
    sizes = [(100, 1.0), (80, 2.0), (90, 2.0), (80, 3.0), (40, 9.0), (120, 1.0), (100, 1.0)]
    codecs = [CutCodec("mse", 8, size, noise) for size, noise in sizes]
    assert pareto_front(codecs, range(7)) == [0, 1, 4]
    assert pareto_front(codecs, [5, 3, 2]) == [5, 2, 3]
    assert pareto_front(codecs, []) == []


@given(
    codecs=st.lists(
        st.builds(lambda s, n: CutCodec("mse", 8, s, n), st.integers(900, 2000), st.floats(0, 1)),
        min_size=1,
        max_size=60,
    ),
    data=st.data(),
)
def test_a_ladder_falls_has_no_rung_that_gives_nothing_and_lacks_none_that_gives_something(codecs, data) -> None:
    own = data.draw(st.integers(0, len(codecs) - 1))
    rungs = ladder(codecs, range(len(codecs)), own)
    assert own in rungs
    assert len(rungs) <= limits.MAX_LADDER
    sizes = [codecs[i].frame_bytes for i in rungs]
    assert sizes == sorted(sizes, reverse=True)
    others = [codecs[i] for i in rungs if i != own]
    for more, less in itertools.pairwise(others):
        assert more.frame_bytes > MIN_SAVING * less.frame_bytes
        assert more.noise < less.noise
    if len(rungs) < limits.MAX_LADDER:
        for one in codecs:
            assert any(
                codecs[i].frame_bytes <= MIN_SAVING * one.frame_bytes and codecs[i].noise <= one.noise for i in rungs
            )


def test_the_chosen_codec_stays_on_the_ladder_though_another_beats_it_or_is_near() -> None:
    codecs = [
        CutCodec("mse", 8, size, noise) for size, noise in [(500, 0.0), (495, 0.1), (400, 0.9), (300, 0.3), (296, 0.4)]
    ]
    assert ladder(codecs, range(5), 0) == [0, 3]
    assert ladder(codecs, range(5), 1) == [0, 1, 3]
    assert ladder(codecs, range(5), 2) == [0, 2, 3]
    assert ladder(codecs, [0], 4) == [0, 4]


def test_a_long_ladder_is_thinned_and_keeps_its_ends_and_the_chosen_codec() -> None:
    codecs = [CutCodec("mse", 8, int(1e6 * 0.97**i), 0.001 * i) for i in range(50)]
    for own in (0, 17, 49):
        rungs = ladder(codecs, range(50), own)
        assert (len(rungs), rungs[0], rungs[-1], own in rungs) == (limits.MAX_LADDER, 0, 49, True)


def test_the_closed_form_is_the_continuous_optimum_rounded() -> None:
    """Two layers of noise 4^-b: log4(1100 / 1000 / C) = 3.07 and log4(1100 / 100 / C) = 4.73 with C = 4^-3."""
    layers = [
        WeightLayer("large", 1000, tuple(4.0**-b for b in WIDTHS)),
        WeightLayer("small", 100, tuple(4.0**-b for b in WIDTHS)),
    ]
    found = closed_form(layers, 4.0**-3 + 4.0**-5)
    assert found is not None
    assert found.bits == (3, 5)
    repaired = closed_form(layers, 4.0**-3)
    assert repaired is not None
    assert total_noise(layers, (3, 5)) > 4.0**-3 >= repaired.noise
    assert repaired.bits == (3, 8) or repaired.bits[0] > 3


def test_baselines_say_when_they_find_nothing() -> None:
    layers = [WeightLayer("a", 10, (3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0))]
    assert (closed_form(layers, 1.0), uniform(layers, 1.0)) == (None, None)


def test_no_layers_take_no_bytes() -> None:
    assert allocate([], 0.0) == Allocation((), None, 0, 0.0, 0, 0)
    assert closed_form([], 1.0) == uniform([], 1.0) == Allocation((), None, 0, 0.0, 0)


@pytest.mark.parametrize(
    ("layers", "budget", "weight"),
    [
        ([], math.nan, 0.0),
        ([], -1.0, 0.0),
        ([], 1.0, math.inf),
        ([WeightLayer("a", 10, (1.0,))], 1.0, 0.0),
        ([WeightLayer("a", 10, (math.nan,) * 7)], 1.0, 0.0),
        ([WeightLayer("a", 0, (1.0,) * 7)], 1.0, 0.0),
        ([WeightLayer("a", 2**41, (1.0,) * 7)], 7.0, 0.0),
    ],
)
def test_refuses_what_makes_no_sense(layers: list[WeightLayer], budget: float, weight: float) -> None:
    with pytest.raises(errors.UsageError):
        allocate(layers, budget, (), weight)


def test_the_verifier_finds_faults() -> None:
    layers = network(1, 8, 0.3)
    budget = between(layers, 0.5)
    right = allocate(layers, budget)

    def faults(**changes: object) -> list[str]:
        return verify_allocation(layers, budget, (), 0.0, dataclasses.replace(right, **changes))  # type: ignore[arg-type]

    assert faults() == []
    assert "the noise exceeds the budget" in faults(bits=(2,) * 8)
    assert "a change of one choice saves bytes" in faults(bits=(8,) * 8)
    assert faults(objective=right.objective - 1, bound=0) == ["the objective is wrong"]
    assert faults(bound=right.objective + 1) == ["the bound exceeds the objective"]
    assert faults(segment_bytes=1) == ["the segment's size is wrong"]
    assert faults(noise=0.0) == ["the noise is wrong"]
    assert faults(bits=(9,) * 8) == ["a width or a codec does not exist"]
    assert faults(bits=(2,)) == faults(codec=0) == ["the answer has other layers or codecs"]
    assert verify_allocation(layers, budget, (), 0.0, None) == ["there are bits that fit"]


@drawn(60)
@given(st.integers(0, 10**6), st.integers(3, 20), share, st.data())
def test_the_verifier_refuses_every_allocation_that_is_worse_in_one_layer(
    seed: int, count: int, part: float, data: st.DataObject
) -> None:
    """More bits than needed in a layer can be taken back, fewer break the budget or made room for others."""
    layers = network(seed, count, 0.3)
    budget = between(layers, part)
    right = allocate(layers, budget)
    changed = list(right.bits)
    changed[data.draw(st.integers(0, count - 1))] += data.draw(st.sampled_from([-2, -1, 1, 2]))
    if not all(2 <= b <= 8 for b in changed):
        return
    wrong = made_of(layers, tuple(changed))
    if wrong.objective > right.objective or wrong.noise > budget:
        assert verify_allocation(layers, budget, (), 0.0, wrong)


def made_of(layers: list[WeightLayer], bits: tuple[int, ...]) -> Allocation:
    size = sum(packed_bytes(one.weights, b) for one, b in zip(layers, bits, strict=True))
    return Allocation(bits, None, size, total_noise(layers, bits), size)
