"""Image files beyond 8-bit RGB: other depths and modes, unsupported formats by their first bytes, truncated files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from splitedge import errors

#: Modes that Pillow converts to grey and RGB. Alpha is dropped, as in ``convert("RGB")`` and in training pipelines.
_PLAIN: Final = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")

_NAMES: Final = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
}
_CONVERT: Final = "convert it to JPEG or PNG"
#: Common formats without a decoder: a pattern of the first bytes, the name, and advice.
_FOREIGN: Final = tuple(
    (re.compile(pattern, re.DOTALL), name, advice)
    for pattern, name, advice in (
        (rb"....ftyp(avif|avis)", "AVIF", _CONVERT),
        (rb"....ftypcrx ", "a RAW photograph", "develop it to JPEG"),
        (rb"....ftyp(hei|hev|mif1|msf1)", "HEIC", _CONVERT),
        (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", "a video", "send its frames as JPEG"),
        (rb"(II\*\0|MM\0\*)....CR|IIR[OS]|IIU\0|FUJIFILMCCD-RAW", "a RAW photograph", "develop it to JPEG"),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL", _CONVERT),
        (rb"\0\0\0\x0cjP  |\xffO\xffQ", "JPEG 2000", _CONVERT),
        (rb"8BPS", "a Photoshop file", _CONVERT),
        (rb"%PDF-", "PDF", "send its pages as JPEG or PNG"),
        (rb"%!PS", "PostScript", _CONVERT),
        (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>/]", "SVG", "draw it as PNG"),
        (rb"(?i)\s*(<!DOCTYPE html|<html)", "an HTML page", "download the picture itself"),
        (rb"version https://git-lfs", "a git-lfs pointer", "fetch the file itself with git lfs pull"),
        (rb"PK\x03\x04", "a ZIP archive", "send one file of it"),
        (rb"\x1f\x8b", "a gzip file", "unpack it"),
    )
)
_LOOK: Final = 1024  # bytes that the patterns see

_END: Final = b"\xff\xd9"  # JPEG's end marker
_FILLERS: Final = (b"\x55" * 64, b"\xaa" * 64, b"\x33" * 64)
_RESTART: Final = re.compile(rb"\xff([\xd0-\xd7])")


def eight_bits(image: Image.Image, bits: int | None = None) -> Image.Image:
    """``image`` with the upper 8 of its ``bits`` a channel, as Pillow does with 16-bit colour.

    ``bits`` None derives them from the mode. Raises `errors.InputError` for values of unknown range, and for modes
    other than RGB or grey.
    """
    if not image.width or not image.height:
        raise errors.InputError(
            f"the image has {image.width} x {image.height} pixels; send an image with pixels", reason="no-pixels"
        )
    bits = 16 if bits is None and image.mode.startswith("I;16") else bits
    if bits is not None:
        return Image.fromarray(np.clip(np.asarray(image).astype(np.int32) >> (bits - 8), 0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise errors.InputError(
            f"the image has {kind} of unknown range; save it with 8 or 16 bits a channel", reason="unknown-range"
        )
    if image.mode not in _PLAIN:
        raise errors.InputError(
            f"the colour mode {image.mode} is not supported; save the image as RGB or grey",
            reason="colour-mode",
            mode=image.mode,
        )
    return image


def depth(image: Image.Image) -> int | None:
    """The bits a channel of ``image``, just opened, if they are known and more than 8."""
    if image.mode.startswith("I;16"):
        stated = getattr(image, "tag_v2", {}).get(258, (16,))  # TIFF's BitsPerSample
        return min(max(int(stated[0]), 9), 16)
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def white_is_zero(image: Image.Image) -> bool:
    """Whether ``image``, just opened, is a 16-bit grey TIFF in which 0 is white.

    Pillow inverts only those of 8 bits.
    """
    tags = getattr(image, "tag_v2", {})
    return image.mode.startswith("I;16") and tags.get(262) == 0  # PhotometricInterpretation


def name_of(data: bytes) -> str:
    """The supported format that ``data`` starts like, or an empty string."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if re.match(rb"P[1-6fy][\s#]", data):
        return "PPM"
    return next((name for start, name in _NAMES.items() if data.startswith(start)), "")


def foreign(data: bytes) -> errors.InputError | None:
    """The error for ``data`` if it starts like a known unsupported format, else None."""
    for pattern, name, advice in _FOREIGN:
        if pattern.match(data[:_LOOK]):
            return errors.InputError(f"{name} is not supported; {advice}", reason="unsupported-format", format=name)
    return None


def trouble(data: bytes, error: Exception) -> errors.InputError:
    """The error for ``data`` after a decoder raised ``error``."""
    if (refusal := foreign(data)) is not None:
        return refusal
    name = name_of(data)
    if not data:
        reason, said = "empty", "the image file is empty; send a JPEG, PNG, WebP or BMP file"
    elif not name:
        reason, said = "not-an-image", "the file is not a supported image; send a JPEG, PNG, WebP or BMP file"
    elif _is_cut_short(data, name, error):
        reason = "cut-short"
        said = f"the {name} file is truncated after {len(data)} bytes; copy or download it again"
    elif isinstance(error, UnidentifiedImageError):
        reason = "not-an-image"
        said = f"the file starts like a {name} but cannot be decoded; save it again as JPEG or PNG"
    else:
        reason = "damaged"
        said = f"the {name} file is damaged ({type(error).__name__}); save it again as JPEG or PNG"
    return errors.InputError(said, reason=reason)


def unended(data: bytes, decode: Callable[[io.BytesIO], Image.Image]) -> Image.Image | None:
    """The image of a JPEG that lacks only its end marker; None if more is missing.

    It decodes ``data`` with several continuations. If the pixels differ, image data is missing. A progressive JPEG that
    ends after one of its scans passes too: all its pixels exist, some of them coarse.
    """
    body = data.rstrip(b"\xff")
    image = decode(io.BytesIO(body + _END))
    pixels = image.tobytes()
    fillers = (*_FILLERS, _next_restart(body) + _FILLERS[0])
    if any(decode(io.BytesIO(body + filler + _END)).tobytes() != pixels for filler in fillers):
        return None
    return image


def _next_restart(body: bytes) -> bytes:
    """The next restart marker of a JPEG with independent intervals."""
    last = [marker[0] for marker in _RESTART.findall(body)][-1:] or [0xD7]
    return bytes((0xFF, 0xD0 + (last[0] + 1) % 8))


def _is_cut_short(data: bytes, name: str, error: Exception) -> bool:
    """Whether ``data`` is a truncated file of the format ``name``."""
    stated = {
        "WebP": int.from_bytes(data[4:8], "little") + 8,
        "BMP": int.from_bytes(data[2:6], "little"),
        "TIFF": 0 if b"+" in data[:4] else int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big") + 2,
    }
    ends = {"JPEG": _END, "PNG": b"IEND", "GIF": b";"}
    return (
        stated.get(name, 0) > len(data)
        or ends.get(name, b"") not in data[-16:]
        or re.search("(?i)truncated|EOF|not enough", str(error)) is not None
    )
