"""What heads and tails take, in ms, from the best that is known: own measurements of device and server before predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from calibration.bundle import Bundle
from device_profiles import DeviceProfile, predict
from edge_agent import errors, limits


def head_times(
    bundle: Bundle,
    cuts: Sequence[int],
    profile: DeviceProfile,
    measured: Mapping[str, float],
    segments: Mapping[str, int],
) -> tuple[float, ...]:
    """Of the head for each of ``cuts``. ``measured``: what the device found, by a segment's SHA-256; ``segments``: the cut of each segment known here.

    Raises `errors.ProtocolError` for measurements that are none.
    """
    check(measured)
    predicted = [predict.head_ms(bundle.header(cut), profile) for cut in cuts]
    found: dict[int, list[float]] = {}
    for sha256, ms in measured.items():
        if segments.get(sha256) in cuts:
            found.setdefault(cuts.index(segments[sha256]), []).append(ms)
    return predict.refined(predicted, {place: fmean(times) for place, times in found.items()})


def check(measured: Mapping[str, float]) -> None:
    """Raises `errors.ProtocolError` for times that are negative, not finite, or too many."""
    if len(measured) > limits.MAX_MEASURED or not all(math.isfinite(ms) and ms >= 0 for ms in measured.values()):
        raise errors.ProtocolError(
            f"the request's measured times are not {limits.MAX_MEASURED} or fewer numbers of 0 or more: remove the agent's timings file"
        )
