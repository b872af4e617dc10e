"""The float model on a few samples before calibration: wrong preprocessing shows at once, not after minutes."""

from __future__ import annotations

import math
import time
from typing import Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.accuracy import metrics
from calibration.accuracy.tail_runs import runner
from calibration.bundle.requirements import MetricChoice
from calibration.importing import outputs
from calibration.samples.samples import Samples, evenly
from edge_server.importing.preprocessing import Preset, fitting
from splitedge.head import answers
from splitedge.protocol.messages import Detection, OutputKind, Task

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

#: The largest number of samples, and the seconds for them and for all presets together: a slow model answers fewer.
MAX_SAMPLES: Final = 50
BUDGET_S: Final = 4.0
#: Timed runs of the model.
TIMED: Final = 3
#: Without labels, a preset must reach this multiple of the score margin x spread (`_certainty`). Measured on 50 samples
#: each of EfficientNet-Lite0, a MobileNetV2 for dogs and CNNs for Fashion-MNIST, with every preset: the right one
#: reached at least 0.9 times the score of any other.
CLEARLY: Final = 1.25
#: Fewer unlabelled samples give no evidence.
MIN_SAMPLES: Final = 10


class Look(NamedTuple):
    """The answers to ``samples`` samples.

    ``right``: how many are right; None without labels. ``confidence``: the mean of the greatest probability or score.
    """

    samples: int
    right: int | None
    confidence: float
    outputs: int
    kind: OutputKind

    def words(self) -> str:
        """One line for people."""
        if self.right is None and self.kind == "scores":
            return f"float model: mean greatest score {self.confidence:.3g} on {self.samples} samples"
        if self.right is None:
            return f"float model: mean confidence {100 * self.confidence:.1f} % on {self.samples} samples"
        return f"float model: {self.right} of {self.samples} samples right ({100 * self.right / self.samples:.1f} %)"


class BetterPresets(NamedTuple):
    """Presets that fit clearly better than the given preprocessing, and equally well among each other.

    ``right``, ``given``: right answers of ``samples`` with the first of them and with the given preprocessing; None
    without labels.
    """

    presets: list[str]
    samples: int
    right: int | None
    given: int | None

    def words(self) -> str:
        """One line for people."""
        evidence = "the answers are clearly more certain"
        if self.right is not None:
            evidence = f"{self.right} of {self.samples} samples are right, now {self.given}"
        return (
            f"warning: the preprocessing looks wrong: with --preset {' or '.join(self.presets)} {evidence}; "
            "stop this command and run it with that preset"
        )


class FirstLook:
    """Some answers of the float ``model`` to ``samples``. ``look`` is None if the output has no classes.

    ``boxes``: the number of boxes in these answers; None if the model is no detector. Raises `errors.InputError` for
    labels that are not classes of the model, and for a detector that finds nothing on all samples.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        samples: Samples,
        kind: OutputKind | None = None,
        metric: MetricChoice = "auto",
        task: Task | None = None,
    ) -> None:
        self._samples = samples.take(evenly(len(samples), MAX_SAMPLES))
        self._run = runner(model)
        start = time.perf_counter()
        self._answers = self._answer(self._samples, BUDGET_S)
        self._each_s = (time.perf_counter() - start) / len(self._answers)
        classes = samples.labels is not None
        embedding = metric == "cosine"
        self._output = outputs.of_model(model, self._answers, kind, classes=classes, embedding=embedding, task=task)
        useful = self._output.has_classes and self._answers[0].size > 1 and np.isfinite(self._answers).all()
        self.look = self._look() if useful else None
        self.boxes = self._boxes(len(samples)) if isinstance(task, Detection) else None

    def words(self) -> str:
        """One line for people; empty if the answers have neither classes nor boxes."""
        if self.boxes is not None:
            return f"float model: {self.boxes} box{'' if self.boxes == 1 else 'es'} on {len(self._answers)} samples"
        return "" if self.look is None else self.look.words()

    def sample_s(self) -> float:
        """Processor seconds of a run of the model on one sample."""
        sample, times = self._samples[0][None], []
        for _ in range(TIMED):
            start = time.process_time()
            self._run(sample)
            times.append(time.process_time() - start)
        return min(times)

    def better(self) -> BetterPresets | None:
        """The presets that fit clearly better, for images and outputs with classes; None if there are none."""
        preprocess = self._samples.preprocess
        if self.look is None or preprocess.kind != "image":
            return None
        # Scores belong to several classes at once: their margins mean nothing.
        if self.look.right is None and self._output.kind == "scores":
            return None
        if self.look.right is not None and not _clear(self.look.samples - self.look.right, 0):  # none can beat it
            return None
        presets = {
            name: one
            for name, one in fitting(preprocess.shape[2]).items()
            if not _same(one.mean, preprocess.mean) or not _same(one.std, preprocess.std)
        }
        count = min(len(self._answers), max(4, int(BUDGET_S / max(self._each_s, 1e-6) / len(presets))))
        if self.look.right is None and count < MIN_SAMPLES:
            return None
        some = self._samples.take(evenly(len(self._answers), count))
        given = self._evidence(some)
        presets = self._promising(presets, some, given)
        if not presets:
            return None
        found = {name: self._evidence(some.normalised_by(one.mean, one.std)) for name, one in presets.items()}
        order = sorted(found, key=lambda name: found[name].rank, reverse=True)
        best = found[order[0]]
        if not best.beats(given):
            return None
        alike = [name for name in order if found[name].equals(best)]
        return BetterPresets(alike, count, best.count_right(), given.count_right())

    def _promising(self, presets: dict[str, Preset], some: Samples, given: _Evidence) -> dict[str, Preset]:
        """The ``presets`` that may be clearly better than ``given`` on the samples ``some``.

        With labels: those that correct enough of the wrong answers, even if they spoil none.
        """
        if given.right is None:
            return presets
        places = np.flatnonzero(~given.right)
        if not _clear(len(places), 0):
            return {}
        wrong = some.take(places)
        return {
            name: one
            for name, one in presets.items()
            if _clear(self._evidence(wrong.normalised_by(one.mean, one.std)).count_right() or 0, 0)
        }

    def _answer(self, samples: Samples, budget_s: float) -> F32:
        """The answers to as many samples as ``budget_s`` seconds allow, at least one."""
        start, found = time.perf_counter(), []
        for sample in samples:
            found.append(self._run(sample[None]))
            if time.perf_counter() - start > budget_s:
                break
        return np.concatenate(found)

    def _look(self) -> Look:
        found = answers.probabilities(self._answers.reshape(len(self._answers), -1), self._output.kind)
        right = self._right()
        return Look(
            samples=len(found),
            right=None if right is None else int(right.sum()),
            confidence=float(found.max(axis=1).mean()),
            outputs=found.shape[1],
            kind=self._output.kind,
        )

    def _boxes(self, samples: int) -> int:
        """The number of boxes. Raises `errors.InputError` if none is on all of the ``samples``."""
        task = self._output.task
        assert isinstance(task, Detection)
        rows = [answers.real(one, self._output) for one in self._answers.reshape(len(self._answers), -1)]
        found = sum(len(answers.boxes_of(one, self._output, task)) for one in rows)
        if not found and len(rows) == samples:
            raise metrics.no_boxes(task)
        return found

    def _right(self) -> NDArray[np.bool_] | None:
        rows = self._answers.reshape(len(self._answers), -1)
        self._samples.check_classes(rows.shape[1])
        classes = self._samples.classes
        return None if classes is None else rows.argmax(axis=1) == classes[: len(rows)]

    def _evidence(self, samples: Samples) -> _Evidence:
        found = self._answer(samples, math.inf)
        rows = found.reshape(len(found), -1).astype(np.float64)
        if not np.isfinite(rows).all():
            return _Evidence(None if samples.classes is None else np.zeros(len(rows), np.bool_), 0.0, 0.0)
        if self._output.kind != "logits":
            rows = np.log(np.maximum(rows, 1e-12))
        right = None if samples.classes is None else rows.argmax(axis=1) == samples.classes
        return _Evidence(right, *_certainty(rows))


class _Evidence(NamedTuple):
    """How well a preprocessing fits: right answers (None without labels), and the figures of `_certainty`."""

    right: NDArray[np.bool_] | None
    margin: float
    spread: float

    @property
    def rank(self) -> tuple[int, float]:
        """Sort key: right answers, then certainty."""
        return self.count_right() or 0, self.margin * self.spread

    def count_right(self) -> int | None:
        """The number of right answers; None without labels."""
        return None if self.right is None else int(self.right.sum())

    def equals(self, other: _Evidence) -> bool:
        """As many right answers, and at least 0.99 times the certainty."""
        return self.rank[0] == other.rank[0] and self.rank[1] > 0.99 * other.rank[1]

    def beats(self, other: _Evidence) -> bool:
        """Whether the difference is clear.

        With labels: a sign test of two standard deviations. Without: margin x spread, if the margin is no smaller.
        """
        if self.right is not None and other.right is not None:
            won, lost = int((self.right & ~other.right).sum()), int((other.right & ~self.right).sum())
            return _clear(won, lost)
        return self.margin >= other.margin and self.margin * self.spread >= CLEARLY * other.margin * other.spread


def _clear(won: int, lost: int) -> bool:
    """Whether ``won`` samples against ``lost`` samples pass a sign test of two standard deviations."""
    return won - lost >= 2 * math.sqrt(won + lost) > 0


def _certainty(rows: F64) -> tuple[float, float]:
    """Margin and spread of ``rows`` [n, classes] of logits.

    Margin: the mean lead of the best class over the second, in standard deviations of the row. Spread: the entropy of
    the best classes. Confidence itself misleads: too large pixels make the logits of a ReLU network large and its
    probabilities 1; with too small pixels it always answers the same class, with a large margin.
    """
    ordered = np.sort(rows, axis=1)
    margin = float(((ordered[:, -1] - ordered[:, -2]) / np.maximum(rows.std(axis=1), 1e-12)).mean())
    shares = np.bincount(rows.argmax(axis=1)) / len(rows)
    shares = shares[shares > 0]
    return margin, float(-(shares * np.log(shares)).sum())


def _same(one: list[float], other: list[float]) -> bool:
    return bool(np.array_equal(np.broadcast_to(one, 3), np.broadcast_to(other, 3)))
