"""Errors for infeasible demands: the constraints that bind, and the values that would suffice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from splitedge import errors
from splitedge.protocol.messages import Demand

CONSTRAINTS: Final = (
    "keep",
    "mode",
    "max_drop_points",
    "max_latency_ms",
    "min_rate_fps",
    "memory",
    "operators",
    "formats",
)


def require_valid(faults: Sequence[str]) -> None:
    """Raise `errors.PlanError` if a verifier found ``faults`` in an answer."""
    if faults:
        raise errors.PlanError(
            f"the planner's answer fails its check ({'; '.join(faults)}): please report this",
            reason="contradiction",
            faults=list(faults),
        )


def infeasible(
    model: str, demand: Demand, memory_bytes: int | None, nearest: Mapping[str, float | str], all_of: bool
) -> errors.InfeasibleError:
    """The error for a demand that no plan meets.

    ``nearest``: for each binding constraint a value that suffices, alone or (``all_of``) together with the others.
    """
    values = {name: nearest[name] for name in CONSTRAINTS if name in nearest}
    bounds = " and ".join(_bound(demand, memory_bytes, name) for name in values)
    fixes = (" and " if all_of else " or ").join(_fix(name, value) for name, value in values.items())
    return errors.InfeasibleError(
        f"no plan of {model} meets {bounds}: allow {fixes}", binding=list(values), nearest=values, all_of=all_of
    )


def _bound(demand: Demand, memory_bytes: int | None, name: str) -> str:
    return {
        "max_drop_points": f"a drop of at most {demand.max_drop_points:g} points",
        "max_latency_ms": f"a latency of at most {demand.max_latency_ms or 0:.10g} ms",
        "min_rate_fps": f"at least {demand.min_rate_fps or 0:.10g} frames/s",
        "memory": f"{round_down((memory_bytes or 0) / 2**20)} MiB of memory on the device",
        "operators": "the operators that this version of the agent has",
        "formats": "the image formats that board and server have, as the board's profile measured them",
        "keep": f"keep = {demand.keep!r}",
        "mode": f"mode = {demand.mode!r}",
    }[name]


def _fix(name: str, value: float | str) -> str:
    if name == "operators":
        return "an upgrade of splitedge on the board"
    if name == "formats":
        return "a new `edge-agent profile --keep` with a Pillow that has WebP"
    if isinstance(value, str):
        return f"{name} = {value!r}"
    return {
        "max_drop_points": f"a drop of {round_up(value)} points",
        "max_latency_ms": f"{round_up(value)} ms of latency",
        "min_rate_fps": f"a rate of {round_down(value)} frames/s",
        "memory": f"{round_up(value / 2**20)} MiB of memory",
    }[name]


def round_up(value: float) -> str:
    """``value`` rounded up for people: passed back as a demand, the number suffices."""
    unit = 0.01 if value < 10 else 0.1 if value < 100 else 1.0
    return f"{math.ceil(round(value / unit, 6)) * unit:.6g}"


def round_down(value: float) -> str:
    """``value`` rounded down for people; "any" for infinity."""
    unit = 0.01 if value < 10 else 0.1 if value < 100 else 1.0
    return f"{math.floor(round(value / unit, 6)) * unit:.6g}" if math.isfinite(value) else "any"
