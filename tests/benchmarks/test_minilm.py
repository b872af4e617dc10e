"""How texts become token ids for MiniLM."""

from __future__ import annotations

import numpy as np

from benchmarks import minilm

VOCABULARY = {
    token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "the", "a", ","])
}


def test_words_are_split_into_the_longest_known_pieces() -> None:
    ids = minilm.tokenize("Playing the, zz", VOCABULARY, 10)
    assert ids.tolist() == [2, 4, 5, 6, 8, 1, 3, 0, 0, 0]


def test_windows_cover_a_text_and_leave_out_a_rest_that_fills_none() -> None:
    text = "a the " * 7  # 14 pieces: three windows of 4 and a rest of 2
    found = minilm.windows(text, VOCABULARY, 6)
    assert [one.tolist() for one in found] == [[2, 7, 6, 7, 6, 3]] * 3
    np.testing.assert_array_equal(found[0], minilm.tokenize(text, VOCABULARY, 6))
    assert [one.tolist() for one in minilm.windows("a the", VOCABULARY, 6)] == [[2, 7, 6, 3, 0, 0]]
    assert [one.tolist() for one in minilm.windows("", VOCABULARY, 4)] == [[2, 3, 0, 0]]
