"""What a planner is asked and what it answers, as plain data: no bundle, no socket, no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edge_agent import errors
from edge_agent.protocol.messages import Candidate, Cut, Demand, LinkEstimate


@dataclass(frozen=True, slots=True)
class Site:
    """A place where the network may be cut, and what either side of it costs.

    ``layers`` names every layer whose output is computed in the head, the cut's own included; ``memory_bytes`` is what the head needs on
    the board (arena and unpacked weights); ``is_input``: the head only moves bytes about, so what leaves is the input itself.
    """

    cut: Cut
    head_ms: float
    tail_ms: float
    memory_bytes: int
    layers: frozenset[str]
    is_input: bool = False

    @property
    def elements(self) -> int:
        """Values in one frame's tensor at the cut."""
        return math.prod(self.cut.shape)


@dataclass(frozen=True, slots=True)
class Point:
    """One measured cell of the bundle's grid: the accuracy drop, in points, of a cut x weight bits x activation bits x clip rule."""

    cut: int
    weight_bits: int
    activation_bits: int
    rule: str
    drop: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, slots=True)
class Power:
    """Watts of the board while it computes and while it sends; None where nobody measured or declared them."""

    compute_w: float | None = None
    transmit_w: float | None = None
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything a plan depends on. ``segment_bytes[cut, weight_bits]`` is what the agent has to fetch: 0 for a segment it holds."""

    model: str
    sites: tuple[Site, ...]  # by cut index
    points: tuple[Point, ...]
    link: LinkEstimate
    demand: Demand
    segment_bytes: dict[tuple[int, int], int] = field(default_factory=dict)
    power: Power = Power()
    memory_bytes: int | None = None  # free on the board; None: not known, not checked
    layers: tuple[str, ...] = ()  # every layer's name in order, also of those that no offered cut lies behind


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer. ``ladder`` runs from most to fewest activation bits, all within the accuracy demand; empty where nothing is sent."""

    chosen: Candidate
    ladder: tuple[Point, ...]
    codec: int  # index of the chosen one in the ladder
    runners_up: tuple[Candidate, ...]
    considered: int


def check(problem: Problem) -> None:
    """Raises `errors.UsageError` for a demand or a link that is not a sensible set of numbers, or a ``keep`` that names no layer."""
    demand, link = problem.demand, problem.link
    _at_least("max_drop_points", demand.max_drop_points, 0, "0 or more")
    for name in ("time", "energy", "cost"):
        _at_least(f"weights.{name}", getattr(demand.weights, name), 0, "0 or more")
    _at_least("link.rtt_ms", link.rtt_ms, 0, "0 or more")
    positive: dict[str, float | None] = {"link.uplink_mbps": link.uplink_mbps, "link.downlink_mbps": link.downlink_mbps}
    positive |= {"max_latency_ms": demand.max_latency_ms, "min_rate_fps": demand.min_rate_fps}
    for name, value in positive.items():
        if value is not None:
            _at_least(name, value, math.ulp(0), "more than 0")
    if demand.weights.energy > 0 and (problem.power.compute_w is None or problem.power.transmit_w is None):
        raise errors.UsageError(
            "the demand weighs energy, but the profile holds no watts for this board: "
            "declare them in the profile or set the weight of energy to 0"
        )
    _check_keep(problem)


def _at_least(name: str, value: float, least: float, words: str) -> None:
    if not (math.isfinite(value) and value >= least):
        raise errors.UsageError(f"{name} is {value}: give a number of {words}", field=name)


def _check_keep(problem: Problem) -> None:
    keep = problem.demand.keep
    known = set(problem.layers).union(*(site.layers for site in problem.sites))
    if keep in ("nothing", "input") or keep in known:
        return
    names = list(dict.fromkeys([*(s.cut.layer for s in problem.sites if s.cut.kind == "inside"), *problem.layers]))
    some = names[:: max(1, len(names) // 4)][:5]
    raise errors.UsageError(
        f"{problem.model} has no layer {keep[:80]!r} to keep on the device: "
        f'say "nothing", "input" or a layer\'s name, for example {", ".join(some) or "none is offered"}',
        layers=some,
    )
