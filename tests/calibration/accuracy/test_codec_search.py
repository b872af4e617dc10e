"""Codecs fitted to tensors at a cut: what a few samples are enough for, which are worth a run, and what a bundle keeps of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.accuracy import codec_search
from calibration.bundle import creation
from calibration.bundle.bundle import Bundle
from calibration.importing.importer import batched, simplify
from calibration.statistics.activations import Quantization
from splitedge import codec
from splitedge.head import segment as seg
from splitedge.head.executor import Head
from tests import small_models as small
from tests.calibration.bundle.test_bundle import samples


def tensors(count: int, channels: int) -> np.ndarray:
    """Channels that go together, and deviate unlike each other."""
    rng = np.random.default_rng(0)
    mixed = (
        rng.normal(size=(count, 8, 8, channels))
        @ rng.normal(size=(channels, channels))
        * np.geomspace(0.1, 3, channels)
    )
    return mixed.astype(np.float32)


def test_every_family_is_fitted_where_rows_suffice_and_none_where_they_do_not() -> None:
    fitted = codec_search.fit(tensors(8, 16))
    assert {one.rule.partition("-")[0] for one in fitted} == {"hadamard", "entropy", "pca"}
    assert {(one.rule, one.bits) for one in fitted} >= {("entropy-2", 8), ("pca-1.25", 8), ("hadamard", 3)}
    for values in (tensors(8, 16), tensors(2, 16)):
        assert ("float", 16) in {(one.rule, one.bits) for one in codec_search.fit(values, floats=True)}
    few = codec_search.fit(tensors(4, 80))
    assert not any(one.rule.startswith("pca") for one in few)
    assert any(one.rule.startswith("entropy") for one in few)
    assert codec_search.fit(tensors(2, 16)) == []
    assert codec_search.fit(np.ones((8, 8, 8, 16), np.float32)) == []


def test_more_bytes_err_less_and_components_less_than_channels() -> None:
    values = tensors(16, 16)
    costs = {
        one.rule: codec_search.cost(one.codec, values[8:]) for one in codec_search.fit(values[:8]) if one.bits == 8
    }
    rates = [costs[f"entropy-{rate:g}"] for rate in codec_search.RATES["entropy"]]
    assert rates == sorted(rates)
    assert [error for _, error in rates] == sorted((error for _, error in rates), reverse=True)
    assert costs["pca-2"][1] < costs["entropy-2"][1]


def test_only_what_nothing_beats_is_worth_a_run() -> None:
    assert codec_search.worth_a_run([(10, 1.0), (8, 2.0), (9, 2.0), (8, 3.0), (4, 9.0), (12, 1.0)]) == [0, 1, 4]
    assert codec_search.worth_a_run([]) == []


def test_gathered_tensors_are_those_of_the_head(made: Bundle) -> None:
    cut = made.offered[1]
    head = Head(seg.parse(made.segment(cut, 8)), check_golden=False)
    form = head.header.tensors[head.header.output]
    [values] = codec_search.gather(head, [head.header.output], [Quantization(form.scale, form.zero_point)], samples())
    assert values.shape == (24, *form.shape)
    real = (head.run(samples().codes(0, head.input)).astype(np.float64) - form.zero_point) * form.scale
    np.testing.assert_allclose(values[0], real, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return creation.create(tmp_path_factory.mktemp("b") / "b", "net", batched(simplify(small.resnet())), samples())


def test_a_bundle_keeps_its_codecs(made: Bundle, tmp_path: Path) -> None:
    again = Bundle.open(made.path)
    told = 0
    for cut in made.offered[:-1]:
        shape = made.cuts[cut].shape
        for one in made.cut_noises[cut].codecs:
            codec_ = again.codec(cut, one.rule, one.bits)
            assert codec.work(codec_, shape) == one.work
            told += bool(one.work)
            if one.work:
                zeros = codec.encode(np.zeros(shape, np.float32), codec_)
                assert codec.decode(zeros, codec_, shape).shape == tuple(shape)
    assert told > 3
