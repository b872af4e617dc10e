"""How general convolution finds its windows: what is decided, and what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kernels.operators import conv, gemm

ONE = (1, 1)


def test_windows_that_lie_inside_the_plane_are_read_in_place() -> None:
    assert conv.layout((9, 9, 16), (4, 4), (3, 3), (2, 2), ONE, (0, 0), 1) == (conv.IN_PLACE, 3, 0)
    assert conv.layout((56, 56, 64), (28, 28), ONE, (2, 2), ONE, (0, 0), 1) == (conv.IN_PLACE, 1, 0)
    assert conv.layout((9, 9, 16), (5, 7), (3, 3), ONE, (2, 1), (0, 0), 1) == (conv.IN_PLACE, 3, 0)


@pytest.mark.parametrize(("pad", "out"), [((1, 1), (9, 9)), ((0, 0), (8, 7)), ((0, 0), (7, 8))])
def test_windows_that_reach_beyond_a_small_plane_lie_in_one_padded_copy_of_it(
    pad: tuple[int, int], out: tuple[int, int]
) -> None:
    rows, lines, scratch = conv.layout((9, 9, 16), out, (3, 3), ONE, ONE, pad, 1)
    assert (rows, lines) == (out[0], 3)
    assert scratch == (out[0] + 2) * (out[1] + 2) * 16


def test_a_large_plane_is_copied_some_rows_at_a_time() -> None:
    rows, _, scratch = conv.layout((224, 224, 3), (112, 112), (3, 3), (2, 2), ONE, (0, 0), 1)
    assert 1 < rows < 112
    assert conv.COPY // 2 < scratch <= conv.COPY


def test_a_row_of_windows_that_is_larger_than_a_copy_should_be_has_one_of_its_own() -> None:
    rows, _, scratch = conv.layout((9, 9999, 64), (9, 9999), (3, 3), ONE, ONE, (1, 1), 1)
    assert (rows, scratch) == (1, 3 * 10001 * 64)


@pytest.mark.parametrize(
    ("size", "out", "kernel", "stride", "dilation", "pad", "groups"),
    [
        ((9, 9, 16), (9, 9), (3, 3), ONE, ONE, (1, 1), 2),
        ((9, 9, 16), (9, 9), (3, 3), ONE, (1, 2), (1, 2), 1),
        ((9, 9, 16), (9, 9), (3, 3), ONE, (2, 1), (2, 1), 1),
        ((9, 99, 16), (9, 25), (3, 3), (1, 4), ONE, (1, 1), 1),
        ((99, 9, 16), (25, 9), (3, 3), (4, 1), ONE, (1, 1), 1),
        ((9, 9, 1), (9, 9), (7, 1), ONE, ONE, (3, 0), 1),
    ],
)
def test_other_windows_are_gathered(
    size: tuple[int, int, int],
    out: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    pad: tuple[int, int],
    groups: int,
) -> None:
    rows, lines, scratch = conv.layout(size, out, kernel, stride, dilation, pad, groups)
    assert (rows, lines) == (conv.GATHERED, 1)
    assert scratch >= conv.WINDOWS * math.prod(kernel) * size[2] // groups


def test_every_run_of_weights_is_padded_by_itself() -> None:
    w = np.arange(1, 19, dtype=np.int8).reshape(1, 3, 2, 3)
    padded = np.zeros((1, 3, -(-6 // gemm.GROUP) * gemm.GROUP), np.int8)
    padded[:, :, :6] = w.reshape(1, 3, 6)
    np.testing.assert_array_equal(conv.pack_weights(w, 1, 3), gemm.pack_weights(padded.reshape(1, -1)))
    np.testing.assert_array_equal(conv.pack_weights(w, 1, 1), gemm.pack_weights(w.reshape(1, -1)))
