import time
from pathlib import Path

import pytest

from edge_agent import errors, limits
from edge_agent.timings import Timings, Turns


def test_a_median_counts_from_the_fifth_frame_on() -> None:
    timings = Timings(None)
    for ms in (9.0, 1.0, 2.0, 3.0):
        timings.add("aa", ms)
    assert timings.known() == {}
    timings.add("aa", 4.0)
    assert timings.known() == {"aa": 3.0}


def test_what_was_learnt_is_there_after_a_restart_and_new_frames_replace_it(tmp_path: Path) -> None:
    first = Timings(tmp_path / "timings.json")
    for name, ms in (("aa", 5.0), ("bb", 7.0)):
        for _ in range(5):
            first.add(name, ms)
    first.save()
    again = Timings(tmp_path / "timings.json")
    for _ in range(5):
        again.add("aa", 6.0)
    assert again.known() == {"bb": 7.0, "aa": 6.0}
    assert [p.name for p in tmp_path.iterdir()] == ["timings.json"]


def test_only_the_last_segments_are_remembered() -> None:
    timings = Timings(None)
    for number in range(limits.MAX_MEASURED + 3):
        for _ in range(5):
            timings.add(str(number), 1.0)
    known = timings.known()
    assert len(known) == limits.MAX_MEASURED
    assert "2" not in known
    assert "3" in known


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"aa": "x"}', b"\xff"])
def test_a_damaged_file_is_measured_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "timings.json").write_bytes(damage)
    assert Timings(tmp_path / "timings.json").known() == {}


def test_a_file_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    timings = Timings(tmp_path / "away" / "timings.json")
    for _ in range(5):
        timings.add("aa", 1.0)
    with pytest.raises(errors.StoreError, match="cannot be written"):
        timings.save()


def test_a_turn_begins_when_the_one_before_it_has_ended() -> None:
    turns, asked = Turns(), time.perf_counter()
    first, second = (turns.run(asked, lambda: time.sleep(0.01))[1] for _ in range(2))
    assert first >= 10.0
    assert 10.0 <= second < 1e3 * (time.perf_counter() - asked) - first + 1.0
    time.sleep(0.05)
    late = time.perf_counter()
    assert turns.run(late, lambda: None)[1] <= 1e3 * (time.perf_counter() - late)
