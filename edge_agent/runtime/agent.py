"""The agent: gets a plan, keeps its head warm and its stream open, and answers frames.

    async with Agent.connect("https://server:8470", "model") as agent:
        result = await agent.infer(frame)

Each frame ends in exactly one way: answered, answered with an earlier frame's answer (`answer_reuse`), dropped with a
reason, or failed with an error that its caller sees (`results.Counters`). The queue is bounded (`queue_limit`). New
plans are made while the old one serves (`replanning`).
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, overload

import edge_agent
from device_profiles import power
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.inputs.sources import Text, file_bytes, read_file, refuse_file_name
from edge_agent.planning.peers import StatusCallback
from edge_agent.runtime import status
from edge_agent.runtime.agent_plan import AgentPlan
from edge_agent.runtime.energy import FrameEnergy
from edge_agent.runtime.engine import InputFrame, frame_bytes, frame_of
from edge_agent.runtime.ordered import IN_PROGRESS, in_order
from edge_agent.runtime.pipeline import FramePipeline
from edge_agent.runtime.preparation import prepare
from edge_agent.runtime.replanning import LinkCallback, Replanner, link_down
from edge_agent.runtime.results import Counters, Result
from edge_agent.runtime.user_settings import user_settings
from splitedge import errors, limits
from splitedge.protocol.messages import Plan

AnyFrame: TypeAlias = InputFrame | Path
"""A frame, or the path of a file that holds an image, a .npy array or a text."""


class Agent:
    """One model on this board, an async context manager.

    `connect` creates one from keywords, the constructor from `Settings`.

    ``progress`` is called with a status message during start-up, ``on_link`` when the link changes. ``counters``:
    continue these counts.
    """

    def __init__(
        self,
        settings: Settings,
        progress: StatusCallback = lambda _: None,
        on_link: LinkCallback = lambda *_: None,
        *,
        counters: Counters | None = None,
    ) -> None:
        self.settings, self._fingerprint = settings, config.fingerprint(settings)
        self._pipeline = FramePipeline(counters)
        self.counters, self.queue = self._pipeline.counters, self._pipeline.limit
        prepared = functools.partial(prepare, settings, self._pipeline, self.say)
        self._replanner = Replanner(settings, prepared, self.say, on_link)
        self._progress = progress
        self._state = "not started"
        self._started = time.monotonic()
        self._energy: FrameEnergy | None = None  # None: no sensor
        self._metering: asyncio.Task[None] | None = None

    @classmethod
    def connect(
        cls,
        server: str | None = None,
        model: str | None = None,
        *,
        config: str | Path | None = None,
        progress: StatusCallback = lambda _: None,
        **settings: Any,
    ) -> Agent:
        """An agent of ``server`` and ``model``, to be used in ``async with``.

        ``config``: a TOML file; None: the usual one, if it exists. ``progress``: as in `Agent`. Other keywords are
        settings by their names in the file; a table is a dict, as in ``demand={"keep": "input"}``. Keywords override
        environment variables, which override the file. Raises `errors.ConfigError`.
        """
        return cls(user_settings(server, model, config, settings), progress)

    async def __aenter__(self) -> Agent:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def ready(self) -> bool:
        """Whether frames are served: there is a plan, and its link is up if it needs one."""
        plan = self._replanner.plan
        return plan is not None and plan.link_up

    @property
    def alive(self) -> bool:
        """Whether the head works: no frame is in it for longer than `limits.HEAD_STUCK`."""
        return self._pipeline.alive

    @property
    def state(self) -> str:
        """The current activity, as a short status message."""
        plan = self._replanner.plan
        return self._state if plan is None or plan.link_up else link_down(plan)

    @property
    def plan(self) -> Plan | None:
        """The active plan, None before the first."""
        return self._replanner.plan.engine.plan if self._replanner.plan else None

    def say(self, text: str) -> None:
        """Make ``text`` the state, and report it."""
        self._state = text
        self._progress(text)

    async def start(self) -> None:
        """Become ready, or raise the error that prevents it; it may be called again."""
        await self._replanner.start()
        if (meter := await asyncio.to_thread(power.find)) is not None:
            self._energy = FrameEnergy(meter, self.queue)
            self._metering = asyncio.create_task(self._energy.run())

    async def close(self) -> None:
        """Let frames in progress end for at most `limits.DRAIN_TIMEOUT`, then stop."""
        self._state = "stopped"
        if self._metering is not None:
            self._metering.cancel()
            await asyncio.wait({self._metering})
        if self._energy is not None:
            await asyncio.to_thread(self._energy.update)
        try:
            await self._replanner.close()
        finally:
            self._pipeline.close()

    async def infer(self, frame: AnyFrame) -> Result:
        """The answer to ``frame``.

        A `Path` is a file. A `str` is a text; one that names an existing file is refused, unless it is a
        `sources.Text`.

        Raises `errors.BusyError` at once if the queue is full, `errors.InputError` for an unreadable file or a frame
        that does not fit the model, `errors.LinkError` if the answer did not come in time, and the server's own errors.
        """
        with self.counters.counting_errors():
            size = await _size(frame)
            with self.queue.slot(size):
                if isinstance(frame, Path):
                    frame = frame_of(await asyncio.to_thread(read_file, frame), str(frame), self.plan)
                result = await self._answer(frame, time.perf_counter())
        self.counters.count_answer(result)
        return result

    @overload
    def infer_many(
        self, frames: Iterable[AnyFrame] | AsyncIterable[AnyFrame], *, return_errors: Literal[False] = False
    ) -> AsyncIterator[Result]: ...
    @overload
    def infer_many(
        self, frames: Iterable[AnyFrame] | AsyncIterable[AnyFrame], *, return_errors: Literal[True]
    ) -> AsyncIterator[Result | errors.SplitEdgeError]: ...
    async def infer_many(
        self, frames: Iterable[AnyFrame] | AsyncIterable[AnyFrame], *, return_errors: bool = False
    ) -> AsyncIterator[Result | errors.SplitEdgeError]:
        """The answers to ``frames``, in their order, each as soon as it is there.

        As many frames are in progress as keep head and link busy.

        ``frames`` may block while it is read; it is read in a thread. A frame waits for room in the queue and is not
        refused. An error ends the iteration, or with ``return_errors`` takes the place of its frame's answer.
        """

        async def one(frame: AnyFrame) -> Result | errors.SplitEdgeError:
            with suppress(errors.InputError):  # `infer` raises it again, and counts it
                await self.queue.wait_for_room(await _size(frame))
            try:
                return await self.infer(frame)
            except errors.SplitEdgeError as error:
                if return_errors:
                    return error
                raise

        async with aclosing(in_order(frames, one, IN_PROGRESS)) as outcomes:
            async for _, outcome in outcomes:
                yield outcome

    def status(self) -> dict[str, Any]:
        """The fields of `/v1/status`, as JSON values; no secrets."""
        counters, replanner, plan = self.counters, self._replanner, self._replanner.plan
        return {
            "version": edge_agent.__version__,
            "ready": self.ready,
            "state": self.state,
            "server": self.settings.server,
            "model": self.settings.model,
            "settings": self._fingerprint,
            "input": None if self.plan is None else _input(self.plan),
            "uptime_s": round(time.monotonic() - self._started, 1),
            "plan": self.plan_info() or None,
            "frames": {
                "answered": counters.answered,
                "reused": counters.reused,
                "dropped": dict(counters.dropped),
                "failed": dict(counters.failed),
            },
            "queue": {"frames": self.queue.frames, "bytes": self.queue.bytes},
            "payload_bytes": counters.payload_bytes,
            "saved_bytes": counters.saved_bytes,
            "reconnects_total": replanner.retiring.reconnects + (plan.reconnects if plan else 0),
            "plans_total": replanner.plans_total,
            "energy": status.energy_status(self._energy, counters),
            "link": status.link_status(replanner, self.settings.link.controller),
        }

    def gauges(self) -> dict[str, float]:
        """Current figures by metric name."""
        return status.gauges(self.status())

    def plan_info(self) -> dict[str, str]:
        """The active plan as short texts; empty without one."""
        return status.plan_info(self._replanner.plan)

    async def _answer(self, frame: InputFrame, start: float) -> Result:
        """The answer, from a new plan if the server no longer knows the active one."""
        plan = self._replanner.plan
        if plan is None:
            raise errors.not_ready(self.state)
        try:
            return await self._run(plan, frame, start)
        except errors.UnknownPlanError:
            return await self._run(await self._replanner.replace(plan), frame, start)
        except errors.SplitEdgeError:
            if plan.failed:
                self._replanner.renew_soon()
            raise

    async def _run(self, plan: AgentPlan, frame: InputFrame, start: float) -> Result:
        """Run ``frame``, which arrived at ``start`` (`time.perf_counter`), through the pipeline of ``plan``."""
        age_ms = self.settings.link.max_age_ms  # None: only the stream limits a frame's age
        left_s = None if age_ms is None else age_ms / 1e3 - (time.perf_counter() - start)
        deadline = None if left_s is None else asyncio.get_running_loop().time() + left_s
        late_s = (age_ms or limits.FRAME_AGE * 1e3) / 2e3  # in the queue: half the age at which it is dropped
        choose = functools.partial(plan.choose, late_s)
        encode = functools.partial(plan.engine.process, frame, choose, plan.compare)
        passage = await self._pipeline.run(plan, encode, deadline, start)
        if passage.alone and passage.encoded.reused is None and self._pipeline.times is not None:
            excess_ms = plan.learn(passage)
            if excess_ms is not None:
                self._pipeline.times.add_sending(excess_ms)
        if plan.decodes:
            return await asyncio.to_thread(plan.result, passage, self.settings.topk)
        return plan.result(passage, self.settings.topk)


async def _size(frame: AnyFrame) -> int:
    """The memory that ``frame`` needs, in bytes.

    Raises `errors.InputError` for a missing file, and for a text that names a file.
    """
    if isinstance(frame, str) and not isinstance(frame, Text):
        await asyncio.to_thread(refuse_file_name, frame)
    return await asyncio.to_thread(file_bytes, frame) if isinstance(frame, Path) else frame_bytes(frame)


def _input(plan: Plan) -> dict[str, Any]:
    """What a frame of the plan's model is, for `api.client.FrameForm`."""
    kind = "text" if plan.tokenizer is not None else plan.preprocess.kind
    return {"kind": kind, "shape": plan.preprocess.shape}
