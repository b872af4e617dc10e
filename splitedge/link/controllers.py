"""Controllers choose the rung of the ladder for the next frame. Pure state machines; times in seconds, sizes in bytes
on the wire.

A controller gets a `View` for each frame and returns the index of a rung; rung 0 is the most accurate. Every rung of a
ladder meets the demanded accuracy.

- `adaptive` (the default) compares the size of each rung with the estimated rate, the round trip and the bytes in
  transit.
- `quantpipe` is QuantPipe's rule: every `WINDOW` frames it sets the width from the ratio of bytes sent to the link's
  capacity.
- `pipeedge` is PipeEdge's controller: a Kalman filter estimates the rate at the widest codec for each window, and the
  window is split between the two widths around the exact one.
- `fixed` stays on the first rung.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

WINDOW: Final = 50  # frames between two decisions of `QuantPipe` and `PipeEdge`


@dataclass(frozen=True, slots=True)
class RungCost:
    """The cost of a rung: bits of a value, bytes of a frame on the wire, and noise at the output."""

    bits: float
    size: float
    noise: float


@dataclass(frozen=True, slots=True)
class View:
    """The link when a frame is coded.

    ``rate``: its bytes per second, None before anything is known. ``backlog``: bytes in transit beyond the
    bandwidth-delay product. ``period_s``:
    between two frames, offered or demanded. ``waiting``: late frames. ``left_s``: time for the transfer within the
    demanded latency, infinite without one.
    """

    now: float
    rate: float | None
    backlog: float
    period_s: float
    waiting: int = 0
    left_s: float = math.inf


class Controller(Protocol):
    """``steps``: the ladder, largest frames first, with mean measured sizes."""

    def choose(self, view: View, steps: Sequence[RungCost]) -> int: ...


def within(steps: Sequence[RungCost], bits: int) -> int:
    """The index of the most accurate rung of at most ``bits``, else of the cheapest."""
    return next((i for i, step in enumerate(steps) if step.bits <= bits), len(steps) - 1)


class Fixed:
    """Always the same rung."""

    def __init__(self, start: int) -> None:
        self._rung = start

    def choose(self, view: View, steps: Sequence[RungCost]) -> int:  # noqa: ARG002  the interface
        return self._rung


class Adaptive:
    """The most accurate rung that fits the link. A rung that a cheaper one beats in accuracy is left at once.

    It steps down as soon as the current rung needs more than `FULL` of the link, while the backlog drains within
    `HORIZON_S`. It steps up once a better rung has fitted into `ROOM` of the link for its patience. The patience starts
    at `PATIENCE_S`, doubles after each step up that fails within `TRIAL_S`, and halves after each that lasts.
    """

    FULL: Final = 1.0
    ROOM: Final = 0.92
    HORIZON_S: Final = 0.5
    PATIENCE_S: Final = 0.2
    PATIENCE_MOST_S: Final = 5.0
    TRIAL_S: Final = 2.0

    def __init__(self, start: int) -> None:
        self._rung = start
        self._fits_since: list[float] = []  # for each rung, since when it fits into ROOM; infinity if it does not
        self._patience: list[float] = []
        self._usable: list[bool] = []  # for each rung, whether every cheaper one is less accurate
        self._climbed: float | None = None  # time of the last step up, until it has lasted

    def choose(self, view: View, steps: Sequence[RungCost]) -> int:
        if len(self._patience) != len(steps):
            self._fits_since, self._patience = [math.inf] * len(steps), [self.PATIENCE_S] * len(steps)
            self._usable = [all(one.noise < later.noise for later in steps[i + 1 :]) for i, one in enumerate(steps)]
        if view.rate is None:
            return self._rung
        self._note(view, steps)
        if steps[self._rung].size > budget(view, self.FULL, self.HORIZON_S) or not self._usable[self._rung]:
            self._down(view, steps)
        else:
            self._up(view)
        return self._rung

    def _note(self, view: View, steps: Sequence[RungCost]) -> None:
        room = budget(view, self.ROOM, self.HORIZON_S)
        for i, step in enumerate(steps):
            fits = step.size <= room and self._usable[i]
            self._fits_since[i] = min(self._fits_since[i], view.now) if fits else math.inf
        if self._climbed is not None and view.now - self._climbed > self.TRIAL_S:
            self._climbed = None
            self._patience[self._rung] = max(self.PATIENCE_S, self._patience[self._rung] / 2)

    def _down(self, view: View, steps: Sequence[RungCost]) -> None:
        if self._climbed is not None:
            self._patience[self._rung] = min(self.PATIENCE_MOST_S, 2 * self._patience[self._rung])
            self._climbed = None
        room = budget(view, self.ROOM, self.HORIZON_S)
        fitting = (i for i in range(self._rung, len(steps)) if steps[i].size <= room and self._usable[i])
        self._rung = next(fitting, len(steps) - 1)

    def _up(self, view: View) -> None:
        for i in range(self._rung):
            if view.now - self._fits_since[i] >= self._patience[i]:
                self._rung, self._climbed = i, view.now
                return


def budget(view: View, share: float, horizon_s: float) -> float:
    """Bytes for a frame: within ``share`` of the link while the backlog drains in ``horizon_s``, and within the
    demanded latency.
    """
    assert view.rate is not None
    waiting = 1 + view.waiting * view.period_s / horizon_s
    by_rate = view.period_s * (share * view.rate - view.backlog / horizon_s) / waiting
    return min(by_rate, share * view.left_s * view.rate - view.backlog)


class QuantPipe:
    """target = window x period x rate; ratio = floor(bytes sent x 32 / bits / target) + 1; up to 1: 32 bits, 2: 16, 4:
    8, 5: 6, 8: 4, above: 2.

    The rung is the most accurate one of at most that width, else the cheapest.
    """

    WIDTHS: Final = ((1, 32), (2, 16), (4, 8), (5, 6), (8, 4))

    def __init__(self, start: int) -> None:
        self._rung, self._frames = start, 0
        self._sent = 0.0

    def choose(self, view: View, steps: Sequence[RungCost]) -> int:
        if self._frames == WINDOW and view.rate is not None:
            target = WINDOW * view.period_s * view.rate
            ratio = math.floor(self._sent * 32 / steps[self._rung].bits / target) + 1
            bits = next((bits for most, bits in self.WIDTHS if ratio <= most), 2)
            self._rung = within(steps, bits)
        if self._frames == WINDOW:
            self._frames, self._sent = 0, 0.0
        self._frames += 1
        self._sent += steps[self._rung].size
        return self._rung


class PipeEdge:
    """An integral controller of the speedup over the widest codec. A Kalman filter estimates the rate at that codec,
    which is the gain.

    The rate of a window is its number of frames over the time in which they kept the link busy.
    """

    PROCESS_NOISE: Final = 1e-5
    MEASUREMENT_NOISE: Final = 1e-2

    def __init__(self, start: int) -> None:
        self._slow = self._fast = start
        self._frames, self._slow_frames = 0, WINDOW
        self._sent = 0.0
        self._speedup: float | None = None
        self._base, self._variance = 0.0, 1.0

    def choose(self, view: View, steps: Sequence[RungCost]) -> int:
        if self._speedup is None:
            self._speedup = steps[0].bits / steps[self._slow].bits
        if self._frames == WINDOW and view.rate is not None:
            self._decide(view, steps, WINDOW * view.rate / self._sent)
        if self._frames == WINDOW:
            self._frames, self._sent = 0, 0.0
        rung = self._slow if self._frames < self._slow_frames else self._fast
        self._frames += 1
        self._sent += steps[rung].size
        return rung

    def _decide(self, view: View, steps: Sequence[RungCost], reached: float) -> None:
        assert self._speedup is not None
        speedups = [steps[0].bits / step.bits for step in steps]
        self._filter(reached, self._speedup)
        wanted = self._speedup + (1 / view.period_s - reached) / max(self._base, 1e-9)
        self._speedup = wanted = max(1.0, min(wanted, speedups[-1]))
        self._slow = max(i for i, speedup in enumerate(speedups) if speedup <= wanted)
        self._fast = min(self._slow + 1, len(steps) - 1)
        slow, fast = speedups[self._slow], speedups[self._fast]
        share = 1.0 if fast == slow else slow * (fast - wanted) / (wanted * (fast - slow))
        self._slow_frames = round(WINDOW * share)

    def _filter(self, reached: float, speedup: float) -> None:
        variance = self._variance + self.PROCESS_NOISE
        gain = variance * speedup / (speedup * variance * speedup + self.MEASUREMENT_NOISE)
        self._base += gain * (reached - speedup * self._base)
        self._variance = (1 - gain * speedup) * variance


CONTROLLERS: Final[Mapping[str, Callable[[int], Controller]]] = {
    "adaptive": Adaptive,
    "quantpipe": QuantPipe,
    "pipeedge": PipeEdge,
    "fixed": Fixed,
}
