"""`edge-server serve`."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from edge_server.api import access_log
from edge_server.api.serve import Listen, check
from edge_server.api.serve import serve as listen_and_serve
from edge_server.store.store import Store, default_folder


def serve(
    folder: Path | None,
    *,
    host: str,
    port: int,
    cert: Path | None,
    key: Path | None,
    auth: bool,
    insecure: bool,
    quiet: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT; prints one line with the URL once the port is open."""
    listen = Listen(host, port, cert, key, auth, insecure)
    for warning in check(listen):
        _say(warning)
    logging.basicConfig(level=logging.WARNING, format="edge-server: %(message)s")
    if not quiet:
        access_log.log.setLevel(logging.INFO)
        access_log.log.addFilter(access_log.RateBound())
    with Store(folder or default_folder()) as store:
        hints = _hints(store, auth)
        asyncio.run(listen_and_serve(store, listen, lambda url: _ready(url, hints)))


def _hints(store: Store, auth: bool) -> list[str]:
    tokenless = auth and not store.tokens()
    hints = ["there is no token yet, so no agent can log in: run edge-server token"] if tokenless else []
    return hints if store.bundle_names() else [*hints, "there is no model yet: run edge-server add"]


def _ready(url: str, hints: list[str]) -> None:
    for hint in hints:
        _say(hint)
    print(f"edge-server ready on {url}", flush=True)


def _say(text: str) -> None:
    print(f"edge-server: {text}", file=sys.stderr)
