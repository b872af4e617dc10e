"""An agent and a server of an older protocol."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edge_agent.config import Settings
from edge_agent.runtime.agent import Agent
from splitedge import errors
from splitedge.protocol.messages import OLDEST_PROTOCOL
from tests.raising import raises
from tests.small_server import IMAGE, SmallServer

MakeSettings = Callable[..., Settings]
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)


@pytest.mark.parametrize("mode", ["server", "split", "device"])
async def test_answers_of_a_server_of_protocol_3_are_those_of_this_one(settings: MakeSettings, mode: str) -> None:
    async with SmallServer(mode) as server:
        async with Agent(settings(server)) as agent:
            wanted = await agent.infer(PIXELS)
        server.protocol = OLDEST_PROTOCOL
        async with Agent(settings(server)) as agent:
            found = await agent.infer(PIXELS)
    assert (found.top, found.kind, found.payload_bytes) == (wanted.top, wanted.kind, wanted.payload_bytes)
    assert [request.protocol for request in server.requests] == [4, 3]
    assert [opened.protocol for opened in server.opens] == ([] if mode == "device" else [4, 3])


@pytest.mark.parametrize(("metric", "topk"), [("cosine", 5), ("top1", 0)])
async def test_what_protocol_3_does_not_describe_is_refused(settings: MakeSettings, metric: str, topk: int) -> None:
    async with SmallServer("split", IMAGE, metric=metric) as server:
        server.protocol = OLDEST_PROTOCOL
        with raises(errors.PlanError, reason="protocol-output"):
            await Agent(settings(server, topk=topk)).start()


async def test_a_server_that_is_too_old_is_one_error(settings: MakeSettings) -> None:
    async with SmallServer() as server:
        server.protocol = OLDEST_PROTOCOL - 1
        agent = Agent(settings(server))
        with raises(errors.ProtocolError) as raised:
            await agent.start()
        await agent.close()
    assert raised.value.remote
    assert server.requests == []
