"""Which tokens are padding, a bit for each."""

from __future__ import annotations

import numpy as np
import pytest

from splitedge.codec import padding_mask
from splitedge.errors import CodecError
from tests.raising import raises


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 128])
@pytest.mark.parametrize("padding", [0, 1, 5])
def test_marks_come_back(tokens: int, padding: int) -> None:
    ids = np.random.default_rng(tokens).integers(0, 7, tokens).astype(np.int32)
    packed = padding_mask.pack(ids, padding)
    assert len(packed) == padding_mask.size(tokens) == (tokens + 7) // 8
    codes, kept = padding_mask.split(b"codes" + packed, tokens)
    assert bytes(codes) == b"codes"
    np.testing.assert_array_equal(kept, ids != padding)


def test_the_first_token_is_the_lowest_bit() -> None:
    assert padding_mask.pack(np.array([3, 0, 0, 0, 0, 0, 0, 0, 0, 4], np.int32), 0) == b"\x01\x02"


@pytest.mark.parametrize(("payload", "tokens"), [(b"", 1), (b"\x01", 9), (b"\x00\xf0", 12), (b"\x02", 1)])
def test_marks_that_do_not_fit_are_refused(payload: bytes, tokens: int) -> None:
    with raises(CodecError, reason="padding-mask"):
        padding_mask.split(payload, tokens)
