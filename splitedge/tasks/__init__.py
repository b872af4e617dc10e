"""What a model's output means beyond classes: boxes of a detector, classes of pixels.

detection.py     boxes from a detector's outputs, and how many boxes of two answers agree
segmentation.py  the class of each pixel
"""

from __future__ import annotations

import math

from splitedge import errors, limits
from splitedge.protocol.messages import Detection, Output, Segmentation
from splitedge.tasks import detection, segmentation

__all__ = ["check", "classes", "fits"]


def check(output: Output) -> None:
    """Raise `errors.ModelError` unless the parts and the task of ``output`` fit its values and are within limits."""
    shapes = [part.shape for part in output.parts] or [output.shape]
    if len(output.parts) > limits.MAX_PARTS:
        raise errors.ModelError(
            f"the model has {len(output.parts)} outputs (the maximum is {limits.MAX_PARTS}); choose some with --output",
            reason="outputs",
        )
    whole = sum(math.prod(shape) for shape in shapes)
    if output.parts and (whole != math.prod(output.shape) or not all(_positive(part.scale) for part in output.parts)):
        raise errors.ModelError("the model's outputs do not fit its output; add the model again", reason="outputs")
    if isinstance(output.task, Detection):
        detection.check(output.task, shapes)
    elif isinstance(output.task, Segmentation):
        if output.parts:
            raise errors.ModelError(
                "segmentation needs one output with a value for each pixel; choose it with --output", reason="outputs"
            )
        segmentation.shape(output.shape, output.task)


def classes(output: Output) -> int:
    """The number of classes of a model with ``output``: of its answer, of its boxes, or of its pixels.

    0 if the output does not tell.
    """
    if isinstance(output.task, Detection):
        scores = output.task.scores.count - (output.task.activation == "softmax")
        return 0 if output.task.classes is not None else scores
    if isinstance(output.task, Segmentation):
        return segmentation.classes(output.shape, output.task)
    return math.prod(output.computed)


def fits(output: Output) -> bool:
    """Whether `check` accepts ``output``."""
    try:
        check(output)
    except errors.ModelError:
        return False
    return True


def _positive(number: float) -> bool:
    return math.isfinite(number) and number > 0
