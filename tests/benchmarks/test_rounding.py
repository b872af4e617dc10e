"""The benchmark of rounded weights on real photographs, where they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import lite0, rounding
from calibration.importing.importer import batched, simplify
from calibration.samples.samples import Samples
from splitedge import errors
from splitedge.protocol.messages import Preprocess
from tests import small_models as small
from tests.raising import raises


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quick_run_shows_that_rounding_by_the_outputs_loses_less(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(lite0.PACKAGE, reason="the package carries the weights")
    out = tmp_path / "out.json"
    rounding.main(
        [
            "--images",
            str(photos),
            "--labels",
            str(photos / "labels.csv"),
            "--json",
            str(out),
            "--quick",
            "--networks",
            "lite0",
        ]
    )
    found = json.loads(out.read_text())
    assert found["summary"]["lite0.gptq4.noise"] < 0.8 * found["summary"]["lite0.nearest4.noise"]
    assert found["summary"]["lite0.nearest4.noise"] < found["summary"]["lite0.plain4.noise"]
    rows = {(row["cut %"], row["depthwise"], row["others"], row["rounding"]): row for row in found["rows"]}
    assert len(rows) == 24
    for (cut, depthwise, others, kind), row in rows.items():
        assert row["low"] <= row["drop"] <= row["high"]
        assert row["noise"] > 0
        assert cut == 100 or row["noise"] < rows[100, depthwise, others, kind]["noise"]
    assert "lite0.gptq4.drop_points" in capsys.readouterr().out


def test_photographs_without_labels_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (300, 300)).save(tmp_path / "a.png")
    with raises(errors.UsageError, reason="no-labels"):
        rounding.main(["--images", str(tmp_path)])


def test_unknown_networks_are_refused(tmp_path: Path) -> None:
    with raises(errors.UsageError, reason="unknown-network"):
        rounding.main(["--images", str(tmp_path), "--networks", "resnet"])


def test_a_small_network_by_every_rounding() -> None:
    model = batched(simplify(small.cnn()))
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(16, 16, 3)).astype(np.float32) for _ in range(40)]
    samples = Samples(Preprocess("tensor", [16, 16, 3]), arrays, rng.integers(0, 10, 40))
    ready = rounding.prepare(model, samples[:24], (1.0,), (3,))
    scaled, pairs = rounding.equalize(model, ready, samples[:24], (3,))
    assert pairs > 0
    rows = rounding.measure(ready, scaled, samples[24:], [(3, 3)])
    noise = {row["rounding"]: row["noise"] for row in rows}
    assert list(noise) == list(rounding.ROUNDINGS)
    assert noise["gptq"] < noise["nearest"] != noise["equalized"] > 0
    assert rounding.summary([{"network": "net", **row} for row in rows])["net.plain3.noise"] == noise["plain"]
