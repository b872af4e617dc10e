"""The streams of the reuse benchmark are what they say, and its count of who gets whose answer is right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import lite0, reuse
from benchmarks.reuse import FRAMES, LATENCY, Scene, Stream
from edge_agent.config import ReuseConfig
from splitedge import errors
from tests.raising import raises


def scene(height: int = 256, width: int = 340) -> Scene:
    """Each pixel tells its place: red its row, green its column."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    photo = np.stack([rows, columns % 256, np.full_like(rows, 50.0)], axis=-1)
    return Scene(photo, np.full((256, 256, 3), 250.0), np.random.default_rng(0))


@pytest.mark.parametrize("name", reuse.STREAMS)
def test_every_stream_yields_pictures_of_the_models_size(name):
    frame = reuse.STREAMS[name](scene(), FRAMES - 1)
    assert (frame.shape, frame.dtype) == ((224, 224, 3), np.uint8)


def test_a_pan_moves_along_the_longer_side_and_back_where_the_photograph_ends():
    assert [int(scene().view(shift)[0, 0, 1]) for shift in (0, 4, 58, 59, 60)] == [58, 62, 116, 115, 114]
    assert [int(scene(256, 256).view(shift)[0, 0, 0]) for shift in (0, 16, 17)] == [16, 32, 31]
    assert (Scene(np.zeros((224, 224, 3)), np.zeros((256, 256, 3)), np.random.default_rng(0)).view(9) == 0).all()


def test_an_object_comes_half_way_and_stays():
    bright = [
        (reuse.STREAMS["object 56 px"](scene(), t)[..., 2] > 150).sum()
        for t in (0, FRAMES // 2 - 1, FRAMES // 2, FRAMES - 1)
    ]
    assert bright == [0, 0, 56 * 56, 56 * 56]


def test_light_fades_or_flickers():
    blue = [
        [reuse.STREAMS[name](scene(), t)[..., 2].mean() for t in (0, 1, 2)] for name in ("dimming 1 %", "flicker 5 %")
    ]
    np.testing.assert_allclose(blue, [[50, 49.5, 49.005], [50, 47.5, 50]], atol=0.05)


def scenes(*seeds: int) -> np.ndarray:
    """Frames of scenes that are held, a seed for each frame."""
    return np.stack([np.random.default_rng(seed).integers(0, 256, (4, 4, 8)) for seed in seeds]).astype(np.uint8)


def test_frames_are_sent_until_the_first_answer_is_there_and_at_every_cut():
    found = reuse.sources(scenes(1, 1, 1, 1, 1, 2, 2, 2, 1), ReuseConfig(threshold=0.1))
    assert LATENCY == 2
    assert found.tolist() == [0, 1, 0, 1, 1, 5, 6, 5, 8]


def test_a_row_counts_what_reuse_adds_and_cuts_that_it_missed():
    codes = scenes(1, 1, 1, 2, 2, 2)
    answers, wanted = np.array([5, 5, 6, 7, 7, 7]), np.array([5, 5, 6, 7, 7, 8])
    stream = Stream("noise 2", np.array([0, 0, 0, 1, 1, 1]), wanted, wanted, [codes], [answers])
    row = reuse.row(stream, 0, "somewhere", 0.5)
    assert row["not sent %"] == pytest.approx(100 / 3)
    assert (row["differ, all sent %"], row["extra"], row["lost"]) == pytest.approx((100 / 6, 100 / 6, 100 / 6))
    assert row["missed cuts"] == 0
    held = Stream("noise 2", stream.scene, wanted, wanted, [scenes(1, 1, 1, 1, 1, 1)], [answers])
    assert reuse.row(held, 0, "somewhere", 0.5)["missed cuts"] == 3


def test_photographs_without_labels_are_refused(tmp_path):
    Image.new("RGB", (300, 300)).save(tmp_path / "a.png")
    with raises(errors.UsageError, reason="no-labels"):
        reuse.main(["--images", str(tmp_path)])


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quick_run_spares_still_frames_and_misses_no_cut(photos: Path, tmp_path: Path):
    pytest.importorskip(lite0.PACKAGE, reason="the package carries the weights")
    out = tmp_path / "out.json"
    reuse.main(["--images", str(photos), "--labels", str(photos / "labels.csv"), "--json", str(out), "--quick"])
    summary = json.loads(out.read_text())["summary"]
    assert summary["reuse.still_not_sent_percent"] > 50
    assert summary["reuse.missed_cuts"] == 0
    assert summary["reuse.extra_points"] < 10
