"""The server and the next board that the settings name, and whether they answer.

Loads no numpy and no kernels: a command asks here before it imports, measures or compiles anything.
"""

from __future__ import annotations

from pathlib import Path

from edge_agent import config
from edge_agent.config import Settings, path_of
from splitedge.link.http_client import ServerClient, tls_context


def client(settings: Settings, *, patient: bool = True) -> ServerClient:
    """The server's HTTP interface; use it as an async context manager. ``patient``: as in `ServerClient`."""
    return _client(settings, *server_address(settings), patient)


def next_stage(settings: Settings, *, patient: bool = True) -> ServerClient:
    """The HTTP interface of the board after this one; use it as an async context manager."""
    return _client(settings, *next_address(settings), patient)


def server_address(settings: Settings) -> tuple[str, str | None, Path | None]:
    """Address, token and authority of the server."""
    return settings.server, config.token(settings) or None, path_of(settings.ca) if settings.ca else None


def next_address(settings: Settings) -> tuple[str, str | None, Path | None]:
    """Address, token and authority of the board after this one."""
    chain = settings.chain
    return chain.next, config.chain_token(settings) or None, path_of(chain.ca) if chain.ca else None


async def check(settings: Settings, *, patient: bool = True) -> None:
    """Return if the server answers, takes the token and has the model (where one is chosen), and the next board of a chain answers.

    Raises `errors.ConfigError` for a token or CA file, `errors.UnreachableError`, `errors.AuthError`, `errors.UnknownModelError`.
    """
    async with client(settings, patient=patient) as server:
        await (server.model(settings.model) if settings.model else server.reach())
    if settings.chain.next:
        async with next_stage(settings, patient=patient) as further:
            await further.reach()


def _client(settings: Settings, url: str, token: str | None, ca: Path | None, patient: bool) -> ServerClient:
    return ServerClient(url, token, ssl=tls_context(ca), allow_insecure=settings.allow_insecure, patient=patient)
