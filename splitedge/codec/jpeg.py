"""JPEG as the last step of a codec whose 8-bit codes are pixels. It takes the fewest bytes for an input that is sent
whole.

The rounding of the coefficients is the decoder's. Unlike every other codec, this one may therefore differ in the last
bit between versions of libjpeg; only the server's float tail sees the difference.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitedge import errors

U8 = NDArray[np.uint8]
Buffer = bytes | bytearray | memoryview

QUALITIES: Final = range(1, 101)
_MODES: Final = {1: "L", 3: "RGB"}


def fits(shape: tuple[int, ...]) -> bool:
    """Whether ``shape`` is that of an image, [H, W, 1 or 3]."""
    return len(shape) == 3 and shape[2] in _MODES and 0 < shape[0] <= 65_535 and 0 < shape[1] <= 65_535


def encode(pixels: U8, quality: int) -> bytes:
    """The JPEG file of ``pixels`` [H, W, 1 or 3] at ``quality`` 1..100.

    Subsampled colours and standard Huffman tables: the alternatives take twice the time, with no less error for their
    bytes.
    """
    _check(pixels.shape)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling="4:2:0")
    return out.getvalue()


def decode(data: Buffer, shape: tuple[int, ...]) -> U8:
    """The pixels of ``shape`` [H, W, 1 or 3] in ``data``.

    Raises `errors.CodecError` for anything else, before it is decoded.
    """
    _check(shape)
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if (image.height, image.width, image.mode) != (*shape[:2], _MODES[shape[2]]):
                raise errors.CodecError(
                    f"a JPEG of {image.width} x {image.height} ({image.mode}) is not the plan's {shape[1]} x "
                    f"{shape[0]} ({_MODES[shape[2]]})",
                    reason="other-picture",
                )
            pixels = np.asarray(image)
    except errors.CodecError:
        raise
    except Exception as error:  # Pillow's decoders raise many types: OSError, SyntaxError, struct.error, ...
        raise errors.CodecError(
            f"a frame cannot be decoded as JPEG ({type(error).__name__}); both sides must use the plan's codec",
            reason="not-a-jpeg",
        ) from error
    return np.ascontiguousarray(pixels).reshape(shape)


def _check(shape: tuple[int, ...]) -> None:
    if not fits(shape):
        raise errors.CodecError(
            f"a tensor of shape {list(shape)} is not an image; use another codec of the plan's ladder",
            reason="not-a-picture",
        )
