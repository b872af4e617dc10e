"""HTTP requests on the listening side, a server or a stage: tokens, errors, TLS, and the other end of the link
measurement.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from splitedge import errors, limits
from splitedge.link.endpoint import is_loopback, os_reason

_log = logging.getLogger("splitedge")
_BEARER: Final = re.compile(r"Bearer +(\S+) *", re.IGNORECASE)
_NOISE: Final = os.urandom(1 << 16)  # random, so that no link can compress a probe
_Next = Callable[[web.Request], Awaitable[web.StreamResponse]]
Translate = Callable[[web.HTTPException, web.Request], errors.SplitEdgeError]


def bearer(request: web.Request) -> str | None:
    """The bearer token of ``request``."""
    match = _BEARER.fullmatch(request.headers.get("Authorization", ""))
    return match[1] if match else None


def tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """The TLS context of a listener, or None for plain HTTP. Raises `errors.ConfigError`."""
    if cert is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    for path in (cert, key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise errors.ConfigError(
                f"{path} cannot be read ({error.strerror}); check its path and mode", reason="certificate-unreadable"
            ) from error
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise errors.ConfigError(
            f"{cert} and {key} are not a certificate and its key without a password (PEM): "
            "check that they belong together",
            reason="certificate-and-key",
        ) from error
    return context


def lacking(host: str, *, token: bool, tls: bool) -> str:
    """The missing protection of a listener on ``host``: "a token", "TLS", both joined by "and without", or nothing.

    A loopback address needs none.
    """
    if is_loopback(host):
        return ""
    return " and without ".join(name for name, there in (("a token", token), ("TLS", tls)) if not there)


def url(host: str, port: int, *, tls: bool) -> str:
    """The URL of a listener on ``host`` and ``port``."""
    return f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"


async def listen(
    runner: web.AppRunner, host: str, port: int, what: str, group: str, context: ssl.SSLContext | None = None
) -> str:
    """Set up ``runner``, listen on ``host`` and ``port`` (0: a free one), and return the URL with the bound port.

    Raises `errors.AddressError` about ``what`` with the settings ``group`` to change; the runner is cleaned up then.
    """
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
    except OSError as error:
        await runner.cleanup()
        raise errors.AddressError(
            f"{what} cannot listen on {host}:{port} ({os_reason(error)}); change `{group}.host` or `{group}.port`",
            reason=f"{group}-address",
        ) from error
    bound = runner.addresses[0]
    return url(bound[0], bound[1], tls=context is not None)


async def probe(request: web.Request) -> web.Response:
    """``POST /v1/probe?down=N``: read the body and answer N bytes."""
    down = request.query.get("down", "0")
    if not (down.isascii() and down.isdigit() and len(down) < 10 and int(down) <= limits.MAX_PROBE_BYTES):
        raise errors.ProtocolError(
            f"down={down[:20]!r} is not a number of bytes from 0 to {limits.MAX_PROBE_BYTES}", reason="probe-bytes"
        )
    await _swallow(request)
    body = (_NOISE * (int(down) // len(_NOISE) + 1))[: int(down)]
    return web.Response(body=body, content_type="application/octet-stream")


def errors_as_json(refused: Counter[str], translate: Translate | None = None) -> Middleware:
    """Middleware that turns every exception into ``{"error": {"code", "message", "data"}}`` with its status.

    It counts the errors in ``refused`` by code. ``translate``: the error for one of aiohttp's, such as 404.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: _Next) -> web.StreamResponse:
        try:
            return await handler(request)
        except Exception as raised:
            if isinstance(raised, web.HTTPException) and raised.status < 400:
                raise
            error, status = _presentable(raised, request, translate or _of_http)
        refused[error.code] += 1
        return _error(error, status)

    return middleware


def _presentable(raised: Exception, request: web.Request, translate: Translate) -> tuple[errors.SplitEdgeError, int]:
    """The error for the peer, and its HTTP status."""
    if isinstance(raised, errors.SplitEdgeError):
        return raised, raised.http_status
    if isinstance(raised, web.HTTPException):
        return translate(raised, request), raised.status
    _log.error("%s %s", request.method, request.path, exc_info=raised)
    return errors.SplitEdgeError("internal error; see the log of this program", reason="internal"), 500


def _of_http(error: web.HTTPException, request: web.Request) -> errors.SplitEdgeError:
    match error.status:
        case 404:
            return errors.UsageError(
                f"there is nothing at {request.path[:100]}; check the path",
                reason="no-such-path",
                path=request.path[:100],
            )
        case 405:
            return errors.UsageError(
                f"{request.path[:100]} does not accept {request.method}; run the same version on both sides"
            )
        case 413:
            return errors.ProtocolError("the request exceeds the server's limit; send less")
        case _:
            return errors.ProtocolError(f"the request was refused ({error.reason}); run the same version on both sides")


def _error(error: errors.SplitEdgeError, status: int) -> web.Response:
    answer = json({"error": error.to_wire()}, status)
    if status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        answer.headers["Retry-After"] = "1"
    return answer


def json(value: object, status: int = 200) -> web.Response:
    """A response with ``value`` as JSON."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def body(request: web.Request) -> bytes:
    """The body of ``request``. The application bounds its size, this function its time."""
    async with _in_time():
        return await request.read()


async def _swallow(request: web.Request) -> None:
    """Read and discard the body of a probe."""
    size = 0
    async with _in_time():
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > limits.MAX_PROBE_BYTES:
                raise web.HTTPRequestEntityTooLarge(max_size=limits.MAX_PROBE_BYTES, actual_size=size)


@contextlib.asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Bound the time in which a client sends its body."""
    try:
        async with asyncio.timeout(limits.REQUEST_TIMEOUT):
            yield
    except TimeoutError as error:
        raise errors.ProtocolError(
            f"the request did not arrive within {limits.REQUEST_TIMEOUT:g} s; try again"
        ) from error
