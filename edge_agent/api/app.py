"""The local HTTP API.

    GET  /           a page for people: state, model, plan, and these paths
    POST /v1/infer   one frame in the body: see `request_body`. The answer is JSON or, with `Accept:
                     application/x-npy`, the model's complete output, if it has no classes or `topk` is 0
    GET  /v1/status  the agent's state, plan and counts, as JSON
    GET  /healthz    whether frames are served, and the state, as JSON
    GET  /metrics    Prometheus text

While no frames are served, `/healthz`, `/v1/status` and `/v1/infer` answer with status 503 and the state. That is so
during start-up, and while a plan that needs the server has no link to it. The API listens before the kernels are
imported, so modules that need them are imported on first use (`Loading`).

The API needs no token and listens on the loopback interface by default. Pages in a browser are not clients: a request
with an ``Origin``, or with a ``Host`` that is a name other than localhost, is refused, since any site can make such a
name point here. An error is ``{"error": {"code", "message", "data"}}``.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from aiohttp import web

import edge_agent
from edge_agent.api import metrics, page, request_body
from edge_agent.runtime.queue_limit import QueueLimit
from edge_agent.runtime.results import Counters, Result, to_json
from splitedge import errors, limits, prometheus
from splitedge.link import http_server
from splitedge.protocol.messages import Plan

if TYPE_CHECKING:
    from edge_agent.runtime.engine import InputFrame


class Served(Protocol):
    """What the API serves: an `Agent`, or a `StageServer`, which refuses frames."""

    counters: Counters

    @property
    def ready(self) -> bool: ...
    @property
    def alive(self) -> bool: ...
    @property
    def state(self) -> str: ...
    @property
    def plan(self) -> Plan | None: ...
    async def infer(self, frame: InputFrame) -> Result: ...
    def status(self) -> dict[str, Any]: ...
    def gauges(self) -> Mapping[str, float]: ...
    def plan_info(self) -> Mapping[str, str]: ...
    async def close(self) -> None: ...


class Loading:
    """Serves while the agent's code is imported, which takes seconds on a small board. It refuses frames."""

    ready, alive, state, plan = False, True, "loading", None

    def __init__(self) -> None:
        self.counters = Counters()

    async def infer(self, frame: InputFrame) -> Result:  # noqa: ARG002  the interface
        raise errors.not_ready(self.state)

    def status(self) -> dict[str, Any]:
        return {"version": edge_agent.__version__, "ready": self.ready, "state": self.state}

    def gauges(self) -> Mapping[str, float]:
        return {"ready": 0.0}

    def plan_info(self) -> Mapping[str, str]:
        return {}

    async def close(self) -> None:
        pass


@dataclass
class Front:
    """What the API serves now: `Loading`, then the agent."""

    served: Served = field(default_factory=Loading)


FRONT: Final = web.AppKey[Front]("front")
NPY: Final = "application/x-npy"
BODIES = web.AppKey("bodies", QueueLimit)  # request bodies in progress

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ForeignRequestError(errors.UsageError):
    """A request from a page in a browser."""

    http_status = 403


class HttpError(errors.UsageError):
    """An unknown path or method."""

    code = "http"


def application(front: Front) -> web.Application:
    """The aiohttp application that serves ``front``."""
    app = web.Application(
        middlewares=[http_server.errors_as_json(Counter(), _http_error), _no_browsers],
        client_max_size=limits.MAX_IMAGE_BYTES,
    )
    app[FRONT] = front
    app[BODIES] = QueueLimit()
    app.router.add_post("/v1/infer", _infer)
    for path, handler in (("/", _page), ("/v1/status", _status), ("/healthz", _healthz), ("/metrics", _metrics)):
        app.router.add_get(path, handler)
    return app


async def serve(front: Front, host: str, port: int) -> tuple[web.AppRunner, str]:
    """Serve ``front``. Returns the runner, which the caller cleans up, and the URL with the bound port.

    Raises `errors.AddressError` if ``host``:``port`` cannot be bound.
    """
    runner = web.AppRunner(
        application(front), access_log=None, handler_cancellation=True, shutdown_timeout=limits.DRAIN_TIMEOUT
    )
    return runner, await http_server.listen(runner, host, port, "the local API", "api")


@web.middleware
async def _no_browsers(request: web.Request, handler: Handler) -> web.StreamResponse:
    if "Origin" in request.headers or not _own_name(request.host):
        raise ForeignRequestError(
            "the local API serves programs, not pages in a browser; use its address or localhost", reason="browser"
        )
    return await handler(request)


def _own_name(host: str) -> bool:
    """Whether ``host`` (a Host header) is an IP address or localhost.

    Anyone can make another name point at this machine.
    """
    name = ""
    with suppress(ValueError):
        name = urlsplit(f"//{host}").hostname or ""
        ipaddress.ip_address(name)
        return True
    return name == "localhost"


async def _infer(request: web.Request) -> web.Response:
    agent = request.app[FRONT].served
    with ExitStack() as stack:
        try:
            if isinstance(agent, Loading):
                raise errors.not_ready(agent.state)
            size = request_body.declared_size(request)
            stack.enter_context(request.app[BODIES].slot(size))
            frame = await request_body.read_frame(request, size)
        except errors.SplitEdgeError as error:
            agent.counters.count_error(error)
            raise
        try:
            result = await agent.infer(frame)
        except errors.InputError as error:
            if (advice := request_body.advice(request, frame, agent.plan, error)) is not None:
                raise advice from error
            raise
    if NPY in request.headers.get("Accept", ""):
        return web.Response(body=_npy(result), content_type=NPY)
    return web.Response(body=to_json(result), content_type="application/json")


async def _page(request: web.Request) -> web.Response:
    text = page.render(request.app[FRONT].served.status())
    return web.Response(text=text, content_type="text/html", headers=page.HEADERS)


def _npy(result: Result) -> bytes:
    """The complete output as a .npy file, or several outputs as an .npz file.

    Raises `errors.UsageError` for an answer without them.
    """
    from splitedge.head import answers

    if result.outputs:
        return answers.npz(result.outputs)
    if result.output is None:
        raise errors.UsageError(
            "this answer has no complete output; ask for JSON, or set `topk` to 0", reason="no-whole-output"
        )
    return answers.npy(result.output)


async def _status(request: web.Request) -> web.Response:
    agent = request.app[FRONT].served
    return web.json_response(agent.status(), status=200 if agent.ready else 503)


async def _healthz(request: web.Request) -> web.Response:
    agent = request.app[FRONT].served
    return web.json_response({"ready": agent.ready, "state": agent.state}, status=200 if agent.ready else 503)


async def _metrics(request: web.Request) -> web.Response:
    agent = request.app[FRONT].served
    text = metrics.render(agent.counters, agent.gauges(), agent.plan_info())
    return web.Response(body=text.encode(), headers=prometheus.HEADERS)


def _http_error(error: web.HTTPException, _: web.Request) -> HttpError:
    return HttpError(f"{error.reason}: `GET /` lists the paths of this API")
