"""An agent whose model takes texts: over HTTP and in commands, with what a server or a caller may do wrong."""

from __future__ import annotations

import io
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest

from edge_agent.api import app
from edge_agent.doctor import server as doctor_server
from edge_agent.inputs.sources import Text, spoken
from edge_agent.planning import disk_cache
from edge_agent.planning.disk_cache import DiskCache
from edge_agent.runtime.agent import Agent
from splitedge import errors, limits
from splitedge.head import text
from tests.raising import raises
from tests.small_server import SmallServer
from tests.small_texts import TOKENS, TextServer, ids, vocabulary

PLAIN = {"Content-Type": "text/plain"}


@pytest.fixture(scope="module")
def tokenizer() -> bytes:
    pytest.importorskip("tokenizers", reason="texts need the extra `text`")
    return text.of_vocabulary(vocabulary())


@asynccontextmanager
async def serving(settings: Any, server: SmallServer) -> AsyncIterator[tuple[Agent, aiohttp.ClientSession]]:
    async with server:
        agent = Agent(settings(server))
        runner, url = await app.serve(app.Front(agent), "127.0.0.1", 0)
        try:
            await agent.start()
            async with aiohttp.ClientSession(url) as http:
                yield agent, http
        finally:
            await runner.cleanup()
            await agent.close()


async def post(http: aiohttp.ClientSession, data: bytes, **headers: str) -> tuple[int, Any]:
    """Status, and the best class or the error's reason."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.post("/v1/infer", data=data, headers=named) as response:
        value = await response.json()
    return response.status, value["top"][0]["index"] if response.status == 200 else value["error"]["data"]["reason"]


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


async def test_a_text_is_answered_as_its_ids_are_in_every_form(settings, tokenizer) -> None:
    server = TextServer(tokenizer)
    async with serving(settings, server) as (agent, http):
        made = np.array(ids("play", "##ing", "the", "cafe"), "<i4")
        shape = {"X_Shape": str(TOKENS), "Content_Type": "application/octet-stream"}
        answers = [
            await post(http, "Playing the Café".encode(), Content_Type="text/plain"),
            await post(http, "Playing the Café".encode(), Content_Type="text/plain; charset=UTF-8"),
            await post(http, made.tobytes(), X_Dtype="int32", **shape),
            await post(http, made.astype("<i8").tobytes(), X_Dtype="int64", **shape),
            await post(http, npy(made)),
            await post(http, npy(made.astype(np.int64)), Content_Type="application/octet-stream"),
        ]
        assert answers == [(200, answers[0][1])] * 6
        assert await post(http, b"a loan", Content_Type="text/plain") != answers[0]
        assert agent.counters.answered == 7
        assert (await agent.infer("Playing the Café")).top[0].index == answers[0][1]


async def test_words_that_name_a_file_are_asked_about_in_python_and_answered_elsewhere(
    settings, tokenizer, tmp_path, monkeypatch
) -> None:
    (tmp_path / "a loan").write_text("the cafe")
    monkeypatch.chdir(tmp_path)
    async with serving(settings, TextServer(tokenizer)) as (agent, http):
        with raises(errors.InputError, reason="file-name"):
            await agent.infer("a loan")
        words = (await agent.infer(Text("a loan"))).top[0].index
        inside = (await agent.infer(Path("a loan"))).top[0].index
        assert inside == (await agent.infer("the cafe")).top[0].index != words
        assert await post(http, b"a loan", Content_Type="text/plain") == (200, words)
        assert (await agent.infer(spoken("a loan").read())).top[0].index == words


async def test_what_is_no_text_for_this_model_is_told_what_to_send(settings, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_TEXT_BYTES", 100)
    async with serving(settings, TextServer(tokenizer)) as (agent, http):
        text_plain, raw = {"Content_Type": "text/plain"}, {"Content_Type": "application/octet-stream"}
        ids32 = np.zeros(TOKENS, np.int32).tobytes()
        cases: list[tuple[bytes, dict[str, str], int, str]] = [
            (b"caf\xe9", text_plain, 400, "not-utf8"),
            (b"\0\0\0\0", text_plain, 400, "not-utf8"),
            (b"words", {"Content_Type": "text/plain; charset=latin-1"}, 400, "not-utf8"),
            (b"", text_plain, 400, "empty"),
            (b"a" * 101, text_plain, 413, "too-large"),
            (b"words", {"Content_Type": "application/x-www-form-urlencoded"}, 400, "not-said-text"),
            (ids32, raw, 400, "no-shape"),
            (ids32, raw | {"X_Shape": "8"}, 400, "other-frame"),
            (ids32, raw | {"X_Shape": "8", "X_Dtype": "int16"}, 400, "dtype"),
            (ids32[:-1], raw | {"X_Shape": "8", "X_Dtype": "int32"}, 400, "body-bytes"),
            (ids32, raw | {"X_Shape": "4,2", "X_Dtype": "int32"}, 400, "other-frame"),
            (np.full(TOKENS, 50, np.int32).tobytes(), raw | {"X_Shape": "8", "X_Dtype": "int32"}, 400, "token-ids"),
            (npy(np.zeros(TOKENS, np.int32))[:-1], raw, 400, "not-an-array"),
            (b"P6 1 1 255\nabc", {"Content_Type": "image/x-portable-pixmap"}, 400, "no-image"),
        ]
        for body, headers, status, reason in cases:
            assert await post(http, body, **headers) == (status, reason)
        assert agent.counters.failed == {"input": len(cases)}


async def test_a_text_whose_length_nobody_told_is_bounded_too(settings, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_TEXT_BYTES", 100)

    async def piecemeal() -> AsyncIterator[bytes]:
        yield b"a " * 100

    async with (
        serving(settings, TextServer(tokenizer)) as (_, http),
        http.post("/v1/infer", data=piecemeal(), headers=PLAIN) as response,
    ):
        assert (await response.json())["error"]["data"]["reason"] == "too-many-bytes"


async def test_a_tokenizer_is_fetched_once_and_kept_beside_the_segments(settings, tokenizer) -> None:
    server = TextServer(tokenizer)
    for _ in range(2):
        async with serving(settings, server) as (agent, _):
            kept = disk_cache.folder(agent.settings) / f"{server.ref.sha256}.tokenizer"
            assert kept.read_bytes() == tokenizer
    assert server.tokenizers_served == 1


async def test_only_the_newest_tokenizers_are_kept(tmp_path) -> None:
    for i in range(limits.CACHED_SEGMENTS + 3):
        (tmp_path / f"{i:064x}.tokenizer").write_bytes(b"x")
    DiskCache(tmp_path).prune()
    assert len(list(tmp_path.iterdir())) == limits.CACHED_SEGMENTS


@pytest.mark.parametrize(
    ("served", "named", "why"),
    [
        (b"{}" * 10, b"[]" * 10, "hash"),
        (b"{}" * 10, b"{}" * 9, "other-size"),
        (b"{}" * 10, b"{}" * 10, "tokenizer"),
    ],
    ids=["another", "longer", "no tokenizer"],
)
async def test_a_tokenizer_that_is_not_the_plans_ends_the_start(settings, tokenizer, served, named, why) -> None:
    server = TextServer(named)
    server.tokenizer = served
    with raises(errors.SegmentError, reason=why):
        async with serving(settings, server):
            pass


@pytest.mark.parametrize(
    "change", [{"size": limits.MAX_TOKENIZER_BYTES + 1}, {"size": 0}, {"sha256": "../../etc/passwd"}]
)
async def test_an_impossible_tokenizer_is_not_asked_for(settings, tokenizer, change) -> None:
    server = TextServer(tokenizer)
    server.plan.tokenizer = msgspec.structs.replace(server.plan.tokenizer, **change)
    with raises(errors.SegmentError, reason="tokenizer-size"):
        async with serving(settings, server):
            pass
    assert server.tokenizers_served == 0


async def test_a_tokenizer_for_a_model_of_pictures_is_refused(settings, tokenizer) -> None:
    server = SmallServer()
    server.tokenizer = tokenizer
    server.plan.tokenizer = TextServer(tokenizer).ref
    with raises(errors.PlanError, reason="other-segment"):
        async with serving(settings, server):
            pass


async def test_without_the_library_ids_are_served_and_texts_are_told_what_to_install(settings, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    server = TextServer(b"not looked at")
    async with serving(settings, server) as (agent, http):
        made = np.array(ids("the", "ball"), "<i4")
        assert (await post(http, made.tobytes(), X_Shape=str(TOKENS), X_Dtype="int32"))[0] == 200
        assert await post(http, b"the ball", Content_Type="text/plain") == (400, "no-tokenizers")
        assert server.tokenizers_served == 0
        check = await doctor_server.server(agent.settings)
        assert check.verdict == "warn"


async def test_models_that_take_no_text_say_so(settings) -> None:
    async with serving(settings, TextServer(b"")) as (_, http):
        assert await post(http, b"the ball", Content_Type="text/plain") == (400, "no-tokenizer")
    async with serving(settings, SmallServer()) as (_, http):
        assert await post(http, b"words", Content_Type="text/plain") == (400, "no-text")
        status, _ = await post(http, npy(np.zeros((16, 16, 3), np.float32)))
        assert status == 200
