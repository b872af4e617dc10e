"""Compare forms of noise that predict accuracy loss, on the same plans, samples and energies.

    python -m benchmarks.accuracy_forms [--fashion FOLDER] [--json OUT] [--quick]

Plans are drawn from a network's patterns. One half, on a few calibration samples that rounding has not seen, teaches
each form. Each form then predicts the drop on the test images for the other half, from the energy of their noise. This
is repeated for several draws of samples and of halves.

    own          no form: the plan's own drop on the calibration samples, the accuracy that their number allows
    threshold    a sample flips if the noise exceeds half its squared margin (QPART's adversarial noise, per sample)
    gauss        independent Gaussian noise on every logit
    covariance   Gaussian noise with the plans' covariance over classes
    nearest N    the scaled differences of the N plans nearest in energy, as in `calibration.accuracy.drop_model`
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import accuracy_bound, fashion
from benchmarks.report import parser, report
from calibration.accuracy import drop_model, evaluation
from calibration.accuracy.tail_runs import runner
from calibration.bundle.bundle import Bundle
from calibration.rounding.rounder import UNSEEN
from edge_server.planning.pattern_tables import build_table

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Form = Callable[[float], float]  # energy -> points lost

PLANS, TAUGHT, DRAWS = 32, 1000, 8
QUICK_PLANS, QUICK_DRAWS = 8, 2
#: Plans that lose more are excluded, because they are not useful in practice.
MOST_POINTS: Final = 6.0
GAUSSIANS: Final = 8
NEAREST: Final = (1, drop_model.NEAREST, 16)


@dataclass(frozen=True)
class Answers:
    """Logits [n, C], ``classes`` [n], and the difference that each plan adds to the logits [plans, n, C]."""

    logits: F32
    classes: I64
    deltas: F32

    def some(self, samples: I64, plans: I64) -> Answers:
        return Answers(self.logits[samples], self.classes[samples], self.deltas[plans][:, samples])

    @functools.cached_property
    def energies(self) -> F64:
        """Mean squared difference of each plan [plans]."""
        return np.array([np.square(delta, dtype=np.float64).mean() for delta in self.deltas])

    def drop(self, delta: F32) -> float:
        """Return the points lost when ``delta`` is added to the logits."""
        before, after = (z.argmax(axis=1) == self.classes for z in (self.logits, self.logits + delta))
        return 100.0 * float(before.mean() - after.mean())


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser((__doc__ or "").splitlines()[0])
    fashion.add_option(options)
    options.set_defaults(images=None, labels=None)
    chosen = options.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for task in accuracy_bound.tasks(chosen):
        calibrating, evaluated = run(task, QUICK_PLANS if chosen.quick else PLANS)
        found = compare(calibrating, evaluated, QUICK_DRAWS if chosen.quick else DRAWS)
        rows += [row(task.name, form, pairs) for form, pairs in found.items()]
    report("From noise to accuracy, by form", rows, summary(rows), chosen.json, ["errors and drops in points of top-1"])


def run(task: accuracy_bound.Task, plans: int) -> tuple[Answers, Answers]:
    """Run plans of a task on its unseen calibration samples and on its evaluation samples."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = accuracy_bound.prepare(task, Path(folder)).bundle
        chosen = draw(bundle, plans)
        model = runner(onnx.load(bundle.path / "model.onnx"))
        found = []
        for samples in (task.calibrating[UNSEEN], task.evaluated):
            assert samples.classes is not None
            logits = evaluation.float_outputs(model, samples)
            deltas = np.stack([accuracy_bound.outputs(bundle, plan, samples) - logits for plan in chosen])
            found.append(Answers(logits, samples.classes, deltas))
        return found[0], found[1]


def draw(bundle: Bundle, count: int) -> list[accuracy_bound.Plan]:
    """Draw candidates of the bundle's table, spread evenly over the logarithm of their noise."""
    table, random = build_table(bundle), np.random.default_rng(0)
    noise = np.log(table.noise)
    wanted = random.permutation(np.linspace(noise.min(), noise.max(), count))
    found = []
    for one in wanted:
        near = np.argsort(np.abs(noise - one), kind="stable")[:20]
        i = int(random.choice(near))
        made = int(table.codec[i])
        found.append(
            accuracy_bound.plan_of(table, int(table.option[i]), int(table.pattern[i]), None if made < 0 else made)
        )
    return found


def compare(calibrating: Answers, evaluated: Answers, draws: int) -> dict[str, list[tuple[float, float]]]:
    """Return pairs of predicted and measured points for each form."""
    random, found = np.random.default_rng(0), dict[str, list[tuple[float, float]]]()
    lost = np.array([evaluated.drop(delta) for delta in evaluated.deltas])
    for _ in range(draws):
        samples = random.permutation(len(calibrating.logits))[:TAUGHT]
        teaching, asked = np.split(random.permutation(len(lost)), 2)
        learnt, own = calibrating.some(samples, teaching), calibrating.some(samples, asked)
        for name, form in forms(learnt, random).items():
            pairs = [(form(e), lost[k]) for e, k in zip(own.energies, asked, strict=True) if lost[k] <= MOST_POINTS]
            found.setdefault(name, []).extend(pairs)
        itself = [
            (own.drop(delta), lost[k]) for delta, k in zip(own.deltas, asked, strict=True) if lost[k] <= MOST_POINTS
        ]
        found.setdefault("own", []).extend(itself)
    return found


def forms(learnt: Answers, random: np.random.Generator) -> Mapping[str, Form]:
    noise = random.normal(size=(GAUSSIANS, *learnt.logits.shape)).astype(np.float32)
    unit = (learnt.deltas / np.sqrt(learnt.energies)[:, None, None]).astype(np.float32)
    flat = unit.reshape(-1, unit.shape[-1]).astype(np.float64)
    values, axes = np.linalg.eigh(flat.T @ flat / len(flat))
    shaped = noise @ (axes * np.sqrt(np.maximum(values, 0.0))).T.astype(np.float32)

    def mean(deltas: F32) -> Form:
        return lambda energy: float(np.mean([learnt.drop(np.float32(energy**0.5) * delta) for delta in deltas]))

    def nearest(count: int) -> Form:
        def form(energy: float) -> float:
            near = np.argsort(np.abs(np.log(learnt.energies / energy)), kind="stable")[:count]
            return mean(unit[near])(energy)

        return form

    made: dict[str, Form] = {
        "threshold": functools.partial(_threshold, learnt),
        "gauss": mean(noise),
        "covariance": mean(shaped),
    }
    return made | {f"nearest {count}": nearest(count) for count in NEAREST}


def _threshold(learnt: Answers, energy: float) -> float:
    """Predict a flip of the first two classes if the squared noise norm exceeds half the squared margin."""
    second, first = np.argsort(learnt.logits, axis=1)[:, -2:].T
    greatest = np.sort(learnt.logits, axis=1)[:, -2:]
    overturned = (greatest[:, 1] - greatest[:, 0]) ** 2 / 2 < energy * learnt.logits.shape[1]
    lost, gained = overturned & (first == learnt.classes), overturned & (second == learnt.classes)
    return 100.0 * float(lost.mean() - gained.mean())


def row(network: str, form: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    predicted, lost = np.array(pairs).reshape(-1, 2).T
    wrong = predicted - lost
    return {
        "network": network,
        "form": form,
        "predictions": len(pairs),
        "mean error": float(np.abs(wrong).mean()),
        "root mean square": float(np.sqrt((wrong**2).mean())),
        "bias": float(wrong.mean()),
        "mean drop": float(lost.mean()),
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {f"{one['network']}.{one['form'].replace(' ', '')}.mean_abs_error_points": one["mean error"] for one in rows}


if __name__ == "__main__":
    main()
