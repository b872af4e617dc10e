"""The server's HTTP interface (`docs/architecture.md`, "The server"): routes, authorization, errors as JSON."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Final

from aiohttp import web

from calibration.bundle.bundle import TOKENIZER
from edge_server.api import access_log
from edge_server.api.metrics import Counts
from edge_server.planning.chain_plan import make_chain
from edge_server.planning.device_plan import draw_curves, make_plan
from edge_server.store.catalog import Catalog
from edge_server.store.store import Store
from edge_server.tails.pool import Handler, Tails
from splitedge import errors, limits
from splitedge.files import picture_form
from splitedge.link import http_server, stream_server
from splitedge.protocol.messages import PROTOCOL_VERSION, ChainRequest, Open, Plan, PlanRequest, ServerVersion, decode

PLANNERS: Final = 2  # plans that are made at once; on threads of their own, as one may take a segment's building

_OPEN_TO_ALL: Final = {"/healthz", "/v1/version"}
_Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(store: Store, *, auth: bool = True) -> web.Application:
    """The application on ``store``. It closes its threads when it is cleaned up; the store stays the caller's."""
    service = _Service(store, auth)
    app = web.Application(
        middlewares=[http_server.errors_as_json(service.counts.requests), access_log.logged, service.authorize],
        client_max_size=limits.MAX_REQUEST_BYTES,
    )
    app.router.add_get("/healthz", service.health)
    app.router.add_get("/metrics", service.metrics)
    app.router.add_get("/v1/version", service.version)
    app.router.add_get("/v1/models", service.models)
    app.router.add_get("/v1/outline", service.outline)
    app.router.add_get("/v1/models/{name}/tokenizer", service.tokenizer)
    app.router.add_post("/v1/plan", service.plan)
    app.router.add_post("/v1/curves", service.curves)
    app.router.add_post("/v1/chain", service.chain)
    app.router.add_get("/v1/next", service.next_plan)
    app.router.add_get("/v1/segments/{sha256}", service.segment)
    app.router.add_get("/v1/segments/{sha256}/upgrade/{held}", service.upgrade)
    app.router.add_post("/v1/probe", http_server.probe)
    app.router.add_get("/v1/stream", service.stream)
    stream_server.install(app)
    app.on_cleanup.append(service.close)
    return app


class _Service:
    def __init__(self, store: Store, auth: bool) -> None:
        self.counts = Counts()
        self._store = store
        self._auth = auth
        self._catalog = Catalog(store)
        self._tails = Tails()
        self._planners = ThreadPoolExecutor(PLANNERS, thread_name_prefix="plan")
        self._streams = 0

    @web.middleware
    async def authorize(self, request: web.Request, handler: _Next) -> web.StreamResponse:
        if self._auth and request.path not in _OPEN_TO_ALL:
            token = http_server.bearer(request)
            holder = None if token is None else await asyncio.to_thread(self._store.holder, token)
            if holder is None:
                raise errors.AuthError("the server refused the token: make one there with `edge-server token`")
            access_log.HOLDER.set(holder)
        return await handler(request)

    async def health(self, _: web.Request) -> web.Response:
        await asyncio.to_thread(self._store.tokens)  # a disk or database that fails shows here
        return http_server.json({"status": "ok", "streams": self._streams})

    async def metrics(self, _: web.Request) -> web.Response:
        text = self.counts.render(self._streams)
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def version(self, _: web.Request) -> web.Response:
        return http_server.json(ServerVersion(version("splitedge"), PROTOCOL_VERSION))

    async def models(self, request: web.Request) -> web.Response:
        """Every model, or the one of that name."""
        if name := request.query.get("name"):
            bundle = await asyncio.to_thread(self._catalog.bundle, name)
            return http_server.json([bundle.info()])
        return http_server.json(await asyncio.to_thread(self._catalog.models))

    async def outline(self, request: web.Request) -> web.Response:
        return http_server.json(await asyncio.to_thread(self._catalog.outline, request.query.get("model", "")))

    async def tokenizer(self, request: web.Request) -> web.StreamResponse:
        bundle = await asyncio.to_thread(self._catalog.bundle, request.match_info["name"])
        if bundle.tokenizer is None:
            raise errors.UnknownPlanError(f"{bundle.name} has no tokenizer any more: ask for a new plan")
        return _file(bundle.path / TOKENIZER)

    async def plan(self, request: web.Request) -> web.Response:
        asked: PlanRequest = decode(await http_server.body(request), PlanRequest)
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._planners, make_plan, self._catalog, asked, self._tails)
        access_log.accepted(request, f"gets the plan {made.id} of {made.model}")
        return http_server.json(made)

    async def curves(self, request: web.Request) -> web.Response:
        form = picture_form("." + request.query.get("format", "svg"))
        asked: PlanRequest = decode(await http_server.body(request), PlanRequest)
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._planners, draw_curves, self._catalog, asked, form, self._tails)
        return web.Response(body=image, content_type="image/svg+xml" if form == "svg" else "image/png")

    async def chain(self, request: web.Request) -> web.Response:
        asked: ChainRequest = decode(await http_server.body(request), ChainRequest)
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._planners, make_chain, self._catalog, asked, self._tails)
        access_log.accepted(request, f"gets the plan {made.id} of {made.model} for {len(asked.devices)} boards")
        return http_server.json(made)

    async def next_plan(self, request: web.Request) -> web.Response:
        """The plan of the board that follows the one of the plan named."""
        plan = await asyncio.to_thread(self._store.plan, request.query.get("plan", ""))
        if plan.stage is None or not plan.stage.downstream:
            raise errors.ProtocolError("no board follows in this plan: it is dialled at the server")
        return http_server.json(await asyncio.to_thread(self._store.plan, plan.stage.downstream))

    async def segment(self, request: web.Request) -> web.StreamResponse:
        return _file(await asyncio.to_thread(self._store.segment_path, request.match_info["sha256"]))

    async def upgrade(self, request: web.Request) -> web.StreamResponse:
        wanted, held = request.match_info["sha256"], request.match_info["held"]
        loop = asyncio.get_running_loop()
        return _file(await loop.run_in_executor(self._planners, self._catalog.upgrade, wanted, held))

    async def stream(self, request: web.Request) -> web.StreamResponse:
        if self._streams >= limits.MAX_STREAMS:
            raise errors.BusyError(f"the server has {self._streams} streams open already: try again later")
        self._streams += 1
        try:
            return await stream_server.serve_session(
                request,
                functools.partial(self._logged_open, request),
                on_end=self.counts.ended,
                on_reply=self.counts.replied,
            )
        finally:
            self._streams -= 1

    async def _logged_open(self, request: web.Request, asked: Open) -> Handler:
        try:
            handler, plan = await self._open(asked)
        except errors.SplitEdgeError as error:
            access_log.refused(request, error)
            raise
        access_log.accepted(request, f"streams frames by the plan {plan.id} of {plan.model}")
        return handler

    async def _open(self, asked: Open) -> tuple[Handler, Plan]:
        plan = await asyncio.to_thread(self._store.plan, asked.plan)
        if plan.stage is not None and plan.stage.downstream:
            raise errors.ProtocolError("the frames of this plan go to another board: dial that one")
        bundle = await asyncio.to_thread(self._catalog.bundle, plan.model)
        if bundle.sha256 != plan.bundle:
            raise errors.UnknownPlanError(f"{plan.model} was replaced since this plan was made: ask for a new one")
        load = functools.partial(self._catalog.tail, bundle, plan.cut)
        handler = Handler(self._tails, (bundle.sha256, plan.cut.index), load, plan.ladder, plan.output, asked.topk)
        await handler.ready()
        return handler, plan

    async def close(self, _: web.Application) -> None:
        await asyncio.to_thread(self._planners.shutdown, cancel_futures=True)
        await asyncio.to_thread(self._tails.close)


def _file(path: Path | None) -> web.FileResponse:
    if path is None:
        raise errors.UnknownPlanError("the server does not have this segment any more: ask for a new plan")
    return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})
