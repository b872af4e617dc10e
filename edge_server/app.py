"""The server's HTTP interface (`docs/architecture.md`, "The server"): routes, authorization, errors as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from edge_agent import errors, limits
from edge_agent.explain import picture_form
from edge_agent.link import listen
from edge_agent.protocol.messages import PROTOCOL_VERSION, Open, PlanRequest, ServerVersion, decode
from edge_server.catalog import Catalog
from edge_server.planning import draw_curves, make_plan
from edge_server.store import Store
from edge_server.tails import Handler, Tails

PLANNERS: Final = 2  # plans that are made at once; on threads of their own, as one may take a segment's building

_log = logging.getLogger("edge_server")
_OPEN_TO_ALL: Final = {"/healthz", "/v1/version"}
_BEARER: Final = re.compile(r"Bearer +(\S+) *", re.IGNORECASE)
_NOISE: Final = os.urandom(1 << 16)  # a probe's answer must not shrink on a link that compresses
_Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(store: Store, *, auth: bool = True) -> web.Application:
    """The application on ``store``. It closes its threads when it is cleaned up; the store stays the caller's."""
    service = _Service(store, auth)
    app = web.Application(middlewares=[_errors, service.authorize], client_max_size=limits.MAX_REQUEST_BYTES)
    app.router.add_get("/healthz", service.health)
    app.router.add_get("/v1/version", service.version)
    app.router.add_get("/v1/models", service.models)
    app.router.add_post("/v1/plan", service.plan)
    app.router.add_post("/v1/curves", service.curves)
    app.router.add_get("/v1/segments/{sha256}", service.segment)
    app.router.add_get("/v1/segments/{sha256}/upgrade/{held}", service.upgrade)
    app.router.add_post("/v1/probe", service.probe)
    app.router.add_get("/v1/stream", service.stream)
    listen.install(app)
    app.on_cleanup.append(service.close)
    return app


class _Service:
    def __init__(self, store: Store, auth: bool) -> None:
        self._store = store
        self._auth = auth
        self._catalog = Catalog(store)
        self._tails = Tails()
        self._planners = ThreadPoolExecutor(PLANNERS, thread_name_prefix="plan")
        self._streams = 0

    @web.middleware
    async def authorize(self, request: web.Request, handler: _Next) -> web.StreamResponse:
        if self._auth and request.path not in _OPEN_TO_ALL:
            match = _BEARER.fullmatch(request.headers.get("Authorization", ""))
            if match is None or not await asyncio.to_thread(self._store.accepts, match[1]):
                raise errors.AuthError("the server refused the token: make one there with `edge-server token`")
        return await handler(request)

    async def health(self, _: web.Request) -> web.Response:
        await asyncio.to_thread(self._store.tokens)  # a disk or database that fails shows here
        return _json({"status": "ok", "streams": self._streams})

    async def version(self, _: web.Request) -> web.Response:
        return _json(ServerVersion(version("splitedge"), PROTOCOL_VERSION))

    async def models(self, _: web.Request) -> web.Response:
        return _json(await asyncio.to_thread(self._catalog.models))

    async def plan(self, request: web.Request) -> web.Response:
        asked: PlanRequest = decode(await _body(request), PlanRequest)
        loop = asyncio.get_running_loop()
        return _json(await loop.run_in_executor(self._planners, make_plan, self._catalog, asked, self._tails))

    async def curves(self, request: web.Request) -> web.Response:
        form = picture_form("." + request.query.get("format", "svg"))
        asked: PlanRequest = decode(await _body(request), PlanRequest)
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._planners, draw_curves, self._catalog, asked, form, self._tails)
        return web.Response(body=image, content_type="image/svg+xml" if form == "svg" else "image/png")

    async def segment(self, request: web.Request) -> web.StreamResponse:
        return _file(await asyncio.to_thread(self._store.segment_path, request.match_info["sha256"]))

    async def upgrade(self, request: web.Request) -> web.StreamResponse:
        wanted, held = request.match_info["sha256"], request.match_info["held"]
        loop = asyncio.get_running_loop()
        return _file(await loop.run_in_executor(self._planners, self._catalog.upgrade, wanted, held))

    async def probe(self, request: web.Request) -> web.Response:
        down = request.query.get("down", "0")
        if not (down.isascii() and down.isdigit() and len(down) < 10 and int(down) <= limits.MAX_PROBE_BYTES):
            raise errors.ProtocolError(f"down={down[:20]!r}: give a number of bytes from 0 to {limits.MAX_PROBE_BYTES}")
        await _swallow(request)
        body = (_NOISE * (int(down) // len(_NOISE) + 1))[: int(down)]
        return web.Response(body=body, content_type="application/octet-stream")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        if self._streams >= limits.MAX_STREAMS:
            raise errors.BusyError(f"the server has {self._streams} streams open already: try again later")
        self._streams += 1
        try:
            return await listen.serve_session(request, self._open)
        finally:
            self._streams -= 1

    async def _open(self, asked: Open) -> Handler:
        plan = await asyncio.to_thread(self._store.plan, asked.plan)
        bundle = await asyncio.to_thread(self._catalog.bundle, plan.model)
        if bundle.sha256 != plan.bundle:
            raise errors.UnknownPlanError(f"{plan.model} was replaced since this plan was made: ask for a new one")
        load = functools.partial(self._catalog.tail, bundle, plan.cut)
        handler = Handler(self._tails, (bundle.sha256, plan.cut.index), load, plan.ladder, asked.topk)
        await handler.ready()
        return handler

    async def close(self, _: web.Application) -> None:
        await asyncio.to_thread(self._planners.shutdown, cancel_futures=True)
        await asyncio.to_thread(self._tails.close)


@web.middleware
async def _errors(request: web.Request, handler: _Next) -> web.StreamResponse:
    """Every error leaves as ``{"error": {"code", "message", "data"}}`` with its status."""
    try:
        return await handler(request)
    except errors.SplitEdgeError as error:
        return _error(error, error.http_status)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _error(_of_http(error, request), error.status)
    except Exception:
        _log.exception("%s %s", request.method, request.path)
        return _error(errors.SplitEdgeError("the server met an unexpected error: its log says more"), 500)


def _of_http(error: web.HTTPException, request: web.Request) -> errors.SplitEdgeError:
    match error.status:
        case 404:
            return errors.UsageError(f"there is nothing at {request.path[:100]}: is this URL an edge-server's?")
        case 405:
            return errors.UsageError(f"{request.path[:100]} does not take {request.method}: upgrade the older side")
        case 413:
            return errors.ProtocolError("the request is over the server's limit: send less")
        case _:
            return errors.ProtocolError(f"the request was refused ({error.reason}): upgrade the older side")


def _error(error: errors.SplitEdgeError, status: int) -> web.Response:
    answer = _json({"error": error.to_wire()}, status)
    if status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _file(path: Path | None) -> web.FileResponse:
    if path is None:
        raise errors.UnknownPlanError("the server does not have this segment any more: ask for a new plan")
    return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def _body(request: web.Request) -> bytes:
    async with _in_time():
        return await request.read()


async def _swallow(request: web.Request) -> None:
    """Reads a probe's body and forgets it."""
    size = 0
    async with _in_time():
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > limits.MAX_PROBE_BYTES:
                raise web.HTTPRequestEntityTooLarge(max_size=limits.MAX_PROBE_BYTES, actual_size=size)


@contextlib.asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Bounds how long a client may trickle its body."""
    try:
        async with asyncio.timeout(limits.REQUEST_TIMEOUT):
            yield
    except TimeoutError as error:
        raise errors.ProtocolError(
            f"the request did not arrive within {limits.REQUEST_TIMEOUT:g} s: try again"
        ) from error
