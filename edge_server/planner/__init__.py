"""Chooses where to cut and with how many bits. Pure functions on plain data.

`plan` answers a `Problem` with a `Choice` among measured combinations, one weight width for a head. `precompute` (offline, a `Table` of optimal
layer-wise patterns) and `choose` (online, a `Pick` for a `Request`) are the exact planner over layer-wise bits; `allocate` is its core.
"""

from edge_server.planner.allocation import Allocation, CutCodec, Layer, allocate, closed_form, uniform
from edge_server.planner.choose import plan
from edge_server.planner.online import Pick, Request, Rival, choose, rivals
from edge_server.planner.patterns import Level, Pattern, Place, Table, precompute
from edge_server.planner.problem import Choice, Point, Power, Problem, Site
from edge_server.planner.verify import verify_allocation, verify_pick, verify_plan

__all__ = [
    "Allocation",
    "Choice",
    "CutCodec",
    "Layer",
    "Level",
    "Pattern",
    "Pick",
    "Place",
    "Point",
    "Power",
    "Problem",
    "Request",
    "Rival",
    "Site",
    "Table",
    "allocate",
    "choose",
    "closed_form",
    "plan",
    "precompute",
    "rivals",
    "uniform",
    "verify_allocation",
    "verify_pick",
    "verify_plan",
]
