"""Pictures as people have them: 16 bits, floats, other modes and formats, and files that end early."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from splitedge import errors, limits
from splitedge.head import image_formats
from splitedge.head import preprocess as pre
from splitedge.protocol.messages import Preprocess
from tests.raising import raises

GREY16 = np.array([[0, 1, 255, 256], [257, 32767, 32768, 65279], [65280, 65534, 65535, 4095]], np.uint16)
GREY8 = (GREY16 >> 8).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(width: int = 83, height: int = 61) -> Image.Image:
    """A picture that is no noise, of no whole number of blocks."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(1)
    waves = [127 + 100 * np.sin(x * a + y * b) for a, b in ((0.1, 0.05), (0.03, 0.2), (0.3, 0.1))]
    return Image.fromarray(np.clip(np.stack(waves, -1) + rng.normal(0, 9, (height, width, 3)), 0, 255).astype(np.uint8))


def pixels(image: Image.Image, channels: int = 3) -> NDArray[np.uint8]:
    spec = Preprocess("image", [image.height, image.width, channels], resize=1, mean=[0.0], std=[1.0], fit="stretch")
    return pre.prepare_image(image, spec)


def pgm(values: NDArray[np.uint16], most: int = 65535) -> bytes:
    return f"P5 {values.shape[1]} {values.shape[0]} {most}\n".encode() + values.astype(">u2").tobytes()


def tiff(values: NDArray[np.generic], **options: object) -> bytes:
    return encoded(Image.fromarray(values), "TIFF", **options)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(GREY16)),
        tiff(GREY16),
        tiff(GREY16, compression="tiff_lzw"),
        encoded(Image.fromarray(GREY16).transpose(Image.Transpose.ROTATE_90), "TIFF", tiffinfo={274: 6}),
        pgm(GREY16),
    ],
    ids=["png", "tiff", "tiff, packed", "tiff, turned", "pgm"],
)
def test_16_bit_grey_keeps_its_upper_8_bits(data: bytes) -> None:
    image = pre.load_image(data)
    np.testing.assert_array_equal(np.asarray(image), GREY8)
    np.testing.assert_array_equal(pixels(image)[..., 1], GREY8)
    np.testing.assert_array_equal(pixels(image, 1)[..., 0], GREY8)


def test_a_16_bit_tiff_whose_0_is_white_is_no_negative() -> None:
    data = tiff(65535 - GREY16, tiffinfo={262: 0})
    np.testing.assert_array_equal(np.asarray(pre.load_image(data)), 255 - ((65535 - GREY16) >> 8))


def test_an_empty_file_is_said_to_be_empty() -> None:
    with raises(errors.InputError, reason="empty"):
        pre.load_image(b"")


def test_16_bit_colour_keeps_its_upper_8_bits_too() -> None:
    data = b"P6 4 1 65535\n" + GREY16[:, :, None].repeat(3, 2)[0].astype(">u2").tobytes()
    np.testing.assert_array_equal(np.asarray(pre.load_image(data))[0, :, 0] // 2, GREY8[0] // 2)  # Pillow rounds


def test_a_decoded_16_bit_image_is_one_too() -> None:
    for image in (Image.fromarray(GREY16), Image.fromarray(GREY16.astype(">u2"))):
        np.testing.assert_array_equal(pixels(image)[..., 0], GREY8)


def test_a_pgm_of_12_bits_and_a_tiff_of_12_bits_reach_white() -> None:
    values = np.array([[0, 2048, 4095]], np.uint16)
    assert np.asarray(pre.load_image(pgm(values, 4095))).tolist() == [[0, 128, 255]]
    image = Image.fromarray(values)
    image.tag_v2 = {258: (12,)}  # type: ignore[attr-defined]  # as of a file: Pillow writes none
    assert np.asarray(image_formats.eight_bits(image, image_formats.depth(image))).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (tiff(np.float32([[0.5]])), "unknown-range"),
        (b"Pf\n1 1\n-1.0\n" + np.float32(0.5).tobytes(), "unknown-range"),
        (tiff(np.int32([[5]])), "unknown-range"),
        (encoded(Image.new("LAB", (9, 9)), "TIFF"), "colour-mode"),
    ],
)
def test_values_of_unknown_range_are_refused(data: bytes, word: str) -> None:
    with raises(errors.InputError, reason=word):
        pre.load_image(data)


@pytest.mark.parametrize("mode", ["F", "I", "LAB", "La"])
def test_decoded_images_of_unknown_range_are_refused(mode: str) -> None:
    with pytest.raises(errors.InputError):
        pixels(Image.new(mode, (9, 9)))


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with raises(errors.InputError, reason="no-pixels"):
        pixels(Image.new("RGB", size))


def variants() -> list[tuple[str, bytes]]:
    image = smooth()
    moving = [image, image.rotate(90), image.rotate(180)]
    exif = Image.Exif()
    exif[0x0112] = 8
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    return [
        ("RGB", encoded(image)), ("grey", encoded(image.convert("L"))), ("palette", encoded(image.quantize(17))), ("1 bit", encoded(image.convert("1"))),
        ("alpha", encoded(alpha)), ("grey alpha", encoded(alpha.convert("LA"))), ("palette, transparent", encoded(image.quantize(9), transparency=3)),
        ("jpeg", encoded(image, "JPEG")), ("progressive", encoded(image, "JPEG", progressive=True)), ("grey jpeg", encoded(image.convert("L"), "JPEG")),
        ("CMYK", encoded(image.convert("CMYK"), "JPEG")), ("turned", encoded(image, "JPEG", exif=exif)), ("CMYK tiff", encoded(image.convert("CMYK"), "TIFF")),
        ("gif", encoded(moving[0], "GIF", save_all=True, append_images=moving[1:])), ("webp", encoded(moving[0], "WEBP", save_all=True, append_images=moving[1:])),
        ("bmp", encoded(image, "BMP")), ("ppm", encoded(image, "PPM")), ("tiff", encoded(image, "TIFF", compression="tiff_adobe_deflate")),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "data"), variants(), ids=[name for name, _ in variants()])
def test_8_bit_pictures_are_what_pillow_makes_of_them(name: str, data: bytes) -> None:
    """Alpha is left out and an animation stands for its first picture."""
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    for mode, channels in (("RGB", 3), ("L", 1)):
        wanted = np.asarray(upright.convert(mode)).reshape(upright.height, upright.width, channels)
        np.testing.assert_array_equal(pixels(pre.load_image(data), channels), wanted)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"quality": 100}, {"subsampling": 2}, {"optimize": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_only_its_end_marker_is_taken(mode: str, options: dict[str, object]) -> None:
    whole = encoded(smooth().convert(mode), "JPEG", **options)
    for short in (whole[:-2], whole[:-1], whole[:-2] + b"\xff"):
        np.testing.assert_array_equal(np.asarray(pre.load_image(short)), np.asarray(pre.load_image(whole)))


@pytest.mark.parametrize("options", [{}, {"quality": 100}, {"restart_marker_blocks": 4}])
def test_a_jpeg_that_is_cut_is_refused_as_such(options: dict[str, object]) -> None:
    whole = encoded(smooth(), "JPEG", **options)
    start = whole.index(b"\xff\xda") + 14
    cuts = [m.start() for m in re.finditer(rb"\xff[\xd0-\xd7]", whole)]  # between intervals
    for at in (*cuts, 3, 20, start - 5, start, *np.linspace(start + 1, len(whole) - 8, 60, dtype=int).tolist()):
        with raises(errors.InputError, reason="cut-short"):
            pre.load_image(whole[:at])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_any_file_that_is_cut_is_refused_as_such(kind: str, share: float) -> None:
    whole = encoded(smooth(), kind)
    with raises(errors.InputError, reason="cut-short"):
        pre.load_image(whole[: int(share * len(whole))])


FOREIGN = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1",
    "SVG": b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "PDF": encoded(smooth(), "PDF"),
    "a RAW photograph": b"II*\0\x10\0\0\0CR\x02\0" + bytes(99),
    "JPEG 2000": encoded(smooth(), "JPEG2000"),
    "JPEG XL": b"\xff\x0a" + bytes(20),
    "a video": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2",
    "an HTML page": b"<!DOCTYPE html>\n<html><body>404</body></html>",
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "a Photoshop file": b"8BPS\0\x01" + bytes(40),
}  # fmt: skip


@pytest.mark.parametrize(("name", "data"), FOREIGN.items())
def test_other_formats_are_named(name: str, data: bytes) -> None:
    with raises(errors.InputError, reason="unsupported-format", format=name):
        pre.load_image(data)
    assert pre.is_image(data)


def test_a_bomb_is_refused_by_its_size_whatever_pillow_warns_of() -> None:
    for width, height in ((10_000, 9_000), (60_000, 60_000)):  # beyond Pillow's first and second limit
        assert width * height > limits.MAX_IMAGE_PIXELS
        data = encoded(Image.new("1", (8, 8)), "BMP")
        data = data[:18] + width.to_bytes(4, "little") + height.to_bytes(4, "little") + data[26:]
        for action in ("ignore", "error"):
            with warnings.catch_warnings():
                warnings.simplefilter(action, Image.DecompressionBombWarning)
                with raises(errors.InputError, reason="too-many-pixels"):
                    pre.load_image(data)


def test_damaged_exif_data_turn_nothing() -> None:
    whole = encoded(smooth(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(30))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's
        assert pre.load_image(whole).size == smooth().size
