"""JPEG as a stage of the codec: what goes in comes out nearly, and nothing that is not the plan's picture is decoded."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from splitedge import errors
from splitedge.codec import jpeg
from tests.drawn import drawn
from tests.raising import raises


def smooth(h: int, w: int, c: int) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    planes = [128 + 100 * np.sin((y * (k + 1) + x) / 9) for k in range(c)]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize("shape", [(17, 23, 3), (28, 28, 1), (1, 1, 3), (224, 224, 3)])
def test_a_picture_comes_back_nearly_and_nearer_at_more_quality(shape: tuple[int, int, int]) -> None:
    x = smooth(*shape)
    errors_of, sizes = [], []
    for quality in (30, 95):
        data = jpeg.encode(x, quality)
        back = jpeg.decode(data, shape)
        assert (back.shape, back.dtype, back.flags.c_contiguous) == (shape, np.uint8, True)
        errors_of.append(float(((back.astype(float) - x) ** 2).mean()))
        sizes.append(len(data))
    assert errors_of[1] <= errors_of[0]
    assert errors_of[1] < 150
    assert sizes[0] <= sizes[1]


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3), (4, 70_000, 3)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with raises(errors.CodecError, reason="not-a-picture"):
        jpeg.encode(np.zeros(shape, np.uint8), 80)
    with raises(errors.CodecError, reason="not-a-picture"):
        jpeg.decode(b"", shape)


def test_another_size_another_mode_and_another_format_are_refused() -> None:
    data = jpeg.encode(smooth(8, 8, 3), 80)
    for shape in ((8, 9, 3), (9, 8, 3), (8, 8, 1)):
        with raises(errors.CodecError, reason="other-picture"):
            jpeg.decode(data, shape)
    png = io.BytesIO()
    Image.fromarray(smooth(8, 8, 3)).save(png, "PNG")
    with raises(errors.CodecError, reason="not-a-jpeg"):
        jpeg.decode(png.getvalue(), (8, 8, 3))


@given(st.data())
@drawn(200)
def test_damage_is_refused_or_yields_a_picture_of_the_plan(data: st.DataObject) -> None:
    whole = bytearray(jpeg.encode(smooth(16, 16, 3), 60))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    with contextlib.suppress(errors.CodecError):
        assert jpeg.decode(bytes(whole[:cut]), (16, 16, 3)).shape == (16, 16, 3)
