"""Why a rival lost, in a few words."""

from __future__ import annotations

import math

from edge_server.planner.online import Pick, Request, Rival
from edge_server.planner.patterns import Table
from edge_server.planner.refusals import down, up
from splitedge.protocol.messages import Demand


def reason(table: Table, request: Request, rival: Rival, chosen: Pick) -> str:
    """Every constraint that ``rival`` breaks; where it breaks none, what it costs more than ``chosen``."""
    broken = [_broken(table, request, rival.pick, name) for name in rival.broken]
    return "; ".join(broken) or _margin(request.demand, rival.pick, chosen)


def _broken(table: Table, request: Request, pick: Pick, name: str) -> str:
    demand, place = request.demand, table.places[pick.place]
    match name:
        case "max_drop_points":
            return f"drop up to {up(pick.drop_points)} points > {demand.max_drop_points:g}"
        case "max_latency_ms":
            return f"{up(pick.total_ms)} ms > {demand.max_latency_ms:g} ms"
        case "min_rate_fps":
            return f"{down(1000 / pick.pace_ms)} frames/s < {demand.min_rate_fps:g}"
        case "memory":
            need, have = place.memory_bytes / 2**20, (request.memory_bytes or 0) / 2**20
            return f"needs {up(need)} MiB of {down(have)} MiB free on the device"
        case "mode":
            return f"is not of the mode {demand.mode!r}"
        case _:
            what = "the input" if place.is_input or place.cut.kind == "input" else f"a tensor before {demand.keep}"
            return f"lets {what} leave the device"


def _margin(demand: Demand, rival: Pick, chosen: Pick) -> str:
    """Why a feasible candidate lost: "+38 % time: transfer 31 ms"."""
    percent = 100 * (rival.objective / chosen.objective - 1) if chosen.objective > 0 else math.inf
    if rival.objective > chosen.objective and percent >= 0.5:
        stages = ("device", "transfer", "queue", "server")
        worst = max(stages, key=lambda s: getattr(rival, f"{s}_ms") - getattr(chosen, f"{s}_ms"))
        more = f"+{percent:.0f} %" if math.isfinite(percent) else "more"
        return f"{more} {_weighed(demand)}: {worst} {up(getattr(rival, f'{worst}_ms'))} ms"
    if rival.segment_bytes > chosen.segment_bytes:
        return f"no better, and {up((rival.segment_bytes - chosen.segment_bytes) / 1000)} kB more to fetch"
    return "no better"


def _weighed(demand: Demand) -> str:
    names = [name for name in ("time", "energy", "cost") if getattr(demand.weights, name) > 0]
    return names[0] if len(names) == 1 else "objective"
