"""The best route of a chain, by dynamic programming over (board, option), first board to last. Exact.

The fastest way to a state may add more noise or keep its board busy for longer, so each state keeps every triple of
time, noise and busy time that no other beats (`_Label`).

For the highest rate, the pace is a bound on each board's work and each sending. Bisection over all times that occur
finds the smallest feasible bound, because the fastest route within a larger bound is never slower.

During the search weights count with their least noise. The rest of the noise budget then buys fewer weight bits: this
changes the bytes to download, but no frame's time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edge_server.planner import refusals
from edge_server.planner.allocation import WeightLayer, allocate
from edge_server.planner.chain import INPUT, Chain, Hop, Route, check_chain, sending_ms, work_ms
from edge_server.planner.online import may_leave
from edge_server.planner.patterns import CutOption
from splitedge import errors


class _CodecTransfer(NamedTuple):
    """A codec of an option by which one board sends to another or to the server, and its costs.

    The server's decoding counts in its tail.
    """

    codec: int
    noise: float
    sending_ms: float
    encode_ms: float
    decode_ms: float


class _Label(NamedTuple):
    """One way to a state: time and noise of codecs so far, the busy time of its board, and the last hop.

    ``busy_ms`` is also 0 if nothing that follows can exceed the bound. The fields from ``board`` to ``to`` are as in
    `Hop`. ``before`` is the way before the last hop.
    """

    ms: float
    noise: float
    busy_ms: float = 0.0
    board: int = -1
    start: int = INPUT
    end: int = INPUT
    codec: int | None = None
    to: int | None = None
    before: _Label | None = None


@dataclass(frozen=True, slots=True)
class _Search:
    """A chain and what the search looks up.

    ``budget``: the noise that the demand allows. ``transfers``: for each (board, option, target) the transfers that no
    other beats, quickest first. ``longest_ms``: for each (board, option) the longest encoding of any of them.
    """

    chain: Chain
    budget: float
    transfers: Mapping[tuple[int, int, int], Sequence[_CodecTransfer]]
    longest_ms: Mapping[tuple[int, int], float]


def plan_route(chain: Chain) -> Route:
    """The route with the least total time, or with the least pace and then the least time, that meets the demand.

    The demand's accuracy, ``keep``, ``max_latency_ms`` and ``min_rate_fps`` count; its weights of energy and cost do
    not. Raises `errors.UsageError` for an invalid chain, `errors.InfeasibleError` if no route meets the demand.
    """
    check_chain(chain)
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


# --- what the search looks up -----------------------------------------------------------------------------------------


def _search(chain: Chain, budget: float) -> _Search:
    transfers = {
        (board, index, target): _transfers(chain, board, index, target)
        for board, target in chain.links
        for index, option in enumerate(chain.options)
        if option.cut.kind != "output"
    }
    longest: dict[tuple[int, int], float] = {}
    for (board, index, _), some in transfers.items():
        longest[board, index] = max([one.encode_ms for one in some] + [longest.get((board, index), 0.0)])
    return _Search(chain, budget, transfers, longest)


def _transfers(chain: Chain, board: int, option: int, target: int) -> list[_CodecTransfer]:
    """The Pareto-optimal transfers, quickest first."""
    sender, link = chain.boards[board], chain.links[board, target]
    receiver = None if target == len(chain.boards) else chain.boards[target]
    found = [
        _CodecTransfer(
            number,
            codec.noise,
            sending_ms(codec.frame_bytes, link),
            sender.coding_ms(codec),
            0.0 if receiver is None else receiver.coding_ms(codec),
        )
        for number, codec in enumerate(chain.options[option].codecs)
    ]
    kept: list[_CodecTransfer] = []
    for one in sorted(found, key=lambda one: (one.sending_ms, *one[1:])):
        if not any(all(a <= b for a, b in zip(other[1:], one[1:], strict=True)) for other in kept):
            kept.append(one)
    return kept


def _times(chain: Chain) -> list[float]:
    """Every time that may be the slowest of a route, rising."""
    sizes = {codec.frame_bytes for option in chain.options for codec in option.codecs}
    found = {sending_ms(size, link) for size in sizes for link in chain.links.values()} | set(chain.tail_ms)
    for board in chain.boards:
        codings = [{board.coding_ms(codec) for codec in option.codecs} or {0.0} for option in chain.options]
        for start, end in np.argwhere(np.isfinite(board.span_ms)):
            arrived = codings[start - 1] if start else {0.0}
            span = float(board.span_ms[start, end])
            found |= {work_ms(span, before, after) for before in arrived for after in codings[end]}
    return sorted(found)


# --- the search -------------------------------------------------------------------------------------------------------


def _least_pace(search: _Search, slowest: float, longest: float) -> _Label | None:
    """The fastest way with the least pace that takes no longer than ``longest``.

    Within a bound, the pace is the larger of the bound and the fastest way's time over the window. With a larger bound
    the first rises and the second falls, so the best pace is where they cross: at one of two neighbouring bounds.
    """
    bounds = [bound for bound in _times(search.chain) if bound <= slowest]

    def way(index: int) -> _Label | None:
        found = _fastest(search, bounds[index]) if index >= 0 else None
        return found if found is not None and found.ms <= longest else None

    low, high = -1, len(bounds) - 1  # at low there is no way, or the window limits it; the answer is at high
    while high - low > 1:
        middle = (low + high) // 2
        found = way(middle)
        crossed = found is not None and found.ms <= search.chain.window * bounds[middle]
        low, high = (low, middle) if crossed else (middle, high)
    ways = [found for found in (way(low), way(high)) if found is not None]
    return min(ways, key=lambda one: (_pace(search.chain, one), one.ms), default=None)


def _fastest(search: _Search, bound: float) -> _Label | None:
    """The fastest way whose boards' work, sendings and tail take at most ``bound`` each.

    Partial ways that take as long as a complete one are dropped.
    """
    chain = search.chain
    rooms = [search.budget - _least_noise(option) for option in chain.options]
    count = len(chain.boards)
    arrived: list[dict[int, list[_Label]]] = [{} for _ in range(count)]
    arrived[0] = {INPUT: [_Label(0.0, 0.0)]}
    best: _Label | None = None
    for board in range(count):
        limit = math.inf if best is None else best.ms
        for end, labels in _computed(search, board, arrived[board], bound, limit).items():
            if chain.options[end].cut.kind == "output":
                best = _faster(best, [label for label in labels if label.noise <= rooms[end]])
                continue
            for target in range(board + 1, count + 1):
                link = chain.links.get((board, target)) if target == board + 1 or not chain.spread else None
                if link is None or (board == 0 and not may_leave(chain.options[end], chain.demand.keep)):
                    continue
                room = rooms[end] if target == count else max(rooms[end:])
                sent = _sent(labels, target, link.rtt_ms, search.transfers[board, end, target], bound, room)
                if target < count:
                    arrived[target].setdefault(end, []).extend(sent)
                elif chain.tail_ms[end] <= bound:
                    server_ms = chain.queue_ms + chain.tail_ms[end]
                    best = _faster(best, [label._replace(ms=label.ms + server_ms) for label in sent])
    return best


def _faster(best: _Label | None, found: Sequence[_Label]) -> _Label | None:
    """The fastest of ``found``, or ``best`` if none is faster."""
    least = min(found, key=lambda label: label[:2], default=None)
    return best if least is None or (best is not None and best.ms <= least.ms) else least


def _least_noise(option: CutOption) -> float:
    """The least noise of a head that ends at ``option``, without codecs."""
    return option.noise + math.fsum(min(layer.noise) for layer in option.layers)


def _computed(
    search: _Search, board: int, arrived: dict[int, list[_Label]], bound: float, limit: float
) -> dict[int, list[_Label]]:
    """For each option the ways to compute up to it on ``board`` within ``limit``; their last hop is not sent yet."""
    found: dict[int, list[_Label]] = {}
    chain, span_ms = search.chain, search.chain.boards[board].span_ms
    for start, labels in arrived.items():
        kept = _unbeaten(labels)
        for end in range(max(start, 0), len(chain.options)):
            ms = float(span_ms[start + 1, end])
            if not ms <= bound or ms == math.inf or not _possible(chain, board, start, end):
                continue
            encode = search.longest_ms.get((board, end), 0.0)
            for label in kept:
                total, busy = label.ms + ms, ms + label.busy_ms
                if total < limit and busy <= bound:
                    busy = 0.0 if work_ms(ms, label.busy_ms, encode) <= bound else busy
                    reached = _Label(total, label.noise, busy, board, start, end, None, None, label)
                    found.setdefault(end, []).append(reached)
    return {end: _unbeaten(labels) for end, labels in found.items()}


def _possible(chain: Chain, board: int, start: int, end: int) -> bool:
    """Whether the span fits the board's memory and, with ``spread``, gives this board and the later ones a part."""
    memory = chain.boards[board].memory_bytes
    if memory is not None and chain.span_bytes[start + 1, end] > memory:
        return False
    return not chain.spread or (end != start and chain.options[end].cut.kind == "inside")


def _sent(
    labels: Sequence[_Label], target: int, rtt_ms: float, transfers: Sequence[_CodecTransfer], bound: float, room: float
) -> list[_Label]:
    """``labels`` after each of ``transfers`` to ``target``, with a noise of at most ``room``; decoded on a board."""
    found = []
    for one in transfers:
        if one.sending_ms <= bound:
            ms = one.encode_ms + one.sending_ms + rtt_ms + one.decode_ms
            busy = 0.0 if bound == math.inf else one.decode_ms
            found += [
                label._replace(
                    ms=label.ms + ms, noise=label.noise + one.noise, busy_ms=busy, codec=one.codec, to=target
                )
                for label in labels
                if label.noise + one.noise <= room and label.busy_ms + one.encode_ms <= bound
            ]
    return _unbeaten(found)


def _unbeaten(labels: Sequence[_Label]) -> list[_Label]:
    """The labels that no other equals or beats in time, noise and busy time."""
    kept: list[_Label] = []
    for label in sorted(labels, key=lambda one: one[:3]):
        if not any(one.noise <= label.noise and one.busy_ms <= label.busy_ms for one in reversed(kept)):
            kept.append(label)
    return kept


# --- the answer -------------------------------------------------------------------------------------------------------


def _hops(chain: Chain, label: _Label) -> tuple[Hop, ...]:
    """All hops of a way, with their times."""
    found = []
    at: _Label | None = label
    while at is not None and at.board >= 0:
        board, encode, sending, rtt = chain.boards[at.board], 0.0, 0.0, 0.0
        if at.codec is not None and at.to is not None:
            link, codec = chain.links[at.board, at.to], chain.options[at.end].codecs[at.codec]
            encode, sending, rtt = board.coding_ms(codec), sending_ms(codec.frame_bytes, link), link.rtt_ms
        came = None if at.before is None else at.before.codec
        decode = 0.0 if came is None else board.coding_ms(chain.options[at.start].codecs[came])
        work = work_ms(float(board.span_ms[at.start + 1, at.end]), decode, encode)
        found.append(Hop(at.board, at.start, at.end, at.codec, at.to, work, sending, rtt))
        at = at.before
    return tuple(reversed(found))


def _server_ms(chain: Chain, last: Hop) -> float:
    return 0.0 if last.to is None else chain.tail_ms[last.end]


def _pace(chain: Chain, label: _Label) -> float:
    hops = _hops(chain, label)
    slowest = max(max(hop.work_ms, hop.sending_ms) for hop in hops)
    return max(slowest, _server_ms(chain, hops[-1]), label.ms / chain.window)


def _route(chain: Chain, best: _Label, budget: float) -> Route:
    hops = _hops(chain, best)
    option = chain.options[hops[-1].end]
    bits = _bits(option.layers, budget - option.noise - best.noise)
    weights = math.fsum(layer.noise[b - 2] for layer, b in zip(option.layers, bits, strict=True))
    return Route(
        hops=hops,
        bits=bits,
        queue_ms=0.0 if hops[-1].to is None else chain.queue_ms,
        server_ms=_server_ms(chain, hops[-1]),
        total_ms=best.ms,
        pace_ms=_pace(chain, best),
        noise=best.noise + option.noise + weights,
    )


def _bits(layers: Sequence[WeightLayer], budget: float) -> tuple[int, ...]:
    """The fewest bytes within ``budget``; the least noise if the rounding of sums leaves no budget at all."""
    try:
        return allocate(layers, budget).bits
    except errors.InfeasibleError:
        return tuple(2 + min(range(len(layer.noise)), key=layer.noise.__getitem__) for layer in layers)


def _infeasible(search: _Search) -> errors.InfeasibleError:
    """The error that names the one constraint that excludes every route, or else all constraints of the demand."""
    chain = search.chain
    least = min((_least_noise(option) for option in chain.options), default=math.inf)
    if search.budget < least:
        points = next((level.drop_points for level in chain.levels if level.noise >= least), math.inf)
        return refusals.infeasible(chain.model, chain.demand, None, {"max_drop_points": points}, all_of=True)
    found = _fastest(search, math.inf)
    if found is None:
        return errors.InfeasibleError(
            f"no route of {chain.model} over these boards meets keep = {chain.demand.keep!r} on the first board, "
            f"their memory and a drop of {chain.demand.max_drop_points:g} points: relax one of these",
            reason="no-way",
            binding=["keep", "memory", "max_drop_points"],
        )
    values: dict[str, float | str] = {}
    if chain.demand.max_latency_ms is not None:
        values["max_latency_ms"] = found.ms
    if chain.demand.min_rate_fps is not None:
        slowest = _least_pace(search, math.inf, math.inf)
        values["min_rate_fps"] = 1000 / _pace(chain, slowest or found)
    return refusals.infeasible(chain.model, chain.demand, None, values, all_of=True)
