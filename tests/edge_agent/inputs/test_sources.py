from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inputs.sources import expand, is_array, load_array, read_bounded, spoken
from splitedge import errors
from tests.raising import raises


def names(patterns: list[str]) -> list[str]:
    return [Path(source.name).name for pattern in patterns for source in expand(pattern, io.BytesIO(b"in"))]


def test_a_folder_stands_for_its_images_by_name_and_nothing_else(tmp_path):
    for name in ("b.JPG", "a.png", "c.npy", "notes.txt", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "d.png").mkdir()
    assert names([str(tmp_path)]) == ["a.png", "b.JPG", "c.npy"]


def test_a_folder_without_images_stands_for_its_texts(tmp_path):
    for name in ("b.txt", "a.TXT", "c.md"):
        (tmp_path / name).write_bytes(b"x")
    assert names([str(tmp_path)]) == ["a.TXT", "b.txt"]


def test_a_text_in_the_command_is_named_by_its_beginning():
    assert spoken("some words")[:1] == ("some words",)
    assert spoken("some words").read() == "some words"
    assert len(spoken("a" * 1000).name) == 60


def test_a_glob_is_sorted_and_passes_folders_over(tmp_path):
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "c.jpg").mkdir()
    assert names([str(tmp_path / "*.jpg")]) == ["a.jpg", "b.jpg"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "a[1].jpg").write_bytes(b"x")
    assert names([str(tmp_path / "a[1].jpg")]) == ["a[1].jpg"]


def test_a_dash_is_standard_input():
    (source,) = expand("-", io.BytesIO(b"in"))
    assert (source.name, source.read()) == ("standard input", b"in")
    with raises(errors.InputError, reason="empty"):
        source.read()


def test_a_missing_file_fails_in_its_turn_by_its_name(tmp_path):
    (source,) = expand(str(tmp_path / "absent.jpg"), io.BytesIO())
    with raises(errors.InputError, reason="unreadable", name=str(tmp_path / "absent.jpg")):
        source.read()


@pytest.mark.parametrize("pattern", ["*.nothing", "", "empty"])
def test_a_pattern_that_names_nothing_is_an_error(tmp_path, monkeypatch, pattern):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # which "" stands for
    with pytest.raises(errors.InputError):
        [source.read() for source in expand(str(tmp_path / pattern) if pattern else "", io.BytesIO())]


def test_bytes_of_a_name_that_are_no_utf8_are_spelled(tmp_path):
    folder = os.fsencode(tmp_path)
    with open(folder + b"/caf\xe9.jpg", "wb") as file:  # noqa: PTH123 (a name of bytes)
        file.write(b"x")
    for pattern in (str(tmp_path), str(tmp_path / "*.jpg"), os.fsdecode(folder + b"/caf\xe9.jpg")):
        (source,) = expand(pattern, io.BytesIO())
        assert (Path(source.name).name, source.read()) == ("caf\\xe9.jpg", b"x")
        assert msgspec.json.decode(msgspec.json.encode(source.name)) == source.name
    (absent,) = expand(os.fsdecode(folder + b"/absent\xe9.jpg"), io.BytesIO())
    with raises(errors.InputError, reason="unreadable", name=f"{tmp_path}/absent\\xe9.jpg") as raised:
        absent.read()
    msgspec.json.encode(raised.value.to_wire())


def test_a_text_in_the_command_that_is_no_utf8_is_refused():
    said = spoken(os.fsdecode(b"caf\xe9"))
    assert said.name == "caf\\xe9"
    with pytest.raises(errors.InputError):
        said.read()


def test_reading_stops_at_the_limit():
    assert read_bounded(io.BytesIO(b"12345"), "x", 5) == b"12345"
    with raises(errors.InputError, reason="too-large", name="x"):
        read_bounded(io.BytesIO(b"12345"), "x", 4)


def npy(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_an_array_is_known_by_its_first_bytes():
    assert is_array(npy(np.zeros(3)))
    assert not is_array(b"")
    assert not is_array(b"\x89PNG\r\n")


def test_an_array_is_read_and_a_pickle_is_not():
    np.testing.assert_array_equal(load_array(npy(np.arange(6.0).reshape(2, 3))), np.arange(6.0).reshape(2, 3))
    with raises(errors.InputError, reason="not-an-array"):
        load_array(npy(np.array([{"a": 1}], object)))


@given(st.binary(max_size=200), st.integers(0, 150))
def test_array_bytes_load_or_raise_an_input_error(data, keep):
    for candidate in (data, npy(np.zeros(4))[:keep] + data):
        with contextlib.suppress(errors.InputError):
            load_array(candidate)
