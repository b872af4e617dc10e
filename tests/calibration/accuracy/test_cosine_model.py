"""From noise to the cosine: what is promised holds on samples and quantizations that the model has not seen."""

import math

import msgspec
import numpy as np
import pytest

from calibration.accuracy import cosine_model
from calibration.accuracy.metrics import AccuracyModel
from splitedge import errors
from tests.calibration.curves import check_curve
from tests.raising import raises

WIDTH = 24


def make(count, seed):
    """Embeddings [count, WIDTH] of lengths that differ."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(WIDTH, WIDTH))
    return (random.normal(size=(count, WIDTH)) @ mixing * random.lognormal(0.0, 0.4, (count, 1))).astype(np.float32)


def noisy(outputs, energy, seed):
    """What a variant adds: of this energy in the mean of all samples there are, whose channels' shares and growth with the outputs are its own."""
    random = np.random.default_rng([seed, 1])  # not the draws of `make`
    shares, growth = random.lognormal(0.0, 0.5, WIDTH), random.uniform(0.0, 1.0)

    def amplitude(x):
        return (1 + growth * np.abs(x).mean(axis=1, keepdims=True)) * shares

    scale = np.sqrt(energy / np.square(amplitude(ALL)).mean())
    return (scale * random.normal(size=outputs.shape) * amplitude(outputs)).astype(np.float32)


ALL = make(4000, 0)


def energies(count):
    return cosine_model.energy(ALL) * np.geomspace(1e-4, 0.5, count)


def model_of(count, promise_samples=1000, seed=1):
    outputs = make(count, seed)
    deltas = [noisy(outputs, e, 100 * seed + i) for i, e in enumerate(energies(16))]
    return cosine_model.fit(outputs, deltas, energies(16).tolist(), promise_samples)


def measured(energy, seed, count):
    outputs = make(count, seed)
    return 100 * cosine_model.cosine_losses(outputs, outputs + noisy(outputs, energy, seed)).mean()


@pytest.fixture(scope="module")
def model():
    return model_of(1000)


def test_the_loss_of_a_sample_is_one_less_its_cosine():
    a = np.array([[1, 0], [1, 0], [1, 0], [2, 2], [0, 0], [0, 0]], np.float32)
    b = np.array([[3, 0], [0, 1], [-1, 0], [1, 0], [0, 0], [1, 0]], np.float32)
    np.testing.assert_allclose(cosine_model.cosine_losses(a, b), [0, 1, 2, 1 - 0.5**0.5, 0, 1], atol=1e-12)
    np.testing.assert_array_equal(
        cosine_model.cosine_losses(a.reshape(3, 2, 2), b.reshape(3, 2, 2)),
        cosine_model.cosine_losses(a.reshape(3, 4), b.reshape(3, 4)),
    )


def test_a_trials_drop_has_its_normal_interval_and_agreement():
    outputs = make(400, 3)
    found = outputs + noisy(outputs, energies(1)[0] * 1000, 4)
    losses = 100 * cosine_model.cosine_losses(outputs, found)
    drop, low, high, agreement = cosine_model.compare(outputs, found)
    assert drop == pytest.approx(losses.mean())
    assert high - drop == pytest.approx(1.96 * losses.std(ddof=1) / 20, rel=1e-3)
    assert drop - low == pytest.approx(high - drop)
    assert agreement == (outputs.argmax(axis=1) == found.argmax(axis=1)).mean() < 1
    assert cosine_model.compare(outputs[:1], found[:1])[1:3] == (0.0, 200.0)


def test_the_curve_starts_at_nothing_and_never_falls(model):
    check_curve(model)


def test_it_predicts_what_is_lost_on_other_samples_by_other_noise(model):
    ratios = [measured(e, 500 + i, 5000) / model.at(e).expected for i, e in enumerate(energies(40))]
    assert 0.9 < np.mean(ratios) < 1.1


@pytest.mark.parametrize(("samples", "fresh"), [(500, 500), (60, 500), (60, 30), (500, 30), (8, 8)])
def test_of_fresh_measurements_about_three_in_a_hundred_lie_above_the_upper_end(samples, fresh):
    found = []
    for seed in range(1, 25):  # what few samples and variants promise is as luck has it
        model = model_of(samples, fresh, seed)
        found += [(model.at(e), measured(e, 10_000 * seed + i, fresh)) for i, e in enumerate(energies(5))]
    assert np.mean([drop > promised.high for promised, drop in found]) < 0.05
    assert np.mean([drop < promised.low for promised, drop in found]) < 0.05


def test_the_interval_is_no_wider_than_it_must_be(model):
    energy = energies(16)[10]
    found = [measured(energy, 2000 + i, 1000) for i in range(100)]
    spread = np.quantile(found, 0.97) - np.quantile(found, 0.03)
    assert model.at(energy).high - model.at(energy).low < 3 * spread


def test_few_samples_know_less_and_promise_less(model):
    energy = energies(16)[10]
    assert model_of(8).at(energy).high > model.at(energy).high
    few = model.promising(10)
    assert few.within(2.0) < model.within(2.0)
    assert few.expected == model.expected
    assert few.promising(model.promise_samples) == model


def test_what_may_be_lost_and_the_noise_that_may_be_made_are_inverse(model):
    for points in (0.1, 0.5, 1.0, 3.0):
        noise = model.within(points)
        assert model.at(noise).high <= points + 1e-9
        assert model.at(noise * 1.1).high > points
        assert model.at(model.qpart(points)).expected == pytest.approx(points)
    assert model.within(0.0) == 0.0


def test_a_last_bit_beyond_the_roughest_variant_is_its_noise_still(model):
    """A plan's noise is a sum in another order than the variant's."""
    last = model.noise[-1]
    assert model.at(math.nextafter(last, 2 * last)).high == model.at(last).high


def test_beyond_the_roughest_variant_nothing_is_promised(model):
    assert model.at(1.01 * model.noise[-1]).high == 200.0


def test_noise_that_was_underrated_is_allowed_for():
    outputs = make(300, 1)
    deltas = [noisy(outputs, e, 100 + i) for i, e in enumerate(energies(16))]
    known = cosine_model.fit(outputs, deltas, energies(16).tolist())
    thought = cosine_model.fit(outputs, deltas, (energies(16) / 2).tolist())
    assert thought.within(1.0) == pytest.approx(known.within(1.0) / 2, rel=0.01)


def test_a_variant_that_was_tried_again_counts_once():
    outputs = make(50, 1)
    deltas = [noisy(outputs, e, 100 + i) for i, e in enumerate(energies(10))]
    assert cosine_model.fit(outputs, deltas[:1] * 6 + deltas) == cosine_model.fit(outputs, deltas)


@pytest.mark.parametrize(("samples", "variants"), [(1, 16), (2, 16), (40, 1)])
def test_where_hardly_anything_is_known_hardly_anything_is_promised(samples, variants):
    outputs = make(samples, 1)
    made = cosine_model.fit(outputs, [noisy(outputs, e, 7) for e in energies(variants)])
    assert np.isfinite(made.high).all()
    assert made.high[20] > 5 * made.expected[20] > 0


def test_outputs_of_nothing_but_zeros_are_no_obstacle():
    outputs = make(50, 1)
    outputs[:5] = 0
    deltas = [noisy(outputs, e, 100 + i) for i, e in enumerate(energies(10))]
    made = cosine_model.fit(outputs, deltas)
    assert made.expected[1] == pytest.approx(10.0, abs=0.1)
    assert np.isfinite(made.high).all()


def test_the_same_input_gives_the_same_model_and_it_survives_json(model):
    assert model_of(1000) == model
    assert msgspec.json.decode(msgspec.json.encode(model), type=AccuracyModel) == model


def test_nothing_to_learn_from_is_said():
    outputs = make(20, 1)
    with raises(errors.UsageError, reason="constant-output"):
        cosine_model.fit(outputs, [np.zeros_like(outputs)])
    with raises(errors.UsageError, reason="outputs"):
        cosine_model.fit(outputs, [outputs[:5]])
    with raises(errors.UsageError, reason="outputs"):
        cosine_model.fit(outputs[:, :1], [outputs[:, :1]])
