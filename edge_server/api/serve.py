"""The listening server: address, certificate, signals, graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from edge_server.api.app import make_app
from edge_server.store.store import Store
from edge_server.tails import pool
from splitedge import errors, limits
from splitedge.link import http_server


@dataclass(frozen=True, slots=True)
class Listen:
    """Where and how to listen. Port 0 takes any free one."""

    host: str = "127.0.0.1"
    port: int = 8470
    cert: Path | None = None
    key: Path | None = None
    auth: bool = True
    insecure: bool = False


def check(listen: Listen) -> list[str]:
    """Warnings to show.

    Raises `errors.UsageError` if other machines could reach the server without a token or unencrypted, unless
    ``insecure`` allows it.
    """
    if (listen.cert is None) != (listen.key is None):
        missing = "--cert" if listen.cert is None else "--key"
        raise errors.UsageError(f"{missing} is missing: pass both --cert and --key, or neither", reason="cert-and-key")
    lacks = http_server.lacking(listen.host, token=listen.auth, tls=listen.cert is not None)
    if lacks and not listen.insecure:
        raise errors.UsageError(
            f"other machines could reach {listen.host} without {lacks}: "
            "pass --cert and --key and leave out --no-auth, or accept the risk with --insecure",
            reason="open-to-others",
            lacks=lacks,
        )
    return [f"warning: other machines reach {listen.host} without {lacks}"] if lacks else []


async def serve(store: Store, listen: Listen, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then close open streams. ``ready`` gets the URL once the port is open.

    Raises `errors.UsageError` if the port cannot be opened, `errors.ConfigError` for a bad certificate.
    """
    context = http_server.tls(listen.cert, listen.key)
    runner = web.AppRunner(
        make_app(store, auth=listen.auth), access_log=None, shutdown_timeout=limits.DRAIN, keepalive_timeout=75
    )
    try:
        await runner.setup()
        await asyncio.to_thread(pool.warm)
        site = web.TCPSite(runner, listen.host, listen.port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            raise errors.UsageError(_port_problem(listen, error)) from error
        with _stop_signal() as stop:
            ready(http_server.url(listen.host, runner.addresses[0][1], tls=context is not None))
            await stop.wait()
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def _stop_signal() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _port_problem(listen: Listen, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {listen.port} of {listen.host} is in use: stop the program that uses it, or pass another --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {listen.port} needs privileges that this user lacks: pass a --port above 1023"
    return f"{listen.host} is not an address of this machine: pass another --host"
