"""Checks of a demand and a link, and a board's power draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from splitedge import errors
from splitedge.protocol.messages import Cut, Demand, LinkEstimate, Mode

#: The mode of a plan, by the kind of its cut.
MODES: Final[dict[str, Mode]] = {"input": "server", "inside": "split", "output": "device"}


@dataclass(frozen=True, slots=True)
class PowerDraw:
    """Watts of a board while it computes and while it sends; None if neither measured nor declared."""

    compute_w: float | None = None
    transmit_w: float | None = None
    measured: bool = False


def check_demand(model: str, demand: Demand, link: LinkEstimate, power: PowerDraw, layers: Sequence[str]) -> None:
    """Raise `errors.UsageError` for a number out of range, and for a ``keep`` that is not one of ``layers``."""
    _require("max_drop_points", demand.max_drop_points, minimum=0)
    for name in ("time", "energy", "cost", "megabyte"):
        _require(f"weights.{name}", getattr(demand.weights, name), minimum=0)
    _require("link.rtt_ms", link.rtt_ms, minimum=0)
    positive: dict[str, float | None] = {"link.uplink_mbps": link.uplink_mbps, "link.downlink_mbps": link.downlink_mbps}
    positive |= {name: getattr(demand, name) for name in ("max_latency_ms", "min_rate_fps", "frames")}
    for name, value in positive.items():
        if value is not None:
            _require(name, value, minimum=math.ulp(0))
    if demand.weights.energy > 0 and (power.compute_w is None or power.transmit_w is None):
        raise errors.UsageError(
            f"the demand has weights.energy = {demand.weights.energy:g}, but the profile has no watts: "
            "declare them in the profile, or set weights.energy to 0",
            reason="no-watts",
        )
    if demand.keep not in ("nothing", "input", *layers):
        some = list(dict.fromkeys(layers))[:: max(1, len(layers) // 4)][:5]
        raise errors.UsageError(
            f"keep = {demand.keep[:80]!r}, but {model} has no such layer: "
            f'use "nothing", "input" or a layer\'s name, for example {", ".join(some) or "none is offered"}',
            reason="unknown-layer",
            layers=some,
        )


def check_keep(model: str, demand: Demand, cuts: Sequence[Cut]) -> None:
    """Raise `errors.UsageError` if ``keep`` names several of ``cuts``: the weaker promise must not win silently."""
    named = [cut.index for cut in cuts if cut.kind != "input" and cut.layer == demand.keep]
    if demand.keep not in ("nothing", "input") and len(named) > 1:
        raise errors.UsageError(
            f"keep = {demand.keep[:80]!r}, but {model} has {len(named)} cuts after layers of that name: "
            "use a later layer with a unique name",
            reason="ambiguous-layer",
            cuts=named,
        )


def _require(name: str, value: float, minimum: float) -> None:
    if not (math.isfinite(value) and value >= minimum):
        allowed = "above 0" if minimum > 0 else "of 0 or more"
        raise errors.UsageError(f"{name} is {value}: use a number {allowed}", field=name, reason="number")
