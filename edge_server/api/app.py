"""The server's HTTP API: routes and authorization."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from aiohttp import web

import splitedge
from calibration.bundle.manifest import TOKENIZER
from edge_server.api import access_log
from edge_server.api.metrics import ServerCounters
from edge_server.planning.catalog import Catalog
from edge_server.planning.chain_plan import make_chain
from edge_server.planning.device_plan import draw_curves, make_plan
from edge_server.store.store import Store
from edge_server.tails.pool import TailHandler, TailPool
from splitedge import errors, limits, prometheus
from splitedge.files import picture_form
from splitedge.link import http_server, stream_server
from splitedge.protocol.messages import PROTOCOL_VERSION, ChainRequest, Open, Plan, PlanRequest, ServerVersion, decode

PLANNERS: Final = 2  # threads that make plans; a plan may include building a segment

_WITHOUT_TOKEN: Final = {"/healthz", "/v1/version"}
T = TypeVar("T")
_Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(store: Store, *, auth: bool = True) -> web.Application:
    """The application on ``store``. Its cleanup ends its threads; the caller closes the store."""
    service = _Service(store, auth)
    app = web.Application(
        middlewares=[http_server.errors_as_json(service.counters.requests), access_log.log_refusals, service.authorize],
        client_max_size=limits.MAX_REQUEST_BYTES,
    )
    app.add_routes(
        [
            web.get("/healthz", service.health),
            web.get("/metrics", service.metrics),
            web.get("/v1/version", service.version),
            web.get("/v1/models", service.models),
            web.get("/v1/models/{name}/tokenizer", service.tokenizer),
            web.get("/v1/outline", service.outline),
            web.post("/v1/plan", service.plan),
            web.post("/v1/chain", service.chain),
            web.get("/v1/next", service.next_plan),
            web.post("/v1/curves", service.curves),
            web.get("/v1/segments/{sha256}", service.segment),
            web.get("/v1/segments/{sha256}/upgrade/{held}", service.upgrade),
            web.post("/v1/probe", http_server.probe),
            web.get("/v1/stream", service.stream),
        ]
    )
    stream_server.install(app)
    app.on_cleanup.append(service.close)
    return app


class _Service:
    """The handlers of one store's API. The docs of each request and answer are in `splitedge.protocol.messages`."""

    def __init__(self, store: Store, auth: bool) -> None:
        self.counters = ServerCounters()
        self._store = store
        self._auth = auth
        self._catalog = Catalog(store)
        self._tails = TailPool()
        self._planners = ThreadPoolExecutor(PLANNERS, thread_name_prefix="plan")
        self._streams = 0

    @web.middleware
    async def authorize(self, request: web.Request, handler: _Next) -> web.StreamResponse:
        """Middleware: require a token of the store, except for two paths."""
        if self._auth and request.path not in _WITHOUT_TOKEN:
            token = http_server.bearer(request)
            holder = None if token is None else await asyncio.to_thread(self._store.tokens.holder, token)
            if holder is None:
                raise errors.AuthError(
                    "the server does not know this token: create one there with `edge-server token`", reason="token"
                )
            access_log.HOLDER.set(holder)
        return await handler(request)

    async def health(self, _: web.Request) -> web.Response:
        """`GET /healthz`: fails if the disk or the database fails."""
        await asyncio.to_thread(self._store.tokens.all)  # raises if the disk or the database fails
        return http_server.json({"status": "ok", "streams": self._streams})

    async def metrics(self, _: web.Request) -> web.Response:
        """`GET /metrics`"""
        return web.Response(body=self.counters.render(self._streams).encode(), headers=prometheus.HEADERS)

    async def version(self, _: web.Request) -> web.Response:
        """`GET /v1/version`"""
        return http_server.json(ServerVersion(splitedge.__version__, PROTOCOL_VERSION))

    async def models(self, request: web.Request) -> web.Response:
        """`GET /v1/models`: all models, or the one in the query."""
        if name := request.query.get("name"):
            bundle = await asyncio.to_thread(self._catalog.bundle, name)
            return http_server.json([bundle.info()])
        return http_server.json(await asyncio.to_thread(self._catalog.models))

    async def outline(self, request: web.Request) -> web.Response:
        """`GET /v1/outline?model=NAME`"""
        return http_server.json(await asyncio.to_thread(self._catalog.outline, request.query.get("model", "")))

    async def tokenizer(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models/NAME/tokenizer`"""
        bundle = await asyncio.to_thread(self._catalog.bundle, request.match_info["name"])
        if bundle.tokenizer is None:
            raise errors.UnknownPlanError(
                f"the model {bundle.name!r} has no tokenizer: request a new plan", reason="tokenizer-gone"
            )
        return _file(bundle.path / TOKENIZER, "tokenizer")

    async def plan(self, request: web.Request) -> web.Response:
        """`POST /v1/plan`"""
        asked: PlanRequest = decode(await http_server.body(request), PlanRequest)
        plan = await self._in_planner(make_plan, self._catalog, asked, self._tails)
        access_log.accepted(request, f"gets the plan {plan.id} of {plan.model}")
        return http_server.json(plan)

    async def curves(self, request: web.Request) -> web.Response:
        """`POST /v1/curves?format=svg`"""
        form = picture_form("." + request.query.get("format", "svg"))
        asked: PlanRequest = decode(await http_server.body(request), PlanRequest)
        image = await self._in_planner(draw_curves, self._catalog, asked, form, self._tails)
        return web.Response(body=image, content_type="image/svg+xml" if form == "svg" else "image/png")

    async def chain(self, request: web.Request) -> web.Response:
        """`POST /v1/chain`"""
        asked: ChainRequest = decode(await http_server.body(request), ChainRequest)
        plan = await self._in_planner(make_chain, self._catalog, asked, self._tails)
        access_log.accepted(request, f"gets the plan {plan.id} of {plan.model} for {len(asked.devices)} boards")
        return http_server.json(plan)

    async def next_plan(self, request: web.Request) -> web.Response:
        """`GET /v1/next?plan=ID`: the plan of the board that follows the one of plan ID."""
        plan = await asyncio.to_thread(self._store.plans.get, request.query.get("plan", ""))
        if plan.stage is None or not plan.stage.downstream:
            raise errors.ProtocolError(
                f"no board follows the plan {plan.id}: send its frames to the server", reason="no-board-follows"
            )
        return http_server.json(await asyncio.to_thread(self._store.plans.get, plan.stage.downstream))

    async def segment(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/segments/SHA256`"""
        return _file(await asyncio.to_thread(self._store.segments.path, request.match_info["sha256"]), "segment")

    async def upgrade(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/segments/SHA256/upgrade/HELD`"""
        wanted, held = request.match_info["sha256"], request.match_info["held"]
        return _file(await self._in_planner(self._catalog.upgrade, wanted, held), "segment")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/stream`: the WebSocket of a frame session."""
        if self._streams >= limits.MAX_STREAMS:
            raise errors.BusyError(
                f"the server already has {self._streams} open streams: try again later", reason="streams"
            )
        self._streams += 1
        try:
            return await stream_server.serve_session(
                request,
                functools.partial(self._logged_open, request),
                on_end=self.counters.count_session,
                on_reply=self.counters.count_frame,
            )
        finally:
            self._streams -= 1

    async def _logged_open(self, request: web.Request, asked: Open) -> TailHandler:
        try:
            handler, plan = await self._open(asked)
        except errors.SplitEdgeError as error:
            access_log.refused(request, error)
            raise
        access_log.accepted(request, f"streams frames by the plan {plan.id} of {plan.model}")
        return handler

    async def _open(self, asked: Open) -> tuple[TailHandler, Plan]:
        plan = await asyncio.to_thread(self._store.plans.get, asked.plan)
        if plan.stage is not None and plan.stage.downstream:
            raise errors.ProtocolError(
                f"the frames of plan {plan.id} go to another board: connect to that board", reason="other-board"
            )
        bundle = await asyncio.to_thread(self._catalog.bundle, plan.model)
        if bundle.sha256 != plan.bundle:
            raise errors.UnknownPlanError(
                f"the model {plan.model!r} was replaced after this plan was made: request a new plan",
                reason="replaced",
            )
        load = functools.partial(self._catalog.tail, bundle, plan.cut)
        handler = TailHandler(self._tails, (bundle.sha256, plan.cut.index), load, plan.ladder, plan.output, asked.topk)
        await handler.ready()
        return handler, plan

    async def _in_planner(self, work: Callable[..., T], *arguments: object) -> T:
        """Run ``work`` on a planner's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._planners, work, *arguments)

    async def close(self, _: web.Application) -> None:
        """End the threads."""
        await asyncio.to_thread(self._planners.shutdown, cancel_futures=True)
        await asyncio.to_thread(self._tails.close)


def _file(path: Path | None, kind: str) -> web.FileResponse:
    if path is None:
        raise errors.UnknownPlanError(
            f"the server does not have this {kind}: request a new plan", reason=f"{kind}-gone"
        )
    return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})
