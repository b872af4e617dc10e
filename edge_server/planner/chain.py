"""A network over a chain of unlike devices and the server: which device computes from where to where, and by which codec each tensor is sent.

    total   = sum over the devices used (their span) + sum over the links used (frame bytes / uplink + round trip) + queue + tail
    pace    = the slowest of all spans, of all sendings and the tail; and total / window, since no more frames are under way at once
    noise   = codecs of the links used + head and weights up to the last integer cut

A span is the time of one device from decoding what it got to the payload that it sends. A device is left out where a link leads past it, and may pass
a tensor on uncomputed where none does. Nothing is said of the order but that devices compute in the chain's.

Exact: dynamic programming over (device, cut), first device to last. What is best for the time may be worst for the noise, so each state keeps
every pair of both that no other beats (`_Label`). For the greatest rate the pace is a bound on each span and sending, and the least one is found by
bisection over all times that occur: the fastest route within a greater bound is never slower. Weights count at their least noise while the route is
sought; what the noise's budget then leaves is spent on fewer weight bits, which changes bytes to fetch and no frame's time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent import errors
from edge_agent.protocol.messages import Demand, LinkEstimate, Objective
from edge_server.planner import words
from edge_server.planner.allocation import Layer, allocate, front
from edge_server.planner.demands import Power, check
from edge_server.planner.online import may_leave
from edge_server.planner.patterns import Level, Place

F64 = NDArray[np.float64]

INPUT = -1  # the place before the first


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """``span_ms[a + 1, b]``: its time from place a (row 0: from the model's input) to place b, decoding and encoding included; infinite where it cannot.
    ``memory_bytes``: what is free; None: not known, not checked."""

    span_ms: F64
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """``links[i, j]``: from device i to a later device j, or, with j the number of devices, to the server. ``span_bytes`` as `Device.span_ms`: what the
    segment needs on a board. ``levels``: accuracy levels, rising. ``tail_ms[p]``: the server's time behind place p."""

    model: str
    places: tuple[Place, ...]
    levels: tuple[Level, ...]
    demand: Demand
    objective: Objective
    devices: tuple[Device, ...]
    links: Mapping[tuple[int, int], LinkEstimate]
    span_bytes: F64
    tail_ms: tuple[float, ...]
    queue_ms: float = 0.0
    window: int = 8
    spread: bool = False  # every device, and the server, must have a part


@dataclass(frozen=True, slots=True)
class Step:
    """``device`` computes from place ``start`` (`INPUT`: the model's input) to place ``end`` and sends it by ``codec`` of that place to the device
    ``to``, or to the server where that is their number; None: the answer is made here."""

    device: int
    start: int
    end: int
    codec: int | None
    to: int | None
    span_ms: float
    sending_ms: float  # bytes over the uplink
    rtt_ms: float


@dataclass(frozen=True, slots=True)
class Route:
    """The devices used, in order. ``bits``: of the weight layers up to the last place. ``server_ms``: queue not included; 0 where nothing is sent."""

    steps: tuple[Step, ...]
    bits: tuple[int, ...]
    queue_ms: float
    server_ms: float
    total_ms: float
    pace_ms: float
    noise: float


class _Label(NamedTuple):
    """One way to a state: its time and its codecs' noise so far, the last step (`Step` without its times), and the way before that."""

    ms: float
    noise: float
    device: int = -1
    start: int = INPUT
    end: int = INPUT
    codec: int | None = None
    to: int | None = None
    before: _Label | None = None


def share(chain: Chain) -> Route:
    """The route of least total time, or of least pace and among those of least time, that meets the demand.

    The demand's accuracy, ``keep``, ``max_latency_ms`` and ``min_rate_fps`` count; its weights of energy and cost do not. Raises `errors.UsageError`
    for a chain that makes no sense, `errors.InfeasibleError` where no route meets the demand.
    """
    _check(chain)
    demand = chain.demand
    level = max((i for i, one in enumerate(chain.levels) if one.drop_points <= demand.max_drop_points), default=-1)
    budget = chain.levels[level].noise if level >= 0 else -1.0
    slowest = math.inf if demand.min_rate_fps is None else 1000 / demand.min_rate_fps
    longest = math.inf if demand.max_latency_ms is None else demand.max_latency_ms
    longest = min(longest, slowest * chain.window)
    best = (
        _least_pace(chain, budget, slowest, longest) if chain.objective == "rate" else _fastest(chain, budget, slowest)
    )
    if best is None or best.ms > longest:
        raise _infeasible(chain, budget)
    return _route(chain, best, budget)


def _least_pace(chain: Chain, budget: float, slowest: float, longest: float) -> _Label | None:
    """The fastest way of least pace that takes no longer than ``longest``.

    Within a bound the pace is the bound or, if that is more, the fastest way's time over the window: the first rises and the second falls with the
    bound, so the best lies where they cross, on one of two neighbouring bounds.
    """
    bounds = sorted(bound for bound in _times(chain) if bound <= slowest)

    def way(index: int) -> _Label | None:
        found = _fastest(chain, budget, bounds[index]) if index >= 0 else None
        return found if found is not None and found.ms <= longest else None

    low, high = -1, len(bounds) - 1  # no way at low, or one that is bound by the window; the answer at high
    while high - low > 1:
        middle = (low + high) // 2
        found = way(middle)
        crossed = found is not None and found.ms <= chain.window * bounds[middle]
        low, high = (low, middle) if crossed else (middle, high)
    ways = [found for found in (way(low), way(high)) if found is not None]
    return min(ways, key=lambda one: (_pace(chain, one), one.ms), default=None)


def _times(chain: Chain) -> set[float]:
    """Every time that may be the slowest of a route."""
    spans = {float(ms) for device in chain.devices for ms in device.span_ms.flat if math.isfinite(ms)}
    sizes = {codec.frame_bytes for place in chain.places for codec in place.codecs}
    return spans | {_sending(size, link) for size in sizes for link in chain.links.values()} | set(chain.tail_ms)


def _sending(size: int, link: LinkEstimate) -> float:
    return size * 8e-3 / link.uplink_mbps


def _fastest(chain: Chain, budget: float, bound: float) -> _Label | None:
    """The way of least time whose spans, sendings and tail all take ``bound`` or less. What takes as long as a whole way that is known goes no further."""
    rooms = [budget - _own_noise(place) for place in chain.places]
    fronts = [front(place.codecs, range(len(place.codecs)))[::-1] for place in chain.places]  # fewest bytes first
    count = len(chain.devices)
    arrived: list[dict[int, list[_Label]]] = [{} for _ in range(count)]
    arrived[0] = {INPUT: [_Label(0.0, 0.0)]}
    best: _Label | None = None
    for device in range(count):
        limit = math.inf if best is None else best.ms
        for end, labels in _computed(chain, device, arrived[device], bound, limit).items():
            if chain.places[end].cut.kind == "output":
                best = _least(best, [label for label in labels if label.noise <= rooms[end]])
                continue
            for target in range(device + 1, count + 1):
                link = chain.links.get((device, target)) if target == device + 1 or not chain.spread else None
                if link is None or (device == 0 and not may_leave(chain.places[end], chain.demand.keep)):
                    continue
                room = rooms[end] if target == count else max(rooms[end:])
                sent = _sent(chain, labels, end, target, link, fronts[end], bound, room)
                if target < count:
                    arrived[target].setdefault(end, []).extend(sent)
                elif chain.tail_ms[end] <= bound:
                    away = chain.queue_ms + chain.tail_ms[end]
                    best = _least(best, [label._replace(ms=label.ms + away) for label in sent])
    return best


def _least(best: _Label | None, found: Sequence[_Label]) -> _Label | None:
    """The one of least time of ``found``, or ``best`` where none is faster."""
    least = min(found, key=lambda label: label[:2], default=None)
    return best if least is None or (best is not None and best.ms <= least.ms) else least


def _own_noise(place: Place) -> float:
    """The least noise of a head that ends at ``place``, codecs left out."""
    return place.noise + math.fsum(min(layer.noise) for layer in place.layers)


def _computed(
    chain: Chain, device: int, arrived: dict[int, list[_Label]], bound: float, limit: float
) -> dict[int, list[_Label]]:
    """Ways to have computed up to each place on ``device`` in less than ``limit``; the last step of each is not sent yet."""
    found: dict[int, list[_Label]] = {}
    one = chain.devices[device]
    for start, labels in arrived.items():
        kept = _unbeaten(labels)
        for end in range(max(start, 0), len(chain.places)):
            ms = float(one.span_ms[start + 1, end])
            heavy = one.memory_bytes is not None and chain.span_bytes[start + 1, end] > one.memory_bytes
            if heavy or (chain.spread and not _takes_part(chain, start, end)) or not ms <= bound or ms == math.inf:
                continue
            found.setdefault(end, []).extend(
                _Label(label.ms + ms, label.noise, device, start, end, None, None, label)
                for label in kept
                if label.ms + ms < limit
            )
    return {end: _unbeaten(labels) for end, labels in found.items()}


def _takes_part(chain: Chain, start: int, end: int) -> bool:
    """Whether something is computed from ``start`` to ``end``, and something is left to do."""
    return end != start and chain.places[end].cut.kind == "inside"


def _sent(
    chain: Chain,
    labels: Sequence[_Label],
    end: int,
    target: int,
    link: LinkEstimate,
    codecs: Sequence[int],
    bound: float,
    room: float,
) -> list[_Label]:
    """``labels``, each by every one of ``codecs`` of the place ``end`` over ``link`` to ``target``, with no more noise than ``room``."""
    found = []
    for index in codecs:
        codec = chain.places[end].codecs[index]
        sending = _sending(codec.frame_bytes, link)
        if sending <= bound:
            away = sending + link.rtt_ms
            found += [
                _Label(
                    label.ms + away,
                    label.noise + codec.noise,
                    label.device,
                    label.start,
                    end,
                    index,
                    target,
                    label.before,
                )
                for label in labels
                if label.noise + codec.noise <= room
            ]
    return _unbeaten(found)


def _unbeaten(labels: Sequence[_Label]) -> list[_Label]:
    """Those that no other equals or beats in time and in noise."""
    kept: list[_Label] = []
    for label in sorted(labels, key=lambda one: one[:2]):
        if not kept or label.noise < kept[-1].noise:
            kept.append(label)
    return kept


def _steps(chain: Chain, label: _Label) -> tuple[Step, ...]:
    """All steps of a way, with their times."""
    found = []
    at: _Label | None = label
    while at is not None and at.device >= 0:
        span, sending, rtt = float(chain.devices[at.device].span_ms[at.start + 1, at.end]), 0.0, 0.0
        if at.codec is not None and at.to is not None:
            link = chain.links[at.device, at.to]
            sending, rtt = _sending(chain.places[at.end].codecs[at.codec].frame_bytes, link), link.rtt_ms
        found.append(Step(at.device, at.start, at.end, at.codec, at.to, span, sending, rtt))
        at = at.before
    return tuple(reversed(found))


def _tail_of(chain: Chain, last: Step) -> float:
    return 0.0 if last.to is None else chain.tail_ms[last.end]


def _pace(chain: Chain, label: _Label) -> float:
    steps = _steps(chain, label)
    slowest = max(max(step.span_ms, step.sending_ms) for step in steps)
    return max(slowest, _tail_of(chain, steps[-1]), label.ms / chain.window)


def _route(chain: Chain, best: _Label, budget: float) -> Route:
    steps = _steps(chain, best)
    place = chain.places[steps[-1].end]
    bits = _bits(place.layers, budget - place.noise - best.noise)
    weights = math.fsum(layer.noise[b - 2] for layer, b in zip(place.layers, bits, strict=True))
    away = steps[-1].to is not None
    return Route(
        steps, bits, chain.queue_ms if away else 0.0, _tail_of(chain, steps[-1]), best.ms, _pace(chain, best),
        best.noise + place.noise + weights,
    )  # fmt: skip


def _bits(layers: Sequence[Layer], budget: float) -> tuple[int, ...]:
    """The fewest bytes within ``budget``; the least noise where rounding of sums leaves nothing at all."""
    try:
        return allocate(layers, budget).bits
    except errors.InfeasibleError:
        return tuple(2 + min(range(len(layer.noise)), key=layer.noise.__getitem__) for layer in layers)


def _infeasible(chain: Chain, budget: float) -> errors.InfeasibleError:
    """Names the constraint without which there is a route, or else all of the demand's."""
    least = min((_own_noise(place) for place in chain.places), default=math.inf)
    if budget < least:
        points = next((level.drop_points for level in chain.levels if level.noise >= least), math.inf)
        return words.infeasible(chain.model, chain.demand, None, {"max_drop_points": points}, all_of=True)
    found = _fastest(chain, budget, math.inf)
    if found is None:
        return errors.InfeasibleError(
            f"no way to share {chain.model} among these boards keeps {chain.demand.keep!r} on the first within their memory and "
            f"{chain.demand.max_drop_points:g} points: allow more of one of them",
            binding=["keep", "memory", "max_drop_points"],
        )
    wanted: dict[str, float | str] = {}
    if chain.demand.max_latency_ms is not None:
        wanted["max_latency_ms"] = found.ms
    if chain.demand.min_rate_fps is not None:
        slowest = _least_pace(chain, budget, math.inf, math.inf)
        wanted["min_rate_fps"] = 1000 / _pace(chain, slowest or found)
    return words.infeasible(chain.model, chain.demand, None, wanted, all_of=True)


def _check(chain: Chain) -> None:
    names = sorted(set().union(*(place.inside for place in chain.places)))
    for link in chain.links.values():
        check(chain.model, chain.demand, link, Power(), names)
    shape, count = (len(chain.places) + 1, len(chain.places)), len(chain.devices)
    if chain.demand.mode != "any":
        raise errors.UsageError("boards in a chain share a model as the planner finds best: leave the mode at any")
    if not chain.devices or any(device.span_ms.shape != shape for device in chain.devices):
        raise errors.UsageError(f"a chain needs a device and for each of them times {shape}: give both")
    if len(chain.tail_ms) != len(chain.places) or chain.span_bytes.shape != shape or chain.window < 1:
        raise errors.UsageError(
            "a chain's tails and memory belong to its places, and its window is 1 or more: give these"
        )
    if not chain.links or any(not 0 <= i < j <= count for i, j in chain.links):
        raise errors.UsageError("a chain's links lead from each device to a later one or to the server: give these")
