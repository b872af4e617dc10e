"""Online: the candidate of least objective for one device, link and demand (QPART's second algorithm), over a table of patterns in memory.

    total    = head + coding + transfer + queue + tail                              where nothing is sent, head alone
    coding   = values x ns of each stage of the codec beside packing, which is in the head's time
    transfer = frame bytes / uplink + round trip + sending, what the device found sending to take beside
    energy   = watts computing x (head + coding) + watts sending x frame bytes / uplink
    objective = time x (total + fetch) + energy x joules + cost x tail              in seconds
    fetch    = segment bytes / downlink / expected frames, 0 for a segment the device holds

Exact: every candidate of every cut, pattern and codec is weighed, in a few passes over arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_server.planner import refusals
from edge_server.planner.allocation import ladder
from edge_server.planner.demands import MODES, Power, check, check_name
from edge_server.planner.patterns import Place, Table
from splitedge import errors
from splitedge.codec import STAGES
from splitedge.link.adaptation import LONGER
from splitedge.protocol.messages import Demand, LinkEstimate

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Request:
    """``head_ms[p]``: this device's time for the head of the table's place p and packing; ``tail_ms[p]``: this server's for the tail, where it knows
    better than the table. ``stage_ns``: this device's time for each of `codec.STAGES` of a codec, a value.
    """

    demand: Demand
    link: LinkEstimate
    head_ms: tuple[float, ...]
    power: Power = field(default_factory=Power)
    memory_bytes: int | None = None  # free on the board; None: not known, not checked
    tail_ms: tuple[float, ...] | None = None
    queue_ms: float = 0.0  # how long a frame waits at the server now
    sending_ms: float = 0.0  # what coding and sending a frame took this device beside what profile and link say
    stage_ns: tuple[float, ...] = (0.0,) * len(STAGES)
    held: frozenset[int] = field(
        default_factory=frozenset
    )  # indices of the table's patterns whose segments the device has


@dataclass(frozen=True, slots=True)
class Pick:
    """A candidate with its costs.

    ``ladder``: of the codecs of the place that meet the demand with this pattern and that the device makes in time those that no other beats in both
    bytes and noise, and its own; most bytes first, as `allocation.ladder`.
    """

    place: int
    pattern: int
    codec: int | None
    ladder: tuple[int, ...]
    device_ms: float
    transfer_ms: float
    queue_ms: float
    server_ms: float
    total_ms: float
    pace_ms: float  # of the slowest stage
    energy_j: float
    drop_points: float  # of the strictest level that it meets, so the upper end of what it may lose
    noise: float
    payload_bytes: int
    segment_bytes: int  # to fetch
    objective: float


@dataclass(frozen=True, slots=True)
class Rival:
    """The best candidate of another place, and which constraints it breaks; none where it only costs more."""

    pick: Pick
    broken: tuple[str, ...]


def choose(table: Table, request: Request) -> Pick:
    """The candidate of least objective that meets the demand; ties go to the fewest bytes to fetch, the least noise, the smallest frames.

    Raises `errors.UsageError` for a request that makes no sense, `errors.InfeasibleError` where no candidate meets it.
    """
    _check(table, request)
    level = _level(table, request.demand)
    count = int(table.ends[level]) if level >= 0 else 0
    costs = _costs(table, request, count)
    for broken in _broken(table, request, costs).values():
        costs.objective[broken] = np.inf
    least = costs.objective.min(initial=np.inf)
    if least == np.inf:
        raise _infeasible(table, request)
    ties = np.flatnonzero(costs.objective == least)
    best = ties[np.lexsort((table.frame_bytes[ties], table.noise[ties], costs.fetched[ties]))[0]]
    return _pick(table, request, costs, int(best))


def rivals(table: Table, request: Request, chosen: Pick) -> tuple[Rival, ...]:
    """The best candidate of every other place: those that break least first, then by objective."""
    costs = _costs(table, request, len(table.level))
    broken = _broken(table, request, costs)
    counts = sum((mask.astype(np.int64) for mask in broken.values()), np.zeros(len(table.level), np.int64))
    order = np.lexsort((table.frame_bytes, table.noise, costs.fetched, costs.objective, counts))
    _, first = np.unique(table.place[order], return_index=True)
    best = [int(i) for i in order[np.sort(first)] if table.place[i] != chosen.place]
    return tuple(
        Rival(_pick(table, request, costs, i), tuple(name for name, mask in broken.items() if mask[i])) for i in best
    )


class _Costs(NamedTuple):
    """Of the first candidates of a table, one entry each."""

    objective: F64
    coding_ms: F64  # of the codec's stages
    total_ms: F64
    pace_ms: F64  # of the slowest stage
    fetched: F64  # bytes of segment to fetch


def _costs(table: Table, request: Request, count: int) -> _Costs:
    demand, link, power = request.demand, request.link, request.power
    weights = demand.weights
    head = np.array(request.head_ms)
    sends = np.array([place.cut.kind != "output" for place in table.places])
    tail = np.where(sends, tail_times(table, request), 0.0)
    still = head + np.where(sends, tail + (request.queue_ms + link.rtt_ms + request.sending_ms), 0.0)
    base = (weights.time * still + weights.energy * (power.compute_w or 0.0) * head + weights.cost * tail) / 1000
    place = table.place[:count]
    sending = table.frame_bytes[:count] * (8e-3 / link.uplink_mbps)
    fetched = table.segment_bytes[:count]
    if request.held:
        fetched = np.where(_held(table, request)[table.pattern[:count]], 0.0, fetched)
    coding = np.array(request.stage_ns) @ table.staged[:, :count] * 1e-6
    objective = base[place] + sending * ((weights.time + weights.energy * (power.transmit_w or 0.0)) / 1000)
    objective += coding * ((weights.time + weights.energy * (power.compute_w or 0.0)) / 1000)
    if demand.frames is not None:
        objective += fetched * (weights.time * 8e-6 / link.downlink_mbps / demand.frames)
    pace = np.maximum(np.maximum(head[place] + coding, tail[place]), sending)
    return _Costs(objective, coding, still[place] + coding + sending, pace, fetched)


def tail_times(table: Table, request: Request) -> Sequence[float]:
    """Milliseconds of the tail behind each place."""
    return [place.tail_ms for place in table.places] if request.tail_ms is None else request.tail_ms


def _held(table: Table, request: Request) -> Mask:
    mask = np.zeros(len(table.patterns), np.bool_)
    mask[list(request.held)] = True
    return mask


def _broken(table: Table, request: Request, costs: _Costs) -> dict[str, Mask]:
    """For each constraint of the demand, which of the candidates break it."""
    demand, count = request.demand, len(costs.objective)
    place, found = table.place[:count], {}
    if demand.keep != "nothing":
        found["keep"] = np.array([not may_leave(one, demand.keep) for one in table.places])[place]
    if demand.mode != "any":
        found["mode"] = np.array([MODES[one.cut.kind] != demand.mode for one in table.places])[place]
    found["max_drop_points"] = table.level[:count] > _level(table, demand)
    if demand.max_latency_ms is not None:
        found["max_latency_ms"] = costs.total_ms > demand.max_latency_ms
    if demand.min_rate_fps is not None:
        found["min_rate_fps"] = costs.pace_ms * demand.min_rate_fps > 1000
    if request.memory_bytes is not None:
        found["memory"] = np.array([one.memory_bytes > request.memory_bytes for one in table.places])[place]
    return found


def may_leave(place: Place, keep: str) -> bool:
    """Whether what is at ``place`` may be sent by a device that must ``keep`` something."""
    if place.cut.kind == "output" or keep == "nothing":
        return True
    if keep == "input":
        return not (place.is_input or place.cut.kind == "input")
    return keep in place.inside


def _level(table: Table, demand: Demand) -> int:
    """The loosest level within the demand; -1 where there is none."""
    return int(np.searchsorted([level.drop_points for level in table.levels], demand.max_drop_points, side="right")) - 1


def _pick(table: Table, request: Request, costs: _Costs, i: int) -> Pick:
    index, codec = int(table.place[i]), int(table.codec[i])
    head, sends = request.head_ms[index] + float(costs.coding_ms[i]), codec >= 0
    sending = float(table.frame_bytes[i]) * 8e-3 / request.link.uplink_mbps
    joules = ((request.power.compute_w or 0.0) * head + (request.power.transmit_w or 0.0) * sending) / 1000
    return Pick(
        place=index,
        pattern=int(table.pattern[i]),
        codec=codec if sends else None,
        ladder=_ladder(table, request, costs, i) if sends else (),
        device_ms=head,
        transfer_ms=sending + request.link.rtt_ms + request.sending_ms if sends else 0.0,
        queue_ms=request.queue_ms if sends else 0.0,
        server_ms=tail_times(table, request)[index] if sends else 0.0,
        total_ms=float(costs.total_ms[i]),
        pace_ms=float(costs.pace_ms[i]),
        energy_j=joules,
        drop_points=table.levels[int(table.level[i])].drop_points,
        noise=float(table.noise[i]),
        payload_bytes=int(table.frame_bytes[i]),
        segment_bytes=int(costs.fetched[i]),
        objective=float(costs.objective[i]),
    )


def _ladder(table: Table, request: Request, costs: _Costs, i: int) -> tuple[int, ...]:
    """The rungs for candidate ``i``: of the codecs that meet the demand with its pattern those that the device makes in time.

    Another link wants another codec than the one that is best now, so one that takes a little longer to make is no worse a rung. It may make a frame take
    `LONGER` times as long, as the agent thinks too, but must leave a demanded rate and latency possible.
    """
    codecs, demand = table.places[int(table.place[i])].codecs, request.demand
    limit = max(_level(table, demand), int(table.level[i]))
    same = np.flatnonzero(table.pattern[: int(table.ends[limit])] == table.pattern[i])
    coding, total = costs.coding_ms[same], float(costs.total_ms[i])
    longer = coding - costs.coding_ms[i]
    in_time = longer <= (LONGER - 1) * total
    if demand.max_latency_ms is not None:
        in_time &= total + longer <= demand.max_latency_ms
    if demand.min_rate_fps is not None:
        in_time &= (request.head_ms[int(table.place[i])] + coding) * demand.min_rate_fps <= 1000
    return tuple(ladder(codecs, table.codec[same[in_time]].tolist(), int(table.codec[i])))


def _infeasible(table: Table, request: Request) -> errors.InfeasibleError:
    """Names the binding constraints: each whose relaxation alone would do, else all that the nearest candidate breaks."""
    costs = _costs(table, request, len(table.level))
    broken = _broken(table, request, costs)
    counts = sum((mask.astype(np.int64) for mask in broken.values()), np.zeros(len(table.level), np.int64))
    values = {name: _needed(table, name, costs) for name in broken}
    alone = {
        name: np.flatnonzero(mask & (counts == 1)) for name, mask in broken.items() if (mask & (counts == 1)).any()
    }
    if alone:
        nearest = {name: int(rows[values[name][rows].argmin()]) for name, rows in alone.items()}
    else:
        least = int(np.lexsort((costs.objective, counts))[0])
        nearest = {name: least for name, mask in broken.items() if mask[least]}
    wanted = {name: _value(table, name, values[name], i) for name, i in nearest.items()}
    return refusals.infeasible(table.model, request.demand, request.memory_bytes, wanted, all_of=not alone)


def _needed(table: Table, name: str, costs: _Costs) -> F64:
    """How far the constraint ``name`` must be relaxed to admit each candidate; the less the better."""
    match name:
        case "max_drop_points":
            return np.array([level.drop_points for level in table.levels])[table.level]
        case "max_latency_ms":
            return costs.total_ms
        case "min_rate_fps":
            return costs.pace_ms
        case "memory":
            return np.array([place.memory_bytes for place in table.places], np.float64)[table.place]
        case _:
            return -table.place.astype(np.float64)  # the later the cut, the less is given away


def _value(table: Table, name: str, needed: F64, i: int) -> float | str:
    """The least demanding value of the constraint ``name`` that candidate ``i`` meets."""
    if name == "keep":
        place = table.places[int(table.place[i])]
        return "nothing" if place.is_input or place.cut.kind == "input" else place.cut.layer
    if name == "mode":
        return MODES[table.places[int(table.place[i])].cut.kind]
    value = float(needed[i])
    if name == "min_rate_fps":
        return 1000 / value if value > 0 else math.inf
    return int(value) if name == "memory" else value


def _check(table: Table, request: Request) -> None:
    layers = [place.cut.layer for place in table.places if place.cut.kind != "input"]
    if request.demand.keep not in ("nothing", "input"):
        layers += sorted(set().union(*(place.inside for place in table.places)))
    check(table.model, request.demand, request.link, request.power, layers)
    check_name(table.model, request.demand, [place.cut for place in table.places])
    if len(request.head_ms) != len(table.places) or not all(ms >= 0 for ms in request.head_ms):
        raise errors.UsageError(
            f"head_ms has {len(request.head_ms)} times: give one of 0 or more for each of {len(table.places)} places"
        )
    if request.tail_ms is not None and (len(request.tail_ms) != len(table.places) or min(request.tail_ms) < 0):
        raise errors.UsageError(
            f"tail_ms has {len(request.tail_ms)} times: give one of 0 or more for each of {len(table.places)} places"
        )
    if len(request.stage_ns) != len(STAGES) or not all(ns >= 0 for ns in request.stage_ns):
        raise errors.UsageError(
            f"stage_ns must be {len(STAGES)} times of 0 or more: one for each of {', '.join(STAGES)}"
        )
    for name in ("queue_ms", "sending_ms"):
        if not getattr(request, name) >= 0:
            raise errors.UsageError(f"{name} is {getattr(request, name)}: give 0 or more")
    if any(not 0 <= pattern < len(table.patterns) for pattern in request.held):
        raise errors.UsageError("held names a pattern that the table lacks: give indices into its patterns")
