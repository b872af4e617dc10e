"""Ask the server for a plan, and collect what the request describes: the link, and the boards of a chain."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

import device_profiles
from device_profiles import DeviceProfile
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.planning import device, dry_run_store, peers
from edge_agent.planning.peers import StatusCallback
from edge_agent.planning.plan_check import check_ladder
from splitedge import errors, limits
from splitedge.codec import image_file
from splitedge.head.segment import OPERATORS
from splitedge.link.http_client import ServerClient
from splitedge.protocol.messages import (
    OUTPUTS_PROTOCOL,
    TASKS,
    ChainDevice,
    ChainRequest,
    DryRun,
    LinkEstimate,
    MeasuredTimes,
    Plan,
    PlanRequest,
)


def describe(
    settings: Settings,
    profile: DeviceProfile,
    link: LinkEstimate,
    *,
    held: Sequence[str] = (),
    measured: MeasuredTimes | None = None,
    dry_run: DryRun | None = None,
) -> PlanRequest:
    """The request for a plan of this device's model."""
    return PlanRequest(
        model=settings.model,
        profile=device_profiles.to_dict(profile),
        link=link,
        demand=settings.demand,
        held=list(held),
        measured=measured.to_wire() if measured else {},
        dry_run=dry_run,
        operators=sorted(OPERATORS),
        tasks=[*TASKS, *image_file.available()],
    )


async def request_plan(server: ServerClient, settings: Settings, request: PlanRequest, say: StatusCallback) -> Plan:
    """The server's answer to ``request`` or, with `chain.next`, its plan for the chain that begins here.

    Raises `errors.ConfigError` if no model is set, and `errors.PlanError` for a plan of another model or with an
    inconsistent ladder.
    """
    config.require_model(settings)
    if settings.chain.next:
        plan = await _request_chain(server, settings, request, say)
    else:
        say("asking for a plan")
        plan = await server.plan(request)
    if plan.model != settings.model:
        raise errors.PlanError(
            f"the server answered with a plan for another model than {settings.model}; upgrade the older side",
            reason="other-model",
        )
    check_ladder(plan, settings.demand)
    _check_output(plan, settings.topk)
    if request.dry_run is not None and request.dry_run.bundle != plan.bundle:
        # The model was replaced: the next request needs a new dry run.
        await asyncio.to_thread(dry_run_store.store(settings).remove, request.dry_run.bundle)
    return plan


def _check_output(plan: Plan, topk: int) -> None:
    """Raise `errors.PlanError` if ``topk`` is 0 and the server does not tell the shape of a complete output."""
    if plan.protocol < OUTPUTS_PROTOCOL and not topk:
        raise errors.PlanError(
            f"the server uses protocol {plan.protocol}, which does not describe complete outputs; upgrade splitedge on "
            "the server, or ask for classes (`topk`)",
            reason="protocol-output",
        )


async def measure_link(server: ServerClient, given: Mapping[str, float], say: StatusCallback) -> LinkEstimate:
    """The link to ``server``. ``given`` values, by the field names of `LinkEstimate`, replace measured ones."""
    if len(given) == len(LinkEstimate.__struct_fields__):
        return LinkEstimate(**given)
    say("measuring the link")
    return msgspec.structs.replace(await server.measure_link(), **given)


async def chain_devices(settings: Settings, own: ChainDevice, before: int, say: StatusCallback) -> list[ChainDevice]:
    """``own`` with its link to the next board, then all boards behind it as they describe themselves.

    ``before``: the number of boards in front of ``own``. Raises `errors.ProtocolError` for a chain that is too long or
    has a loop.
    """
    if not settings.chain.next:
        return [own]
    async with peers.next_stage(settings) as following:
        say("asking the next boards")
        found = await following.stages(before + 1)
        link = await measure_link(following, {}, say)
    if before + 1 + len(found) > limits.MAX_STAGES:
        raise chain_too_long()
    return [msgspec.structs.replace(own, next=link), *found]


def chain_too_long() -> errors.ProtocolError:
    """The error for a chain of more than `limits.MAX_STAGES` boards, and for a loop."""
    return errors.ProtocolError(
        f"the chain has more than {limits.MAX_STAGES} boards or contains a loop; correct `chain.next`",
        reason="chain-length",
    )


async def _request_chain(server: ServerClient, settings: Settings, request: PlanRequest, say: StatusCallback) -> Plan:
    """The first board's plan of a chain."""
    own = ChainDevice(
        device=device.name(settings),
        profile=request.profile,
        next=None,
        server=request.link,
        held=request.held,
        measured=request.measured,
        operators=request.operators,
    )
    devices, chain = await chain_devices(settings, own, 0, say), settings.chain
    say("asking for a plan")
    return await server.chain(
        ChainRequest(
            model=settings.model,
            devices=devices,
            demand=settings.demand,
            objective=chain.objective,
            exact=chain.exact,
            spread=chain.spread,
            tasks=TASKS,
        )
    )
