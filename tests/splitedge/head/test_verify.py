"""A segment with a right hash and hostile contents is refused before a kernel sees a pointer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge.errors import SegmentError
from splitedge.head import Head
from splitedge.head import segment as seg
from splitedge.head.verify import verify
from tests.drawn import drawn
from tests.raising import raises
from tests.segment_builder import Builder


def network() -> Builder:
    """A little of everything."""
    b = Builder([8, 8, 4], seed=1, zero_point=9)
    x = b.conv(b.input, 8, (3, 3), (1, 1), (1, 1, 1, 1))
    y = b.conv(x, 8, (3, 3), (1, 1), (1, 1, 1, 1), groups=8, bits=4)
    y = b.append(seg.Add, [8, 8, 8], a=x, b=y, multiplier_a=0.5, multiplier_b=0.5, lo=0, hi=255)
    y = b.append(seg.Lut, [8, 8, 8], x=y, table=b.constant(np.arange(256, dtype=np.uint8)))
    y = b.append(seg.Concat, [8, 8, 16], inputs=[x, y], tables=[-1, b.constant(np.arange(256, dtype=np.uint8))])
    y = b.append(seg.Pad, [9, 10, 16], x=y, pad=[1, 1, 0, 1], value=0)
    y = b.append(seg.Transpose, [16, 9, 10], x=y, perm=[2, 0, 1])
    y = b.append(seg.Reshape, [9, 10, 16], x=y)
    y = b.append(
        seg.Pool, [1, 1, 16], x=y, **{"kind": "avg"}, kernel=[9, 10], stride=[1, 1], pad=[0] * 4, count_pad=False, multiplier=1.0, lo=0, hi=255
    )  # fmt: skip
    y = b.append(seg.Mul, [9, 10, 16], a=y - 1, b=y, multiplier=1 / 128, lo=0, hi=255)
    y = b.append(seg.Softmax, [9, 10, 16], 0, 1 / 256, x=y, lo=0, hi=255)
    y = b.append(seg.View, [9, 5, 8], x=y, start=8, sizes=[9, 5, 8], steps=[160, 32, 1])
    y = b.normalize(y, rows=45, groups=4)
    b.resample(y, 4, 7)
    return b


def test_the_network_of_these_tests_is_accepted() -> None:
    Head(network().finish(), check_golden=False).run(network().codes())


def tensor(index: int, **changes: Any) -> Callable[[seg.Segment], None]:
    def hurt(segment: seg.Segment) -> None:
        for name, value in changes.items():
            setattr(segment.header.tensors[index], name, value)

    return hurt


def op(index: int, **changes: Any) -> Callable[[seg.Segment], None]:
    def hurt(segment: seg.Segment) -> None:
        for name, value in changes.items():
            assert hasattr(segment.header.ops[index], name)
            setattr(segment.header.ops[index], name, value)

    return hurt


def header(**changes: Any) -> Callable[[seg.Segment], None]:
    def hurt(segment: seg.Segment) -> None:
        for name, value in changes.items():
            setattr(segment.header, name, value)

    return hurt


def number(field: str, index: int, value: Any) -> Callable[[seg.Segment], None]:
    """The first number of a constant."""

    def hurt(segment: seg.Segment) -> None:
        offset = getattr(segment.header.ops[index], field)
        segment.blob = segment.blob.copy()
        segment.blob[offset : offset + 4] = np.frombuffer(value.tobytes(), np.uint8)

    return hurt


def overflowing_bias(segment: seg.Segment) -> None:
    first = segment.header.ops[0]
    assert isinstance(first, seg.Conv)
    segment.blob = segment.blob.copy()
    segment.blob[first.bias : first.bias + 4] = np.frombuffer(np.int32(2**31 - 1).tobytes(), np.uint8)


def with_multiplier(value: float) -> Callable[[seg.Segment], None]:
    def change(segment: seg.Segment) -> None:
        first = segment.header.ops[0]
        assert isinstance(first, seg.Conv)
        segment.blob = segment.blob.copy()
        segment.blob[first.multiplier : first.multiplier + 4] = np.frombuffer(np.float32(value).tobytes(), np.uint8)

    return change


def meaningless_code(segment: seg.Segment) -> None:
    first = segment.header.ops[0]
    assert isinstance(first, seg.Conv)
    segment.blob = segment.blob.copy()
    segment.blob[first.weight] = 255


HOSTILE: list[tuple[str, Callable[[seg.Segment], None], str]] = [
    ("a tensor beyond the arena", tensor(1, offset=1 << 20), "outside-arena"),
    ("a negative offset", tensor(1, offset=-64), "offset"),
    ("an odd offset", tensor(1, offset=1), "offset"),
    ("an enormous offset", tensor(1, offset=(1 << 62)), "outside-arena"),
    ("an enormous shape", tensor(1, shape=[1 << 20, 1 << 20]), "elements"),
    ("an empty shape", tensor(1, shape=[]), "shape"),
    ("a shape with a zero", tensor(1, shape=[8, 0, 8]), "shape"),
    ("five axes", tensor(1, shape=[1] * 5), "shape"),
    ("an infinite scale", tensor(1, scale=math.inf), "scale"),
    ("a scale that is no float32", tensor(1, scale=0.1), "scale"),
    ("a zero scale", tensor(1, scale=0.0), "scale"),
    ("a zero point of 256", tensor(1, zero_point=256), "zero-point"),
    ("an arena over the limit", header(arena_bytes=1 << 40), "memory"),
    ("an input that does not exist", header(input=99), "unknown-end"),
    ("an output that is never written", header(output=-1), "unknown-end"),
    ("an operator's input that does not exist", op(0, x=99), "unknown-tensor"),
    ("a negative tensor", op(0, x=-1), "unknown-tensor"),
    ("reading before writing", op(0, x=5), "read-before-written"),
    ("writing twice", op(1, out=1), "written-twice"),
    ("writing over the input", op(0, out=0), "written-twice"),
    ("overlap with a living tensor", tensor(2, offset=0), "overlap"),
    ("weights outside the blob", op(0, weight=1 << 30), "outside-constants"),
    ("weights at a negative offset", op(0, weight=-64), "outside-constants"),
    ("a bias outside the blob", op(0, bias=1 << 30), "outside-constants"),
    ("a multiplier outside the blob", op(0, multiplier=1 << 30), "outside-constants"),
    ("nine bits", op(0, bits=9), "weight-bits"),
    ("one bit", op(0, bits=1), "weight-bits"),
    ("groups that do not divide", op(0, groups=3), "groups"),
    ("no groups", op(0, groups=0), "groups"),
    ("a zero stride", op(0, stride=[0, 1]), "window"),
    ("a negative pad", op(0, pad=[-1, 1, 1, 1]), "window"),
    ("three pads", op(0, pad=[1, 1, 1]), "window"),
    ("a kernel of three axes", op(0, kernel=[3, 3, 3]), "window"),
    ("more padding than window", op(0, pad=[3, 1, 3, 1]), "padding"),
    ("a stride that does not fit the output", op(0, stride=[2, 1]), "output-shape"),
    ("a huge dilation", op(0, dilation=[60000, 1]), "output-shape"),
    ("a view before its tensor", op(11, start=-1), "outside-tensor"),
    ("a view beyond its tensor", op(11, start=9 * 160 - 8 * 160 - 4 * 32 - 7), "outside-tensor"),
    ("a view with a negative step", op(11, steps=[160, -32, 1]), "shapes-differ"),
    ("a view with an enormous step", op(11, steps=[1 << 62, 32, 1]), "shapes-differ"),
    ("a view that wraps around", op(11, start=1 << 62), "outside-tensor"),
    ("a view of other sizes", op(11, sizes=[9, 5, 9]), "shapes-differ"),
    ("a view of no elements", op(11, sizes=[9, 0, 8]), "shapes-differ"),
    ("a view of five axes", op(11, sizes=[9, 5, 8, 1, 1], steps=[160, 32, 1, 0, 0]), "shapes-differ"),
    ("a view without axes", op(11, sizes=[], steps=[]), "shapes-differ"),
    ("a norm of rows that do not divide", op(12, rows=7), "groups"),
    ("a norm of no rows", op(12, rows=0), "groups"),
    ("a norm of more rows than there are", op(12, rows=90), "groups"),
    ("a norm of groups that do not divide", op(12, groups=3), "groups"),
    ("a norm of no groups", op(12, groups=0), "groups"),
    ("a norm without an epsilon", op(12, epsilon=0.0), "epsilon"),
    ("a norm with an infinite epsilon", op(12, epsilon=math.inf), "epsilon"),
    ("a norm with codes beyond a byte", op(12, hi=256), "clamp"),
    ("a norm with factors beyond the constants", op(12, gamma=1 << 30), "outside-constants"),
    ("a norm with offsets that are not finite", number("beta", 12, np.float32(np.nan)), "constant"),
    ("a resized plane of other rows", op(13, rows=1 << 30), "outside-constants"),
    ("a row before the plane", number("rows", 13, np.int32(-1)), "outside-tensor"),
    ("a row behind the plane", number("rows", 13, np.int32(9)), "outside-tensor"),
    ("a column behind the plane", number("columns", 13, np.int32(5)), "outside-tensor"),
    ("a weight above one", number("row_weights", 13, np.float32(1.5)), "constant"),
    ("a weight that is no number", number("column_weights", 13, np.float32(np.nan)), "constant"),
    ("a resized plane of another scale", tensor(14, scale=2.0), "scale-change"),
    ("a resized plane of other channels", tensor(14, shape=[4, 7, 4]), "shapes-differ"),
    ("codes beyond a byte", op(0, hi=256), "clamp"),
    ("an empty range of codes", op(0, lo=9, hi=8), "clamp"),
    ("a multiplier that is not finite", op(2, multiplier_a=math.nan), "multiplier"),
    ("a negative multiplier", op(2, multiplier_b=-1.0), "multiplier"),
    ("sums of different shapes", op(2, b=0), "shapes-differ"),
    ("a table outside the blob", op(3, table=1 << 30), "outside-constants"),
    ("a table that crosses the end", op(3, table=1 << 12), "outside-constants"),
    ("a concatenation table outside", op(4, tables=[-1, -64]), "outside-constants"),
    ("a missing table", op(4, tables=[-1]), "shapes-differ"),
    ("an empty concatenation", op(4, inputs=[], tables=[]), "shapes-differ"),
    ("padding that does not fit", op(5, pad=[2, 1, 0, 1]), "shapes-differ"),
    ("negative padding", op(5, pad=[-1, 1, 2, 1]), "shapes-differ"),
    ("a padding code of 300", op(5, value=300), "shapes-differ"),
    ("an axis twice", op(6, perm=[2, 2, 1]), "shapes-differ"),
    ("an axis too many", op(6, perm=[2, 0, 1, 3]), "shapes-differ"),
    ("a reshape to another size", tensor(8, shape=[9, 10, 15]), "shapes-differ"),
    ("a window beyond the plane", op(8, kernel=[9, 9]), "output-shape"),
    ("a product of other shapes", tensor(9, shape=[1, 2, 8]), "shapes-differ"),
    ("softmax to another shape", tensor(11, shape=[9, 10, 8]), "shapes-differ"),
    ("a sum that could overflow", overflowing_bias, "overflow"),
    ("an infinite multiplier in the blob", with_multiplier(np.inf), "multiplier"),
    ("a multiplier that no int32 survives", with_multiplier(1e9), "multiplier-too-large"),
    ("a weight code without meaning", meaningless_code, "weight-code"),
]


@pytest.mark.parametrize(("hurt", "reason"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_hostile_contents_are_refused(hurt: Callable[[seg.Segment], None], reason: str) -> None:
    segment = network().finish()
    hurt(segment)
    with raises(SegmentError, reason=reason):
        verify(segment)


def encoder() -> Builder:
    """Every operator of a transformer; x is 1, qkv 2, heads 3, sum 4, norm 5, hidden 6, view 7."""
    b = Builder([6], seed=2, dtype="i32")
    x = b.embed(b.input, 12, vocabulary=50)
    heads = b.attention(b.linear(x, 36), 3, ids=b.input)
    x = b.norm(b.linear(heads, 12, residual=x))
    x = b.linear(x, 20, bits=4, activation="gelu")
    b.append(seg.Reshape, [3, 40], dtype="f32", x=x)
    return b


def constant(op_index: int, name: str, value: float) -> Callable[[seg.Segment], None]:
    """Put a number where the operator's field ``name`` points."""

    def hurt(segment: seg.Segment) -> None:
        place = getattr(segment.header.ops[op_index], name)
        segment.blob = segment.blob.copy()
        segment.blob[place : place + 4] = np.frombuffer(np.float32(value).tobytes(), np.uint8)

    return hurt


HOSTILE_ENCODER: list[tuple[str, Callable[[seg.Segment], None], str]] = [
    ("a stream with a scale", tensor(1, scale=2.0), "scale-of-type"),
    ("a stream with a zero point", tensor(1, zero_point=1), "scale-of-type"),
    ("a stream that ends beyond the arena", header(arena_bytes=300), "outside-arena"),
    ("floats where they overlap", tensor(2, offset=64), "overlap"),
    ("token ids as the output", header(output=0), "yields-ids"),
    ("an embedding of codes", tensor(0, dtype="u8"), "types"),
    ("a product of codes", tensor(1, dtype="u8"), "types"),
    ("a product into codes", tensor(6, dtype="u8"), "types"),
    ("a view of another type", tensor(7, dtype="u8"), "types"),
    ("token ids that are floats", op(2, ids=1), "types"),
    ("token ids that do not exist", op(2, ids=-2), "unknown-tensor"),
    ("an embedding of other tokens", tensor(1, shape=[5, 12]), "shapes-differ"),
    ("an empty vocabulary", op(0, vocabulary=0), "vocabulary"),
    ("a vocabulary beyond the blob", op(0, vocabulary=1 << 20), "outside-constants"),
    ("an endless vocabulary", op(0, vocabulary=1 << 60), "vocabulary"),
    ("nine bits of embedding", op(0, bits=9), "weight-bits"),
    ("positions outside", op(0, position=1 << 20), "outside-constants"),
    ("scales outside", op(0, scales=-64), "outside-constants"),
    ("an infinite scale", constant(0, "scales", math.inf), "constant"),
    ("a bias that is no number", constant(1, "bias", math.nan), "constant"),
    ("a scale that is no number", constant(1, "scales", math.nan), "constant"),
    ("weights outside", op(1, weight=1 << 20), "outside-constants"),
    ("one bit", op(1, bits=1), "weight-bits"),
    ("a residual of another shape", op(3, residual=2), "shapes-differ"),
    ("a residual from the future", op(3, residual=6), "read-before-written"),
    ("a residual that does not exist", op(3, residual=-2), "unknown-tensor"),
    ("rows that do not fit", tensor(2, shape=[5, 36]), "shapes-differ"),
    ("no heads", op(2, heads=0), "heads"),
    ("heads that do not divide", op(2, heads=5), "heads"),
    ("a negative factor", op(2, factor=-1.0), "factor"),
    ("an infinite factor", op(2, factor=math.inf), "factor"),
    ("a negative token", op(2, pad=-1), "padding-token"),
    ("queries without keys", tensor(3, shape=[6, 9]), "shapes-differ"),
    ("a norm of another shape", tensor(5, shape=[12, 6]), "shapes-differ"),
    ("a gamma outside", op(4, gamma=1 << 20), "outside-constants"),
    ("a beta that is no number", constant(4, "beta", math.nan), "constant"),
    ("no epsilon", op(4, epsilon=0.0), "epsilon"),
    ("an epsilon that is no number", op(4, epsilon=math.nan), "epsilon"),
]


def picture() -> Builder:
    """The operators around a picture's tokens; patches are 1, positions 2, the mean 3."""
    b = Builder([4, 6, 3], seed=3, dtype="f32")
    x = b.append(seg.Patches, [6, 12], dtype="f32", x=b.input, size=2)
    x = b.append(seg.Position, [7, 12], dtype="f32", x=x, table=b.floats(7, 12))
    b.append(seg.Mean, [12], dtype="f32", x=x, first=1, count=6)
    return b


HOSTILE_PICTURE: list[tuple[str, Callable[[seg.Segment], None], str]] = [
    ("squares of no size", op(0, size=0), "shapes-differ"),
    ("squares that do not divide", op(0, size=3), "shapes-differ"),
    ("squares of another size", op(0, size=1), "shapes-differ"),
    ("squares of a row", tensor(0, shape=[24, 3]), "shapes-differ"),
    ("squares of codes", tensor(0, dtype="u8"), "types"),
    ("fewer positions than rows", tensor(2, shape=[5, 12]), "shapes-differ"),
    ("positions of another width", tensor(2, shape=[12, 7]), "shapes-differ"),
    ("positions outside", op(1, table=1 << 20), "outside-constants"),
    ("a position that is no number", constant(1, "table", math.nan), "constant"),
    ("a mean of no rows", op(2, count=0), "mean-rows"),
    ("a mean of too many rows", op(2, count=7), "mean-rows"),
    ("a mean of rows before the first", op(2, first=-1), "mean-rows"),
    ("a mean of rows behind the last", op(2, first=7, count=1), "mean-rows"),
    ("a mean of another width", tensor(3, shape=[6]), "shapes-differ"),
]


@pytest.mark.parametrize(
    ("hurt", "reason"), [case[1:] for case in HOSTILE_PICTURE], ids=[case[0] for case in HOSTILE_PICTURE]
)
def test_hostile_pictures_are_refused(hurt: Callable[[seg.Segment], None], reason: str) -> None:
    segment = picture().finish()
    verify(segment)
    hurt(segment)
    with raises(SegmentError, reason=reason):
        verify(segment)


@pytest.mark.parametrize(
    ("hurt", "reason"), [case[1:] for case in HOSTILE_ENCODER], ids=[case[0] for case in HOSTILE_ENCODER]
)
def test_hostile_encoders_are_refused(hurt: Callable[[seg.Segment], None], reason: str) -> None:
    segment = encoder().finish()
    verify(segment)
    hurt(segment)
    with raises(SegmentError, reason=reason):
        verify(segment)


def windows() -> Builder:
    """Operators for windows and gates; turned is 1, the attention 2, gathered 3, the gate 4, its codes 8, values 9."""
    b = Builder([8, 36], seed=4, dtype="f32")
    x = b.window_attention(b.rotary(b.input, 6, 4, 4), 3, 2)
    x = b.gather(x, 10)
    x = b.append(seg.Gate, [10, 6], dtype="f32", x=x, **{"kind": "silu"})
    y = b.append(seg.Function, [10, 6], dtype="f32", x=b.rms_norm(x), **{"kind": "relu"})
    x = b.append(seg.Sum, [10, 6], dtype="f32", a=x, b=y)
    x = b.append(seg.Quantize, [60], 5, 0.5, x=x)
    x = b.append(seg.Dequantize, [5, 12], dtype="f32", x=x)
    b.append(seg.View, [12, 5], dtype="f32", x=x, start=0, sizes=[12, 5], steps=[1, 12])
    return b


def place(value: int) -> Callable[[seg.Segment], None]:
    """Let the bias of the attention have this place."""

    def hurt(segment: seg.Segment) -> None:
        at = segment.header.ops[1].places  # type: ignore[union-attr]
        segment.blob = segment.blob.copy()
        segment.blob[at : at + 4] = np.frombuffer(np.int32(value).tobytes(), np.uint8)

    return hurt


def row(value: int) -> Callable[[seg.Segment], None]:
    """Let the gather read this row."""

    def hurt(segment: seg.Segment) -> None:
        place = segment.header.ops[2].rows  # type: ignore[union-attr]
        segment.blob = segment.blob.copy()
        segment.blob[place : place + 4] = np.frombuffer(np.int32(value).tobytes(), np.uint8)

    return hurt


HOSTILE_WINDOWS: list[tuple[str, Callable[[seg.Segment], None], str]] = [
    ("turns of no columns", op(0, size=0), "heads"),
    ("turns of odd groups", op(0, size=3), "heads"),
    ("turns of columns behind the last", op(0, heads=10), "heads"),
    ("turns of no heads", op(0, heads=0), "heads"),
    ("no positions", op(0, tokens=0), "shapes-differ"),
    ("positions that do not divide the rows", op(0, tokens=3), "shapes-differ"),
    ("positions beyond the constants", op(0, table=1 << 20), "outside-constants"),
    ("a factor of a position that is no number", constant(0, "table", math.nan), "constant"),
    ("no windows", op(1, windows=0), "windows"),
    ("negative windows", op(1, windows=-2), "windows"),
    ("windows that do not divide the rows", op(1, windows=3), "windows"),
    ("padding in windows", op(1, ids=0), "types"),
    ("no heads in windows", op(1, heads=0), "heads"),
    ("a bias beyond the constants", op(1, bias=1 << 20), "outside-constants"),
    ("places beyond the constants", op(1, places=1 << 20), "outside-constants"),
    ("a place behind the last value", place(5), "bias"),
    ("a place before the first value", place(-1), "bias"),
    ("a bias without values", op(1, values=0), "bias"),
    ("a bias of too many values", op(1, values=17), "bias"),
    ("a mask beyond the constants", op(1, mask=-64), "outside-constants"),
    ("a bias that is no number", constant(1, "bias", math.inf), "constant"),
    ("a mask that is no number", constant(1, "mask", -math.inf), "constant"),
    ("a negative factor", op(1, factor=-1.0), "factor"),
    ("windows without keys", tensor(2, shape=[8, 9]), "shapes-differ"),
    ("a row behind the last", row(8), "outside-tensor"),
    ("a row before the first", row(-2), "outside-tensor"),
    ("rows beyond the constants", op(2, rows=1 << 20), "outside-constants"),
    ("rows of another width", tensor(3, shape=[12, 10]), "shapes-differ"),
    ("a gate of another width", tensor(4, shape=[6, 10]), "shapes-differ"),
    ("a norm of another shape", tensor(5, shape=[6, 10]), "shapes-differ"),
    ("a norm without an epsilon", op(4, epsilon=0.0), "epsilon"),
    ("a gamma that is no number", constant(4, "gamma", math.nan), "constant"),
    ("a function of another shape", tensor(6, shape=[6, 10]), "shapes-differ"),
    ("a sum of another shape", op(6, a=3), "shapes-differ"),
    ("codes of fewer values", tensor(8, shape=[59]), "shapes-differ"),
    ("values of fewer codes", tensor(9, shape=[59]), "shapes-differ"),
    ("a sum into codes", tensor(7, dtype="u8"), "types"),
    ("a view of values as codes", tensor(10, dtype="u8"), "types"),
    ("a view behind the last value", op(9, start=1), "outside-tensor"),
    ("codes with an endless scale", tensor(8, scale=math.inf), "scale"),
]


@pytest.mark.parametrize(
    ("hurt", "reason"), [case[1:] for case in HOSTILE_WINDOWS], ids=[case[0] for case in HOSTILE_WINDOWS]
)
def test_hostile_windows_are_refused(hurt: Callable[[seg.Segment], None], reason: str) -> None:
    segment = windows().finish()
    verify(segment)
    hurt(segment)
    with raises(SegmentError, reason=reason):
        verify(segment)


def test_sums_of_transformers_that_could_overflow_are_refused() -> None:
    wide = Builder([1, 70_000], dtype="f32")
    wide.linear(wide.input, 1)
    codes = np.full(70_000, 254, np.uint8)  # 127 each
    wide.blob = codes.tobytes() + wide.blob[70_000:]
    with raises(SegmentError, reason="overflow"):
        verify(wide.finish())
    long = Builder([70_000, 3], dtype="f32")
    long.attention(long.input, 1)
    with raises(SegmentError, reason="overflow"):
        verify(long.finish())


def test_scratch_without_bound_is_refused() -> None:
    builder = Builder([1 << 20, 16, 1], dtype="f32")
    builder.linear(builder.input, 1)
    with raises(SegmentError, reason="memory"):
        verify(builder.finish())


def test_an_operator_may_not_write_over_its_own_input() -> None:
    builder = Builder([8, 8, 8])
    builder.conv(builder.input, 8)
    builder.tensors[1].offset = 0
    with raises(SegmentError, reason="overlap"):
        verify(builder.finish())


def test_a_reshape_may_share_its_input_exactly() -> None:
    builder = Builder([8, 8, 8])
    flat = builder.append(seg.Reshape, [512], x=builder.input)
    builder.tensors[flat].offset = 0
    codes = builder.codes()
    assert Head(builder.finish(), check_golden=False).run(codes).tolist() == codes.reshape(-1).tolist()
    builder.append(seg.Lut, [8, 8, 8], x=builder.input, table=builder.constant(np.arange(256, dtype=np.uint8)))
    builder.tensors[-1].offset = 0
    with raises(SegmentError, reason="overlap"):
        verify(builder.finish())


def test_computation_without_bound_is_refused() -> None:
    builder = Builder([1000, 1000, 1])
    builder.append(
        seg.Conv, [1000, 1000, 256], x=builder.input, bits=8, weight=0, bias=0, multiplier=0, kernel=[101, 101], stride=[1, 1], dilation=[1, 1],
        pad=[50] * 4, groups=1, lo=0, hi=255,
    )  # fmt: skip
    builder.constant(np.zeros(256 * 101 * 101, np.uint8))
    with raises(SegmentError, reason="computation"):
        verify(builder.finish())


def test_pooling_without_bound_is_refused() -> None:
    """1.8e13 cells to look at, in 16 MiB of tensors."""
    builder = Builder([4095, 4095, 1])
    builder.append(
        seg.Pool, [2048, 2048, 1], x=builder.input, **{"kind": "avg"}, kernel=[2048, 2048], stride=[1, 1], pad=[0] * 4,
        count_pad=False, multiplier=1.0, lo=0, hi=255,
    )  # fmt: skip
    with raises(SegmentError, reason="computation"):
        verify(builder.finish())


def test_constants_that_operators_share_are_refused() -> None:
    """Each operator unpacks its own copy: a small file could want any amount of memory."""
    builder = Builder([4, 4, 64])
    x = builder.conv(builder.input, 64)
    for _ in range(3):
        x = builder.conv(x, 64)
    segment = builder.finish()
    first = segment.header.ops[0]
    for op in segment.header.ops[1:]:
        assert isinstance(op, seg.Conv)
        assert isinstance(first, seg.Conv)
        op.weight, op.bias, op.multiplier = first.weight, first.bias, first.multiplier
    segment.blob = segment.blob[: len(segment.blob) // 4]
    with raises(SegmentError, reason="constants-twice"):
        verify(segment)


def test_a_concatenation_of_too_many_is_refused() -> None:
    builder = Builder([4])
    builder.append(seg.Concat, [4 * 10_000], inputs=[builder.input] * 10_000, tables=[-1] * 10_000)
    with raises(SegmentError, reason="tensors-read"):
        verify(builder.finish())


def test_a_sum_of_infinities_is_refused() -> None:
    builder = Builder([4], zero_point=9)
    huge = float(np.float32(3e38))
    builder.append(seg.Add, [4], a=builder.input, b=builder.input, multiplier_a=huge, multiplier_b=huge, lo=0, hi=255)
    with raises(SegmentError, reason="multiplier"):
        verify(builder.finish())


def test_maximum_pooling_may_not_change_the_codes_meaning() -> None:
    builder = Builder([4, 4, 8], zero_point=9)
    builder.append(
        seg.Pool, [2, 2, 8], 10, x=builder.input, **{"kind": "max"}, kernel=[2, 2], stride=[2, 2], pad=[0] * 4, count_pad=False,
        multiplier=1.0, lo=0, hi=255,
    )  # fmt: skip
    with raises(SegmentError, reason="scale-change"):
        verify(builder.finish())


def test_a_family_of_reshapes_may_share_its_bytes() -> None:
    builder = Builder([8, 8, 8])
    flat = builder.append(seg.Reshape, [512], x=builder.input)
    rows = builder.append(seg.Reshape, [64, 8], x=flat)
    other = builder.append(seg.Reshape, [8, 64], x=builder.input)
    for alias in (flat, rows, other):
        builder.tensors[alias].offset = 0
    wide = builder.append(seg.Reshape, [512], x=other)
    builder.append(seg.Concat, [1024], inputs=[flat, wide], tables=[-1, -1])
    codes = builder.codes()
    out = Head(builder.finish(), check_golden=False).run(codes)
    assert out.tolist() == codes.reshape(-1).tolist() * 2


_GOOD = network().finish()


@pytest.mark.parametrize("good", [_GOOD, encoder().finish(), windows().finish()], ids=["network", "encoder", "windows"])
@drawn(300)
@given(data=st.data())
def test_any_change_of_the_header_is_refused_or_harmless(good: seg.Segment, data: st.DataObject) -> None:
    """Whatever one number in the header becomes, the verifier refuses it or the executor runs it within its arena."""
    tree = msgspec.json.decode(msgspec.json.encode(good.header))
    places = list(_numbers(tree))
    holder, key = data.draw(st.sampled_from(places))
    before = holder[key]
    holder[key] = data.draw(st.one_of(st.integers(-(2**40), 2**40), st.integers(-2, 300), st.just(before * 2)))
    try:
        segment = seg.Segment(msgspec.convert(tree, seg.Header), copy.deepcopy(good.blob))
        head = Head(segment, check_golden=False)
    except (SegmentError, msgspec.ValidationError):
        return
    codes = np.zeros(head.input.shape, seg.DTYPES[head.input.dtype])
    head._arena[-8:] = 99
    head.run(codes)
    assert head._arena[-8:].tolist() == [99] * 8


def _numbers(tree: Any) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from _numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield tree, key
