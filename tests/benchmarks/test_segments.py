"""The benchmark of segment files on a real network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import lite0, segments
from calibration.rounding.quantizer import Rounded, nearest


def rounded(bits: int) -> Rounded:
    weight = np.random.default_rng(0).normal(size=(64, 3, 3, 32)).astype(np.float32)
    return nearest(weight, np.zeros(64, np.float32), bits, np.zeros(64, np.float32))


def test_our_coder_is_within_a_hundredth_of_the_entropy_and_the_others_are_not_better() -> None:
    rows = segments.weights({("x", bits): rounded(bits) for bits in (3, 4)}, (3, 4))
    for row in rows:
        assert row["packed"] == 64 * 9 * 32 * row["bits"] / 8
        assert row["entropy"] < row["ours"] < 1.01 * row["entropy"]
        assert row["ours"] < row["zlib Huffman"] <= row["zlib"] < 100
        assert row["decoded M/s"] > 0


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quick_run_shows_what_an_upgrade_saves(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip(lite0.PACKAGE, reason="the package carries the weights")
    out = tmp_path / "out.json"
    segments.main(["--images", str(photos), "--labels", str(photos / "labels.csv"), "--json", str(out), "--quick"])
    found = json.loads(out.read_text())
    assert found["summary"]["lite0.upgrade4to6.percent"] < 60
    assert found["summary"]["lite0.coded4.percent_of_entropy"] < 100.5
    (*coded, row) = found["rows"]
    assert [one["bits"] for one in coded] == [4, 6]
    assert row["noise"] < row["nested noise"]
