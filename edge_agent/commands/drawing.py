"""Draws boxes and maps over the images that they belong to."""

from __future__ import annotations

import colorsys
import io
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edge_agent.inputs.sources import is_array
from edge_agent.runtime.results import Box, Result
from splitedge import errors
from splitedge.head import preprocess
from splitedge.terminal import plain, shorten

_OPACITY: Final = 0.5  # of a map
_GOLDEN: Final = 0.61803  # turns of the colour circle between two classes, so that neighbours differ
_QUALITY: Final = 90  # of JPEG
_LABEL: Final = 40  # characters of a label

Colour = tuple[int, int, int]


def draw(data: bytes | str, result: Result) -> bytes:
    """The image in ``data`` with the boxes or the map of ``result``, as JPEG.

    Raises `errors.UsageError` for an answer without them, and `errors.InputError` for a frame that is no image.
    """
    if not result.task:
        raise errors.UsageError(
            "this model answers with neither boxes nor maps, so there is nothing to draw; omit --save", reason="no-task"
        )
    if isinstance(data, str) or is_array(data):
        raise errors.InputError("an array or a text cannot be drawn; omit --save, or give images", reason="no-image")
    image = preprocess.load_image(data).convert("RGB")
    if result.map is not None:
        image = _with_map(image, result)
    pen = ImageDraw.Draw(image)
    for box in reversed(result.boxes):  # the best on top
        _draw_box(pen, image.size, box)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def colour(index: int) -> Colour:
    """The colour of a class: bright, and far from those of its neighbours."""
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1.0, 0.8, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _with_map(image: Image.Image, result: Result) -> Image.Image:
    """``image`` under the colours of the map; class 0, the background of most models, stays clear."""
    assert result.map is not None
    left, top, width, height = result.placement
    rows, columns = result.map.shape
    area = (max(0, round(left)), max(0, round(top)))
    end = (min(image.width, round(left + width)), min(image.height, round(top + height)))
    size = (max(1, end[0] - area[0]), max(1, end[1] - area[1]))
    shown = (
        max(0.0, (area[0] - left) / width * columns),
        max(0.0, (area[1] - top) / height * rows),
        min(float(columns), (area[0] + size[0] - left) / width * columns),
        min(float(rows), (area[1] + size[1] - top) / height * rows),
    )  # the part of the map that lies over the image: borders may be much larger than it
    whole = Image.fromarray(result.map.astype(np.int32), "I")
    classes = np.asarray(whole.resize(size, Image.Resampling.NEAREST, box=shown))
    palette = np.array([colour(i) for i in range(int(classes.max(initial=0)) + 1)], np.uint8)
    colours = Image.fromarray(palette[classes])
    strength = Image.fromarray((255 * _OPACITY * (classes > 0)).astype(np.uint8))
    found = image.copy()
    found.paste(colours, area, strength)
    return found


def _draw_box(pen: ImageDraw.ImageDraw, size: tuple[int, int], box: Box) -> None:
    """Draw ``box``, its points and its label inside an image of ``size``."""
    left, right = (min(max(x, 0.0), size[0] - 1.0) for x in sorted((box.left, box.right)))
    top, bottom = (min(max(y, 0.0), size[1] - 1.0) for y in sorted((box.top, box.bottom)))
    line, ink = max(2, min(size) // 200), colour(box.index)
    pen.rectangle((left, top, right, bottom), outline=ink, width=line)
    for x, y in box.points:
        pen.ellipse((x - line, y - line, x + line, y + line), fill=ink)
    font = ImageFont.load_default(max(12, min(size) // 30))
    text = f"{shorten(plain(box.label), _LABEL)} {box.score:.2f}"
    area = pen.textbbox((0, 0), text, font=font)
    place = (left, max(0.0, top - (area[3] - area[1]) - 2 * line))
    pen.rectangle(pen.textbbox(place, text, font=font), fill=ink)
    pen.text(place, text, fill=(0, 0, 0), font=font)
