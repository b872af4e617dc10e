"""An independent check of a pick: written from the definitions, shares no code with the search."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from edge_server.planner.allocation import MIN_SAVING, CutCodec
from edge_server.planner.online import Pick, Query
from edge_server.planner.patterns import CutOption, Table
from edge_server.planner.verify_bits import close, weight_bytes
from splitedge import limits
from splitedge.codec import STAGES
from splitedge.link.adaptation import LONGER
from splitedge.protocol.messages import Demand


def verify_pick(table: Table, query: Query, pick: Pick) -> list[str]:
    """The faults of ``pick``, a sentence each; empty if it meets the demand and its figures follow from the table."""
    option, pattern, demand = table.options[pick.option], table.patterns[pick.pattern], query.demand
    sends = option.cut.kind != "output"
    if pattern.option != pick.option or sends != (pick.codec is not None):
        return ["pattern, codec and cut do not belong together"]
    codecs = [option.codecs[i] for i in ([] if pick.codec is None else [pick.codec, *pick.ladder])]
    layers = list(zip(option.layers, pattern.bits, strict=True))
    size = option.other_bytes + sum(weight_bytes(layer, b) for layer, b in layers)
    frame = codecs[0].frame_bytes if codecs else 0
    allowed = max((level.noise for level in table.levels if level.drop_points <= demand.max_drop_points), default=-1.0)
    noise = sum(Fraction(layer.noise[b - 2]) for layer, b in layers) + Fraction(option.noise)
    most = max([noise + Fraction(codec.noise) for codec in codecs], default=noise)
    slowest = max(pick.device_ms, pick.server_ms, frame * 8e-3 / query.link.uplink_mbps)
    checks = {
        "the noise exceeds the demand": float(most) <= allowed * (1 + 1e-9),
        "the drop exceeds the demand": pick.drop_points <= demand.max_drop_points,
        "the latency exceeds the demand": demand.max_latency_ms is None
        or pick.total_ms <= demand.max_latency_ms * (1 + 1e-9),
        "the rate is below the demand": not demand.min_rate_fps or slowest * demand.min_rate_fps <= 1000 * (1 + 1e-9),
        "the device has too little memory": query.memory_bytes is None or option.memory_bytes <= query.memory_bytes,
        "the device lacks an operator": query.operators is None or option.operators <= query.operators,
        "the device lacks an image format": not any(codec.work.keys() & query.unknown for codec in codecs),
        "the segment's size is wrong": pick.segment_bytes == (0 if pick.pattern in query.held else size),
        "the payload's size is wrong": pick.payload_bytes == frame,
        "the ladder lacks the chosen codec": pick.codec is None or pick.codec in pick.ladder,
        **_privacy_checks(option, demand),
    }
    faults = [fault for fault, holds in checks.items() if not holds]
    within = allowed * (1 - 1e-9)
    known = [codec for codec in option.codecs if not codec.work.keys() & query.unknown]
    fitting = [codec for codec in known if sends and float(noise + Fraction(codec.noise)) <= within]
    return faults + _ladder_faults(codecs, fitting, query, pick) + _cost_faults(table, query, pick, size, frame)


def _privacy_checks(option: CutOption, demand: Demand) -> dict[str, bool]:
    """``keep`` and ``mode``, from their definitions."""
    kind, keep = option.cut.kind, demand.keep
    return {
        "the input leaves the device": kind == "output" or keep != "input" or not (option.is_input or kind == "input"),
        "a kept tensor leaves the device": kind == "output" or keep in ("nothing", "input") or keep in option.inside,
        "the mode is not the demanded one": demand.mode == "any"
        or {"server": "input", "split": "inside", "device": "output"}[demand.mode] == kind,
    }


def _ladder_faults(codecs: Sequence[CutCodec], fitting: Sequence[CutCodec], query: Query, pick: Pick) -> list[str]:
    """The faults of a ladder. ``codecs``: the chosen one, then the rungs. ``fitting``: all that meet the accuracy."""
    if not codecs:
        return []
    chosen, rungs = codecs[0], codecs[1:]
    others = [rung for rung in rungs if rung is not chosen]
    fitting = [one for one in fitting if _in_time(one, chosen, query, pick, 1 - 1e-9)]
    complete = len(rungs) == limits.MAX_LADDER or all(
        any(_as_good(rung, one, MIN_SAVING) for rung in rungs) for one in fitting
    )
    checks = {
        "the ladder's bytes do not fall": all(a.frame_bytes >= b.frame_bytes for a, b in pairwise(rungs)),
        "the ladder's noise does not rise": all(a.noise <= b.noise for a, b in pairwise(others)),
        "another codec beats one of the ladder": not any(_beats(one, rung) for rung in others for one in fitting),
        "the ladder lacks a codec that none on it beats": complete,
        "rungs of the ladder are nearly equal in size": all(
            not b.frame_bytes <= a.frame_bytes <= MIN_SAVING * b.frame_bytes for a, b in pairwise(others)
        ),
        "the device makes a codec of the ladder too slowly": all(
            _in_time(one, chosen, query, pick, 1 + 1e-9) for one in others
        ),
        "the ladder is too long": len(rungs) <= limits.MAX_LADDER,
    }
    return [fault for fault, holds in checks.items() if not holds]


def _in_time(codec: CutCodec, chosen: CutCodec, query: Query, pick: Pick, tolerance: float) -> bool:
    """Whether the device makes ``codec`` in time. ``tolerance``: a factor on each limit."""
    extra, demand = _coding_ms(codec, query) - _coding_ms(chosen, query), query.demand
    return (
        pick.total_ms + extra <= LONGER * pick.total_ms * tolerance
        and (demand.max_latency_ms is None or pick.total_ms + extra <= demand.max_latency_ms * tolerance)
        and (demand.min_rate_fps is None or (pick.device_ms + extra) * demand.min_rate_fps <= 1000 * tolerance)
    )


def _coding_ms(codec: CutCodec, query: Query) -> float:
    return sum(1e-6 * amount * query.stage_ns[STAGES.index(stage)] for stage, amount in codec.work.items())


def _as_good(a: CutCodec, b: CutCodec, ratio: float = 1.0) -> bool:
    return a.frame_bytes <= ratio * b.frame_bytes and a.noise <= b.noise


def _beats(a: CutCodec, b: CutCodec) -> bool:
    return _as_good(a, b) and (a.frame_bytes, a.noise) != (b.frame_bytes, b.noise)


def _cost_faults(table: Table, query: Query, pick: Pick, size: int, frame: int) -> list[str]:
    """The faults of times, energy and objective. ``size``: of the segment. ``frame``: bytes of a frame."""
    link, weights, power = query.link, query.demand.weights, query.power
    sends = pick.codec is not None
    tails = query.tail_ms or [option.tail_ms for option in table.options]
    head, tail = query.head_ms[pick.option], tails[pick.option] if sends else 0.0
    if pick.codec is not None:
        head += _coding_ms(table.options[pick.option].codecs[pick.codec], query)
    seconds = frame * 8 / (link.uplink_mbps * 1e6)
    transfer = 1e3 * seconds + link.rtt_ms + query.sending_ms if sends else 0.0
    total = head + transfer + tail + (query.queue_ms if sends else 0.0)
    energy = (power.compute_w or 0.0) * head / 1e3 + (power.transmit_w or 0.0) * seconds
    fetch, traffic = 0.0, frame if sends else 0.0
    if query.demand.frames is not None and pick.pattern not in query.held:
        fetch = size * 8 / (link.downlink_mbps * 1e6) / query.demand.frames
        traffic += size / query.demand.frames
    objective = weights.time * (total / 1e3 + fetch) + weights.energy * energy + weights.cost * tail / 1e3
    objective += weights.megabyte * traffic / 1e6
    checks = {
        "the device's time is wrong": close(pick.device_ms, head),
        "the server's time is wrong": close(pick.server_ms, tail),
        "the transfer's time is wrong": close(pick.transfer_ms, transfer),
        "the total is not the sum of its parts": close(pick.total_ms, total),
        "the energy is wrong": close(pick.energy_j, energy),
        "the objective is wrong": close(pick.objective, objective),
    }
    return [fault for fault, holds in checks.items() if not holds]
