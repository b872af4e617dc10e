"""Encoded images to decoded ones. Image bytes are hostile: their size, and the size of what they decode to, are checked first."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edge_agent import errors, limits


def decode_image(data: bytes, name: str = "the image") -> Image.Image:
    """The first picture in ``data`` (JPEG, PNG, WebP, ... as Pillow reads), turned as its EXIF orientation says.

    Raises `errors.InputError` for anything that is not a whole image within `limits.MAX_IMAGE_BYTES` and `limits.MAX_IMAGE_PIXELS`.
    """
    if not data:
        raise errors.InputError(f"{name} is empty; give a JPEG, PNG or WebP image", name=name)
    if len(data) > limits.MAX_IMAGE_BYTES:
        raise errors.InputError(
            f"{name} has {len(data)} bytes, more than the {limits.MAX_IMAGE_BYTES} allowed", name=name
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warning about big images: the next lines are the stricter check
            image = Image.open(io.BytesIO(data))
            _check_pixels(image, name)
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise errors.InputError(f"{name} is not an image; give a JPEG, PNG or WebP file", name=name) from error
    except errors.InputError:
        raise
    except (
        Exception
    ) as error:  # Pillow's decoders raise whatever they meet: OSError, SyntaxError, ValueError, struct.error, ...
        reason = f"{type(error).__name__}: {str(error)[:150]}"
        raise errors.InputError(f"{name} is a damaged or truncated image ({reason})", name=name) from error


def load_array(data: bytes, name: str = "the array") -> NDArray[np.generic]:
    """The array in ``data`` (.npy, never pickled). Raises `errors.InputError` for anything else."""
    if len(data) > limits.MAX_IMAGE_BYTES:
        raise errors.InputError(
            f"{name} has {len(data)} bytes, more than the {limits.MAX_IMAGE_BYTES} allowed", name=name
        )
    try:
        array: NDArray[np.generic] = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy's parser raises ValueError, EOFError, OSError, tokenize and Unicode errors
        raise errors.InputError(
            f"{name} is not a whole .npy array of numbers; save it with numpy.save", name=name
        ) from error
    if not isinstance(array, np.ndarray):
        raise errors.InputError(f"{name} is an archive of arrays; give one .npy array", name=name)
    return array


def _check_pixels(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > limits.MAX_IMAGE_PIXELS:
        raise errors.InputError(
            f"{name} has {width} x {height} pixels, more than the {limits.MAX_IMAGE_PIXELS} allowed; scale it down",
            name=name,
        )
