"""The planner: weighs every candidate and takes the best that meets the demand.

Exhaustive, which a few hundred candidates allow. An exact planner over layer-wise bits replaces `plan`, not its interface.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_agent import errors
from edge_agent.protocol.messages import Candidate, Demand
from edge_server.planner import words
from edge_server.planner.candidates import candidates
from edge_server.planner.cost import rate_fps
from edge_server.planner.problem import Choice, Point, Problem, Site, check
from edge_server.planner.words import down, up


def plan(problem: Problem) -> Choice:
    """The candidate of least objective that meets the demand; ties go to the smaller segment, then to the smaller drop.

    Raises `errors.UsageError` for a demand that makes no sense, `errors.InfeasibleError` where no candidate meets it.
    """
    check(problem)
    found = candidates(problem)
    if not found:
        raise errors.InfeasibleError(f"nothing was measured for {problem.model}: add it to the server again")
    broken = [_violations(problem, candidate) for candidate in found]
    feasible = [c for c, v in zip(found, broken, strict=True) if not v]
    if not feasible:
        raise _infeasible(problem, found, broken)
    chosen = min(feasible, key=_order)
    ladder = _ladder(problem, chosen)
    codec = next((i for i, p in enumerate(ladder) if p.activation_bits == chosen.activation_bits), 0)
    return Choice(chosen, ladder, codec, _runnersup(problem, found, broken, chosen), len(found))


# --- order and constraints ------------------------------------------------------------------------------------------


def _order(candidate: Candidate) -> tuple[float, float, float, int, int, int, str]:
    p = candidate.prediction
    bits = (-candidate.weight_bits, -candidate.activation_bits)
    return p.objective, p.segment_bytes, p.drop_points, candidate.cut.index, *bits, candidate.rule


@dataclass(frozen=True, slots=True)
class _Violation:
    excess: float  # how far beyond the limit, relative to it
    sentence: str


def _violations(problem: Problem, candidate: Candidate) -> dict[str, _Violation]:
    """What ``candidate`` breaks, by the name of the demand's field (or ``memory``)."""
    demand, p = problem.demand, candidate.prediction
    site = _site(problem, candidate)
    found = {}
    if p.drop_points > demand.max_drop_points:
        excess = (p.drop_points - demand.max_drop_points) / max(1.0, demand.max_drop_points)
        found["max_drop_points"] = _Violation(excess, f"drop {up(p.drop_points)} points > {demand.max_drop_points:g}")
    if not _may_leave(site, demand):
        what = "the input" if site.is_input or site.cut.kind == "input" else f"a tensor before {demand.keep}"
        found["keep"] = _Violation(1000.0, f"lets {what} leave the device")
    if demand.max_latency_ms is not None and p.total_ms > demand.max_latency_ms:
        excess = p.total_ms / demand.max_latency_ms - 1
        found["max_latency_ms"] = _Violation(excess, f"{up(p.total_ms)} ms > {demand.max_latency_ms:g} ms")
    rate = rate_fps(p, problem.link.rtt_ms)
    if demand.min_rate_fps is not None and rate < demand.min_rate_fps:
        excess = demand.min_rate_fps / rate - 1
        found["min_rate_fps"] = _Violation(excess, f"{down(rate)} frames/s < {demand.min_rate_fps:g}")
    if problem.memory_bytes is not None and site.memory_bytes > problem.memory_bytes:
        excess = site.memory_bytes / max(1, problem.memory_bytes) - 1
        need, have = site.memory_bytes / 2**20, problem.memory_bytes / 2**20
        found["memory"] = _Violation(excess, f"needs {up(need)} MiB of {down(have)} MiB free on the device")
    return found


def _site(problem: Problem, candidate: Candidate) -> Site:
    return next(site for site in problem.sites if site.cut.index == candidate.cut.index)


def _may_leave(site: Site, demand: Demand) -> bool:
    if demand.keep == "nothing" or site.cut.kind == "output":
        return True
    if demand.keep == "input":
        return not (site.is_input or site.cut.kind == "input")
    return demand.keep in site.layers


def _ladder(problem: Problem, chosen: Candidate) -> tuple[Point, ...]:
    """The codecs at the chosen cut and weight bits that meet the accuracy demand, one for each bit width, most bits first."""
    if chosen.cut.kind == "output":
        return ()
    best: dict[int, Point] = {}
    for point in problem.points:
        if (point.cut, point.weight_bits) != (chosen.cut.index, chosen.weight_bits):
            continue
        if point.drop > problem.demand.max_drop_points:
            continue
        if point.activation_bits == chosen.activation_bits and point.rule != chosen.rule:
            continue
        held = best.get(point.activation_bits)
        if held is None or (point.drop, point.rule) < (held.drop, held.rule):
            best[point.activation_bits] = point
    return tuple(best[bits] for bits in sorted(best, reverse=True))


# --- why the others lost --------------------------------------------------------------------------------------------


def _runnersup(
    problem: Problem, found: list[Candidate], broken: list[dict[str, _Violation]], chosen: Candidate
) -> tuple[Candidate, ...]:
    """The best candidate of each other cut, nearest rival first, each with its reason."""
    best: dict[int, tuple[tuple[float, ...], Candidate, dict[str, _Violation]]] = {}
    for candidate, violations in zip(found, broken, strict=True):
        index = candidate.cut.index
        if index == chosen.cut.index:
            continue
        key = (len(violations), sum(v.excess for v in violations.values()), *_order(candidate)[:-1])
        if index not in best or key < best[index][0]:
            best[index] = (key, candidate, violations)
    ranked = sorted(best.values(), key=lambda entry: entry[0])
    return tuple(_with_reason(problem, candidate, violations, chosen) for _, candidate, violations in ranked)


def _with_reason(
    problem: Problem, candidate: Candidate, violations: dict[str, _Violation], chosen: Candidate
) -> Candidate:
    reason = "; ".join(v.sentence for v in violations.values()) or _margin(problem, candidate, chosen)
    return Candidate(
        candidate.cut,
        candidate.weight_bits,
        candidate.activation_bits,
        candidate.rule,
        candidate.prediction,
        reason,
    )


def _margin(problem: Problem, candidate: Candidate, chosen: Candidate) -> str:
    """Why a feasible candidate lost: "+38 % time: transfer 31 ms"."""
    ours, theirs = chosen.prediction, candidate.prediction
    percent = 100 * (theirs.objective / ours.objective - 1) if ours.objective > 0 else math.inf
    if theirs.objective > ours.objective and percent >= 0.5:
        stages = ("device", "transfer", "server")
        worst = max(stages, key=lambda s: getattr(theirs, f"{s}_ms") - getattr(ours, f"{s}_ms"))
        more = f"+{percent:.0f} %" if math.isfinite(percent) else "more"
        return f"{more} {_measure(problem.demand)}: {worst} {up(getattr(theirs, f'{worst}_ms'))} ms"
    if theirs.segment_bytes > ours.segment_bytes:
        more_kb = (theirs.segment_bytes - ours.segment_bytes) / 1000
        return f"no better, and {up(more_kb)} kB more to fetch"
    return "no better"


def _measure(demand: Demand) -> str:
    weighed = [name for name in ("time", "energy", "cost") if getattr(demand.weights, name) > 0]
    return weighed[0] if len(weighed) == 1 else "time, energy and cost"


# --- no plan --------------------------------------------------------------------------------------------------------


def _infeasible(
    problem: Problem, found: list[Candidate], broken: list[dict[str, _Violation]]
) -> errors.InfeasibleError:
    """Names the binding constraints: each whose relaxation alone would do, else all that the nearest candidate breaks."""
    alone: dict[str, Candidate] = {}
    for candidate, violations in zip(found, broken, strict=True):
        if len(violations) == 1:
            (name,) = violations
            held = alone.get(name)
            if held is None or _relaxation(problem, name, candidate) < _relaxation(problem, name, held):
                alone[name] = candidate
    if alone:
        nearest = alone
    else:
        index = min(range(len(found)), key=lambda i: (sum(v.excess for v in broken[i].values()), _order(found[i])))
        nearest = dict.fromkeys(broken[index], found[index])
    values = {name: _value(problem, name, candidate) for name, candidate in nearest.items()}
    return words.infeasible(problem.model, problem.demand, problem.memory_bytes, values, all_of=not alone)


def _relaxation(problem: Problem, name: str, candidate: Candidate) -> tuple[float, float]:
    """Orders candidates by how far the constraint ``name`` must be relaxed to admit them."""
    value = _value(problem, name, candidate)
    if isinstance(value, str):
        return -candidate.cut.index, candidate.prediction.objective
    return -value if name == "min_rate_fps" else value, candidate.prediction.objective


def _value(problem: Problem, name: str, candidate: Candidate) -> float | str:
    """The least demanding value of the constraint ``name`` that ``candidate`` meets."""
    match name:
        case "max_drop_points":
            return candidate.prediction.drop_points
        case "max_latency_ms":
            return candidate.prediction.total_ms
        case "min_rate_fps":
            return rate_fps(candidate.prediction, problem.link.rtt_ms)
        case "memory":
            return _site(problem, candidate).memory_bytes
        case _:
            return _kept(_site(problem, candidate))


def _kept(site: Site) -> str:
    return "nothing" if site.is_input or site.cut.kind == "input" else site.cut.layer
