"""What files of pictures are beside JPEG and 8-bit RGB: other depths and modes, other formats by their first bytes, and files that end early."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from splitedge import errors

#: Pillow's modes that it converts to grey and RGB. Alpha is left out, as ``convert("RGB")`` and training pipelines do.
_PLAIN: Final = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")

_NAMES: Final = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # of 64-bit offsets
    b"MM\0+": "TIFF",
}
_CONVERT: Final = "convert it to JPEG or PNG"
#: Formats that people send and nothing here decodes: a pattern of the first bytes, the name, and what to do.
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
)  # fmt: skip
_LOOK: Final = 1024  # bytes in which a format shows itself

_END: Final = b"\xff\xd9"  # of a JPEG
_FILLERS: Final = (b"\x55" * 64, b"\xaa" * 64, b"\x33" * 64)
_RESTART: Final = re.compile(rb"\xff([\xd0-\xd7])")


def eight_bits(image: Image.Image, bits: int | None = None) -> Image.Image:
    """``image`` with 8 bits a channel: of more ``bits`` the upper 8, as Pillow does with 16-bit colour.

    ``bits``: None where the mode tells. Raises `errors.InputError` for values of unknown range and for modes that are no RGB or grey.
    """
    if not image.width or not image.height:
        raise errors.InputError(f"the picture has {image.width} x {image.height} pixels; send one that has some")
    bits = 16 if bits is None and image.mode.startswith("I;16") else bits
    if bits is not None:
        return Image.fromarray(np.clip(np.asarray(image).astype(np.int32) >> (bits - 8), 0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise errors.InputError(f"the picture holds {kind} of unknown range; save it with 8 or 16 bits a channel")
    if image.mode not in _PLAIN:
        raise errors.InputError(f"a picture of colour mode {image.mode} is not supported; save it as RGB or grey")
    return image


def depth(image: Image.Image) -> int | None:
    """The bits of a channel of ``image``, fresh from its file, where they are more than 8 and known."""
    if image.mode.startswith("I;16"):
        stated = getattr(image, "tag_v2", {}).get(258, (16,))  # TIFF's BitsPerSample
        return min(max(int(stated[0]), 9), 16)
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def white_is_zero(image: Image.Image) -> bool:
    """Whether ``image``, fresh from its file, is a TIFF of 16-bit grey whose 0 is white: Pillow inverts those of 8 bits alone."""
    tags = getattr(image, "tag_v2", {})
    return image.mode.startswith("I;16") and tags.get(262) == 0  # PhotometricInterpretation


def name_of(data: bytes) -> str:
    """The format, of those that are decoded here, as which ``data`` begins, or an empty string."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if re.match(rb"P[1-6fy][\s#]", data):
        return "PPM"
    return next((name for start, name in _NAMES.items() if data.startswith(start)), "")


def foreign(data: bytes) -> str:
    """What ``data`` is and what to do, where it begins as something that people send and nothing here decodes; else an empty string."""
    for pattern, name, advice in _FOREIGN:
        if pattern.match(data[:_LOOK]):
            return f"{name} is not supported; {advice}"
    return ""


def trouble(data: bytes, error: Exception) -> str:
    """A sentence about ``data``, at which a decoder raised ``error``."""
    if said := foreign(data):
        return said
    if not data:
        return "the image is empty: it has no bytes; send a JPEG, PNG, WebP or BMP file"
    name = name_of(data)
    if not name:
        return "this is not an image that can be read; send a JPEG, PNG, WebP or BMP file"
    if _is_cut_short(data, name, error):
        return f"this {name} is cut short: only {len(data)} bytes of it are here; copy or download it again"
    if isinstance(error, UnidentifiedImageError):
        return f"this is not an image that can be read, though it begins like a {name}; save it again as JPEG or PNG"
    return f"this {name} is damaged ({type(error).__name__}); save it again as JPEG or PNG"


def unended(data: bytes, decode: Callable[[io.BytesIO], Image.Image]) -> Image.Image | None:
    """The JPEG ``data``, which lacks its end, where nothing else is missing: then its pixels depend on nothing that may follow.

    A progressive JPEG that ends just behind one of its scans passes, too: all its pixels are there, some of them coarse.
    """
    body = data.rstrip(b"\xff")
    image = decode(io.BytesIO(body + _END))
    pixels = image.tobytes()
    fillers = (*_FILLERS, _next_restart(body) + _FILLERS[0])
    if any(decode(io.BytesIO(body + filler + _END)).tobytes() != pixels for filler in fillers):
        return None
    return image


def _next_restart(body: bytes) -> bytes:
    """The marker with which a JPEG of independent intervals goes on."""
    last = [marker[0] for marker in _RESTART.findall(body)][-1:] or [0xD7]
    return bytes((0xFF, 0xD0 + (last[0] + 1) % 8))


def _is_cut_short(data: bytes, name: str, error: Exception) -> bool:
    """Whether ``data`` ends before a file of the format ``name`` would."""
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
