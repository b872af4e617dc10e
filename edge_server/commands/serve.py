"""`edge-server serve`."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from edge_server.api import access_log
from edge_server.api.serve import check
from edge_server.api.serve import serve as listen_and_serve
from edge_server.config import ServeConfig
from edge_server.store.store import Store
from splitedge.service import journal, notify


def serve(folder: Path, settings: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT; prints one line with the URL once the port is open, and tells systemd."""
    for warning in check(settings):
        _say(warning)
    logging.basicConfig(level=logging.WARNING, format="edge-server: %(message)s")
    if not settings.quiet:
        access_log.log.setLevel(logging.INFO)
        access_log.log.addFilter(access_log.RateBound())
    with Store(folder) as store:
        hints = _hints(store, settings.auth)
        asyncio.run(listen_and_serve(store, settings, lambda url: _ready(url, hints)))


def _hints(store: Store, auth: bool) -> list[str]:
    tokenless = auth and not store.tokens.all()
    hints = ["no agent can log in: create a token with `edge-server token`"] if tokenless else []
    return hints if store.bundles.names() else [*hints, "the store contains no models; add one with `edge-server add`"]


def _ready(url: str, hints: list[str]) -> None:
    for hint in hints:
        _say(hint)
    print(f"edge-server ready on {url}", flush=True)
    notify.ready(f"{notify.READY}: {url}")


def _say(text: str) -> None:
    journal.log("edge-server", text, journal.WARNING)
