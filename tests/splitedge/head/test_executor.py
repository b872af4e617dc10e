"""The executor equals its twin bit for bit, operator by operator and over awkward sizes."""

from __future__ import annotations

import gc
import json
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge.errors import InputError, SegmentError, UsageError
from splitedge.head import Head
from splitedge.head import segment as seg
from tests import reference_head
from tests.raising import raises
from tests.segment_builder import Builder

AWKWARD = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 48, 63, 65, 80, 127, 257)


def assert_equal_to_twin(builder: Builder, frames: int = 2) -> None:
    segment = builder.finish()
    head = Head(segment, check_golden=False)
    team = Head(segment, check_golden=False, threads=3)
    tensors = list(range(len(builder.tensors)))
    for _ in range(frames):
        x = builder.codes()
        expected = reference_head.run(segment, x)
        for tensor, got in zip(tensors, head.taps(x, tensors), strict=True):
            np.testing.assert_array_equal(got, expected[tensor], err_msg=f"tensor {tensor}")
        np.testing.assert_array_equal(head.run(x), expected[segment.header.output])
        for tensor, got in zip(tensors, team.taps(x, tensors), strict=True):
            np.testing.assert_array_equal(got, expected[tensor], err_msg=f"tensor {tensor} by three threads")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("channels", AWKWARD)
def test_pointwise_convolution_equals_the_twin(channels: int, bits: int) -> None:
    for outs in (1, 15, 16, 33, 64, 81):
        builder = Builder([3, 5, channels], seed=channels * bits)
        builder.conv(builder.input, outs, bits=bits, lo=3, hi=250)
        assert_equal_to_twin(builder, frames=1)


@pytest.mark.parametrize("rows", AWKWARD)
def test_every_number_of_rows_equals_the_twin(rows: int) -> None:
    for outs in (7, 20, 40, 64, 80):
        builder = Builder([rows, 1, 20], seed=rows)
        builder.conv(builder.input, outs)
        assert_equal_to_twin(builder, frames=1)


def test_dense_layers_on_a_vector_equal_the_twin() -> None:
    builder = Builder([784], seed=3, zero_point=9)
    x = builder.conv(builder.input, 100)
    builder.conv(x, 10, bits=4)
    assert_equal_to_twin(builder)


WINDOWS = [
    # kernel, stride, pad, dilation
    ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((3, 3), (2, 2), (0, 0, 1, 1), (1, 1)),
    ((5, 5), (2, 2), (2, 2, 2, 2), (1, 1)),
    ((3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    ((1, 7), (1, 3), (0, 3, 0, 3), (1, 1)),
    ((2, 3), (2, 1), (1, 0, 0, 2), (1, 1)),
    ((3, 3), (1, 1), (0, 0, 0, 0), (1, 1)),
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("channels", AWKWARD)
def test_depthwise_convolution_equals_the_twin(channels: int, window: tuple[tuple[int, ...], ...]) -> None:
    kernel, stride, pad, dilation = window
    for height, width in ((7, 7), (9, 12)):
        builder = Builder([height, width, channels], seed=channels, zero_point=77)
        builder.conv(builder.input, channels, kernel, stride, pad, dilation, groups=channels)
        assert_equal_to_twin(builder, frames=1)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("channels", "outs", "groups"),
    [(3, 32, 1), (1, 5, 1), (16, 24, 1), (18, 12, 3), (8, 16, 8), (40, 20, 4), (6, 6, 2)],
)
def test_general_convolution_equals_the_twin(
    channels: int, outs: int, groups: int, window: tuple[tuple[int, ...], ...]
) -> None:
    kernel, stride, pad, dilation = window
    for height, width in ((7, 7), (9, 12)):
        builder = Builder([height, width, channels], seed=channels, zero_point=13)
        builder.conv(builder.input, outs, kernel, stride, pad, dilation, groups)
        assert_equal_to_twin(builder, frames=1)


def test_a_window_larger_than_the_plane_equals_the_twin() -> None:
    for groups, outs in ((32, 32), (1, 8)):
        builder = Builder([2, 1, 32], seed=1, zero_point=5)
        builder.conv(builder.input, outs, (5, 5), (1, 1), (2, 2, 2, 2), groups=groups)
        assert_equal_to_twin(builder)


def test_strided_pointwise_convolution_equals_the_twin() -> None:
    builder = Builder([9, 9, 16], seed=1)
    builder.conv(builder.input, 24, stride=(2, 2))
    assert_equal_to_twin(builder)


@pytest.mark.parametrize("size", AWKWARD)
def test_elementwise_operators_equal_the_twin(size: int) -> None:
    builder = Builder([3, 4, size], seed=size, zero_point=100)
    table = builder.random.integers(0, 256, 256).astype(np.uint8)
    a = builder.append(seg.Lut, [3, 4, size], x=builder.input, table=builder.constant(table))
    factors = [float(np.float32(f)) for f in (0.37, 0.81, 0.0042)]
    b = builder.append(
        seg.Add, [3, 4, size], a=builder.input, b=a, multiplier_a=factors[0], multiplier_b=factors[1], lo=0, hi=255
    )
    c = builder.append(seg.Mul, [3, 4, size], a=b, b=a, multiplier=factors[2], lo=5, hi=240)
    pooled = builder.append(
        seg.Pool, [1, 1, size], x=c, kind="avg", kernel=[3, 4], stride=[1, 1], pad=[0] * 4, count_pad=False, multiplier=1.0, lo=0, hi=255
    )  # fmt: skip
    builder.append(seg.Mul, [3, 4, size], a=c, b=pooled, multiplier=factors[2], lo=0, hi=255)
    builder.append(seg.Add, [3, 4, size], a=c, b=pooled, multiplier_a=factors[0], multiplier_b=factors[1], lo=0, hi=255)
    assert_equal_to_twin(builder)


@pytest.mark.parametrize(("kind", "count_pad"), [("max", False), ("avg", False), ("avg", True)])
@pytest.mark.parametrize("channels", [1, 5, 16, 65])
def test_pooling_equals_the_twin(kind: str, count_pad: bool, channels: int) -> None:
    for kernel, stride, pad in (
        ((3, 3), (2, 2), (1, 1, 1, 1)),
        ((2, 2), (2, 2), (0, 0, 0, 0)),
        ((7, 7), (1, 1), (0, 0, 0, 0)),
    ):
        builder = Builder([7, 9, channels], seed=channels, zero_point=40)
        out = [(n + pad[i] + pad[i + 2] - kernel[i]) // stride[i] + 1 for i, n in enumerate((7, 9))]
        zero = 40 if kind == "max" else None
        builder.append(
            seg.Pool, [*out, channels], zero, x=builder.input, kind=kind, kernel=list(kernel), stride=list(stride), pad=list(pad),
            count_pad=count_pad, multiplier=float(np.float32(0.9)), lo=0, hi=255,
        )  # fmt: skip
        assert_equal_to_twin(builder)


def test_operators_that_move_bytes_equal_the_twin() -> None:
    builder = Builder([4, 5, 6], seed=2)
    table = builder.constant(builder.random.integers(0, 256, 256).astype(np.uint8))
    padded = builder.append(seg.Pad, [7, 10, 6], x=builder.input, pad=[1, 2, 2, 3], value=9)
    turned = builder.append(seg.Transpose, [6, 7, 10], x=padded, perm=[2, 0, 1])
    flat = builder.append(seg.Reshape, [7, 60], x=turned)
    joined = builder.append(seg.Concat, [7, 120], inputs=[flat, flat], tables=[-1, table])
    builder.append(seg.Transpose, [120, 7], x=joined, perm=[1, 0])
    builder.append(seg.Softmax, [7, 120], 0, 1 / 256, x=joined, lo=0, hi=255)
    assert_equal_to_twin(builder)


@given(st.data())
def test_a_view_is_what_numpy_calls_strided(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    count = int(np.prod(shape))
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    steps, left = [], count - 1
    for size in sizes:
        steps.append(data.draw(st.integers(0, left // (size - 1) if size > 1 else count)))
        left -= (size - 1) * steps[-1]
    start = data.draw(st.integers(0, left))
    builder = Builder(shape, seed=count)
    builder.append(seg.View, [int(np.prod(sizes))], x=builder.input, start=start, sizes=sizes, steps=steps)
    head = Head(builder.finish(), check_golden=False)
    codes = builder.codes()
    expected = np.lib.stride_tricks.as_strided(codes.reshape(-1)[start:], sizes, steps)
    assert np.array_equal(head.run(codes), expected.reshape(-1))
    assert_equal_to_twin(builder)


@given(st.data())
def test_norms_of_codes_equal_the_twin(data: st.DataObject) -> None:
    blocks, rows, groups, width = (data.draw(st.integers(1, most)) for most in (4, 5, 4, 40))
    builder = Builder([blocks, rows, groups * width], seed=data.draw(st.integers(0, 99)))
    epsilon = data.draw(st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]))
    builder.normalize(builder.input, rows=rows, groups=groups, epsilon=epsilon)
    builder.normalize(builder.input, epsilon=epsilon)
    assert_equal_to_twin(builder, frames=1)


def test_norms_of_constant_codes_yield_the_offsets() -> None:
    builder = Builder([3, 4, 16], seed=3)
    flat = builder.append(seg.Lut, [3, 4, 16], x=builder.input, table=builder.constant(np.full(256, 255, np.uint8)))
    builder.normalize(flat, rows=12, groups=2)
    assert_equal_to_twin(builder, frames=1)
    (found,) = Head(builder.finish(), check_golden=False).taps(builder.codes(), [2])
    assert (found == found[0, 0]).all()


@given(st.data())
def test_resampled_planes_equal_the_twin(data: st.DataObject) -> None:
    height, width, tall, wide = (data.draw(st.integers(1, most)) for most in (7, 7, 12, 12))
    builder = Builder([height, width, data.draw(st.integers(1, 40))], seed=data.draw(st.integers(0, 99)))
    builder.resample(builder.input, tall, wide)
    assert_equal_to_twin(builder, frames=1)


def test_softmax_equals_the_twin_over_wide_and_narrow_rows() -> None:
    for columns in (1, 2, 15, 16, 17, 1000):
        for scale in (1e-3, 0.1, 2.0):
            builder = Builder([3, columns], seed=columns, scale=scale)
            builder.append(seg.Softmax, [3, columns], 0, 1 / 256, x=builder.input, lo=0, hi=255)
            assert_equal_to_twin(builder)


def test_a_team_ends_with_its_head() -> None:
    builder = Builder([8, 8, 16])
    builder.conv(builder.input, 32)
    others = set(threading.enumerate())
    head = Head(builder.finish(), check_golden=False, threads=4)
    members = [thread for thread in threading.enumerate() if thread not in others]
    assert len(members) == 3
    head.run(builder.codes())
    del head
    gc.collect()
    for member in members:
        member.join(10)
    assert not any(member.is_alive() for member in members)


@pytest.mark.parametrize("threads", [0, -1, 65])
def test_an_impossible_number_of_threads_is_refused(threads: int) -> None:
    with raises(UsageError, reason="threads"):
        Head(Builder([4]).finish(), check_golden=False, threads=threads)


def test_a_wrong_shape_or_type_is_refused_in_one_sentence() -> None:
    builder = Builder([4, 4, 3])
    builder.conv(builder.input, 8)
    head = Head(builder.finish(), check_golden=False)
    with raises(InputError, reason="other-tensor"):
        head.run(np.zeros((4, 4, 4), np.uint8))
    with raises(InputError, reason="other-tensor"):
        head.run(np.zeros((4, 4, 3), np.float32))  # type: ignore[arg-type]


def test_a_wrong_golden_hash_is_refused() -> None:
    builder = Builder([4, 4, 3])
    builder.conv(builder.input, 8)
    with raises(SegmentError, reason="golden-answer"):
        Head(builder.finish())


def test_a_segment_without_operators_returns_its_input() -> None:
    builder = Builder([4, 4, 3])
    segment = builder.finish()
    x = builder.codes()
    np.testing.assert_array_equal(Head(segment, check_golden=False).run(x), x)


def test_the_gil_is_free_while_a_head_runs() -> None:
    """Another thread sees many different milliseconds during one long call; with the GIL held it would see the 5 of a switch interval."""
    builder = Builder([96, 96, 64], seed=5)
    x = builder.input
    for _ in range(40):
        x = builder.conv(x, 64, (5, 5), (1, 1), (2, 2, 2, 2))
    head = Head(builder.finish(), check_golden=False)
    worker = threading.Thread(target=head.run, args=(builder.codes(),))
    worker.start()
    seen = set()
    while worker.is_alive():
        seen.add(time.monotonic_ns() // 1_000_000)
    assert len(seen) > 20


def test_operator_timings_name_each_layer_and_its_products() -> None:
    builder = Builder([8, 8, 16])
    x = builder.conv(builder.input, 32)
    builder.conv(x, 32, (3, 3), (1, 1), (1, 1, 1, 1), groups=32)
    timings = Head(builder.finish(), check_golden=False).profile(builder.codes(), repeats=3)
    assert [(t.kind, t.macs) for t in timings] == [("pointwise", 64 * 32 * 16), ("depthwise", 64 * 32 * 9)]
    assert all(t.us > 0 for t in timings)
    json.dumps([t.name for t in timings])
