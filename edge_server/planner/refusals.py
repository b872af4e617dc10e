"""The planner's numbers and limits in words, and the error that says what to allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from splitedge import errors
from splitedge.protocol.messages import Demand

CONSTRAINTS: Final = ("keep", "mode", "max_drop_points", "max_latency_ms", "min_rate_fps", "memory")


def hold(faults: Sequence[str]) -> None:
    """Raises `errors.PlanError` if a verifier found ``faults`` in an answer."""
    if faults:
        raise errors.PlanError(f"the planner contradicts itself ({'; '.join(faults)}): please report this")


def infeasible(
    model: str, demand: Demand, memory_bytes: int | None, nearest: Mapping[str, float | str], all_of: bool
) -> errors.InfeasibleError:
    """The error for a demand that nothing meets. ``nearest``: for each binding constraint the value that would do, alone or (``all_of``) together."""
    values = {name: nearest[name] for name in CONSTRAINTS if name in nearest}
    limits = " and ".join(_limit(demand, memory_bytes, name) for name in values)
    wishes = (" and " if all_of else " or ").join(_wish(name, value) for name, value in values.items())
    return errors.InfeasibleError(
        f"no plan of {model} meets {limits}: allow {wishes}", binding=list(values), nearest=values, all_of=all_of
    )


def _limit(demand: Demand, memory_bytes: int | None, name: str) -> str:
    return {
        "max_drop_points": f"a drop of at most {demand.max_drop_points:g} points",
        "max_latency_ms": f"a latency of at most {demand.max_latency_ms or 0:.10g} ms",
        "min_rate_fps": f"at least {demand.min_rate_fps or 0:.10g} frames/s",
        "memory": f"{down((memory_bytes or 0) / 2**20)} MiB of memory on the device",
        "keep": f"keep = {demand.keep!r}",
        "mode": f"mode = {demand.mode!r}",
    }[name]


def _wish(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return f"{name} = {value!r}"
    return {
        "max_drop_points": f"a drop of {up(value)} points",
        "max_latency_ms": f"{up(value)} ms of latency",
        "min_rate_fps": f"a rate of {down(value)} frames/s",
        "memory": f"{up(value / 2**20)} MiB of memory",
    }[name]


def up(value: float) -> str:
    """Rounded up to what a person reads, so that the number given back as a demand is met."""
    step = 0.01 if value < 10 else 0.1 if value < 100 else 1.0
    return f"{math.ceil(round(value / step, 6)) * step:.6g}"


def down(value: float) -> str:
    """Rounded down to what a person reads; "any" for infinity."""
    step = 0.01 if value < 10 else 0.1 if value < 100 else 1.0
    return f"{math.floor(round(value / step, 6)) * step:.6g}" if math.isfinite(value) else "any"
