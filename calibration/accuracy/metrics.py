"""The accuracy metrics: what counts as lost, and the accuracy model that predicts it.

A metric compares a model's outputs with those of the float model. `of` chooses one by name:

- ``top1``, ``agreement``: answers of classes, against labels or against the float model (`drop_model`).
- ``cosine``: 1 - cosine between the outputs (`cosine_model`).
- ``boxes``: boxes of a detector without a partner in the float model's answer, and the other way round.
- ``pixels``: pixels of a segmenter whose class is not the float model's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from calibration.accuracy import cosine_model, drop_model, evaluation
from splitedge import errors
from splitedge.head import answers
from splitedge.protocol.messages import Detection, Output, Segmentation
from splitedge.tasks import detection, segmentation
from splitedge.tasks.detection import Boxes

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

Name = Literal["top1", "agreement", "cosine", "boxes", "pixels"]
AccuracyModel: TypeAlias = drop_model.AccuracyModel | cosine_model.FidelityModel


class Metric(Protocol):
    """A metric on the samples whose float outputs [n, ...] the methods receive."""

    def energy(self, outputs: F32) -> float:
        """The reference energy of noise: about the noise at which answers change."""

    def compare(self, outputs: F32, found: F32) -> tuple[float, float, float, float]:
        """Points lost by ``found``, the ends of their 95 % interval, and the agreement of the answers (0 to 1)."""

    def fit(self, outputs: F32, deltas: Sequence[F32], noises: Sequence[float]) -> AccuracyModel:
        """The accuracy model for variants with ``deltas`` [n, ...] and predicted ``noises``."""


def of(name: Name, output: Output, classes: I64 | None) -> Metric:
    """The metric ``name`` for a model with ``output``; ``classes``: the labels of the samples, for ``top1``."""
    if isinstance(output.task, Detection):
        return _Boxes(output, output.task)
    if isinstance(output.task, Segmentation):
        return _Pixels(output, output.task)
    return _Cosine() if name == "cosine" else _Answers(classes)


class _Answers:
    def __init__(self, classes: I64 | None) -> None:
        self._classes = classes

    def energy(self, outputs: F32) -> float:
        return drop_model.threshold(_rows(outputs))

    def compare(self, outputs: F32, found: F32) -> tuple[float, float, float, float]:
        return evaluation.compare(evaluation.top1(outputs), evaluation.top1(found), self._classes)

    def fit(self, outputs: F32, deltas: Sequence[F32], noises: Sequence[float]) -> AccuracyModel:
        return drop_model.fit(_rows(outputs), self._classes, [_rows(delta) for delta in deltas], noises)


class _Cosine:
    def energy(self, outputs: F32) -> float:
        return cosine_model.energy(outputs)

    def compare(self, outputs: F32, found: F32) -> tuple[float, float, float, float]:
        return cosine_model.compare(outputs, found)

    def fit(self, outputs: F32, deltas: Sequence[F32], noises: Sequence[float]) -> AccuracyModel:
        return cosine_model.fit(_rows(outputs), [_rows(delta) for delta in deltas], noises)


class _Boxes:
    """A box is lost or gained if `detection.matched` finds no partner for it.

    A sample's share is 1 - F1: boxes without a partner in either answer, over the boxes of both.
    """

    def __init__(self, output: Output, task: Detection) -> None:
        self._output, self._task = output, task

    def energy(self, outputs: F32) -> float:
        return cosine_model.energy(outputs)

    def compare(self, outputs: F32, found: F32) -> tuple[float, float, float, float]:
        pairs = list(zip(self._boxes(outputs), self._boxes(found), strict=True))
        every = sum(len(a) + len(b) for a, b in pairs)
        apart = sum(_apart(a, b) for a, b in pairs)
        if not every:
            return 0.0, 0.0, 100.0, 1.0
        low, high = evaluation.wilson(apart, every)
        return 100.0 * apart / every, 100.0 * low, 100.0 * high, 1.0 - apart / every

    def fit(self, outputs: F32, deltas: Sequence[F32], noises: Sequence[float]) -> AccuracyModel:
        known = self._boxes(outputs)
        units = 2 * sum(map(len, known))
        if not units:
            raise no_boxes(self._task)

        def count(found: F32) -> tuple[int, int]:
            return min(units, sum(map(_apart, known, self._boxes(found)))), 0

        flat = [_rows(delta) for delta in deltas]
        return drop_model.fit_counts(_rows(outputs), count, "boxes", flat, noises, units)

    def _boxes(self, outputs: F32) -> list[Boxes]:
        rows = [answers.real(one, self._output) for one in _rows(outputs)]
        return [answers.boxes_of(one, self._output, self._task) for one in rows]


class _Pixels:
    def __init__(self, output: Output, task: Segmentation) -> None:
        self._shape, self._task = output.shape, task

    def energy(self, outputs: F32) -> float:
        return cosine_model.energy(outputs)

    def compare(self, outputs: F32, found: F32) -> tuple[float, float, float, float]:
        losses = self._losses(self._maps(outputs), found)
        return *cosine_model.mean_interval(losses, 100.0), 1.0 - float(losses.mean())

    def fit(self, outputs: F32, deltas: Sequence[F32], noises: Sequence[float]) -> AccuracyModel:
        known, flat = self._maps(outputs), [_rows(delta) for delta in deltas]
        return cosine_model.fit_losses(
            _rows(outputs), lambda found: self._losses(known, found), "pixels", known[0].size, flat, noises
        )

    def _maps(self, outputs: F32) -> list[segmentation.Map]:
        return [segmentation.decode(one.reshape(self._shape), self._task) for one in outputs]

    def _losses(self, known: Sequence[segmentation.Map], found: F32) -> F64:
        return np.array([(a != b).mean() for a, b in zip(known, self._maps(found), strict=True)])


def no_boxes(task: Detection) -> errors.InputError:
    """The error of samples without boxes: nothing can be measured on them."""
    return errors.InputError(
        f"the float model finds no box with a score of at least {task.score:g} on these samples; give images that show "
        "what it detects, or lower --score",
        reason="no-boxes",
    )


def _apart(one: Boxes, other: Boxes) -> int:
    """The boxes of both answers without a partner in the other."""
    return len(one) + len(other) - 2 * detection.matched(one, other)


def _rows(outputs: F32) -> F32:
    return outputs.reshape(len(outputs), math.prod(outputs.shape[1:]))
