import asyncio
import hashlib
import os
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from splitedge import errors, limits
from splitedge.link import endpoint
from splitedge.link.http_client import Base, ServerClient, tls_context
from splitedge.link.stream_client import FrameStream
from splitedge.protocol.messages import (
    Cut,
    LinkEstimate,
    ModelInfo,
    PlanRequest,
    Preprocess,
    SegmentRef,
    ServerVersion,
    encode,
)
from tests.raising import raises

from .conftest import Relay, serving

DATA = os.urandom(3_000_000)
REF = SegmentRef(hashlib.sha256(DATA).hexdigest(), len(DATA))
REQUEST = PlanRequest(model="m", profile={}, link=LinkEstimate(1.0, 1.0, 1.0))


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def answering(body=b"", status=200, path="/v1/version", method="GET", **headers) -> web.Application:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body, status=status, headers=headers)

    app = web.Application(client_max_size=limits.MAX_REQUEST_BYTES)
    app.router.add_route(method, path, handler)
    return app


def refusing(error: errors.SplitEdgeError) -> web.Application:
    return answering(encode_error(error), error.http_status, "/v1/plan", "POST")


def encode_error(error: errors.SplitEdgeError) -> bytes:
    return msgspec.json.encode({"error": error.to_wire()})


class SegmentServer:
    """Serves a file as aiohttp does, ranges included, and remembers what was asked."""

    def __init__(self, folder: Path, data: bytes = DATA) -> None:
        self.file = folder / "served"
        self.file.write_bytes(data)
        self.ranges: list[str | None] = []
        self.app = web.Application()
        self.app.router.add_get("/v1/segments/{sha}", self.serve)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.ranges.append(request.headers.get("Range"))
        return web.FileResponse(self.file)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache" / "segments"


# --- requests


async def test_a_version_is_read():
    async with serving(answering(encode(ServerVersion("0.1.0", 1)))) as url, ServerClient(url, None) as client:
        assert await client.version() == ServerVersion("0.1.0", 1)


async def test_models_are_listed():
    cut = Cut(0, "input", "x", [4, 4, 3], "input")
    model = ModelInfo(
        name="m",
        bundle="0" * 64,
        metric="top1",
        samples=10,
        cuts=[cut],
        unsupported=[],
        preprocess=Preprocess("tensor", [4, 4, 3]),
    )
    body = msgspec.json.encode([model])
    async with serving(answering(body, path="/v1/models")) as url, ServerClient(url, None) as client:
        assert await client.models() == [model]


async def test_a_model_is_found_by_its_name_or_unknown():
    models = [
        ModelInfo(
            name=name,
            bundle="0" * 64,
            metric="top1",
            samples=10,
            cuts=[],
            unsupported=[],
            preprocess=Preprocess("tensor", [4]),
        )
        for name in ("a", "b")
    ]
    app = answering(msgspec.json.encode(models), path="/v1/models")  # as a server that ignores the name
    async with serving(app) as url, ServerClient(url, None) as client:
        assert await client.model("b") == models[1]
        with raises(errors.UnknownModelError, reason="unknown-model"):
            await client.model("../c")


async def test_who_is_not_patient_gives_up_soon_on_a_server_that_never_answers(monkeypatch):
    monkeypatch.setattr(limits, "FIRST_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with ServerClient(url, None, patient=False) as client, asyncio.timeout(10):
            with pytest.raises(errors.UnreachableError):
                await client.version()


async def test_a_plan_request_over_the_limit_is_not_sent():
    async with ServerClient("http://127.0.0.1:9", "t") as client:
        with raises(errors.ProtocolError, reason="request-too-large"):
            await client.plan(
                PlanRequest(model="m", profile={"x": "y" * limits.MAX_REQUEST_BYTES}, link=LinkEstimate(1.0, 1.0, 1.0))
            )


async def test_a_server_that_is_down_is_named(unused_tcp_port):
    async with ServerClient(f"http://127.0.0.1:{unused_tcp_port}", "t") as client:
        with raises(errors.UnreachableError, reason="refused"):
            await client.version()


async def test_an_unknown_host_is_named():
    async with ServerClient("https://no-such-host.invalid", "t") as client:
        with raises(errors.UnreachableError, reason="unknown-host"):
            await client.version()


async def test_a_refused_token_is_an_auth_error():
    async with serving(answering(status=401)) as url, ServerClient(url, "t") as client:
        with raises(errors.AuthError, reason="token"):
            await client.version()


@pytest.mark.parametrize(
    "error", [errors.UnknownModelError("no such model", model="m"), errors.InfeasibleError("no plan")]
)
async def test_the_servers_error_comes_back_as_itself(error):
    async with serving(refusing(error)) as url, ServerClient(url, "t") as client:
        with pytest.raises(type(error)) as caught:
            await client.plan(REQUEST)
        assert (caught.value.message, caught.value.data) == (error.message, error.data)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"version": 3}', b"\xff" * 10, b"x" * 5000])
async def test_an_answer_that_is_none_is_a_protocol_error(body):
    async with serving(answering(body)) as url, ServerClient(url, "t") as client:
        with pytest.raises(errors.ProtocolError):
            await client.version()


async def test_an_endless_answer_is_cut_off():
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(100_000))

    app = web.Application()
    app.router.add_get("/v1/models", endless)
    async with serving(app) as url, ServerClient(url, "t") as client:
        with raises(errors.ProtocolError, reason="answer-too-large"):
            await client.models()


async def test_a_redirect_is_not_followed_with_the_token():
    async with serving(answering(status=302, Location="http://127.0.0.1:9/")) as url, ServerClient(url, "t") as client:
        with raises(errors.ProtocolError, reason="http-status", status=302):
            await client.version()


async def test_a_certificate_nobody_signed_is_explained(server_tls):
    app = answering(encode(ServerVersion("0.1.0", 1)))
    async with serving(app, server_tls) as url, ServerClient(url, "t") as client:
        with raises(errors.UnreachableError, reason="certificate"):
            await client.version()


async def test_a_known_authority_is_accepted(server_tls, ca_file):
    app = answering(encode(ServerVersion("0.1.0", 1)))
    async with serving(app, server_tls) as url, ServerClient(url, "t", ssl=tls_context(ca_file)) as client:
        assert (await client.version()).version == "0.1.0"


async def test_https_to_a_port_without_tls_names_http():
    url_https = lambda url: url.replace("http:", "https:")  # noqa: E731
    async with serving(answering()) as url, ServerClient(url_https(url), "t") as client:
        with raises(errors.UnreachableError, reason="speaks-no-tls") as caught:
            await client.version()
    assert caught.value.data["tls"]
    assert not endpoint.heals(caught.value)


async def test_http_to_a_port_with_tls_names_https(server_tls):
    async with serving(answering(), server_tls) as url:
        async with ServerClient(url.replace("https:", "http:"), "t") as client:
            with raises(errors.UnreachableError, reason="speaks-tls") as caught:
                await client.version()
        assert not endpoint.heals(caught.value)
        async with FrameStream(url.replace("https:", "http:"), "t", "plan") as stream:
            with raises(errors.UnreachableError, reason="speaks-tls"):
                await stream.ready()


async def test_a_server_that_hangs_up_is_not_said_to_speak_tls():
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server, ServerClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "t") as client:
        with pytest.raises(errors.LinkLostError) as caught:
            await client.version()
    assert endpoint.heals(caught.value)


async def test_a_certificate_for_another_name_is_told_by_the_names_that_it_holds(authority, ca_file):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("board.example", "10.1.2.3").configure_cert(context)
    async with serving(answering(), context) as url, ServerClient(url, "t", ssl=tls_context(ca_file)) as client:
        with raises(errors.UnreachableError, reason="certificate-name") as caught:
            await client.version()
    assert caught.value.data["names"] == ["board.example", "10.1.2.3"]
    assert not endpoint.heals(caught.value)


@pytest.mark.parametrize(
    ("days", "heals", "reason"), [(1, True, "certificate-not-yet"), (-1, False, "certificate-expired")]
)
async def test_a_certificate_that_is_not_yet_valid_is_the_clocks_doing_and_heals(
    authority, ca_file, days, heals, reason
):
    now, context = datetime.now(UTC), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    life = {"not_before": now + timedelta(days=days - 0.5), "not_after": now + timedelta(days=days + 0.5)}
    authority.issue_cert("127.0.0.1", **life).configure_cert(context)
    async with serving(answering(), context) as url, ServerClient(url, "t", ssl=tls_context(ca_file)) as client:
        with raises(errors.UnreachableError, reason=reason) as caught:
            await client.version()
    assert endpoint.heals(caught.value) is heals


async def test_an_authority_file_with_a_byte_order_mark_is_read(server_tls, ca_file):
    ca_file.write_bytes(b"\xef\xbb\xbf" + ca_file.read_bytes())
    app = answering(encode(ServerVersion("0.1.0", 1)))
    async with serving(app, server_tls) as url, ServerClient(url, "t", ssl=tls_context(ca_file)) as client:
        assert (await client.version()).version == "0.1.0"


def test_no_authority_means_the_systems():
    assert tls_context(None) is None


def test_a_ca_file_that_is_none_is_explained(tmp_path):
    with raises(errors.ConfigError, reason="ca-unreadable"):
        tls_context(tmp_path / "missing.pem")
    (tmp_path / "empty.pem").write_text("nothing")
    with raises(errors.ConfigError, reason="not-pem"):
        tls_context(tmp_path / "empty.pem")


@pytest.mark.parametrize(
    "address", ["", "localhost:80", "ftp://host", "http://", "http://user@host", "https://host?x=1", "http://h:x"]
)
def test_an_address_that_is_none_is_refused(address):
    with raises(errors.UsageError, reason="address"):
        ServerClient(address, None)


@pytest.mark.parametrize(
    "address",
    [
        "https://me:hunter2@host",
        "https://:hunter2@host",
        "https://hunter2@host",
        "https://me:hunter2/@host:x",
        "https://me:hunter2?@host",
        "me:hunter2@host",
        "https://host?token=hunter2",
        "https://host#hunter2",
    ],
)
def test_a_rejected_address_is_not_shown_with_its_password(address):
    with raises(errors.UsageError, reason="address") as caught:
        ServerClient(address, None)
    assert "hunter2" not in str(caught.value)


async def test_a_server_may_be_shown_under_a_path():
    app = answering(encode(ServerVersion("0.1.0", 1)), path="/edge/v1/version")
    async with serving(app) as url, ServerClient(f"{url}/edge/", None) as client:
        assert (await client.version()).version == "0.1.0"


def test_a_token_does_not_cross_a_network_in_the_clear():
    with raises(errors.UsageError, reason="unencrypted-token"):
        ServerClient("http://192.0.2.1:8470", "t")
    ServerClient("http://192.0.2.1:8470", "t", allow_insecure=True)
    ServerClient("http://192.0.2.1:8470", None)
    for loopback in ("localhost", "127.1.2.3", "[::1]"):
        ServerClient(f"http://{loopback}:8470", "t")


# --- segments


async def test_a_segment_is_fetched_once(tmp_path, cache):
    server = SegmentServer(tmp_path)
    async with serving(server.app) as url, ServerClient(url, "t") as client:
        path = await client.fetch_segment(REF, cache)
        assert path == cache / f"{REF.sha256}.segment"
        assert path.read_bytes() == DATA
        assert await client.fetch_segment(REF, cache) == path
    assert server.ranges == [None]
    assert [p.name for p in cache.iterdir()] == [path.name]


async def test_a_download_goes_on_where_the_connection_broke(tmp_path, cache):
    server = SegmentServer(tmp_path)
    async with serving(server.app) as url, Relay(port_of(url)) as relay, ServerClient(relay.url, "t") as client:
        relay.cut_after = 2_000_000
        path = await client.fetch_segment(REF, cache)
    assert path.read_bytes() == DATA
    assert server.ranges[0] is None
    assert int(server.ranges[1].removeprefix("bytes=").rstrip("-")) > 0


async def test_a_download_goes_on_where_an_earlier_run_stopped(tmp_path, cache):
    server = SegmentServer(tmp_path)
    cache.mkdir(parents=True)
    (cache / f"{REF.sha256}.part").write_bytes(DATA[:1234])
    async with serving(server.app) as url, ServerClient(url, "t") as client:
        assert (await client.fetch_segment(REF, cache)).read_bytes() == DATA
    assert server.ranges == ["bytes=1234-"]


async def test_a_whole_part_of_an_earlier_run_needs_no_server(cache):
    cache.mkdir(parents=True)
    (cache / f"{REF.sha256}.part").write_bytes(DATA)
    async with ServerClient("http://127.0.0.1:9", "t") as client:
        assert (await client.fetch_segment(REF, cache)).read_bytes() == DATA


async def test_a_server_that_ignores_ranges_starts_over(cache):
    app = answering(DATA, path="/v1/segments/{sha}")
    cache.mkdir(parents=True)
    (cache / f"{REF.sha256}.part").write_bytes(b"x" * 10)
    async with serving(app) as url, ServerClient(url, "t") as client:
        assert (await client.fetch_segment(REF, cache)).read_bytes() == DATA


async def test_a_tampered_segment_is_refused_and_forgotten(tmp_path, cache):
    server = SegmentServer(tmp_path, b"x" + DATA[1:])
    async with serving(server.app) as url, ServerClient(url, "t") as client:
        with raises(errors.SegmentError, reason="hash"):
            await client.fetch_segment(REF, cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("size", [1234, len(DATA)])
async def test_a_part_damaged_by_a_power_cut_is_fetched_from_the_start(tmp_path, cache, size):
    server = SegmentServer(tmp_path)
    cache.mkdir(parents=True)
    (cache / f"{REF.sha256}.part").write_bytes(bytes(size))
    async with serving(server.app) as url, ServerClient(url, "t") as client:
        assert (await client.fetch_segment(REF, cache)).read_bytes() == DATA
    assert server.ranges == [*(["bytes=1234-"] if size < len(DATA) else []), None]
    assert [p.name for p in cache.iterdir()] == [f"{REF.sha256}.segment"]


async def test_a_tampered_segment_behind_a_damaged_part_is_refused_after_one_more_try(tmp_path, cache):
    server = SegmentServer(tmp_path, DATA[:-1] + b"x")
    cache.mkdir(parents=True)
    (cache / f"{REF.sha256}.part").write_bytes(DATA[:1234])
    async with serving(server.app) as url, ServerClient(url, "t") as client:
        with raises(errors.SegmentError, reason="hash"):
            await client.fetch_segment(REF, cache)
    assert server.ranges == ["bytes=1234-", None]
    assert list(cache.iterdir()) == []


async def test_a_tampered_file_of_an_earlier_run_is_fetched_again(tmp_path, cache):
    server = SegmentServer(tmp_path)
    cache.mkdir(parents=True)
    (cache / f"{REF.sha256}.segment").write_bytes(DATA[:-1] + b"x")
    async with serving(server.app) as url, ServerClient(url, "t") as client:
        assert (await client.fetch_segment(REF, cache)).read_bytes() == DATA


@pytest.mark.parametrize("have", [0, 100, 2_900_000])
@pytest.mark.parametrize("served", [DATA[:2_000_000], DATA + b"x"], ids=["shorter", "longer"])
async def test_a_segment_of_another_size_is_refused(tmp_path, cache, served, have):
    server = SegmentServer(tmp_path, served)
    cache.mkdir(parents=True)
    (cache / f"{REF.sha256}.part").write_bytes(DATA[:have])
    async with serving(server.app) as url, ServerClient(url, "t") as client:
        with pytest.raises(errors.SegmentError) as caught:
            await client.fetch_segment(REF, cache)
    assert caught.value.data["reason"] in ("other-size", "shorter")
    assert list(cache.iterdir()) == []


async def test_a_body_beyond_the_size_is_not_stored(cache):
    async def chunked(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(DATA + b"x")
        return response

    app = web.Application()
    app.router.add_get("/v1/segments/{sha}", chunked)
    async with serving(app) as url, ServerClient(url, "t") as client:
        with raises(errors.SegmentError, reason="other-size", size=3000001):
            await client.fetch_segment(REF, cache)
    assert list(cache.iterdir()) == []


async def test_a_connection_that_always_breaks_ends_the_download(monkeypatch, cache, tmp_path):
    monkeypatch.setattr(limits, "BACKOFF_FIRST", 0.001)

    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(REF.size)})
        await response.prepare(request)
        request.transport.abort()
        return response

    app = web.Application()
    app.router.add_get("/v1/segments/{sha}", broken)
    async with serving(app) as url, ServerClient(url, "t") as client:
        with pytest.raises(errors.LinkLostError):
            await client.fetch_segment(REF, cache)


@pytest.mark.parametrize(
    "ref",
    [
        SegmentRef("../" * 20 + "etcd", 10),
        SegmentRef("A" * 64, 10),
        SegmentRef("a" * 64, 0),
        SegmentRef("a" * 64, 1 << 40),
    ],
)
async def test_an_impossible_segment_is_not_asked_for(ref, cache):
    async with ServerClient("http://127.0.0.1:9", "t") as client:
        with raises(errors.SegmentError, reason="segment-size"):
            await client.fetch_segment(ref, cache)
    assert not cache.exists()


async def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    async with ServerClient("http://127.0.0.1:9", "t") as client:
        with raises(errors.StoreError, reason="cannot-keep"):
            await client.fetch_segment(REF, tmp_path / "file" / "segments")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full, a disk without room")
async def test_a_full_disk_is_a_store_error(tmp_path, cache):
    cache.mkdir(parents=True)
    (cache / f"{REF.sha256}.part").symlink_to("/dev/full")
    server = SegmentServer(tmp_path)
    async with serving(server.app) as url, ServerClient(url, "t") as client:
        with raises(errors.StoreError, reason="cannot-keep"):
            await client.fetch_segment(REF, cache)


# --- upgrades

HELD = "b" * 64
PATCH = os.urandom(200_000)
PART = f"{REF.sha256}-{HELD}.part"


def applied(patch: bytes) -> bytes:
    if patch != PATCH:
        raise errors.SegmentError("no upgrade")
    return DATA


class UpgradeServer(SegmentServer):
    """Serves an upgrade from `HELD` too; ``whole`` counts the requests for all of the segment."""

    def __init__(self, folder: Path, patch: bytes = PATCH) -> None:
        super().__init__(folder)
        self.patch = folder / "patch"
        self.patch.write_bytes(patch)
        self.asked: list[tuple[str, str | None]] = []
        self.app.router.add_get("/v1/segments/{sha}/upgrade/{held}", self.upgrade)

    async def upgrade(self, request: web.Request) -> web.StreamResponse:
        assert (request.match_info["sha"], request.match_info["held"]) == (REF.sha256, HELD)
        self.asked.append((request.method, request.headers.get("Range")))
        return web.FileResponse(self.patch)


async def test_what_is_held_saves_a_fetch(tmp_path, cache):
    server = UpgradeServer(tmp_path)
    async with serving(server.app) as url, ServerClient(url, "t") as client:
        path = await client.fetch_segment(REF, cache, Base(HELD, applied))
        assert path.read_bytes() == DATA
        await client.fetch_segment(REF, cache, Base(HELD, applied))
    assert (server.asked, server.ranges) == ([("HEAD", None), ("GET", None)], [])
    assert [p.name for p in cache.iterdir()] == [path.name]


async def test_an_upgrade_goes_on_where_the_connection_broke(tmp_path, cache):
    server = UpgradeServer(tmp_path)
    async with serving(server.app) as url, Relay(port_of(url)) as relay, ServerClient(relay.url, "t") as client:
        relay.cut_after = 100_000
        path = await client.fetch_segment(REF, cache, Base(HELD, applied))
    assert path.read_bytes() == DATA
    assert len(server.asked) > 2
    assert server.asked[-1][1] is not None
    assert server.ranges == []


@pytest.mark.parametrize("left", [PATCH[:1234], PATCH], ids=["a beginning", "all of it"])
async def test_an_upgrade_goes_on_where_an_earlier_run_stopped(tmp_path, cache, left):
    server = UpgradeServer(tmp_path)
    cache.mkdir(parents=True)
    (cache / PART).write_bytes(left)
    async with serving(server.app) as url, ServerClient(url, "t") as client:
        assert (await client.fetch_segment(REF, cache, Base(HELD, applied))).read_bytes() == DATA
    assert server.asked[1:] == ([("GET", "bytes=1234-")] if left != PATCH else [])


@pytest.mark.parametrize("patch", [PATCH[1:], os.urandom(100), DATA, DATA + b"x"], ids=["wrong", "small", "no smaller", "larger"])  # fmt: skip
async def test_an_upgrade_that_does_not_help_is_left_for_the_whole(tmp_path, cache, patch):
    server = UpgradeServer(tmp_path, patch)
    async with serving(server.app) as url, ServerClient(url, "t") as client:
        path = await client.fetch_segment(REF, cache, Base(HELD, applied))
    assert path.read_bytes() == DATA
    assert server.ranges == [None]
    assert [p.name for p in cache.iterdir()] == [path.name]


async def test_a_server_that_knows_no_upgrades_sends_the_whole(tmp_path, cache):
    server = SegmentServer(tmp_path)
    async with serving(server.app) as url, ServerClient(url, "t") as client:
        assert (await client.fetch_segment(REF, cache, Base(HELD, applied))).read_bytes() == DATA


# --- the link


async def test_the_link_is_measured_against_a_real_server():
    async def probe(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=bytes(int(request.query["down"])))

    app = web.Application(client_max_size=limits.MAX_PROBE_BYTES)
    app.router.add_post("/v1/probe", probe)
    async with serving(app) as url, ServerClient(url, "t") as client:
        estimate = await client.measure_link()
    assert estimate.rtt_ms > 0
    assert estimate.uplink_mbps > 1
    assert estimate.downlink_mbps > 1


async def test_a_probe_that_brings_too_little_is_a_protocol_error():
    async with serving(answering(b"x", path="/v1/probe", method="POST")) as url, ServerClient(url, "t") as client:
        with pytest.raises(errors.ProtocolError):
            await client.measure_link()


async def test_concurrent_requests_share_a_client():
    async with serving(answering(encode(ServerVersion("0.1.0", 1)))) as url, ServerClient(url, None) as client:
        versions = await asyncio.gather(*(client.version() for _ in range(10)))
    assert versions == [ServerVersion("0.1.0", 1)] * 10
