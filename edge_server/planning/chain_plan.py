"""From a request for a chain of boards to a plan for each: what the planner needs to know of them, its route, their segments, the messages."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration.bundle.bundle import Bundle
from device_profiles import predict, schema
from edge_server.planner import INPUT, MODES, Chain, CutCodec, Device, Place, Route, Step, refusals, share, verify_route
from edge_server.planner.allocation import WIDTHS, ladder
from edge_server.planning.device_plan import energy_source, mean_bits, power_of, stage_ns_of, tail_times
from edge_server.planning.times import check
from edge_server.store.catalog import Catalog
from edge_server.tails.pool import Tails
from splitedge import errors, limits
from splitedge.codec import packed_bytes
from splitedge.head.segment import Header
from splitedge.link.adaptation import LONGER
from splitedge.protocol.frames import HEADER_BYTES
from splitedge.protocol.messages import (
    BESIDE,
    PROTOCOL_VERSION,
    ChainDevice,
    ChainRequest,
    Codec,
    Cut,
    LayerBits,
    LinkEstimate,
    Parts,
    Plan,
    Prediction,
    Preprocess,
    Rung,
    Stage,
    StageTime,
)

F64 = NDArray[np.float64]

#: Frames that one link holds under way at once: the window that agents ask for.
WINDOW = 8


@dataclass(frozen=True, slots=True)
class _Shared:
    """A route, what it was made of, and the names of the plans of its steps."""

    catalog: Catalog
    bundle: Bundle
    chain: Chain
    request: ChainRequest
    profiles: Sequence[schema.DeviceProfile]
    route: Route
    ids: Sequence[str]


def make_chain(catalog: Catalog, request: ChainRequest, tails: Tails | None = None) -> Plan:
    """The plan of the first board; those of the others, which `Stage` links to it, are stored with it and their segments built.

    Raises `errors.UnknownModelError`, `errors.UsageError`, `errors.InfeasibleError`, `errors.ProtocolError` (versions, profiles, devices).
    """
    _check(request)
    bundle = catalog.bundle(request.model)
    profiles = [schema.from_dict(device.profile) for device in request.devices]
    chain = chain_of(catalog, bundle, request, profiles, tails)
    route = share(chain)
    refusals.hold(verify_route(chain, route))
    ids = [secrets.token_urlsafe(18) for _ in route.steps]
    shared = _Shared(catalog, bundle, chain, request, profiles, route, ids)
    plans = [_plan(shared, index) for index in range(len(route.steps))]
    for plan in plans:
        catalog.store.put_plan(plan)
    return plans[0]


def _check(request: ChainRequest) -> None:
    if request.protocol != PROTOCOL_VERSION:
        raise errors.ProtocolError(
            f"the agent speaks protocol {request.protocol} and this server {PROTOCOL_VERSION}: upgrade the older of the two"
        )
    names = [device.device for device in request.devices]
    if not 1 <= len(names) <= limits.MAX_STAGES or len(set(names)) < len(names):
        raise errors.ProtocolError(f"a chain has 1 to {limits.MAX_STAGES} boards, each once: correct their next stages")
    if any(not 1 <= len(name) <= limits.MAX_NAME for name in names):
        raise errors.ProtocolError(f"a board's name has 1 to {limits.MAX_NAME} characters: remove its cache folder")


# --- what the planner is told -----------------------------------------------------------------------------------------


def chain_of(
    catalog: Catalog,
    bundle: Bundle,
    request: ChainRequest,
    profiles: Sequence[schema.DeviceProfile],
    tails: Tails | None = None,
) -> Chain:
    """What the planner needs to know of the boards, their links and the demand."""
    table, heads = catalog.table(bundle)
    places = tuple(_with_exact(bundle, place, only=request.exact) for place in table.places)
    possible = _possible(bundle, places)
    cuts = [place.cut.index for place in places]
    named = catalog.store.segments_named(bundle.sha256, {sha for device in request.devices for sha in device.measured})
    known = {sha256: one[:2] for sha256, one in named.items()}
    devices = [
        Device(
            _spans(places, _predicted(places, heads, possible, profile), device, known),
            profile.machine.memory_available_bytes or None,
            stage_ns_of(profile),
        )
        for device, profile in zip(request.devices, profiles, strict=True)
    ]
    times = tuple(place.tail_ms for place in places) if tails is None else tail_times(catalog, bundle, cuts, tails)
    return Chain(
        bundle.name, places, table.levels, request.demand, request.objective, tuple(devices), _links(request.devices),
        _span_bytes(places, possible), times, 0.0 if tails is None else tails.times.queue_ms(), WINDOW, request.spread,
    )  # fmt: skip


def _links(devices: Sequence[ChainDevice]) -> dict[tuple[int, int], LinkEstimate]:
    """Each board reaches the next one and the server; to the server what counts is the way that it measured."""
    found = {(i, len(devices)): device.server for i, device in enumerate(devices)}
    for i, device in enumerate(devices[:-1]):
        if device.next is None:
            raise errors.ProtocolError("a board of the chain did not measure its link to the next one: upgrade it")
        found[i, i + 1] = device.next
    return found


def _with_exact(bundle: Bundle, place: Place, *, only: bool) -> Place:
    """``place`` with the codec that sends its tensor as it is, which adds no noise, in place of the packed one of as many bits; with ``only`` that one alone."""
    if place.cut.kind == "output":
        return place
    exact = bundle.exact_codec(place.cut.index)
    size = HEADER_BYTES + packed_bytes(math.prod(place.cut.shape), exact.bits)
    others = [] if only else [one for one in place.codecs if one.work or one.bits != exact.bits]
    return replace(place, codecs=(CutCodec(exact.rule, exact.bits, size, 0.0), *others))


def _spans(
    places: Sequence[Place], by_profile: tuple[F64, F64], device: ChainDevice, known: Mapping[str, tuple[int, int]]
) -> F64:
    """`Device.span_ms`, from what `_predicted` says and, where the device measured segments of this model, bent to what it found.

    A segment that was measured has its own time; the others are as much off as those that were measured are together. What frames take beside their
    segment comes on top of each.
    """
    check(device.measured)
    predicted, around = by_profile
    at = {place.cut.index: i for i, place in enumerate(places)}
    found: dict[tuple[int, int], list[float]] = {}
    for sha256, ms in device.measured.items():
        start, end = known.get(sha256, (-1, -1))
        if end in at and (start == 0 or start in at):
            found.setdefault((at[start] + 1 if start else 0, at[end]), []).append(ms)
    measured = {span: sum(times) / len(times) for span, times in found.items() if math.isfinite(predicted[span])}
    whole = sum(float(predicted[span]) for span in measured)
    spans = predicted * (sum(measured.values()) / whole) if whole > 0 else predicted
    for span, ms in measured.items():
        spans[span] = ms
    return spans + around + device.measured.get(BESIDE, 0.0)


def _predicted(
    places: Sequence[Place],
    heads: predict.Heads,
    possible: Mapping[tuple[int, int], Header],
    profile: schema.DeviceProfile,
) -> tuple[F64, F64]:
    """Spans by the profile: operators; and around them packing for what is sent, and as much twice (unpacking, codes again) for what came."""
    call = profile.overhead.call_us / 1000
    alone = [max(0.0, ms - call) for ms in heads.ms(profile)]
    codes = [predict.encode_ms(math.prod(place.cut.shape), profile) for place in places]
    spans = np.full((len(places) + 1, len(places)), np.inf)
    around = np.zeros_like(spans)
    for start, end in possible:
        before, arrived = (0.0, 0.0) if start == INPUT else (alone[start], 2 * codes[start])
        sent = 0.0 if places[end].cut.kind == "output" else codes[end]
        work = alone[end] - before
        spans[start + 1, end] = max(0.0, work) + (call if work > 0 else 0.0)
        around[start + 1, end] = arrived + sent
    return spans, around


def _span_bytes(places: Sequence[Place], possible: Mapping[tuple[int, int], Header]) -> F64:
    """`Chain.span_bytes`: activations, and weights as kernels hold them."""
    found = np.full((len(places) + 1, len(places)), np.inf)
    for (start, end), header in possible.items():
        begun = 0 if start == INPUT else len(places[start].layers)
        weights = sum(layer.weights for layer in places[end].layers[begun:])
        found[start + 1, end] = header.arena_bytes + weights
    return found


def _possible(bundle: Bundle, places: Sequence[Place]) -> dict[tuple[int, int], Header]:
    """Pairs of places between which one tensor is all that is needed, and the header of the segment from one to the other.

    A place behind which it must be known which tokens are padding is none: only a board that has the token ids knows it.
    """
    alone = [i for i, place in enumerate(places) if place.cut.padding is None]
    return {
        (start, end): bundle.header(places[end].cut.index, 8, _cut(places, start))
        for start in (INPUT, *alone)
        for end in alone
        if end >= start
    }


def _cut(places: Sequence[Place], place: int) -> int:
    return 0 if place == INPUT else places[place].cut.index


# --- the messages -----------------------------------------------------------------------------------------------------


def _plan(shared: _Shared, index: int) -> Plan:
    """The plan of the route's step ``index``."""
    bundle, chain, route, steps = shared.bundle, shared.chain, shared.route, shared.route.steps
    step, place = steps[index], chain.places[steps[index].end]
    begun = 0 if step.start == INPUT else len(chain.places[step.start].layers)
    layers, bits = place.layers[begun:], route.bits[begun : len(place.layers)]
    whole = route.noise or 1.0
    own = None if step.codec is None else place.codecs[step.codec]
    rungs, chosen = _ladder(shared, step)
    segment = shared.catalog.segment(bundle, place.cut.index, bits, _cut(chain.places, step.start))
    held = segment.sha256 in shared.request.devices[step.device].held
    return Plan(
        id=shared.ids[index],
        model=bundle.name,
        bundle=bundle.sha256,
        mode=MODES[place.cut.kind],
        cut=place.cut,
        layers=[
            LayerBits(layer.name, mean_bits([layer], (b,)), layer.weights, layer.noise[b - WIDTHS[0]] / whole)
            for layer, b in zip(layers, bits, strict=True)
        ],
        codec_share=own.noise / whole if own else 0.0,
        head_share=chain.places[steps[-1].end].noise / whole,
        ladder=[_codec(bundle, place.cut.index, one) for one in rungs],
        rungs=[_rung(shared, step, one) for one in rungs],
        codec=chosen,
        segment=segment,
        preprocess=_preprocess(bundle, _start(shared, step)),
        prediction=_prediction(shared, index, 0 if held else segment.size),
        runners_up=[],
        considered=len(chain.places),
        expires_unix=time.time() + limits.PLAN_LIFETIME,
        demand=shared.request.demand,
        labels=bundle.labels,
        metric=bundle.metric,
        stage=_stage(shared, index),
        tokenizer=None if index else bundle.tokenizer,
        output=bundle.output,
    )


def _start(shared: _Shared, step: Step) -> Cut:
    return shared.bundle.cuts[_cut(shared.chain.places, step.start)]


def _preprocess(bundle: Bundle, start: Cut) -> Preprocess:
    """As the segment's header has it."""
    return bundle.preprocess if start.index == 0 else Preprocess("tensor", start.shape)


def _stage(shared: _Shared, index: int) -> Stage:
    steps, ids = shared.route.steps, shared.ids
    step = steps[index]
    return Stage(
        device=shared.request.devices[step.device].device,
        start=_start(shared, step),
        incoming=_incoming(shared, steps[index - 1]) if index else [],
        upstream=ids[index - 1] if index else "",
        downstream=ids[index + 1] if index + 1 < len(ids) else "",
        route=[_stage_time(shared, one) for one in steps],
        rate_fps=1000 / shared.route.pace_ms if shared.route.pace_ms > 0 else 0.0,
    )


def _incoming(shared: _Shared, before: Step) -> list[Codec]:
    cut = shared.chain.places[before.end].cut.index
    return [_codec(shared.bundle, cut, one) for one in _ladder(shared, before)[0]]


def _stage_time(shared: _Shared, step: Step) -> StageTime:
    chain = shared.chain
    place = chain.places[step.end]
    begun = 0 if step.start == INPUT else len(chain.places[step.start].layers)
    codec = None if step.codec is None else place.codecs[step.codec]
    return StageTime(
        shared.request.devices[step.device].device,
        _start(shared, step).layer,
        place.cut.layer,
        mean_bits(place.layers[begun:], shared.route.bits[begun : len(place.layers)]),
        codec.bits if codec else 0,
        step.work_ms,
        step.sending_ms,
        step.rtt_ms,
        codec.frame_bytes if codec else 0,
        codec.rule if codec else "",
    )


def _ladder(shared: _Shared, step: Step) -> tuple[list[CutCodec], int]:
    """The codecs that a link may use, those that no other beats in bytes and noise, and the index of the chosen one.

    What adds more noise than the chosen one may add no more than the link's equal share of what the whole route leaves of the noise that the demand
    allows, so that all links may move at once; and so it is with what takes longer to make and to undo.
    """
    if step.codec is None:
        return [], 0
    chain, place = shared.chain, shared.chain.places[step.end]
    allowed = max(one.noise for one in chain.levels if one.drop_points <= chain.demand.max_drop_points)
    links = sum(one.codec is not None for one in shared.route.steps)
    most = place.codecs[step.codec].noise + max(0.0, allowed - shared.route.noise) / links
    fits = [i for i, one in enumerate(place.codecs) if one.noise <= most and _in_time(shared, step, one, links)]
    rungs = ladder(place.codecs, fits, step.codec)
    return [place.codecs[i] for i in rungs], rungs.index(step.codec)


def _in_time(shared: _Shared, step: Step, codec: CutCodec, links: int) -> bool:
    """Whether a frame that the link of ``step`` sends by ``codec`` takes no longer than its share of what the demand leaves, or of `LONGER` times the plan.

    A board that has links on both sides leaves half of its time to each.
    """
    chain, route, demand = shared.chain, shared.route, shared.chain.demand
    own = chain.places[step.end].codecs[step.codec or 0]
    ends = [one for one in route.steps if one is step or one.device == step.to]
    extra = [chain.devices[one.device].coding_ms(codec) - chain.devices[one.device].coding_ms(own) for one in ends]
    longest = min(LONGER * route.total_ms, math.inf if demand.max_latency_ms is None else demand.max_latency_ms)
    period = math.inf if demand.min_rate_fps is None else 1000 / demand.min_rate_fps
    slowest = min(period, LONGER * route.pace_ms) if chain.objective == "rate" else period
    busy = all(
        ms <= 0 or ms <= (slowest - one.work_ms) / (1 + (one.start != INPUT and one.codec is not None))
        for one, ms in zip(ends, extra, strict=True)
    )
    return busy and (sum(extra) <= 0 or sum(extra) <= (longest - route.total_ms) / links)


def _rung(shared: _Shared, step: Step, codec: CutCodec) -> Rung:
    """What ``codec`` costs in place of the chosen one."""
    own = shared.chain.places[step.end].codecs[step.codec or 0].noise
    noise = shared.route.noise - own + codec.noise
    drop = shared.bundle.accuracy.at(noise)
    return Rung(codec.frame_bytes, noise, drop.expected, drop.high)


def _codec(bundle: Bundle, cut: int, codec: CutCodec) -> Codec:
    return bundle.exact_codec(cut) if codec.rule == "exact" else bundle.codec(cut, codec.rule, codec.bits)


def _prediction(shared: _Shared, index: int, fetched: int) -> Prediction:
    """From the board of step ``index`` on."""
    bundle, route, request = shared.bundle, shared.route, shared.request
    step, place = route.steps[index], shared.chain.places[route.steps[index].end]
    link_ms = step.sending_ms + step.rtt_ms
    behind = sum(one.work_ms + one.sending_ms + one.rtt_ms for one in route.steps[index + 1 :]) + route.server_ms
    total = step.work_ms + link_ms + route.queue_ms + behind
    drop = bundle.accuracy.at(route.noise)
    power = power_of(shared.profiles[step.device].power)
    joules = ((power.compute_w or 0.0) * step.work_ms + (power.transmit_w or 0.0) * step.sending_ms) / 1000
    seconds = (1000 / route.pace_ms if route.pace_ms > 0 else 0.0) if request.objective == "rate" else total / 1000
    return Prediction(
        step.work_ms, link_ms, route.queue_ms, behind, total, joules, energy_source(power), drop.expected, drop.low, drop.high,
        bundle.accuracy.samples, route.noise, place.codecs[step.codec].frame_bytes if step.codec is not None else 0,
        4 * math.prod(place.cut.shape), fetched, seconds, Parts(seconds, 0.0, 0.0, 0.0),
    )  # fmt: skip
