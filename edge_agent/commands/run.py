"""`edge-agent run`: the long-running agent, or a later stage of a chain of boards, with its local HTTP API.

The API listens at once, before the kernels are imported, and says 503 while no frames are served. systemd hears READY as soon as the API listens: a
server that is down must not make the board's start-up fail. What `dial.heals` is tried again for ever. What the server refuses ends the program, except
under systemd: a token, a model or a certificate can be put right on the server, and a board far away then comes back by itself. Other errors end the
program, and systemd starts it again unless no restart can help (`service/unit.py`).
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from edge_agent import config
from edge_agent.api import app
from edge_agent.config import Settings
from edge_agent.service import notify
from splitedge import errors, limits
from splitedge.backoff import Backoff
from splitedge.link.endpoint import heals

if TYPE_CHECKING:
    from edge_agent.runtime.agent import Agent
    from edge_agent.runtime.stage import Stage


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; frames in flight are then answered for at most `limits.DRAIN_TIMEOUT`."""
    config.check_role(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    front = app.Front()
    runner, url = await app.serve(front, settings.api.host, settings.api.port)
    _log(f"the local API listens on {url}")
    notify.ready(front.served.state)
    starting, stopping = asyncio.create_task(_serve(front, settings, url)), asyncio.create_task(stop.wait())
    watchdog = asyncio.create_task(notify.keep_alive())
    try:
        await _until(starting, stopping)
    finally:
        notify.stopping()
        for task in (starting, stopping, watchdog):
            task.cancel()
        await asyncio.wait({starting, stopping, watchdog})
        await runner.cleanup()
        await front.served.close()
    _log("stopped")


async def _serve(front: app.Front, settings: Settings, url: str) -> None:
    make = await asyncio.to_thread(_imported)
    agent = make(settings, front)
    agent.counters, front.served = front.served.counters, agent
    await _become_ready(agent)
    if settings.stage.port is not None:
        _log(f"ready as a stage on {agent.status()['stage']}")
        return
    plan = agent.plan_info()
    _log(f"ready on {url}: {plan['model']}, {plan['mode']}, cut after {plan['cut']}")


def _imported() -> Callable[[Settings, app.Front], Agent | Stage]:
    """What makes an agent. Imports it and the kernels, which takes a second, on a small board several."""
    from edge_agent.runtime.agent import Agent
    from edge_agent.runtime.stage import Stage
    from kernels import jit

    if jit.CACHE_PROBLEM:
        _log(f"warning: {jit.advice()}")

    def make(settings: Settings, front: app.Front) -> Agent | Stage:
        def tell(text: str) -> None:
            with suppress(errors.PlatformError):  # what nobody hears is no reason to end
                notify.status(notify.state(text, ready=front.served.ready))

        def on_link(text: str) -> None:
            tell(text)
            _log(text)

        return Agent(settings, tell, on_link) if settings.stage.port is None else Stage(settings, tell)

    return make


async def _until(starting: asyncio.Task[None], stopping: asyncio.Task[Literal[True]]) -> None:
    """Wait for the request to stop; an error that no retry cures is raised."""
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        await stopping


async def _become_ready(agent: Agent | Stage) -> None:
    backoff, refused = Backoff(), Backoff(limits.REFUSED_AGAIN, limits.REFUSED_AGAIN)
    while True:
        try:
            return await agent.start()
        except errors.SplitEdgeError as error:
            if not heals(error) and not (notify.watched() and elsewhere(error)):
                raise
            state, delays = (notify.WAITING, backoff) if heals(error) else (notify.REFUSED, refused)
            agent.say(f"{state}: {error.message}")
            wait = delays.next()
            _log(f"{agent.state}; next try in about {wait:.1f} s")
        await asyncio.sleep(wait)


def elsewhere(error: errors.SplitEdgeError) -> bool:
    """Whether ``error`` can be put right on the server, without anybody at this board."""
    kinds = errors.LinkError | errors.PlanError | errors.ProtocolError | errors.SegmentError | errors.ModelError
    return error.remote or isinstance(error, kinds)


def _log(text: str) -> None:
    print(f"edge-agent: {''.join(c for c in text if c.isprintable())}", file=sys.stderr, flush=True)
