"""Formats of boxes and maps, from the options of `add`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge_server.importing.task import FORMATS, TaskOptions
from splitedge import errors
from splitedge.protocol.messages import Columns, Detection, Segmentation
from splitedge.tasks import detection
from tests.raising import raises

SHAPES: dict[str, list[list[int]]] = {
    "yolov8": [[84, 8400]],
    "yolov5": [[25200, 85]],
    "yolov10": [[300, 6]],
    "detr": [[100, 92], [100, 4]],
    "rt-detr": [[300, 80], [300, 4]],
    "tf-ssd": [[10, 4], [10], [10], [1]],
    "blazeface": [[896, 16], [896, 1]],
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_fits_the_outputs_of_its_models(name: str) -> None:
    shapes = SHAPES[name]
    made = TaskOptions("detection", name).task_of(shapes, (128, 128))  # type: ignore[arg-type]
    assert isinstance(made, Detection)
    assert detection.check(made, shapes) == max(shapes[0][:2]) if name != "tf-ssd" else 10
    zeros = detection.decode([np.zeros(shape, np.float32) for shape in shapes], made)
    assert len(zeros) <= made.most


def test_options_override_a_formats_defaults() -> None:
    made = TaskOptions("detection", "yolov8", score=0.7, iou=0.2).task_of(SHAPES["yolov8"], (640, 480))
    assert isinstance(made, Detection)
    assert (made.score, made.iou, made.width, made.height) == (0.7, 0.2, 640, 480)
    assert made.scores == Columns(0, 4, 80, turned=True)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shapes", [[[10]], [[3, 224, 224]], [[7, 9], [5, 4]], [[896, 16]], []])
def test_outputs_of_other_models_are_refused(name: str, shapes: list[list[int]]) -> None:
    if name in ("yolov5", "yolov8") and len(shapes[:1]) == 1 and len(shapes[0]) == 2:
        return  # a table that could be theirs
    with pytest.raises(errors.ModelError) as refused:
        TaskOptions("detection", name).task_of(shapes, (128, 128))  # type: ignore[arg-type]
    assert refused.value.data["reason"] == "boxes"


@pytest.mark.parametrize(
    ("shape", "options", "wanted"),
    [
        ([21, 65, 65], TaskOptions("segmentation"), Segmentation(0)),
        ([65, 65, 21], TaskOptions("segmentation"), Segmentation(2)),
        ([150, 128, 128], TaskOptions("segmentation"), Segmentation(0)),
        ([128, 128, 150], TaskOptions("segmentation"), Segmentation(2)),
        ([1, 2, 65, 65], TaskOptions("segmentation"), Segmentation(1)),
        ([1, 65, 65], TaskOptions("segmentation"), Segmentation(None, 0.5)),
        ([65, 65], TaskOptions("segmentation", threshold=0.0), Segmentation(None, 0.0)),
    ],
)
def test_a_map_has_the_proportions_of_the_input(shape: list[int], options: TaskOptions, wanted: Segmentation) -> None:
    assert options.task_of([shape], (65, 65)) == wanted


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (TaskOptions(boxes="yolov8"), "only-for-detection"),
        (TaskOptions("segmentation", score=0.5), "only-for-detection"),
        (TaskOptions("detection"), "no-boxes"),
        (TaskOptions("detection", "yolov8", threshold=0.5), "only-for-segmentation"),
        (TaskOptions(threshold=math.inf), "only-for-segmentation"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(options: TaskOptions, reason: str) -> None:
    with raises(errors.UsageError, reason=reason):
        options.check()


def test_ambiguous_shapes_are_read_as_exports_write_them() -> None:
    square = TaskOptions("detection", "yolov8").task_of([[84, 84]], (64, 64))
    one = TaskOptions("detection", "rt-detr").task_of([[300, 4], [300, 1]], (640, 640))
    three = TaskOptions("detection", "detr").task_of([[100, 4], [100, 4]], (640, 640))
    assert isinstance(square, Detection)
    assert isinstance(one, Detection)
    assert isinstance(three, Detection)
    assert square.boxes.turned
    assert (one.boxes.part, one.scores) == (0, Columns(1, 0, 1))
    assert (three.boxes.part, three.scores.part) == (1, 0)


def test_without_a_task_outputs_are_classes_or_tensors() -> None:
    assert TaskOptions().task_of([[1000]], (224, 224)) is None
    with raises(errors.UsageError, reason="threshold"):
        TaskOptions("segmentation", threshold=0.5).task_of([[21, 65, 65]], (65, 65))
