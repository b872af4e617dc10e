"""An independent look at a planner's answer: written from the definitions, sharing nothing with the search."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from edge_agent import limits
from edge_agent.codec import STAGES
from edge_agent.link.adapt import LONGER
from edge_server.planner.allocation import NEAR, Allocation, CutCodec, Layer
from edge_server.planner.online import Pick, Request
from edge_server.planner.patterns import Table


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-9 * max(1.0, abs(a), abs(b))


def verify_allocation(
    layers: Sequence[Layer], budget: float, codecs: Sequence[CutCodec], frame_weight: float, found: Allocation
) -> list[str]:
    """What is wrong with ``found``, a sentence each; empty if it fits, its arithmetic holds, and neither a change nor the relaxation betrays it.

    Wholly by other means than the search: exact fractions, each change of one choice, and the Lagrangian bound by bisection. What is optimal lies
    within one item's range of that bound, for the relaxation's best has at most one item between two choices.
    """
    if len(found.bits) != len(layers) or (found.codec is None) != (not codecs):
        return ["it answers another question"]
    items = [[(_size(layer, b), noise) for b, noise in enumerate(layer.noise, 2)] for layer in layers]
    taken = [b - 2 for b in found.bits]
    if codecs:
        items.append([(round(frame_weight * codec.frame_bytes), codec.noise) for codec in codecs])
        taken.append(found.codec or 0)
    if any(not 0 <= i < len(item) for i, item in zip(taken, items, strict=True)):
        return ["a width or a codec does not exist"]
    now = [item[i] for i, item in zip(taken, items, strict=True)]
    if any(noise == float("inf") for _, noise in now):
        return ["a width that is not allowed is taken"]
    bytes_, spare = sum(size for size, _ in now), Fraction(budget) - sum(Fraction(noise) for _, noise in now)
    checks = {
        "the noise is over the budget": spare >= 0,
        "the segment's size is wrong": found.segment_bytes == sum(size for size, _ in now[: len(layers)]),
        "the objective is wrong": found.objective == bytes_,
        "the noise is wrong": _close(found.noise, float(Fraction(budget) - spare)),
        "the bound is over the objective": found.bound <= found.objective,
        "fewer bytes in one place would do": not any(
            size < own[0] and noise - own[1] < float(spare) * (1 - 1e-9)
            for own, item in zip(now, items, strict=True)
            for size, noise in item
        ),
        "it is far from the relaxation's bound": bytes_ - _dual(items, budget) <= 1 + _widest(items),
    }
    return [fault for fault, holds in checks.items() if not holds]


def _size(layer: Layer, bits: int) -> int:
    return layer.coded[bits - 2] if layer.coded else (layer.weights * bits + 7) // 8


def _dual(items: list[list[tuple[int, float]]], budget: float) -> float:
    """A lower bound on the bytes of all that meets the budget: the best price of noise, found by halving an interval of exponents."""
    low, high, best = -1100.0, 1100.0, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        price = 2.0 ** min(max(middle, -1000.0), 1000.0)
        picks = [min(item, key=lambda pair: (pair[0] + price * pair[1], pair[1])) for item in items]
        noise = sum(noise for _, noise in picks)
        best = max(best, sum(size for size, _ in picks) + price * (noise - budget))
        low, high = (middle, high) if noise > budget else (low, middle)
    return best


def _widest(items: list[list[tuple[int, float]]]) -> int:
    return max((max(item)[0] - min(item)[0] for item in items), default=0)


def verify_pick(table: Table, request: Request, pick: Pick) -> list[str]:
    """What is wrong with ``pick``, a sentence each; empty if it meets the demand, and its noise, sizes and costs follow from the tables."""
    place, pattern, demand = table.places[pick.place], table.patterns[pick.pattern], request.demand
    sends = place.cut.kind != "output"
    if pattern.place != pick.place or sends != (pick.codec is not None):
        return ["pattern, codec and place do not belong together"]
    codecs = [place.codecs[i] for i in ([] if pick.codec is None else [pick.codec, *pick.ladder])]
    weights = sum(Fraction(layer.noise[b - 2]) for layer, b in zip(place.layers, pattern.bits, strict=True))
    size = place.other_bytes + sum(_size(layer, b) for layer, b in zip(place.layers, pattern.bits, strict=True))
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
        "a time is wrong": _close(pick.device_ms, head)
        and _close(pick.server_ms, tail)
        and _close(pick.transfer_ms, transfer),
        "the total is not the sum of its parts": _close(pick.total_ms, total),
        "the energy is wrong": _close(pick.energy_j, energy),
        "the objective is wrong": _close(pick.objective, objective),
    }
    return [fault for fault, holds in checks.items() if not holds]
