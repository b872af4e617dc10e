"""Every candidate plan: what was measured at calibration, at the cuts that are offered."""

from __future__ import annotations

from typing import Final

from edge_agent.protocol.messages import Candidate, Mode
from edge_server.planner.cost import predict
from edge_server.planner.problem import Problem

#: The mode of a cut, by its kind.
MODES: Final[dict[str, Mode]] = {"input": "server", "inside": "split", "output": "device"}


def candidates(problem: Problem) -> list[Candidate]:
    """All candidates: offered cuts x weight bits x activation bits x clip rule.

    Cut 0 has no weights on the device and the last cut sends nothing, so there only the most bits of that kind are a candidate.
    """
    sites = {site.cut.index: site for site in problem.sites}
    found = [point for point in problem.points if point.cut in sites]
    most_weight = {p.cut: max(q.weight_bits for q in found if q.cut == p.cut) for p in found}
    most_active = {p.cut: max(q.activation_bits for q in found if q.cut == p.cut) for p in found}
    kept = []
    for point in found:
        site = sites[point.cut]
        if site.cut.kind == "input" and point.weight_bits != most_weight[point.cut]:
            continue
        if site.cut.kind == "output" and point.activation_bits != most_active[point.cut]:
            continue
        candidate = Candidate(
            site.cut, point.weight_bits, point.activation_bits, point.rule, predict(problem, site, point)
        )
        kept.append(candidate)
    return kept


def mode_of(candidate: Candidate) -> Mode:
    """Which side computes: all on the server, all on the device, or split."""
    return MODES[candidate.cut.kind]
