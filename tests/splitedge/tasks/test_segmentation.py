"""The class of each pixel: decoding, and answers as bytes."""

from __future__ import annotations

import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge import errors
from splitedge.protocol.messages import Segmentation
from splitedge.tasks import segmentation

CLASSES, BINARY = Segmentation(0), Segmentation(None, 0.5)


def test_the_greatest_value_decides_and_among_equals_the_lower_class() -> None:
    values = np.zeros((3, 2, 2), np.float32)
    values[1, 0, 0], values[2, 0, 1], values[[0, 2], 1, 1] = 1, 2, 3
    assert segmentation.decode(values, CLASSES).tolist() == [[1, 2], [0, 0]]
    last = Segmentation(2)
    np.testing.assert_array_equal(
        segmentation.decode(values.transpose(1, 2, 0), last), segmentation.decode(values, CLASSES)
    )


def test_one_value_for_each_pixel_is_compared_with_the_threshold() -> None:
    found = segmentation.decode(np.array([[[0.5, 0.6], [-1.0, 2.0]]], np.float32), BINARY)
    assert (found.tolist(), found.dtype) == ([[0, 1], [0, 1]], np.uint8)


def test_more_than_256_classes_take_two_bytes() -> None:
    values = np.zeros((300, 2, 3), np.float32)
    values[299, 1, 2] = 1
    found = segmentation.decode(values, CLASSES)
    assert (found.dtype, int(found[1, 2])) == (np.uint16, 299)
    np.testing.assert_array_equal(segmentation.unpack(segmentation.pack(found), [2, 3], 300), found)


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12), st.sampled_from([2, 21, 256, 257, 65536]))
def test_packed_maps_come_back(seed: int, height: int, width: int, classes: int) -> None:
    kind = np.uint8 if classes <= 256 else np.uint16
    found = np.random.default_rng(seed).integers(0, classes, (height, width)).astype(kind)
    np.testing.assert_array_equal(segmentation.unpack(segmentation.pack(found), [height, width], classes), found)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_map_or_an_error(data: bytes) -> None:
    for payload in (data, zlib.compress(data)):
        with suppress(errors.ProtocolError):
            found = segmentation.unpack(payload, [3, 3], 2)
            assert (found.shape, bool(found.max() < 2)) == ((3, 3), True)


def test_a_bomb_and_trailing_bytes_are_refused() -> None:
    whole = segmentation.pack(np.zeros((3, 3), np.uint8))
    for data in (
        zlib.compress(bytes(10**8)),
        whole + b"x",
        whole[:-1],
        segmentation.pack(np.full((3, 3), 2, np.uint8)),
    ):
        with pytest.raises(errors.ProtocolError):
            segmentation.unpack(data, [3, 3], 2)


def test_shares_name_the_largest_class_first() -> None:
    assert segmentation.shares(np.array([[1, 1, 0], [2, 1, 0]], np.uint8)) == [(1, 0.5), (0, 2 / 6), (2, 1 / 6)]


@pytest.mark.parametrize(
    ("shape", "task"),
    [([3, 8, 8], BINARY), ([1, 8, 8], Segmentation(1)), ([3, 8], CLASSES), ([3, 8, 8], Segmentation(3))],
)
def test_an_output_that_is_no_map_is_refused(shape: list[int], task: Segmentation) -> None:
    if shape == [1, 8, 8]:
        assert segmentation.shape(shape, BINARY) == [8, 8]
    with pytest.raises(errors.ModelError) as error:
        segmentation.shape(shape, task)
    assert error.value.data["reason"] == "map"
