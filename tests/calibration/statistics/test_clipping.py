"""Codecs fitted to histograms of float tensors, whose channels have values of their own."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.importing.graph import Graph
from calibration.lowering import layers
from calibration.samples.samples import Samples
from calibration.statistics.activations import Tap, count_values
from calibration.statistics.clipping import RULES, WHOLE, Histogram
from splitedge import codec, errors
from splitedge.protocol.messages import Preprocess
from tests import small_transformers as transformers
from tests.raising import raises


def quiet(phase: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def observed(count: int = 24) -> tuple[np.ndarray, Histogram]:
    """A tensor between two blocks over some frames, [n, C], its second channel an outlier, and its histogram."""
    model = transformers.vit_model()
    network = layers.build(Graph.of(model))
    samples = Samples(
        Preprocess("tensor", network.graph.stored_shape("x")),
        [transformers.frame(network.graph, seed) for seed in range(count)],
    )
    values = np.concatenate([v["add_2"][0] for v in Tap(model, network.graph, ["add_2"]).over(samples)])
    (found,) = count_values(model, network.graph, ["add_2"], samples, quiet).values()
    return values, Histogram(*found)


def test_every_value_is_counted_where_it_lies() -> None:
    values, histogram = observed()
    assert (histogram.counts.sum(axis=1) == len(values)).all()
    np.testing.assert_allclose(histogram.values[:, 0], values.min(axis=0), rtol=1e-6)
    np.testing.assert_allclose(histogram.values[:, -1], values.max(axis=0), rtol=1e-6)
    assert (histogram.counts[:, [0, -1]] > 0).all()
    means = (histogram.counts * histogram.values).sum(axis=1) / len(values)
    steps = np.ptp(values, axis=0) / 255
    assert (np.abs(means - values.mean(axis=0)) < steps / 4).all()


@pytest.mark.parametrize("rule", RULES)
def test_the_error_of_a_codec_is_what_the_histogram_says(rule: str) -> None:
    values, histogram = observed()
    for bits in (2, 4):
        made = histogram.fit(rule, bits)
        assert len(made.lo) == (values.shape[1] if rule.endswith("-channel") else 1)
        coded = codec.decode(codec.encode(values, made), made, values.shape)
        error = float(((coded.astype(float) - values) ** 2).sum())
        assert histogram.squared_error(made) == pytest.approx(error, rel=0.1)


def test_least_squares_is_never_worse_than_another_rule() -> None:
    _, histogram = observed()
    for scope in ("", "-channel"):
        own = [rule for rule in RULES if rule.endswith("-channel") == bool(scope)]
        errors_of = {rule: histogram.squared_error(histogram.fit(rule, 3)) for rule in own}
        assert errors_of[f"mse{scope}"] <= min(errors_of.values()) * 1.001


def test_a_constant_channel_and_a_constant_tensor() -> None:
    values = np.stack([np.linspace(0, 1, 256), np.full(256, 3.0)])
    counts = np.ones((2, 256), np.int64)
    made = Histogram(values, counts).fit("mse-channel", 4)
    assert made.lo[1] == 3
    assert made.scale[1] == 0
    alone = Histogram(np.full((1, 256), 3.0), counts[:1])
    assert alone.fit("mse", 4).lo == (3.0,)
    assert alone.squared_error(alone.fit("mse", 4)) == 0
    assert len(Histogram(values, counts)._whole[0]) == WHOLE


def test_a_tensor_that_is_not_finite_is_refused_by_its_name() -> None:
    model = transformers.vit_model()
    network = layers.build(Graph.of(model))
    bad = transformers.frame(network.graph)
    bad[0, 0, 0] = np.inf
    with raises(errors.ModelError, reason="not-finite"):
        count_values(model, network.graph, ["add_2"], [bad], quiet)
