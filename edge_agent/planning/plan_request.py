"""Ask the server for a plan, and collect what the request describes: the link, and the boards of a chain."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

import device_profiles
from device_profiles import DeviceProfile
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.planning import device, dry_run_store, peers
from edge_agent.planning.peers import Progress
from edge_agent.planning.plan_check import check_ladder
from splitedge import errors, limits
from splitedge.link.http_client import ServerClient
from splitedge.protocol.messages import (
    ChainDevice,
    ChainRequest,
    DryRun,
    LinkEstimate,
    MeasuredTimes,
    Plan,
    PlanRequest,
)


async def request_plan(
    server: ServerClient,
    settings: Settings,
    profile: DeviceProfile,
    link: LinkEstimate,
    *,
    held: list[str],
    measured: MeasuredTimes,
    dry_run: DryRun | None,
    say: Progress,
) -> Plan:
    """The server's plan for this board or, with `chain.next`, for the chain that begins here.

    ``held``: SHA-256 of the segments in the cache. ``measured``: frame times of this board. ``dry_run``: as `dry_run_store.dry_run` returns it.

    Raises `errors.ConfigError` if no model is set, and `errors.PlanError` for a plan of another model or with an inconsistent ladder.
    """
    config.require_model(settings)
    if settings.chain.next:
        plan = await _chain_plan(server, settings, profile, link, held, measured, say)
    else:
        say("asking for a plan")
        described, times = device_profiles.to_dict(profile), measured.to_wire()
        plan = await server.plan(
            PlanRequest(
                model=settings.model,
                profile=described,
                link=link,
                demand=settings.demand,
                held=held,
                measured=times,
                dry_run=dry_run,
            )
        )
    if plan.model != settings.model:
        raise errors.PlanError(
            f"the server answered with a plan for another model than {settings.model}; upgrade the older side",
            reason="other-model",
        )
    check_ladder(plan, settings.demand)
    if (
        dry_run is not None and dry_run.bundle != plan.bundle
    ):  # the model was replaced: the next request needs a new dry run
        await asyncio.to_thread(dry_run_store.forget, settings, profile)
    return plan


async def measure_link(server: ServerClient, given: Mapping[str, float], say: Progress) -> LinkEstimate:
    """The link to ``server``. ``given`` values, by the field names of `LinkEstimate`, replace measured ones."""
    if len(given) == len(LinkEstimate.__struct_fields__):
        return LinkEstimate(**given)
    say("measuring the link")
    return msgspec.structs.replace(await server.measure_link(), **given)


async def chain_devices(settings: Settings, own: ChainDevice, before: int, say: Progress) -> list[ChainDevice]:
    """``own`` with its link to the next board, then all boards behind it as they describe themselves.

    ``before``: the number of boards in front of ``own``. Raises `errors.ProtocolError` for a chain that is too long or has a loop.
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


async def _chain_plan(
    server: ServerClient,
    settings: Settings,
    profile: DeviceProfile,
    link: LinkEstimate,
    held: list[str],
    measured: MeasuredTimes,
    say: Progress,
) -> Plan:
    """The first board's plan of a chain."""
    described = device_profiles.to_dict(profile)
    own = ChainDevice(
        device=device.name(settings),
        profile=described,
        next=None,
        server=link,
        held=held,
        measured=measured.to_wire(),
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
        )
    )
