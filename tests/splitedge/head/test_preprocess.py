"""From images and arrays to input codes."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageDraw

from splitedge import errors, limits
from splitedge.head import preprocess as pre
from splitedge.head.segment import Tensor
from splitedge.protocol.messages import Preprocess
from tests.drawn import drawn
from tests.raising import raises


def spec(**changes: object) -> Preprocess:
    return Preprocess(**({"kind": "image", "shape": [6, 4, 3], "resize": 6, "mean": [127.0], "std": [128.0]} | changes))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_one_integer_mean_makes_codes_equal_pixels() -> None:
    scale, zero = pre.input_quantization(spec())
    assert (scale, zero) == (1 / 128, 127)
    table = pre.code_table(spec(), Tensor([6, 4, 3], scale, zero, 0))
    np.testing.assert_array_equal(table, np.arange(256)[:, None].repeat(3, 1))


@pytest.mark.parametrize(
    ("mean", "std"), [([127.5], [127.5]), ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]), ([0.0], [255.0]), ([300.0], [10.0])]
)  # fmt: skip
def test_codes_stand_for_normalised_pixels_to_half_a_step(mean: list[float], std: list[float]) -> None:
    p = spec(mean=mean, std=std)
    scale, zero = pre.input_quantization(p)
    table = pre.code_table(p, Tensor([6, 4, 3], scale, zero, 0)).astype(float)
    real = (np.arange(256.0)[:, None] - mean) / std
    error = np.abs(scale * (table - zero) - real)
    assert np.sqrt((error**2).mean()) < 0.4 * scale
    assert len(np.unique(table[:, 0])) > 200 or mean == [300.0]


def test_pixels_through_the_table_equal_the_quantized_float() -> None:
    p = spec(mean=[100.0, 120.0, 90.0], std=[60.0, 50.0, 70.0])
    scale, zero = pre.input_quantization(p)
    tensor = Tensor([6, 4, 3], scale, zero, 0)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3)).astype(np.uint8)
    codes = pre.pixels_to_codes(pixels, pre.code_table(p, tensor))
    difference = codes.astype(int) - pre.quantize_tensor(pre.normalise(pixels, p), tensor).astype(int)
    assert np.abs(difference).max() <= 1  # float32 against float64 at a tie
    assert (difference == 0).mean() > 0.9


def test_crop_takes_the_centre_and_stretch_takes_all() -> None:
    image = noise(10, 6)
    pixels = np.asarray(image)
    np.testing.assert_array_equal(pre.prepare_image(image, spec()), pixels[:, 3:7])
    assert pre.prepare_image(image, spec(fit="stretch")).shape == (6, 4, 3)
    np.testing.assert_array_equal(pre.prepare_image(noise(4, 6), spec(fit="stretch")), np.asarray(noise(4, 6)))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (640, 480)])
def test_any_size_becomes_the_models(size: tuple[int, int]) -> None:
    assert pre.prepare_image(noise(*size), spec()).shape == (6, 4, 3)
    assert pre.prepare_image(noise(*size), spec(resize=2)).shape == (6, 4, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_any_mode_becomes_rgb_or_grey(mode: str) -> None:
    image = Image.new(mode, (9, 9))
    assert pre.prepare_image(image, spec()).shape == (6, 4, 3)
    assert pre.prepare_image(image, spec(shape=[6, 4, 1])).shape == (6, 4, 1)


def test_photographs_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pre.load_image(encoded(noise(20, 10), "JPEG", exif=exif)).size == (10, 20)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"not an image", encoded(noise(30, 30))[:200]])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(errors.InputError):
        pre.load_image(data)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "ICO"])
def test_no_decoder_of_another_format_sees_the_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **_: started.append(a))
    with pytest.raises(errors.InputError):
        pre.load_image(encoded(noise(30, 30), kind))
    assert not started


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@given(data=st.data())
@drawn(40)
def test_damaged_images_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(noise(12, 9), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(errors.InputError):
        pre.prepare_image(pre.load_image(bytes(whole)), spec())


def test_too_many_bytes_and_too_many_pixels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_IMAGE_PIXELS", 50)
    with raises(errors.InputError, reason="too-many-pixels"):
        pre.load_image(encoded(noise(10, 10)))
    monkeypatch.setattr(limits, "MAX_IMAGE_BYTES", 50)
    with raises(errors.InputError, reason="too-many-bytes"):
        pre.load_image(encoded(noise(10, 10)))


def test_arrays_are_checked_and_clamped() -> None:
    tensor = Tensor([2, 2], 0.5, 10, 0)
    np.testing.assert_array_equal(pre.quantize_tensor(np.array([[-100, -5], [0.3, 200]]), tensor), [[0, 0], [11, 255]])
    with raises(errors.InputError, reason="other-shape"):
        pre.quantize_tensor(np.zeros((2, 3)), tensor)
    for bad in (np.nan, np.inf):
        with raises(errors.InputError, reason="not-finite"):
            pre.quantize_tensor(np.full((2, 2), bad), tensor)


# --- where the input is over the image --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (300, 100), (37, 211)])
@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_a_place_in_the_input_is_found_in_the_image(fit: str, size: tuple[int, int]) -> None:
    """A bright square in the image has the same centre after preprocessing, as `placement` tells."""
    border = {"border": 7} if fit == "pad" else {}
    method = "stretch" if fit == "pad" else fit
    chosen = spec(shape=[48, 64, 3], resize=64, fit=method, interpolation="bilinear", **border)
    image = Image.new("RGB", size)
    square = (size[0] * 0.45, size[1] * 0.45, size[0] * 0.55, size[1] * 0.55)
    ImageDraw.Draw(image).rectangle(square, fill=(255, 255, 255))
    pixels = pre.prepare_image(image, chosen)[:, :, 0].astype(float)
    pixels[pixels < 20] = 0
    rows, columns = np.nonzero(pixels)
    weights = pixels[rows, columns]
    x, y = (float((places * weights).sum() / weights.sum()) + 0.5 for places in (columns, rows))
    place = pre.placement(size, chosen)
    found = (place.left + place.width * x / 64, place.top + place.height * y / 48)
    assert found[0] == pytest.approx((square[0] + square[2] + 1) / 2, abs=1.5 * max(1, place.width / 64))
    assert found[1] == pytest.approx((square[1] + square[3] + 1) / 2, abs=1.5 * max(1, place.height / 48))


def test_a_padded_image_is_whole_between_borders() -> None:
    chosen = spec(shape=[10, 30, 3], resize=10, fit="stretch", border=114)
    pixels = pre.prepare_image(Image.new("RGB", (20, 20), (200, 200, 200)), chosen)
    assert (pixels[:, 10:20] == 200).all()
    assert (pixels[:, :10] == 114).all()
    assert (pixels[:, 20:] == 114).all()
    assert pre.placement((20, 20), chosen) == (-20.0, 0.0, 60.0, 20.0)
