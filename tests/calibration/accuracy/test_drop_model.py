"""From noise to accuracy: what is promised holds on samples and quantizations that the model has not seen."""

import math

import msgspec
import numpy as np
import pytest

from calibration.accuracy import drop_model
from calibration.accuracy.drop_model import AccuracyModel
from splitedge import errors
from tests.calibration.curves import check_curve
from tests.raising import raises

CLASSES = 10


def make(count, seed):
    """Logits [count, CLASSES] and labels, of which about a tenth are not the greatest."""
    random = np.random.default_rng(seed)
    classes = random.integers(CLASSES, size=count)
    logits = random.normal(size=(count, CLASSES)).astype(np.float32)
    logits[np.arange(count), classes] += 3.2
    return logits, classes


def noisy(logits, energy, seed):
    """Noise of this energy: greater where the logits are great, alike in neighbouring classes."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(seed % 7).normal(size=(CLASSES, CLASSES)) + 2 * np.eye(CLASSES)
    noise = random.normal(size=logits.shape) @ mixing * (1 + np.abs(logits).mean(axis=1, keepdims=True))
    return (noise * np.sqrt(energy / (noise**2).mean())).astype(np.float32)


def energies(count):
    return np.geomspace(0.001, 4.0, count)


def model_of(count, labelled=True, promise_samples=1000):
    logits, classes = make(count, 1)
    deltas = [noisy(logits, e, 100 + i) for i, e in enumerate(energies(24))]
    return drop_model.fit(logits, classes if labelled else None, deltas, promise_samples=promise_samples)


def measured(energy, seed, count):
    logits, classes = make(count, seed)
    changed = (logits + noisy(logits, energy, seed)).argmax(axis=1)
    return 100 * ((logits.argmax(axis=1) == classes).mean() - (changed == classes).mean())


@pytest.fixture(scope="module")
def model():
    return model_of(3000)


def test_the_curve_starts_at_nothing_and_never_falls(model):
    check_curve(model)


def test_it_predicts_what_is_lost_on_other_samples_by_other_noise(model):
    wrong = [abs(model.at(e).expected - measured(e, 500 + i, 20_000)) for i, e in enumerate(energies(20))]
    assert np.mean(wrong) < 0.5 < measured(4.0, 1, 3000) / 10


@pytest.mark.parametrize(("samples", "fresh"), [(3000, 1000), (125, 125)])
def test_of_fresh_measurements_about_three_in_a_hundred_lie_above_the_upper_end(samples, fresh):
    model = model_of(samples, promise_samples=fresh)
    found = [(model.at(e), measured(e, 1000 + i, fresh)) for i, e in enumerate(np.tile(energies(20), 30))]
    assert np.mean([drop > promised.high for promised, drop in found]) < 0.05
    assert np.mean([drop < promised.low for promised, drop in found]) < 0.05


def test_the_interval_is_no_wider_than_it_must_be(model):
    found = [measured(1.0, 2000 + i, 1000) for i in range(100)]
    spread = np.quantile(found, 0.97) - np.quantile(found, 0.03)
    assert model.at(1.0).high - model.at(1.0).low < 2 * spread


def test_few_samples_know_less(model):
    few = model_of(125)
    for energy in (0.3, 1.0, 3.0):
        assert few.at(energy).high - few.at(energy).low > 1.2 * (model.at(energy).high - model.at(energy).low)
    assert few.within(5.0) > 0


def test_what_may_be_lost_and_the_noise_that_may_be_made_are_inverse(model):
    for points in (0.25, 0.5, 1.0, 3.0):
        noise = model.within(points)
        assert model.at(noise).high <= points + 1e-9
        assert model.at(noise * 1.2).high > points


def test_no_drop_is_no_noise_that_is_counted(model):
    assert model.within(0.0) < 1e-3 * model.within(1.0)
    assert model.within(-1.0) == 0.0


def test_a_last_bit_beyond_the_roughest_variant_is_its_noise_still(model):
    """A plan's noise is a sum in another order than the variant's."""
    last = model.noise[-1]
    assert model.at(math.nextafter(last, 2 * last)).high == model.at(last).high


def test_beyond_the_roughest_variant_nothing_is_promised(model):
    assert model.at(1.01 * model.noise[-1]).high == 100.0
    assert model.within(99.0) == model.noise[-1]


def test_without_labels_every_changed_answer_is_lost(model):
    blind = model_of(3000, labelled=False)
    assert (blind.metric, model.metric) == ("agreement", "top1")
    assert blind.at(0.1).expected > model.at(0.1).expected


def test_qparts_rule_allows_the_noise_of_the_mean_drop(model):
    logits, _ = make(3000, 1)
    first, second = np.sort(logits, axis=1)[:, :-3:-1].T
    assert model.threshold == drop_model.threshold(logits) == pytest.approx(((first - second) ** 2).mean() / 2)
    assert model.at(model.qpart(1.0)).expected == pytest.approx(1.0)
    assert model.qpart(1.0) > model.within(1.0)


def test_noise_that_was_underrated_is_allowed_for():
    logits, classes = make(3000, 1)
    deltas = [noisy(logits, e, 100 + i) for i, e in enumerate(energies(24))]
    thought = drop_model.fit(logits, classes, deltas, [e / 2 for e in energies(24)])
    assert thought.within(1.0) == pytest.approx(drop_model.fit(logits, classes, deltas).within(1.0) / 2, rel=0.01)


def test_the_fewer_samples_somebody_measures_the_less_is_promised(model):
    few = model.promising(100)
    assert few.promise_samples == 100
    assert few.within(2.0) < model.within(2.0)
    assert few.expected == model.expected
    assert few.promising(model.promise_samples) == model


def test_the_same_input_gives_the_same_model_and_it_survives_json(model):
    assert model_of(3000) == model
    assert msgspec.json.decode(msgspec.json.encode(model), type=AccuracyModel) == model


def test_nothing_to_learn_from_is_said():
    logits, classes = make(20, 1)
    with raises(errors.UsageError, reason="constant-output"):
        drop_model.fit(logits, classes, [np.zeros_like(logits)])
    with raises(errors.UsageError, reason="constant-output"):
        drop_model.fit(logits, classes, [])
    with raises(errors.UsageError, reason="outputs"):
        drop_model.fit(logits, classes, [logits[:5]])
    with raises(errors.UsageError, reason="outputs"):
        drop_model.fit(logits[:, :1], classes, [logits[:, :1]])
