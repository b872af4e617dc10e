"""The effort of a calibration: how many samples and variants it measures.

Less effort gives wider intervals of the accuracy drop and more bytes at the same bound. The bound itself holds at every
effort, because the intervals include the uncertainty of few samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Level: TypeAlias = Literal["quick", "normal", "best"]


@dataclass(frozen=True)
class Effort:
    """How much a calibration measures.

    - ``samples``: maximum number of samples, evenly spread. Every other one judges the accuracy drop.
    - ``sweeps``: passes of coordinate descent when weights are rounded (`calibration.rounding.rounder.Options`).
    - ``noise``: factor of the number of samples on which the noise of layers and codecs is measured
      (`calibration.accuracy.sensitivity.enough`).
    - ``exact``: every grid of a layer and every codec runs through the whole network on all of these samples. Otherwise
      some do, and the others are estimated from them (`calibration.accuracy.subsampling`).
    - ``trials``: number of whole heads that are tested.
    """

    samples: int
    sweeps: int
    noise: int
    exact: bool
    trials: int


EFFORTS: Final[dict[Level, Effort]] = {
    "quick": Effort(samples=100, sweeps=1, noise=1, exact=False, trials=16),
    "normal": Effort(samples=10_000, sweeps=1, noise=1, exact=False, trials=16),
    "best": Effort(samples=10_000, sweeps=4, noise=2, exact=True, trials=32),
}
