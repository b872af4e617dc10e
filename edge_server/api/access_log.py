"""The server's log of who is served and who is refused: one line each, bounded in length and number, so that a flood fills no disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final

from aiohttp import web

from splitedge import errors, limits

#: The name of the token of the request that is being answered.
HOLDER: Final[ContextVar[str | None]] = ContextVar("holder", default=None)

log: Final = logging.getLogger(__name__)


class RateBound(logging.Filter):
    """Passes `limits.LOG_LINES` records in `limits.LOG_PERIOD` seconds; the first of the next period tells how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock, self._start, self._lines = clock, clock(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        if now - self._start >= limits.LOG_PERIOD:
            if left_out := max(0, self._lines - limits.LOG_LINES):
                record.msg = f"({left_out} lines before this one were left out) {record.msg}"
            self._start, self._lines = now, 0
        self._lines += 1
        return self._lines <= limits.LOG_LINES


@web.middleware
async def logged(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Logs a request that ends in an error of ours."""
    try:
        return await handler(request)
    except errors.SplitEdgeError as error:
        refused(request, error)
        raise


def accepted(request: web.Request, what: str) -> None:
    """Logs that the peer of ``request`` is served."""
    log.info("%s %s", _who(request), _plain(what))


def refused(request: web.Request, error: errors.SplitEdgeError) -> None:
    """Logs why the peer of ``request`` is not served."""
    log.info("%s is refused at %s: %s", _who(request), _plain(request.path), _plain(error.message))


def _who(request: web.Request) -> str:
    token = HOLDER.get()
    return f"{request.remote} ({'no valid token' if token is None else f'token {token}'})"


def _plain(text: str) -> str:
    """What a peer may have chosen, safe on a terminal."""
    return "".join(one for one in text[:200] if one.isprintable())
