"""An independent look at a planner's answer: written from the definitions, sharing nothing with the search."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from edge_agent import limits
from edge_agent.codec import STAGES
from edge_agent.link.adapt import LONGER
from edge_server.planner.allocation import NEAR, CutCodec
from edge_server.planner.online import Pick, Request
from edge_server.planner.patterns import Table
from edge_server.planner.verify_bits import close, weight_bytes


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
        "the noise is over the demand": float(most) <= allowed,
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
    fitting = [codec for codec in place.codecs if float(weights + Fraction(codec.noise)) <= allowed] if sends else []
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
