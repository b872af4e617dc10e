"""Chooses where to cut and with how many bits. Pure functions on plain data.

`precompute` makes, offline, a `Table` of optimal layer-wise patterns of a model; `choose` takes from it, online, the `Pick` for a `Request`;
`allocate` is the core of the first. `share` finds the `Route` of a network over a chain of devices. `verify_allocation`, `verify_pick` and
`verify_route` check them by other means.
"""

from edge_server.planner.allocation import Allocation, CutCodec, Layer, allocate, closed_form, uniform
from edge_server.planner.chain import INPUT, Chain, Device, Route, Step, share
from edge_server.planner.demands import MODES, Power
from edge_server.planner.online import Pick, Request, Rival, choose, rivals
from edge_server.planner.patterns import Level, Pattern, Place, Table, best_patterns, pattern_of, precompute, tabulate
from edge_server.planner.reasons import reason
from edge_server.planner.verify import verify_pick, verify_route
from edge_server.planner.verify_bits import verify_allocation

__all__ = [
    "INPUT",
    "MODES",
    "Allocation",
    "Chain",
    "CutCodec",
    "Device",
    "Layer",
    "Level",
    "Pattern",
    "Pick",
    "Place",
    "Power",
    "Request",
    "Rival",
    "Route",
    "Step",
    "Table",
    "allocate",
    "best_patterns",
    "choose",
    "closed_form",
    "pattern_of",
    "precompute",
    "reason",
    "rivals",
    "share",
    "tabulate",
    "uniform",
    "verify_allocation",
    "verify_pick",
    "verify_route",
]
