"""Predicted times of heads on a board, in ms: its own measurements where it sent any, else its profile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from device_profiles import DeviceProfile, predict
from splitedge import errors, limits
from splitedge.protocol.messages import Cut


def head_times(
    cuts: Sequence[Cut],
    heads: predict.Heads,
    profile: DeviceProfile,
    measured: Mapping[str, float],
    segments: Mapping[str, int],
    dry_run_ms: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """The time of head and packing for each of ``cuts``, whose heads are ``heads``.

    ``measured``: the board's times of heads without packing, by the segment's SHA-256. ``segments``: the cut's index
    of each known segment. ``dry_run_ms``: the cumulative times of the longest head's operators on the board; if given,
    they replace the profile. Raises `errors.ProtocolError` for times that are not finite and 0 or more.
    """
    check_measured(measured)
    positions = {cut.index: position for position, cut in enumerate(cuts)}
    found: dict[int, list[float]] = {}
    for sha256, ms in measured.items():
        if (position := positions.get(segments.get(sha256, -1))) is not None:
            found.setdefault(position, []).append(ms)
    predicted = heads.ms(profile) if dry_run_ms is None else _from_dry_run(dry_run_ms, heads.operators)
    refined = predict.refined(predicted, {position: fmean(times) for position, times in found.items()})
    return tuple(ms + predict.encode_ms(_sent_values(cut), profile) for ms, cut in zip(refined, cuts, strict=True))


def check_measured(measured: Mapping[str, float]) -> None:
    """Raise `errors.ProtocolError` for times that are negative or not finite, and for too many of them."""
    if len(measured) > limits.MAX_MEASURED:
        raise errors.ProtocolError(
            f"the request has {len(measured)} measured times, over the limit of {limits.MAX_MEASURED}: "
            "delete timings-*.json in the agent's cache folder",
            reason="measured-times",
        )
    for name, ms in measured.items():
        if not (math.isfinite(ms) and ms >= 0):
            raise errors.ProtocolError(
                f"the request's measured time of {name[:64]!r} is {ms} ms, not a number of 0 or more: "
                "delete timings-*.json in the agent's cache folder",
                reason="measured-times",
            )


def _from_dry_run(ms: Sequence[float], operators: Sequence[int]) -> list[float]:
    """Times of heads with these numbers of operators; each head is the beginning of the longest."""
    rising = all(math.isfinite(b) and 0 <= a <= b for a, b in pairwise([0.0, *ms]))
    if len(ms) != max(operators) or not rising:
        raise errors.ProtocolError(
            f"the request's dry run has {len(ms)} times, which must rise, one for each of the model's "
            f"{max(operators)} operators: delete rehearsals-*.json in the agent's cache folder",
            reason="rehearsal",
        )
    return [ms[count - 1] if count else 0.0 for count in operators]


def _sent_values(cut: Cut) -> int:
    """Values that cross the link."""
    return 0 if cut.kind == "output" else math.prod(cut.shape)
