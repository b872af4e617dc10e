"""A network over a chain of unlike devices and the server: which device computes from where to where, and by which codec each tensor is sent.

    total   = sum over the devices used (their work) + sum over the links used (frame bytes / uplink + round trip) + queue + tail
    work    = span + values x ns of each stage of the codec by which the tensor came, and of the one by which it is sent
    pace    = the slowest of all devices' work, of all sendings and the tail; and total / window, since no more frames are under way at once
    noise   = codecs of the links used + head and weights up to the last integer cut

A span is the time of one device from unpacking what it got to the packed payload that it sends; what codecs do beside packing takes as long to undo. A device is left out where a link leads past it, and may pass
a tensor on uncomputed where none does. Nothing is said of the order but that devices compute in the chain's.

Exact: dynamic programming over (device, cut), first device to last. What is best for the time may be worst for the noise, or keep the device busy
for longer, so each state keeps every triple of these that no other beats (`_Label`). For the greatest rate the pace is a bound on each device's work
and each sending, and the least one is found by bisection over all times that occur: the fastest route within a greater bound is never slower. Weights count at their least noise while the route is
sought; what the noise's budget then leaves is spent on fewer weight bits, which changes bytes to fetch and no frame's time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_server.planner import refusals
from edge_server.planner.allocation import CutCodec, Layer, allocate
from edge_server.planner.demands import Power, check, check_name
from edge_server.planner.online import may_leave
from edge_server.planner.patterns import Level, Place
from splitedge import errors
from splitedge.codec import STAGES
from splitedge.protocol.messages import Demand, LinkEstimate, Objective

F64 = NDArray[np.float64]

INPUT = -1  # the place before the first


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """``span_ms[a + 1, b]``: its time from place a (row 0: from the model's input) to place b, unpacking and packing included; infinite where it cannot.
    ``memory_bytes``: what is free; None: not known, not checked. ``stage_ns``: its time for each of `codec.STAGES` of a codec, a value, either way."""

    span_ms: F64
    memory_bytes: int | None = None
    stage_ns: tuple[float, ...] = (0.0,) * len(STAGES)

    def coding_ms(self, codec: CutCodec) -> float:
        """What ``codec`` takes beside packing, or beside unpacking."""
        return sum(1e-6 * amount * self.stage_ns[STAGES.index(stage)] for stage, amount in codec.work.items())


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
    work_ms: float  # the span, and the stages of both codecs
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


class _Way(NamedTuple):
    """A codec of a place by which one device sends to another, or to the server, and what it costs them; the server's part is in its tail."""

    codec: int
    noise: float
    sending_ms: float
    encode_ms: float
    decode_ms: float


class _Label(NamedTuple):
    """One way to a state: its time and its codecs' noise so far, for how long it has kept the device that it is at, the last step (`Step` without its
    times), and the way before that."""

    ms: float
    noise: float
    busy_ms: float = 0.0  # 0 too where nothing that follows can take so long that it matters
    device: int = -1
    start: int = INPUT
    end: int = INPUT
    codec: int | None = None
    to: int | None = None
    before: _Label | None = None


@dataclass(frozen=True, slots=True)
class _Search:
    """A chain, the noise that its demand allows, for each (device, place, target) the ways to send that no other beats, fewest bytes first, and for each
    (device, place) the longest that coding takes on any of them."""

    chain: Chain
    budget: float
    ways: Mapping[tuple[int, int, int], Sequence[_Way]]
    longest_ms: Mapping[tuple[int, int], float]


def share(chain: Chain) -> Route:
    """The route of least total time, or of least pace and among those of least time, that meets the demand.

    The demand's accuracy, ``keep``, ``max_latency_ms`` and ``min_rate_fps`` count; its weights of energy and cost do not. Raises `errors.UsageError`
    for a chain that makes no sense, `errors.InfeasibleError` where no route meets the demand.
    """
    _check(chain)
    demand = chain.demand
    level = max((i for i, one in enumerate(chain.levels) if one.drop_points <= demand.max_drop_points), default=-1)
    search = _search(chain, chain.levels[level].noise if level >= 0 else -1.0)
    slowest = math.inf if demand.min_rate_fps is None else 1000 / demand.min_rate_fps
    longest = math.inf if demand.max_latency_ms is None else demand.max_latency_ms
    longest = min(longest, slowest * chain.window)
    best = _least_pace(search, slowest, longest) if chain.objective == "rate" else _fastest(search, slowest)
    if best is None or best.ms > longest:
        raise _infeasible(search)
    return _route(chain, best, search.budget)


def _search(chain: Chain, budget: float) -> _Search:
    ways = _ways(chain)
    longest: dict[tuple[int, int], float] = {}
    for (device, place, _), some in ways.items():
        longest[device, place] = max([way.encode_ms for way in some] + [longest.get((device, place), 0.0)])
    return _Search(chain, budget, ways, longest)


def _ways(chain: Chain) -> dict[tuple[int, int, int], list[_Way]]:
    """`_Search.ways`."""
    return {
        (device, index, target): _unbeaten_ways([
            _Way(
                number, codec.noise, _sending(codec.frame_bytes, link), chain.devices[device].coding_ms(codec),
                0.0 if target == len(chain.devices) else chain.devices[target].coding_ms(codec),
            )
            for number, codec in enumerate(place.codecs)
        ])
        for (device, target), link in chain.links.items()
        for index, place in enumerate(chain.places)
        if place.cut.kind != "output"
    }  # fmt: skip


def _unbeaten_ways(ways: Sequence[_Way]) -> list[_Way]:
    """Those that no other equals or beats in everything, the quickest to send first."""
    kept: list[_Way] = []
    for way in sorted(ways, key=lambda one: (one.sending_ms, *one[1:])):
        if not any(all(a <= b for a, b in zip(one[1:], way[1:], strict=True)) for one in kept):
            kept.append(way)
    return kept


def _least_pace(search: _Search, slowest: float, longest: float) -> _Label | None:
    """The fastest way of least pace that takes no longer than ``longest``.

    Within a bound the pace is the bound or, if that is more, the fastest way's time over the window: the first rises and the second falls with the
    bound, so the best lies where they cross, on one of two neighbouring bounds.
    """
    bounds = [bound for bound in _times(search.chain) if bound <= slowest]

    def way(index: int) -> _Label | None:
        found = _fastest(search, bounds[index]) if index >= 0 else None
        return found if found is not None and found.ms <= longest else None

    low, high = -1, len(bounds) - 1  # no way at low, or one that is bound by the window; the answer at high
    while high - low > 1:
        middle = (low + high) // 2
        found = way(middle)
        crossed = found is not None and found.ms <= search.chain.window * bounds[middle]
        low, high = (low, middle) if crossed else (middle, high)
    ways = [found for found in (way(low), way(high)) if found is not None]
    return min(ways, key=lambda one: (_pace(search.chain, one), one.ms), default=None)


def _times(chain: Chain) -> list[float]:
    """Every time that may be the slowest of a route, rising."""
    sizes = {codec.frame_bytes for place in chain.places for codec in place.codecs}
    found = {_sending(size, link) for size in sizes for link in chain.links.values()} | set(chain.tail_ms)
    for device in chain.devices:
        codings = [{device.coding_ms(codec) for codec in place.codecs} or {0.0} for place in chain.places]
        for start, end in np.argwhere(np.isfinite(device.span_ms)):
            arrived = codings[start - 1] if start else {0.0}
            span = float(device.span_ms[start, end])
            found |= {_work(span, before, after) for before in arrived for after in codings[end]}
    return sorted(found)


def _work(span: float, decode: float, encode: float) -> float:
    """The sum in one order, for a bound must be met to the last bit by the work that it is."""
    return span + decode + encode


def _sending(size: int, link: LinkEstimate) -> float:
    return size * 8e-3 / link.uplink_mbps


def _fastest(search: _Search, bound: float) -> _Label | None:
    """The way of least time whose devices' work, sendings and tail all take ``bound`` or less. What takes as long as a whole way that is known goes no
    further."""
    chain = search.chain
    rooms = [search.budget - _own_noise(place) for place in chain.places]
    count = len(chain.devices)
    arrived: list[dict[int, list[_Label]]] = [{} for _ in range(count)]
    arrived[0] = {INPUT: [_Label(0.0, 0.0)]}
    best: _Label | None = None
    for device in range(count):
        limit = math.inf if best is None else best.ms
        for end, labels in _computed(search, device, arrived[device], bound, limit).items():
            if chain.places[end].cut.kind == "output":
                best = _least(best, [label for label in labels if label.noise <= rooms[end]])
                continue
            for target in range(device + 1, count + 1):
                link = chain.links.get((device, target)) if target == device + 1 or not chain.spread else None
                if link is None or (device == 0 and not may_leave(chain.places[end], chain.demand.keep)):
                    continue
                room = rooms[end] if target == count else max(rooms[end:])
                sent = _sent(labels, target, link.rtt_ms, search.ways[device, end, target], bound, room)
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
    search: _Search, device: int, arrived: dict[int, list[_Label]], bound: float, limit: float
) -> dict[int, list[_Label]]:
    """Ways to have computed up to each place on ``device`` in less than ``limit``; the last step of each is not sent yet."""
    found: dict[int, list[_Label]] = {}
    chain, one = search.chain, search.chain.devices[device]
    for start, labels in arrived.items():
        kept = _unbeaten(labels)
        for end in range(max(start, 0), len(chain.places)):
            ms = float(one.span_ms[start + 1, end])
            heavy = one.memory_bytes is not None and chain.span_bytes[start + 1, end] > one.memory_bytes
            if heavy or (chain.spread and not _takes_part(chain, start, end)) or not ms <= bound or ms == math.inf:
                continue
            encode = search.longest_ms.get((device, end), 0.0)
            found.setdefault(end, []).extend(
                _Label(
                    label.ms + ms, label.noise, 0.0 if _work(ms, label.busy_ms, encode) <= bound else ms + label.busy_ms,
                    device, start, end, None, None, label,
                )
                for label in kept
                if label.ms + ms < limit and ms + label.busy_ms <= bound
            )  # fmt: skip
    return {end: _unbeaten(labels) for end, labels in found.items()}


def _takes_part(chain: Chain, start: int, end: int) -> bool:
    """Whether something is computed from ``start`` to ``end``, and something is left to do."""
    return end != start and chain.places[end].cut.kind == "inside"


def _sent(
    labels: Sequence[_Label], target: int, rtt_ms: float, ways: Sequence[_Way], bound: float, room: float
) -> list[_Label]:
    """``labels``, each by every one of ``ways`` to ``target``, with no more noise than ``room``; decoded there, but for the server."""
    found = []
    for way in ways:
        if way.sending_ms <= bound:
            away = way.encode_ms + way.sending_ms + rtt_ms + way.decode_ms
            busy = 0.0 if bound == math.inf else way.decode_ms
            found += [
                label._replace(
                    ms=label.ms + away, noise=label.noise + way.noise, busy_ms=busy, codec=way.codec, to=target
                )
                for label in labels
                if label.noise + way.noise <= room and label.busy_ms + way.encode_ms <= bound
            ]
    return _unbeaten(found)


def _unbeaten(labels: Sequence[_Label]) -> list[_Label]:
    """Those that no other equals or beats in time, in noise and in what it has kept the device busy."""
    kept: list[_Label] = []
    for label in sorted(labels, key=lambda one: one[:3]):
        if not any(one.noise <= label.noise and one.busy_ms <= label.busy_ms for one in reversed(kept)):
            kept.append(label)
    return kept


def _steps(chain: Chain, label: _Label) -> tuple[Step, ...]:
    """All steps of a way, with their times."""
    found = []
    at: _Label | None = label
    while at is not None and at.device >= 0:
        device, encode, sending, rtt = chain.devices[at.device], 0.0, 0.0, 0.0
        if at.codec is not None and at.to is not None:
            link, codec = chain.links[at.device, at.to], chain.places[at.end].codecs[at.codec]
            encode, sending, rtt = device.coding_ms(codec), _sending(codec.frame_bytes, link), link.rtt_ms
        came = None if at.before is None else at.before.codec
        decode = 0.0 if came is None else device.coding_ms(chain.places[at.start].codecs[came])
        work = _work(float(device.span_ms[at.start + 1, at.end]), decode, encode)
        found.append(Step(at.device, at.start, at.end, at.codec, at.to, work, sending, rtt))
        at = at.before
    return tuple(reversed(found))


def _tail_of(chain: Chain, last: Step) -> float:
    return 0.0 if last.to is None else chain.tail_ms[last.end]


def _pace(chain: Chain, label: _Label) -> float:
    steps = _steps(chain, label)
    slowest = max(max(step.work_ms, step.sending_ms) for step in steps)
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


def _infeasible(search: _Search) -> errors.InfeasibleError:
    """Names the constraint without which there is a route, or else all of the demand's."""
    chain = search.chain
    least = min((_own_noise(place) for place in chain.places), default=math.inf)
    if search.budget < least:
        points = next((level.drop_points for level in chain.levels if level.noise >= least), math.inf)
        return refusals.infeasible(chain.model, chain.demand, None, {"max_drop_points": points}, all_of=True)
    found = _fastest(search, math.inf)
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
        slowest = _least_pace(search, math.inf, math.inf)
        wanted["min_rate_fps"] = 1000 / _pace(chain, slowest or found)
    return refusals.infeasible(chain.model, chain.demand, None, wanted, all_of=True)


def _check(chain: Chain) -> None:
    names = sorted(set().union(*(place.inside for place in chain.places)))
    for link in chain.links.values():
        check(chain.model, chain.demand, link, Power(), names)
    check_name(chain.model, chain.demand, [place.cut for place in chain.places])
    shape, count = (len(chain.places) + 1, len(chain.places)), len(chain.devices)
    if chain.demand.mode != "any":
        raise errors.UsageError("boards in a chain share a model as the planner finds best: leave the mode at any")
    if not chain.devices or any(device.span_ms.shape != shape for device in chain.devices):
        raise errors.UsageError(f"a chain needs a device and for each of them times {shape}: give both")
    if any(len(one.stage_ns) != len(STAGES) or not all(ns >= 0 for ns in one.stage_ns) for one in chain.devices):
        raise errors.UsageError(
            f"stage_ns must be {len(STAGES)} times of 0 or more: one for each of {', '.join(STAGES)}"
        )
    if len(chain.tail_ms) != len(chain.places) or chain.span_bytes.shape != shape or chain.window < 1:
        raise errors.UsageError(
            "a chain's tails and memory belong to its places, and its window is 1 or more: give these"
        )
    if not chain.links or any(not 0 <= i < j <= count for i, j in chain.links):
        raise errors.UsageError("a chain's links lead from each device to a later one or to the server: give these")
