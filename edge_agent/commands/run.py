"""`edge-agent run`: the agent, or a later board of a chain, with its local HTTP API.

The API listens before the kernels are imported, and answers 503 until frames are served. systemd gets READY as soon as
the API listens, so that a missing server does not fail the start of the board.

- Temporary errors (`endpoint.heals`) are retried without limit.
- A refusal by the server ends the program, except under systemd. There the agent tries again, so that a remote board
  recovers once the token, model or certificate is corrected on the server.
- Other errors end the program. systemd restarts it, except after errors that a restart cannot cure (`service/unit.py`).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from edge_agent import config
from edge_agent.api import app
from edge_agent.config import Settings
from splitedge import errors, limits
from splitedge.backoff import Backoff
from splitedge.link.endpoint import heals
from splitedge.service import journal, notify

if TYPE_CHECKING:
    from edge_agent.runtime.agent import Agent
    from edge_agent.runtime.replanning import LinkEvent
    from edge_agent.runtime.stage_server import StageServer


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish frames in flight within `limits.DRAIN_TIMEOUT`."""
    config.check_role(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    front = app.Front()
    runner, url = await app.serve(front, settings.api.host, settings.api.port)
    _log(f"the local API listens on {url}", event="listening")
    notify.ready(front.served.state)
    starting, stopping = asyncio.create_task(_serve(front, settings, url)), asyncio.create_task(stop.wait())
    watchdog = asyncio.create_task(notify.keep_alive(lambda: front.served.alive))
    try:
        await _until(starting, stopping)
    finally:
        notify.stopping()
        for task in (starting, stopping, watchdog):
            task.cancel()
        await asyncio.wait({starting, stopping, watchdog})
        await runner.cleanup()
        await front.served.close()
    _log("stopped", event="stopped")


async def _serve(front: app.Front, settings: Settings, url: str) -> None:
    make = await asyncio.to_thread(_imported)
    agent = make(await asyncio.to_thread(_with_cache, settings), front)
    front.served = agent
    await _become_ready(agent)
    if settings.stage.port is not None:
        _log(f"ready as a later board on {agent.status()['stage']}", journal.NOTICE, event="ready")
        return
    plan = agent.plan_info()
    text = f"ready on {url}: {plan['model']}, {plan['mode']}, cut after {plan['cut']}"
    _log(text, journal.NOTICE, event="ready", model=plan["model"])


def _imported() -> Callable[[Settings, app.Front], Agent | StageServer]:
    """The function that creates the agent. Importing it and the kernels takes 1 s, and several on a small board."""
    from edge_agent.runtime.agent import Agent
    from edge_agent.runtime.stage_server import StageServer
    from kernels import native, warm

    if native.REASON:
        _log(f"warning: kernels are compiled here: {native.REASON}", journal.WARNING, event="kernels")
    if warm.problem():
        _log(f"warning: {warm.advice()}", journal.WARNING, event="kernels")

    def make(settings: Settings, front: app.Front) -> Agent | StageServer:
        def tell(text: str) -> None:
            with suppress(errors.PlatformError):  # a status that systemd does not accept must not end the agent
                notify.status(notify.state(text, ready=front.served.ready))

        def on_link(text: str, event: LinkEvent) -> None:
            tell(text)
            _log(text, journal.WARNING if event in ("link-down", "link-slow") else journal.NOTICE, event=event)

        counters = front.served.counters
        if settings.stage.port is not None:
            return StageServer(settings, tell, counters=counters)
        return Agent(settings, tell, on_link, counters=counters)

    return make


def _with_cache(settings: Settings) -> Settings:
    from edge_agent.planning import disk_cache  # loads the kernels

    found, error = disk_cache.writable(settings)
    if error is not None:
        text = f"warning: {error.message}; until then downloads and measurements are lost at the next start"
        _log(text, journal.WARNING, event="cache", reason=error.data["reason"])
    return found


async def _until(starting: asyncio.Task[None], stopping: asyncio.Task[Literal[True]]) -> None:
    """Wait for the signal to stop. Raises the error of a start that failed."""
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        await stopping


async def _become_ready(agent: Agent | StageServer) -> None:
    """Start ``agent``, again and again. Each cause of a failed attempt is logged once."""
    backoff, refused = Backoff(), Backoff(limits.REFUSED_AGAIN, limits.REFUSED_AGAIN)
    logged = set[object]()
    while True:
        try:
            return await agent.start()
        except errors.SplitEdgeError as error:
            if not heals(error) and not (notify.watched() and elsewhere(error)):
                raise
            state, delays = (notify.WAITING, backoff) if heals(error) else (notify.REFUSED, refused)
            agent.say(f"{state}: {error.message}")
            cause = (error.code, error.data.get("reason"))  # a message may contain the time
            if cause not in logged:
                logged.add(cause)
                again = "trying until it succeeds" if heals(error) else f"trying again every {limits.REFUSED_AGAIN:g} s"
                event = "waiting" if heals(error) else "refused"
                _log(f"{agent.state}; {again}", journal.WARNING, event=event, reason=str(cause[1] or error.code))
            wait = delays.next()
        await asyncio.sleep(wait)


def elsewhere(error: errors.SplitEdgeError) -> bool:
    """Whether ``error`` can be corrected on the server, without access to this board."""
    kinds = errors.LinkError | errors.PlanError | errors.ProtocolError | errors.SegmentError | errors.ModelError
    return error.remote or isinstance(error, kinds)


def _log(text: str, priority: int = journal.INFO, **fields: str) -> None:
    journal.log("edge-agent", text, priority, fields)
