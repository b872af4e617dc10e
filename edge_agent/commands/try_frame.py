"""`edge-agent service test`: one frame through the running agent. Other commands of the service do without its imports."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from edge_agent import config
from edge_agent.api import client
from edge_agent.commands import infer
from edge_agent.inputs.noise import noise
from edge_agent.runtime.results import Result
from edge_agent.service import check
from edge_agent.service.unit import CONFIG_PATH
from splitedge import errors
from splitedge.terminal import width


def try_frame(path: Path | None) -> None:
    """Let the running agent answer a frame of noise, and print the answer. Raises `UsageError` if it is not ready."""
    result = asyncio.run(_answer(config.load(path or CONFIG_PATH, environ=os.environ | check.environment())))
    print(infer.text("test frame", result, (), width()))


async def _answer(settings: config.Settings) -> Result:
    agent = await client.serving(settings)
    if agent is None:
        raise errors.UsageError(
            "no agent is ready at the local API of the service; see `edge-agent service status`", reason="not-ready"
        )
    kind, shape = agent.frame.kind, agent.frame.shape
    async with agent:
        try:
            return await agent.infer(noise(kind, shape))
        except errors.InputError:  # the plan does not say whether a tensor is of token ids
            if kind != "tensor":
                raise
            return await agent.infer(noise("ids", shape))
        except client.Gone as gone:
            raise errors.LinkLostError("the agent stopped before it answered; see `edge-agent service logs`") from gone
