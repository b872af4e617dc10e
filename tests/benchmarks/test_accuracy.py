"""The accuracy benchmark on real photographs, where they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import accuracy, lite0
from splitedge import errors
from tests.raising import raises


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quick_run_keeps_the_split_network_near_the_float_one(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(lite0.PACKAGE, reason="the package carries the weights")
    out = tmp_path / "out.json"
    accuracy.main(["--images", str(photos), "--labels", str(photos / "labels.csv"), "--json", str(out), "--quick"])
    found = json.loads(out.read_text())
    summary = found["summary"]
    assert summary["lite0.float_top1"] > 70
    assert summary["lite0.drop_points"] == pytest.approx(summary["lite0.float_top1"] - summary["lite0.split_top1"])
    assert summary["lite0.drop_points"] < 20  # one photograph of 24 is 4 points
    assert summary["lite0.drop_low"] <= summary["lite0.drop_points"] <= summary["lite0.drop_high"]
    layers = {row["cut after"] for row in found["rows"]}
    assert len(layers) == 3  # none, the whole network, one cut
    assert "lite0.split_top1" in capsys.readouterr().out


def test_photographs_without_labels_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (300, 300)).save(tmp_path / "a.png")
    with raises(errors.UsageError, reason="no-labels"):
        accuracy.main(["--images", str(tmp_path)])
