"""Chooses the cut and the bit widths. Pure functions on plain data.

- Offline, `precompute` builds the `Table` of a model: its optimal bit-width patterns. `allocate` finds one pattern.
- Online, `choose` takes the best `Pick` from a table for a `Query`. `plan_route` finds the `Route` of a model over a
  chain of boards.
- `verify_allocation`, `verify_pick` and `verify_route` check these answers by other means.
"""

from edge_server.planner.allocation import Allocation, CutCodec, WeightLayer, allocate, closed_form, uniform
from edge_server.planner.chain import INPUT, Chain, ChainBoard, Hop, Route
from edge_server.planner.demands import MODES, PowerDraw
from edge_server.planner.online import Pick, Query, RunnerUp, choose, runners_up
from edge_server.planner.patterns import (
    CutOption,
    Level,
    Pattern,
    Table,
    best_patterns,
    make_pattern,
    precompute,
    tabulate,
)
from edge_server.planner.reasons import why_lost
from edge_server.planner.route_search import plan_route
from edge_server.planner.verify import verify_pick
from edge_server.planner.verify_bits import verify_allocation
from edge_server.planner.verify_chain import verify_route

__all__ = [
    "INPUT",
    "MODES",
    "Allocation",
    "Chain",
    "ChainBoard",
    "CutCodec",
    "CutOption",
    "Hop",
    "Level",
    "Pattern",
    "Pick",
    "PowerDraw",
    "Query",
    "Route",
    "RunnerUp",
    "Table",
    "WeightLayer",
    "allocate",
    "best_patterns",
    "choose",
    "closed_form",
    "make_pattern",
    "plan_route",
    "precompute",
    "runners_up",
    "tabulate",
    "uniform",
    "verify_allocation",
    "verify_pick",
    "verify_route",
    "why_lost",
]
