"""From settings to a plan that serves: profile, link, plan, downloads, warm head, open stream.

Each step raises the error that prevents it.
"""

from __future__ import annotations

import asyncio
import time

from edge_agent import config
from edge_agent.config import Settings
from edge_agent.planning import device, disk_cache, downloads, dry_run_store, peers, plan_request, streams
from edge_agent.planning.disk_cache import DiskCache
from edge_agent.planning.measured_times import SendingModel
from edge_agent.planning.peers import StatusCallback
from edge_agent.runtime.agent_plan import AgentPlan
from edge_agent.runtime.answer_reuse import AnswerReuse
from edge_agent.runtime.engine import Engine
from edge_agent.runtime.pipeline import FramePipeline
from splitedge.link.adaptation import Adaptation, Goal
from splitedge.protocol.messages import LinkEstimate, MeasuredTimes, Plan


async def prepare(
    settings: Settings, pipeline: FramePipeline, say: StatusCallback, known: LinkEstimate | None = None
) -> AgentPlan:
    """A new plan that is ready for frames. The link is measured, unless it is ``known`` from a stream's adaptation."""
    cache = DiskCache(disk_cache.folder(settings))
    config.require_model(settings)
    profile = await device.profile(settings, say)
    async with peers.client(settings) as server:
        link, since = known or await plan_request.measure_link(server, {}, say), time.monotonic()
        measured = _measured(settings, pipeline, link_changed=known is not None)
        dry_run = await dry_run_store.dry_run(server, settings, profile, measured.head_ms, say)
        request = plan_request.describe(settings, profile, link, held=cache.held(), measured=measured, dry_run=dry_run)
        plan = await plan_request.request_plan(server, settings, request, say)
        data = await downloads.segment(server, cache, plan, say)
        tokenizer = await downloads.tokenizer(server, cache, plan, say)
    say("preparing the head")
    threads = device.threads(profile)
    engine = await asyncio.to_thread(Engine, plan, data, settings.demand, threads, tokenizer)
    model = SendingModel(plan, profile, link, since) if known is None and not settings.chain.next else None
    made = await _open(settings, engine, link, model, say)
    say("ready")
    return made


async def _open(
    settings: Settings, engine: Engine, link: LinkEstimate, sending: SendingModel | None, say: StatusCallback
) -> AgentPlan:
    """The plan of ``engine`` with its stream open, if it has one."""
    plan = engine.plan
    if plan.mode == "device":
        return AgentPlan(engine, None)
    goal = Goal(settings.demand.min_rate_fps, settings.demand.max_latency_ms)
    adaptation = adaptation_of(settings, plan, streams.planned_link(plan) or link, goal)
    stream = await streams.open_stream(settings, plan, adaptation, say)
    reuse = AnswerReuse(settings.reuse) if settings.reuse.threshold else None
    return AgentPlan(engine, stream, adaptation, reuse, sending)


def adaptation_of(settings: Settings, plan: Plan, link: LinkEstimate, goal: Goal) -> Adaptation:
    """The adaptation of a stream for ``plan``, with the controller that the settings name."""
    chosen = settings.link
    return Adaptation(plan, link, goal, chosen.controller, chosen.bits or None)


def _measured(settings: Settings, pipeline: FramePipeline, *, link_changed: bool) -> MeasuredTimes:
    """The measured times.

    They are saved too, since an agent may be killed at any time. A changed link makes sending times worthless.
    """
    times = pipeline.open_times(settings)
    if link_changed:
        times.forget_sending()
    times.save()
    return times.medians()
