"""The agent for code without asyncio.

with edge_agent.connect("https://server:8470", "model") as agent:
    result = agent.infer(Path("photo.jpg"))
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from edge_agent.planning.peers import StatusCallback
from edge_agent.runtime.agent import Agent, AnyFrame
from edge_agent.runtime.results import Result
from splitedge import errors
from splitedge.protocol.messages import Plan

T = TypeVar("T")


def connect(
    server: str | None = None,
    model: str | None = None,
    *,
    config: str | Path | None = None,
    progress: StatusCallback = lambda _: None,
    **settings: Any,
) -> BlockingAgent:
    """A started agent of ``server`` and ``model``; close it, or use it in ``with``. The keywords are those of
    `Agent.connect`.

    The first start on a board measures it, which takes one to two minutes. Raises `errors.ConfigError` for a wrong
    setting, and the error that prevents the start.
    """
    return BlockingAgent(Agent.connect(server, model, config=config, progress=progress, **settings))


class BlockingAgent:
    """Starts ``agent`` in its own event loop and thread. Any thread may use it."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edge-agent", daemon=True)
        self._thread.start()
        try:
            self._wait(self._agent.__aenter__())
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ready(self) -> bool:
        """Whether frames are served."""
        return self._agent.ready

    @property
    def plan(self) -> Plan | None:
        """The active plan."""
        return self._agent.plan

    def infer(self, frame: AnyFrame) -> Result:
        """The answer to ``frame``; accepts and raises what `Agent.infer` does. Several threads may call it at the same
        time.
        """
        return self._wait(self._agent.infer(frame))

    @overload
    def infer_many(self, frames: Iterable[AnyFrame], *, return_errors: Literal[False] = False) -> Iterator[Result]: ...
    @overload
    def infer_many(
        self, frames: Iterable[AnyFrame], *, return_errors: Literal[True]
    ) -> Iterator[Result | errors.SplitEdgeError]: ...
    def infer_many(
        self, frames: Iterable[AnyFrame], *, return_errors: bool = False
    ) -> Iterator[Result | errors.SplitEdgeError]:
        """The answers to ``frames``, in their order, several frames at a time, as `Agent.infer_many` does. ``frames``
        is read in another thread.
        """
        many: Any = self._agent.infer_many
        answers: AsyncIterator[Result | errors.SplitEdgeError] = many(frames, return_errors=return_errors)
        try:
            while (answer := self._wait(_next(answers))) is not None:
                yield answer
        finally:
            if not self._loop.is_closed():
                self._wait(_close(answers))

    def status(self) -> dict[str, Any]:
        """The fields of `/v1/status`."""
        return self._wait(_call(self._agent.status))

    def close(self) -> None:
        """Let frames in progress end, then stop. Closing again does nothing."""
        if self._loop.is_closed():
            return
        try:
            self._wait(self._agent.close())
        finally:
            self._stop()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work`` in the agent's event loop. Raises `errors.UsageError` after `close`."""
        if self._loop.is_closed():
            work.close()
            raise errors.UsageError("the agent is closed; connect again")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # of a caller that is interrupted
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _next(answers: AsyncIterator[T]) -> T | None:
    return await anext(answers, None)


async def _close(answers: Any) -> None:
    while answers.ag_running:  # noqa: ASYNC110  an interrupted step is still being cancelled
        await asyncio.sleep(0.01)
    await answers.aclose()


async def _call(function: Any) -> Any:
    return function()
