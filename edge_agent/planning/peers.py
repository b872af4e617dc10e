"""Clients of the server and of the next board, and a check that both answer.

Loads no numpy and no kernels, so that a command can check its peers before it imports, measures or compiles anything.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from edge_agent import config
from edge_agent.config import Settings, path_of
from splitedge.link.http_client import ServerClient, tls_context

StatusCallback: TypeAlias = Callable[[str], object]
"""Called with a short status message."""


def client(settings: Settings, *, patient: bool = True) -> ServerClient:
    """The server's HTTP client, an async context manager. ``patient``: as in `ServerClient`."""
    return _client(settings, *server_address(settings), patient)


def next_stage(settings: Settings, *, patient: bool = True) -> ServerClient:
    """The HTTP client of the next board of the chain, an async context manager."""
    return _client(settings, *next_address(settings), patient)


def server_address(settings: Settings) -> tuple[str, str | None, Path | None]:
    """URL, token and CA file of the server."""
    return settings.server, config.token(settings) or None, path_of(settings.ca) if settings.ca else None


def next_address(settings: Settings) -> tuple[str, str | None, Path | None]:
    """URL, token and CA file of the next board of the chain."""
    chain = settings.chain
    return chain.next, config.chain_token(settings) or None, path_of(chain.ca) if chain.ca else None


async def check(settings: Settings, *, patient: bool = True) -> None:
    """Check that the server answers, accepts the token and has the model, if one is set, and that the next board
    answers.

    Raises `errors.ConfigError` for a token or CA file, `errors.UnreachableError`, `errors.AuthError`,
    `errors.UnknownModelError`.
    """
    async with client(settings, patient=patient) as server:
        await (server.model(settings.model) if settings.model else server.reach())
    if settings.chain.next:
        async with next_stage(settings, patient=patient) as following:
            await following.reach()


def _client(settings: Settings, url: str, token: str | None, ca: Path | None, patient: bool) -> ServerClient:
    return ServerClient(url, token, ssl=tls_context(ca), allow_insecure=settings.allow_insecure, patient=patient)
