"""Checks of the configuration and of a server that answers, refuses, differs or is silent."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from aiohttp import web

import splitedge
from edge_agent.config import Settings
from edge_agent.doctor import server
from splitedge import limits
from splitedge.protocol.messages import OLDEST_PROTOCOL, PROTOCOL_VERSION, ServerVersion, encode
from tests.small_server import TOKEN, SmallServer


def test_a_configuration_that_is_not_valid_fails(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("modle = 'x'\n")
    settings, check = server.configuration(tmp_path / "agent.toml", {})
    assert (settings, check.name, check.verdict) == (None, "configuration", "fail")
    assert "`modle`" in check.advice


async def test_a_server_that_answers_is_asked_for_the_model() -> None:
    async with SmallServer() as small:
        good = await server.server(Settings(server=small.url, token=TOKEN, model="small"))
        absent = await server.server(Settings(server=small.url, token=TOKEN, model="absent"))
        refused = await server.server(Settings(server=small.url, token="wrong", model="small"))
    assert (good.verdict, good.advice) == ("ok", "")
    assert "small" in good.found
    assert absent.verdict == refused.verdict == "fail"
    assert "no model 'absent'" in absent.advice
    assert "token" in refused.advice


async def test_a_server_that_is_silent_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DOCTOR_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are made, and nobody takes them
        settings = Settings(server=f"http://127.0.0.1:{silent.getsockname()[1]}")
        found, version = await server.server(settings), await server.version(settings)
    assert (found.verdict, version) == ("fail", None)
    assert "0.1 s" in found.advice


async def test_a_server_that_nobody_configured_need_not_be_there() -> None:
    assert (await server.server(Settings())).verdict == "ok"


@asynccontextmanager
async def versioned(version: str, protocol: int, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that tells its version and nothing else; its port."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=encode(ServerVersion(version, protocol)))

    app = web.Application()
    app.add_routes([web.get("/v1/version", answer)])
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("version", "protocol", "verdict"),
    [
        (splitedge.__version__, PROTOCOL_VERSION, "ok"),
        ("0.0.1", PROTOCOL_VERSION, "warn"),
        ("0.0.1", OLDEST_PROTOCOL, "warn"),
        ("0.0.1", OLDEST_PROTOCOL - 1, "fail"),
        ("99.0.0", PROTOCOL_VERSION + 1, "fail"),
    ],
)
async def test_another_version_is_noted_and_another_protocol_fails(version: str, protocol: int, verdict: str) -> None:
    async with versioned(version, protocol) as port:
        found = await server.version(Settings(server=f"http://127.0.0.1:{port}"))
    assert found is not None
    assert found.verdict == verdict
    assert ("this board" in found.advice) == (protocol > PROTOCOL_VERSION)


@pytest.mark.parametrize(("days", "verdict"), [(90, "ok"), (limits.CERTIFICATE_DAYS - 1, "warn")])
async def test_the_remaining_days_of_a_certificate_are_counted(tmp_path: Path, days: int, verdict: str) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    now = datetime.now(UTC)
    authority.issue_cert("localhost", not_after=now + timedelta(days=days, hours=1)).configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with versioned("0", PROTOCOL_VERSION, context) as port:
        url = f"https://localhost:{port}"
        found = await server.certificate(Settings(server=url, ca=str(tmp_path / "ca.pem")), now)
        untrusted = await server.certificate(Settings(server=url), now)
        plain = await server.certificate(Settings(server=f"http://localhost:{port}"), now)
    assert found is not None
    assert (found.verdict, f"{days} days" in found.found) == (verdict, True)
    assert untrusted is plain is None  # `server` says why
