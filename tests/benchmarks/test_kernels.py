"""benchmarks.kernels: every rival computes the layer that ours computes, and the tables hold what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import kernels, layer, rivals
from benchmarks.layer import Layer
from kernels import peak

LAYERS = [
    Layer(7, 1, 20, 33),
    Layer(9, 8, 3, 16, 3, 2),
    Layer(9, 9, 32, 32, 5, 2, True),
    Layer(6, 6, 24, 24, 3, 1, True),
]


def codes(one: Layer) -> np.ndarray:
    return layer.codes([one.height, one.width, one.channels])


@pytest.mark.parametrize("one", LAYERS)
def test_ours_is_the_layer(one: Layer) -> None:
    x = codes(one)
    assert np.array_equal(layer.head(one).run(x), layer.reference_codes(one, x))


@pytest.mark.parametrize("one", LAYERS)
def test_onnx_runtime_computes_the_same_layer(one: Layer) -> None:
    """One code apart at most: it rounds the product of scales otherwise."""
    answer = layer.onnx_convolution(one).answer()[0]
    wanted = layer.reference_codes(one, codes(one))
    assert answer.shape == one.out
    assert np.abs(answer.astype(int) - wanted).max() <= 1


def test_the_products_are_the_same_sums() -> None:
    one = LAYERS[0]
    x = codes(one).reshape(7, 20).astype(np.int32) - 128
    wanted = x @ one.weights().reshape(33, 20).T.astype(np.int32)
    assert np.array_equal(layer.onnx_product(one).answer(), wanted)


def test_what_is_repeated_in_a_call_leaves_the_layers_answer() -> None:
    one = LAYERS[2]
    times, run = layer.ours(one, us=5)
    assert times > 1
    run()
    run()


def test_the_peak_is_more_than_any_layer_reaches() -> None:
    row = kernels.measured(Layer(12, 1, 64, 64), repeats=3)
    assert 0 < row["of peak"] < 1.2
    assert row["GOPS"] == pytest.approx(row["of peak"] * peak.gops(), rel=0.8)
    assert row[f"vs {kernels.ORT}"] > 0
    assert row[f"vs {kernels.LITERT}"] == "-" if rivals.litert_missing() else row[f"vs {kernels.LITERT}"] > 0


def test_a_layer_that_takes_no_longer_than_an_empty_call_has_figures_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "in_turn", lambda calls, repeats: {name: [1.0] * repeats for name in calls})
    row = kernels.measured(Layer(12, 1, 64, 64), repeats=3)
    assert all(value > 0 for name, value in row.items() if value != "-")


def test_the_codec_is_measured_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CODEC_BYTES", 1 << 20)
    rows = kernels.codec_rows(2, quick=True)
    assert {(row["codec"], row["bits"]) for row in rows} == {
        (c, b) for c in ("encode", "decode") for b in (2, 3, 4, 6, 8)
    }
    assert all(row["of copy"] > row["traffic of copy"] > 0 for row in rows)


@pytest.mark.thorough
def test_a_run_writes_every_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"WHOLE": ((6, 256, 64),), "RAGGED": ((6, 20, 80),), "OTHERS": ((1, 64, 10),)}
    for name, shapes in small.items():
        monkeypatch.setattr(kernels, name, shapes)
    monkeypatch.setattr(kernels, "DEPTHWISE", ((8, 16, 3, 1),))
    monkeypatch.setattr(kernels, "CONVOLUTIONS", ((8, 3, 16, 3, 2),))
    monkeypatch.setattr(kernels, "CODEC_BYTES", 1 << 20)
    monkeypatch.setattr(sys, "argv", ["kernels", "--quick", "--json", str(tmp_path / "out.json")])
    kernels.main()
    summary = json.loads((tmp_path / "out.json").read_text())["summary"]
    wanted = {
        "gemm.min_ratio_ort",
        "gemm.min_peak_share",
        "gemm.min_peak_share_ragged",
        "depthwise.min_ratio_ort",
        "codec.min_share_of_copy",
    }
    assert summary.keys() >= wanted
    assert all(value > 0 for value in summary.values())
    assert "6x20x80" in capsys.readouterr().out
