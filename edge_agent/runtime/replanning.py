"""The active plan and its replacement. A new plan is prepared while the old one serves.

A plan is replaced when

- the server does not know it any more,
- it is about to expire,
- its stream failed with an error that no retry cures,
- the link has changed lastingly (`link.adaptation`), or
- frames take longer or shorter than it predicts, a few times until a plan expires.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal, TypeAlias

from edge_agent.config import Settings
from edge_agent.planning.peers import StatusCallback
from edge_agent.runtime.agent_plan import AgentPlan
from splitedge import errors, limits
from splitedge.backoff import Backoff
from splitedge.link.adaptation import Adaptation
from splitedge.link.endpoint import heals
from splitedge.protocol.messages import LinkEstimate

Prepare: TypeAlias = Callable[[LinkEstimate | None], Awaitable[AgentPlan]]
"""Prepares a new plan. It measures the link unless it gets an estimate."""

Reason = Literal["the changed link", "the measured frame times"]
LinkEvent = Literal["link-down", "link-up", "link-slow", "link-enough"]
LinkCallback: TypeAlias = Callable[[str, LinkEvent], object]
"""Called with a message and its kind when the link goes down, comes back, carries too little, or enough again."""


class RetiringPlans:
    """Replaced plans that still answer their last frames. Totals include the plans that are closed."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], AgentPlan] = {}
        self._reconnects = self._overloads = 0  # of closed plans

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def reconnects(self) -> int:
        return self._reconnects + sum(plan.reconnects for plan in self._tasks.values())

    @property
    def overloads(self) -> int:
        return self._overloads + sum(plan.overloads for plan in self._tasks.values())

    def add(self, plan: AgentPlan) -> None:
        """Close ``plan`` once its frames have ended."""
        task = asyncio.create_task(plan.retire())
        self._tasks[task] = plan
        task.add_done_callback(self._closed)

    async def finish(self) -> None:
        """Wait until every plan is closed. Raises the first error of one."""
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if ended is not None:
                raise ended

    def _closed(self, task: asyncio.Task[None]) -> None:
        plan = self._tasks.pop(task)
        self._reconnects += plan.reconnects
        self._overloads += plan.overloads


class Replanner:
    """Keeps ``plan`` active.

    ``say`` is called with status messages.
    """

    def __init__(self, settings: Settings, prepare: Prepare, say: StatusCallback, on_link: LinkCallback) -> None:
        self.plan: AgentPlan | None = None
        self.retiring = RetiringPlans()
        self.plans_total = 0
        self._settings, self._prepare, self._say, self._on_link = settings, prepare, say, on_link
        self._link_up = self._link_suffices = True  # as last reported
        self._planned_at = 0.0
        self._mismatch_replans = limits.MISMATCH_REPLANS  # left until a plan expires
        self._due = asyncio.Event()  # a new plan is needed before the old one expires
        self._replacing: asyncio.Task[None] | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self) -> None:
        """Prepare the first plan, or raise the error that prevents it; it may be called again."""
        self._use(await self._prepare(None))
        self._loops = [asyncio.create_task(self._renew()), asyncio.create_task(self._watch())]

    async def close(self) -> None:
        """Let frames in progress end for at most `limits.DRAIN_TIMEOUT`, then close every stream.

        Raises the first error of one.
        """
        self._closing = True
        tasks = [*self._loops, *([self._replacing] if self._replacing else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)  # a plan that is ready at this moment comes into force, or is never opened
        plan, self.plan = self.plan, None
        if plan is not None:
            self.retiring.add(plan)
        await self.retiring.finish()

    def renew_soon(self) -> None:
        """Ask for a new plan; does not wait for it."""
        self._due.set()

    async def replace(self, old: AgentPlan) -> AgentPlan:
        """Put a new plan in the place of ``old``, and return it. Concurrent callers share one attempt and its error."""
        if self._closing:
            raise _stopped()
        if self.plan is old and self._replacing is None:
            self._replacing = asyncio.create_task(self._replace(old))
            self._replacing.add_done_callback(self._replaced)
        if (task := self._replacing) is not None:
            await asyncio.wait({task})
            if task.cancelled():
                raise _stopped()
            task.result()
        if self.plan is None:
            raise _stopped()
        return self.plan

    async def _replace(self, old: AgentPlan) -> None:
        adaptation, known = old.adaptation, None
        chain = bool(self._settings.chain.next)  # whose links are all measured again
        if adaptation is not None and adaptation.changed and not chain:
            known = adaptation.estimate(time.monotonic())
        self._use(await self._prepare(known))
        self.retiring.add(old)

    def _replaced(self, task: asyncio.Task[None]) -> None:
        self._replacing = None
        if not task.cancelled():
            task.exception()  # marks it as seen, even if every caller was cancelled meanwhile

    def _use(self, plan: AgentPlan) -> None:
        """Put ``plan`` into force."""
        self.plan = plan
        self.plans_total += 1
        self._planned_at = time.monotonic()
        if plan.stream is not None:
            plan.stream.on_state = self._link_changed
        self._link_changed()

    def _link_changed(self) -> None:
        """Report that the link went down or came back.

        A lost link ends answer reuse: the server may be another one afterwards.
        """
        plan = self.plan
        if plan is None:
            return
        if plan.reuse is not None and not plan.link_up:
            plan.reuse.forget()
        if plan.link_up != self._link_up:
            self._link_up = plan.link_up
            if self._link_up:
                self._on_link("the link to the server is back", "link-up")
            else:
                self._on_link(link_down(plan), "link-down")
        if plan.failed:
            self._due.set()  # callers that check `ready` send no frame that would ask for a new plan

    # --- reasons for a new plan

    async def _renew(self) -> None:
        """Replace the plan before it expires, and when its stream failed."""
        backoff = Backoff()
        while (plan := self.plan) is not None:
            await self._until_due(plan)
            current = self.plan
            if current is None or (current is not plan and not current.failed):
                continue  # the agent is closing, or the plan was replaced meanwhile
            while self.plan is current:
                try:
                    await self.replace(current)
                    backoff.reset()
                    self._mismatch_replans = limits.MISMATCH_REPLANS
                except errors.SplitEdgeError as error:
                    self._say(f"no new plan, the old one stays active: {error.message}")
                    # Each attempt loads the link.
                    await asyncio.sleep(backoff.next() if heals(error) else limits.REPLAN_LEAST)

    async def _until_due(self, plan: AgentPlan) -> None:
        """Wait until ``plan`` is about to expire, or a new one is needed earlier."""
        # A board's clock may be years off, so the time left has bounds.
        left = 0.9 * (plan.engine.plan.expires_unix - time.time())
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(left, limits.REPLAN_LEAST), limits.PLAN_LIFETIME)):
                await self._due.wait()
        self._due.clear()

    async def _watch(self) -> None:
        """Report when the link carries too little or enough again, and replace the plan for a `Reason`."""
        while True:
            await asyncio.sleep(limits.LINK_PERIOD)
            plan = self.plan
            if plan is None or not plan.link_up:
                continue
            self._report_capacity(plan.adaptation)
            reason = self._reason(plan)
            if reason is None or not self._settings.link.replan:
                continue
            self._planned_at = time.monotonic()
            try:
                await self.replace(plan)
                self._mismatch_replans -= reason == "the measured frame times"
            except errors.SplitEdgeError as error:
                self._say(f"no new plan for {reason}, the old one stays active: {error.message}")

    def _reason(self, plan: AgentPlan) -> Reason | None:
        """Why ``plan`` should be replaced now."""
        age = time.monotonic() - self._planned_at
        if plan.adaptation is not None and plan.adaptation.changed and age >= limits.REPLAN_LEAST:
            return "the changed link"
        if self._mismatch_replans > 0 and age >= limits.LEARNING_TIME and plan.mispredicted:
            return "the measured frame times"
        return None

    def _report_capacity(self, adaptation: Adaptation | None) -> None:
        if adaptation is None or adaptation.holds == self._link_suffices:
            return
        self._link_suffices = adaptation.holds
        if adaptation.holds:
            self._on_link("the link carries enough again", "link-enough")
            return
        rate = adaptation.estimate(time.monotonic()).uplink_mbps
        self._on_link(
            f"the link carries {rate:.2g} Mbit/s, too little even for the cheapest codec of the plan; frames queue, "
            "and are dropped when they age out",
            "link-slow",
        )


def _stopped() -> errors.LinkLostError:
    return errors.LinkLostError("the agent stopped before the frame was answered; send it again", reason="stopped")


def link_down(plan: AgentPlan) -> str:
    """The status message while the link of ``plan`` is down."""
    error = plan.stream.error if plan.stream is not None else None
    return "the link to the server is down" + (f": {error.message}" if error else "")
