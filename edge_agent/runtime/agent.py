"""The agent: negotiates a plan, keeps its head warm and its stream open, and answers frames.

    async with Agent(settings) as agent:
        result = await agent.infer(frame)

The event loop only waits: preprocessing, head and codec of a frame run in one worker thread, so while frame n is on the link, n + 1 is in the
head. What is between a caller and its answer is bounded (`admission`). Every frame ends in exactly one of answered, given an earlier frame's answer
(`reuse`), dropped by policy, failed with an error that its caller sees (`counters`). When the plan expires, the server has forgotten it, the link has
changed or frames tell otherwise, a new one is made while the old one serves.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

import edge_agent
from device_profiles import power
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.inputs.sources import Text, file_bytes, read_file, refuse_file_name
from edge_agent.planning import negotiation, peers
from edge_agent.planning.disk_cache import Cache
from edge_agent.planning.measured_times import Sending, Timings, Turns
from edge_agent.runtime.active_plan import InUse
from edge_agent.runtime.answer_reuse import Reuse, Seen
from edge_agent.runtime.energy import FrameEnergy
from edge_agent.runtime.engine import Encoded, Engine, Frame, frame_bytes, frame_of
from edge_agent.runtime.queue_limit import Admission
from edge_agent.runtime.results import Counters, Result, Timing, stages, top_classes
from splitedge import errors, limits
from splitedge.head import answers
from splitedge.link.adaptation import Adaptation, Goal
from splitedge.link.endpoint import heals
from splitedge.link.stream_client import FrameStream, LinkState
from splitedge.protocol.frames import HEADER_BYTES, Answer
from splitedge.protocol.messages import BESIDE, SENDING, LinkEstimate, Plan


class Agent:
    """One model on this board. ``progress`` hears in a few words what start-up is doing, ``on_link`` once each that the link is lost or back, and
    that it no longer holds what is wanted, or does again.
    """

    def __init__(
        self,
        settings: Settings,
        progress: Callable[[str], object] = lambda _: None,
        on_link: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.settings = settings
        self.counters = Counters()
        self.admission = Admission()
        self._state = "not started"
        self._progress, self._on_link = progress, on_link
        self._link_up = True
        self._started = time.monotonic()
        self._worker = ThreadPoolExecutor(1, "head")
        self._replanning: asyncio.Task[None] | None = None
        self._active: _Active | None = None
        self._timings: Timings | None = None
        self._turns = Turns()
        self._renew = asyncio.Event()  # a new plan is wanted before the old one expires
        self._closing = False
        self._reconnects = 0  # of streams that were closed
        self._plans = 0
        self._planned_at = 0.0
        self._looks = limits.LOOKS
        self._overloads, self._holds = 0, True  # of streams that were closed; what was told last
        self._follower: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._energy: FrameEnergy | None = None  # None: no sensor
        self._metering: asyncio.Task[None] | None = None
        self._retiring: dict[asyncio.Task[None], _Active] = {}

    async def __aenter__(self) -> Agent:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def ready(self) -> bool:
        """Whether frames are served: there is a plan and, where it needs the server, the link is up."""
        return self._active is not None and self._active.link_up

    @property
    def state(self) -> str:
        """What the agent does, in a few words."""
        if self._active is None or self._active.link_up:
            return self._state
        error = self._active.stream.error if self._active.stream is not None else None
        return "the link to the server is down" + (f": {error.message}" if error else "")

    @property
    def plan(self) -> Plan | None:
        """The plan in force, or None before there is one."""
        return self._active.engine.plan if self._active else None

    @property
    def window(self) -> int:
        """Frames that a caller should keep going at once to fill link and head."""
        return WINDOW + 2

    async def start(self) -> None:
        """Become ready, or raise the error that stands in the way; it may be called again."""
        self._use(await self._prepare())
        if (meter := await asyncio.to_thread(power.find)) is not None:
            self._energy = FrameEnergy(meter, self.admission)
            self._metering = asyncio.create_task(self._energy.run())
        self._keeper = asyncio.create_task(self._keep_fresh())
        self._follower = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Let frames in flight end for at most `limits.DRAIN_TIMEOUT`, then stop."""
        self._closing = True
        own = (self._keeper, self._follower, self._replanning, self._metering)
        tasks = [task for task in own if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)  # a new plan that is just ready becomes the active one, or is never opened
        if self._energy is not None:
            await asyncio.to_thread(self._energy.update)
        active, self._active = self._active, None
        self._state = "stopped"
        if active is not None:
            self._begin_retiring(active)
        try:
            ended = await asyncio.gather(*self._retiring, return_exceptions=True)
        finally:
            self._worker.shutdown(wait=False, cancel_futures=True)
            if self._timings is not None:
                self._timings.save()
        for error in ended:
            if error is not None:
                raise error

    async def infer(self, frame: Frame | Path) -> Result:
        """The answer to ``frame``. A `Path` is a file that holds an image, a .npy array or, for a model that takes texts, a text. A `str` is a text;
        one that names an existing file is refused, unless it is an `edge_agent.inputs.sources.Text`.

        Raises `errors.BusyError` at once if too much is waiting, `errors.InputError` for a file that cannot be read and for a frame that does not fit
        the model, `errors.LinkError` when it was not answered in time, and whatever the server said.
        """
        with self.counters.ending():
            if isinstance(frame, str) and not isinstance(frame, Text):
                await asyncio.to_thread(refuse_file_name, frame)
            size = await asyncio.to_thread(file_bytes, frame) if isinstance(frame, Path) else frame_bytes(frame)
            with self.admission.slot(size):
                if isinstance(frame, Path):
                    frame = frame_of(await asyncio.to_thread(read_file, frame), str(frame), self.plan)
                result = await self._answer(frame, time.perf_counter())
        self.counters.answer(result)
        return result

    def status(self) -> dict[str, Any]:
        """Everything about the agent that a person may want to know, as JSON values; no secrets."""
        counters = self.counters
        return {
            "version": edge_agent.__version__, "ready": self.ready, "state": self.state, "server": self.settings.server,
            "model": self.settings.model, "uptime_s": round(time.monotonic() - self._started, 1), "plan": self.plan_info() or None,
            "frames": {"answered": counters.answered, "reused": counters.reused, "dropped": dict(counters.dropped), "failed": dict(counters.failed)},
            "queue": {"frames": self.admission.frames, "bytes": self.admission.bytes}, "payload_bytes": counters.payload_bytes,
            "saved_bytes": counters.saved_bytes,
            "reconnects_total": self._reconnects_total(), "plans_total": self._plans, "energy": self.energy(), "link": self.link(),
        }  # fmt: skip

    def link(self) -> dict[str, Any] | None:
        """How the stream adapts: controller, codec in use, the link as it is estimated, and whether it holds what is wanted; None without a stream."""
        if self._active is None or (adaptation := self._active.adaptation) is None:
            return None
        estimate, rungs = adaptation.estimate(time.monotonic()), self._active.engine.plan.rungs
        return {
            "controller": self.settings.link.controller, "rung": adaptation.rung, "rungs": len(rungs), "bits": adaptation.bits,
            "drop_points": rungs[adaptation.rung].drop_points, "uplink_mbps": estimate.uplink_mbps, "rtt_ms": estimate.rtt_ms,
            "holds": adaptation.holds, "overloads_total": self._overloads + adaptation.overloads, "waiting": self._active.gate.waiting(time.monotonic()),
        }  # fmt: skip

    def energy(self) -> dict[str, Any] | None:
        """What the board's power sensor says: its name, joules while frames were under way, joules for each frame with an answer; None without a sensor."""
        if self._energy is None:
            return None
        joules, frames = self._energy.frames_j, self.counters.served
        return {
            "sensor": self._energy.sensor,
            "joules": joules,
            "joules_per_frame": joules / frames if frames else None,
        }

    def gauges(self) -> dict[str, float]:
        """Figures of the moment, by name; a name that ends in _total only grows. Energy only where there is a sensor."""
        found = {
            "ready": float(self.ready), "queue_frames": self.admission.frames, "queue_bytes": self.admission.bytes,
            "reconnects_total": self._reconnects_total(), "plans_total": self._plans,
        }  # fmt: skip
        if link := self.link():
            names = ("rung", "bits", "uplink_mbps", "rtt_ms", "holds", "overloads_total", "waiting")
            found |= {f"link_{name}": float(link[name]) for name in names}
        if energy := self.energy():
            found["frame_joules_total"] = energy["joules"]
            if energy["joules_per_frame"] is not None:
                found["joules_per_frame"] = energy["joules_per_frame"]
        return found

    def _reconnects_total(self) -> int:
        streams = [*self._retiring.values(), *([self._active] if self._active else [])]
        return self._reconnects + sum(active.reconnects for active in streams)

    def plan_info(self) -> dict[str, str]:
        """The plan in force in a few words, or nothing."""
        if self._active is None:
            return {}
        plan = self._active.engine.plan
        codec = plan.ladder[self._active.engine.codec] if plan.mode != "device" else None
        return {
            "id": plan.id, "model": plan.model, "mode": plan.mode, "cut": plan.cut.layer, "weight_bits": f"{plan.mean_bits():.2f}",
            "activation_bits": str(codec.bits) if codec else "", "rule": codec.rule if codec else "",
        }  # fmt: skip

    # --- a frame

    async def _answer(self, frame: Frame, start: float) -> Result:
        active = self._require_active()
        try:
            return await self._through(active, frame, start)
        except errors.UnknownPlanError:
            await self._replan(active)
            return await self._through(self._require_active(), frame, start)
        except errors.SplitEdgeError:
            if active.failed:
                self._renew.set()
            raise

    async def _through(self, active: _Active, frame: Frame, start: float) -> Result:
        engine, deadline = active.engine, self._deadline(start)
        async with active.use():
            came, alone = time.monotonic(), active.users == 1
            if active.adaptation is not None:
                active.adaptation.offered(came)
            async with active.gate.place(deadline) as leave:
                choose = functools.partial(active.choose, self._late_s)
                asked, work = time.perf_counter(), functools.partial(engine.process, frame, choose, active.look)
                loop = asyncio.get_running_loop()
                encoded, turn_ms = await loop.run_in_executor(self._worker, self._turns.run, asked, work)
                sent = time.perf_counter()
                if encoded.kept is not None and active.adaptation is not None:
                    active.adaptation.spared(came)
                stream = active.stream if encoded.kept is None else None
                answer = await stream.send(encoded.payload, encoded.rung, deadline, leave) if stream else None
                alone = alone and active.users == 1
        timing = _timing(encoded, answer, start, sent)
        if self._timings is not None:
            self._timings.add(engine.plan.segment.sha256, timing.head_ms)
            self._timings.add(BESIDE, max(0.0, turn_ms - timing.head_ms - timing.encode_ms))
            if alone and encoded.kept is None:
                beyond = active.beyond_ms(timing, encoded.rung, HEADER_BYTES + len(encoded.payload))
                if beyond is not None:
                    self._timings.add(SENDING, beyond)
        return active.result(encoded, answer, timing, self.settings.topk)

    def _deadline(self, start: float) -> float | None:
        """When a frame that came at ``start`` (of `time.perf_counter`) ages out, in the event loop's time; None: never, unless on the link."""
        age_ms = self.settings.link.max_age_ms
        if age_ms is None:
            return None
        return asyncio.get_running_loop().time() + age_ms / 1e3 - (time.perf_counter() - start)

    @property
    def _late_s(self) -> float:
        """Frames that wait for so long at the gate wait too long: half of what they may."""
        return (self.settings.link.max_age_ms or limits.FRAME_AGE * 1e3) / 2e3

    def _require_active(self) -> _Active:
        if self._active is None:
            raise errors.not_ready(self.state)
        return self._active

    # --- the plan

    async def _prepare(self, known: LinkEstimate | None = None) -> _Active:
        """Profile, link (measured, unless it is ``known``), plan, segment, warm head, open stream."""
        settings, cache = self.settings, Cache(negotiation.cache_directory(self.settings))
        config.require_model(settings)
        profile = await negotiation.profile(settings, self.say)
        async with peers.client(settings) as client:
            link, since = known or await negotiation.link(client, {}, self.say), time.monotonic()
            measured = self._known(link_changed=known is not None)
            rehearsed = await negotiation.rehearsal(client, settings, profile, measured, self.say)
            plan = await negotiation.plan(client, settings, profile, cache.held(), measured, self.say, link, rehearsed)
            data = await negotiation.fetch(client, cache, plan, self.say)
            tokenizer = await negotiation.tokenizer(client, cache, plan, self.say)
        self.say("preparing the head")
        engine = await asyncio.to_thread(Engine, plan, data, settings.demand, negotiation.threads(profile), tokenizer)
        adaptation = None if plan.mode == "device" else self._adaptation(plan, negotiation.own_link(plan) or link)
        stream = None
        if adaptation is not None:
            stream = await negotiation.open_stream(settings, plan, WINDOW, adaptation, self.say)
            stream.on_state = self._link_changed
        self._plans += 1
        self._planned_at = time.monotonic()
        self.say("ready")
        reuse = Reuse(settings.reuse) if stream is not None and settings.reuse.threshold else None
        told = stream is not None and known is None and not settings.chain.next
        return _Active(engine, stream, adaptation, reuse, Sending(plan, profile, link, since) if told else None)

    def _adaptation(self, plan: Plan, link: LinkEstimate) -> Adaptation:
        demand, chosen = self.settings.demand, self.settings.link
        return Adaptation(
            plan, link, Goal(demand.min_rate_fps, demand.max_latency_ms), chosen.controller, chosen.bits or None
        )

    def _known(self, link_changed: bool = False) -> dict[str, float]:
        """What heads took here so far; kept, as an agent may be ended at any time. Over a link that changed what sending took may be the link's doing."""
        self._timings = self._timings or negotiation.timings(self.settings)
        if link_changed:
            self._timings.forget(SENDING)
        self._timings.save()
        return self._timings.known()

    async def _replan(self, old: _Active) -> None:
        """Put a new plan in the place of ``old``. However many ask for it at once, it is made once, and its failure is the failure of all."""
        if self._closing:
            raise errors.LinkLostError(_STOPPED)
        if self._active is old and self._replanning is None:
            self._replanning = asyncio.create_task(self._replace(old))
            self._replanning.add_done_callback(self._replanned)
        if (task := self._replanning) is not None:
            await asyncio.wait({task})
            if task.cancelled():
                raise errors.LinkLostError(_STOPPED)
            task.result()

    async def _replace(self, old: _Active) -> None:
        adaptation = old.adaptation
        known = None
        if (
            adaptation is not None and adaptation.changed and not self.settings.chain.next
        ):  # a chain measures all its links
            known = adaptation.estimate(time.monotonic())
        self._use(await self._prepare(known))
        self._begin_retiring(old)

    def _replanned(self, task: asyncio.Task[None]) -> None:
        self._replanning = None
        if not task.cancelled():
            task.exception()  # whoever asked has seen it; all may have been cancelled meanwhile

    async def _keep_fresh(self) -> None:
        """Make a new plan before the present one expires, or when its stream failed for good; until then the old one serves on."""
        backoff = limits.BACKOFF_FIRST
        while self._active is not None:
            active = self._active
            # A board's clock may be years off: a plan is kept for some time whatever its expiry says.
            left = 0.9 * (active.engine.plan.expires_unix - time.time())
            await self._renewal(min(max(left, limits.REPLAN_LEAST), limits.PLAN_LIFETIME))
            current = self._active
            if current is None or (current is not active and not current.failed):
                continue  # the agent ended, or another plan came meanwhile
            while self._active is current:
                try:
                    await self._replan(current)
                    backoff, self._looks = limits.BACKOFF_FIRST, limits.LOOKS
                except errors.SplitEdgeError as error:
                    self.say(f"the old plan is kept, no new plan: {error.message}")
                    await asyncio.sleep(backoff if heals(error) else limits.REPLAN_LEAST)  # each attempt loads the link
                    backoff = min(2 * backoff, limits.BACKOFF_MAX)

    async def _follow(self) -> None:
        """Tell when the link comes not to hold what is wanted, and make a new plan where it has changed for good, or where frames told otherwise than
        the plan.
        """
        while True:
            await asyncio.sleep(limits.LINK_PERIOD)
            active = self._active
            if active is None or not active.link_up:
                continue
            adaptation, passed = active.adaptation, time.monotonic() - self._planned_at
            if adaptation is not None and adaptation.holds != self._holds:
                self._holds = adaptation.holds
                self._on_link(self._holding(adaptation))
            changed = adaptation is not None and adaptation.changed and passed >= limits.REPLAN_LEAST
            untrue = not changed and self._looks > 0 and passed >= limits.LEARNT and active.untrue
            if (changed or untrue) and self.settings.link.replan:
                self._planned_at = time.monotonic()
                try:
                    await self._replan(active)
                    self._looks -= untrue
                except errors.SplitEdgeError as error:
                    why = "the changed link" if changed else "what frames took"
                    self.say(f"the old plan is kept, no new plan for {why}: {error.message}")

    def _holding(self, adaptation: Adaptation) -> str:
        if adaptation.holds:
            return "the link holds what is wanted again"
        rate = adaptation.estimate(time.monotonic()).uplink_mbps
        return f"the link carries {rate:.2g} Mbit/s, too little even for the cheapest codec of the plan; frames wait, and are dropped when they age"

    async def _renewal(self, seconds: float) -> None:
        """Wait until a new plan is wanted, at most ``seconds``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._renew.wait()
        self._renew.clear()

    async def _retire(self, active: _Active) -> None:
        await active.drained(limits.DRAIN_TIMEOUT)
        if active.stream is not None:
            await active.stream.__aexit__(None, None, None)

    def _begin_retiring(self, active: _Active) -> None:
        task = asyncio.create_task(self._retire(active))
        self._retiring[task] = active
        task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        active = self._retiring.pop(task)
        self._reconnects += active.reconnects
        self._overloads += active.adaptation.overloads if active.adaptation is not None else 0

    def _use(self, active: _Active) -> None:
        self._active = active
        self._link_changed()

    def _link_changed(self) -> None:
        """Tell that the link of the plan in force was lost, or is back, if that is news; what a server said that is gone serves no more."""
        if self._active is not None and self._active.reuse is not None and not self._active.link_up:
            self._active.reuse.forget()
        if self._active is not None and self._active.link_up != self._link_up:
            self._link_up = self._active.link_up
            self._on_link("the link to the server is back" if self._link_up else self.state)
        if self._active is not None and self._active.failed:
            self._renew.set()  # whoever heeds `ready` sends no frame that would ask for a new plan

    def say(self, text: str) -> None:
        """Make ``text`` the state, and tell it."""
        self._state = text
        self._progress(text)


WINDOW = 8  # frames on the link at once
_STOPPED = "the agent stopped before the frame was answered; send it again"


class _Active(InUse):
    """The plan that serves callers, answers of theirs that serve twice, and the frames of theirs that are in its engine and stream."""

    def __init__(
        self,
        engine: Engine,
        stream: FrameStream | None,
        adaptation: Adaptation | None = None,
        reuse: Reuse | None = None,
        sending: Sending | None = None,
    ) -> None:
        super().__init__(engine, stream, adaptation)
        self.reuse, self.sending = reuse, sending
        self._excess_ms: deque[float] = deque(maxlen=limits.LAST)  # of frames that were alone, over what the plan says
        self.users = 0  # frames under way
        self._idle = asyncio.Event()
        self._idle.set()

    def beyond_ms(self, timing: Timing, rung: int, payload_bytes: int) -> float | None:
        """What a frame that was alone tells: as `Sending.beyond_ms`; and it counts for `untrue`. Preprocessing and waiting, which no plan tells, are left out."""
        planned, sending = self.engine.plan.prediction, self.sending
        excess = timing.total_ms - timing.preprocess_ms - timing.wait_ms - planned.total_ms
        if sending is None:
            if self.stream is None:
                self._excess_ms.append(excess)
            return None
        chosen = sending.expected_ms(self.engine.codec, planned.payload_bytes)
        self._excess_ms.append(excess - sending.expected_ms(rung, payload_bytes) + chosen)
        return sending.beyond_ms(rung, payload_bytes, timing.encode_ms + timing.link_ms)

    @property
    def untrue(self) -> bool:
        """Whether frames took longer or shorter than the plan says."""
        grain = max(limits.UNTRUE_MS, limits.UNTRUE * self.engine.plan.prediction.total_ms)
        return len(self._excess_ms) >= limits.TELLING and abs(median(self._excess_ms)) > grain

    @property
    def look(self) -> Callable[[NDArray[Any]], Seen] | None:
        """Whether an answer serves for the head's output, in the head's thread; None where none is kept."""
        reuse = self.reuse
        return None if reuse is None else lambda tensor: reuse.look(tensor, time.monotonic())

    def result(self, encoded: Encoded, reply: Answer | None, timing: Timing, topk: int) -> Result:
        """What the frame's caller gets. ``reply``: the server's, None where nothing was sent; it may serve again. ``topk``: as in the settings."""
        plan, seen, kept = self.engine.plan, encoded.seen, encoded.kept
        made = Result(
            [], timing, 0, plan.id, plan.mode, distance=seen.distance if seen else None, kind=plan.output.kind
        )
        if reply is not None:
            answer = answers.unpack(reply.payload, plan.output, topk)
            made.payload_bytes, made.rung = HEADER_BYTES + len(encoded.payload), encoded.rung
            made.bits = plan.ladder[encoded.rung].bits
            if self.reuse is not None and seen is not None:
                self.reuse.keep(seen, answer, made.payload_bytes)
        elif kept is not None:
            answer, made.cached, made.saved_bytes = kept.answer, True, kept.sent_bytes
        else:
            answer = answers.from_values(self.engine.output(encoded.codes), plan.output, topk)
        made.top, made.output = top_classes(answer.pairs, plan.labels), answer.output
        return made

    @property
    def link_up(self) -> bool:
        return self.stream is None or self.stream.state is LinkState.STREAMING

    @property
    def reconnects(self) -> int:
        return self.stream.stats.reconnects if self.stream is not None else 0

    @asynccontextmanager
    async def use(self) -> AsyncIterator[None]:
        self.users += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.users -= 1
            if not self.users:
                self._idle.set()

    async def drained(self, timeout: float) -> None:
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return  # the stream's close fails what is left, and each caller sees it


def _timing(encoded: Encoded, answer: Answer | None, start: float, sent: float) -> Timing:
    end = time.perf_counter()
    queue_ms, tail_ms = (answer.queue_us / 1e3, answer.tail_us / 1e3) if answer else (0.0, 0.0)
    timing = Timing(
        preprocess_ms=encoded.preprocess_ms, head_ms=encoded.head_ms, encode_ms=encoded.encode_ms,
        link_ms=max(0.0, 1e3 * (end - sent) - queue_ms - tail_ms), queue_ms=queue_ms, tail_ms=tail_ms, total_ms=1e3 * (end - start),
    )  # fmt: skip
    timing.wait_ms = max(0.0, timing.total_ms - sum(value for _, value in stages(timing)))
    return timing
