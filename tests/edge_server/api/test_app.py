"""The HTTP interface on a real loopback socket: who gets in, what comes back, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
import pytest_asyncio
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from edge_server.api import app
from edge_server.api.app import make_app
from edge_server.planning.catalog import Catalog
from edge_server.store.store import Store
from splitedge import errors, limits
from splitedge.head import segment, upgrade
from splitedge.protocol.messages import Demand, LinkEstimate, Outline, PlanRequest
from tests.raising import expect
from tests.segment_builder import Builder

Client = TestClient[web.Request, web.Application]


@dataclass
class Running:
    client: Client
    store: Store
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    with Store(tmp_path / "store") as store:
        token = store.tokens.add("test")
        async with TestClient(TestServer(make_app(store))) as client:
            yield Running(client, store, token)


async def error_of(response: object) -> errors.SplitEdgeError:
    body = msgspec.json.decode(await response.read())  # type: ignore[attr-defined]
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "data"}
    return errors.from_wire(body["error"])


# --- who gets in


@pytest.mark.parametrize("path", ["/healthz", "/v1/version"])
async def test_health_and_version_need_no_token(server: Running, path: str) -> None:
    assert (await server.client.get(path)).status == 200


@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic x"}, {"Authorization": "Bearer "}]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/segments/" + "0" * 64, "/v1/stream", "/nowhere"])
async def test_everything_else_does(server: Running, path: str, header: dict[str, str]) -> None:
    response = await server.client.get(path, headers=header)
    assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert isinstance(await error_of(response), errors.AuthError)


async def test_models_are_listed_or_named(store: Store) -> None:
    async with TestClient(TestServer(make_app(store, auth=False))) as client:
        (info,) = msgspec.json.decode(await (await client.get("/v1/models")).read())
        named = await client.get("/v1/models", params={"name": "tiny"})
        assert msgspec.json.decode(await named.read()) == [info]
        unknown = await client.get("/v1/models", params={"name": "../tiny"})
        assert isinstance(await error_of(unknown), errors.UnknownModelError)


async def test_a_token_lets_in_until_it_is_revoked(server: Running) -> None:
    assert (await server.client.get("/v1/models", headers=server.headers)).status == 200
    server.store.tokens.revoke("test")
    assert (await server.client.get("/v1/models", headers=server.headers)).status == 401


async def test_without_authorization_nobody_is_asked(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        async with TestClient(TestServer(make_app(store, auth=False))) as client:
            assert await (await client.get("/v1/models")).json() == []


# --- errors


async def test_an_unknown_path_is_json(server: Running) -> None:
    response = await server.client.get("/v2/models", headers=server.headers)
    assert response.status == 404
    expect(await error_of(response), errors.UsageError, reason="no-such-path", path="/v2/models")


async def test_a_wrong_method_is_json(server: Running) -> None:
    response = await server.client.get("/v1/plan", headers=server.headers)
    assert response.status == 405
    assert isinstance(await error_of(response), errors.UsageError)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": 3}', b"\xff", b"[" * 100_000])
async def test_a_malformed_plan_request_is_a_protocol_error(server: Running, body: bytes) -> None:
    response = await server.client.post("/v1/plan", data=body, headers=server.headers)
    assert response.status == 400
    assert isinstance(await error_of(response), errors.ProtocolError)


async def test_plans_that_take_long_delay_nothing_else(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    going = threading.Event()

    def late(*_: object) -> NoReturn:
        going.wait(10)
        raise errors.UnknownModelError("no such model")

    monkeypatch.setattr(app, "make_plan", late)
    body = msgspec.json.encode(PlanRequest(model="m", profile={}, link=LinkEstimate(0, 1, 1), demand=Demand()))
    asked = [asyncio.create_task(server.client.post("/v1/plan", data=body, headers=server.headers)) for _ in range(64)]
    await asyncio.sleep(0.2)
    try:
        async with asyncio.timeout(5):
            assert (await server.client.get("/v1/models", headers=server.headers)).status == 200
    finally:
        going.set()
    assert {response.status for response in await asyncio.gather(*asked)} == {404}


async def test_an_oversize_plan_request_is_refused(server: Running) -> None:
    body = io.BytesIO(b" " * (limits.MAX_REQUEST_BYTES + 1))
    response = await server.client.post("/v1/plan", data=body, headers=server.headers)
    assert response.status == 413
    assert isinstance(await error_of(response), errors.ProtocolError)


async def test_a_body_that_never_ends_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUEST_TIMEOUT", 0.05)
    assert server.client.server.port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", server.client.server.port)
    head = f"POST /v1/plan HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\nContent-Length: 9\r\n\r\n"
    writer.write(head.encode() + b"x")
    assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    writer.close()
    await writer.wait_closed()


async def test_a_failing_store_is_an_error_with_its_status(server: Running) -> None:
    server.store.close()
    response = await server.client.get("/healthz")
    assert response.status == 507
    assert isinstance(await error_of(response), errors.StoreError)


async def test_an_outline_is_the_longest_heads_header(store: Store) -> None:
    async with TestClient(TestServer(make_app(store, auth=False))) as client:
        response = await client.get("/v1/outline", params={"model": "tiny"})
        outline = msgspec.json.decode(await response.read(), type=Outline)
        bundle = Catalog(store).bundle("tiny")
        header, end = segment.parse_header(outline.header)
        assert (outline.bundle, end) == (bundle.sha256, len(outline.header))
        names = [op.name for op in header.ops]
        for cut in bundle.offered:
            own = [op.name for op in bundle.header(cut).ops]
            assert own == names[: len(own)]
        response = await client.get("/v1/outline", params={"model": "none"})
        assert isinstance(await error_of(response), errors.UnknownModelError)


# --- segments


async def test_a_segment_comes_whole_or_in_ranges(server: Running) -> None:
    data = hashlib.shake_256(b"x").digest(300_000)
    ref = server.store.segments.put(data, "b", 0, (8, 3))
    url = f"/v1/segments/{ref.sha256}"
    response = await server.client.get(url, headers=server.headers)
    assert (response.status, await response.read()) == (200, data)
    assert response.headers["Accept-Ranges"] == "bytes"
    response = await server.client.get(url, headers=server.headers | {"Range": "bytes=100000-"})
    assert (response.status, await response.read()) == (206, data[100_000:])
    response = await server.client.get(url, headers=server.headers | {"Range": "bytes=300000-"})
    assert response.status == 416


@pytest.mark.parametrize("name", ["0" * 64, "..%2f..%2fstore.sqlite", "x"])
async def test_a_segment_that_is_not_there_is_an_error(server: Running, name: str) -> None:
    response = await server.client.get(f"/v1/segments/{name}", headers=server.headers)
    assert response.status == 404
    await error_of(response)


async def test_an_upgrade_is_made_once_and_leads_to_the_segment(server: Running) -> None:
    few, many = (server.store.segments.put(conv_file(bits), "b", 0, (bits,)) for bits in (4, 6))
    url = f"/v1/segments/{many.sha256}/upgrade/{few.sha256}"
    assert (await server.client.get(url)).status == 401
    response = await server.client.head(url, headers=server.headers)
    patch = await (await server.client.get(url, headers=server.headers)).read()
    assert (response.status, response.content_length) == (200, len(patch))
    assert upgrade.apply(conv_file(4), patch, many.sha256) == conv_file(6)
    made = server.store.segments.upgrade_path(many.sha256, few.sha256)
    assert made is not None
    before = made.stat()
    response = await server.client.get(url, headers=server.headers | {"Range": "bytes=100-"})
    assert (response.status, await response.read()) == (206, patch[100:])
    assert made.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("name", ["0" * 64, "..%2f..%2fstore.sqlite", "x"])
async def test_an_upgrade_of_what_is_not_there_is_an_error(server: Running, name: str) -> None:
    have = server.store.segments.put(conv_file(4), "b", 0, (4,)).sha256
    for url in (f"/v1/segments/{have}/upgrade/{name}", f"/v1/segments/{name}/upgrade/{have}"):
        response = await server.client.get(url, headers=server.headers)
        assert response.status == 404
        await error_of(response)
    assert [p.name for p in server.store.segments.folder.iterdir()] == [f"{have}.segment"]


def conv_file(bits: int) -> bytes:
    builder = Builder([4, 4, 8])
    builder.conv(builder.input, 16, bits=bits)
    made = builder.finish()
    return segment.build(made.header, made.blob.tobytes())


# --- probe


@pytest.mark.parametrize(("up", "down"), [(0, 0), (100_000, 0), (0, 100_001), (1000, limits.MAX_PROBE_BYTES)])
async def test_a_probe_swallows_and_answers_what_was_asked(server: Running, up: int, down: int) -> None:
    url = f"/v1/probe?down={down}"
    response = await server.client.post(url, data=bytes(up), headers=server.headers)
    assert (response.status, len(await response.read())) == (200, down)


@pytest.mark.parametrize("down", ["-1", "x", "1e3", str(limits.MAX_PROBE_BYTES + 1), "9" * 40, "٣"])
async def test_a_probe_for_nonsense_is_refused(server: Running, down: str) -> None:
    response = await server.client.post("/v1/probe", params={"down": down}, headers=server.headers)
    assert response.status == 400
    assert isinstance(await error_of(response), errors.ProtocolError)


async def test_an_oversize_probe_is_refused(server: Running) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(limits.MAX_PROBE_BYTES // (1 << 20) + 1):
            yield bytes(1 << 20)

    response = await server.client.post("/v1/probe", data=endless(), headers=server.headers)
    assert response.status == 413
    await error_of(response)


# --- streams


async def test_streams_beyond_the_limit_are_refused(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STREAMS", 0)
    response = await server.client.get("/v1/stream", headers=server.headers)
    assert response.status == 429
    assert isinstance(await error_of(response), errors.BusyError)


async def test_a_stream_of_an_unknown_plan_ends_with_the_reason(server: Running) -> None:
    async with (
        ClientSession() as http,
        http.ws_connect(server.client.make_url("/v1/stream"), headers=server.headers) as ws,
    ):
        await ws.send_str('{"type": "open", "plan": "nonsense"}')
        message = msgspec.json.decode((await ws.receive()).data)
    assert message["type"] == "failed"
    assert message["error"]["code"] == "unknown_plan"


async def test_a_defect_is_told_in_general_words_and_logged(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server.store.segments, "path", lambda sha256: 1 / 0)
    response = await server.client.get("/v1/segments/x", headers=server.headers)
    assert response.status == 500
    expect(await error_of(response), errors.SplitEdgeError, reason="internal")
    assert "ZeroDivisionError" in caplog.text
