"""The entropy coder: its kernels equal the twins, what is coded comes back, and no words lead a decoder astray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import reference as ref
from kernels.rans import adaptive
from tests.drawn import drawn

Arrays = list[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]]
ALL = np.zeros(1, np.uint8)


def encode(arrays: Arrays) -> tuple[int, NDArray[np.uint32]]:
    words = np.zeros(sum(len(codes) // 2 + 1 for codes, _, _ in arrays), np.uint32)
    state = np.array([adaptive.SEED, len(words)], np.int64)
    for codes, where, start in reversed(arrays):
        adaptive.encode(codes, where, start, state, words)
    assert state[1] >= 0
    return int(state[0]), words[state[1] :].copy()


def decode(x: int, words: NDArray[np.uint32], arrays: Arrays) -> tuple[list[NDArray[np.uint8]], list[int]]:
    state, found = np.array([x, 0], np.int64), []
    for codes, where, start in arrays:
        room = np.full(len(codes) + 16, 91, np.uint8)
        adaptive.decode(words, where, start, state, room[8:-8])
        assert (room[:8] == 91).all()
        assert (room[-8:] == 91).all()
        found.append(room[8:-8])
    return found, state.tolist()


@st.composite
def rows_of_arrays(draw: Any) -> Arrays:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays = []
    for size in draw(st.lists(st.sampled_from([0, 1, 2, 63, 64, 65, 128, 129, 500]), max_size=4)):
        symbols = draw(st.sampled_from([2, 3, 255, 256]) | st.integers(2, 256))
        contexts, steep = draw(st.integers(1, 5)), draw(st.integers(1, 30))
        codes = rng.integers(0, symbols, (steep, size)).min(axis=0).astype(np.uint8)
        codes[: size // 9] = rng.choice(
            [0, symbols - 1], size // 9
        )  # the ends of the alphabet, which are rare if it is steep
        where = rng.integers(0, contexts, size).astype(np.uint8) if contexts > 1 and size else ALL
        arrays.append((codes, where, rng.integers(1, draw(st.sampled_from([2, 5000])), (contexts, symbols))))
    return arrays


def whole_alphabet(symbols: int) -> Arrays:
    """Each symbol once, and only the last one."""
    start = np.ones((1, symbols), np.int64)
    return [(np.arange(symbols).astype(np.uint8), ALL, start), (np.full(40, symbols - 1, np.uint8), ALL, start)]


@drawn(40)
@example([(np.zeros(1, np.uint8), ALL, np.ones((1, 1), np.int64))])  # an alphabet of one symbol
@example(whole_alphabet(2))
@example(whole_alphabet(255))
@example(whole_alphabet(256))
@example([(np.full(300, 255, np.uint8), np.arange(300).astype(np.uint8), np.full((256, 256), 1 << 40))])
@given(rows_of_arrays())
def test_what_is_coded_comes_back_and_equals_the_twin(arrays: Arrays) -> None:
    x, words = encode(arrays)
    assert (x, words.tolist()) == ref.adaptive_rans_encode(arrays)
    found, state = decode(x, words, arrays)
    assert state == [adaptive.SEED, len(words)]
    slow = ref.adaptive_rans_decode(x, words.tolist(), [(len(codes), where, start) for codes, where, start in arrays])
    for (codes, _, _), fast, plain in zip(arrays, found, slow, strict=True):
        np.testing.assert_array_equal(fast, codes)
        np.testing.assert_array_equal(plain, codes)


@drawn(100)
@given(rows_of_arrays(), st.integers(adaptive.SEED, (1 << 63) - 1), st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_any_words_give_symbols_of_the_alphabet(arrays: Arrays, x: int, words: list[int]) -> None:
    found, _ = decode(x, np.array(words, np.uint32), arrays)
    for (_, _, start), codes in zip(arrays, found, strict=True):
        assert (codes < start.shape[1]).all()


def test_words_that_are_missing_show_in_the_place() -> None:
    codes = np.random.default_rng(0).integers(0, 16, 1000).astype(np.uint8)
    arrays = [(codes, ALL, np.ones((1, 16), np.int64))]
    x, words = encode(arrays)
    assert decode(x, words[:-3], arrays)[1][1] > len(words) - 3


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_code_takes_its_entropy(bits: int) -> None:
    top = (1 << bits) - 1
    codes = np.clip(np.rint(np.random.default_rng(1).normal(top / 2, top / 8, 300_000)), 0, top).astype(np.uint8)
    shares = np.bincount(codes) / len(codes)
    entropy_bits = -(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))).sum() * len(codes)
    _, words = encode([(codes, ALL, np.full((1, 1 << bits), 16))])
    assert 32 * len(words) < 1.003 * entropy_bits + 64


def test_contexts_that_tell_the_code_leave_nothing_to_send() -> None:
    codes = np.random.default_rng(2).integers(0, 8, 100_000).astype(np.uint8)
    _, words = encode([(codes, codes, np.ones((8, 8), np.int64))])
    assert len(words) < 100
