"""The profile as a file and as a part of a plan request."""

from __future__ import annotations

import contextlib
import json
import os

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_profiles import from_dict, load, save, to_dict
from splitedge.errors import ConfigError, ProtocolError, StoreError
from tests.raising import raises

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def test_a_profile_survives_its_file(profile, tmp_path):
    path = tmp_path / "new folder" / "board.json"
    path.parent.mkdir()
    save(profile, path)
    assert load(path) == profile
    assert [p.name for p in path.parent.iterdir()] == ["board.json"]
    assert json.loads(path.read_text())["schema_version"] == 1


def test_a_profile_survives_a_plan_request(profile):
    assert from_dict(json.loads(json.dumps(to_dict(profile)))) == profile


def test_an_older_file_that_does_not_say_what_was_chosen_is_read(profile):
    profile.chosen = {"threads": "1: because"}
    value = to_dict(profile)
    assert value.pop("chosen") == {"threads": "1: because"}
    assert from_dict(value).chosen == {}


def test_an_older_file_without_intervals_roofs_and_backends_is_read(profile):
    value = to_dict(profile)
    for name in ("bandwidths", "peaks", "load", "backends"):
        value.pop(name)
    for row in value["kernels"]:
        row.pop("interval")
    assert from_dict(value) == profile


@pytest.mark.parametrize(
    "bad",
    [
        {"backends": [{"name": "x", "version": "1", "threads": 1, "ms": 1.0}] * 21},
        {"backends": [{"name": "x" * 301, "version": "1", "threads": 1, "ms": 1.0}]},
        {"backends": [{"name": "x", "version": "1", "threads": 1, "ms": 0.0}]},
        {"peaks": [{"threads": 1, "gops": 1.0}] * 65},
        {"peaks": [{"threads": 0, "gops": 1.0}]},
        {"bandwidths": [{"kind": "copy", "threads": 1, "gbps": 1.0}] * 101},
        {"bandwidths": [{"kind": "write", "threads": 1, "gbps": 1.0}]},
        {"load": {"threads": 1, "seconds": 1.0, "burst_gops": 0, "sustained_gops": 1.0}},
    ],
)
def test_a_field_beyond_its_bounds_is_refused(profile, bad):
    with raises(ProtocolError, reason="malformed"):
        from_dict(to_dict(profile) | bad)


def test_a_newer_peer_s_extra_fields_are_ignored(profile):
    assert from_dict(to_dict(profile) | {"gpu": {"name": "none"}}) == profile


@pytest.mark.parametrize("version", [0, 2, None, "1", True])
def test_another_version_is_refused_by_name(profile, version):
    value = to_dict(profile) | {"schema_version": version}
    if version is True:  # JSON's true is not the number 1
        with pytest.raises(ProtocolError):
            from_dict(value)
        return
    with raises(ProtocolError, reason="schema-version"):
        from_dict(value)


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf"), 1e300, "12", None])
def test_a_time_that_no_prediction_may_divide_by_is_refused(profile, bad):
    value = to_dict(profile)
    value["kernels"][0]["time_us"] = bad
    with raises(ProtocolError, reason="malformed"):
        from_dict(value)


@pytest.mark.parametrize(("field", "bad"), [("h", 0), ("c", -1), ("oc", 1 << 40), ("k", 1.5), ("stride", 0)])
def test_an_impossible_shape_is_refused(profile, field, bad):
    value = to_dict(profile)
    value["kernels"][0]["shape"][field] = bad
    with raises(ProtocolError, reason="malformed"):
        from_dict(value)


def test_too_many_measurements_are_refused(profile):
    value = to_dict(profile)
    value["kernels"] *= 100
    with raises(ProtocolError, reason="malformed"):
        from_dict(value)


def test_a_kind_that_was_not_measured_is_named(profile):
    value = to_dict(profile)
    value["kernels"] = [row for row in value["kernels"] if row["kind"] != "dense"]
    with raises(ProtocolError, reason="not-measured"):
        from_dict(value)


@given(value=_JSON)
def test_anything_else_is_a_protocol_error(value):
    with pytest.raises(ProtocolError):
        from_dict(value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from(["machine", "kernels", "overhead", "warmup", "condition", "power", "unmeasured"]), value=_JSON
)
def test_a_damaged_profile_is_a_profile_or_a_protocol_error(profile, place, value):
    with contextlib.suppress(ProtocolError):
        assert to_dict(from_dict(to_dict(profile) | {place: value}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not-a-profile"),
        (b"{", "not-a-profile"),
        (b"[1, 2]", "schema-version"),
        (b"\xff\xfe", "not-a-profile"),
        (b'{"schema_version": 7}', "schema-version"),
        (b"[" * 100_000, "not-a-profile"),
    ],
)
def test_a_file_that_is_no_profile_is_one_sentence(tmp_path, content, reason):
    path = tmp_path / "board.json"
    path.write_bytes(content)
    with raises(ConfigError, reason=reason):
        load(path)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with raises(ConfigError, reason="unreadable"):
        load(tmp_path / "none.json")


def test_a_file_beyond_the_limit_is_not_parsed(tmp_path):
    path = tmp_path / "board.json"
    with path.open("wb") as file:
        file.truncate(5 << 20)
    with raises(ConfigError, reason="too-large"):
        load(path)


def test_a_place_that_cannot_be_written_is_one_sentence(profile, tmp_path):
    (tmp_path / "file").write_text("")
    with raises(StoreError, reason="cannot-write"):
        save(profile, tmp_path / "file" / "board.json")


def test_a_folder_that_is_not_there_is_one_sentence_and_is_not_made(profile, tmp_path):
    with raises(StoreError, reason="no-folder"):
        save(profile, tmp_path / "none" / "board.json")
    assert list(tmp_path.iterdir()) == []


def test_a_link_or_a_pipe_is_written_into_and_stays(profile, tmp_path):
    link, target = tmp_path / "link.json", tmp_path / "target.json"
    link.symlink_to(target)
    save(profile, link)
    assert link.is_symlink()
    assert load(target) == profile
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        save(profile, pipe)
        assert os.read(reader, 1) == b"{"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(profile, tmp_path):
    target = tmp_path / "board.json"
    target.mkdir()
    with pytest.raises(StoreError):
        save(profile, target)
    assert [p.name for p in tmp_path.iterdir()] == ["board.json"]


def test_figures_follow_from_the_measurement(profile):
    row = msgspec.structs.replace(profile.kernels[0], macs=500_000, bytes=4_000, time_us=10.0)
    assert row.gops == pytest.approx(100.0)
    assert row.gbps == pytest.approx(0.4)
