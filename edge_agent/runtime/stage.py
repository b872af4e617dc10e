"""A board as a later stage of a chain: it takes activations from the board before it, computes its segment, and streams on.

    GET  /healthz      200 while boards before it are served; no token
    GET  /v1/stage     this board and those behind it, as they describe themselves: profile, links, segments held
    POST /v1/probe     the other side of the link's measurement
    GET  /v1/stream    the WebSocket, as the server's

A stream is opened by the id of the plan of the board before. The stage asks the server for the plan that follows it, and refuses what was not made for
this board with a protocol error; it fetches its segment, opens its own stream, and only then is the stream before it open. So a stage that was killed
needs nothing but to be started again. A frame is decoded, computed and sent on; its answer travels back the same way, and so does an error.

What is between the streams is bounded: no more than `WINDOW` frames of a session are under way here, the rest of its window waits at the door, and the
board before sends no more. A peer that breaks the protocol loses its session and may dial again; each refusal is counted by its error's code.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from aiohttp import web

import device_profiles
import edge_agent
from device_profiles import DeviceProfile
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.planning import negotiation, peers
from edge_agent.planning.disk_cache import Cache
from edge_agent.planning.measured_times import Timings, Turns
from edge_agent.runtime.active_plan import InUse
from edge_agent.runtime.agent import WINDOW
from edge_agent.runtime.engine import Encoded, Engine
from edge_agent.runtime.engine import Frame as Picture
from edge_agent.runtime.queue_limit import Admission
from edge_agent.runtime.results import Counters, Result, Timing
from splitedge import codec, errors, limits
from splitedge.head import answers
from splitedge.link import endpoint, http_server, stream_server
from splitedge.link.adaptation import Adaptation, Goal
from splitedge.link.stream_client import FrameStream
from splitedge.protocol.frames import HEADER_BYTES, Answer, Frame
from splitedge.protocol.messages import BESIDE, ChainDevice, Demand, Open, Plan

_Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Stage:
    """This board as a stage. ``progress`` hears in a few words what start-up is doing."""

    def __init__(self, settings: Settings, progress: Callable[[str], object] = lambda _: None) -> None:
        """Raises `errors.ConfigError` where other machines would reach the stage without a token or in clear text and that is not allowed."""
        self.settings = settings
        self.counters, self.admission = Counters(), Admission()
        self.refused: Counter[str] = Counter()  # requests and sessions, by the code of the error
        self.plan: Plan | None = None  # of the stream that was opened last
        self.url = ""
        self._token = config.stage_token(settings)
        check_exposure(settings, self._token)
        self._progress = progress
        self._state = "not started"
        self._started = time.monotonic()
        self._worker = ThreadPoolExecutor(1, "head")
        self._running: dict[tuple[str, int], _Running] = {}
        self._opening = asyncio.Lock()
        self._sessions = 0
        self._described: tuple[float, ChainDevice] | None = None
        self._describing = asyncio.Lock()
        self._runner: web.AppRunner | None = None
        self._profile: DeviceProfile | None = None
        self._timings: Timings | None = None
        self._turns = Turns()

    @property
    def ready(self) -> bool:
        """Whether boards before this one are served."""
        return bool(self.url)

    @property
    def state(self) -> str:
        """What the stage does, in a few words."""
        return self._state

    def say(self, text: str) -> None:
        """Make ``text`` the state, and tell it."""
        self._state = text
        self._progress(text)

    async def start(self) -> None:
        """Measure this machine, if it never was, then listen; may be called again after it raised. Raises `errors.ConfigError` for an address that
        cannot be listened on."""
        self._profile = await negotiation.profile(self.settings, self.say)
        self._timings = self._timings or negotiation.timings(self.settings)
        self._runner, self.url = await _listen(self._application(), self.settings)
        self.say("ready")

    async def close(self) -> None:
        """End sessions in order, then stop."""
        self.say("stopped")
        if self._runner is not None:
            await self._runner.cleanup()
        for running in list(self._running.values()):
            await running.close()
        self._running.clear()
        self._worker.shutdown(wait=False, cancel_futures=True)
        if self._timings is not None:
            self._timings.save()

    async def infer(self, frame: Picture) -> Result:  # noqa: ARG002  the local API's interface
        """Refuses: frames of callers come to the first board of a chain."""
        raise errors.UsageError("this board is a later stage of a chain; send frames to the first board")

    def status(self) -> dict[str, Any]:
        """Everything about the stage that a person may want to know, as JSON values; no secrets."""
        counters = self.counters
        return {
            "version": edge_agent.__version__, "ready": self.ready, "state": self.state, "server": self.settings.server,
            "stage": self.url, "next": self.settings.chain.next, "uptime_s": round(time.monotonic() - self._started, 1),
            "plan": self.plan_info() or None, "sessions": self._sessions, "refused": dict(self.refused),
            "frames": {"answered": counters.answered, "dropped": dict(counters.dropped), "failed": dict(counters.failed)},
            "queue": {"frames": self.admission.frames, "bytes": self.admission.bytes}, "payload_bytes": counters.payload_bytes,
        }  # fmt: skip

    def gauges(self) -> dict[str, float]:
        """Figures of the moment, by name; a name that ends in _total only grows."""
        return {
            "ready": float(self.ready), "queue_frames": self.admission.frames, "queue_bytes": self.admission.bytes,
            "sessions": self._sessions, "refused_total": self.refused.total(),
        }  # fmt: skip

    def plan_info(self) -> dict[str, str]:
        """The plan that was opened last in a few words, or nothing."""
        if self.plan is None or self.plan.stage is None:
            return {}
        plan, stage = self.plan, self.plan.stage
        return {
            "id": plan.id,
            "model": plan.model,
            "mode": plan.mode,
            "start": stage.start.layer,
            "cut": plan.cut.layer,
        }

    # --- HTTP

    def _application(self) -> web.Application:
        app = web.Application(
            middlewares=[http_server.errors_as_json(self.refused), self._authorize],
            client_max_size=limits.MAX_PROBE_BYTES,
        )
        app.add_routes([
            web.get("/healthz", self._healthz), web.get("/v1/stage", self._stage), web.post("/v1/probe", http_server.probe),
            web.get("/v1/stream", self._stream),
        ])  # fmt: skip
        stream_server.install(app)
        return app

    @web.middleware
    async def _authorize(self, request: web.Request, handler: _Next) -> web.StreamResponse:
        if self._token and request.path != "/healthz":
            offered = http_server.bearer(request) or ""
            if not hmac.compare_digest(offered.encode("utf-8", "surrogateescape"), self._token.encode()):
                raise errors.AuthError("the board refused the token: give its `stage.token` as `chain.token`")
        return await handler(request)

    async def _healthz(self, _: web.Request) -> web.Response:
        return http_server.json({"ready": self.ready, "state": self.state})

    async def _stage(self, request: web.Request) -> web.Response:
        text = request.query.get("before", "1")
        before = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else limits.MAX_STAGES
        if before >= limits.MAX_STAGES:
            raise errors.ProtocolError(
                f"the chain has more than {limits.MAX_STAGES} boards or leads back to itself; correct `chain.next`"
            )
        return http_server.json(await negotiation.boards(self.settings, await self._describe(), before, lambda _: None))

    async def _describe(self) -> ChainDevice:
        """This board. Its link to the server is measured no more often than every `limits.STAGE_LINK_AGE`."""
        async with self._describing:
            now = time.monotonic()
            if self._described is None or now - self._described[0] > limits.STAGE_LINK_AGE:
                async with peers.client(self.settings) as server:
                    server_link = await server.measure_link()
                assert self._profile is not None
                profile, name = device_profiles.to_dict(self._profile), negotiation.device_name(self.settings)
                self._described = now, ChainDevice(name, profile, None, server_link)
            assert self._timings is not None
            held = Cache(negotiation.cache_directory(self.settings)).held()
            device = self._described[1]
            return ChainDevice(device.device, device.profile, None, device.server, held, self._timings.known())

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self._sessions >= limits.MAX_UPSTREAM:
            raise errors.BusyError(f"this board serves {self._sessions} streams already: try again later")
        opened: list[_Running] = []

        async def open_plan(asked: Open) -> _Handler:
            opened.append(await self._open(asked))
            return _Handler(self, opened[0])

        self._sessions += 1
        try:
            return await stream_server.serve_session(request, open_plan, workers=WINDOW, on_end=self._ended)
        finally:
            self._sessions -= 1
            for running in opened:
                running.sessions -= 1

    def _ended(self, error: errors.SplitEdgeError | None) -> None:
        if error is not None and not isinstance(error, errors.LinkLostError):
            self.refused[error.code] += 1

    # --- plans

    async def _open(self, asked: Open) -> _Running:
        """What computes the frames of the plan ``asked``, for one session more."""
        key = asked.plan, asked.topk
        async with self._opening:
            found = self._running.get(key)
            if found is None or found.failed:
                found = await self._prepare(asked)
                await self._make_room(key)
                self._running[key] = found
            self.plan = found.engine.plan
            found.sessions += 1
        return found

    async def _prepare(self, asked: Open) -> _Running:
        """Plan, segment, warm head, and a stream to whoever follows."""
        if len(asked.plan) > limits.MAX_NAME:
            raise errors.ProtocolError("the name of a plan is longer than any is; run the same splitedge on both")
        settings = self.settings
        async with peers.client(settings) as server:
            plan = await server.next_plan(asked.plan)
            check_stage(plan, asked.plan, negotiation.device_name(settings))
            data = await negotiation.fetch(server, Cache(negotiation.cache_directory(settings)), plan, self.say)
        self.say("preparing the head")
        assert self._profile is not None
        demand, threads = Demand(max_drop_points=plan.demand.max_drop_points), negotiation.threads(self._profile)
        engine = await asyncio.to_thread(Engine, plan, data, demand, threads)
        adaptation = stream = None
        if plan.mode != "device":
            adaptation = self._adaptation(plan)
            stream = await negotiation.open_stream(settings, plan, WINDOW, adaptation, self.say, asked.topk)
        self.say("ready")
        return _Running(engine, stream, adaptation, asked.topk)

    def _adaptation(self, plan: Plan) -> Adaptation:
        chosen, link = self.settings.link, negotiation.own_link(plan)
        if link is None:
            raise errors.ProtocolError("the server's plan contradicts itself; run the same splitedge on all boards")
        goal = Goal(plan.demand.min_rate_fps, None)
        return Adaptation(plan, link, goal, chosen.controller, chosen.bits or None)

    async def _make_room(self, key: tuple[str, int]) -> None:
        """Ends what the plan ``key`` had before, and of the others the oldest that no session uses."""
        others = [k for k in self._running if k != key and not self._running[k].sessions]
        spare = others[: max(0, len(self._running) - (key in self._running) - limits.STAGE_PLANS + 1)]
        for old in [*spare, *([key] if key in self._running else [])]:
            await self._running.pop(old).close()
        if len(self._running) >= limits.STAGE_PLANS:
            raise errors.BusyError(f"this board computes for {len(self._running)} plans already: try again later")

    # --- frames

    async def answer(self, running: _Running, frame: Frame) -> tuple[bytes, int]:
        """The answer to ``frame``, counted, and the microseconds that it took from here on."""
        start = time.perf_counter()
        with self.counters.ending(), self.admission.slot(len(frame.payload)):
            payload, timing, sent, turn_ms = await self._through(running, frame, start)
        plan = running.engine.plan
        self.counters.answer(Result([], timing, sent, plan.id, plan.mode))
        if self._timings is not None:
            own_ms = timing.preprocess_ms + timing.head_ms + timing.encode_ms
            self._timings.add(plan.segment.sha256, timing.head_ms)
            self._timings.add(BESIDE, max(0.0, turn_ms - own_ms))
        return payload, round(1e3 * timing.total_ms)

    async def _through(self, running: _Running, frame: Frame, start: float) -> tuple[bytes, Timing, int, float]:
        """The answer's payload, where the time went, bytes sent, and milliseconds for which the worker was not free."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + frame.wait_ms / 1000 if frame.wait_ms else None
        if running.adaptation is not None:
            running.adaptation.offered(time.monotonic())
            if self.settings.link.replan and running.outdated():
                raise errors.UnknownPlanError(
                    "the link behind this board is another one than was planned for; ask for a new plan"
                )
        async with running.gate.place(deadline) as leave:
            asked, work = time.perf_counter(), functools.partial(running.compute, frame)
            encoded, turn_ms = await loop.run_in_executor(self._worker, self._turns.run, asked, work)
            sent = time.perf_counter()
            if running.stream is None:
                return running.answer(encoded), _timing(encoded, None, start, sent), 0, turn_ms
            answer = await running.stream.send(encoded.payload, encoded.rung, deadline, leave)
        size = HEADER_BYTES + len(encoded.payload)
        return bytes(answer.payload), _timing(encoded, answer, start, sent), size, turn_ms


class _Running(InUse):
    """A plan that serves sessions of the board before; its stream leads to whoever follows."""

    def __init__(self, engine: Engine, stream: FrameStream | None, adaptation: Adaptation | None, topk: int) -> None:
        super().__init__(engine, stream, adaptation)
        self.topk, self.sessions = topk, 0
        self.since = time.monotonic()  # the plan was opened, or was said to be outdated

    def outdated(self) -> bool:
        """Whether the link has changed for good since the plan was made; said once in `limits.REPLAN_LEAST`: until there is another it serves on."""
        now = time.monotonic()
        due = self.adaptation is not None and self.adaptation.changed and now - self.since >= limits.REPLAN_LEAST
        self.since = now if due else self.since
        return due

    def compute(self, frame: Frame) -> Encoded:
        """``frame`` decoded, through the segment, and coded for the link; blocks."""
        start = time.perf_counter()
        plan = self.engine.plan
        assert plan.stage is not None
        if frame.codec >= len(plan.stage.incoming):
            raise errors.CodecError(
                f"the frame names codec {frame.codec} of a ladder of {len(plan.stage.incoming)}: ask for a new plan"
            )
        x = codec.decode(frame.payload, plan.stage.incoming[frame.codec], plan.stage.start.shape)
        decoded_ms = 1e3 * (time.perf_counter() - start)
        encoded = self.engine.resume(x, functools.partial(self.choose, limits.FRAME_AGE / 2))
        return encoded._replace(preprocess_ms=encoded.preprocess_ms + decoded_ms)

    def answer(self, encoded: Encoded) -> bytes:
        """The answer that the output ``encoded`` is."""
        return answers.pack(self.engine.output(encoded.codes), self.engine.plan.output, self.topk)

    async def close(self) -> None:
        if self.stream is not None:
            await self.stream.__aexit__(None, None, None)


@dataclass(frozen=True)
class _Handler:
    """Answers the frames of one session."""

    stage: Stage
    running: _Running

    async def answer(self, frame: Frame) -> tuple[bytes, int]:
        return await self.stage.answer(self.running, frame)


def check_stage(plan: Plan, upstream: str, device: str) -> None:
    """Raise `errors.ProtocolError` unless ``plan`` follows the plan ``upstream`` and was made for the board ``device``."""
    stage = plan.stage
    if stage is None or stage.upstream != upstream:
        raise errors.ProtocolError(
            "the server's plan is not the one that follows; run the same splitedge on all boards"
        )
    if stage.device != device:
        raise errors.ProtocolError("this plan was made for another board; ask for a new plan, or correct `chain.next`")
    if not stage.incoming or device not in [one.device for one in stage.route]:
        raise errors.ProtocolError("the server's plan contradicts itself; run the same splitedge on all boards")


def check_exposure(settings: Settings, token: str) -> None:
    """Raise `errors.ConfigError` for a stage that others could reach without a token or in clear text, unless ``allow_insecure``."""
    stage = settings.stage
    if bool(stage.cert) != bool(stage.key):
        raise errors.ConfigError("`stage.cert` and `stage.key` belong together; give both or neither", key="stage.cert")
    lacks = http_server.lacking(stage.host, token=bool(token), tls=bool(stage.cert))
    if lacks and not settings.allow_insecure:
        raise errors.ConfigError(
            f"other machines would reach {stage.host} without {lacks}; set `stage.token_file`, `stage.cert` and `stage.key`, or `allow_insecure`",
            key="stage.host",
        )


async def _listen(app: web.Application, settings: Settings) -> tuple[web.AppRunner, str]:
    """The running application and its URL. Raises `errors.ConfigError`, `errors.AddressError`."""
    stage = settings.stage
    paths = [config.path_of(text) if text else None for text in (stage.cert, stage.key)]
    context = http_server.tls(*paths)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=limits.DRAIN_TIMEOUT)
    await runner.setup()
    try:
        await web.TCPSite(runner, stage.host, stage.port or 0, ssl_context=context).start()
    except OSError as error:
        await runner.cleanup()
        raise errors.AddressError(
            f"the stage cannot listen on {stage.host}:{stage.port} ({endpoint.os_reason(error)}); set `stage.host` and `stage.port` to others"
        ) from error
    host, port = runner.addresses[0][:2]
    return runner, http_server.url(host, port, tls=context is not None)


def _timing(encoded: Encoded, answer: Answer | None, start: float, sent: float) -> Timing:
    """Of a frame here; what the boards behind claim is its tail."""
    total = 1e3 * (time.perf_counter() - start)
    queue, tail = (answer.queue_us / 1e3, answer.tail_us / 1e3) if answer else (0.0, 0.0)
    own = encoded.preprocess_ms + encoded.head_ms + encoded.encode_ms
    wait = max(0.0, 1e3 * (sent - start) - own)
    link = max(0.0, total - wait - own - queue - tail)
    return Timing(wait, encoded.preprocess_ms, encoded.head_ms, encoded.encode_ms, link, queue, tail, total)
