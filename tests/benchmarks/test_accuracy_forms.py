"""The comparison of forms: each predicts well what it is made for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy_forms as forms
from benchmarks.accuracy_forms import Answers

FASHION = Path("/usr/share/datasets/fashion-mnist")
CLASSES, PLANS = 6, 12


def answers(count: int, seed: int, mixing: np.ndarray) -> Answers:
    """Logits that are right nine times in ten, and plans that add Gaussian noise of rising energy, mixed over the classes."""
    random = np.random.default_rng(seed)
    classes = random.integers(CLASSES, size=count)
    logits = random.normal(size=(count, CLASSES)).astype(np.float32)
    logits[np.arange(count), classes] += 3.0
    energies = np.geomspace(0.01, 1.0, PLANS)
    deltas = [np.sqrt(e) * random.normal(size=(count, CLASSES)) @ mixing for e in energies]
    return Answers(logits, classes, np.stack(deltas).astype(np.float32))


def errors_of(mixing: np.ndarray) -> dict[str, float]:
    found = forms.compare(answers(2000, 1, mixing), answers(20_000, 2, mixing), 3)
    return {form: forms.row("net", form, pairs)["mean error"] for form, pairs in found.items()}


def test_gaussian_noise_is_predicted_by_all_but_the_threshold() -> None:
    found = errors_of(np.eye(CLASSES))
    assert max(found["gauss"], found["covariance"], found["nearest 8"]) < 1.0
    assert found["threshold"] > 4 * found["gauss"]


def test_noise_that_is_the_same_for_all_classes_does_no_harm_and_only_some_know_it() -> None:
    found = errors_of(np.full((CLASSES, CLASSES), CLASSES**-0.5))
    assert max(found["covariance"], found["nearest 1"], found["nearest 8"], found["own"]) < 0.05
    assert found["gauss"] > 1


def test_plans_that_lose_more_than_anyone_wants_are_left_out() -> None:
    loud = answers(500, 3, 10 * np.eye(CLASSES))
    assert all(lost <= forms.MOST_POINTS for pairs in forms.compare(loud, loud, 1).values() for _, lost in pairs)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    forms.main(["--json", str(out), "--quick"])
    found = json.loads(out.read_text())
    assert {row["form"] for row in found["rows"]} >= {"own", "threshold", "gauss", "covariance", "nearest 8"}
    assert found["summary"]["mlp.nearest8.mean_abs_error_points"] < 1.5
    assert "mlp.gauss" in capsys.readouterr().out
