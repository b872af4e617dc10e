"""What a planner is told besides the table: a board's power, and whether a demand and a link make sense."""

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
class Power:
    """Watts of the board while it computes and while it sends; None where nobody measured or declared them."""

    compute_w: float | None = None
    transmit_w: float | None = None
    measured: bool = False


def check(model: str, demand: Demand, link: LinkEstimate, power: Power, layers: Sequence[str]) -> None:
    """Raises `errors.UsageError` for a demand or a link that is not a sensible set of numbers, or a ``keep`` that is none of ``layers``."""
    _at_least("max_drop_points", demand.max_drop_points, 0, "0 or more")
    for name in ("time", "energy", "cost"):
        _at_least(f"weights.{name}", getattr(demand.weights, name), 0, "0 or more")
    _at_least("link.rtt_ms", link.rtt_ms, 0, "0 or more")
    positive: dict[str, float | None] = {"link.uplink_mbps": link.uplink_mbps, "link.downlink_mbps": link.downlink_mbps}
    positive |= {name: getattr(demand, name) for name in ("max_latency_ms", "min_rate_fps", "frames")}
    for name, value in positive.items():
        if value is not None:
            _at_least(name, value, math.ulp(0), "more than 0")
    if demand.weights.energy > 0 and (power.compute_w is None or power.transmit_w is None):
        raise errors.UsageError(
            "the demand weighs energy, but the profile holds no watts for this board: "
            "declare them in the profile or set the weight of energy to 0"
        )
    if demand.keep not in ("nothing", "input", *layers):
        some = list(dict.fromkeys(layers))[:: max(1, len(layers) // 4)][:5]
        raise errors.UsageError(
            f"{model} has no layer {demand.keep[:80]!r} to keep on the device: "
            f'say "nothing", "input" or a layer\'s name, for example {", ".join(some) or "none is offered"}',
            layers=some,
        )


def check_name(model: str, demand: Demand, cuts: Sequence[Cut]) -> None:
    """Raises `errors.UsageError` for a ``keep`` that names more than one of ``cuts``: a weaker promise than its author meant must not pass."""
    named = [cut.index for cut in cuts if cut.kind != "input" and cut.layer == demand.keep]
    if demand.keep not in ("nothing", "input") and len(named) > 1:
        raise errors.UsageError(
            f"{model} has {len(named)} cuts after a layer named {demand.keep[:80]!r}; keep a later layer, whose name is its own",
            cuts=named,
        )


def _at_least(name: str, value: float, least: float, words: str) -> None:
    if not (math.isfinite(value) and value >= least):
        raise errors.UsageError(f"{name} is {value}: give a number of {words}", field=name)
