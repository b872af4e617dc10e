from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.lowering.layers import Embed
from calibration.rounding import embedding, packed_weights
from calibration.rounding.quantizer import Rounded, codes, file_bytes, width
from calibration.rounding.rounder import even_steps
from calibration.samples.samples import Samples
from splitedge.head import compression
from splitedge.protocol.messages import Preprocess

VOCABULARY, WIDTH = 600, 64


def table(seed: int = 0) -> Embed:
    weight = (0.05 * np.random.default_rng(seed).normal(size=(VOCABULARY, WIDTH))).astype(np.float32)
    return Embed("table", "out", ["ids"], weight, np.zeros(0, np.float32), np.zeros((4, WIDTH), np.float32), "rows")


def tokens(count: int, seed: int) -> np.ndarray:
    """As words occur: the n-th as often as 1 / n."""
    weights = 1 / np.arange(1, VOCABULARY + 1)
    return np.random.default_rng(seed).choice(VOCABULARY, count, p=weights / weights.sum())


def samples(ids: np.ndarray) -> Samples:
    return Samples(Preprocess("tensor", [4]), list(ids.reshape(-1, 4).astype(np.int32)))


def noise(made: Rounded, ids: np.ndarray) -> float:
    return float(((made.values() - table().weight) ** 2).sum(axis=1)[ids].mean())


def size(made: Rounded) -> int:
    return file_bytes(made, width(made.levels), table=True)


def test_tokens_are_counted_once_for_each_occurrence() -> None:
    ids = tokens(400, 0)
    assert embedding.counts(samples(ids), VOCABULARY).tolist() == np.bincount(ids, minlength=VOCABULARY).tolist()


def test_texts_unseen_lose_less_for_the_same_bytes_than_on_one_step() -> None:
    made = embedding.even(table(), (2.0,), embedding.counts(samples(tokens(4000, 1)), VOCABULARY))[0]
    step = np.float32(even_steps(table().weight, [2.0])[0])
    levels = np.clip(np.rint(table().weight / step), -127, 127).astype(np.int8)
    plain = Rounded(levels, np.full(VOCABULARY, step), np.zeros(0))
    other = tokens(20_000, 2)
    assert size(made) < 1.05 * size(plain)
    assert noise(made, other) < 0.5 * noise(plain, other)


@pytest.mark.parametrize("rate", [1.25, 2.0, 4.0])
def test_a_grid_takes_its_rate_in_a_file(rate: float) -> None:
    made = embedding.even(table(), (rate,), embedding.counts(samples(tokens(4000, 1)), VOCABULARY))[0]
    assert rate - 0.2 < 8 * size(made) / made.levels.size < rate + 0.25  # every run learns its frequencies


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50))
def test_commoner_tokens_have_no_coarser_steps(counts: list[int]) -> None:
    found = embedding.ratios(np.array(counts))
    order = np.argsort(counts, kind="stable")[::-1]
    assert (np.diff(found[order]) >= 0).all()
    assert found.min() == 1.0
    assert len(set(found.tolist())) <= compression.SCALES


def test_no_row_has_more_levels_than_eight_bits_hold_and_great_rows_stay_what_they_are() -> None:
    layer = table()
    layer.weight[5] *= 1000
    made = embedding.even(layer, (8.0,), np.bincount([5, 5, 5, 7], minlength=VOCABULARY))[0]
    assert abs(made.values()[5] - layer.weight[5]).max() <= 0.71 * made.scale[5]
    assert int(abs(made.levels.astype(int)).max()) <= 127
    assert len(np.unique(made.scale)) <= compression.SCALES


def test_a_table_without_tokens_seen_or_values_has_finite_steps() -> None:
    layer = table()
    layer.weight[:] = 0
    made = embedding.even(layer, (1.25, 4.0), np.zeros(VOCABULARY, np.int64))
    assert all(np.isfinite(one.scale).all() and (one.scale > 0).all() and not one.levels.any() for one in made)


def test_a_bundle_keeps_the_levels(tmp_path: Path) -> None:
    made = embedding.even(table(), (2.0,), embedding.counts(samples(tokens(4000, 1)), VOCABULARY))[0]
    (tmp_path / packed_weights.FILE).write_bytes(packed_weights.save({("out", 9): made}))

    class Network:
        layers = [table()]  # noqa: RUF012

    found = packed_weights.PackedWeights(tmp_path / packed_weights.FILE, Network())[("out", 9)]  # type: ignore[arg-type]
    assert (found.values() == made.values()).all()


def test_rows_of_a_step_are_coded_by_themselves() -> None:
    made = embedding.even(table(), (2.0,), embedding.counts(samples(tokens(4000, 1)), VOCABULARY))[0]
    wide = width(made.levels)
    assert size(made) < 0.95 * compression.coded_bytes(codes(made.levels, wide), wide)
