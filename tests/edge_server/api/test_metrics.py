"""What the server counts of its peers' mistakes, read as a monitor reads it; tests/edge_server/test_stream.py counts frames."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession, WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer

from edge_server.api.app import make_app
from edge_server.store.store import Store

Client = TestClient[web.Request, web.Application]


@pytest_asyncio.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    with Store(tmp_path) as store:
        token = store.tokens.add("test")
        headers = {"Authorization": f"Bearer {token}"}
        async with TestClient(TestServer(make_app(store)), headers=headers) as client:
            yield client


async def counted(client: Client, name: str) -> dict[str, int]:
    """The samples of one family by their code."""
    async with client.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await response.text()
    assert f"# TYPE splitedge_server_{name} counter\n" in text
    return {code: int(n) for code, n in re.findall(rf'^splitedge_server_{name}{{code="(\w*)"}} (\d+)$', text, re.M)}


async def until(client: Client, name: str, true: Callable[[dict[str, int]], bool]) -> dict[str, int]:
    async with asyncio.timeout(30):
        while not true(found := await counted(client, name)):  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.01)
    return found


async def test_only_those_with_a_token_read_the_counts(client: Client) -> None:
    async with ClientSession() as http, http.get(client.make_url("/metrics")) as response:
        assert response.status == 401
    assert await counted(client, "requests_refused_total") == {"auth": 1}


async def test_refused_requests_are_counted_by_error(client: Client) -> None:
    await client.get("/nowhere")
    await client.post("/v1/plan", data=b"{")
    await client.get("/v1/stream")  # no WebSocket
    await client.get("/v1/segments/x")
    assert await counted(client, "requests_refused_total") == {"usage": 1, "protocol": 2, "unknown_plan": 1}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ('{"type": "open", "plan": "nonsense"}', "unknown_plan"),
        ('{"type": "open", "plan": "x", "protocol": 99}', "protocol"),
        ("nonsense", "protocol"),
        (b"", "protocol"),
        (b"SE" + bytes(62), "protocol"),
        ('{"type": "failed", "error": {"code": "segment", "message": "m"}}', "segment"),
        ('{"type": "failed", "error": {"code": "made up by the peer", "message": "m"}}', "error"),
        (None, "link_lost"),
    ],
)
async def test_sessions_are_counted_by_the_error_that_ended_them(
    client: Client, said: str | bytes | None, code: str
) -> None:
    async with client.ws_connect("/v1/stream") as ws:
        async with client.get("/metrics") as response:
            assert "splitedge_server_sessions 1\n" in await response.text()
        match said:
            case str():
                await ws.send_str(said)
            case bytes():
                await ws.send_bytes(said)
        while said is not None and (await ws.receive()).type not in (WSMsgType.CLOSE, WSMsgType.CLOSED):
            pass
    assert await until(client, "sessions_ended_total", bool) == {code: 1}
    async with client.get("/metrics") as response:
        assert "splitedge_server_sessions 0\n" in await response.text()


async def test_before_anything_happened_nothing_is_counted(client: Client) -> None:
    for name in ("sessions_ended_total", "frames_total", "requests_refused_total"):
        assert await counted(client, name) == {}
