"""Which rung of the ladder the next frame is coded with. Pure state machines: no I/O, no clock; times in seconds, sizes in bytes on the wire.

A controller sees a `View` for each frame and returns the index of a rung, 0 the most accurate. It never leaves the ladder, all of which is within the
accuracy that was demanded.

- `adaptive` (the default) predicts from the estimated rate, the round trip and what is on its way what each rung would do.
- `quantpipe` is QuantPipe's rule: every `WINDOW` frames a width by the ratio of what was sent to what the link could have carried.
- `pipeedge` is PipeEdge's controller: every window a Kalman filter estimates the rate at the widest codec, and the window is split between the two
  widths around the one that would just do.
- `fixed` stays on the rung that the plan begins with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

WINDOW: Final = 50  # frames between two decisions of the baselines


@dataclass(frozen=True, slots=True)
class Step:
    """A rung: the bits of a value with its codec, the bytes that a frame takes on the wire, and the noise at the output."""

    bits: float
    size: float
    noise: float


@dataclass(frozen=True, slots=True)
class View:
    """The link at the moment at which a frame is coded.

    ``rate``: bytes a second that it carries, None before anything is known; ``backlog``: bytes on their way beyond a round trip's; ``period_s``: between
    frames that are offered or wanted; ``waiting``: frames that wait too long already; ``left_s``: what a demanded latency leaves for the frame's way
    to the server, infinite without one.
    """

    now: float
    rate: float | None
    backlog: float
    period_s: float
    waiting: int = 0
    left_s: float = math.inf


class Controller(Protocol):
    """``steps``: the ladder as it stands, most bytes first; its sizes follow what frames really took."""

    def choose(self, view: View, steps: Sequence[Step]) -> int: ...


def within(steps: Sequence[Step], bits: int) -> int:
    """The index of the most accurate step of no more than ``bits``, or of the cheapest."""
    return next((i for i, step in enumerate(steps) if step.bits <= bits), len(steps) - 1)


class Fixed:
    """Always the same rung."""

    def __init__(self, start: int) -> None:
        self._rung = start

    def choose(self, view: View, steps: Sequence[Step]) -> int:  # noqa: ARG002  the interface
        return self._rung


class Adaptive:
    """The most accurate rung that the link holds. One that a cheaper rung beats, which a plan may begin with, is left at once.

    Down at once, as soon as the rung in use would fill more than `FULL` of the link with what is on its way already drained within `HORIZON_S`. Up when
    a better rung has fitted into `ROOM` of it for a while: `PATIENCE_S` at first, twice as long after each climb that had to be taken back within
    `TRIAL_S`, and half as long again after each that lasted.
    """

    FULL: Final = 1.0
    ROOM: Final = 0.92
    HORIZON_S: Final = 0.5
    PATIENCE_S: Final = 0.2
    PATIENCE_MOST_S: Final = 5.0
    TRIAL_S: Final = 2.0

    def __init__(self, start: int) -> None:
        self._rung = start
        self._fits_since: list[
            float
        ] = []  # for each rung, since when it has fitted with room to spare; infinity: it does not
        self._patience: list[float] = []
        self._usable: list[bool] = []  # for each rung, whether no cheaper one is as accurate
        self._climbed: float | None = None  # when, while it is not known whether the climb lasts

    def choose(self, view: View, steps: Sequence[Step]) -> int:
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

    def _note(self, view: View, steps: Sequence[Step]) -> None:
        room = budget(view, self.ROOM, self.HORIZON_S)
        for i, step in enumerate(steps):
            fits = step.size <= room and self._usable[i]
            self._fits_since[i] = min(self._fits_since[i], view.now) if fits else math.inf
        if self._climbed is not None and view.now - self._climbed > self.TRIAL_S:
            self._climbed = None
            self._patience[self._rung] = max(self.PATIENCE_S, self._patience[self._rung] / 2)

    def _down(self, view: View, steps: Sequence[Step]) -> None:
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
    """Bytes that a frame may take: ``share`` of the link with the backlog gone within ``horizon_s``, and what a demanded latency leaves."""
    assert view.rate is not None
    waiting = 1 + view.waiting * view.period_s / horizon_s
    by_rate = view.period_s * (share * view.rate - view.backlog / horizon_s) / waiting
    return min(by_rate, share * view.left_s * view.rate - view.backlog)


class QuantPipe:
    """target = window x period x rate; ratio = floor(bytes sent x 32 / bits / target) + 1; up to 1: 32 bits, 2: 16, 4: 8, 5: 6, 8: 4, beyond: 2.

    Of the ladder the most accurate rung with no more bits than that, or the cheapest.
    """

    WIDTHS: Final = ((1, 32), (2, 16), (4, 8), (5, 6), (8, 4))

    def __init__(self, start: int) -> None:
        self._rung, self._frames = start, 0
        self._sent = 0.0

    def choose(self, view: View, steps: Sequence[Step]) -> int:
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
    """An integral controller of the speedup over the widest codec, whose gain is a Kalman filter's estimate of the rate at that codec.

    The rate that a window reached is its frames over the time that they kept the link busy.
    """

    PROCESS_NOISE: Final = 1e-5
    MEASUREMENT_NOISE: Final = 1e-2

    def __init__(self, start: int) -> None:
        self._slow = self._fast = start
        self._frames, self._slow_frames = 0, WINDOW
        self._sent = 0.0
        self._speedup: float | None = None
        self._base, self._variance = 0.0, 1.0

    def choose(self, view: View, steps: Sequence[Step]) -> int:
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

    def _decide(self, view: View, steps: Sequence[Step], reached: float) -> None:
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
