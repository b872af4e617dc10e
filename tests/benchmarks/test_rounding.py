"""The benchmark of rounded weights on real photographs, where they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import rounding
from edge_agent import errors


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quick_run_shows_that_rounding_by_the_outputs_loses_less(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the demo's packages carry the model")
    out = tmp_path / "out.json"
    rounding.main(["--images", str(photos), "--labels", str(photos / "labels.csv"), "--json", str(out), "--quick"])
    found = json.loads(out.read_text())
    assert found["summary"]["lite0.gptq4.noise"] < 0.8 * found["summary"]["lite0.nearest4.noise"]
    rows = {(row["cut %"], row["depthwise"], row["others"], row["rounding"]): row for row in found["rows"]}
    assert len(rows) == 12
    for (cut, depthwise, others, kind), row in rows.items():
        assert row["low"] <= row["drop"] <= row["high"]
        assert row["noise"] > 0
        assert cut == 100 or row["noise"] < rows[100, depthwise, others, kind]["noise"]
    assert "lite0.gptq4.drop_points" in capsys.readouterr().out


def test_photographs_without_labels_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (300, 300)).save(tmp_path / "a.png")
    with pytest.raises(errors.UsageError, match="labels"):
        rounding.main(["--images", str(tmp_path)])
