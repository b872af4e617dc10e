"""An independent look at a planner's answer: written from the definitions, sharing nothing with the search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from edge_server.planner.allocation import NEAR, Allocation, CutCodec
from edge_server.planner.chain import INPUT, Chain, Route
from edge_server.planner.online import Pick, Request
from edge_server.planner.patterns import Place, Table
from edge_server.planner.verify_bits import close, verify_allocation, weight_bytes
from splitedge import limits
from splitedge.codec import STAGES
from splitedge.link.adaptation import LONGER


def verify_pick(table: Table, request: Request, pick: Pick) -> list[str]:
    """What is wrong with ``pick``, a sentence each; empty if it meets the demand, and its noise, sizes and costs follow from the tables."""
    place, pattern, demand = table.places[pick.place], table.patterns[pick.pattern], request.demand
    sends = place.cut.kind != "output"
    if pattern.place != pick.place or sends != (pick.codec is not None):
        return ["pattern, codec and place do not belong together"]
    codecs = [place.codecs[i] for i in ([] if pick.codec is None else [pick.codec, *pick.ladder])]
    weights = sum(Fraction(layer.noise[b - 2]) for layer, b in zip(place.layers, pattern.bits, strict=True))
    size = place.other_bytes + sum(weight_bytes(layer, b) for layer, b in zip(place.layers, pattern.bits, strict=True))
    frame = codecs[0].frame_bytes if codecs else 0
    allowed = max((level.noise for level in table.levels if level.drop_points <= demand.max_drop_points), default=-1.0)
    weights += Fraction(place.noise)
    most = max([weights + Fraction(codec.noise) for codec in codecs], default=weights)
    slowest = max(pick.device_ms, pick.server_ms, frame * 8e-3 / request.link.uplink_mbps)
    kept = demand.keep in place.inside
    checks = {
        "the noise is over the demand": float(most) <= allowed * (1 + 1e-9),
        "the drop is over the demand": pick.drop_points <= demand.max_drop_points,
        "the latency is over the demand": demand.max_latency_ms is None
        or pick.total_ms <= demand.max_latency_ms * (1 + 1e-9),
        "the rate is under the demand": not demand.min_rate_fps or slowest * demand.min_rate_fps <= 1000 * (1 + 1e-9),
        "the device's memory does not suffice": request.memory_bytes is None
        or place.memory_bytes <= request.memory_bytes,
        "the input leaves the device": not sends
        or demand.keep != "input"
        or not (place.is_input or place.cut.kind == "input"),
        "a kept tensor leaves the device": not sends or demand.keep in ("nothing", "input") or kept,
        "the mode is not the demanded one": demand.mode == "any"
        or {"server": "input", "split": "inside", "device": "output"}[demand.mode] == place.cut.kind,
        "the segment's size is wrong": pick.segment_bytes == (0 if pick.pattern in request.held else size),
        "the payload's size is wrong": pick.payload_bytes == frame,
        "the ladder lacks the chosen codec": pick.codec is None or pick.codec in pick.ladder,
    }
    faults = [fault for fault, holds in checks.items() if not holds]
    fitting = (
        [codec for codec in place.codecs if float(weights + Fraction(codec.noise)) <= allowed * (1 - 1e-9)]
        if sends
        else []
    )
    return faults + _ladder_faults(codecs, fitting, request, pick) + _cost_faults(table, request, pick, size, frame)


def _ladder_faults(codecs: Sequence[CutCodec], fitting: Sequence[CutCodec], request: Request, pick: Pick) -> list[str]:
    """What is wrong with a ladder: ``codecs`` are the chosen one and then its rungs, ``fitting`` all codecs of the place that meet the accuracy."""
    if not codecs:
        return []
    own, rungs = codecs[0], codecs[1:]
    others = [rung for rung in rungs if rung is not own]
    fitting = [one for one in fitting if _in_time(one, own, request, pick, 1 - 1e-9)]
    falls = all(a.frame_bytes >= b.frame_bytes for a, b in pairwise(rungs))
    whole = len(rungs) == limits.MAX_LADDER or all(any(_as_good(rung, one, NEAR) for rung in rungs) for one in fitting)
    checks = {
        "the ladder does not fall in bytes and rise in noise": falls
        and all(a.noise <= b.noise for a, b in pairwise(others)),
        "the ladder has a codec that another beats": not any(_beats(one, rung) for rung in others for one in fitting),
        "the ladder lacks a codec that none on it beats": whole,
        "the ladder has rungs of nearly one size": all(
            not b.frame_bytes <= a.frame_bytes <= NEAR * b.frame_bytes for a, b in pairwise(others)
        ),
        "the ladder has a codec that the device makes too slowly": all(
            _in_time(one, own, request, pick, 1 + 1e-9) for one in others
        ),
        "the ladder is too long": len(rungs) <= limits.MAX_LADDER,
    }
    return [fault for fault, holds in checks.items() if not holds]


def _in_time(codec: CutCodec, own: CutCodec, request: Request, pick: Pick, hair: float) -> bool:
    """Whether the device makes ``codec`` in time; ``own`` is the chosen one. ``hair``: how much more than that is allowed."""
    extra, demand = _making_ms(codec, request) - _making_ms(own, request), request.demand
    return (
        pick.total_ms + extra <= LONGER * pick.total_ms * hair
        and (demand.max_latency_ms is None or pick.total_ms + extra <= demand.max_latency_ms * hair)
        and (demand.min_rate_fps is None or (pick.device_ms + extra) * demand.min_rate_fps <= 1000 * hair)
    )


def _making_ms(codec: CutCodec, request: Request) -> float:
    return sum(1e-6 * amount * request.stage_ns[STAGES.index(stage)] for stage, amount in codec.work.items())


def _as_good(a: CutCodec, b: CutCodec, near: float = 1.0) -> bool:
    return a.frame_bytes <= near * b.frame_bytes and a.noise <= b.noise


def _beats(a: CutCodec, b: CutCodec) -> bool:
    return _as_good(a, b) and (a.frame_bytes, a.noise) != (b.frame_bytes, b.noise)


def _cost_faults(table: Table, request: Request, pick: Pick, size: int, frame: int) -> list[str]:
    link, weights, power = request.link, request.demand.weights, request.power
    away = pick.codec is not None
    tails = request.tail_ms or [place.tail_ms for place in table.places]
    head, tail = request.head_ms[pick.place], tails[pick.place] if away else 0.0
    if pick.codec is not None:
        head += _making_ms(table.places[pick.place].codecs[pick.codec], request)
    seconds = frame * 8 / (link.uplink_mbps * 1e6)
    transfer = 1e3 * seconds + link.rtt_ms + request.sending_ms if away else 0.0
    total = head + transfer + tail + (request.queue_ms if away else 0.0)
    energy = (power.compute_w or 0.0) * head / 1e3 + (power.transmit_w or 0.0) * seconds
    fetch = (
        0.0
        if request.demand.frames is None or pick.pattern in request.held
        else size * 8 / (link.downlink_mbps * 1e6) / request.demand.frames
    )
    objective = weights.time * (total / 1e3 + fetch) + weights.energy * energy + weights.cost * tail / 1e3
    checks = {
        "a time is wrong": close(pick.device_ms, head)
        and close(pick.server_ms, tail)
        and close(pick.transfer_ms, transfer),
        "the total is not the sum of its parts": close(pick.total_ms, total),
        "the energy is wrong": close(pick.energy_j, energy),
        "the objective is wrong": close(pick.objective, objective),
    }
    return [fault for fault, holds in checks.items() if not holds]


# --- chains -----------------------------------------------------------------------------------------------------------

_Part: TypeAlias = tuple[int, int, int, int | None, int | None]  # of a `Step` all but its times


class _Told(NamedTuple):
    """What a way takes by the chain's tables: of each step its work, sending and round trip; in all, and at the least the noise."""

    steps: list[tuple[float, float, float]]
    total_ms: float
    pace_ms: float
    noise: float


def verify_route(chain: Chain, route: Route) -> list[str]:
    """What is wrong with ``route``, a sentence each; empty if it leads from the input to the answer within the demand, its times and noise follow from
    the tables, its bits are the fewest that the noise allows, and neither another cut nor another codec of one link would be better."""
    parts = [(one.device, one.start, one.end, one.codec, one.to) for one in route.steps]
    if faults := _way_faults(chain, parts):
        return faults
    told, last = _tell(chain, parts), chain.places[route.steps[-1].end]
    sends = route.steps[-1].to is not None
    found = [(one.work_ms, one.sending_ms, one.rtt_ms) for one in route.steps]
    checks = {
        "a time is wrong": all(
            close(a, b) for one, own in zip(told.steps, found, strict=True) for a, b in zip(one, own, strict=True)
        ),
        "the server's time is wrong": close(route.server_ms, chain.tail_ms[route.steps[-1].end] if sends else 0.0)
        and close(route.queue_ms, chain.queue_ms if sends else 0.0),
        "the total is not the sum of its parts": close(route.total_ms, told.total_ms),
        "the pace is not that of the slowest": close(route.pace_ms, told.pace_ms),
        "it is over the demand": _within(chain, told, 1 + 1e-9),
        "another cut or codec of one link would be better": not any(
            _within(chain, other, 1 - 1e-9) and _key(chain, other) < _key(chain, told) * (1 - 1e-9)
            for other in (_tell(chain, way) for way in _others(chain, parts) if not _way_faults(chain, way))
        ),
    }
    faults = [fault for fault, holds in checks.items() if not holds]
    return faults + _bits_faults(chain, route, parts, last)


def _way_faults(chain: Chain, parts: Sequence[_Part]) -> list[str]:
    """Whether the steps lead on from each other over links that there are, and each may and can do its part."""
    count = len(chain.devices)
    if not parts or any(
        not (0 <= d < count and INPUT <= a <= b < len(chain.places)) or b < 0 for d, a, b, _, _ in parts
    ):
        return ["a device or a place does not exist"]
    kinds = [chain.places[end].cut.kind for _, _, end, _, _ in parts]
    sent = [(chain.places[end], codec) for _, _, end, codec, _ in parts if codec is not None]
    if any(not 0 <= codec < len(place.codecs) for place, codec in sent):
        return ["a codec does not exist"]
    first, (*_, last) = parts[0], parts
    free = [chain.devices[d].memory_bytes for d, *_ in parts]
    needs = [chain.span_bytes[start + 1, end] for _, start, end, _, _ in parts]
    keep, place = chain.demand.keep, chain.places[first[2]]
    checks = {
        "it does not begin with the input on the first device": first[:2] == (0, INPUT),
        "its steps do not follow from each other": all(a[2] == b[1] and a[4] == b[0] for a, b in pairwise(parts)),
        "it does not end with the answer": last[4] == (None if kinds[-1] == "output" else count),
        "what is sent is none": all((c is None) == (to is None) == (kind == "output") for (*_, c, to), kind in zip(parts, kinds, strict=True)),
        "there is no such link": all(to is None or (to > d and (d, to) in chain.links) for d, _, _, _, to in parts),
        "a device cannot compute its part": all(chain.devices[d].span_ms[a + 1, b] < float("inf") for d, a, b, _, _ in parts),
        "a device's memory does not suffice": all(has is None or need <= has for has, need in zip(free, needs, strict=True)),
        "what must stay leaves the first device": kinds[0] == "output" or keep == "nothing"
        or (keep == "input" and not (place.is_input or kinds[0] == "input")) or keep in place.inside,
        "a board or the server has no part": not chain.spread
        or (len(parts) == count and all(a != b and kind == "inside" for (_, a, b, _, _), kind in zip(parts, kinds, strict=True))),
    }  # fmt: skip
    return [fault for fault, holds in checks.items() if not holds]


def _tell(chain: Chain, parts: Sequence[_Part]) -> _Told:
    steps: list[tuple[float, float, float]] = []
    last, came = chain.places[parts[-1][2]], None
    noises = [last.noise, *(min(layer.noise) for layer in last.layers)]
    for device, start, end, number, to in parts:
        one, codec = chain.devices[device], None if number is None else chain.places[end].codecs[number]
        stages = [pair for made in (came, codec) if made is not None for pair in made.work.items()]
        coding = 1e-6 * sum(values * one.stage_ns[STAGES.index(stage)] for stage, values in stages)
        link = None if to is None else chain.links[device, to]
        sending = 0.0 if link is None or codec is None else codec.frame_bytes * 8 / (link.uplink_mbps * 1e3)
        steps.append((float(one.span_ms[start + 1, end]) + coding, sending, 0.0 if link is None else link.rtt_ms))
        noises.append(0.0 if codec is None else codec.noise)
        came = codec
    away = parts[-1][4] is not None
    tail = chain.tail_ms[parts[-1][2]] if away else 0.0
    total = sum(map(sum, steps)) + tail + (chain.queue_ms if away else 0.0)
    pace = max(tail, total / chain.window, *(ms for work, sending, _ in steps for ms in (work, sending)))
    return _Told(steps, total, pace, math.fsum(noises))


def _within(chain: Chain, told: _Told, hair: float) -> bool:
    """Whether a way meets the demand's numbers. ``hair``: how much more than these is allowed."""
    demand = chain.demand
    return (
        told.noise <= _allowed(chain) * hair
        and (demand.max_latency_ms is None or told.total_ms <= demand.max_latency_ms * hair)
        and (demand.min_rate_fps is None or told.pace_ms * demand.min_rate_fps <= 1000 * hair)
    )


def _allowed(chain: Chain) -> float:
    return max((one.noise for one in chain.levels if one.drop_points <= chain.demand.max_drop_points), default=-1.0)


def _key(chain: Chain, told: _Told) -> float:
    """What is to be least."""
    return told.pace_ms if chain.objective == "rate" else told.total_ms


def _others(chain: Chain, parts: Sequence[_Part]) -> Iterator[list[_Part]]:
    """The ways that differ in the cut of one link, or in its codec, or in both."""
    for i, (device, start, _, _, to) in enumerate(parts):
        if to is None:
            continue
        for end, place in enumerate(chain.places):
            for codec in range(len(place.codecs)):
                behind = [(parts[i + 1][0], end, *parts[i + 1][2:]), *parts[i + 2 :]] if i + 1 < len(parts) else []
                yield [*parts[:i], (device, start, end, codec, to), *behind]


def _bits_faults(chain: Chain, route: Route, parts: Sequence[_Part], last: Place) -> list[str]:
    """What is wrong with the bits, of which the fewest bytes that the codecs' noise leaves room for are wanted."""
    if len(route.bits) != len(last.layers) or any(
        not 0 <= b - 2 < len(layer.noise) for b, layer in zip(route.bits, last.layers, strict=True)
    ):
        return ["a width does not exist"]
    sent = [chain.places[end].codecs[codec].noise for _, _, end, codec, _ in parts if codec is not None]
    own = sum(map(Fraction, sent), Fraction(last.noise))
    noise = math.fsum(layer.noise[b - 2] for b, layer in zip(route.bits, last.layers, strict=True))
    size = sum(weight_bytes(layer, b) for b, layer in zip(route.bits, last.layers, strict=True))
    room = float(
        Fraction(_allowed(chain)) * Fraction(1 + 1e-12) - own
    )  # where a route leaves nothing, sums of floats may leave less
    faults = verify_allocation(last.layers, room, (), 0.0, Allocation(route.bits, None, size, noise, size))
    return faults + ([] if close(route.noise, noise + float(own)) else ["the noise is wrong"])
