"""From a plan request to a plan: what the planner needs to know of the device, its pick, the segment, and the message."""

from __future__ import annotations

import functools
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from calibration.bundle.bundle import Bundle
from device_profiles import predict, schema
from edge_server.planner import MODES, Pick, Power, Request, Table, choose, reason, refusals, rivals, verify_pick
from edge_server.planner.allocation import WIDTHS, Layer, segment_bytes
from edge_server.planning.curves import curves, draw
from edge_server.planning.times import head_times
from edge_server.store.catalog import Catalog
from edge_server.tails.pool import Handler, Tails
from splitedge import errors, limits
from splitedge.codec import STAGES
from splitedge.files import PictureForm
from splitedge.protocol.messages import (
    PROTOCOL_VERSION,
    SENDING,
    Candidate,
    LayerBits,
    Parts,
    Plan,
    PlanRequest,
    Prediction,
    Rung,
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The planner's choice for a plan request, and what it was made from."""

    bundle: Bundle
    table: Table
    asked: Request
    pick: Pick


def make_plan(catalog: Catalog, request: PlanRequest, tails: Tails | None = None) -> Plan:
    """The plan for ``request``, stored and with its segment built. Blocks for as long as building a segment takes. Raises as `choose_plan` does."""
    return store_plan(catalog, choose_plan(catalog, request, tails))


def store_plan(catalog: Catalog, chosen: Chosen) -> Plan:
    """The plan of a choice, stored and with its segment built."""
    answer = _message(catalog, chosen)
    catalog.store.put_plan(answer)
    return answer


def draw_curves(catalog: Catalog, request: PlanRequest, form: PictureForm, tails: Tails | None = None) -> bytes:
    """The picture of the trade-offs around the plan for ``request``. Raises as `choose_plan` and `curves.draw` do."""
    chosen = choose_plan(catalog, request, tails)
    return draw(curves(chosen.table, chosen.asked, chosen.pick), form)


def choose_plan(catalog: Catalog, request: PlanRequest, tails: Tails | None = None) -> Chosen:
    """What the planner chooses for ``request``, checked.

    ``tails``: those of this process, whose times and queue count; without them the bundle's times do.

    Raises `errors.UnknownModelError`, `errors.UsageError`, `errors.InfeasibleError`, `errors.ProtocolError` (versions, profile).
    """
    if request.protocol != PROTOCOL_VERSION:
        raise errors.ProtocolError(
            f"the agent speaks protocol {request.protocol} and this server {PROTOCOL_VERSION}: upgrade the older of the two"
        )
    profile = schema.from_dict(request.profile)
    bundle = catalog.bundle(request.model)
    table, heads = catalog.table(bundle)
    asked = request_of(catalog, bundle, table, heads, profile, request, tails)
    pick = choose(table, asked)
    refusals.hold(verify_pick(table, asked, pick))
    return Chosen(bundle, table, asked, pick)


def request_of(
    catalog: Catalog,
    bundle: Bundle,
    table: Table,
    heads: predict.Heads,
    profile: schema.DeviceProfile,
    request: PlanRequest,
    tails: Tails | None = None,
) -> Request:
    """What the planner needs to know of a device, its link and its demand. ``heads``: of the table's places."""
    cuts = [place.cut for place in table.places]
    known = catalog.store.segments_named(bundle.sha256, {*request.held, *request.measured})
    known = {sha256: one for sha256, one in known.items() if one[0] == 0}
    segments = {sha256: cut for sha256, (_, cut, _) in known.items()}
    rehearsal = request.rehearsal
    rehearsed = None if rehearsal is None or rehearsal.bundle != bundle.sha256 else rehearsal.ms
    return Request(
        demand=request.demand,
        link=request.link,
        head_ms=head_times(cuts, heads, profile, request.measured, segments, rehearsed),
        tail_ms=None if tails is None else tail_times(catalog, bundle, [cut.index for cut in cuts], tails),
        queue_ms=0.0 if tails is None else tails.times.queue_ms(),
        sending_ms=request.measured.get(SENDING, 0.0),
        stage_ns=stage_ns_of(profile),
        power=power_of(profile.power),
        memory_bytes=profile.machine.memory_available_bytes or None,
        held=_held(table, {known[sha256][1:] for sha256 in request.held if sha256 in known}),
    )


def _held(table: Table, segments: set[tuple[int, tuple[int, ...]]]) -> frozenset[int]:
    """The table's patterns whose segments, told by cut and bits, are among these."""
    if not segments:
        return frozenset()
    return frozenset(
        i for i, one in enumerate(table.patterns) if (table.places[one.place].cut.index, one.bits) in segments
    )


def tail_times(catalog: Catalog, bundle: Bundle, cuts: list[int], tails: Tails) -> tuple[float, ...]:
    """Milliseconds of the tail behind each of ``cuts``, as this process finds them."""

    def measure(index: int) -> None:
        load = functools.partial(catalog.tail, bundle, bundle.cuts[index])
        Handler(tails, (bundle.sha256, index), load, [bundle.codec(index, "minmax", 8)], bundle.output, topk=5).warm()

    return tails.times.of(bundle, cuts, measure)


def predict_pick(bundle: Bundle, table: Table, asked: Request, pick: Pick) -> Prediction:
    """The prediction of a plan from its pick."""
    cut, weights = table.places[pick.place].cut, asked.demand.weights
    drop = bundle.accuracy.at(pick.noise)
    source = energy_source(asked.power)
    parts = Parts(
        time=weights.time * pick.total_ms / 1000,
        fetch=_fetch_s(asked, pick) * weights.time,
        energy=weights.energy * pick.energy_j,
        cost=weights.cost * pick.server_ms / 1000,
    )
    return Prediction(
        pick.device_ms, pick.transfer_ms, pick.queue_ms, pick.server_ms, pick.total_ms, pick.energy_j, source,
        drop.expected, drop.low, drop.high, bundle.accuracy.samples, pick.noise, pick.payload_bytes, 4 * math.prod(cut.shape),
        pick.segment_bytes, pick.objective, parts, 0.0 if pick.codec is None else asked.sending_ms,
    )  # fmt: skip


def _fetch_s(asked: Request, pick: Pick) -> float:
    """Seconds of the segment's transfer that fall on one frame."""
    if asked.demand.frames is None:
        return 0.0
    return pick.segment_bytes * 8e-6 / asked.link.downlink_mbps / asked.demand.frames


def stage_ns_of(profile: schema.DeviceProfile) -> tuple[float, ...]:
    """Nanoseconds a value of each of `codec.STAGES`; what the profile does not tell costs nothing."""
    return tuple(profile.overhead.stage_ns.get(stage, 0.0) for stage in STAGES)


def power_of(power: schema.Power) -> Power:
    """A board that is not known to draw less while it sends counts at its load."""
    sending = power.idle_watts if power.idle_watts is not None else power.load_watts
    return Power(power.load_watts, sending, measured=power.source == "sensor")


def energy_source(power: Power) -> Literal["measured", "declared", "unknown"]:
    """Where a plan's energy comes from."""
    if power.compute_w is None or power.transmit_w is None:
        return "unknown"
    return "measured" if power.measured else "declared"


def _message(catalog: Catalog, chosen: Chosen) -> Plan:
    bundle, table, asked, pick = chosen.bundle, chosen.table, chosen.asked, chosen.pick
    place, bits = table.places[pick.place], table.patterns[pick.pattern].bits
    cut = place.cut
    segment = catalog.segment(bundle, cut.index, bits)
    prediction = predict_pick(bundle, table, asked, pick)
    prediction.segment_bytes = 0 if pick.pattern in asked.held else segment.size
    whole = pick.noise or 1.0
    codec = None if pick.codec is None else place.codecs[pick.codec]
    return Plan(
        id=secrets.token_urlsafe(18),
        model=bundle.name,
        bundle=bundle.sha256,
        mode=MODES[cut.kind],
        cut=cut,
        layers=[
            LayerBits(layer.name, mean_bits([layer], (b,)), layer.weights, layer.noise[b - WIDTHS[0]] / whole)
            for layer, b in zip(place.layers, bits, strict=True)
        ],
        codec_share=codec.noise / whole if codec else 0.0,
        head_share=place.noise / whole,
        ladder=[bundle.codec(cut.index, place.codecs[i].rule, place.codecs[i].bits) for i in pick.ladder],
        rungs=[rung(bundle, table, pick, codec) for codec in pick.ladder],
        codec=0 if pick.codec is None else pick.ladder.index(pick.codec),
        segment=segment,
        preprocess=bundle.preprocess,
        prediction=prediction,
        runners_up=[
            candidate(bundle, table, asked, rival.pick, reason(table, asked, rival, pick))
            for rival in rivals(table, asked, pick)
        ],
        considered=len(table.pattern),
        expires_unix=time.time() + limits.PLAN_LIFETIME,
        demand=asked.demand,
        labels=bundle.labels,
        metric=bundle.metric,
        tokenizer=bundle.tokenizer,
        output=bundle.output,
    )


def rung(bundle: Bundle, table: Table, pick: Pick, codec: int) -> Rung:
    """What codec number ``codec`` of the pick's place costs with the pick's weights."""
    place, one = table.places[pick.place], table.places[pick.place].codecs[codec]
    noise = table.patterns[pick.pattern].noise + place.noise + one.noise
    drop = bundle.accuracy.at(noise)
    return Rung(one.frame_bytes, noise, drop.expected, drop.high)


def candidate(bundle: Bundle, table: Table, asked: Request, pick: Pick, why: str) -> Candidate:
    """A pick as runners-up are told."""
    place = table.places[pick.place]
    codec = None if pick.codec is None else place.codecs[pick.codec]
    return Candidate(
        place.cut,
        mean_bits(place.layers, table.patterns[pick.pattern].bits),
        codec.bits if codec else 0,
        codec.rule if codec else "",
        predict_pick(bundle, table, asked, pick),
        why,
    )


def mean_bits(layers: Sequence[Layer], bits: tuple[int, ...]) -> float:
    """Bits that a weight takes in a segment, in the mean; 0 without weights."""
    return 8 * segment_bytes(layers, bits) / max(1, sum(layer.weights for layer in layers))
