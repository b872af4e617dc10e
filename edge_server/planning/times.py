"""What heads and tails take, in ms, from the best that is known: own measurements of device and server before predictions."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Final, TypeAlias

from calibration.bundle.bundle import Bundle
from device_profiles import DeviceProfile, predict
from splitedge import errors, limits
from splitedge.protocol.messages import Cut

_LAST: Final = 50  # runs that a median is taken over
_FRESH_S: Final = 10.0  # a wait longer ago says nothing of now

Key: TypeAlias = tuple[str, int]  # a bundle's SHA-256 and the index of the cut


class TailTimes:
    """What tails take in this process, decoding and answer included, and how long frames waited for them. Safe from several threads.

    Nothing that is kept: each process of a server measures for itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._works: dict[Key, deque[float]] = {}
        self._waits: deque[tuple[float, float]] = deque(maxlen=_LAST)

    def add(self, key: Key, work_ms: float) -> None:
        """The tail ``key`` took ``work_ms`` for a frame."""
        with self._lock:
            self._works.setdefault(key, deque(maxlen=_LAST)).append(work_ms)

    def waited(self, ms: float) -> None:
        """A frame waited so long for a thread."""
        with self._lock:
            self._waits.append((time.monotonic(), ms))

    def queue_ms(self) -> float:
        """What a frame waits now: the mean of the waits that just were, 0 where none was."""
        now = time.monotonic()
        with self._lock:
            fresh = [ms for when, ms in self._waits if now - when < _FRESH_S]
        return fmean(fresh) if fresh else 0.0

    def of(self, bundle: Bundle, cuts: Sequence[int], measure: Callable[[int], None]) -> tuple[float, ...]:
        """Of the tail behind each of ``cuts`` (0 behind the output): its median, or the bundle's figure, refined by the tails that were measured.

        Where none was, ``measure`` is called with the first cut; it runs that tail and calls `add`.
        """
        found = self._medians(bundle.sha256)
        if not found and bundle.cuts[cuts[0]].kind != "output":
            measure(cuts[0])
            found = self._medians(bundle.sha256)
        places = {place: found[cut] for place, cut in enumerate(cuts) if cut in found}
        return predict.refined([bundle.tail_ms[cut] for cut in cuts], places)

    def _medians(self, sha256: str) -> dict[int, float]:
        with self._lock:
            return {cut: median(works) for (of, cut), works in self._works.items() if of == sha256}


def head_times(
    cuts: Sequence[Cut],
    heads: predict.Heads,
    profile: DeviceProfile,
    measured: Mapping[str, float],
    segments: Mapping[str, int],
    rehearsed: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Of head and packing for each of ``cuts``, whose heads are ``heads``. ``measured``: what the device found of heads alone, by a segment's SHA-256; ``segments``:
    the index of the cut of each segment known here; ``rehearsed``: what all operators of the longest head took, one after another, which then stands
    in for the profile.

    Raises `errors.ProtocolError` for measurements that are none.
    """
    check(measured)
    codes = [predict.encode_ms(_sent(cut), profile) for cut in cuts]
    places = {cut.index: place for place, cut in enumerate(cuts)}
    found: dict[int, list[float]] = {}
    for sha256, ms in measured.items():
        if (place := places.get(segments.get(sha256, -1))) is not None:
            found.setdefault(place, []).append(ms)
    alone = {place: fmean(times) for place, times in found.items()}
    apart = heads.ms(profile) if rehearsed is None else _rehearsed(rehearsed, heads.operators)
    return tuple(head + code for head, code in zip(predict.refined(apart, alone), codes, strict=True))


def _rehearsed(ms: Sequence[float], operators: Sequence[int]) -> list[float]:
    """Times of heads of so many operators, each the beginning of the longest."""
    rising = all(math.isfinite(b) and 0 <= a <= b for a, b in pairwise([0.0, *ms]))
    if len(ms) != max(operators) or not rising:
        raise errors.ProtocolError(
            "the request's rehearsal is not one of this model: remove the agent's rehearsals file"
        )
    return [ms[count - 1] if count else 0.0 for count in operators]


def _sent(cut: Cut) -> int:
    """Values that cross the link."""
    return 0 if cut.kind == "output" else math.prod(cut.shape)


def check(measured: Mapping[str, float]) -> None:
    """Raises `errors.ProtocolError` for times that are negative, not finite, or too many."""
    if len(measured) > limits.MAX_MEASURED or not all(math.isfinite(ms) and ms >= 0 for ms in measured.values()):
        raise errors.ProtocolError(
            f"the request's measured times are not {limits.MAX_MEASURED} or fewer numbers of 0 or more: remove the agent's timings file"
        )
