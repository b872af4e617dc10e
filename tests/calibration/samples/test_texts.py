"""Texts to calibrate on: where they are found, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.samples import texts
from splitedge import errors, limits
from splitedge.head import text
from tests.raising import raises
from tests.small_texts import TOKENS, ids, vocabulary


def write(folder: Path, **files: str) -> Path:
    """``folder`` with a text for each of ``files``; __ divides a class from a name."""
    for name, words in files.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words, "utf-8")
    return folder


def test_folders_are_classes(tmp_path: Path) -> None:
    place = write(tmp_path, sport__b="the ball", sport__a="play", money__c="the bank")
    (place / "pictures").mkdir()
    (place / "sport" / "notes.md").write_text("no text of ours")
    found = texts.find(place)
    assert [path.name for path in found.sources if isinstance(path, Path)] == ["c.txt", "a.txt", "b.txt"]
    assert found.labels is not None
    assert (found.labels.classes.tolist(), found.labels.names) == ([0, 1, 1], ["money", "sport"])


def test_class_names_tell_the_order_of_folders(tmp_path: Path) -> None:
    place = write(tmp_path, sport__a="play", money__c="the bank")
    found = texts.find(place, names=["sport", "weather", "money"])
    assert found.labels is not None
    assert found.labels.classes.tolist() == [2, 0]
    with raises(errors.UsageError, reason="unknown-name"):
        texts.find(place, names=["sport"])


def test_a_folder_of_texts_may_have_labels_and_need_not(tmp_path: Path) -> None:
    place = write(tmp_path / "texts", a="play", b="the bank")
    assert texts.find(place) == ([place / "a.txt", place / "b.txt"], None)
    (tmp_path / "labels.csv").write_text("file,class\nb.txt,1\na.txt,0\n")
    found = texts.find(place, str(tmp_path / "labels.csv"))
    assert found.labels is not None
    assert found.labels.classes.tolist() == [0, 1]


def test_a_file_has_a_text_in_each_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("\ufeffthe ball\r\n\n  café\n", "utf-8")
    assert texts.find(tmp_path / "x.txt") == (["the ball", "café"], None)


@pytest.mark.parametrize("heading", ["", "text,label\n"])
def test_a_table_has_texts_and_perhaps_classes(tmp_path: Path, heading: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(heading + '"the ball, again",1\n"two\nlines",0\n', "utf-8")
    found = texts.find(path)
    assert found.labels is not None
    assert (found.sources, found.labels.classes.tolist()) == (["the ball, again", "two\nlines"], [1, 0])
    with raises(errors.UsageError, reason="classes-told"):
        texts.find(path, "labels.csv")
    path.write_text("the ball\nplay\n", "utf-8")
    assert texts.find(path) == (["the ball", "play"], None)


@pytest.mark.parametrize(
    ("name", "body", "error", "reason"),
    [
        ("x.csv", b"a,1\nb,one\n", errors.InputError, "no-index"),
        ("x.csv", b"a,1\nb\n", errors.InputError, "no-index"),
        ("x.csv", b"a" * 200_000, errors.InputError, "not-csv"),
        ("x.csv", b"", errors.UsageError, "no-texts"),
        ("x.txt", b"caf\xe9", errors.InputError, "not-utf8"),
        ("x.txt", b"\n \n", errors.UsageError, "no-texts"),
        ("absent", None, errors.UsageError, "no-folder"),
        ("folder/x.md", b"a", errors.UsageError, "no-folder"),
    ],
)
def test_a_place_without_texts_is_one_sentence(
    tmp_path: Path, name: str, body: bytes | None, error: type[errors.SplitEdgeError], reason: str
) -> None:
    path = tmp_path / name
    if body is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
    place = tmp_path / "nowhere" if name.startswith(("folder", "absent")) else path
    with raises(error, reason=reason):
        texts.find(place)


def test_samples_are_the_ids_of_some_texts(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="texts need the extra `text`")
    tokenizer = text.Tokenizer(text.of_vocabulary(vocabulary()), TOKENS, 0)
    place = write(tmp_path, money__a="bank", money__b="the loan", sport__a="Playing", sport__b="goal", sport__c="ball")
    whole = texts.samples(texts.find(place), tokenizer)
    assert (len(whole), whole.preprocess.kind, whole.preprocess.shape) == (5, "tensor", [TOKENS])
    np.testing.assert_array_equal(whole[2], ids("play", "##ing"))
    some = texts.samples(texts.find(place), tokenizer, 2)
    assert some.classes is not None
    assert (len(some), some.classes.tolist()) == (2, [0, 1])
    write(place, money__a=" ")
    with raises(errors.InputError, reason="empty", file=str(place / "money" / "a.txt")):
        texts.samples(texts.find(place), tokenizer)
    with raises(errors.InputError, reason="too-many-bytes", index=1):
        texts.samples(texts.Texts(["a", "a" * (limits.MAX_TEXT_BYTES + 1)], None), tokenizer)
