"""What the outputs of a model mean, from the options of `edge-server add`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Literal, TypeAlias

import msgspec

from splitedge import errors
from splitedge.protocol.messages import Columns, Detection, Segmentation, Task
from splitedge.tasks import detection

TaskName: TypeAlias = Literal["auto", "detection", "segmentation"]
BoxFormat: TypeAlias = Literal["yolov8", "yolov5", "yolov10", "detr", "rt-detr", "tf-ssd", "blazeface"]

#: MediaPipe's face detectors: input size and number of boxes -> strides of the grids, and boxes in a cell of each.
_GRIDS: Final = {
    (128, 896): ((8, 16, 16, 16), 2),
    (256, 896): ((16, 32, 32, 32), 2),
    (192, 2304): ((4,), 1),
}


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """``boxes``: the format of a detector's outputs. ``threshold``: of a map with one value for each pixel.

    Options that are None have the default of the format.
    """

    task: TaskName = "auto"
    boxes: BoxFormat | None = None
    score: float | None = None
    iou: float | None = None
    threshold: float | None = None

    def overridden(self, given: TaskOptions) -> TaskOptions:
        """These options where ``given`` leaves them open; ``given`` alone if it names another task."""
        if given.task not in ("auto", self.task):
            return given
        default = TaskOptions()
        changed = {one.name: getattr(given, one.name) for one in fields(self)}
        return replace(self, **{name: value for name, value in changed.items() if value != getattr(default, name)})

    def check(self) -> None:
        """Raise `errors.UsageError` for options that do not belong together."""
        detects = self.task == "detection"
        boxes = [name for name in ("boxes", "score", "iou") if getattr(self, name) is not None]
        if boxes and not detects:
            raise errors.UsageError(
                f"--{boxes[0]} applies to detectors; add --task detection, or omit it", reason="only-for-detection"
            )
        if detects and self.boxes is None:
            raise errors.UsageError(
                f"a detector needs the format of its boxes; give --boxes ({', '.join(FORMATS)})", reason="no-boxes"
            )
        if self.threshold is not None and self.task != "segmentation":
            raise errors.UsageError(
                "--threshold applies to segmentation; add --task segmentation, or omit it",
                reason="only-for-segmentation",
            )

    def task_of(self, shapes: Sequence[Sequence[int]], size: tuple[int, int]) -> Task | None:
        """The task of a model with outputs of ``shapes`` (without the batch axis) and an input of ``size`` (width,
        height); None for classes and tensors.

        Raises `errors.ModelError` if the outputs do not have the format.
        """
        if self.task == "segmentation":
            return self._map(shapes[0], size)
        if self.task != "detection":
            return None
        assert self.boxes is not None
        try:
            made = FORMATS[self.boxes]([detection.table(shape) for shape in shapes], size)
        except (IndexError, KeyError, StopIteration, ValueError) as error:
            raise errors.ModelError(
                f"the outputs have the shapes {[list(shape) for shape in shapes]}, which are not those of {self.boxes}; "
                "choose another --boxes, or other tensors with --output",
                reason="boxes",
            ) from error
        given = {"score": self.score, "iou": self.iou}
        made = msgspec.structs.replace(made, **{name: value for name, value in given.items() if value is not None})
        detection.check(made, shapes)
        return made

    def _map(self, shape: Sequence[int], size: tuple[int, int]) -> Segmentation:
        """The classes are on the first or the last of three axes, so that the map has the input's proportions.

        A map of two axes is binary. ``size``: width and height of the input.
        """
        axes = [axis for axis, length in enumerate(shape) if length > 1]
        if len(axes) <= 2:
            return Segmentation(None, 0.5 if self.threshold is None else self.threshold)
        if self.threshold is not None:
            raise errors.UsageError(
                f"an output of the shape {list(shape)} has classes, so --threshold has no effect; omit it",
                reason="threshold",
            )
        first, *_, last = axes

        def distortion(rows: int, columns: int) -> float:
            return abs(math.log(shape[rows] / shape[columns] * size[0] / size[1]))

        return Segmentation(last if distortion(axes[0], axes[1]) < distortion(axes[1], axes[2]) else first)


# --- formats: rows and columns of the outputs, and the input's width and height -> the boxes ----------------


def _yolov8(shapes: Sequence[Sequence[int]], size: tuple[int, int]) -> Detection:
    """One table [4 + classes, N]."""
    rows, columns = shapes[0]
    return Detection(
        Columns(0, 0, 4, turned=rows <= columns),
        Columns(0, 4, min(rows, columns) - 4, turned=rows <= columns),
        width=size[0],
        height=size[1],
    )


def _yolov5(shapes: Sequence[Sequence[int]], size: tuple[int, int]) -> Detection:
    """One table [N, 5 + classes]."""
    _, columns = shapes[0]
    return Detection(
        Columns(0, 0, 4), Columns(0, 5, columns - 5), width=size[0], height=size[1], certainty=Columns(0, 4, 1)
    )


def _yolov10(shapes: Sequence[Sequence[int]], size: tuple[int, int]) -> Detection:
    """One table [N, 6] of corners, score and class, already without overlaps."""
    if shapes[0][1] != 6:
        raise ValueError
    return Detection(
        Columns(0, 0, 4),
        Columns(0, 4, 1),
        layout="corners",
        width=size[0],
        height=size[1],
        classes=Columns(0, 5, 1),
        iou=1.0,
    )


def _detr(shapes: Sequence[Sequence[int]], size: tuple[int, int]) -> Detection:  # noqa: ARG001  one signature
    """Tables of boxes [N, 4] and scores [N, classes + 1]."""
    scores = [shape[1] for shape in shapes[:2]].index(4) ^ 1
    scores = 0 if shapes[0][1] == shapes[1][1] else scores  # exports have the scores first
    boxes = 1 - scores
    return Detection(
        Columns(boxes, 0, 4), Columns(scores, 0, shapes[scores][1]), activation="softmax", score=0.5, iou=1.0
    )


def _rt_detr(shapes: Sequence[Sequence[int]], size: tuple[int, int]) -> Detection:
    """Tables of boxes [N, 4] and scores [N, classes]."""
    return msgspec.structs.replace(_detr(shapes, size), activation="sigmoid")


def _tf_ssd(shapes: Sequence[Sequence[int]], size: tuple[int, int]) -> Detection:  # noqa: ARG001  one signature
    """TensorFlow's `TFLite_Detection_PostProcess`: boxes [N, 4], classes [N], scores [N]."""
    return Detection(
        Columns(0, 0, 4),
        Columns(2, 0, 1),
        layout="corners",
        rows_first=True,
        classes=Columns(1, 0, 1),
        score=0.5,
        iou=1.0,
    )


def _blazeface(shapes: Sequence[Sequence[int]], size: tuple[int, int]) -> Detection:
    """MediaPipe's face detectors: boxes with six points [N, 16] and scores [N]."""
    boxes = next(i for i, shape in enumerate(shapes) if shape[1] >= 16)
    count, columns = shapes[boxes]
    strides, each = _GRIDS[size[0], count]
    return Detection(
        Columns(boxes, 0, 4),
        Columns(1 - boxes, 0, 1),
        width=size[0],
        height=size[1],
        anchors=detection.grid_anchors(size[0], strides, each).astype("<f4").tobytes(),
        activation="sigmoid",
        points=Columns(boxes, 4, columns - 4),
        score=0.5,
        iou=0.3,
    )


FORMATS: Final[dict[BoxFormat, Callable[[Sequence[Sequence[int]], tuple[int, int]], Detection]]] = {
    "yolov8": _yolov8,
    "yolov5": _yolov5,
    "yolov10": _yolov10,
    "detr": _detr,
    "rt-detr": _rt_detr,
    "tf-ssd": _tf_ssd,
    "blazeface": _blazeface,
}
