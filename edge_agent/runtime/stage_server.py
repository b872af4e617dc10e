"""A board as a later stage of a chain: it receives activations from the board before it, runs its segment, and sends
the result on.

    GET  /healthz      200 while boards before it are served; no token
    GET  /v1/stage     this board and those behind it, as they describe themselves: profile, links, cached segments
    POST /v1/probe     the listening side of the link measurement
    GET  /v1/stream    the WebSocket, as the server's

The board before opens a stream with its plan's id. The stage asks the server for the plan that follows, refuses a plan
that was not made for this board, fetches its segment, and opens its own stream. Only then is the first stream open. So
a stage that was killed only needs a restart. A frame is decoded, computed and sent on. Its answer travels back the same
way, and so does an error.

Everything is bounded. At most `limits.WINDOW` frames of a session are in progress here. The rest of its window waits,
and the board before sends no more. A peer that breaks the protocol loses its session and may connect again. Refusals
are counted by their error's code.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

import device_profiles
import edge_agent
from device_profiles import DeviceProfile
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.planning import device, disk_cache, peers, plan_request
from edge_agent.planning.disk_cache import DiskCache
from edge_agent.planning.measured_times import TimeLog
from edge_agent.planning.peers import StatusCallback
from edge_agent.runtime.engine import InputFrame
from edge_agent.runtime.pipeline import FramePipeline
from edge_agent.runtime.results import Counters, Result
from edge_agent.runtime.stage_plans import StagePlan, StagePlans
from splitedge import errors, limits
from splitedge.head.segment import OPERATORS
from splitedge.link import http_server, stream_server
from splitedge.protocol.frames import Frame
from splitedge.protocol.messages import ChainDevice, LinkEstimate, Open, Plan

_Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


class StageServer:
    """This board as a stage.

    ``progress`` is called with a status message during start-up. ``counters``: continue these counts.
    """

    def __init__(
        self, settings: Settings, progress: StatusCallback = lambda _: None, *, counters: Counters | None = None
    ) -> None:
        """Raises `errors.ConfigError` if other machines would reach the stage without a token or in clear text, and
        that is not allowed.
        """
        self.settings = settings
        self._pipeline = FramePipeline(counters)
        self.counters, self.queue = self._pipeline.counters, self._pipeline.limit
        self.refused: Counter[str] = Counter()  # requests and sessions, by the error's code
        self.url = ""
        self._token = config.stage_token(settings)
        check_exposure(settings, self._token)
        self._plans = StagePlans(settings, self.say)
        self._description = _Description(settings)
        self._progress = progress
        self._state = "not started"
        self._started = time.monotonic()
        self._sessions = 0
        self._runner: web.AppRunner | None = None

    @property
    def alive(self) -> bool:
        """Whether the head works, as of an `Agent`."""
        return self._pipeline.alive

    @property
    def ready(self) -> bool:
        """Whether boards before this one are served."""
        return bool(self.url)

    @property
    def state(self) -> str:
        """The current activity, as a short status message."""
        return self._state

    @property
    def plan(self) -> Plan | None:
        """The plan opened last."""
        return self._plans.last

    def say(self, text: str) -> None:
        """Make ``text`` the state, and report it."""
        self._state = text
        self._progress(text)

    async def start(self) -> None:
        """Measure this machine if needed, then listen; may be called again after it raised.

        Raises `errors.ConfigError` for an unusable address.
        """
        self._plans.profile = await device.profile(self.settings, self.say)
        self._pipeline.open_times(self.settings)
        self._runner, self.url = await _listen(self._application(), self.settings)
        self.say("ready")

    async def close(self) -> None:
        """End sessions in order, then stop."""
        self.say("stopped")
        if self._runner is not None:
            await self._runner.cleanup()
        await self._plans.close()
        self._pipeline.close()

    async def infer(self, frame: InputFrame) -> Result:  # noqa: ARG002  the local API's interface
        """Refuses every frame: callers send theirs to the first board of a chain."""
        raise errors.UsageError(
            "this board is a later stage of a chain; send frames to the first board", reason="later-stage"
        )

    def status(self) -> dict[str, Any]:
        """The fields of `/v1/status`, as JSON values; no secrets."""
        return {
            "version": edge_agent.__version__,
            "ready": self.ready,
            "state": self.state,
            "server": self.settings.server,
            "stage": self.url,
            "next": self.settings.chain.next,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "plan": self.plan_info() or None,
            "sessions": self._sessions,
            "refused": dict(self.refused),
            "frames": {
                "answered": self.counters.answered,
                "dropped": dict(self.counters.dropped),
                "failed": dict(self.counters.failed),
            },
            "queue": {"frames": self.queue.frames, "bytes": self.queue.bytes},
            "payload_bytes": self.counters.payload_bytes,
        }

    def gauges(self) -> dict[str, float]:
        """Current figures by metric name; a name that ends in _total only grows."""
        return {
            "ready": float(self.ready),
            "queue_frames": self.queue.frames,
            "queue_bytes": self.queue.bytes,
            "sessions": self._sessions,
            "refused_total": self.refused.total(),
        }

    def plan_info(self) -> dict[str, str]:
        """The plan opened last as short texts; empty without one."""
        plan = self.plan
        if plan is None or plan.stage is None:
            return {}
        return {
            "id": plan.id,
            "model": plan.model,
            "mode": plan.mode,
            "start": plan.stage.start.layer,
            "cut": plan.cut.layer,
        }

    async def answer(self, plan: StagePlan, frame: Frame) -> tuple[bytes, int]:
        """The payload of the answer to ``frame``, and the microseconds that this board and those behind it took."""
        start = time.perf_counter()
        deadline = asyncio.get_running_loop().time() + frame.wait_ms / 1000 if frame.wait_ms else None
        with self.counters.counting_errors(), self.queue.slot(len(frame.payload)):
            if self.settings.link.replan and plan.outdated():
                raise errors.UnknownPlanError(
                    "the link behind this board has changed since the plan was made; ask for a new plan",
                    reason="other-link",
                )
            passage = await self._pipeline.run(plan, functools.partial(plan.encode, frame), deadline, start)
            payload = plan.answer(passage)
        made = plan.engine.plan
        self.counters.count_answer(Result([], passage.timing, passage.sent_bytes, made.id, made.mode))
        return payload, round(1e6 * (time.perf_counter() - start))

    # --- HTTP

    def _application(self) -> web.Application:
        app = web.Application(
            middlewares=[http_server.errors_as_json(self.refused), _authorize(self._token)],
            client_max_size=limits.MAX_PROBE_BYTES,
        )
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/v1/stage", self._describe)
        app.router.add_post("/v1/probe", http_server.probe)
        app.router.add_get("/v1/stream", self._stream)
        stream_server.install(app)
        return app

    async def _healthz(self, _: web.Request) -> web.Response:
        return http_server.json({"ready": self.ready, "state": self.state})

    async def _describe(self, request: web.Request) -> web.Response:
        """This board and those behind it."""
        text = request.query.get("before", "1")
        before = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else limits.MAX_STAGES
        if before >= limits.MAX_STAGES:
            raise plan_request.chain_too_long()
        own = await self._description.make(self._plans.profile, self._pipeline.times)
        return http_server.json(await plan_request.chain_devices(self.settings, own, before, lambda _: None))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """One session of the board before."""
        if self._sessions >= limits.MAX_UPSTREAM:
            raise errors.BusyError(
                f"this board already serves {self._sessions} streams; try again later", reason="streams"
            )
        joined: list[StagePlan] = []

        async def open_plan(asked: Open) -> _Handler:
            joined.append(await self._plans.join(asked))
            return _Handler(self, joined[0])

        self._sessions += 1
        try:
            return await stream_server.serve_session(request, open_plan, workers=limits.WINDOW, on_end=self._ended)
        finally:
            self._sessions -= 1
            for plan in joined:
                plan.sessions -= 1

    def _ended(self, error: errors.SplitEdgeError | None) -> None:
        if error is not None and not isinstance(error, errors.LinkLostError):
            self.refused[error.code] += 1


class _Description:
    """Describes this board for plans. Its link to the server is measured at most once in `limits.STAGE_LINK_AGE`.

    A measurement loads the link.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._measured: tuple[float, LinkEstimate] | None = None
        self._measuring = asyncio.Lock()

    async def make(self, profile: DeviceProfile | None, times: TimeLog | None) -> ChainDevice:
        """The description; ``profile`` and ``times`` are there once the stage has started."""
        assert profile is not None
        assert times is not None
        link = await self._server_link()
        return ChainDevice(
            device=device.name(self._settings),
            profile=device_profiles.to_dict(profile),
            next=None,
            server=link,
            held=DiskCache(disk_cache.folder(self._settings)).held(),
            measured=times.medians().to_wire(),
            operators=sorted(OPERATORS),
        )

    async def _server_link(self) -> LinkEstimate:
        async with self._measuring:
            now = time.monotonic()
            if self._measured is None or now - self._measured[0] > limits.STAGE_LINK_AGE:
                async with peers.client(self._settings) as server:
                    self._measured = now, await server.measure_link()
            return self._measured[1]


@dataclass(frozen=True)
class _Handler:
    """Answers the frames of one session."""

    server: StageServer
    plan: StagePlan

    async def answer(self, frame: Frame) -> tuple[bytes, int]:
        return await self.server.answer(self.plan, frame)


def check_exposure(settings: Settings, token: str) -> None:
    """Raise `errors.ConfigError` for a stage that others could reach without a token or in clear text, unless
    ``allow_insecure``.
    """
    stage = settings.stage
    if bool(stage.cert) != bool(stage.key):
        raise errors.ConfigError(
            "`stage.cert` and `stage.key` belong together; set both or neither", key="stage.cert", reason="cert-and-key"
        )
    lacks = http_server.lacking(stage.host, token=bool(token), tls=bool(stage.cert))
    if lacks and not settings.allow_insecure:
        raise errors.ConfigError(
            f"other machines would reach {stage.host} without {lacks}; set `stage.token_file`, `stage.cert` and "
            "`stage.key`, or `allow_insecure`",
            key="stage.host",
            reason="open-to-others",
            token=bool(token),
            tls=bool(stage.cert),
        )


def _authorize(token: str) -> Any:
    """The middleware that demands ``token``, if it is not empty."""

    @web.middleware
    async def authorize(request: web.Request, handler: _Next) -> web.StreamResponse:
        if token and request.path != "/healthz":
            offered = http_server.bearer(request) or ""
            if not hmac.compare_digest(offered.encode("utf-8", "surrogateescape"), token.encode()):
                raise errors.AuthError(
                    "the board refused the token: set `chain.token` to its `stage.token`", reason="token"
                )
        return await handler(request)

    return authorize


async def _listen(app: web.Application, settings: Settings) -> tuple[web.AppRunner, str]:
    """The running application and its URL. Raises `errors.ConfigError`, `errors.AddressError`."""
    stage = settings.stage
    paths = [config.path_of(text) if text else None for text in (stage.cert, stage.key)]
    context = http_server.tls(*paths)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=limits.DRAIN_TIMEOUT)
    return runner, await http_server.listen(runner, stage.host, stage.port or 0, "the stage", "stage", context)
