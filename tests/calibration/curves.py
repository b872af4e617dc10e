"""What every accuracy model keeps, whatever its metric."""

import numpy as np

from calibration.accuracy.drop_model import Drop
from calibration.accuracy.metrics import AccuracyModel


def check_curve(model: AccuracyModel) -> None:
    """Without noise nothing is lost, more noise never costs less, and what is expected lies within its interval."""
    assert model.at(0.0) == Drop(0.0, 0.0, 0.0)
    assert np.all(np.diff(model.noise) > 0)
    assert np.all(np.diff(model.expected) >= 0)
    assert np.all(np.diff(model.high) >= 0)
    assert np.all(np.array(model.low) <= model.expected)
    assert np.all(np.array(model.expected) <= model.high)
