"""Operators of a head equal their twins at the ends of their types: zero points, codes and float32."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge.head import Head
from splitedge.head import segment as seg
from tests import ends, reference_head
from tests.drawn import drawn
from tests.segment_builder import Builder

MOST = float(np.nextafter(np.float32(1e30), np.float32(0)))  # a factor that the verifier lets pass
FACTORS = st.floats(0, MOST, width=32) | st.floats(0, 4, width=32) | st.sampled_from([0.0, 2.0**-149, 0.5, 1.0, MOST])  # fmt: skip
SHAPES = st.tuples(*[st.sampled_from([1, 2, 5])] * 2, st.sampled_from([1, 3, 16, 17, 33]))


def assert_equal_to_twin(builder: Builder, x: np.ndarray) -> None:
    segment = builder.finish()
    with np.errstate(all="ignore"):  # the test's own look at values beyond float32
        expected = reference_head.run(segment, x)
    tensors = list(range(len(builder.tensors)))
    for tensor, got in zip(tensors, Head(segment, check_golden=False).taps(x, tensors), strict=True):
        np.testing.assert_array_equal(got, expected[tensor], err_msg=f"tensor {tensor}")


@drawn(100)
@given(
    SHAPES, st.tuples(*[ends.zero_points] * 3), st.tuples(*[FACTORS] * 3), st.tuples(ends.codes, ends.codes), st.data()
)
def test_sums_products_and_means(
    shape: tuple[int, int, int], zeros: tuple[int, ...], factors: tuple[float, ...], range_: tuple[int, int], data: st.DataObject
) -> None:  # fmt: skip
    lo, hi = sorted(range_)
    builder = Builder(shape, zero_point=zeros[0])
    x = builder.input
    total = builder.append(seg.Add, shape, zeros[1], a=x, b=x, multiplier_a=factors[0], multiplier_b=factors[1], lo=lo, hi=hi)  # fmt: skip
    builder.append(seg.Mul, shape, zeros[2], a=total, b=x, multiplier=factors[2], lo=lo, hi=hi)
    window = {"kernel": list(shape[:2]), "stride": [1, 1], "pad": [0] * 4, "multiplier": factors[1]}
    builder.append(seg.Pool, [1, 1, shape[2]], zeros[2], x=total, kind="avg", count_pad=True, lo=lo, hi=hi, **window)
    assert_equal_to_twin(builder, data.draw(ends.bytes_(shape)))


@drawn(60)
@given(st.sampled_from([1, 2, 16, 17, 300]), ends.zero_points, FACTORS, st.data())
def test_softmax(columns: int, zero: int, scale: float, data: st.DataObject) -> None:
    builder = Builder([3, columns], scale=max(min(scale, 1e4), 1e-6), zero_point=zero)
    builder.append(seg.Softmax, [3, columns], zero, 1 / 256, x=builder.input, lo=0, hi=255)
    assert_equal_to_twin(builder, data.draw(ends.bytes_((3, columns))))


@drawn(100)
@given(SHAPES, ends.zero_points, st.sampled_from([2, 3, 8]), st.sampled_from([1, 16, 17]), st.data())
def test_convolutions(shape: tuple[int, int, int], zero: int, bits: int, outs: int, data: st.DataObject) -> None:
    builder = Builder(shape, seed=bits, zero_point=zero)
    builder.conv(builder.input, outs, (3, 3), pad=(1, 1, 1, 1), bits=bits)
    builder.conv(builder.input, shape[2], (3, 3), pad=(1, 1, 1, 1), groups=shape[2], bits=bits)
    builder.conv(builder.input, outs, bits=bits)
    assert_equal_to_twin(builder, data.draw(ends.bytes_(shape)))


@pytest.mark.parametrize("operator", ["linear", "gelu", "norm", "residual"])
@drawn(60)
@given(shape=st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 2, 16, 17, 40])), data=st.data())
def test_streams_of_float32(operator: str, shape: tuple[int, int], data: st.DataObject) -> None:
    builder = Builder(shape, dtype="f32")
    if operator == "norm":
        builder.norm(builder.input)
    else:
        builder.linear(
            builder.input, shape[1], activation="gelu" if operator == "gelu" else "none",
            residual=builder.input if operator == "residual" else -1,
        )  # fmt: skip
    assert_equal_to_twin(builder, data.draw(ends.reals(shape)))


@drawn(40)
@given(shape=st.tuples(st.sampled_from([1, 2, 17]), st.sampled_from([6, 12, 48])), data=st.data())
def test_attention(shape: tuple[int, int], data: st.DataObject) -> None:
    builder = Builder(shape, dtype="f32")
    builder.attention(builder.input, 2)
    assert_equal_to_twin(builder, data.draw(ends.reals(shape, 1e15)))
