"""The listening server: address, certificate, signals, graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

from aiohttp import web

from edge_server.api.app import make_app
from edge_server.config import ServeConfig
from edge_server.store.store import Store
from edge_server.tails import pool
from splitedge import errors, limits
from splitedge.link import http_server
from splitedge.service import notify


def check(settings: ServeConfig) -> list[str]:
    """Warnings to show.

    Raises `errors.UsageError` if other machines could reach the server without a token or unencrypted, unless
    ``insecure`` allows it.
    """
    if bool(settings.cert) != bool(settings.key):
        missing = "--key" if settings.cert else "--cert"
        raise errors.UsageError(f"{missing} is missing: pass both --cert and --key, or neither", reason="cert-and-key")
    lacks = http_server.lacking(settings.host, token=settings.auth, tls=bool(settings.cert))
    if lacks and not settings.insecure:
        raise errors.UsageError(
            f"other machines could reach {settings.host} without {lacks}: "
            "pass --cert and --key (`edge-server init` makes them) and leave out --no-auth, or accept the risk with "
            "--insecure",
            reason="open-to-others",
            lacks=lacks,
        )
    return [f"warning: other machines reach {settings.host} without {lacks}"] if lacks else []


async def serve(store: Store, settings: ServeConfig, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then close open streams. ``ready`` gets the URL once the port is open.

    From then on the event loop feeds systemd's watchdog, so a blocked loop is restarted.

    Raises `errors.AddressError` if the port cannot be opened, `errors.ConfigError` for a bad certificate.
    """
    context = _tls(settings)
    runner = web.AppRunner(
        make_app(store, auth=settings.auth), access_log=None, shutdown_timeout=limits.DRAIN, keepalive_timeout=75
    )
    try:
        await runner.setup()
        await asyncio.to_thread(pool.warm)
        site = web.TCPSite(runner, settings.host, settings.port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            raise errors.AddressError(_port_problem(settings, error), reason="serve-address") from error
        with _stop_signal() as stop:
            ready(http_server.url(settings.host, runner.addresses[0][1], tls=context is not None))
            watchdog = asyncio.create_task(notify.keep_alive())
            try:
                await stop.wait()
            finally:
                watchdog.cancel()
                notify.stopping()
    finally:
        await runner.cleanup()


def _tls(settings: ServeConfig) -> ssl.SSLContext | None:
    cert, key = (Path(text).expanduser() if text else None for text in (settings.cert, settings.key))
    return http_server.tls(cert, key)


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


def _port_problem(settings: ServeConfig, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {settings.port} of {settings.host} is in use: stop the program that uses it, or pass another --port"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {settings.port} needs privileges that this user lacks: pass a --port above 1023"
    return f"{settings.host} is not an address of this machine: pass another --host"
