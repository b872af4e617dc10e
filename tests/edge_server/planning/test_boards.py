"""Several real stages before a real server: three boards in a row, an answer that a stage makes itself, TLS, and bits as the benchmark compares them."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio
import trustme
from aiohttp.test_utils import TestServer

from benchmarks.pipeline import in_one_process
from edge_agent import config
from edge_agent.planning import streams
from edge_agent.runtime.agent import Agent
from edge_agent.runtime.stage_server import StageServer
from edge_server.api.app import make_app
from edge_server.store.store import Store
from splitedge import errors
from splitedge.link.http_client import ServerClient
from splitedge.protocol.messages import LinkEstimate
from tests.raising import raises

NEAR = LinkEstimate(0.1, 1000.0, 1000.0)
AWAY = LinkEstimate(500.0, 0.1, 0.1)
TOKEN = "stage-token"

Start = Callable[..., Any]


@pytest_asyncio.fixture
async def start(store: Store, profile: dict[str, Any], tmp_path: Path) -> AsyncIterator[Start]:
    """Starts stages, each before the one that was started last; then ``start(first=True)`` is the first board."""
    (tmp_path / "profile.json").write_bytes(msgspec.json.encode(profile))
    token, behind, number = store.tokens.add("boards"), "", itertools.count()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(TestServer(make_app(store)))

        async def begin(first: bool = False, **options: Any) -> Any:
            nonlocal behind
            given = {
                "server": f"http://127.0.0.1:{server.port}", "token": token, "cache_dir": str(tmp_path / f"cache{next(number)}"),
                "profile": str(tmp_path / "profile.json"), "demand.max_drop_points": 100.0, "chain.next": behind or None, "chain.token": TOKEN,
            }  # fmt: skip
            if first:
                settings = config.load(options=given | {"model": "tiny"} | options, environ={})
                return await stack.enter_async_context(Agent(settings))
            settings = config.load(options=given | {"stage.port": 0, "stage.token": TOKEN} | options, environ={})
            stage = StageServer(settings)
            await stage.start()
            stack.push_async_callback(stage.close)
            behind = stage.url
            return stage

        yield begin


def frames(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(3).normal(size=(count, 16, 16, 3)).astype(np.float32))


async def test_three_boards_in_a_row_each_have_a_part(start: Start, store: Store) -> None:
    last, middle = await start(), await start()
    agent = await start(first=True, **{"chain.spread": True, "chain.objective": "rate"})
    route = agent.plan.stage.route
    assert [one.start for one in route[1:]] == [one.cut for one in route[:-1]]
    assert len({one.device for one in route}) == 3
    results = await asyncio.gather(*(agent.infer(frame) for frame in frames(12)))
    assert len(results) == last.counters.answered == middle.counters.answered == 12
    assert middle.plan.stage.downstream == last.plan.id
    with raises(errors.UsageError, reason="later-stage"):
        await middle.infer(frames(1)[0])


async def test_whole_outputs_are_those_of_one_process_bit_for_bit(start: Start, store: Store) -> None:
    await start()
    agent = await start(first=True, **{"chain.spread": True, "chain.exact": True})
    plan = agent.plan
    engine = agent._replanner.plan.engine
    async with streams.frame_stream(agent.settings, plan, topk=0) as stream:
        found = []
        for frame in frames(5):
            answer = await stream.send(engine.process(frame).payload, engine.codec)
            found.append(bytes(answer.payload).hex())
    assert found == in_one_process(store.folder, plan, frames(5))
    assert len(set(found)) == 5


async def test_far_from_the_server_the_last_board_answers(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = await start()
    away = stage.settings.server

    async def measured(client: ServerClient) -> LinkEstimate:
        return AWAY if str(client._base) == away else NEAR

    monkeypatch.setattr(ServerClient, "measure_link", measured)
    agent = await start(first=True, **{"chain.objective": "rate"})
    assert stage.plan is not None
    assert stage.plan.mode == "device"
    result = await agent.infer(frames(1)[0])
    assert stage.counters.answered == 1
    assert [t.probability for t in result.top] == sorted((t.probability for t in result.top), reverse=True)
    async with streams.frame_stream(agent.settings, agent.plan, topk=0) as stream:
        engine = agent._replanner.plan.engine
        answer = await stream.send(engine.process(frames(1)[0]).payload, engine.codec)
    values = np.frombuffer(bytes(answer.payload), "<f4")
    assert values.size == math.prod(stage.plan.cut.shape)
    assert int(values.argmax()) == result.top[0].index


async def test_a_stage_behind_tls_is_reached_only_by_those_who_trust_it(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    stage = await start(**{"stage.cert": str(tmp_path / "cert.pem"), "stage.key": str(tmp_path / "key.pem")})
    assert stage.url.startswith("https://")
    agent = await start(first=True, **{"chain.spread": True, "chain.ca": str(tmp_path / "ca.pem")})
    await agent.infer(frames(1)[0])
    assert stage.counters.answered == 1
    with raises(errors.UnreachableError, reason="certificate"):
        await start(first=True, **{"chain.spread": True})
    with pytest.raises(errors.AuthError):
        await start(first=True, **{"chain.spread": True, "chain.ca": str(tmp_path / "ca.pem"), "chain.token": "wrong"})
