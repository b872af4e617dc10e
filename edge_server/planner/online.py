"""Online: the candidate with the smallest objective for one device, link and demand (QPART's second algorithm).

    total     = head + coding + transfer + queue + tail        (head alone if nothing is sent)
    coding    = sum over the codec's stages of values x ns     (besides packing, which is part of head)
    transfer  = frame bytes / uplink + round trip + sending    (sending: overhead that the device measured)
    energy    = watts computing x (head + coding) + watts sending x frame bytes / uplink
    objective = time x (total + fetch) + energy x joules + cost x tail + megabyte x traffic    (in seconds)
    fetch     = segment bytes / downlink / expected frames     (0 for a segment that the device holds)
    traffic   = frame bytes + segment bytes / expected frames  (in MB)

Exact: a few passes over arrays evaluate every candidate of every cut, pattern and codec.
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
from edge_server.planner.demands import MODES, PowerDraw, check_demand, check_keep
from edge_server.planner.patterns import CutOption, Table
from splitedge import errors
from splitedge.codec import STAGES, image_file
from splitedge.link.adaptation import LONGER
from splitedge.protocol.messages import Demand, LinkEstimate

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Query:
    """One device with its link and demand.

    ``head_ms[i]``: the device's time for head and packing of the table's option i. ``memory_bytes``: free on the
    device; None: unknown, not checked. ``tail_ms[i]``: the server's time for the tail; None: the table's. ``queue_ms``:
    wait of a frame at the server. ``sending_ms``: measured overhead of coding and sending a frame, beyond profile and
    link. ``stage_ns``: the device's nanoseconds a value for each of `codec.STAGES`. ``held``: indices of the table's
    patterns whose segments the device has. ``operators``: kinds that the device runs; None: not checked.
    ``formats``: those of `image_file.NAMED` that device and server know; None: not checked.
    """

    demand: Demand
    link: LinkEstimate
    head_ms: tuple[float, ...]
    power: PowerDraw = field(default_factory=PowerDraw)
    memory_bytes: int | None = None
    tail_ms: tuple[float, ...] | None = None
    queue_ms: float = 0.0
    sending_ms: float = 0.0
    stage_ns: tuple[float, ...] = (0.0,) * len(STAGES)
    held: frozenset[int] = field(default_factory=frozenset)
    operators: frozenset[str] | None = None
    formats: frozenset[str] | None = None

    @property
    def unknown(self) -> frozenset[str]:
        """The stages of codecs that the device, or the server, does not know."""
        return frozenset() if self.formats is None else frozenset(image_file.NAMED) - self.formats


@dataclass(frozen=True, slots=True)
class Pick:
    """A candidate with its costs.

    ``option``, ``pattern``: indices into the table. ``codec``, ``ladder``: indices into the option's codecs. The ladder
    (`allocation.ladder`) holds the codecs that meet the demand with this pattern and that the device makes in time.
    ``pace_ms``: of the slowest of device, sending and server. ``drop_points``: of the strictest level that it meets,
    an upper bound of the drop. ``segment_bytes``: to download.
    """

    option: int
    pattern: int
    codec: int | None
    ladder: tuple[int, ...]
    device_ms: float
    transfer_ms: float
    queue_ms: float
    server_ms: float
    total_ms: float
    pace_ms: float
    energy_j: float
    drop_points: float
    noise: float
    payload_bytes: int
    segment_bytes: int
    objective: float


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """The best candidate of another cut, and the constraints that it breaks; none if it only costs more."""

    pick: Pick
    broken: tuple[str, ...]


def choose(table: Table, query: Query) -> Pick:
    """The feasible candidate with the smallest objective; then fewest bytes to download, least noise, smallest frames.

    Raises `errors.UsageError` for an invalid query, `errors.InfeasibleError` if no candidate meets the demand.
    """
    _check(table, query)
    level = _level(table, query.demand)
    count = int(table.ends[level]) if level >= 0 else 0
    costs = _costs(table, query, count)
    for broken in _broken(table, query, costs).values():
        costs.objective[broken] = np.inf
    least = costs.objective.min(initial=np.inf)
    if least == np.inf:
        raise _infeasible(table, query)
    ties = np.flatnonzero(costs.objective == least)
    best = ties[np.lexsort((table.frame_bytes[ties], table.noise[ties], costs.fetched[ties]))[0]]
    return _pick(table, query, costs, int(best))


def runners_up(table: Table, query: Query, chosen: Pick) -> tuple[RunnerUp, ...]:
    """The best candidate of every other cut; the cuts that break fewest constraints first, then by objective.

    Candidates that exceed the accuracy drop are ranked by their drop: the drop of such a cut is the limit that would
    admit it.
    """
    costs = _costs(table, query, len(table.level))
    broken = _broken(table, query, costs)
    counts = _counts(table, broken)
    beyond = np.where(broken["max_drop_points"], table.level, -1)
    order = np.lexsort((table.frame_bytes, table.noise, costs.fetched, costs.objective, beyond, counts))
    _, first = np.unique(table.option[order], return_index=True)
    best = [int(i) for i in order[first] if table.option[i] != chosen.option]
    best.sort(key=lambda i: (counts[i], costs.objective[i]))
    return tuple(
        RunnerUp(_pick(table, query, costs, i), tuple(name for name, mask in broken.items() if mask[i])) for i in best
    )


class _Costs(NamedTuple):
    """Costs of the first candidates of a table, one entry each."""

    objective: F64
    coding_ms: F64  # of the codec's stages
    total_ms: F64
    pace_ms: F64
    fetched: F64  # bytes of segment to download


def _costs(table: Table, query: Query, count: int) -> _Costs:
    demand, link, power = query.demand, query.link, query.power
    weights = demand.weights
    head = np.array(query.head_ms)
    sends = np.array([option.cut.kind != "output" for option in table.options])
    tail = np.where(sends, _tail_ms(table, query), 0.0)
    fixed = head + np.where(sends, tail + (query.queue_ms + link.rtt_ms + query.sending_ms), 0.0)
    base = (weights.time * fixed + weights.energy * (power.compute_w or 0.0) * head + weights.cost * tail) / 1000
    option = table.option[:count]
    sending = table.frame_bytes[:count] * (8e-3 / link.uplink_mbps)
    fetched = table.segment_bytes[:count]
    if query.held:
        fetched = np.where(_held(table, query)[table.pattern[:count]], 0.0, fetched)
    coding = np.array(query.stage_ns) @ table.codec_work[:, :count] * 1e-6
    objective = base[option] + sending * ((weights.time + weights.energy * (power.transmit_w or 0.0)) / 1000)
    objective += coding * ((weights.time + weights.energy * (power.compute_w or 0.0)) / 1000)
    objective += table.frame_bytes[:count] * (1e-6 * weights.megabyte)
    if demand.frames is not None:
        objective += fetched * ((weights.time * 8e-6 / link.downlink_mbps + 1e-6 * weights.megabyte) / demand.frames)
    pace = np.maximum(np.maximum(head[option] + coding, tail[option]), sending)
    return _Costs(objective, coding, fixed[option] + coding + sending, pace, fetched)


def _tail_ms(table: Table, query: Query) -> Sequence[float]:
    """Milliseconds of the tail of each option."""
    return [option.tail_ms for option in table.options] if query.tail_ms is None else query.tail_ms


def _held(table: Table, query: Query) -> Mask:
    mask = np.zeros(len(table.patterns), np.bool_)
    mask[list(query.held)] = True
    return mask


def _broken(table: Table, query: Query, costs: _Costs) -> dict[str, Mask]:
    """For each constraint of the demand, which candidates break it."""
    demand, count = query.demand, len(costs.objective)
    option, found = table.option[:count], {}
    if demand.keep != "nothing":
        found["keep"] = np.array([not may_leave(one, demand.keep) for one in table.options])[option]
    if demand.mode != "any":
        found["mode"] = np.array([MODES[one.cut.kind] != demand.mode for one in table.options])[option]
    found["max_drop_points"] = table.level[:count] > _level(table, demand)
    if demand.max_latency_ms is not None:
        found["max_latency_ms"] = costs.total_ms > demand.max_latency_ms
    if demand.min_rate_fps is not None:
        found["min_rate_fps"] = costs.pace_ms * demand.min_rate_fps > 1000
    if query.memory_bytes is not None:
        found["memory"] = np.array([one.memory_bytes > query.memory_bytes for one in table.options])[option]
    if query.operators is not None:
        found["operators"] = np.array([not one.operators <= query.operators for one in table.options])[option]
    if query.unknown:
        found["formats"] = _unknown(table, query, count)
    return found


def _unknown(table: Table, query: Query, count: int) -> Mask:
    """Which of the first ``count`` candidates send an image file of an unknown format."""
    return np.asarray(table.codec_work[[STAGES.index(stage) for stage in query.unknown], :count].any(axis=0))


def _counts(table: Table, broken: dict[str, Mask]) -> NDArray[np.int64]:
    """How many constraints each candidate breaks."""
    return sum((mask.astype(np.int64) for mask in broken.values()), np.zeros(len(table.level), np.int64))


def may_leave(option: CutOption, keep: str) -> bool:
    """Whether a device that must ``keep`` something may send the tensor of ``option``."""
    if option.cut.kind == "output" or keep == "nothing":
        return True
    if keep == "input":
        return not option.sends_input
    return keep in option.inside


def _level(table: Table, demand: Demand) -> int:
    """The loosest level within the demand; -1 if there is none."""
    return int(np.searchsorted([level.drop_points for level in table.levels], demand.max_drop_points, side="right")) - 1


def _pick(table: Table, query: Query, costs: _Costs, i: int) -> Pick:
    index, codec = int(table.option[i]), int(table.codec[i])
    device_ms, sends = query.head_ms[index] + float(costs.coding_ms[i]), codec >= 0
    sending = float(table.frame_bytes[i]) * 8e-3 / query.link.uplink_mbps
    joules = ((query.power.compute_w or 0.0) * device_ms + (query.power.transmit_w or 0.0) * sending) / 1000
    return Pick(
        option=index,
        pattern=int(table.pattern[i]),
        codec=codec if sends else None,
        ladder=_ladder(table, query, costs, i) if sends else (),
        device_ms=device_ms,
        transfer_ms=sending + query.link.rtt_ms + query.sending_ms if sends else 0.0,
        queue_ms=query.queue_ms if sends else 0.0,
        server_ms=_tail_ms(table, query)[index] if sends else 0.0,
        total_ms=float(costs.total_ms[i]),
        pace_ms=float(costs.pace_ms[i]),
        energy_j=joules,
        drop_points=table.levels[int(table.level[i])].drop_points,
        noise=float(table.noise[i]),
        payload_bytes=int(table.frame_bytes[i]),
        segment_bytes=int(costs.fetched[i]),
        objective=float(costs.objective[i]),
    )


def _ladder(table: Table, query: Query, costs: _Costs, i: int) -> tuple[int, ...]:
    """The ladder of candidate ``i``: codecs that meet the demand with its pattern and that the device makes in time.

    On another link another codec is best, so a codec may take longer to make than the chosen one: up to `LONGER` times
    the frame's time, as in the agent's adaptation, within the demanded rate and latency.
    """
    codecs, demand = table.options[int(table.option[i])].codecs, query.demand
    limit = max(_level(table, demand), int(table.level[i]))
    same = np.flatnonzero(table.pattern[: int(table.ends[limit])] == table.pattern[i])
    same = same[~_unknown(table, query, len(costs.objective))[same]]
    coding, total = costs.coding_ms[same], float(costs.total_ms[i])
    longer = coding - costs.coding_ms[i]
    in_time = longer <= (LONGER - 1) * total
    if demand.max_latency_ms is not None:
        in_time &= total + longer <= demand.max_latency_ms
    if demand.min_rate_fps is not None:
        in_time &= (query.head_ms[int(table.option[i])] + coding) * demand.min_rate_fps <= 1000
    return tuple(ladder(codecs, table.codec[same[in_time]].tolist(), int(table.codec[i])))


def _infeasible(table: Table, query: Query) -> errors.InfeasibleError:
    """Names each constraint whose relaxation alone suffices, else all that the nearest candidate breaks."""
    costs = _costs(table, query, len(table.level))
    broken = _broken(table, query, costs)
    counts = _counts(table, broken)
    needed = {name: _needed(table, name, costs) for name in broken}
    alone = {
        name: np.flatnonzero(mask & (counts == 1)) for name, mask in broken.items() if (mask & (counts == 1)).any()
    }
    if alone:
        nearest = {name: int(rows[needed[name][rows].argmin()]) for name, rows in alone.items()}
    else:
        least = int(np.lexsort((costs.objective, counts))[0])
        nearest = {name: least for name, mask in broken.items() if mask[least]}
    values = {name: _value(table, name, needed[name], i) for name, i in nearest.items()}
    return refusals.infeasible(table.model, query.demand, query.memory_bytes, values, all_of=not alone)


def _needed(table: Table, name: str, costs: _Costs) -> F64:
    """The relaxation of the constraint ``name`` that admits each candidate; smaller is better."""
    match name:
        case "max_drop_points":
            return np.array([level.drop_points for level in table.levels])[table.level]
        case "max_latency_ms":
            return costs.total_ms
        case "min_rate_fps":
            return costs.pace_ms
        case "memory":
            return np.array([option.memory_bytes for option in table.options], np.float64)[table.option]
        case _:
            return -table.option.astype(np.float64)  # a later cut gives less away


def _value(table: Table, name: str, needed: F64, i: int) -> float | str:
    """The least demanding value of the constraint ``name`` that candidate ``i`` meets."""
    option = table.options[int(table.option[i])]
    if name == "keep":
        return "nothing" if option.sends_input else option.cut.layer
    if name == "mode":
        return MODES[option.cut.kind]
    if name == "operators":
        return "upgrade"
    if name == "formats":
        return "webp"
    value = float(needed[i])
    if name == "min_rate_fps":
        return 1000 / value if value > 0 else math.inf
    return int(value) if name == "memory" else value


def _check(table: Table, query: Query) -> None:
    layers = [option.cut.layer for option in table.options if option.cut.kind != "input"]
    if query.demand.keep not in ("nothing", "input"):
        layers += sorted(set().union(*(option.inside for option in table.options)))
    check_demand(table.model, query.demand, query.link, query.power, layers)
    check_keep(table.model, query.demand, [option.cut for option in table.options])
    _check_times("head_ms", query.head_ms, len(table.options))
    if query.tail_ms is not None:
        _check_times("tail_ms", query.tail_ms, len(table.options))
    _check_times("stage_ns", query.stage_ns, len(STAGES))
    _check_times("queue_ms", (query.queue_ms,), 1)
    _check_times("sending_ms", (query.sending_ms,), 1)
    if any(not 0 <= pattern < len(table.patterns) for pattern in query.held):
        raise errors.UsageError(
            f"held = {sorted(query.held)}, but the table has {len(table.patterns)} patterns: use indices into these",
            reason="unknown-pattern",
        )


def _check_times(name: str, times: Sequence[float], count: int) -> None:
    if len(times) != count or not all(ms >= 0 for ms in times):
        raise errors.UsageError(
            f"{name} is {list(times)}: use {count} numbers of 0 or more", reason="number", field=name
        )
