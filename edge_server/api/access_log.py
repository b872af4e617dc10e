"""The server's log: one line for each accepted and each refused peer, bounded in length and rate against floods."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final

from aiohttp import web

from splitedge import errors, limits

#: The name of the current request's token.
HOLDER: Final[ContextVar[str | None]] = ContextVar("holder", default=None)

log: Final = logging.getLogger(__name__)


class RateBound(logging.Filter):
    """Passes `limits.LOG_LINES` records per `limits.LOG_PERIOD` seconds.

    The first record of a period says how many lines of the last one were left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock, self._start, self._lines = clock, clock(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether ``record`` is within the bound."""
        now = self._clock()
        if now - self._start >= limits.LOG_PERIOD:
            if left_out := max(0, self._lines - limits.LOG_LINES):
                record.msg = f"({left_out} lines left out) {record.msg}"
            self._start, self._lines = now, 0
        self._lines += 1
        return self._lines <= limits.LOG_LINES


@web.middleware
async def log_refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Log each request that raises a `SplitEdgeError`."""
    try:
        return await handler(request)
    except errors.SplitEdgeError as error:
        refused(request, error)
        raise


def accepted(request: web.Request, what: str) -> None:
    """Log an accepted ``request``."""
    log.info("%s %s", _peer(request), _printable(what))


def refused(request: web.Request, error: errors.SplitEdgeError) -> None:
    """Log why the request was refused."""
    log.info("%s is refused at %s: %s", _peer(request), _printable(request.path), _printable(error.message))


def _peer(request: web.Request) -> str:
    token = HOLDER.get()
    return f"{request.remote} ({'no valid token' if token is None else f'token {token}'})"


def _printable(text: str) -> str:
    """Text that a peer may have chosen, safe on a terminal."""
    return "".join(one for one in text[:200] if one.isprintable())
