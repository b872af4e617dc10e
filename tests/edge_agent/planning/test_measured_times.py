import math
import time
from pathlib import Path

import msgspec
import pytest

import device_profiles
from edge_agent.planning import measured_times as module
from edge_agent.planning.measured_times import SendingModel, TimeLog, TurnTimer
from splitedge import codec, errors, limits
from splitedge.protocol.messages import LinkEstimate, MeasuredTimes
from tests.raising import raises
from tests.small_server import make_plan, segment_file


def test_a_median_counts_from_the_fifth_frame_on() -> None:
    timings = TimeLog(None)
    for ms in (9.0, 1.0, 2.0, 3.0):
        timings.add_head("aa", ms)
    assert timings.medians() == MeasuredTimes({})
    timings.add_head("aa", 4.0)
    assert timings.medians() == MeasuredTimes({"aa": 3.0})


def test_what_was_learnt_is_there_after_a_restart_and_new_frames_replace_it(tmp_path: Path) -> None:
    first = TimeLog(tmp_path / "timings.json")
    for name, ms in (("aa", 5.0), ("bb", 7.0)):
        for _ in range(5):
            first.add_head(name, ms)
    first.save()
    again = TimeLog(tmp_path / "timings.json")
    for _ in range(5):
        again.add_head("aa", 6.0)
    assert again.medians() == MeasuredTimes({"bb": 7.0, "aa": 6.0})
    assert [p.name for p in tmp_path.iterdir()] == ["timings.json"]


def test_only_the_last_segments_are_remembered() -> None:
    timings = TimeLog(None)
    for number in range(limits.MAX_MEASURED + 3):
        for _ in range(5):
            timings.add_head(str(number), 1.0)
    known = timings.medians().head_ms
    assert len(known) == limits.MAX_MEASURED
    assert "2" not in known
    assert "3" in known


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"aa": "x"}', b"\xff"])
def test_a_damaged_file_is_measured_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "timings.json").write_bytes(damage)
    assert TimeLog(tmp_path / "timings.json").medians() == MeasuredTimes({})


def test_a_file_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    timings = TimeLog(tmp_path / "away" / "timings.json")
    for _ in range(5):
        timings.add_head("aa", 1.0)
    with raises(errors.StoreError, reason="cannot-write"):
        timings.save()


def test_a_turn_begins_when_the_one_before_it_has_ended() -> None:
    turns, asked = TurnTimer(), time.perf_counter()
    first, second = (turns.run(asked, lambda: time.sleep(0.01))[1] for _ in range(2))
    assert first >= 10.0
    assert 10.0 <= second < 1e3 * (time.perf_counter() - asked) - first + 1.0
    time.sleep(0.05)
    late = time.perf_counter()
    assert turns.run(late, lambda: None)[1] <= 1e3 * (time.perf_counter() - late)


def test_what_sending_took_is_told_for_a_while_and_not_again_for_old_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1e9
    monkeypatch.setattr(module.time, "time", lambda: now)
    timings = TimeLog(tmp_path / "timings.json")
    for _ in range(5):
        timings.add_sending(3.0)
        timings.add_head("aa", 1.0)
    timings.save()
    now += limits.SENDING_AGE
    assert timings.medians() == TimeLog(tmp_path / "timings.json").medians() == MeasuredTimes({"aa": 1.0}, 3.0)
    now += 1.0
    assert timings.medians() == TimeLog(tmp_path / "timings.json").medians() == MeasuredTimes({"aa": 1.0})
    now -= 1e6  # a clock that was set right
    assert TimeLog(tmp_path / "timings.json").medians().sending_ms is None


def test_what_sending_took_is_of_one_server_and_may_be_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    far = TimeLog(path, "https://far")
    for _ in range(5):
        far.add_sending(30.0)
        far.add_head("aa", 1.0)
    far.save()
    near = TimeLog(path, "https://near")
    assert near.medians() == MeasuredTimes({"aa": 1.0})
    for _ in range(5):
        near.add_sending(2.0)
    near.save()
    assert near.medians() == TimeLog(path, "https://near").medians() == MeasuredTimes({"aa": 1.0}, 2.0)
    near.forget_sending()
    near.save()
    assert TimeLog(path, "https://near").medians() == MeasuredTimes({"aa": 1.0})
    assert TimeLog(path, "https://far").medians() == MeasuredTimes({"aa": 1.0}, 30.0)


def test_sending_is_what_a_frame_took_beyond_profile_and_link(
    profile_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 50.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    profile, plan = device_profiles.load(profile_file), make_plan("split", segment_file("split"))
    profile.overhead.value_ns = 2.0
    profile.overhead.stage_ns = {"rotation": 5.0, "jpeg": 1e9}
    plan.ladder.append(msgspec.structs.replace(plan.ladder[0], rotation=8))
    sending = SendingModel(plan, profile, LinkEstimate(10.0, 8.0, 1.0), now)
    values = math.prod(plan.cut.shape)
    assert codec.work(plan.ladder[1], plan.cut.shape) == {"rotation": values}
    for rung, ns in ((0, 2), (1, 7)):
        expected = 1e-6 * ns * values + 10.0 + 5000 / 1000  # a byte takes a microsecond
        assert sending.predicted_ms(rung, 5000) == pytest.approx(expected)
        assert sending.excess_ms(rung, 5000, expected + 4.0) == pytest.approx(4.0)
        assert sending.excess_ms(rung, 5000, 1.0) == 0.0
    now += limits.LEARNING_TIME + 1.0
    assert sending.excess_ms(0, 5000, expected + 4.0) is None
