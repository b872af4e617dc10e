"""The hierarchical model: it finds effects that were put in, and its bands are those of two independent computations."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import numpy as np
import pytest

from benchmarks.published import data, shares
from benchmarks.published.data import Board, Measurement
from benchmarks.published.networks import KINDS

NETWORKS = (
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet18",
    "resnet50",
    "squeezenet",
    "googlenet",
    "vgg16",
    "efficientnet_b0",
)
CORES = ("cortex-a53", "cortex-a57", "cortex-a72", "cortex-a73", "cortex-a76", "neoverse-n2")
NOISE = 0.1


def made(boards: int = 18, seed: int = 1) -> list[shares.Run]:
    """Runs whose times follow the model: shares by kind, effects of cores and boards, noise."""
    random = np.random.default_rng(seed)
    s = np.array([0.5, 0.6, 0.9, 0.2, 0.4, 0.0, 0.3])
    core_effect = dict(zip(CORES, random.normal(0, 0.2, len(CORES)), strict=True))
    runs = []
    for i in range(boards):
        core = CORES[i % len(CORES)]
        board = Board(f"b{i}", f"b{i}", core, 4, float(random.uniform(1000, 2500)), 1024, 0, 6.0, "estimated: test")  # type: ignore[arg-type]
        effect = core_effect[core] + random.normal(0, 0.15)
        for network in NETWORKS:
            for precision in ("int8", "fp32"):
                one = shares.run(
                    Measurement(f"b{i}", 1, network, precision, "tflite", 1.0, "measured", 2023, "test"), board
                )  # type: ignore[arg-type]
                seconds = float((one.seconds * np.exp(s)).sum()) * math.exp(effect + random.normal(0, NOISE))
                runs.append(dataclasses.replace(one, row=with_time(one.row, seconds * 1000)))
    return runs


def with_time(row: Measurement, ms: float) -> Measurement:
    return msgspec.structs.replace(row, ms=ms)


@pytest.fixture(scope="module")
def runs() -> list[shares.Run]:
    return made()


@pytest.fixture(scope="module")
def model(runs) -> shares.Model:
    return shares.fit(runs)


def test_the_fit_finds_the_noise_and_the_shares_up_to_their_common_factor(model):
    assert model.noise_sd == pytest.approx(NOISE, rel=0.25)
    found = model.shares() + model.mean[model.columns["all", "all"]]
    assert found[KINDS.index("conv3")] - found[KINDS.index("pointwise")] == pytest.approx(0.1, abs=0.15)
    assert found[KINDS.index("pointwise")] == pytest.approx(0.5, abs=0.35)


@pytest.mark.thorough
@pytest.mark.parametrize("fold", ["board", "core"])
def test_a_tenth_is_faster_and_a_tenth_slower_than_the_band_of_a_held_out_board_or_core(runs, fold):
    found = shares.cross_validate(runs, fold)
    assert len(found) == len(runs)
    assert 0.6 <= np.mean([one.inside for one in found]) <= 0.97
    assert np.median([one.band.ratio for one in found]) < (2.2 if fold == "board" else 3.0)


def unseen(runs: list[shares.Run]) -> shares.Run:
    """A run on a board with a core that the fit has not seen."""
    one = runs[0]
    return shares.run(one.row, Board("new", "new", "cortex-a55", 4, 1500.0, 0, 512, 6.0, "estimated: test"))


@pytest.mark.parametrize("which", ["seen", "unseen"])
def test_bands_are_those_of_gaussian_conditioning_without_weights(runs, model, which):
    """The slow twin: the covariance of all runs and the new one, and the conditional of a Gaussian."""
    new = runs[3] if which == "seen" else unseen(runs)
    s = model.shares()
    rows, offsets = [], []
    for one in [*runs, new]:
        parts, offset = shares._parts(one, s)
        rows.append(one.effects | shares._kind_effects(one, parts))
        offsets.append(offset)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    z = np.array([[row.get(key, 0.0) for key in keys] for row in rows])
    prior = np.array([model.group_sd[group] ** 2 for group, _ in keys])
    covariance = (z * prior) @ z.T + np.eye(len(rows)) * model.noise_sd**2
    y = np.array([math.log(one.row.ms / 1000) for one in runs]) - np.array(offsets[:-1])
    gain = np.linalg.solve(covariance[:-1, :-1], covariance[:-1, -1])
    mean, variance = offsets[-1] + gain @ y, covariance[-1, -1] - gain @ covariance[:-1, -1]
    found = shares.moments(model, new)
    # The fit alternates the parts and the means; at its end both agree to a thousandth.
    assert found[0] == pytest.approx(mean, abs=5e-3)
    assert found[1] == pytest.approx(math.sqrt(variance), rel=1e-3)


@pytest.mark.parametrize("which", ["seen", "unseen"])
def test_bands_are_the_quantiles_of_draws_through_the_exact_sum_over_kinds(runs, model, which):
    """Monte Carlo, without the linear form: draw effects, add up the kinds' times, draw noise."""
    new = runs[3] if which == "seen" else unseen(runs)
    random, draws = np.random.default_rng(2), 20_000
    u = random.multivariate_normal(model.mean, model.inverse, draws, method="cholesky")

    def drawn(key: shares.Key) -> np.ndarray:
        if key in model.columns:
            return u[:, model.columns[key]]
        return random.normal(0, model.group_sd[key[0]], draws)

    names = {kind: list(shares._kind_effects(new, np.eye(len(KINDS))[k])) for k, kind in enumerate(KINDS)}
    seconds = np.zeros(draws)
    for k, kind in enumerate(KINDS):
        own = [key for key in names[kind] if key[1].split()[-1] == kind]
        seconds += new.seconds[k] * np.exp(sum(drawn(key) for key in own))
    common = sum(factor * drawn(key) for key, factor in new.effects.items())
    ms = 1000 * seconds * np.exp(common + random.normal(0, model.noise_sd, draws))
    band = shares.predict(model, new)
    assert np.quantile(ms, [0.1, 0.5, 0.9]) == pytest.approx([band.fast, band.middle, band.slow], rel=0.06)


def test_what_nobody_measured_has_a_wider_band(runs, model):
    assert shares.predict(model, unseen(runs)).ratio > shares.predict(model, runs[0]).ratio


@pytest.mark.thorough
@pytest.mark.slow
def test_published_figures_of_a_left_out_board_are_inside_the_band_as_often_as_it_says():
    published = data.load()
    runs = [shares.run(row, published.boards[row.board]) for row in published.compared]
    found = shares.cross_validate(runs, "board")
    assert 0.75 <= np.mean([one.inside for one in found]) <= 0.9
    assert np.median([one.band.ratio for one in found]) <= 2.5
