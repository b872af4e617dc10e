"""The local HTTP API over real sockets, in front of a real agent of a small server."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser

import aiohttp
import numpy as np
import pytest
from PIL import Image

from edge_agent.api import app
from edge_agent.config import ReuseConfig
from edge_agent.runtime.agent import Agent
from edge_agent.runtime.queue_limit import QueueLimit
from splitedge import errors, limits
from tests.raising import raises
from tests.small_server import TOKEN, SmallServer


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@asynccontextmanager
async def serving(
    settings, started: bool = True, **changes: object
) -> AsyncIterator[tuple[SmallServer, Agent, aiohttp.ClientSession]]:
    async with SmallServer() as server:
        agent = Agent(settings(server, **changes))
        runner, url = await app.serve(app.Front(agent), "127.0.0.1", 0)
        try:
            if started:
                await agent.start()
            async with aiohttp.ClientSession(url) as http:
                yield server, agent, http
        finally:
            await runner.cleanup()
            await agent.close()


async def error_of(response: aiohttp.ClientResponse) -> tuple[int, str, str]:
    error = (await response.json())["error"]
    return response.status, error["code"], error["message"]


async def test_an_image_is_classified_whatever_content_type_it_has(settings):
    async with serving(settings) as (_, agent, http):
        for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
            async with http.post("/v1/infer", data=png(), headers={"Content-Type": kind}) as response:
                value = await response.json()
                assert response.status == 200
                assert value["top"][0]["label"].startswith("label ")
                assert value["timing"]["total_ms"] > 0
        assert agent.counters.answered == 3


async def test_a_form_stands_for_its_one_file(settings):
    """As `curl -F file=@photo.png` sends it."""
    array = io.BytesIO()
    np.save(array, np.zeros((16, 16, 3), np.float32))
    async with serving(settings) as (_, agent, http):
        for data in (png(), array.getvalue()):
            form = aiohttp.FormData()
            form.add_field("file", data, filename="photo.png", content_type="image/png")
            async with http.post("/v1/infer", data=form) as sent, http.post("/v1/infer", data=data) as plain:
                assert sent.status == 200
                assert (await sent.json())["top"] == (await plain.json())["top"]
        assert agent.counters.answered == 4


async def test_another_form_is_refused_within_the_limits(settings, monkeypatch):
    monkeypatch.setattr(limits, "MAX_IMAGE_BYTES", 10_000)
    two, empty, big = aiohttp.FormData(), aiohttp.FormData(), aiohttp.FormData()
    for _ in range(2):
        two.add_field("file", png(), filename="photo.png")
    empty.add_field("file", b"", filename="photo.png")
    big.add_field("file", bytes(9_000), filename="photo.png")
    async with serving(settings) as (_, agent, http):
        kind = {"Content-Type": "multipart/form-data; boundary=xyz"}

        async def endless():
            yield b'--xyz\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
            with contextlib.suppress(ConnectionError):
                for _ in range(100):
                    yield bytes(1_000)

        for data, headers, status in (
            (two, {}, 400), (empty, {}, 400), (big, {}, 400), (b"nothing of a form", kind, 400), (b"", kind, 400),
            (b"--xyz\r\n" + b"a" * 9_000, kind, 400), (b"--xyz\r\nA: b", kind, 400), (png(), {"Content-Type": "multipart/form-data"}, 400),
            (b"--xyz\r\nContent-Type: multipart/mixed; boundary=abc\r\n\r\n--abc\r\n\r\nx\r\n--abc--\r\n--xyz--", kind, 400),
            (endless(), kind, 413),
        ):  # fmt: skip
            async with http.post("/v1/infer", data=data, headers=headers) as response:
                assert (response.status, (await error_of(response))[1]) == (status, "input")
        assert agent.counters.failed == {"input": 10}


async def test_a_file_that_curl_d_sent_is_told_of_the_other_option(settings):
    async with serving(settings) as (_, _agent, http):
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        async with http.post("/v1/infer", data=png().replace(b"\r", b"").replace(b"\n", b""), headers=kind) as response:
            assert "--data-binary" in (await error_of(response))[2]


async def test_a_frame_that_is_not_sent_says_so_and_is_counted(settings):
    async with serving(settings, reuse=ReuseConfig(threshold=0.1, max_age_s=3600.0)) as (server, _, http):
        values = []
        for _ in range(3):
            async with http.post("/v1/infer", data=png()) as response:
                values.append(await response.json())
        assert [value["cached"] for value in values] == [False, True, True]
        assert [value["distance"] for value in values] == [None, 0.0, 0.0]
        size = values[0]["payload_bytes"]
        assert [(value["payload_bytes"], value["saved_bytes"]) for value in values] == [(size, 0), (0, size), (0, size)]
        assert values[0]["top"] == values[1]["top"] == values[2]["top"]
        async with http.get("/v1/status") as response:
            status = await response.json()
        assert (status["frames"]["answered"], status["frames"]["reused"], server.frames) == (1, 2, 1)
        assert status["saved_bytes"] == 2 * status["payload_bytes"] == 2 * size
        async with http.get("/metrics") as response:
            text = await response.text()
        assert 'splitedge_frames_total{outcome="reused",reason=""} 2' in text
        assert f"splitedge_saved_bytes_total {status['saved_bytes']}" in text


async def test_a_tensor_is_taken_with_its_shape_and_a_wrong_one_names_both_shapes(settings):
    async with serving(settings) as (_, agent, http):
        good = np.zeros((16, 16, 3), "<f4").tobytes()
        async with http.post("/v1/infer", data=good, headers={"X-Shape": "16,16,3"}) as response:
            assert response.status == 200
        async with http.post("/v1/infer", data=good, headers={"X-Shape": "16, 48"}) as response:
            status, code, message = await error_of(response)
            assert (status, code) == (400, "input")
            assert "[16, 48]" in message
            assert "[16, 16, 3]" in message
        async with http.post("/v1/infer", data=good[:-4], headers={"X-Shape": "16,16,3"}) as response:
            assert (await error_of(response))[
                2
            ] == "a float32 tensor of shape [16, 16, 3] has 3072 bytes, the body has 3068; correct X-Shape or X-Dtype"
        assert agent.counters.failed == {"input": 2}


async def test_bytes_that_are_neither_an_image_nor_said_to_be_a_tensor_are_told_what_is_missing(settings):
    async with serving(settings) as (_, agent, http):
        kind = {"Content-Type": "application/octet-stream"}
        async with http.post("/v1/infer", data=bytes(3072), headers=kind) as response:
            status, _, message = await error_of(response)
            assert status == 400
            assert "`X-Shape: 16,16,3`" in message
        for data, headers in ((png()[:200], kind), (bytes(3072), {"Content-Type": "image/png"})):
            async with http.post("/v1/infer", data=data, headers=headers) as response:
                assert "X-Shape" not in (await error_of(response))[2]
        assert agent.counters.failed == {"input": 3}


@pytest.mark.parametrize("shape", ["", "a", "0", "-1,3", "1,2,3,4,5", "16,,3", "1e3", "²", "9" * 200, "2097152"])
async def test_a_shape_that_is_none_is_refused(settings, shape):
    async with (
        serving(settings, started=False) as (_, _agent, http),
        http.post("/v1/infer", data=b"1234", headers={"X-Shape": shape}) as response,
    ):
        assert (await error_of(response))[0] == 400


async def test_a_body_over_the_limit_is_refused_before_it_is_read(settings, monkeypatch):
    monkeypatch.setattr(limits, "MAX_IMAGE_BYTES", 10_000)
    async with serving(settings) as (_, agent, http):
        refused = asyncio.Event()

        async def unfinished() -> AsyncIterator[bytes]:
            yield bytes(10_001)
            await refused.wait()

        async with http.post("/v1/infer", data=bytes(10_001)) as response:
            assert (await error_of(response))[:2] == (413, "input")
        async with http.post("/v1/infer", data=b"", headers={"X-Shape": "1000,1000"}) as response:
            assert (await error_of(response))[0] == 413
        async with asyncio.timeout(60), http.post("/v1/infer", data=unfinished()) as response:
            assert (await error_of(response))[:2] == (413, "input")  # while the rest of the body was still to come
            refused.set()
        assert agent.counters.failed["input"] == 3


async def test_when_too_much_waits_the_next_request_is_told_to_come_later(settings):
    async with serving(settings) as (server, agent, http):
        server.tail_s = 0.2
        agent.queue.max_frames = 2

        async def post(seed: int) -> tuple[int, str | None]:
            async with http.post("/v1/infer", data=png(seed)) as response:
                return response.status, response.headers.get("Retry-After")

        ended = await asyncio.gather(*(post(i) for i in range(6)))
        assert sorted(status for status, _ in ended) == [200] * 2 + [429] * 4
        assert {wait for status, wait in ended if status == 429} == {"1"}
        assert agent.counters.dropped == {"queue_full": 4}


async def test_bodies_on_their_way_are_bounded_too(settings, monkeypatch):
    monkeypatch.setattr(QueueLimit.__init__, "__defaults__", (1, 1000))
    async with serving(settings) as (_, agent, http):
        held, release = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"1"
            held.set()
            await release.wait()

        first = asyncio.create_task(http.post("/v1/infer", data=slow()))
        await held.wait()
        await asyncio.sleep(0.1)  # until the server has read the head of the request
        async with http.post("/v1/infer", data=b"2") as response:
            assert response.status == 429
        release.set()
        assert (await error_of(await first))[1] == "input"
        assert agent.counters.dropped["queue_full"] == 1


async def test_a_client_that_trickles_its_body_is_cut_off(settings, monkeypatch):
    monkeypatch.setattr(limits, "BODY_TIMEOUT", 0.1)
    async with serving(settings) as (_, _agent, http):

        async def never() -> AsyncIterator[bytes]:
            yield b"1"
            await asyncio.sleep(3)

        async with http.post("/v1/infer", data=never()) as response:
            status, code, message = await error_of(response)
            assert (status, code) == (400, "input")
            assert "did not arrive" in message


async def test_before_it_is_ready_it_says_so_and_afterwards_it_serves(settings):
    async with serving(settings, started=False) as (_, agent, http):
        async with http.get("/healthz") as response:
            assert (response.status, await response.json()) == (503, {"ready": False, "state": "not started"})
        async with http.post("/v1/infer", data=png()) as response:
            assert response.headers["Retry-After"] == "1"
            assert (await error_of(response))[:2] == (503, "unreachable")
        async with http.get("/v1/status") as response:
            value = await response.json()
            assert (response.status, value["ready"], value["state"]) == (503, False, "not started")
        await agent.start()
        async with http.get("/healthz") as response:
            assert (response.status, await response.json()) == (200, {"ready": True, "state": "ready"})


class Page(HTMLParser):
    """The text of a page, its links, and the names of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.text += f"{data}\n"


async def test_a_person_gets_a_page_that_loads_and_runs_nothing(settings):
    odd = "<script>alert(1)</script>&'\""
    async with serving(settings, started=False, model=odd) as (_, _agent, http), http.get("/") as response:
        page = Page(await response.text())
        assert (response.status, response.content_type) == (200, "text/html")
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert odd in page.text
    assert "not ready" in page.text
    assert not page.tags & {"script", "style", "img", "link", "iframe"}
    assert page.links == ["/v1/status", "/healthz", "/metrics"]
    async with serving(settings) as (_, _agent, http):
        async with http.get("/") as response:
            page = Page(await response.text())
        assert "not ready" not in page.text
        assert {"split", "conv0", "small"} <= set(page.text.split())
        for link in page.links:
            assert (await http.get(link)).status == 200


async def test_while_the_server_is_away_it_says_so(settings):
    async with serving(settings) as (server, _, http):
        server.leave()
        async with asyncio.timeout(60):
            while (await (response := await http.get("/healthz")).json())["ready"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert response.status == 503
        assert (await response.json())["state"].startswith("the link to the server is down")


async def test_status_and_metrics_tell_what_happened(settings):
    async with serving(settings) as (_, _agent, http):
        async with http.post("/v1/infer", data=png()) as response:
            assert response.status == 200
        async with http.post("/v1/infer", data=b"no image") as response:
            assert (await error_of(response))[0] == 400
        async with http.get("/v1/status") as response:
            status = await response.json()
            assert status["frames"] == {"answered": 1, "reused": 0, "dropped": {}, "failed": {"input": 1}}
            assert status["plan"]["mode"] == "split"
            assert status["ready"] is True
            assert status["queue"] == {"frames": 0, "bytes": 0}
            assert not {"queue_frames", "queue_bytes"} & status.keys()
            assert TOKEN not in await response.text()
        async with http.get("/metrics") as response:
            assert response.content_type == "text/plain"
            text = await response.text()
        assert 'splitedge_frames_total{outcome="answered",reason=""} 1' in text
        assert 'splitedge_frames_total{outcome="failed",reason="input"} 1' in text
        assert 'cut="conv0"' in text
        assert "splitedge_reconnects_total 0" in text


async def test_what_is_not_there_is_an_error_in_the_same_form(settings):
    async with serving(settings, started=False) as (_, _agent, http):
        async with http.get("/nothing") as response:
            assert (await error_of(response))[0] == 404
        async with http.get("/v1/infer") as response:
            assert (await error_of(response))[0] == 405


async def test_a_client_that_goes_away_is_counted(settings):
    async with serving(settings) as (server, agent, http):
        server.tail_s = 0.5
        with pytest.raises(TimeoutError):
            await http.post("/v1/infer", data=png(), timeout=aiohttp.ClientTimeout(total=0.1))
        async with asyncio.timeout(60):
            while agent.counters.total == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert agent.counters.dropped == {"cancelled": 1}


async def test_an_address_that_is_taken_is_one_sentence(settings):
    async with SmallServer() as server:
        agent = Agent(settings(server))
        runner, url = await app.serve(app.Front(agent), "127.0.0.1", 0)
        try:
            with raises(errors.AddressError, reason="api-address"):
                await app.serve(app.Front(agent), "127.0.0.1", int(url.rsplit(":", 1)[1]))
        finally:
            await runner.cleanup()
            await agent.close()


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://example.org"}, {"Host": "rebound.example.org:8471"}, {"Host": "["}]
)
async def test_a_page_in_a_browser_is_refused(settings, headers):
    async with serving(settings) as (_server, agent, http):
        async with http.post("/v1/infer", data=png(), headers=headers) as response:
            status, _, message = await error_of(response)
        assert status == 403
        assert "browser" in message
        assert agent.counters.total == 0
