"""From a request for a chain of boards to a plan for each: the planner's chain, its route, segments and messages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration.bundle.bundle import Bundle
from device_profiles import predict, schema
from edge_server.planner import (
    INPUT,
    Chain,
    ChainBoard,
    CutCodec,
    CutOption,
    Hop,
    Route,
    WeightLayer,
    plan_route,
    refusals,
    verify_route,
)
from edge_server.planner.allocation import ladder
from edge_server.planning.catalog import Catalog
from edge_server.planning.device_plan import tail_times
from edge_server.planning.head_times import check_measured
from edge_server.planning.plan_message import (
    Costs,
    PlannedHead,
    build_plan,
    build_prediction,
    check_output,
    check_protocol,
    codec_message,
    codec_stage_ns,
    mean_bits,
    new_plan_id,
    power_draw,
)
from edge_server.store.segments import SegmentKey
from edge_server.tails.pool import TailPool
from splitedge import errors, limits
from splitedge.codec import image_file, packed_bytes
from splitedge.head.segment import FIRST_OPERATORS, Header, needed
from splitedge.link.adaptation import LONGER
from splitedge.protocol.frames import HEADER_BYTES
from splitedge.protocol.messages import (
    PROTOCOL_VERSION,
    ChainDevice,
    ChainRequest,
    Codec,
    Cut,
    LinkEstimate,
    MeasuredTimes,
    Parts,
    Plan,
    Stage,
    StageTime,
)

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Answer:
    """A route, its inputs, and the id of each hop's plan."""

    catalog: Catalog
    bundle: Bundle
    chain: Chain
    request: ChainRequest
    profiles: Sequence[schema.DeviceProfile]
    route: Route
    ids: Sequence[str]


def make_chain(catalog: Catalog, request: ChainRequest, tails: TailPool | None = None) -> Plan:
    """The plan of the first board. The plans of the others, linked by their `Stage`, are stored; segments are built.

    Raises `errors.UnknownModelError`, `errors.UsageError`, `errors.InfeasibleError`, `errors.ProtocolError` (version,
    profiles, boards, times).
    """
    _check(request)
    bundle = catalog.bundle(request.model)
    check_output(request.protocol, request.tasks, bundle.output, bundle.preprocess)
    profiles = [schema.from_dict(device.profile) for device in request.devices]
    chain = build_chain(catalog, bundle, request, profiles, tails)
    route = plan_route(chain)
    refusals.require_valid(verify_route(chain, route))
    ids = [new_plan_id() for _ in route.hops]
    answer = _Answer(catalog, bundle, chain, request, profiles, route, ids)
    plans = [_plan(answer, index) for index in range(len(route.hops))]
    for plan in plans:
        catalog.store.plans.put(plan)
    return plans[0]


def _check(request: ChainRequest) -> None:
    check_protocol(request.protocol, PROTOCOL_VERSION)  # boards hand plans on without a version
    names = [device.device for device in request.devices]
    if not 1 <= len(names) <= limits.MAX_STAGES or len(set(names)) < len(names):
        raise errors.ProtocolError(
            f"the chain has the boards {', '.join(name[:40] for name in names[:10])}: use 1 to {limits.MAX_STAGES} "
            "different boards; correct their `chain.next`",
            reason="boards",
        )
    for name in names:
        if not 1 <= len(name) <= limits.MAX_NAME:
            raise errors.ProtocolError(
                f"a board's name has {len(name)} characters, not 1 to {limits.MAX_NAME}: delete its cache folder",
                reason="board-name",
            )


# --- the planner's chain ----------------------------------------------------------------------------------------------


def build_chain(
    catalog: Catalog,
    bundle: Bundle,
    request: ChainRequest,
    profiles: Sequence[schema.DeviceProfile],
    tails: TailPool | None = None,
) -> Chain:
    """The planner's problem: boards, links, demand, and what each board takes for each span."""
    table = catalog.table(bundle)
    options = tuple(_with_exact_codec(bundle, option, only=request.exact) for option in table.table.options)
    known_operators = [frozenset(device.operators) or FIRST_OPERATORS for device in request.devices]
    spans = _possible_spans(bundle, options, frozenset.intersection(*known_operators))
    known = catalog.store.segments.known(
        bundle.sha256, {sha256 for device in request.devices for sha256 in device.measured}
    )
    boards = []
    for device, profile in zip(request.devices, profiles, strict=True):
        predicted = _predicted_spans(options, table.heads, spans, profile)
        span_ms = _corrected_spans(options, predicted, device, known)
        boards.append(ChainBoard(span_ms, profile.machine.memory_available_bytes or None, codec_stage_ns(profile)))
    tail_ms = tail_times(catalog, bundle, [option.cut.index for option in options], tails)
    return Chain(
        model=bundle.name,
        options=options,
        levels=table.table.levels,
        demand=request.demand,
        objective=request.objective,
        boards=tuple(boards),
        links=_links(request.devices),
        span_bytes=_span_bytes(options, spans),
        tail_ms=tuple(option.tail_ms for option in options) if tail_ms is None else tail_ms,
        queue_ms=0.0 if tails is None else tails.times.queue_ms(),
        window=limits.WINDOW,
        spread=request.spread,
    )


def _links(devices: Sequence[ChainDevice]) -> dict[tuple[int, int], LinkEstimate]:
    """The measured links: from each board to the server and to the next board."""
    links = {(i, len(devices)): device.server for i, device in enumerate(devices)}
    for i, device in enumerate(devices[:-1]):
        if device.next is None:
            raise errors.ProtocolError(
                f"the board {device.device[:40]!r} did not measure its link to the next one: upgrade it",
                reason="link-not-measured",
            )
        links[i, i + 1] = device.next
    return links


def _with_exact_codec(bundle: Bundle, option: CutOption, *, only: bool) -> CutOption:
    """``option`` with the codec that sends its tensor unchanged, which adds no noise.

    It replaces the packed codec of as many bits or, with ``only``, all codecs. Image files of newer formats are left
    out, as boards of a chain do not name those that they know.
    """
    if option.cut.kind == "output":
        return option
    exact = bundle.exact_codec(option.cut.index)
    size = HEADER_BYTES + packed_bytes(math.prod(option.cut.shape), exact.bits)
    common = [one for one in option.codecs if not one.work.keys() & set(image_file.NAMED)]
    others = [] if only else [one for one in common if one.work or one.bits != exact.bits]
    return replace(option, codecs=(CutCodec(exact.rule, exact.bits, size, 0.0), *others))


def _corrected_spans(
    options: Sequence[CutOption], predicted: tuple[F64, F64], device: ChainDevice, known: Mapping[str, SegmentKey]
) -> F64:
    """`ChainBoard.span_ms`: the prediction, corrected by the device's own measurements.

    A measured segment counts with its own time; the others are off by the same factor as the measured ones together.
    The time that frames take besides their segment is added to each.
    """
    check_measured(device.measured)
    spans, around = predicted
    at = {option.cut.index: i for i, option in enumerate(options)}
    found: dict[tuple[int, int], list[float]] = {}
    own = MeasuredTimes.from_wire(device.measured)
    for sha256, ms in own.head_ms.items():
        start, end, _ = known.get(sha256, (-1, -1, ()))
        if end in at and (start == 0 or start in at):
            found.setdefault((at[start] + 1 if start else 0, at[end]), []).append(ms)
    measured = {span: sum(times) / len(times) for span, times in found.items() if math.isfinite(spans[span])}
    whole = sum(float(spans[span]) for span in measured)
    corrected = spans * (sum(measured.values()) / whole) if whole > 0 else spans
    for span, ms in measured.items():
        corrected[span] = ms
    return corrected + around + (own.overhead_ms or 0.0)


def _predicted_spans(
    options: Sequence[CutOption],
    heads: predict.Heads,
    spans: Mapping[tuple[int, int], Header],
    profile: schema.DeviceProfile,
) -> tuple[F64, F64]:
    """Times of spans by the profile: of operators; and of packing and unpacking.

    Unpacking counts twice the time of packing: for decoding, and for the codes that the segment starts from.
    """
    call = profile.overhead.call_us / 1000
    alone = [max(0.0, ms - call) for ms in heads.ms(profile)]
    codes = [predict.encode_ms(math.prod(option.cut.shape), profile) for option in options]
    operators = np.full((len(options) + 1, len(options)), np.inf)
    coding = np.zeros_like(operators)
    for start, end in spans:
        before, arrived = (0.0, 0.0) if start == INPUT else (alone[start], 2 * codes[start])
        sent = 0.0 if options[end].cut.kind == "output" else codes[end]
        work = alone[end] - before
        operators[start + 1, end] = max(0.0, work) + (call if work > 0 else 0.0)
        coding[start + 1, end] = arrived + sent
    return operators, coding


def _span_bytes(options: Sequence[CutOption], spans: Mapping[tuple[int, int], Header]) -> F64:
    """`Chain.span_bytes`: activations, and weights with one byte each, as kernels hold them."""
    found = np.full((len(options) + 1, len(options)), np.inf)
    for (start, end), header in spans.items():
        weights = sum(layer.weights for layer in _layers(options, start, end))
        found[start + 1, end] = header.arena_bytes + weights
    return found


def _possible_spans(
    bundle: Bundle, options: Sequence[CutOption], operators: frozenset[str]
) -> dict[tuple[int, int], Header]:
    """The spans that one tensor connects, from `INPUT` or an option to an option, and their segments' headers.

    All boards know the ``operators``; a span with another one is left out.
    A cut behind which the padding mask is needed has no span: only the board with the token ids knows the mask.
    """
    usable = [i for i, option in enumerate(options) if option.cut.padding is None]
    spans = {
        (start, end): bundle.header(options[end].cut.index, 8, _cut_index(options, start))
        for start in (INPUT, *usable)
        for end in usable
        if end >= start
    }
    return {span: header for span, header in spans.items() if needed(header) <= operators}


def _cut_index(options: Sequence[CutOption], option: int) -> int:
    return 0 if option == INPUT else options[option].cut.index


def _layers(options: Sequence[CutOption], start: int, end: int) -> tuple[WeightLayer, ...]:
    """The weight layers between two options."""
    return options[end].layers[_layers_before(options, start) :]


def _layers_before(options: Sequence[CutOption], start: int) -> int:
    return 0 if start == INPUT else len(options[start].layers)


# --- the messages -----------------------------------------------------------------------------------------------------


def _plan(answer: _Answer, index: int) -> Plan:
    """The plan of the route's hop ``index``."""
    hop, options = answer.route.hops[index], answer.chain.options
    head = _head(answer, hop)
    start = _cut_index(options, hop.start)
    segment = answer.catalog.segment(answer.bundle, head.option.cut.index, head.bits, start)
    held = segment.sha256 in answer.request.devices[hop.board].held
    return build_plan(
        head,
        build_prediction(head, _costs(answer, index, 0 if held else segment.size)),
        segment,
        answer.request.demand,
        considered=len(options),
        stage=_stage(answer, index),
        plan_id=answer.ids[index],
    )


def _head(answer: _Answer, hop: Hop) -> PlannedHead:
    options, route = answer.chain.options, answer.route
    option = options[hop.end]
    codec_noise = option.codecs[hop.codec].noise if hop.codec is not None else 0.0
    return PlannedHead(
        bundle=answer.bundle,
        option=option,
        layers=_layers(options, hop.start, hop.end),
        bits=_hop_bits(answer, hop),
        codec=hop.codec,
        ladder=_ladder(answer, hop),
        noise=route.noise,
        other_noise=route.noise - codec_noise,
        head_noise=options[route.hops[-1].end].noise,
    )


def _hop_bits(answer: _Answer, hop: Hop) -> tuple[int, ...]:
    options = answer.chain.options
    return answer.route.bits[_layers_before(options, hop.start) : len(options[hop.end].layers)]


def _start(answer: _Answer, hop: Hop) -> Cut:
    return answer.bundle.cuts[_cut_index(answer.chain.options, hop.start)]


def _stage(answer: _Answer, index: int) -> Stage:
    hops, ids = answer.route.hops, answer.ids
    return Stage(
        device=answer.request.devices[hops[index].board].device,
        start=_start(answer, hops[index]),
        incoming=_incoming(answer, hops[index - 1]) if index else [],
        upstream=ids[index - 1] if index else "",
        downstream=ids[index + 1] if index + 1 < len(ids) else "",
        route=[_stage_time(answer, hop) for hop in hops],
        rate_fps=_rate_fps(answer.route),
    )


def _rate_fps(route: Route) -> float:
    return 1000 / route.pace_ms if route.pace_ms > 0 else 0.0


def _incoming(answer: _Answer, before: Hop) -> list[Codec]:
    """The codecs that the hop ``before`` may send."""
    option = answer.chain.options[before.end]
    return [codec_message(answer.bundle, option, i) for i in _ladder(answer, before)]


def _stage_time(answer: _Answer, hop: Hop) -> StageTime:
    options = answer.chain.options
    option = options[hop.end]
    codec = None if hop.codec is None else option.codecs[hop.codec]
    return StageTime(
        device=answer.request.devices[hop.board].device,
        start=_start(answer, hop).layer,
        cut=option.cut.layer,
        weight_bits=mean_bits(_layers(options, hop.start, hop.end), _hop_bits(answer, hop)),
        activation_bits=codec.bits if codec else 0,
        device_ms=hop.work_ms,
        sending_ms=hop.sending_ms,
        rtt_ms=hop.rtt_ms,
        payload_bytes=codec.frame_bytes if codec else 0,
        rule=codec.rule if codec else "",
    )


def _ladder(answer: _Answer, hop: Hop) -> list[int]:
    """The codecs that a link may use, as indices: those that no other beats in bytes and noise.

    All links may move at once. So a codec with more noise than the chosen one may use up only this link's equal share
    of the noise that the route leaves, and one that takes longer only its share of the time.
    """
    if hop.codec is None:
        return []
    chain, option = answer.chain, answer.chain.options[hop.end]
    allowed = max(one.noise for one in chain.levels if one.drop_points <= chain.demand.max_drop_points)
    links = sum(one.codec is not None for one in answer.route.hops)
    most = option.codecs[hop.codec].noise + max(0.0, allowed - answer.route.noise) / links
    fits = [i for i, one in enumerate(option.codecs) if one.noise <= most and _in_time(answer, hop, one, links)]
    return ladder(option.codecs, fits, hop.codec)


def _in_time(answer: _Answer, hop: Hop, codec: CutCodec, links: int) -> bool:
    """Whether a frame sent with ``codec`` takes at most this link's share of the time.

    The time is the remainder of the demanded latency, but at most `LONGER` times the plan's. A board with links on both
    sides gives half of its time to each.
    """
    chain, route, demand = answer.chain, answer.route, answer.chain.demand
    chosen = chain.options[hop.end].codecs[hop.codec or 0]
    ends = [one for one in route.hops if one is hop or one.board == hop.to]
    extra = [chain.boards[one.board].coding_ms(codec) - chain.boards[one.board].coding_ms(chosen) for one in ends]
    longest = min(LONGER * route.total_ms, math.inf if demand.max_latency_ms is None else demand.max_latency_ms)
    period = math.inf if demand.min_rate_fps is None else 1000 / demand.min_rate_fps
    slowest = min(period, LONGER * route.pace_ms) if chain.objective == "rate" else period
    within_period = all(
        ms <= 0 or ms <= (slowest - one.work_ms) / (1 + (one.start != INPUT and one.codec is not None))
        for one, ms in zip(ends, extra, strict=True)
    )
    return within_period and (sum(extra) <= 0 or sum(extra) <= (longest - route.total_ms) / links)


def _costs(answer: _Answer, index: int, download: int) -> Costs:
    """The costs from the board of hop ``index`` on; all behind its link counts as the server's time."""
    route = answer.route
    hop = route.hops[index]
    link_ms = hop.sending_ms + hop.rtt_ms
    behind = sum(one.work_ms + one.sending_ms + one.rtt_ms for one in route.hops[index + 1 :]) + route.server_ms
    total = hop.work_ms + link_ms + route.queue_ms + behind
    power = power_draw(answer.profiles[hop.board].power)
    seconds = _rate_fps(route) if answer.request.objective == "rate" else total / 1000
    return Costs(
        device_ms=hop.work_ms,
        transfer_ms=link_ms,
        queue_ms=route.queue_ms,
        server_ms=behind,
        total_ms=total,
        energy_j=((power.compute_w or 0.0) * hop.work_ms + (power.transmit_w or 0.0) * hop.sending_ms) / 1000,
        power=power,
        segment_bytes=download,
        objective=seconds,
        parts=Parts(time=seconds, fetch=0.0, energy=0.0, cost=0.0),
    )
