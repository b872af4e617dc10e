"""An independent check of a route: written from the definitions, shares no code with the search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from edge_server.planner.allocation import Allocation
from edge_server.planner.chain import INPUT, Chain, Route
from edge_server.planner.patterns import CutOption
from edge_server.planner.verify_bits import close, verify_allocation, weight_bytes
from splitedge.codec import STAGES


class _HopPath(NamedTuple):
    """A `Hop` without its times."""

    board: int
    start: int
    end: int
    codec: int | None
    to: int | None


class _Figures(NamedTuple):
    """The figures of a path by the chain's tables: work, sending and round trip of each hop; and in total."""

    hops: list[tuple[float, float, float]]
    total_ms: float
    pace_ms: float
    noise: float  # at least


def verify_route(chain: Chain, route: Route) -> list[str]:
    """The faults of ``route``, a sentence each.

    Empty if it leads from the input to the answer within the demand, its times and noise follow from the tables, its
    bits are the fewest that the noise allows, and no other cut or codec of one link is better.
    """
    path = [_HopPath(one.board, one.start, one.end, one.codec, one.to) for one in route.hops]
    if faults := _path_faults(chain, path):
        return faults
    figures, last = _figures(chain, path), chain.options[path[-1].end]
    sends = path[-1].to is not None
    found = [(one.work_ms, one.sending_ms, one.rtt_ms) for one in route.hops]
    checks = {
        "a hop's time is wrong": all(
            close(a, b) for one, own in zip(figures.hops, found, strict=True) for a, b in zip(one, own, strict=True)
        ),
        "the server's time is wrong": close(route.server_ms, chain.tail_ms[path[-1].end] if sends else 0.0),
        "the queue's time is wrong": close(route.queue_ms, chain.queue_ms if sends else 0.0),
        "the total is not the sum of its parts": close(route.total_ms, figures.total_ms),
        "the pace is not that of the slowest": close(route.pace_ms, figures.pace_ms),
        "the route exceeds the demand": _meets(chain, figures, 1 + 1e-9),
        "another cut or codec of one link is better": not any(
            _meets(chain, other, 1 - 1e-9) and _objective(chain, other) < _objective(chain, figures) * (1 - 1e-9)
            for other in (_figures(chain, one) for one in _neighbours(chain, path) if not _path_faults(chain, one))
        ),
    }
    faults = [fault for fault, holds in checks.items() if not holds]
    return faults + _bits_faults(chain, route, path, last)


def _path_faults(chain: Chain, path: Sequence[_HopPath]) -> list[str]:
    """Whether the hops exist, follow from each other, and are possible and allowed."""
    count = len(chain.boards)
    if not path or any(
        not (0 <= hop.board < count and INPUT <= hop.start <= hop.end < len(chain.options)) or hop.end < 0
        for hop in path
    ):
        return ["a board or a cut does not exist"]
    if any(hop.codec is not None and not 0 <= hop.codec < len(chain.options[hop.end].codecs) for hop in path):
        return ["a codec does not exist"]
    kinds = [chain.options[hop.end].cut.kind for hop in path]
    checks = {
        "it does not begin with the input on the first board": path[0][:2] == (0, INPUT),
        "its hops do not follow from each other": all(a.end == b.start and a.to == b.board for a, b in pairwise(path)),
        "it does not end with the answer": path[-1].to == (None if kinds[-1] == "output" else count),
        "a hop sends without a codec or a target": all(
            (hop.codec is None) == (hop.to is None) == (kind == "output") for hop, kind in zip(path, kinds, strict=True)
        ),
        "there is no such link": all(
            hop.to is None or (hop.to > hop.board and (hop.board, hop.to) in chain.links) for hop in path
        ),
        "a kept tensor leaves the first board": _keeps(chain, path[0]),
        "a board or the server has no part": not chain.spread
        or (
            len(path) == count
            and all(hop.start != hop.end and kind == "inside" for hop, kind in zip(path, kinds, strict=True))
        ),
    }
    return [fault for fault, holds in checks.items() if not holds] + _board_faults(chain, path)


def _keeps(chain: Chain, first: _HopPath) -> bool:
    keep, option = chain.demand.keep, chain.options[first.end]
    if option.cut.kind == "output" or keep == "nothing":
        return True
    if keep == "input":
        return not (option.is_input or option.cut.kind == "input")
    return keep in option.inside


def _board_faults(chain: Chain, path: Sequence[_HopPath]) -> list[str]:
    """Whether each board can compute its part and has the memory for it."""
    faults = []
    for hop in path:
        board = chain.boards[hop.board]
        if not board.span_ms[hop.start + 1, hop.end] < float("inf"):
            faults.append("a board cannot compute its part")
        if board.memory_bytes is not None and chain.span_bytes[hop.start + 1, hop.end] > board.memory_bytes:
            faults.append("a board has too little memory")
    return faults


def _figures(chain: Chain, path: Sequence[_HopPath]) -> _Figures:
    hops: list[tuple[float, float, float]] = []
    last, came = chain.options[path[-1].end], None
    noises = [last.noise, *(min(layer.noise) for layer in last.layers)]
    for index, start, end, number, to in path:
        board, codec = chain.boards[index], None if number is None else chain.options[end].codecs[number]
        stages = [pair for made in (came, codec) if made is not None for pair in made.work.items()]
        coding = 1e-6 * sum(values * board.stage_ns[STAGES.index(stage)] for stage, values in stages)
        link = None if to is None else chain.links[index, to]
        sending = 0.0 if link is None or codec is None else codec.frame_bytes * 8 / (link.uplink_mbps * 1e3)
        hops.append((float(board.span_ms[start + 1, end]) + coding, sending, 0.0 if link is None else link.rtt_ms))
        noises.append(0.0 if codec is None else codec.noise)
        came = codec
    sends = path[-1].to is not None
    tail = chain.tail_ms[path[-1].end] if sends else 0.0
    total = sum(map(sum, hops)) + tail + (chain.queue_ms if sends else 0.0)
    pace = max(tail, total / chain.window, *(ms for work, sending, _ in hops for ms in (work, sending)))
    return _Figures(hops, total, pace, math.fsum(noises))


def _meets(chain: Chain, figures: _Figures, tolerance: float) -> bool:
    """Whether the figures meet the demand. ``tolerance``: a factor on each limit."""
    demand = chain.demand
    return (
        figures.noise <= _allowed(chain) * tolerance
        and (demand.max_latency_ms is None or figures.total_ms <= demand.max_latency_ms * tolerance)
        and (demand.min_rate_fps is None or figures.pace_ms * demand.min_rate_fps <= 1000 * tolerance)
    )


def _allowed(chain: Chain) -> float:
    return max((one.noise for one in chain.levels if one.drop_points <= chain.demand.max_drop_points), default=-1.0)


def _objective(chain: Chain, figures: _Figures) -> float:
    return figures.pace_ms if chain.objective == "rate" else figures.total_ms


def _neighbours(chain: Chain, path: Sequence[_HopPath]) -> Iterator[list[_HopPath]]:
    """The paths that differ in the cut of one link, or in its codec, or in both."""
    for i, hop in enumerate(path):
        if hop.to is None:
            continue
        for end, option in enumerate(chain.options):
            after = [path[i + 1]._replace(start=end), *path[i + 2 :]] if i + 1 < len(path) else []
            for codec in range(len(option.codecs)):
                yield [*path[:i], hop._replace(end=end, codec=codec), *after]


def _bits_faults(chain: Chain, route: Route, path: Sequence[_HopPath], last: CutOption) -> list[str]:
    """The faults of the bits, which must take the fewest bytes that the codecs' noise leaves room for."""
    if len(route.bits) != len(last.layers) or any(
        not 0 <= b - 2 < len(layer.noise) for b, layer in zip(route.bits, last.layers, strict=True)
    ):
        return ["a width does not exist"]
    sent = [chain.options[hop.end].codecs[hop.codec].noise for hop in path if hop.codec is not None]
    other = sum(map(Fraction, sent), Fraction(last.noise))
    noise = math.fsum(layer.noise[b - 2] for b, layer in zip(route.bits, last.layers, strict=True))
    size = sum(weight_bytes(layer, b) for b, layer in zip(route.bits, last.layers, strict=True))
    # A route may use the whole budget, and sums of floats may then exceed it by their rounding.
    room = float(Fraction(_allowed(chain)) * Fraction(1 + 1e-12) - other)
    faults = verify_allocation(last.layers, room, (), 0.0, Allocation(route.bits, None, size, noise, size))
    return faults + ([] if close(route.noise, noise + float(other)) else ["the noise is wrong"])
