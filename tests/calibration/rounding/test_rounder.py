"""Rounding by what it does to a layer's outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.bundle import creation
from calibration.bundle.cache import Cache
from calibration.importing.graph import Graph
from calibration.importing.importer import session, simplify
from calibration.lowering import layers
from calibration.lowering.lower import Calibration, lower
from calibration.rounding import packed_weights, rounder
from calibration.rounding.quantizer import Rounded, entropy, nearest, top_level, width
from calibration.rounding.rounder import WIDTHS, Options, Rounder, damped, even_steps, round_layers
from calibration.samples.samples import Samples
from calibration.statistics import covariance as moments
from calibration.statistics.activations import Tap, feed
from calibration.statistics.covariance import Moments
from splitedge.head import load
from splitedge.protocol.messages import Preprocess
from tests import small_models as small
from tests import small_transformers
from tests import small_transformers as transformers

#: Mean error of all outputs over the least that any integers have at any scale, on these inputs, whose covariances are ill-conditioned: 1.1 to 1.6.
BOUND = 1.75


def problem(
    groups: int, outs: int, depth: int, count: int = 400, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, Moments]:
    """Weights [groups * outs, 1, 1, depth] and inputs [groups, count, depth] that vary together, with their moments."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(groups, depth, depth)) + 2 * np.ones((depth, depth)) * rng.normal(size=(groups, 1, 1))
    x = rng.normal(size=(groups, count, depth)) @ mixing + rng.normal(size=(groups, 1, depth))
    w = rng.normal(size=(groups * outs, 1, 1, depth)).astype(np.float32)
    mean = x.mean(axis=1)
    return w, x, Moments(mean, np.stack([np.cov(one.T, bias=True).reshape(depth, depth) for one in x]), count)


def errors_of(made: Rounded, w: np.ndarray, x: np.ndarray, bias: np.ndarray, best_bias: bool = False) -> np.ndarray:
    """Mean squared error of each output; with ``best_bias`` at the bias that makes it least."""
    groups, _, depth = x.shape
    wrong = (w - made.values()).reshape(groups, -1, depth)
    out = np.einsum("gpk,grk->gpr", x, wrong) + (bias - made.bias).reshape(groups, 1, -1)
    return (out.var(axis=1) if best_bias else (out**2).mean(axis=1)).reshape(-1)


def rounded(w: np.ndarray, known: Moments, bits: int, options: Options | None = None) -> Rounded:
    outs = len(w)
    return Rounder(w, np.zeros(outs, np.float32), np.zeros(outs, np.float32), known, options or Options()).at(bits)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(1, 12, 70), (1, 6, 150), (8, 1, 9), (3, 2, 5), (1, 4, 1)])
def test_never_worse_than_the_nearest_on_the_samples(bits: int, shape: tuple[int, int, int]) -> None:
    w, x, known = problem(*shape)
    bias = np.zeros(len(w), np.float32)
    plain = nearest(w, bias, bits, bias)
    ours = errors_of(rounded(w, known, bits), w, x, bias)
    theirs = errors_of(plain, w, x, bias, best_bias=True)
    assert (ours <= theirs * (1 + 1e-4) + 1e-12).all()
    if shape[2] > 1:
        assert ours.mean() < 0.7 * theirs.mean()


@pytest.mark.parametrize("shape", [(12, 1, 9), (3, 4, 25), (1, 8, 40)], ids=str)
def test_every_grid_comes_back_from_its_file(shape: tuple[int, int, int]) -> None:
    w, _, known = problem(*shape)
    least = np.zeros(len(w), np.float32)
    made = Rounder(w, np.ones(len(w), np.float32), least, known).all(WIDTHS, rounder.RATES)
    names = (*WIDTHS, *rounder.EVEN)
    found = packed_weights.load(
        packed_weights.save({("y", name): grid for name, grid in zip(names, made, strict=True)}), w.shape
    )
    for name, grid in zip(names, made, strict=True):
        for part in ("levels", "scale", "bias"):
            np.testing.assert_array_equal(getattr(found["y", name], part), getattr(grid, part))
    assert all(len(set(found["y", name].scale)) == 1 for name in rounder.EVEN)


@pytest.mark.parametrize("options", [Options(order=False), Options(sweeps=0), Options(damping=0.2)])
def test_every_option_beats_the_nearest(options: Options) -> None:
    w, x, known = problem(1, 20, 40)
    bias = np.zeros(20, np.float32)
    plain = errors_of(nearest(w, bias, 3, bias), w, x, bias, best_bias=True)
    assert errors_of(rounded(w, known, 3, options), w, x, bias).mean() < 0.7 * plain.mean()


@pytest.mark.parametrize(("bits", "depth"), [(2, 4), (2, 6), (3, 4), (3, 5)])
def test_near_the_optimum_where_all_integers_can_be_tried(bits: int, depth: int) -> None:
    w, x, known = problem(1, 40, depth, seed=bits + depth)
    ours = errors_of(rounded(w, known, bits, Options(damping=0.0)), w, x, np.zeros(40, np.float32))
    step = 2 if bits == 2 else 1
    grid = range(-top_level(bits), top_level(bits) + 1, step)
    q = np.array(list(itertools.product(grid, repeat=depth)), float)
    h, flat = known.covariance[0], w.reshape(40, depth).astype(float)
    along, square = flat @ h @ q.T, np.einsum("ik,kl,il->i", q, h, q)
    scale = np.maximum(along, 0) / np.where(square > 0, square, 1)
    optimum = (np.einsum("rk,kl,rl->r", flat, h, flat)[:, None] - scale * along).min(axis=1)
    assert (ours >= optimum - 1e-5 * ours.max()).all()
    assert ours.mean() <= BOUND * optimum.mean()


def one_at_a_time(w: np.ndarray, cost: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """The levels [K, R] of weights [K, R] by error feedback, then by coordinate descent, as their definitions say, in float64."""
    top = top_level(bits)

    def snap(x: np.ndarray) -> np.ndarray:
        return np.clip(2 * np.floor(x / 2) + 1 if bits == 2 else np.rint(x), -top, top)

    left, levels = w.astype(float), np.empty(w.shape)
    for k in range(len(w)):
        levels[k] = snap(left[k] / scale)
        if k + 1 < len(w):
            inverse = np.linalg.inv(cost[k:, k:])
            left[k + 1 :] -= np.outer(inverse[1:, 0] / inverse[0, 0], left[k] - levels[k] * scale)
    for k in range(len(w)):
        slope = cost[k] @ (w - levels * scale)
        levels[k] = snap(levels[k] + slope / (scale * cost[k, k]))
    return levels


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("depth", [5, 8, 9, 70])
def test_levels_are_those_of_the_definitions(bits: int, depth: int) -> None:
    w, _, known = problem(1, 30, depth, 4 * depth)
    made = Rounder(w, np.zeros(30, np.float32), np.zeros(30, np.float32), known)
    scale = np.full((1, 30), 0.6 * np.abs(w).max() / top_level(bits), np.float32)
    grid = rounder._Grid.of(np.full(30, bits))
    levels = np.empty_like(made._w)
    rounder._successive(made._w.copy(), made._feed, scale, grid, levels)
    rounder._descend(made._pull - (made._cost @ levels) * scale[:, None], made._cost, scale, grid, levels)
    wanted = one_at_a_time(made._w[0], made._cost[0].astype(float), scale[0], bits)
    assert (levels[0] == wanted).all(axis=0).mean() > 0.8  # a tie that falls otherwise changes what follows it


@pytest.mark.parametrize("bits", WIDTHS)
def test_levels_lie_on_the_grid(bits: int) -> None:
    made = rounded(*problem(4, 3, 9)[::2], bits)
    allowed = range(-top_level(bits), top_level(bits) + 1, 2 if bits == 2 else 1)
    assert set(np.unique(made.levels)) <= set(allowed)
    assert (made.scale > 0).all()


def test_scales_keep_room_for_the_bias() -> None:
    w, _, known = problem(1, 5, 8)
    least = np.array([0, 0, 5, 0.01, 0], np.float32)
    assert (Rounder(w, np.zeros(5, np.float32), least, known).at(4).scale >= least).all()


def test_inputs_that_never_change_and_weights_of_zero() -> None:
    w, _, known = problem(2, 2, 6)
    w[0], w[3] = 0, 0
    known.covariance[0], known.covariance[1, 2], known.covariance[1, :, 2] = 0, 0, 0
    made = rounded(w, known, 4)
    assert np.isfinite(made.bias).all()
    assert (made.levels[0] == 0).all()


def test_few_positions_are_trusted_less() -> None:
    few, many = (problem(1, 1, 30, count)[2] for count in (20, 20_000))
    share = [1 - damped(m, 0.01)[0, 0, 1] / m.covariance[0, 0, 1] for m in (few, many)]
    assert share[0] > 0.05 > share[1] == pytest.approx(0.01, abs=0.01)
    np.linalg.cholesky(damped(few, 0.01))


def samples_of(network: layers.Network, count: int) -> Samples:
    return Samples(Preprocess("tensor", network.graph.stored_shape(network.graph.input)), [
        transformers.frame(network.graph, seed).astype(np.float32) for seed in range(count)
    ])  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [small.cnn, small.mlp, small.mobilenet, small.resnet, transformers.vit_model, transformers.encoder_model,
     *(partial(transformers.stored, name) for name in ("swin-timm-17", "modern-17", "relative-gated-17", "recognizer-14"))],
    ids=lambda f: f.args[0] if isinstance(f, partial) else f.__name__,
)  # fmt: skip
def test_moments_predict_the_outputs_of_a_layer(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """bias + mean x w is the mean output, and w' covariance w its variance, of every layer, padding and strides included.

    What a transformer adds to its stream counts in each row by what a norm of the sum leaves of it.
    """
    monkeypatch.setattr(moments, "POSITIONS", 256)  # all of them
    monkeypatch.setattr(moments, "LEAST_POSITIONS", 256)
    model = simplify(make())  # type: ignore[operator]
    network = layers.build(Graph.of(model))
    samples = samples_of(network, 6)
    held = [la for la in network.weighted(network.graph.output) if isinstance(la, layers.Conv | layers.Linear)]
    found = list(moments.collect(model, network, held, samples, quiet))
    assert [la for la, _ in found] == held
    outs = {t: (la, m, places) for la, m in found for t, places in plain_outputs(la).items()}
    assert outs
    sums = [la.out for la, _ in found if len(la.inputs) > 1]
    values = list(Tap(model, network.graph, [*outs, *sums]).over(samples))
    for out, (layer, known, places) in outs.items():
        channels_last = [v[out][0].transpose(1, 2, 0) if v[out].ndim == 4 else v[out][0] for v in values]
        outputs = np.stack([v.reshape(-1, len(places)) for v in channels_last])
        share = np.ones(outputs.shape[:2])
        if len(layer.inputs) > 1:
            share = 1 / np.stack([v[layer.out][0].var(axis=-1) for v in values]).astype(float)
        share = share[:, :, None] / share.sum()
        average = (share * outputs).sum(axis=(0, 1))
        w = layer.weight.reshape(known.mean.shape[0], -1, known.mean.shape[1]).astype(float)
        mean = np.einsum("gk,grk->gr", known.mean, w).reshape(-1) + layer.bias
        variance = np.einsum("grk,gkl,grl->gr", w, known.covariance, w).reshape(-1)
        np.testing.assert_allclose(mean[places], average, atol=1e-4)
        spread = (share * (outputs - average) ** 2).sum(axis=(0, 1))
        np.testing.assert_allclose(variance[places], spread, rtol=2e-3, atol=1e-6)


def plain_outputs(layer: moments.Product) -> dict[str, np.ndarray]:
    """The model's tensors that hold the layer's products and bias alone, and which of its outputs they are."""
    if isinstance(layer, layers.Linear):
        return layer.products
    return {layer.out: np.arange(len(layer.bias))} if layer.clamp == layers.OPEN else {}


def test_moments_of_a_padded_dilated_grouped_convolution() -> None:
    net = small.Net([1, 6, 9, 11])
    net.add("Pad", "x", net.constant([0, 0, 3, 3, 0, 0, 3, 3], np.int64))
    net.conv(4, 6, groups=2, strides=[2, 1], dilations=[2, 1])
    model = simplify(net.model())
    network = layers.build(Graph.of(model))
    layer = network.weighted(network.graph.output)[0]
    shape = network.graph.stored_shape("x")
    samples = Samples(
        Preprocess("tensor", shape), list(np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32))
    )
    ((_, known),) = moments.collect(model, network, [layer], samples, quiet)
    outputs = np.stack([v[layer.out][0] for v in Tap(model, network.graph, [layer.out]).over(samples)])
    mean = np.einsum("gk,grk->gr", known.mean, layer.weight.reshape(2, 2, -1).astype(float)).reshape(-1) + layer.bias
    np.testing.assert_allclose(mean, outputs.mean(axis=(0, 2, 3)), atol=1e-4)


def test_rounding_all_layers_of_a_network() -> None:
    model = simplify(small.mobilenet())
    network = layers.build(Graph.of(model))
    shape = network.graph.stored_shape("x")
    samples = Samples(
        Preprocess("tensor", shape), list(np.random.default_rng(0).normal(size=(6, *shape)).astype(np.float32))
    )
    calibration = creation.calibrate(model, network, samples)
    found = round_layers(model, network, calibration, network.graph.output, samples, quiet, (3, 8))
    convs = network.weighted(network.graph.output)
    assert set(found) == {(la.out, bits) for la in convs for bits in (3, 8)}
    assert all(found[la.out, 3].levels.shape == la.weight.shape for la in convs)


def test_what_was_rounded_with_the_same_samples_needs_no_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small.cnn()
    network = layers.build(Graph.of(model))
    shape = network.graph.stored_shape(network.graph.input)
    x = list(np.random.default_rng(0).normal(size=(6, *shape)).astype(np.float32))
    samples = Samples(Preprocess("tensor", shape), x)
    calibration = creation.calibrate(model, network, samples)
    gathered: list[int] = []

    def collect(*given: Any) -> Any:
        gathered.append(len(given[2]))
        return moments.collect(*given)

    monkeypatch.setattr(rounder, "collect", collect)

    def made(samples: Samples) -> dict[tuple[str, int], Rounded]:
        return round_layers(
            model,
            network,
            calibration,
            network.graph.output,
            samples,
            quiet,
            (3, 8),
            rates=(2.0,),
            cache=Cache(tmp_path),
        )

    first, again = made(samples), made(samples)
    assert len(gathered) == 1
    layers_kept = [path for path in tmp_path.iterdir() if path.stat().st_size > 200]
    assert list(first) == list(again)
    assert all((first[key].levels == again[key].levels).all() for key in first)
    assert all((first[key].bias == again[key].bias).all() for key in first)
    made(samples[:5])
    assert len(gathered) == 2
    layers_kept[0].unlink()
    assert list(made(samples)) == list(first)
    assert len(gathered) == 3


@pytest.mark.parametrize("make", [transformers.vit_model, transformers.encoder_model], ids=lambda f: f.__name__)
def test_a_rounded_transformers_answers_are_nearer_to_the_float_models(
    make: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    """On frames that rounding has not seen, by the integer head itself, its weights out of a bundle's file."""
    model = make()
    network = layers.build(Graph.of(model))
    samples = samples_of(network, 48)
    plain = creation.calibrate(model, network, samples)
    found = round_layers(model, network, plain, network.graph.output, samples[:40], quiet, (3,))
    held = network.weighted(network.graph.output)
    assert set(found) == {(la.out, 3) for la in held}
    (tmp_path / packed_weights.FILE).write_bytes(packed_weights.save(found))
    kept = packed_weights.PackedWeights(tmp_path / packed_weights.FILE, network)
    assert all((kept[key].levels == found[key].levels).all() for key in found)
    rounded = Calibration({}, {}, kept)
    x = [transformers.frame(network.graph, seed) for seed in range(40, 48)]
    run = session(model)
    wanted = np.stack([run.run(None, feed(network.graph, one[None]))[0][0] for one in x])

    def error(calibration: Calibration) -> float:
        head = load(lower(network, calibration, network.graph.output, 3).segment())
        return float(((np.stack([head.run(one) for one in x]) - wanted) ** 2).mean())

    assert error(rounded) < 0.7 * error(plain)


def quiet(phase: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def test_even_grids_cost_their_rate_and_beat_grids_of_the_same_entropy_for_each_output() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4000, 48)) @ rng.normal(size=(48, 48))
    size = rng.uniform(0.2, 2.0, size=(64, 1, 1, 1))
    weight = (size * rng.laplace(size=(64, 1, 1, 48))).astype(np.float32)
    bias = np.zeros(64, np.float32)
    moments = Moments(x.mean(0)[None], np.cov(x.T, bias=True)[None], len(x))
    rounder = Rounder(weight, bias, np.zeros(64, np.float32), moments)

    def noise(rounded: Rounded) -> float:
        wrong = (weight - rounded.values()).reshape(64, 48).astype(np.float64)
        return float(np.einsum("ok,kl,ol->", wrong, moments.covariance[0], wrong))

    each = rounder.at(4)
    even = rounder.even(entropy(each.levels) - 0.1)
    assert entropy(even.levels) < entropy(each.levels)
    assert len(set(even.scale.tolist())) == 1
    assert noise(even) < 0.8 * noise(each)


@pytest.mark.parametrize("rate", [1.0, 2.5, 4.0])
def test_the_even_step_spends_the_rate(rate: float) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 3, 3, 16)).astype(np.float32)
    step = even_steps(weight, [rate])[0]
    assert rate - 0.1 < entropy(np.rint(weight / step).astype(np.int64)) <= rate


def test_the_even_step_of_no_weights_at_all_is_a_number() -> None:
    assert 0 < even_steps(np.zeros((2, 1, 1, 3), np.float32), [3.0])[0] < 1e-15


def test_width_holds_the_levels() -> None:
    assert [width(np.array([0, most], np.int8)) for most in (0, 3, 4, 7, -8, 63, 64, -127)] == [3, 3, 4, 4, 5, 7, 8, 8]


def test_layers_of_few_positions_see_more_samples() -> None:
    model = simplify(small_transformers.vit_model())
    network = layers.build(Graph.of(model))
    shape = network.graph.stored_shape(network.graph.input)
    x = np.random.default_rng(0).normal(size=(400, *shape)).astype(np.float32)
    samples = Samples(Preprocess("tensor", shape), list(x))
    found = dict(moments.collect(model, network, network.weighted(network.graph.output), samples, lambda *_: None))
    for each in found.values():
        assert each.count >= min(moments.DEEP * each.mean.shape[1], len(samples))
