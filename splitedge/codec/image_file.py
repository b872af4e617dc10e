"""An image file as the last step of a codec whose 8-bit codes are pixels. It takes few bytes for an input that is
sent whole.

The rounding of the coefficients is the decoder's. Unlike every other codec, this one may therefore differ in the last
bit between versions of libjpeg or libwebp; only the server's float tail sees the difference.
"""

from __future__ import annotations

import io
import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from splitedge import errors
from splitedge.protocol.messages import IMAGE_FORMATS, ImageFormat

U8 = NDArray[np.uint8]
Buffer = bytes | bytearray | memoryview

#: Formats that an agent names in `PlanRequest.tasks`, because older agents and some builds of Pillow lack them.
NAMED: Final[tuple[ImageFormat, ...]] = ("webp",)
QUALITIES: Final = range(1, 101)
_MODES: Final = {1: "L", 3: "RGB"}
_CHANNELS: Final[dict[ImageFormat, tuple[int, ...]]] = {"jpeg": (1, 3), "webp": (3,)}  # WebP has no grey images
_LONGEST: Final[dict[ImageFormat, int]] = {"jpeg": 65_535, "webp": 16_383}  # pixels of a side
#: JPEG: subsampled colours and standard Huffman tables; the alternatives take twice the time, with no less error for
#: their bytes. WebP: method 0 takes two thirds of the time for 5 to 20 % more bytes, method 4 twice the time for 0 to
#: 4 % fewer.
_OPTIONS: Final[dict[ImageFormat, dict[str, Any]]] = {"jpeg": {"subsampling": "4:2:0"}, "webp": {"method": 2}}


def available() -> list[ImageFormat]:
    """The formats of `NAMED` that this build of Pillow encodes and decodes."""
    return [kind for kind in NAMED if features.check(kind)]


def fits(shape: tuple[int, ...], kind: ImageFormat = "jpeg") -> bool:
    """Whether ``shape`` is that of an image of this ``kind``: [H, W, 1 or 3], for WebP [H, W, 3]."""
    return (
        len(shape) == 3
        and shape[2] in _CHANNELS[kind]
        and 0 < shape[0] <= _LONGEST[kind]
        and 0 < shape[1] <= _LONGEST[kind]
    )


def most_bytes(values: int) -> int:
    """Most bytes of a file of ``values`` pixels times channels.

    Noise at the best quality takes less than twice its pixels, plus headers.
    """
    return 2 * values + 4096


def encode(pixels: U8, quality: int, kind: ImageFormat = "jpeg") -> bytes:
    """The file of ``pixels`` [H, W, C] at ``quality`` 1..100. See `fits` for its shape."""
    _check(pixels.shape, kind)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    out = io.BytesIO()
    image.save(out, kind.upper(), quality=quality, **_OPTIONS[kind])
    return out.getvalue()


def decode(data: Buffer, shape: tuple[int, ...], kind: ImageFormat = "jpeg") -> U8:
    """The pixels of ``shape`` [H, W, C] in ``data``, a file of ``kind`` with one image.

    Raises `errors.CodecError` for anything else. Size, format and mode are checked before the pixels are decoded.
    """
    _check(shape, kind)
    if (length := memoryview(data).nbytes) > (most := most_bytes(shape[0] * shape[1] * shape[2])):
        raise errors.CodecError(
            f"an image file of {length} bytes exceeds the {most} of shape {list(shape)}; both sides must use the "
            "plan's codec",
            reason="payload-bytes",
            bytes=length,
        )
    if kind == "webp":
        _check_webp(bytes(data[:30]), shape)
    try:
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as image:
            if (image.height, image.width, image.mode) != (*shape[:2], _MODES[shape[2]]):
                raise _other(kind, image.width, image.height, image.mode, shape)
            pixels = np.asarray(image)
    except errors.CodecError:
        raise
    except Exception as error:  # Pillow's decoders raise many types: OSError, SyntaxError, struct.error, ...
        raise _undecodable(kind, type(error).__name__) from error
    return np.ascontiguousarray(pixels).reshape(shape)


def _check_webp(head: bytes, shape: tuple[int, ...]) -> None:
    """Raise unless ``head``, the first 30 bytes, begin a WebP file of one lossy key frame of ``shape`` (RFC 9649, 6386).

    Pillow allocates the whole canvas when it opens a file, and the extended format may have 16,384 x 16,384 pixels. So
    animations, transparency and metadata, which only the extended and lossless formats have, are not opened.
    """
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8 " or head[20] & 1 or head[23:26] != b"\x9d\1*":
        raise _undecodable("webp", "no simple lossy file")
    width, height = (side & 0x3FFF for side in struct.unpack("<HH", head[26:30]))
    if (height, width) != shape[:2]:
        raise _other("webp", width, height, "RGB", shape)


def _other(kind: ImageFormat, width: int, height: int, mode: str, shape: tuple[int, ...]) -> errors.CodecError:
    return errors.CodecError(
        f"a {IMAGE_FORMATS[kind]} of {width} x {height} ({mode}) is not the plan's {shape[1]} x {shape[0]} "
        f"({_MODES[shape[2]]})",
        reason="other-picture",
    )


def _undecodable(kind: ImageFormat, why: str) -> errors.CodecError:
    return errors.CodecError(
        f"a frame cannot be decoded as {IMAGE_FORMATS[kind]} ({why}); both sides must use the plan's codec",
        reason=f"not-a-{kind}",
    )


def _check(shape: tuple[int, ...], kind: ImageFormat) -> None:
    if not fits(shape, kind):
        raise errors.CodecError(
            f"a tensor of shape {list(shape)} is not an image; use another codec of the plan's ladder",
            reason="not-a-picture",
        )
