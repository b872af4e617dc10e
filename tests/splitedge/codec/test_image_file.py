"""Image files as a stage of the codec: what goes in comes out nearly, and nothing that is not the plan's picture is decoded."""

from __future__ import annotations

import contextlib
import io

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from splitedge import codec, errors
from splitedge.codec import image_file
from splitedge.protocol.messages import Codec, ImageFormat
from tests.drawn import drawn
from tests.raising import raises


def smooth(h: int, w: int, c: int) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    planes = [128 + 100 * np.sin((y * (k + 1) + x) / 9) for k in range(c)]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


FORMATS = ["jpeg", *image_file.available()]


def file(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", [(17, 23, 3), (28, 28, 1), (1, 1, 3), (224, 224, 3)])
def test_a_picture_comes_back_nearly_and_nearer_at_more_quality(shape: tuple[int, int, int], kind: ImageFormat) -> None:
    if not image_file.fits(shape, kind):
        pytest.skip("WebP has no grey images")
    x = smooth(*shape)
    errors_of, sizes = [], []
    for quality in (30, 95):
        data = image_file.encode(x, quality, kind)
        back = image_file.decode(data, shape, kind)
        assert (back.shape, back.dtype, back.flags.c_contiguous) == (shape, np.uint8, True)
        errors_of.append(float(((back.astype(float) - x) ** 2).mean()))
        sizes.append(len(data))
    assert errors_of[1] <= errors_of[0]
    assert errors_of[1] < 150
    assert sizes[0] <= sizes[1]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3), (4, 70_000, 3)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...], kind: ImageFormat) -> None:
    with raises(errors.CodecError, reason="not-a-picture"):
        image_file.encode(np.zeros(shape, np.uint8), 80, kind)
    with raises(errors.CodecError, reason="not-a-picture"):
        image_file.decode(b"", shape, kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_another_size_another_mode_and_another_format_are_refused(kind: ImageFormat) -> None:
    data = image_file.encode(smooth(8, 8, 3), 80, kind)
    for shape in ((8, 9, 3), (9, 8, 3), *([(8, 8, 1)] if kind == "jpeg" else [])):
        with raises(errors.CodecError, reason="other-picture"):
            image_file.decode(data, shape, kind)
    others = [file(Image.fromarray(smooth(8, 8, 3)), one) for one in ("JPEG", "PNG", "WEBP", "GIF")]
    for other in [one for one in others if one[:3] != data[:3]]:
        with raises(errors.CodecError, reason=f"not-a-{kind}"):
            image_file.decode(other, (8, 8, 3), kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_noise_at_the_best_quality_keeps_the_greatest_size_and_longer_files_are_refused(
    kind: ImageFormat,
) -> None:
    shape = (64, 64, 3)
    data = image_file.encode(np.random.default_rng(1).integers(0, 256, shape, np.uint8), 100, kind)
    most = image_file.most_bytes(64 * 64 * 3)
    assert len(data) <= most
    with raises(errors.CodecError, reason="payload-bytes"):
        image_file.decode(data + bytes(most + 1 - len(data)), shape, kind)


def test_animated_extended_and_lossless_webp_files_are_refused_before_they_are_opened() -> None:
    image = Image.fromarray(smooth(8, 8, 3))
    turned = image.rotate(90)
    clear = image.copy()
    clear.putalpha(100)
    canvas = bytearray(file(clear, "WEBP"))
    canvas[24:30] = b"\xff\x3f\0" * 2  # 16,384 x 16,384
    for data in (
        file(image, "WEBP", save_all=True, append_images=[turned], duration=40),
        file(image, "WEBP", lossless=True),
        file(clear, "WEBP"),
        bytes(canvas),
    ):
        with raises(errors.CodecError, reason="not-a-webp"):
            image_file.decode(data, (8, 8, 3), "webp")
    frame = bytearray(image_file.encode(smooth(8, 8, 3), 80, "webp"))
    frame[26:30] = b"\xff\x3f\xff\x3f"
    with raises(errors.CodecError, reason="other-picture"):
        image_file.decode(bytes(frame), (8, 8, 3), "webp")


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.data())
@drawn(200)
def test_damage_is_refused_or_yields_a_picture_of_the_plan(data: st.DataObject, kind: ImageFormat) -> None:
    whole = bytearray(image_file.encode(smooth(16, 16, 3), 60, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    with contextlib.suppress(errors.CodecError):
        assert image_file.decode(bytes(whole[:cut]), (16, 16, 3), kind).shape == (16, 16, 3)


def test_a_codec_of_jpeg_is_the_same_on_the_wire_as_before_other_formats() -> None:
    made = codec.pixels([0.0], [1.0], 80)
    assert made == Codec("jpeg-80", 8, (0.0,), (1.0,), jpeg=80)
    assert b"webp" not in msgspec.msgpack.encode(made)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Codec) == made


def test_a_codec_of_webp_keeps_its_quality_on_the_wire_and_codes_a_tensor() -> None:
    made = codec.pixels([0.0] * 3, [1.0] * 3, 90, "webp")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Codec) == made
    x = smooth(24, 32, 3).astype(np.float32)
    assert codec.work(made, x.shape) == {"webp": x.size}
    assert np.abs(codec.decode(codec.encode(x, made), made, x.shape) - x).mean() < 8


@pytest.mark.parametrize("change", [{"bits": 4}, {"webp": 0}, {"webp": 101}, {"jpeg": 80, "webp": 80}])
def test_codecs_of_impossible_image_files_are_refused(change: dict[str, int]) -> None:
    made = msgspec.structs.replace(codec.pixels([0.0], [1.0], 80, "webp"), **change)
    with raises(errors.CodecError):
        codec.validate(made)


def test_a_format_that_this_build_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file.features, "check", lambda feature: False)
    assert image_file.available() == []
    with raises(errors.CodecError, reason="format-missing"):
        codec.validate(codec.pixels([0.0], [1.0], 37, "webp"))
