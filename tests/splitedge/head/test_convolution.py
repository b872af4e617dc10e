"""General convolution equals its twin for any geometry, and stays within the memory that is its own."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.operators import conv
from splitedge.head import Head
from splitedge.head import segment as seg
from tests import ends, reference_head
from tests.drawn import drawn
from tests.segment_builder import Builder

SENTINEL = 0xA5


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[list[int], dict[str, Any]]:
    """The shape of x, and arguments of `Builder.conv`: windows with padding on each side, mostly without dilation and groups."""
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.just((1, 1)) | st.tuples(st.integers(1, 2), st.integers(1, 2)))
    window = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    pad = [draw(st.integers(0, window[side % 2] - 1)) for side in range(4)]
    least = [max(1, window[axis] - pad[axis] - pad[axis + 2]) for axis in (0, 1)]
    height, width = (draw(st.integers(n, n + 20)) for n in least)
    groups = draw(st.sampled_from((1, 1, 1, 2)))
    channels = draw(st.integers(1, 70 // groups)) * groups
    outs = draw(st.integers(1, 40)) * groups + groups * (channels == groups)  # never depthwise
    bits = draw(st.sampled_from((8, 8, 2, 5)))
    arguments = {
        "bits": bits,
        "outs": outs,
        "kernel": kernel,
        "stride": stride,
        "pad": pad,
        "dilation": dilation,
        "groups": groups,
    }
    return [height, width, channels], arguments


def touches(shape: list[int], c: dict[str, Any]) -> bool:
    """Whether no window lies outside the plane: the verifier refuses those."""
    for axis in (0, 1):
        before, after = c["pad"][axis], c["pad"][axis + 2]
        room = shape[axis] + before + after - (c["kernel"][axis] - 1) * c["dilation"][axis] - 1
        if room < 0 or room // c["stride"][axis] * c["stride"][axis] - before >= shape[axis]:
            return False
    return True


def assert_equal_to_twin(shape: list[int], arguments: dict[str, Any], threads: int, zero_point: int = 77) -> None:
    builder = Builder(shape, seed=len(arguments), zero_point=zero_point)
    builder.conv(builder.input, **arguments)
    segment, x = builder.finish(), builder.codes()
    head = Head(segment, check_golden=False, threads=threads)
    arena = head._arena
    arena[:] = SENTINEL
    y = head.run(x)
    np.testing.assert_array_equal(y, reference_head.run(segment, x)[segment.header.output])
    used = seg.roundup(segment.header.arena_bytes) + threads * head._table.scratch_bytes
    assert (arena[used:] == SENTINEL).all()
    np.testing.assert_array_equal(arena[head.input.offset :][: x.size], x.reshape(-1))


@drawn(150)
@given(case=convolutions().filter(lambda case: touches(*case)), threads=st.sampled_from((1, 1, 2, 3)), copy=st.sampled_from((1, 700, 5000)), zero=ends.zero_points)  # fmt: skip
def test_any_convolution_equals_the_twin(
    case: tuple[list[int], dict[str, Any]], threads: int, copy: int, zero: int
) -> None:
    with mock.patch.object(conv, "COPY", copy):
        assert_equal_to_twin(*case, threads, zero)


@pytest.mark.parametrize("width", range(1, 16))
def test_tiles_that_turn_to_the_next_row_equal_the_twin(width: int) -> None:
    """Rows narrower than a tile, as deep layers have them; also in place, where the rows of the plane are longer than those of windows."""
    for pad in ((1, 1, 1, 1), (0, 0, 0, 0)):
        for outs in (16, 40, 64, 81):
            shape = [6, width + 2 - pad[1] - pad[3] + (not any(pad)), 20]
            assert_equal_to_twin(shape, {"outs": outs, "kernel": (3, 3), "stride": (1, 1), "pad": pad}, threads=1)
            assert_equal_to_twin([5, 2 * width, 20], {"outs": outs, "stride": (2, 2)}, threads=2)


@pytest.mark.parametrize("threads", [2, 3, 5, 8])
def test_a_team_shares_planes_of_every_size(threads: int) -> None:
    for size, channels, outs in ((7, 64, 200), (14, 32, 48), (40, 8, 16)):
        arguments = {"outs": outs, "kernel": (3, 3), "stride": (1, 1), "pad": (1, 1, 1, 1)}
        with mock.patch.object(conv, "COPY", 4000):
            assert_equal_to_twin([size, size, channels], arguments, threads)
