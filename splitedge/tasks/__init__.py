"""What a model's output means beyond classes: boxes of a detector, classes of pixels.

detection.py     boxes from a detector's outputs, and how many boxes of two answers agree
segmentation.py  the class of each pixel
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from splitedge import errors, limits
from splitedge.protocol.messages import Detection, Output, Segmentation
from splitedge.tasks import detection, segmentation

_MAX_AXES: Final = 8
_GREATEST: Final = 1e30  # of a scale: times a value of a head it stays finite

__all__ = ["check", "classes", "fits"]


def check(output: Output) -> None:
    """Raise `errors.ModelError` unless the parts and the task of ``output`` fit its values and are within limits."""
    shapes = [part.shape for part in output.parts] or [output.shape]
    if len(output.parts) > limits.MAX_PARTS:
        raise errors.ModelError(
            f"the model has {len(output.parts)} outputs (the maximum is {limits.MAX_PARTS}); choose some with --output",
            reason="outputs",
        )
    if not _consistent(output, shapes):
        raise errors.ModelError("the model's outputs do not fit its output; add the model again", reason="outputs")
    if isinstance(output.task, Detection):
        detection.check(output.task, shapes)
    elif isinstance(output.task, Segmentation):
        if output.parts:
            raise errors.ModelError(
                "segmentation needs one output with a value for each pixel; choose it with --output", reason="outputs"
            )
        pixels = math.prod(segmentation.shape(output.shape, output.task))
        if 2 * pixels > limits.MAX_FRAME_BYTES or math.prod(output.shape) > limits.MAX_ELEMENTS:
            raise errors.ModelError(
                f"a map of {pixels} pixels is larger than an answer may be; choose a smaller tensor with --output",
                reason="output-too-large",
            )


def _consistent(output: Output, shapes: Sequence[Sequence[int]]) -> bool:
    """Whether the parts make up the output, each with a name of its own, and nothing else explains its values."""
    if not output.parts and output.task is None:
        return True
    names = [part.name for part in output.parts]
    return (
        output.kind == "tensor"
        and output.greatest is None
        and len(set(names)) == len(names)
        and all(len(name) <= limits.MAX_NAME for name in names)
        and all(1 <= len(shape) <= _MAX_AXES and all(0 < n <= limits.MAX_DIM for n in shape) for shape in shapes)
        and sum(math.prod(shape) for shape in shapes) == math.prod(output.shape) <= limits.MAX_ELEMENTS
        and all(_positive(part.scale) for part in output.parts)
    )


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
    return float(np.finfo(np.float32).tiny) <= number <= _GREATEST
