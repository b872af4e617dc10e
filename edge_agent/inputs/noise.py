"""A frame of noise, to try an agent without a photo."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np

from splitedge.head.answers import npy

_TEXT = "a test of the installation"


def noise(kind: Literal["image", "tensor", "ids", "text"], shape: list[int]) -> bytes | str:
    """A text, a PNG image or a .npy file of float32 or of token ids. ``shape``: of the model's input, channels last."""
    if kind == "text":
        return _TEXT
    if kind == "ids":
        return npy(np.ones(shape, np.int64))
    rng = np.random.default_rng(0)
    if kind == "tensor":
        return npy(rng.standard_normal(shape, np.float32))
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*shape[:2], 3), np.uint8)).save(file, "PNG")
    return file.getvalue()
