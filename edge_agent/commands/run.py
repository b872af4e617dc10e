"""`edge-agent run`: the long-running agent, or a later stage of a chain of boards, with its local HTTP API.

The API listens at once; `/healthz` says 503 while no frames are served. systemd hears READY as soon as the API listens: a server that is down must not
make the board's start-up fail. A server that cannot be reached or has trouble of its own is tried again for ever; any other error ends the
program, and systemd starts it again after a while.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from typing import Literal

from edge_agent import errors, limits
from edge_agent.agent import Agent
from edge_agent.config import Settings
from edge_agent.explain import plain
from edge_agent.inputs import api
from edge_agent.link.dial import heals
from edge_agent.service import notify
from edge_agent.stage import Stage
from kernels import jit


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; frames in flight are then answered for at most `limits.DRAIN_TIMEOUT`."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if jit.CACHE_PROBLEM:
        _log(f"warning: {jit.advice()}")
    agent = _agent(settings)
    runner, url = await api.serve(agent, settings.api.host, settings.api.port)
    _log(f"the local API listens on {url}")
    notify.ready("starting")
    starting, stopping = asyncio.create_task(_become_ready(agent, url)), asyncio.create_task(stop.wait())
    watchdog = asyncio.create_task(notify.keep_alive())
    try:
        await _until(starting, stopping)
    finally:
        notify.stopping()
        for task in (starting, stopping, watchdog):
            task.cancel()
        await asyncio.wait({starting, stopping, watchdog})
        await runner.cleanup()
        await agent.close()
    _log("stopped")


def _agent(settings: Settings) -> Agent | Stage:
    """What the settings ask for. Raises `errors.ConfigError` where they ask for both, or a stage may not listen so."""
    if settings.stage.port is None:
        return Agent(settings, notify.status, _on_link)
    if settings.model:
        raise errors.ConfigError(
            "a board takes frames of a model or serves as a later stage, not both; unset `model` or `stage.port`",
            key="stage.port",
        )
    return Stage(settings, notify.status)


async def _until(starting: asyncio.Task[None], stopping: asyncio.Task[Literal[True]]) -> None:
    """Wait for the request to stop; an error that no retry cures is raised."""
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        await stopping


async def _become_ready(agent: Agent | Stage, url: str) -> None:
    backoff = limits.BACKOFF_FIRST
    while True:
        try:
            await agent.start()
            break
        except errors.SplitEdgeError as error:
            if not heals(error):
                raise
            agent.say(f"waiting for the server: {error.message}")
            _log(f"{agent.state}; next try in about {backoff:.1f} s")
        await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
        backoff = min(2 * backoff, limits.BACKOFF_MAX)
    if isinstance(agent, Stage):
        _log(f"edge-agent ready as a stage on {agent.url}")
        return
    plan = agent.plan_info()
    _log(f"edge-agent ready on {url}: {plan['model']}, {plan['mode']}, cut after {plan['cut']}")


def _on_link(text: str) -> None:
    notify.status(text)
    _log(text)


def _log(text: str) -> None:
    print(f"edge-agent: {plain(text)}", file=sys.stderr, flush=True)
