"""Any convolution that the verifier accepts equals its twin, whatever its sizes."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from splitedge.head import Head
from tests import reference_head
from tests.drawn import drawn
from tests.segment_builder import Builder

SMALL = st.integers(1, 12)


@drawn(150)
@given(
    size=st.tuples(SMALL, SMALL),
    groups=st.sampled_from([1, 1, 2, 3, 16, 40]),
    widths=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    depthwise=st.booleans(),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pad=st.tuples(*[st.integers(0, 6)] * 4),
    bits=st.integers(2, 8),
    threads=st.sampled_from([1, 1, 2]),
    seed=st.integers(0, 2**32),
)
def test_any_convolution_equals_the_twin(
    size: tuple[int, int],
    groups: int,
    widths: tuple[int, int],
    depthwise: bool,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    pad: tuple[int, int, int, int],
    bits: int,
    threads: int,
    seed: int,
) -> None:
    channels, outs = (
        (groups, groups)
        if depthwise
        else (groups * widths[0] % 97 // groups * groups or groups, groups * (-(-widths[1] // groups)))
    )
    pad = tuple(min(pad[i], (kernel[i % 2] - 1) * dilation[i % 2]) for i in range(4))  # type: ignore[assignment]
    for axis in (0, 1):
        room = size[axis] + pad[axis] + pad[axis + 2] - (kernel[axis] - 1) * dilation[axis] - 1
        assume(room >= 0 and room // stride[axis] * stride[axis] - pad[axis] < size[axis])
    builder = Builder([*size, channels], seed=seed, zero_point=seed % 256)
    builder.conv(builder.input, outs, kernel, stride, pad, dilation, groups, bits)
    segment, codes = builder.finish(), builder.codes()
    found = Head(segment, check_golden=False, threads=threads).run(codes)
    np.testing.assert_array_equal(found, reference_head.run(segment, codes)[segment.header.output])
