"""The listening server: address, certificate, signals, an orderly end."""

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
    """Warnings to show. Raises `errors.UsageError` for a server that others could reach without a token or in clear text."""
    if (listen.cert is None) != (listen.key is None):
        raise errors.UsageError("--cert and --key belong together: give both or neither")
    lacks = http_server.lacking(listen.host, token=listen.auth, tls=listen.cert is not None)
    if lacks and not listen.insecure:
        raise errors.UsageError(
            f"other machines would reach {listen.host} without {lacks}: "
            "give --cert and --key and leave out --no-auth, or accept the risk with --insecure"
        )
    return [f"warning: other machines reach {listen.host} without {lacks}"] if lacks else []


async def serve(store: Store, listen: Listen, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then ends open streams in order. ``ready`` gets the URL once the port is open."""
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
            raise errors.UsageError(_no_port(listen, error)) from error
        with _stopped() as stop:
            ready(http_server.url(listen.host, runner.addresses[0][1], tls=context is not None))
            await stop.wait()
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def _stopped() -> Iterator[asyncio.Event]:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _no_port(listen: Listen, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {listen.port} of {listen.host} is in use: end the program that holds it, or give another --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {listen.port} needs rights that this user lacks: give a --port above 1023"
    return f"{listen.host} is not an address of this machine that can be listened on: give another --host"
