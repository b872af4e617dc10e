"""The steps from settings to a plan, its segment and its stream. Each raises the error that stands in the way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

import device_profiles
from device_profiles import DeviceProfile, machine, schema
from edge_agent import config, errors, limits
from edge_agent.cache import Cache
from edge_agent.config import Settings
from edge_agent.engine import check_ladder
from edge_agent.head import upgrade
from edge_agent.link.client import FrameStream
from edge_agent.link.http import Base, ServerClient, tls_context
from edge_agent.protocol.messages import LinkEstimate, Plan, PlanRequest
from edge_agent.timings import Timings
from kernels import jit

Say = Callable[[str], object]


def client(settings: Settings) -> ServerClient:
    """The server's HTTP interface; use it as an async context manager."""
    ca = _path(settings.ca) if settings.ca else None
    token = config.token(settings) or None
    return ServerClient(settings.server, token, ssl=tls_context(ca), allow_insecure=settings.allow_insecure)


def stream(settings: Settings, plan: Plan, window: int) -> FrameStream:
    """The stream for ``plan``'s frames; use it as an async context manager."""
    ca = _path(settings.ca) if settings.ca else None
    away = settings.demand.max_away_s
    return FrameStream(
        settings.server, config.token(settings) or None, plan.id, topk=settings.topk, window=window,
        max_away_s=away, frame_age_s=max(limits.FRAME_AGE, away), ssl=tls_context(ca), allow_insecure=settings.allow_insecure,
    )  # fmt: skip


def cache_directory(settings: Settings) -> Path:
    """Where this agent keeps its files."""
    return _path(settings.cache_dir) if settings.cache_dir else jit.cache_base()


async def profile(settings: Settings, say: Say) -> DeviceProfile:
    """The profile that the settings name, else the one measured once for these kernels, else a quick measurement, which is kept.

    A profile that was kept tells the speeds of then and the memory, clock and throttling of now; one that the settings name is taken as it is, and
    refused with `errors.ConfigError` if nobody measured it.
    Measurements on more threads than the settings allow are left out: `predict.best_threads` then is what a head may run on.
    """
    found = await _profile(settings, say)
    if settings.threads:
        found.kernels = [kernel for kernel in found.kernels if kernel.threads <= settings.threads]
    return found


async def _profile(settings: Settings, say: Say) -> DeviceProfile:
    if settings.profile:
        found = await asyncio.to_thread(device_profiles.load, _path(settings.profile))
        schema.require_measured(found)
        return found
    path = _of_this_build(settings, "profile")
    try:
        return await asyncio.to_thread(_refreshed, device_profiles.load(path))
    except errors.ConfigError:  # not there, or of another version of splitedge: measured anew
        Cache(path.parent)  # the folder is there and can be written, or an error before the measurement
        say("measuring this machine")
    measured = await asyncio.to_thread(device_profiles.measure, quick=True)
    await asyncio.to_thread(device_profiles.save, measured, path)
    return measured


def timings(settings: Settings) -> Timings:
    """What heads took here with these kernels. Not kept beside a profile that the settings name, which may be another machine's."""
    return Timings(None if settings.profile else _of_this_build(settings, "timings"))


def _of_this_build(settings: Settings, name: str) -> Path:
    """The file in the cache folder that holds measurements of these kernels."""
    return cache_directory(settings) / f"{name}-{jit.CACHE_DIR.name.removeprefix('kernels-')}.json"


def _refreshed(profile: DeviceProfile) -> DeviceProfile:
    now, gaps = machine.machine(profile.machine.isa)
    condition, more = machine.condition()
    return msgspec.structs.replace(
        profile, machine=now, condition=condition, unmeasured=profile.unmeasured | gaps | more
    )


async def link(server: ServerClient, given: Mapping[str, float], say: Say) -> LinkEstimate:
    """The link with the values of ``given``, by the names of `LinkEstimate`; those that are not given are measured."""
    if len(given) == len(LinkEstimate.__struct_fields__):
        return LinkEstimate(**given)
    say("measuring the link")
    return msgspec.structs.replace(await server.measure_link(), **given)


async def plan(
    server: ServerClient,
    settings: Settings,
    profile: DeviceProfile,
    held: list[str],
    measured: dict[str, float],
    say: Say,
    estimate: LinkEstimate | None = None,
) -> Plan:
    """Ask for a plan, for the link ``estimate`` or, without one, for the link as it is measured now. ``measured``: what heads took here, by segment.

    Raises `errors.ConfigError` if no model is set, `errors.PlanError` for a plan of another model, or one whose ladder contradicts itself.
    """
    if not settings.model:
        raise errors.ConfigError(
            "no model is chosen; give `--model` or set `model`, `edge-agent models` lists them", key="model"
        )
    estimate = estimate or await link(server, {}, say)
    say("asking for a plan")
    answer = await server.plan(
        PlanRequest(settings.model, device_profiles.to_dict(profile), estimate, settings.demand, held, measured)
    )
    if answer.model != settings.model:
        raise errors.PlanError(
            f"the server answered with a plan for another model than {settings.model}; upgrade the older side"
        )
    check_ladder(answer, settings.demand)
    return answer


async def fetch(server: ServerClient, cache: Cache, plan: Plan, say: Say) -> bytes:
    """The segment of ``plan``, from the cache or the server, which sends what a held one of the same model lacks."""
    say("fetching the segment")
    base = await asyncio.to_thread(_base, cache, plan)
    path = await server.fetch_segment(plan.segment, cache.directory, base)
    data = await asyncio.to_thread(cache.read, path)
    await asyncio.to_thread(cache.prune)
    return data


def _base(cache: Cache, plan: Plan) -> Base | None:
    """What is held that the segment of ``plan`` may be made of."""
    held = cache.nearest(plan.model, plan.cut.layer)
    if held is None:
        return None
    return Base(held.stem, lambda patch: upgrade.apply(cache.read(held), patch, plan.segment.sha256))


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser raises for a user without a home)
