"""A stream over a link that changes, without sockets: frames, gate, kernel buffer, bottleneck and server as events in simulated time.

It runs the agent's own `Adaptation`, so controllers are tuned and tested on whole traces in milliseconds, the same every time.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from benchmarks.traces import Trace, oracle
from splitedge import limits
from splitedge.link.adaptation import Adaptation, Goal
from splitedge.link.estimate import wire_bytes
from splitedge.link.tcp import TcpSample
from splitedge.protocol.messages import LinkEstimate, Plan

KERNEL = 64 * 1024  # what TCP's window and the bound on unsent bytes let the kernel take


@dataclass
class Frame:
    number: int
    offered: float
    rung: int = -1
    busy: float = 1.0  # what an entropy stage makes of its content: bytes over those of the plan
    size: int = 0
    answered: float = -1.0
    fate: str = ""


@dataclass
class Run:
    """``frames`` all, each answered or dropped ("aged"); ``best`` the oracle's rung of each window."""

    frames: list[Frame]
    best: list[int | None]
    fps: float
    window_s: float
    age_s: float
    adaptation: Adaptation

    def held(self) -> list[bool | None]:
        """Of each window, whether 95 % of its frames were answered in time; None where no codec could hold it."""
        windows: list[list[Frame]] = [[] for _ in self.best]
        for frame in self.frames:
            windows[min(len(windows) - 1, int(frame.offered / self.window_s))].append(frame)
        return [
            None if best is None else sum(f.fate == "answered" for f in inside) >= 0.95 * len(inside)
            for best, inside in zip(self.best, windows, strict=True)
        ]

    def held_percent(self) -> float:
        held = [h for h in self.held() if h is not None]
        return 100.0 * sum(held) / len(held)

    def changes(self) -> int:
        rungs = [f.rung for f in self.frames if f.rung >= 0]
        return sum(a != b for a, b in pairwise(rungs))


class Simulator:
    def __init__(self, plan: Plan, trace: Trace, controller: str, *, fps: float, seconds: float, trip_s: float = 0.01,
                 age_s: float = 0.5, head_s: float = 0.002, jitter_s: float = 0.001, kernel_says: bool = True,
                 stalled: float = 0.0, spread: float = 0.0, heavier: float = 1.0) -> None:  # fmt: skip
        self.plan, self.trace, self.fps, self.seconds = plan, trace, fps, seconds
        self.trip_s, self.age_s, self.head_s, self.jitter_s, self.kernel_says = (
            trip_s,
            age_s,
            head_s,
            jitter_s,
            kernel_says,
        )
        rate = trace.rate(0.0)
        self.adaptation = Adaptation(
            plan, LinkEstimate(trip_s * 1e3, rate * 8e-6, 100.0), Goal(min_rate_fps=fps), controller
        )
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.now, self.ties = 0.0, 0
        self.waiting: deque[Frame] = deque()  # at the gate
        self.coded: deque[Frame] = deque()  # coded, not yet in the kernel
        self.ahead = self.queued = self.in_flight = 0
        self.head_free = self.link_free = 0.0
        self.draw, self.stalled = random.Random(1), stalled
        self.contents, self.spread, self.heavier = random.Random(2), spread, heavier

    def at(self, when: float, what: Callable[[], None]) -> None:
        self.ties += 1
        heapq.heappush(self.events, (when, self.ties, what))

    def run(self) -> Run:
        frames = [
            Frame(i, i / self.fps, busy=max(0.5, self.contents.gauss(self.heavier, self.spread)))
            for i in range(int(self.seconds * self.fps))
        ]
        for frame in frames:
            self.at(frame.offered, partial(self.offer, frame))
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            what()
        sizes = [wire_bytes(rung.payload_bytes) for rung in self.plan.rungs]
        best = oracle(self.trace, sizes, self.fps, int(self.seconds), 1.0)
        return Run(frames, best, self.fps, 1.0, self.age_s, self.adaptation)

    def offer(self, frame: Frame) -> None:
        self.adaptation.offered(self.now)
        self.waiting.append(frame)
        self.at(frame.offered + self.age_s, partial(self.age, frame))
        self.enter()

    def age(self, frame: Frame) -> None:
        """What has no answer by now is gone, but for what of it is on the link already."""
        if not frame.fate:
            frame.fate = "aged"
            if frame in self.waiting:
                self.waiting.remove(frame)
            elif frame in self.coded:
                self.coded.remove(frame)
                self.leave()
            elif frame.rung >= 0:  # its bytes are on the link all the same, and its answer will say so
                self.in_flight -= 1
                self.write()

    def enter(self) -> None:
        while self.waiting and self.ahead < limits.FRAMES_AHEAD:
            frame = self.waiting.popleft()
            self.ahead += 1
            self.head_free = max(self.now, self.head_free) + self.head_s
            self.at(self.head_free, partial(self.code, frame))

    def code(self, frame: Frame) -> None:
        if frame.fate:
            self.leave()
            return
        late = sum(self.now - f.offered > self.age_s / 2 for f in self.waiting)
        frame.rung = self.adaptation.choose(self.now, late)
        coded = bool(self.plan.ladder[frame.rung].tables)
        frame.size = round(self.plan.rungs[frame.rung].payload_bytes * (frame.busy if coded else 1.0))
        self.coded.append(frame)
        self.write()

    def leave(self) -> None:
        self.ahead -= 1
        self.enter()

    def write(self) -> None:
        while self.coded and self.queued < KERNEL and self.in_flight < limits.WINDOW:
            frame = self.coded.popleft()
            self.tell()
            self.adaptation.sent(frame.number, frame.rung, frame.size, self.now)
            size = wire_bytes(frame.size)
            self.queued += size
            self.in_flight += 1
            self.link_free = self.passed(max(self.now, self.link_free), size)
            self.at(self.link_free, partial(self.sent, size))
            server_s = 0.001 + self.draw.expovariate(1 / self.jitter_s)
            lag = self.draw.expovariate(1 / self.jitter_s) + self.stall()
            arrives = self.link_free + self.trip_s / 2 + server_s + self.trip_s / 2 + lag
            self.at(arrives, partial(self.answer, frame, server_s))
            self.leave()

    def stall(self) -> float:
        """On a busy machine some answers are late by nobody's account: a process waits for its core."""
        return self.draw.expovariate(1 / 0.012) if self.draw.random() < self.stalled else 0.0

    def sent(self, size: int) -> None:
        self.queued -= size
        self.write()

    def answer(self, frame: Frame, server_s: float) -> None:
        if not frame.fate:
            frame.fate, frame.answered = "answered", self.now
            self.in_flight -= 1
        self.adaptation.acked(frame.number, self.now, server_s)
        self.tell()
        self.write()

    def tell(self) -> None:
        if self.kernel_says:
            self.adaptation.tcp(TcpSample(self.now > self.link_free + self.trip_s, self.trip_s), self.now)

    def passed(self, start: float, size: float) -> float:
        """When ``size`` bytes that begin at ``start`` are through."""
        at, left = start, float(size)
        for _ in range(100_000):
            rate = self.trace.rate(at)
            end = next((t for t, _ in self.trace.points if t > at), float("inf"))
            if rate > 0 and left <= rate * (end - at):
                return at + left / rate
            left -= rate * (end - at)
            at = end
        raise AssertionError("the trace ends in an outage")


def simulate(plan: Plan, name: str, controller: str, **options: Any) -> Run:
    """``name`` is a trace; its unit is what the plan's cheapest rung takes at the wanted rate."""
    fps, seconds = options.setdefault("fps", 50.0), options.setdefault("seconds", 30.0)
    trace = Trace.of(name, seconds, wire_bytes(plan.rungs[-1].payload_bytes) * fps)
    return Simulator(plan, trace, controller, **options).run()
