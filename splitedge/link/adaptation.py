"""Rate control of one stream: chooses the codec of each frame, and detects when the ladder or the plan no longer fits
the link.

`Adaptation` is a pure state machine; time is an argument. Two threads may use it: one codes frames, the other waits for
answers.
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
from splitedge.link.controllers import RungCost, View
from splitedge.link.estimate import Estimator, wire_bytes
from splitedge.link.tcp import TcpSample
from splitedge.protocol.frames import HEADER_BYTES
from splitedge.protocol.messages import Codec, LinkEstimate, Plan, Rung

_ARRIVALS: Final = 17  # last frames that give the offered rate
_LEAST_BITS: Final = 0.01  # least bits of a value: controllers divide by it
_PAUSE_S: Final = 2.0  # a longer pause starts a new measurement of the offered rate
_SIZES: Final = 64  # frames over which a codec's mean size is averaged
_PLANNED: Final = 4  # weight of the planned size, in frames
OVERLOADED_S: Final = 1.0  # debounce time of `Adaptation.holds`
LASTING_S: Final = 10.0  # debounce time of `Adaptation.changed`
CHANGED_MS: Final = 5.0  # least change of a frame's time; smaller ones are noise of the processors
LONGER: Final = 1.25  # allowed frame time over the planned one, if the demand has neither latency nor rate
CHANGED: Final = 2.0  # factor between planned and present frame time that calls for a new plan


@dataclass(frozen=True, slots=True)
class Goal:
    """The demanded frames per second and milliseconds per frame.

    Without both, the offered rate is the goal, and a frame may take `LONGER` times its planned time in favour of
    accuracy.
    """

    min_rate_fps: float | None = None
    max_latency_ms: float | None = None


class Adaptation:
    """Rate control for the stream of ``plan``, which was made for ``link``. ``controller`` is a key of
    `controllers.CONTROLLERS`.

    The first codec is the plan's. If ``bits`` is given, it is the plain codec of that width, or else the most accurate
    one of at most ``bits``.
    """

    def __init__(
        self, plan: Plan, link: LinkEstimate, goal: Goal, controller: str = "adaptive", bits: int | None = None
    ) -> None:
        self._steps = [
            RungCost(_bits(plan, codec, rung), wire_bytes(rung.payload_bytes), rung.noise)
            for codec, rung in zip(plan.ladder, plan.rungs, strict=True)
        ]
        self._frames = [0] * len(self._steps)  # sent with each rung
        self._plan, self._planned, self._goal = plan, link, goal
        self.rung = plan.codec if bits is None else _begin(plan, self._steps, bits)
        self._controller = controllers.CONTROLLERS[controller](self.rung)
        self._estimator = Estimator(link.rtt_ms / 1e3, link.uplink_mbps * 1e6 / 8)
        self._offered: deque[float] = deque(maxlen=_ARRIVALS)
        p = plan.prediction
        self._other_s = (p.device_ms + p.server_ms + p.queue_ms + p.sending_ms) / 1e3  # without the link
        self._lock = threading.Lock()
        self._holds = _Debounced(True)
        self._changed = _Debounced(False)
        self.overloads = 0  # times that even the cheapest codec stopped being enough

    def offered(self, now: float) -> None:
        """A caller offered a frame."""
        with self._lock:
            if self._offered and now - self._offered[-1] > _PAUSE_S:
                self._offered.clear()
            self._offered.append(now)

    def withdrawn(self, came: float) -> None:
        """The frame offered at ``came`` is not sent."""
        with self._lock, suppress(ValueError):  # it may have been forgotten already
            self._offered.remove(came)

    def choose(self, now: float, waiting: int = 0) -> int:
        """The rung for the frame that is coded now, while ``waiting`` frames behind it are late."""
        with self._lock:
            view = self._view(now, waiting)
            self.rung = self._controller.choose(view, self._steps)
            self._judge(view)
            return self.rung

    def sent(self, seq: int, rung: int, message_bytes: int, now: float) -> None:
        """Frame ``seq`` was written to the connection as a message of ``message_bytes``."""
        with self._lock:
            size = wire_bytes(message_bytes)
            self._estimator.sent(seq, size, now)
            step = self._steps[rung]
            self._frames[rung] += 1
            weight = 1 / min(self._frames[rung] + _PLANNED, _SIZES)
            self._steps[rung] = RungCost(step.bits, step.size + (size - step.size) * weight, step.noise)

    def acked(self, seq: int, now: float, server_s: float = 0.0) -> None:
        """The answer to frame ``seq`` arrived; ``server_s`` of its time was spent on the server."""
        with self._lock:
            self._estimator.acked(seq, now, server_s)

    def lost(self, seq: int) -> None:
        """Frame ``seq`` ended without an answer."""
        with self._lock:
            self._estimator.lost(seq)

    def disconnected(self) -> None:
        """The connection ended."""
        with self._lock:
            self._estimator.disconnected()

    def tcp(self, sample: TcpSample, now: float) -> None:
        """Take the kernel's state of the connection."""
        with self._lock:
            self._estimator.tcp(sample, now)

    @property
    def holds(self) -> bool:
        """False while even the cheapest codec of the ladder misses the goal."""
        return self._holds.value

    @property
    def bits(self) -> float:
        """Bits of a value with the current codec."""
        return round(self._steps[self.rung].bits, 2)

    @property
    def changed(self) -> bool:
        """True once the link differs from the planned one, or the ladder misses the goal, for long enough to need a
        new plan.
        """
        return self._changed.value

    def estimate(self, now: float) -> LinkEstimate:
        """The present link. Its downlink is the planned one, since answers do not fill it."""
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
        """Seconds between offered frames, but at least those of the demanded rate."""
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
        """Whether the planned frame takes much more or less time on this link. All fast links are equal in this."""
        assert view.rate is not None
        prediction = self._plan.prediction
        before = prediction.transfer_ms - prediction.sending_ms
        now = wire_bytes(prediction.payload_bytes) / view.rate * 1e3 + self._estimator.trip_s * 1e3
        ratio = (prediction.total_ms - before + now) / max(prediction.total_ms, 1e-3)
        return not 1 / CHANGED <= ratio <= CHANGED and abs(now - before) > CHANGED_MS


class _Debounced:
    """Debounced boolean."""

    def __init__(self, value: bool) -> None:
        self.value = value
        self._since: float | None = None

    def update(self, seen: bool, now: float, patience: float) -> bool:
        """Take an observation; True if the value changed because the opposite lasted for ``patience`` seconds."""
        if seen == self.value:
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= patience:
            self.value, self._since = seen, None
            return True
        return False


def packed(plan: Plan, bits: int) -> int | None:
    """The rung that only clips, quantizes and packs at ``bits``; None if the ladder has none."""
    for i, one in enumerate(plan.ladder):
        if one.bits == bits and not (one.tables or one.basis or one.rotation or one.levels or one.image):
            return i
    return None


def _begin(plan: Plan, steps: Sequence[RungCost], bits: int) -> int:
    plain = packed(plan, bits)
    return controllers.within(steps, bits) if plain is None else plain


def _bits(plan: Plan, codec: Codec, rung: Rung) -> float:
    """Bits of a value with ``codec``: those of its codes, or of the mean frame if frame sizes vary."""
    if not (codec.tables or codec.image):
        return codec.bits
    return max(_LEAST_BITS, 8 * (rung.payload_bytes - HEADER_BYTES) / math.prod(plan.cut.shape))
