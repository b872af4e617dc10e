"""Why a runner-up lost, in a few words."""

from __future__ import annotations

import math

from edge_server.planner.online import Pick, Query, RunnerUp
from edge_server.planner.patterns import Table
from edge_server.planner.refusals import round_down, round_up
from splitedge.protocol.messages import Demand


def why_lost(table: Table, query: Query, runner_up: RunnerUp, chosen: Pick) -> str:
    """Every constraint that ``runner_up`` breaks; if it breaks none, its additional cost over ``chosen``."""
    broken = [_broken(table, query, runner_up.pick, name) for name in runner_up.broken]
    return "; ".join(broken) or _margin(query.demand, runner_up.pick, chosen)


def _broken(table: Table, query: Query, pick: Pick, name: str) -> str:
    demand, option = query.demand, table.options[pick.option]
    match name:
        case "max_drop_points":
            return f"needs a drop of {round_up(pick.drop_points)} points (limit {demand.max_drop_points:g})"
        case "max_latency_ms":
            return f"{round_up(pick.total_ms)} ms > {demand.max_latency_ms:g} ms"
        case "min_rate_fps":
            return f"{round_down(1000 / pick.pace_ms)} frames/s < {demand.min_rate_fps:g}"
        case "memory":
            need, have = option.memory_bytes / 2**20, (query.memory_bytes or 0) / 2**20
            return f"needs {round_up(need)} MiB, the device has {round_down(have)} MiB free"
        case "operators":
            return "needs a newer version of splitedge on the board"
        case "formats":
            return "sends WebP, which the board's profile or Pillow lacks"
        case "mode":
            return f"mode is not {demand.mode!r}"
        case _:
            what = "the input" if option.sends_input else f"a tensor before {demand.keep}"
            return f"sends {what} off the device"


def _margin(demand: Demand, pick: Pick, chosen: Pick) -> str:
    """Why a feasible candidate lost: "+38 % time: transfer 31 ms"."""
    percent = 100 * (pick.objective / chosen.objective - 1) if chosen.objective > 0 else math.inf
    if pick.objective > chosen.objective and percent >= 0.5:
        parts = ("device", "transfer", "queue", "server")
        worst = max(parts, key=lambda part: getattr(pick, f"{part}_ms") - getattr(chosen, f"{part}_ms"))
        more = f"+{percent:.0f} %" if math.isfinite(percent) else "more"
        return f"{more} {_objective_name(demand)}: {worst} {round_up(getattr(pick, f'{worst}_ms'))} ms"
    if pick.segment_bytes > chosen.segment_bytes:
        return f"no better, and {round_up((pick.segment_bytes - chosen.segment_bytes) / 1000)} kB more to download"
    return "no better"


def _objective_name(demand: Demand) -> str:
    names = [name for name in ("time", "energy", "cost") if getattr(demand.weights, name) > 0]
    return names[0] if len(names) == 1 else "objective"
