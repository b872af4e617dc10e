"""The local HTTP API.

    GET  /           a page for a person: state, model, plan, and these paths
    POST /v1/infer   an image or a .npy array as the body; a text, in UTF-8 and as text/plain; or a little-endian tensor with `X-Shape: 224,224,3`,
                     of float32 unless `X-Dtype: int32` (or int64) says otherwise. A form (`curl -F file=@photo.jpg`) stands for its
                     one file. The answer is JSON, or, with `Accept: application/x-npy`, the
                     model's whole output as a .npy file: of a model without classes, or where `topk` is 0
    GET  /v1/status  the agent's state, plan and counts, as JSON
    GET  /healthz    whether frames are served, and the state, as JSON
    GET  /metrics    Prometheus text

While no frames are served (at the start, and while a plan that needs the server has no link to it) `/healthz`, `/v1/status` and `/v1/infer` answer with
status 503 and the state. The API listens before the kernels are imported, so what reads frames is imported with them (`Loading`).

It asks for no token and listens on the loopback unless told otherwise. A page in a browser on the board is not a client: a request with an
``Origin``, or one whose ``Host`` is a name other than localhost (a name that was made to point here), is refused. An error is ``{"error": {"code", "message", "data"}}``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

import numpy as np
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from numpy.typing import NDArray

import edge_agent
from edge_agent.api import metrics, page
from edge_agent.inputs.sources import Text, is_array, load_array
from edge_agent.runtime.queue_limit import QueueLimit
from edge_agent.runtime.results import Counters, Result, to_json
from splitedge import errors, limits, prometheus
from splitedge.link import endpoint, http_server
from splitedge.protocol.messages import Plan

if TYPE_CHECKING:
    from edge_agent.runtime.engine import InputFrame


class Served(Protocol):
    """What the API shows: an `edge_agent.runtime.agent.Agent`, or an `edge_agent.runtime.stage_server.StageServer`, which takes no frames here."""

    counters: Counters

    @property
    def ready(self) -> bool: ...
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
    """Stands in for the agent while its code is imported, which takes seconds on a small board: one state, and no frames."""

    ready, state, plan = False, "loading", None

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
    """Whom the API speaks for: `Loading`, then the agent."""

    served: Served = field(default_factory=Loading)


FRONT: Final = web.AppKey[Front]("front")
NPY: Final = "application/x-npy"
_DTYPES: Final = ("float32", "int32", "int64")
BODIES = web.AppKey("bodies", QueueLimit)  # request bodies that are being read or answered

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class BodyTooLargeError(errors.InputError):
    """More bytes than a frame may have."""

    http_status = 413


class ForeignRequestError(errors.UsageError):
    """A request that a page in a browser made."""

    http_status = 403


class HttpError(errors.UsageError):
    """A request that does not fit the API: an unknown path or method."""

    code = "http"


def application(front: Front) -> web.Application:
    """The API of ``front``, to be served by aiohttp."""
    app = web.Application(
        middlewares=[http_server.errors_as_json(Counter(), _http_error), _no_browsers],
        client_max_size=limits.MAX_IMAGE_BYTES,
    )
    app[FRONT] = front
    app[BODIES] = QueueLimit()
    app.add_routes([
        web.get("/", _page), web.post("/v1/infer", _infer), web.get("/v1/status", _status), web.get("/healthz", _healthz), web.get("/metrics", _metrics),
    ])  # fmt: skip
    return app


async def serve(front: Front, host: str, port: int) -> tuple[web.AppRunner, str]:
    """Serve the API of ``front``; returns the runner (to be cleaned up by the caller) and the URL, with the port that was bound.

    Raises `errors.AddressError` if ``host``:``port`` cannot be bound.
    """
    runner = web.AppRunner(
        application(front), access_log=None, handler_cancellation=True, shutdown_timeout=limits.DRAIN_TIMEOUT
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise errors.AddressError(
            f"the local API cannot listen on {host}:{port} ({endpoint.os_reason(error)}); set `api.host` and `api.port` to others",
            reason="api-address",
        ) from error
    bound = runner.addresses[0]
    return runner, f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"


@web.middleware
async def _no_browsers(request: web.Request, handler: Handler) -> web.StreamResponse:
    if "Origin" in request.headers or not _own_name(request.host):
        raise ForeignRequestError(
            "the local API serves programs on this board, not pages in a browser; ask it by its address"
        )
    return await handler(request)


def _own_name(host: str) -> bool:
    """Whether ``host`` (a Host header) is an address or localhost: a name in somebody's DNS may have been pointed at this machine."""
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
            size = _declared_size(request)
            stack.enter_context(request.app[BODIES].slot(size))
            frame = await _frame(request, size)
        except errors.SplitEdgeError as error:
            agent.counters.count_error(error)
            raise
        try:
            result = await agent.infer(frame)
        except errors.InputError as error:
            if (better := _advice(request, frame, agent.plan, error)) is not None:
                raise better from error
            raise
    if NPY in request.headers.get("Accept", ""):
        return web.Response(body=_npy(result), content_type=NPY)
    return web.Response(body=to_json(result), content_type="application/json")


async def _page(request: web.Request) -> web.Response:
    text = page.render(request.app[FRONT].served.status())
    return web.Response(text=text, content_type="text/html", headers=page.HEADERS)


def _npy(result: Result) -> bytes:
    """The whole output as a .npy file. Raises `errors.UsageError` for an answer that holds classes alone."""
    from splitedge.head import answers

    if result.output is None:
        raise errors.UsageError(
            "this answer holds classes and no whole output; ask for JSON, or set `topk` to 0", reason="no-whole-output"
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


def _declared_size(request: web.Request) -> int:
    """The body's length, or the greatest allowed where the client does not say."""
    size = request.content_length
    if size is not None and size > limits.MAX_IMAGE_BYTES:
        raise _too_large(f" ({size} bytes)")
    return limits.MAX_IMAGE_BYTES if size is None else size


async def _frame(request: web.Request, size: int) -> InputFrame:
    from splitedge.head import text as texts

    if "X-Shape" in request.headers:
        return await _tensor(request, size)
    if request.content_type.startswith("multipart/"):
        return await _form(request)
    if request.content_type == "text/plain":
        if (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
            raise texts.not_unicode()
        if request.content_length is not None and size > limits.MAX_TEXT_BYTES:
            raise _too_large(f" ({size} bytes)", limits.MAX_TEXT_BYTES, "send its beginning, the model reads no more")
        return Text(texts.decode(await _body(request)))
    body = await _body(request)
    if not body:
        raise errors.InputError(
            "the body is empty; send an image, an array or a text: curl --data-binary @FILE", reason="empty"
        )
    return load_array(body, "the body") if is_array(body) else body


async def _form(request: web.Request) -> InputFrame:
    """The one file of a form, or its one field. Raises `errors.InputError` for another number of them and for a form that is malformed."""
    from splitedge.head import text as texts

    found: list[tuple[str, bytes]] = []
    try:
        async with asyncio.timeout(limits.BODY_TIMEOUT):
            async for part in await request.multipart():
                if found or not isinstance(part, BodyPartReader):
                    raise errors.InputError(
                        "the form has more than one part; send one file, one request for each", reason="several-parts"
                    )
                found.append((part.headers.get("Content-Type", ""), bytes(await part.read())))
    except TimeoutError as error:
        raise _too_late() from error
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_large("") from error
    except (ValueError, RuntimeError, AssertionError, web.HTTPException, HttpProcessingError) as error:
        raise errors.InputError(
            "the form is malformed; send the file as the body: curl --data-binary @FILE", reason="malformed-form"
        ) from error
    if not found:
        raise errors.InputError("the form is empty; send one file: curl -F file=@FILE", reason="empty-form")
    kind, body = found[0]
    if is_array(body):
        return load_array(body, "the file")
    return Text(texts.decode(body)) if kind.partition(";")[0].strip().lower() == "text/plain" else body


async def _tensor(request: web.Request, size: int) -> NDArray[np.generic]:
    shape, dtype = _shape(request.headers["X-Shape"]), _dtype(request.headers.get("X-Dtype", "float32"))
    _check_length(shape, dtype, size if request.content_length is not None else dtype.itemsize * math.prod(shape))
    body = await _body(request)
    _check_length(shape, dtype, len(body))
    return np.frombuffer(body, dtype.newbyteorder("<")).reshape(shape)


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(limits.BODY_TIMEOUT):
            return await request.read()
    except TimeoutError as error:
        raise _too_late() from error
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_large("") from error


def _too_late() -> errors.InputError:
    return errors.InputError(
        f"the body did not arrive within {limits.BODY_TIMEOUT:g} s; send it again", reason="timeout"
    )


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",") if len(text) <= 100 else []
    if not 1 <= len(parts) <= 4 or not all(
        p.strip().isascii() and p.strip().isdigit() and 0 < int(p) <= limits.MAX_DIM for p in parts
    ):
        raise errors.InputError(f"X-Shape must be 1 to 4 sizes like 224,224,3, not {text[:100]!r}", reason="shape")
    return tuple(int(p) for p in parts)


def _dtype(text: str) -> np.dtype[np.generic]:
    if text.strip() not in _DTYPES:
        raise errors.InputError(
            f"X-Dtype must be {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}, not {text[:100]!r}", reason="dtype"
        )
    return np.dtype(text.strip())


def _advice(
    request: web.Request, frame: InputFrame, plan: Plan | None, error: errors.InputError
) -> errors.InputError | None:
    """What to send instead, in terms of HTTP, where the refusal of ``frame`` does not tell."""
    from splitedge.head.preprocess import is_image

    if isinstance(frame, bytes) and not is_image(frame):
        if request.content_type == "application/octet-stream":
            return _no_shape(plan)
        if plan is not None and plan.tokenizer is not None:
            return errors.InputError(
                "the body is not said to be text; send it with `Content-Type: text/plain`", reason="not-said-text"
            )
    if isinstance(frame, bytes) and is_image(frame) and len(frame) > 1000 and b"\n" not in frame and b"\r" not in frame:
        return errors.InputError(
            f"{error.message} (curl -d leaves line ends out of a file: use --data-binary)", **error.data
        )
    if error.data.get("dtype") == "int32" and "X-Shape" in request.headers and "X-Dtype" not in request.headers:
        return errors.InputError(f"{error.message}; send those with `X-Dtype: int32`", **error.data)
    return None


def _no_shape(plan: Plan | None) -> errors.InputError:
    example = ",".join(map(str, plan.preprocess.shape if plan else (224, 224, 3)))
    if plan is not None and plan.tokenizer is not None:
        return errors.InputError(
            f"token ids need their number and type: send `X-Shape: {example}` and `X-Dtype: int32`, and texts as `Content-Type: text/plain`",
            reason="no-shape",
        )
    return errors.InputError(
        f"the body is not an image, and a tensor needs its sizes: X-Shape is missing; send `X-Shape: {example}`",
        reason="no-shape",
    )


def _check_length(shape: tuple[int, ...], dtype: np.dtype[np.generic], size: int) -> None:
    wanted = dtype.itemsize * math.prod(shape)
    if wanted > limits.MAX_IMAGE_BYTES:
        raise _too_large(f" ({wanted} bytes)")
    if size != wanted:
        article = "an" if dtype.kind == "i" else "a"
        raise errors.InputError(
            f"{article} {dtype} tensor of shape {list(shape)} has {wanted} bytes, the body has {size}",
            reason="body-bytes",
        )


def _too_large(size: str, most: int | None = None, advice: str = "scale it down") -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body is larger{size} than the {most or limits.MAX_IMAGE_BYTES} bytes allowed; {advice}"
    )


def _http_error(error: web.HTTPException, _: web.Request) -> HttpError:
    return HttpError(f"{error.reason}: `GET /` lists the paths of this API")
