"""How texts become token ids, with the real library."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitedge import errors, limits
from splitedge.head import text
from tests.raising import raises
from tests.small_texts import TOKENS, VOCABULARY, ids, vocabulary

pytest.importorskip("tokenizers", reason="texts need the extra `text`")


@pytest.fixture(scope="module")
def data() -> bytes:
    return text.of_vocabulary(vocabulary())


@pytest.fixture
def tokenizer(data: bytes) -> text.Tokenizer:
    return text.Tokenizer(data, TOKENS, 0)


def changed(data: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(data) | fields).encode()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("Playing the ball", ids("play", "##ing", "the", "ball")),
        ("the, a!", ids("the", ",", "a", "!")),
        ("CAFÉ cafe\u0301", ids("cafe", "cafe")),  # composed or not
        ("a中a\u200b", ids("a", "中", "a")),  # no spaces around, and a mark that nobody sees
        ("zebra 🎉 a", ids("[UNK]", "[UNK]", "a")),
        ("\ta\r\n\u00a0the ", ids("a", "the")),
        ("a " * 1000, ids(*"aaaaaa")),  # cut, and closed all the same
    ],
)
def test_words_are_split_into_the_longest_known_pieces(
    tokenizer: text.Tokenizer, words: str, expected: list[int]
) -> None:
    found = tokenizer.ids(words)
    assert found.dtype == np.int32
    assert found.tolist() == expected


def test_a_tokenizers_own_cutting_and_filling_are_left_out(data: bytes) -> None:
    cut = {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    fill = {
        "strategy": {"Fixed": 20},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 7,
        "pad_type_id": 0,
        "pad_token": "?",
    }
    made = text.Tokenizer(changed(data, truncation=cut, padding=fill), TOKENS, 9)
    assert made.ids("the ball a").tolist() == [*ids("the", "ball", "a")[:5], 9, 9, 9]


def test_a_file_is_read_as_it_is_and_a_vocabulary_is_made_one(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "vocab.txt").write_text(vocabulary())
    (tmp_path / "tokenizer.json").write_bytes(data)
    assert text.read(tmp_path / "vocab.txt") == text.read(tmp_path / "tokenizer.json") == data
    (tmp_path / "vocab.txt").write_text("a\nb\n[CLS]")
    with raises(errors.InputError, reason="special-tokens"):
        text.read(tmp_path / "vocab.txt")
    with raises(errors.InputError, reason="unreadable"):
        text.read(tmp_path / "absent.json")


def test_the_vocabulary_tells_its_padding(tokenizer: text.Tokenizer) -> None:
    assert tokenizer.named_padding() == VOCABULARY.index("[PAD]")
    bare = text.of_vocabulary("[UNK]\n[CLS]\n[SEP]\n")
    assert text.Tokenizer(bare, TOKENS, 0).named_padding() is None
    assert tokenizer.reference().size == len(tokenizer.data)


@pytest.mark.parametrize(
    "hostile",
    [b"", b"{}", b"null", b"[" * 100_000, b"\x80\x04N.", b"\xff\xfe", b'{"model": 1}', b'{"model": {"type": "WordPiece", "vocab": {"a": -1}}}'],
)  # fmt: skip
def test_data_that_is_no_tokenizer_is_one_sentence(hostile: bytes) -> None:
    with raises(errors.InputError, reason="not-a-tokenizer") as caught:
        text.Tokenizer(hostile, TOKENS, 0)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_a_tokenizer_over_the_limit_is_not_parsed(monkeypatch, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    monkeypatch.setattr(limits, "MAX_TOKENIZER_BYTES", len(data) - 1)
    with raises(errors.InputError, reason="too-many-bytes"):
        text.Tokenizer(data, TOKENS, 0)
    with raises(errors.InputError, reason="too-many-bytes"):
        text.read(tmp_path / "tokenizer.json")


def test_a_tokenizer_without_what_it_names_fails_as_a_sentence(data: bytes) -> None:
    model = json.loads(data)["model"]
    bare = text.Tokenizer(changed(data, model=model | {"vocab": {"a": 4}}), TOKENS, 0)
    with raises(errors.InputError, reason="no-tokens"):
        bare.ids("zebra")


def test_an_id_beyond_32_bits_stays_one_that_no_head_knows(data: bytes) -> None:
    model = json.loads(data)["model"]
    wide = text.Tokenizer(changed(data, model=model | {"vocab": model["vocab"] | {"ball": 2**32 - 1}}), TOKENS, 0)
    assert wide.ids("ball")[1] == 2**31 - 1


def test_special_tokens_must_leave_room(data: bytes) -> None:
    with raises(errors.InputError, reason="too-few-tokens"):
        text.Tokenizer(data, 2, 0)
    assert text.Tokenizer(data, 3, 0).ids("the ball").tolist() == ids("the")[:3]


def test_a_panic_in_the_library_is_an_error_and_an_interrupt_is_none() -> None:
    panic = type("PanicException", (BaseException,), {})

    def fail(error: BaseException) -> None:
        raise error

    with raises(errors.InputError, reason="panic"):
        text._guarded(lambda: fail(panic("index out\nof bounds")), "panic", "it failed")
    with pytest.raises(KeyboardInterrupt):
        text._guarded(lambda: fail(KeyboardInterrupt()), "interrupt", "it failed")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("\udcff", "not-utf8"),
        ("é" * (limits.MAX_TEXT_BYTES // 2 + 1), "too-many-bytes"),
    ],
)
def test_a_text_that_is_none_is_refused(tokenizer: text.Tokenizer, words: str, why: str) -> None:
    with raises(errors.InputError, reason=why):
        tokenizer.ids(words)


def test_bytes_are_text_only_if_they_are_utf_8() -> None:
    assert text.decode("\ufeffcafé".encode()) == "café"
    for wrong in (b"caf\xe9", b"\xff\xd8\xff\xe0", np.arange(8, dtype=np.int32).tobytes()):
        with raises(errors.InputError, reason="not-utf8"):
            text.decode(wrong)


def test_without_the_library_it_is_said_what_to_install(monkeypatch, data: bytes) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert not text.installed()
    for use in (lambda: text.Tokenizer(data, TOKENS, 0), lambda: text.of_vocabulary(vocabulary())):
        with raises(errors.PlatformError, reason="no-tokenizers"):
            use()
