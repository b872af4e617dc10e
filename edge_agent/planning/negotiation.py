"""The steps from settings to a plan, its segment and its stream. Each raises the error that stands in the way."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

import device_profiles
from device_profiles import DeviceProfile, machine, schema
from device_profiles.predict import best_threads
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.planning import dry_run as rehearsing
from edge_agent.planning import peers
from edge_agent.planning.disk_cache import Cache
from edge_agent.planning.dry_run import Kept, Rehearsals
from edge_agent.planning.measured_times import Timings
from edge_agent.runtime.engine import check_ladder
from kernels import jit
from splitedge import errors, limits
from splitedge.head import answers, text, upgrade
from splitedge.head.text import Tokenizer
from splitedge.link.adaptation import Adaptation
from splitedge.link.http_client import Base, ServerClient, tls_context
from splitedge.link.stream_client import FrameStream
from splitedge.protocol.messages import ChainDevice, ChainRequest, LinkEstimate, Plan, PlanRequest, Rehearsal

_log = logging.getLogger(__name__)

Say = Callable[[str], object]


def stream(
    settings: Settings, plan: Plan, window: int, adaptation: Adaptation | None = None, topk: int | None = None
) -> FrameStream:
    """The stream for ``plan``'s frames, to the server or, in a chain, to the next board; ``adaptation`` is told of them. An async context manager.

    ``topk``: that of the settings unless given.
    """
    downstream = plan.stage is not None and bool(plan.stage.downstream)
    url, token, ca = peers.next_address(settings) if downstream else peers.server_address(settings)
    away = settings.demand.max_away_s
    return FrameStream(
        url, token, plan.id, topk=answers.classes(plan.output, settings.topk if topk is None else topk), window=window,
        max_away_s=away, frame_age_s=max(limits.FRAME_AGE, away), ssl=tls_context(ca), allow_insecure=settings.allow_insecure,
        adaptation=adaptation,
    )  # fmt: skip


async def open_stream(
    settings: Settings, plan: Plan, window: int, adaptation: Adaptation, say: Say, topk: int | None = None
) -> FrameStream:
    """`stream`, open on the other side too, or the error that stands in the way; whoever calls this closes it."""
    say("opening the stream")
    opened = await stream(settings, plan, window, adaptation, topk).__aenter__()
    try:
        await opened.ready()
    except BaseException as error:
        await opened.__aexit__(type(error), error, None)
        raise
    return opened


def own_link(plan: Plan) -> LinkEstimate | None:
    """The link that the board of a chain's ``plan`` sends over, as the plan was made for it; None of any other plan, or where nothing is sent."""
    route = [] if plan.stage is None else [one for one in plan.stage.route if one.device == plan.stage.device]
    if not route or not route[0].sending_ms > 0:
        return None
    mbps = route[0].payload_bytes * 8e-3 / route[0].sending_ms
    return LinkEstimate(route[0].rtt_ms, mbps, mbps)


def cache_directory(settings: Settings) -> Path:
    """Where this agent keeps its files."""
    return config.path_of(settings.cache_dir) if settings.cache_dir else jit.cache_base()


async def profile(settings: Settings, say: Say) -> DeviceProfile:
    """The profile that the settings name, else the one measured once for these kernels, else a quick measurement, which is kept.

    A measurement takes minutes, so the server and the next board must answer before it begins: raises as `peers.check` does.

    A profile that was kept tells the speeds of then and the memory, clock and throttling of now; one that the settings name is taken as it is, and
    refused with `errors.ConfigError` if nobody measured it.
    Measurements on more threads than the settings allow are left out: `predict.best_threads` then is what a head may run on.
    """
    found = await _profile(settings, say)
    if settings.threads:
        found.kernels = [kernel for kernel in found.kernels if kernel.threads <= settings.threads]
    return found


def threads(profile: DeviceProfile) -> int:
    """On how many threads a head runs here: the profile may be another machine's."""
    return min(best_threads(profile), machine.usable_threads())


def named_profile(settings: Settings) -> DeviceProfile:
    """The profile that the settings name. Raises `errors.ConfigError` if it cannot be read, or if nobody measured it."""
    found = device_profiles.load(config.path_of(settings.profile))
    schema.require_measured(found)
    return found


async def _profile(settings: Settings, say: Say) -> DeviceProfile:
    if settings.profile:
        return await asyncio.to_thread(named_profile, settings)
    path = _of_this_build(settings, "profile")
    try:
        return await asyncio.to_thread(_refreshed, device_profiles.load(path))
    except errors.ConfigError:  # not there, or of another version of splitedge: measured anew
        Cache(path.parent)  # the folder is there and can be written, or an error before the measurement
        await peers.check(settings)
        say("measuring this machine (only once; takes one to two minutes)")
    measured = await asyncio.to_thread(device_profiles.measure, quick=True)
    await asyncio.to_thread(device_profiles.save, measured, path)
    return measured


def timings(settings: Settings) -> Timings:
    """What heads took here with these kernels. Not kept beside a profile that the settings name, which may be another machine's."""
    return Timings(None if settings.profile else _of_this_build(settings, "timings"), settings.server)


async def rehearsal(
    server: ServerClient, settings: Settings, profile: DeviceProfile, measured: dict[str, float], say: Say
) -> Rehearsal | None:
    """What the operators of the model take here, found once and kept until frames contradict it: ``measured`` is what heads took here, by segment. None where that cannot be known: for a profile that the settings name, which may
    be another machine's, in a chain, whose boards have parts of the model, for a server without outlines, or a model beyond this board's memory.
    """
    if settings.profile or settings.chain.next or not settings.model:
        return None
    kept, key = rehearsals(settings), _rehearsed_as(settings, profile)
    operators = await asyncio.to_thread(Cache(cache_directory(settings)).operators, settings.model)
    known = kept.get(key)
    if known is not None and not rehearsing.contradicted(known, measured, operators):
        return known.rehearsal
    try:
        outline = await server.outline(settings.model)
        if rehearsing.memory_bytes(outline) > profile.machine.memory_available_bytes:
            return None
        say("timing the model on this board")
        found = await asyncio.to_thread(rehearsing.rehearse, outline, threads(profile))
    except (
        errors.ProtocolError,
        errors.SegmentError,
    ) as error:  # another version's server, or a header that is none: the profile does
        _log.info("the model is not rehearsed: %s", error)
        return None
    await asyncio.to_thread(kept.put, key, Kept(found, measured))
    return found


def rehearsals(settings: Settings) -> Rehearsals:
    """What models' operators took here with these kernels."""
    return Rehearsals(_of_this_build(settings, "rehearsals"))


def _rehearsed_as(settings: Settings, profile: DeviceProfile) -> str:
    return f"{settings.model} on {threads(profile)}"


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


def device_name(settings: Settings) -> str:
    """The name of this board in plans for chains: made up once, and kept in the cache folder. Raises `errors.StoreError`."""
    path = Cache(cache_directory(settings)).directory / "device-name"
    try:
        return path.read_text("ascii").strip()[: limits.MAX_NAME] or _new_name(path)
    except FileNotFoundError:
        return _new_name(path)
    except (OSError, UnicodeDecodeError) as error:
        raise errors.StoreError(f"{path} cannot be read ({error}); remove it") from error


def _new_name(path: Path) -> str:
    name = secrets.token_hex(16)
    try:
        part = path.with_suffix(".part")
        part.write_text(name, "ascii")
        part.replace(path)
    except OSError as error:
        raise errors.StoreError(f"{path} cannot be written ({error.strerror}); make it writable") from error
    return name


async def boards(settings: Settings, own: ChainDevice, before: int, say: Say) -> list[ChainDevice]:
    """``own`` with its link to the next board, and all boards from there on, as they describe themselves. ``before``: how many come before ``own``.

    Raises `errors.ProtocolError` for a chain that is too long or leads back to itself.
    """
    if not settings.chain.next:
        return [own]
    async with peers.next_stage(settings) as further:
        say("asking the next boards")
        found = await further.stages(before + 1)
        estimate = await link(further, {}, say)
    if before + 1 + len(found) > limits.MAX_STAGES:
        raise errors.ProtocolError(
            f"the chain has more than {limits.MAX_STAGES} boards or leads back to itself; correct `chain.next`"
        )
    return [msgspec.structs.replace(own, next=estimate), *found]


async def plan(
    server: ServerClient,
    settings: Settings,
    profile: DeviceProfile,
    held: list[str],
    measured: dict[str, float],
    say: Say,
    estimate: LinkEstimate | None = None,
    rehearsed: Rehearsal | None = None,
) -> Plan:
    """Ask for a plan, for the link ``estimate`` or, without one, for the link as it is measured now. ``measured``: what heads took here, by segment;
    ``rehearsed``: as `rehearsal` found.

    Raises `errors.ConfigError` if no model is set, `errors.PlanError` for a plan of another model, or one whose ladder contradicts itself.
    """
    config.require_model(settings)
    estimate = estimate or await link(server, {}, say)
    known = device_profiles.to_dict(profile)
    if settings.chain.next:
        own = ChainDevice(device_name(settings), known, None, estimate, held, measured)
        devices, chain = await boards(settings, own, 0, say), settings.chain
        say("asking for a plan")
        answer = await server.chain(
            ChainRequest(settings.model, devices, settings.demand, chain.objective, chain.exact, chain.spread)
        )
    else:
        say("asking for a plan")
        answer = await server.plan(
            PlanRequest(settings.model, known, estimate, settings.demand, held, measured, rehearsed)
        )
    if answer.model != settings.model:
        raise errors.PlanError(
            f"the server answered with a plan for another model than {settings.model}; upgrade the older side"
        )
    check_ladder(answer, settings.demand)
    if rehearsed is not None and rehearsed.bundle != answer.bundle:  # the model was replaced: the next plan knows
        await asyncio.to_thread(rehearsals(settings).put, _rehearsed_as(settings, profile), None)
    return answer


async def fetch(server: ServerClient, cache: Cache, plan: Plan, say: Say) -> bytes:
    """The segment of ``plan``, from the cache or the server, which sends what a held one of the same model lacks."""
    say("downloading the segment")
    base = await asyncio.to_thread(_base, cache, plan)
    path = await server.fetch_segment(plan.segment, cache.directory, base)
    data = await asyncio.to_thread(cache.read, path)
    await asyncio.to_thread(cache.prune)
    return data


async def tokenizer(server: ServerClient, cache: Cache, plan: Plan, say: Say) -> Tokenizer | None:
    """The tokenizer of ``plan``, from the cache or the server. None where it has none, or its library is not here: then token ids are taken, texts are not.

    Raises `errors.SegmentError` for a file that is not the plan's, or that is no tokenizer.
    """
    ref = plan.tokenizer
    if ref is None or not text.installed():
        return None
    say("downloading the tokenizer")
    path = await server.fetch_tokenizer(ref, plan.model, cache.directory)
    data = await asyncio.to_thread(cache.read, path)
    await asyncio.to_thread(cache.prune)
    try:
        return await asyncio.to_thread(Tokenizer, data, plan.preprocess.shape[-1], ref.padding)
    except errors.InputError as error:
        raise errors.SegmentError(f"the server's tokenizer cannot be used: {error.message}") from error


def _base(cache: Cache, plan: Plan) -> Base | None:
    """What is held that the segment of ``plan`` may be made of."""
    held = cache.nearest(plan.model, plan.cut.layer)
    if held is None:
        return None
    return Base(held.stem, lambda patch: upgrade.apply(cache.read(held), patch, plan.segment.sha256))
