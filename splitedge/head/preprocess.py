"""Converts a caller's image or array to the input codes of a head.

Calibration and the agent share it, so both use the same pixels.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from splitedge import errors, limits
from splitedge.head import image_formats
from splitedge.head.segment import Tensor
from splitedge.protocol.messages import Preprocess

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Without a list Pillow tries some forty decoders; that of EPS passes the bytes to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def load_image(data: bytes) -> Image.Image:
    """The image in ``data``, upright, with 8 bits a channel; the first frame of an animation.

    Raises `errors.InputError` for anything else, for a truncated file, and beyond the limits.
    """
    if len(data) > limits.MAX_IMAGE_BYTES:
        raise errors.InputError(
            f"an image of {len(data)} bytes exceeds the limit of {limits.MAX_IMAGE_BYTES}; send a smaller one",
            reason="too-many-bytes",
        )
    try:
        image = _decoded(data)
        depth, negative = image_formats.depth(image), image_formats.white_is_zero(image)
        shown = image_formats.eight_bits(_upright(image), depth)
        return ImageOps.invert(shown) if negative else shown
    except errors.InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels("an image") from error
    except Exception as error:  # Pillow's decoders raise many types on hostile files
        raise image_formats.trouble(data, error) from error


def is_image(data: bytes) -> bool:
    """Whether ``data`` starts like an image that `load_image` decodes or names in its error. Decodes nothing."""
    return bool(image_formats.name_of(data) or image_formats.foreign(data))


def _decoded(data: bytes) -> Image.Image:
    image = _opened(io.BytesIO(data))
    try:
        image.load()
    except OSError:
        whole = image_formats.unended(data, _opened) if image.format == "JPEG" else None
        if whole is None:
            raise
        return whole
    return image


def _opened(file: io.BytesIO) -> Image.Image:
    """The image in ``file``, within the size limit. Its pixels are decoded on access."""
    image = Image.open(file, formats=_FORMATS)
    if image.width * image.height > limits.MAX_IMAGE_PIXELS:
        raise _too_many_pixels(f"an image of {image.width} x {image.height} pixels")
    return image


def _upright(image: Image.Image) -> Image.Image:
    """``image`` rotated by its EXIF orientation. Damaged EXIF data are ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _too_many_pixels(what: str) -> errors.InputError:
    return errors.InputError(
        f"{what} exceeds the limit of {limits.MAX_IMAGE_PIXELS} pixels; send a smaller one", reason="too-many-pixels"
    )


def prepare_image(image: Image.Image, preprocess: Preprocess) -> U8:
    """The model's input pixels [H, W, C] of ``image``; C is 3 (RGB) or 1 (grey). Alpha and colour profiles are ignored.

    Raises `errors.InputError` for an image whose values have no known range.
    """
    height, width, channels = preprocess.shape
    image = image_formats.eight_bits(image).convert("L" if channels == 1 else "RGB")
    method = Image.Resampling.BICUBIC if preprocess.interpolation == "bicubic" else Image.Resampling.BILINEAR
    if isinstance(preprocess.border, int):
        inner = _padded(image.size, (width, height))
        border = Image.new(image.mode, (width, height), (preprocess.border,) * channels)
        border.paste(image.resize(inner[2:], method), inner[:2])
        image = border
    elif preprocess.fit == "stretch":
        image = image.resize((width, height), method)
    else:
        image = image.resize(resized(image, preprocess), method)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image, np.uint8).reshape(height, width, channels)


def resized(image: Image.Image, preprocess: Preprocess) -> tuple[int, int]:
    """Width and height of ``image`` before the crop: the short side is ``preprocess.resize``, or more if the crop
    needs it.
    """
    return _resized(image.size, preprocess)


def _resized(size: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    height, width, _ = preprocess.shape
    scale = max(preprocess.resize / min(size), height / size[1], width / size[0])
    return max(width, round(size[0] * scale)), max(height, round(size[1] * scale))


class Placement(NamedTuple):
    """Where an image's pixels are in the model's input: the image's x is ``left + width * x`` for a relative x.

    Likewise for ``top`` and ``height``.
    """

    left: float
    top: float
    width: float
    height: float


def placement(size: tuple[int, int], preprocess: Preprocess) -> Placement:
    """The place of the model's input over an image of ``size`` (width, height), in pixels of the image."""
    height, width, _ = preprocess.shape
    if isinstance(preprocess.border, int):
        left, top, inner_width, inner_height = _padded(size, (width, height))
    elif preprocess.fit == "stretch":
        return Placement(0.0, 0.0, size[0], size[1])
    else:
        inner_width, inner_height = _resized(size, preprocess)
        left, top = -round((inner_width - width) / 2), -round((inner_height - height) / 2)
    across, down = size[0] / inner_width, size[1] / inner_height
    return Placement(-left * across, -top * down, width * across, height * down)


def _padded(size: tuple[int, int], whole: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of an image of ``size`` (width, height) that fits into ``whole``, in its centre."""
    scale = min(whole[0] / size[0], whole[1] / size[1])
    width, height = (min(most, max(1, round(side * scale))) for side, most in zip(size, whole, strict=True))
    return (whole[0] - width) // 2, (whole[1] - height) // 2, width, height


def normalise(pixels: U8, preprocess: Preprocess) -> F32:
    """(pixel - mean) / std, float32 [H, W, C]: the input of the float model."""
    return _real_table(preprocess).astype(np.float32)[pixels, np.arange(pixels.shape[-1])]


def code_table(preprocess: Preprocess, tensor: Tensor) -> U8:
    """Codes [256, C] of the head's input ``tensor`` for each pixel value: clamp(rint((pixel - mean) / std / scale) +
    zero_point).
    """
    return _codes(_real_table(preprocess), tensor.scale, tensor.zero_point)


def pixels_to_codes(pixels: U8, table: U8) -> U8:
    """``pixels`` [H, W, C] through the `code_table`."""
    return table[pixels, np.arange(pixels.shape[-1])]


def quantize_tensor(x: NDArray[np.generic], tensor: Tensor) -> U8:
    """The codes of an array in the shape of ``tensor`` (channels last).

    Raises `errors.InputError` for another shape, NaN or infinity.
    """
    if list(x.shape) != tensor.shape:
        raise errors.InputError(
            f"the array has the shape {list(x.shape)}; the model takes {tensor.shape}",
            shape=tensor.shape,
            reason="other-shape",
        )
    values = x.astype(np.float64)
    if not np.isfinite(values).all():
        raise errors.InputError("the input contains NaN or infinite values; send finite numbers", reason="not-finite")
    return _codes(values, tensor.scale, tensor.zero_point)


def input_quantization(preprocess: Preprocess) -> tuple[float, int]:
    """The scale (an exact float32) and zero point of the head's input with the least error on normalized pixels.

    With one integer mean and one std for all channels, codes equal pixels. Otherwise this searches near the range,
    because a zero between two codes would put half of the pixel values on ties.
    """
    real = _real_table(preprocess)
    lo, hi = min(real.min(), 0.0), max(real.max(), 0.0)
    best = (np.inf, 1.0, 0)
    for steps in np.linspace(255.0, 250.0, 21):
        scale = float(np.float32((hi - lo) / steps))
        for zero in {int(np.floor(-lo / scale)), int(np.ceil(-lo / scale))}:
            zero_point = min(max(zero, 0), 255)
            back = scale * (_codes(real, scale, zero_point).astype(np.float64) - zero_point)
            best = min(best, (float(((back - real) ** 2).mean()), scale, zero_point))
    return best[1], best[2]


def _real_table(preprocess: Preprocess) -> F64:
    """The normalized value of each pixel value and channel, [256, C]."""
    channels = preprocess.shape[-1]
    mean, std = (np.broadcast_to(np.array(v, np.float64), channels) for v in (preprocess.mean, preprocess.std))
    return (np.arange(256.0)[:, None] - mean) / std


def _codes(values: F64, scale: float, zero_point: int) -> U8:
    codes: U8 = np.clip(np.rint(values / np.float64(scale)) + zero_point, 0, 255).astype(np.uint8)
    return codes
