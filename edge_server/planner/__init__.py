"""Chooses where to cut and with how many bits. Pure functions on plain data: `plan` answers a `Problem` with a `Choice`."""

from edge_server.planner.choose import plan
from edge_server.planner.problem import Choice, Point, Power, Problem, Site
from edge_server.planner.verify import verify_allocation, verify_plan

__all__ = ["Choice", "Point", "Power", "Problem", "Site", "plan", "verify_allocation", "verify_plan"]
