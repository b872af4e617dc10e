"""Boxes from the outputs of a detector: decoding, non-maximum suppression, and the agreement of two answers.

Coordinates are relative to the model's input: (0, 0) is its top left corner and (1, 1) its bottom right one. Server,
agent and calibration share this module, so an answer does not depend on where the network ends.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitedge import errors, limits
from splitedge.protocol.messages import Columns, Detection

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

#: Overlap (IoU) from which two boxes show the same thing, as in PASCAL VOC's mAP.
SAME: Final = 0.5

_BELOW: Final = 8.0  # of the least score's logit: 3 in 10,000 of its odds
_CERTAIN: Final = 20.0  # the logit of a score of 1 in float32

_COUNT: Final = struct.Struct("<HH")  # boxes, points of a box
_EXPONENT: Final = 20.0  # bound of the exponent of a size: exp(20) times an anchor is outside of every image


@dataclass(frozen=True, eq=False)
class Boxes:
    """The ``n`` boxes of one answer, best first.

    ``classes`` int64 [n]; ``scores`` float32 [n]; ``corners`` float32 [n, 4]: left, top, right, bottom; ``points``
    float32 [n, P, 2]: x and y of each key point.
    """

    classes: I64
    scores: F32
    corners: F32
    points: F32

    def __len__(self) -> int:
        return len(self.classes)


def decode(parts: Sequence[F32], task: Detection) -> Boxes:
    """The boxes in the outputs ``parts`` of a detector, each in its shape without the batch axis.

    Boxes with a score below ``task.score`` are left out. Of two boxes of a class that overlap by more than ``task.iou``
    the better one stays. At most ``task.most`` boxes stay. Among equal scores the first box is first.
    """
    classes, scores = _classes(parts, task)
    kept = np.flatnonzero(scores >= task.score)
    kept = kept[np.argsort(-scores[kept], kind="stable")][: limits.MAX_CANDIDATES]
    classes, scores = classes[kept], scores[kept]
    anchors = _anchors(task)[kept] if task.anchors else None
    corners = _corners(_columns(parts, task.boxes)[kept].astype(np.float64), task, anchors)
    chosen = suppress(corners, scores, classes, task.iou)[: task.most]
    points = _points(parts, task, kept[chosen], None if anchors is None else anchors[chosen])
    return Boxes(
        classes[chosen],
        scores[chosen].astype(np.float32),
        corners[chosen].astype(np.float32),
        points.astype(np.float32),
    )


def check(task: Detection, shapes: Sequence[Sequence[int]]) -> int:
    """The number of candidates in outputs of ``shapes``.

    Raises `errors.ModelError` if ``task`` does not fit the outputs, or exceeds the limits.
    """
    rows = {_rows(columns, shapes) for columns in _used(task)}
    if len(rows) != 1 or 0 in rows or task.boxes.count != 4:
        raise errors.ModelError(
            f"the boxes do not fit outputs of the shapes {[list(shape) for shape in shapes]}; choose another --boxes, "
            "or other tensors with --output",
            reason="boxes",
        )
    (found,) = rows
    points = 0 if task.points is None else task.points.count
    numbers = (task.width, task.height, task.score, task.iou)
    single = [columns.count for columns in (task.certainty, task.classes) if columns is not None]
    if (
        points % 2
        or any(count != 1 for count in single)
        or (task.classes is not None and task.scores.count != 1)
        or not 0 <= task.score <= 1
        or not 0 <= task.iou <= 1
        or points > 2 * limits.MAX_POINTS
        or task.scores.count > limits.MAX_CLASS + 1
        or (task.activation == "softmax" and task.scores.count < 2)
        or not 1 <= task.most <= limits.MAX_BOXES
        or not all(math.isfinite(number) for number in numbers)
        or not (task.width > 0 and task.height > 0)
    ):
        raise errors.ModelError(
            f"the description of the boxes is out of range: at most {limits.MAX_BOXES} boxes with {limits.MAX_POINTS} "
            "points; correct it",
            reason="boxes-range",
        )
    if task.anchors and (len(task.anchors) != 16 * found or found > limits.MAX_ANCHORS or not _finite(task)):
        raise errors.ModelError(
            f"there are {len(task.anchors) // 16} anchors for {found} boxes; give one finite anchor for each box, at "
            f"most {limits.MAX_ANCHORS}",
            reason="anchors",
        )
    return found


def bounds(task: Detection, shapes: Sequence[Sequence[int]]) -> dict[int, tuple[float, float]]:
    """For an output that holds logits of scores only, by its index: the values beyond which they make no difference.

    Detectors answer logits of -9,000 for background. If such values counted, they would hide the noise of the others.
    """
    columns = task.scores
    whole = columns.part < len(shapes) and math.prod(shapes[columns.part]) == columns.count * _rows(columns, shapes)
    if task.activation != "sigmoid" or not whole or not 0 < task.score < 1:
        return {}
    least = math.log(task.score / (1 - task.score)) - _BELOW
    return {columns.part: (least, max(_CERTAIN, least + 2 * _BELOW))}


def _used(task: Detection) -> list[Columns]:
    every = (task.boxes, task.scores, task.certainty, task.classes, task.points)
    return [columns for columns in every if columns is not None]


def _rows(columns: Columns, shapes: Sequence[Sequence[int]]) -> int:
    """The number of rows of the table that holds ``columns``; 0 if there is no such table."""
    if not 0 <= columns.part < len(shapes):
        return 0
    try:
        rows, width = table(shapes[columns.part])
    except ValueError:
        return 0
    rows, width = (width, rows) if columns.turned else (rows, width)
    inside = columns.first >= 0 and columns.count > 0 and columns.first + columns.count <= width
    return rows if inside else 0


def _finite(task: Detection) -> bool:
    return bool(np.isfinite(_anchors(task)).all())


def suppress(corners: F64, scores: F64, classes: I64, iou: float) -> I64:
    """Greedy non-maximum suppression by class: indices of the boxes that stay.

    ``corners`` [n, 4] and ``classes`` [n] are in order of ``scores`` [n], best first. A box goes if it overlaps a
    better one of its class that stays by more than ``iou``.
    """
    alive = np.ones(len(scores), np.bool_)
    for i in range(len(scores)):
        if alive[i]:
            later = np.flatnonzero(alive[i + 1 :] & (classes[i + 1 :] == classes[i])) + i + 1
            alive[later[overlaps(corners[i], corners[later]) > iou]] = False
    return np.flatnonzero(alive)


def overlaps(one: F64 | F32, others: F64 | F32) -> F64:
    """Intersection over union of the box ``one`` [4] with each of ``others`` [n, 4]; 0 if both are empty."""
    a, b = one.astype(np.float64), others.astype(np.float64)
    sides = np.minimum(a[2:], b[:, 2:]) - np.maximum(a[:2], b[:, :2])
    shared = np.maximum(sides, 0.0).prod(axis=1)
    union = _area(a[None])[0] + _area(b) - shared
    found: F64 = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found


def matched(one: Boxes, other: Boxes) -> int:
    """The number of pairs of boxes of the same class that overlap by at least `SAME`, each box in one pair.

    Pairs with the largest overlap come first.
    """
    if not len(one) or not len(other):
        return 0
    found = np.stack([overlaps(corners, other.corners) for corners in one.corners])
    found[one.classes[:, None] != other.classes[None]] = 0.0
    pairs = 0
    for place in np.argsort(-found, axis=None, kind="stable"):
        i, j = divmod(int(place), len(other))
        if found[i, j] >= SAME:
            pairs += 1
            found[i], found[:, j] = -1.0, -1.0
        elif found[i, j] >= 0:
            break
    return pairs


def pack(boxes: Boxes) -> bytes:
    """``boxes`` as bytes: their number and that of a box's points, then all classes, scores, corners and points."""
    points = boxes.points.shape[1]
    return b"".join(
        [
            _COUNT.pack(len(boxes), points),
            boxes.classes.astype("<u2").tobytes(),
            boxes.scores.astype("<f4").tobytes(),
            boxes.corners.astype("<f4").tobytes(),
            boxes.points.astype("<f4").tobytes(),
        ]
    )


def unpack(data: bytes | bytearray | memoryview, task: Detection) -> Boxes:
    """The inverse of `pack` for an answer of ``task``. Raises `errors.ProtocolError`."""
    n, points = _COUNT.unpack_from(data) if len(data) >= _COUNT.size else (0, 0)
    sizes = [2 * n, 4 * n, 16 * n, 8 * n * points]
    own_points = 0 if task.points is None else task.points.count // 2
    if len(data) != _COUNT.size + sum(sizes) or n > task.most or points != own_points:
        raise errors.ProtocolError(f"an answer of {len(data)} bytes holds no boxes", reason="answer-bytes")
    ends = np.cumsum([_COUNT.size, *sizes])
    classes, scores, corners, places = (
        np.frombuffer(data[start:end], kind)
        for start, end, kind in zip(ends[:-1], ends[1:], ("<u2", "<f4", "<f4", "<f4"), strict=True)
    )
    known = limits.MAX_CLASS + 1 if task.classes is not None else task.scores.count - (task.activation == "softmax")
    if not all(np.isfinite(values).all() for values in (scores, corners, places)) or classes.max(initial=0) >= known:
        raise errors.ProtocolError(
            "an answer holds boxes that are not finite or not of the model", reason="answer-bytes"
        )
    return Boxes(
        classes.astype(np.int64),
        scores.astype(np.float32),
        corners.astype(np.float32).reshape(n, 4),
        places.astype(np.float32).reshape(n, points, 2),
    )


def grid_anchors(size: int, strides: Sequence[int], each: int) -> F32:
    """The centres of the cells of grids with ``strides`` over a square input of ``size``, ``each`` times per cell.

    float32 [N, 4]: centre x and y relative to the input, and a width and height of 1. So MediaPipe's detectors number
    their boxes; neighbouring strides of the same length share a grid.
    """
    found: list[tuple[float, float, float, float]] = []
    at = 0
    while at < len(strides):
        alike = 1
        while at + alike < len(strides) and strides[at + alike] == strides[at]:
            alike += 1
        cells = math.ceil(size / strides[at])
        for y in range(cells):
            for x in range(cells):
                found += [((x + 0.5) / cells, (y + 0.5) / cells, 1.0, 1.0)] * (each * alike)
        at += alike
    return np.array(found, np.float32)


# --- the pieces of `decode` -------------------------------------------------------------------------------------------


def _columns(parts: Sequence[F32], where: Columns) -> F32:
    """The columns ``where`` of an output, [N, count]."""
    values = parts[where.part]
    cells = values.reshape(table(values.shape))
    return (cells.T if where.turned else cells)[:, where.first : where.first + where.count]


def table(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of an output of ``shape``, without axes of 1 ahead. Raises `ValueError` for more than two axes."""
    sizes = list(shape)
    while len(sizes) > 2 and 1 in sizes:
        sizes.remove(1)
    if len(sizes) > 2:
        raise ValueError(f"{list(shape)} is no table")
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (math.prod(sizes), 1)


def _classes(parts: Sequence[F32], task: Detection) -> tuple[I64, F64]:
    """The best class of each candidate [N], and its score."""
    scores = _activated(_columns(parts, task.scores).astype(np.float64), task)
    if task.certainty is not None:
        scores = scores * _columns(parts, task.certainty)
    if task.classes is not None:
        named = np.clip(_columns(parts, task.classes)[:, 0], 0, limits.MAX_CLASS)
        return named.astype(np.int64), scores[:, 0]
    best = scores.argmax(axis=1)
    return best, scores[np.arange(len(scores)), best]


def _activated(scores: F64, task: Detection) -> F64:
    if task.activation == "sigmoid":
        return 0.5 * (1.0 + np.tanh(0.5 * scores))
    if task.activation == "softmax":  # the last class is "nothing"
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray((powers / powers.sum(axis=1, keepdims=True))[:, :-1])
    return scores


def _anchors(task: Detection) -> F64:
    return np.frombuffer(task.anchors, "<f4").reshape(-1, 4).astype(np.float64)


def _corners(boxes: F64, task: Detection, anchors: F64 | None) -> F64:
    """Left, top, right and bottom [n, 4] relative to the input."""
    if task.rows_first:
        boxes = boxes[:, [1, 0, 3, 2]]
    boxes = boxes / np.array([task.width, task.height] * 2)
    if anchors is not None:
        centres = boxes[:, :2] * anchors[:, 2:] + anchors[:, :2]
        sizes = np.exp(np.minimum(boxes[:, 2:], _EXPONENT)) if task.exponential else boxes[:, 2:]
        boxes = np.concatenate([centres, sizes * anchors[:, 2:]], axis=1)
    elif task.layout == "corners":
        return boxes
    half: F64 = boxes[:, 2:] / 2
    found: F64 = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    return found


def _points(parts: Sequence[F32], task: Detection, rows: I64, anchors: F64 | None) -> F64:
    """The key points [n, P, 2] of the candidates ``rows``, relative to the input."""
    if task.points is None:
        return np.zeros((len(rows), 0, 2))
    found = _columns(parts, task.points)[rows].astype(np.float64).reshape(len(rows), task.points.count // 2, 2)
    places: F64 = found / np.array([task.width, task.height])
    if anchors is None:
        return places
    moved: F64 = places * anchors[:, None, 2:] + anchors[:, None, :2]
    return moved


def _area(corners: F64) -> F64:
    area: F64 = np.maximum(corners[:, 2:] - corners[:, :2], 0.0).prod(axis=1)
    return area
