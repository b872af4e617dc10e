"""The adaptation of one stream: what a `Controller` has to see, the rung of each frame, and whether the ladder suffices at all.

`Adaptation` is told of every frame that is offered, sent, answered or lost, and chooses the rung of the next. It is a pure state machine (time is an
argument) that two threads may use: the one that codes frames asks, the one that waits for answers tells.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from splitedge.link import controllers
from splitedge.link.controllers import Step, View
from splitedge.link.estimate import Estimator, wire_bytes
from splitedge.link.tcp import TcpSample
from splitedge.protocol.frames import HEADER_BYTES
from splitedge.protocol.messages import Codec, LinkEstimate, Plan, Rung

_ARRIVALS: Final = 17  # the offered rate is that of so many last frames
_LEAST_BITS: Final = 0.01  # of a value, whatever a plan says of its frames: controllers divide by it
_PAUSE_S: Final = 2.0  # frames before a pause of so long say nothing of the rate after it
_SIZES: Final = 64  # a codec's size follows what its frames took, over about so many
_PLANNED: Final = 4  # and what the plan says counts as so many
OVERLOADED_S: Final = 1.0  # the cheapest codec must fail, or do, for so long before it is said
LASTING_S: Final = 10.0  # a change of the link must last for so long to be worth a new plan
CHANGED_MS: Final = 5.0  # and so much: what is quicker than that is the processors' doing
LONGER: Final = 1.25  # for a plan is made for the least time, as far as nothing else is asked
CHANGED: Final = 2.0  # a frame takes so many times as long, or as short, as the plan thought


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be held: frames a second and milliseconds of a frame, where demanded.

    Without either the rate that is offered is held, and a frame may take `LONGER` times as long as the plan said for the sake of accuracy.
    """

    min_rate_fps: float | None = None
    max_latency_ms: float | None = None


class Adaptation:
    """For the stream of ``plan``, made for a link like ``link``; ``controller`` is a name in `controllers.CONTROLLERS`.

    It begins with the plan's codec, or with `packed` or the most accurate one of no more than ``bits``.
    """

    def __init__(
        self, plan: Plan, link: LinkEstimate, goal: Goal, controller: str = "adaptive", bits: int | None = None
    ) -> None:
        self._steps = [
            Step(_bits(plan, codec, rung), wire_bytes(rung.payload_bytes), rung.noise)
            for codec, rung in zip(plan.ladder, plan.rungs, strict=True)
        ]
        self._frames = [0] * len(self._steps)  # sent with each rung
        self._plan, self._planned, self._goal = plan, link, goal
        self.rung = plan.codec if bits is None else _begin(plan, self._steps, bits)
        self._controller = controllers.CONTROLLERS[controller](self.rung)
        self._estimator = Estimator(link.rtt_ms / 1e3, link.uplink_mbps * 1e6 / 8)
        self._offered: deque[float] = deque(maxlen=_ARRIVALS)
        p = plan.prediction
        self._other_s = (p.device_ms + p.server_ms + p.queue_ms + p.sending_ms) / 1e3  # but for the link
        self._lock = threading.Lock()
        self._holds = _Lasting(True)
        self._changed = _Lasting(False)
        self.overloads = 0  # times that even the cheapest codec came not to hold what is wanted

    def offered(self, now: float) -> None:
        """A frame came."""
        with self._lock:
            if self._offered and now - self._offered[-1] > _PAUSE_S:
                self._offered.clear()
            self._offered.append(now)

    def spared(self, came: float) -> None:
        """The frame that was offered at ``came`` is not sent: the link need not hold it."""
        with self._lock, suppress(ValueError):  # it may have been forgotten already
            self._offered.remove(came)

    def choose(self, now: float, waiting: int = 0) -> int:
        """The rung for the frame that is coded now, while ``waiting`` frames behind it wait longer than they should."""
        with self._lock:
            view = self._view(now, waiting)
            self.rung = self._controller.choose(view, self._steps)
            self._judge(view)
            return self.rung

    def sent(self, seq: int, rung: int, message_bytes: int, now: float) -> None:
        """Frame ``seq`` was written to the connection, its message so long."""
        with self._lock:
            size = wire_bytes(message_bytes)
            self._estimator.sent(seq, size, now)
            step = self._steps[rung]
            self._frames[rung] += 1
            weight = 1 / min(self._frames[rung] + _PLANNED, _SIZES)
            self._steps[rung] = Step(step.bits, step.size + (size - step.size) * weight, step.noise)

    def acked(self, seq: int, now: float, server_s: float = 0.0) -> None:
        """Its answer came; the server claims so much of the time."""
        with self._lock:
            self._estimator.acked(seq, now, server_s)

    def lost(self, seq: int) -> None:
        """It ended without an answer."""
        with self._lock:
            self._estimator.lost(seq)

    def cut(self) -> None:
        """The connection ended."""
        with self._lock:
            self._estimator.cut()

    def tcp(self, sample: TcpSample, now: float) -> None:
        """What the kernel says of the connection."""
        with self._lock:
            self._estimator.tcp(sample, now)

    @property
    def holds(self) -> bool:
        """Whether the ladder suffices: False while even its cheapest codec cannot hold what is wanted."""
        return self._holds.value

    @property
    def bits(self) -> float:
        """Of a value with the codec in use."""
        return round(self._steps[self.rung].bits, 2)

    @property
    def changed(self) -> bool:
        """Whether the link has been another one than the plan was made for, or the ladder has not sufficed, for so long that a new plan is due."""
        return self._changed.value

    def estimate(self, now: float) -> LinkEstimate:
        """The link as it is now; its downlink is that of the plan, which answers do not fill."""
        with self._lock:
            rate = self._estimator.rate(now)
            up = self._planned.uplink_mbps if rate is None else rate * 8e-6
            return LinkEstimate(self._estimator.trip_s * 1e3, max(up, 1e-3), self._planned.downlink_mbps)

    def _view(self, now: float, waiting: int) -> View:
        goal, whole_ms = self._goal, math.inf
        if goal.max_latency_ms is not None:
            whole_ms = goal.max_latency_ms
        elif goal.min_rate_fps is None:
            whole_ms = LONGER * self._plan.prediction.total_ms
        left = whole_ms / 1e3 - self._other_s - self._estimator.trip_s
        rate, backlog = self._estimator.rate(now), self._estimator.backlog(now)
        return View(now, rate, backlog, self._period(), waiting, max(0.0, left))

    def _period(self) -> float:
        """Seconds between frames: as they are offered, but no less than the rate that was demanded asks for."""
        wanted = 1 / self._goal.min_rate_fps if self._goal.min_rate_fps else 0.0
        if len(self._offered) < 3:
            return wanted or max(self._plan.prediction.device_ms, self._plan.prediction.server_ms, 1.0) / 1e3
        return max(wanted, (self._offered[-1] - self._offered[0]) / (len(self._offered) - 1), 1e-4)

    def _judge(self, view: View) -> None:
        if view.rate is None:
            return
        least = self._steps[-1].size
        demanded = view.left_s if self._goal.max_latency_ms is not None else math.inf
        fits = least <= min(view.period_s, demanded) * view.rate
        if self._holds.update(fits, view.now, OVERLOADED_S):
            self.overloads += not self._holds.value
        self._changed.update(not self._holds.value or self._off(view), view.now, LASTING_S)

    def _off(self, view: View) -> bool:
        """Whether a frame as the plan predicted it takes much longer or shorter over this link; fast links all look alike, and are."""
        assert view.rate is not None
        prediction = self._plan.prediction
        before = prediction.transfer_ms - prediction.sending_ms
        now = wire_bytes(prediction.payload_bytes) / view.rate * 1e3 + self._estimator.trip_s * 1e3
        ratio = (prediction.total_ms - before + now) / max(prediction.total_ms, 1e-3)
        return not 1 / CHANGED <= ratio <= CHANGED and abs(now - before) > CHANGED_MS


class _Lasting:
    """A truth that changes only when the contrary has held for a while."""

    def __init__(self, value: bool) -> None:
        self.value = value
        self._since: float | None = None

    def update(self, seen: bool, now: float, patience: float) -> bool:
        """Whether it changed."""
        if seen == self.value:
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= patience:
            self.value, self._since = seen, None
            return True
        return False


def packed(plan: Plan, bits: int) -> int | None:
    """The rung that does no more than clip, quantize and pack at just so many bits; None where the ladder has none."""
    for i, one in enumerate(plan.ladder):
        if one.bits == bits and not (one.tables or one.basis or one.rotation or one.levels or one.jpeg):
            return i
    return None


def _begin(plan: Plan, steps: Sequence[Step], bits: int) -> int:
    plain = packed(plan, bits)
    return controllers.within(steps, bits) if plain is None else plain


def _bits(plan: Plan, codec: Codec, rung: Rung) -> float:
    """Bits that a value takes with ``codec``: those of its codes, or, where frames differ in size, of the mean frame."""
    if not (codec.tables or codec.jpeg):
        return codec.bits
    return max(_LEAST_BITS, 8 * (rung.payload_bytes - HEADER_BYTES) / math.prod(plan.cut.shape))
