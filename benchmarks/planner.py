"""The planner's speed and optimality, on synthetic networks of 20 to 200 layers.

    python -m benchmarks.planner [--quick] [--json OUT]

Sizes and noise resemble EfficientNet's and ResNet's. "from scratch": the bits of all layers at one noise budget.
"plan": the online choice of cut, pattern and codec with the patterns in memory, for a mix of 1,000 devices, links and
demands, on one core. "choice + check": the same with the verifier, which a server runs on every answer. Some demands
also set a latency or a rate. Infeasible demands ("refused") do not count in the times, but the relaxation that the
refusal suggests must be sufficient. Gaps are in bytes of weights: ours over HiGHS's optimum, and QPART's closed form
and uniform bits over ours. Our planner has seven even grids in addition to the seven widths of the baselines; "same
widths" excludes the grids.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import milp
from benchmarks.report import parser, report
from calibration.rounding.rounder import RATES
from edge_server.planner import (
    CutCodec,
    CutOption,
    Level,
    Pick,
    PowerDraw,
    Query,
    Table,
    WeightLayer,
    allocate,
    choose,
    closed_form,
    precompute,
    uniform,
    verify_allocation,
    verify_pick,
)
from edge_server.planner.allocation import WIDTHS, packed_bytes
from edge_server.planning import pattern_tables
from splitedge import errors
from splitedge.protocol.messages import Cut, Demand, LinkEstimate, Weights

LAYERS: Final = (20, 50, 100, 200)
DEVICES: Final = 1000
DROPS: Final = tuple(drop for drop in pattern_tables.DROPS if 0.1 <= drop <= 20)  # points, of the accuracy levels
CUTS: Final = 24  # cuts, as many as a bundle offers of a deep network
BOUNDED: Final = 0.3  # share of the demands with a latency limit, and of those with a minimum rate
LATENCIES: Final = (10.0, 2000.0)  # ms
RATES_ASKED: Final = (0.2, 60.0)  # frames a second
MILP_SECONDS: Final = 20.0

# Plane side, input channels, expansion and window of each EfficientNet-Lite0 stage; plane side and width of ResNet50's.
EFFICIENT: Final = (
    (112, 16, 1, 3),
    (56, 24, 6, 3),
    (28, 40, 6, 5),
    (14, 80, 6, 3),
    (14, 112, 6, 5),
    (7, 192, 6, 5),
    (7, 320, 6, 3),
)
RESIDUAL: Final = ((56, 64), (28, 128), (14, 256), (7, 512))

T = TypeVar("T")
Made = tuple[int, int]  # weights, and values in the layer's output
Maker = Callable[[int], list[Made]]


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    counts = LAYERS[:2] if arguments.quick else LAYERS
    budgets, devices = (6, 200) if arguments.quick else (40, DEVICES)
    rows = [row(name, count, budgets, devices) for count in counts for name in ("EfficientNet", "ResNet")]
    notes = [
        "pairs: pairs of pattern and codec that are weighed; closed, uniform: bytes above the optimum",
        "same widths: bytes above the optimum without even grids, which closed and uniform do not use",
        f"{budgets} noise budgets and {devices} devices for each network; the verifier passed every answer, and "
        "choice + check includes its time",
        "refused: demands that no plan meets; the relaxation that each refusal suggests was sufficient",
        f"MILPs: budgets that HiGHS solved within {MILP_SECONDS:.0f} s within the constraint; it keeps constraints "
        "only to a tolerance",
    ]
    if arguments.quick:
        notes.append(f"left out by --quick: networks of {' and '.join(map(str, LAYERS[2:]))} layers")
    report("Planner", rows, summary(rows), arguments.json, notes)


def row(name: str, count: int, budgets: int, devices: int) -> dict[str, Any]:
    """Return the row of one network."""
    rng = np.random.default_rng(count)
    made = {"EfficientNet": efficient, "ResNet": residual}[name](count)
    layers = with_noise(made, rng)
    scratch, gaps = allocations(layers, budgets)
    start = time.perf_counter()
    table = precompute(name, options(made, layers, rng), levels(layers))
    offline = time.perf_counter() - start
    plans, checked = online(table, [request(table, rng) for _ in range(devices)])
    return {
        "network": name,
        "layers": count,
        "scratch p50 ms": percentile(scratch, 50),
        "scratch p99 ms": percentile(scratch, 99),
        "offline s": offline,
        "pairs": len(table.level),
        "plan p50 ms": percentile(plans, 50),
        "plan p99 ms": percentile(plans, 99),
        "choice + check p50 ms": percentile(checked, 50),
        "choice + check p99 ms": percentile(checked, 99),
        "plans/s": round(1e3 / float(np.mean(plans))),
        "refused %": 100 * (1 - len(plans) / devices),
        **gaps,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the worst of each figure over the networks; means for gaps of the baselines."""
    found = {
        f"{figure}p99_ms_{count}_layers": max(row[column] for row in rows if row["layers"] == count)
        for figure, column in (("", "plan p99 ms"), ("checked_", "choice + check p99 ms"))
        for count in dict.fromkeys(row["layers"] for row in rows)
    }
    return found | {
        "plans_per_s": 1 / float(np.mean([1 / row["plans/s"] for row in rows])),
        "optimality_gap_max_percent": max((row["gap %"] for row in rows if row["MILPs"]), default=math.nan),
        "milp_compared": sum(row["MILPs"] for row in rows),
        "closed_form_gap_percent": float(np.mean([row["closed +%"] for row in rows])),
        "uniform_gap_percent": float(np.mean([row["uniform +%"] for row in rows])),
        "closed_form_gap_same_widths_percent": float(np.mean([row["closed, same widths +%"] for row in rows])),
        "uniform_gap_same_widths_percent": float(np.mean([row["uniform, same widths +%"] for row in rows])),
        "refused_percent": float(np.mean([row["refused %"] for row in rows])),
    }


# --- bits at one budget ---------------------------------------------------------------------------------------------


def allocations(layers: Sequence[WeightLayer], budgets: int) -> tuple[list[float], dict[str, float]]:
    """Return the milliseconds of each allocation, and the gaps of ours and of the baselines in per cent."""
    low, high = (sum(layer.noise[WIDTHS.index(bits)] for layer in layers) for bits in (8, 2))
    times: list[float] = []
    theirs: list[float] = []
    baselines: dict[str, list[float]] = {}
    plain = [same_widths(layer) for layer in layers]
    for part in np.linspace(0.1, 0.8, budgets):
        budget = low * (high / low) ** part
        taken, found = timed(partial(allocate, layers, budget))
        times.append(taken)
        without = allocate(plain, budget)
        for own, answer in ((layers, found), (plain, without)):
            must(verify_allocation(own, budget, (), 0.0, answer) + ["not proven"] * (answer.bound < answer.objective))
        theirs += [gap(found.objective, best) for best in highs(layers, budget)]
        for name, rule in (("closed", closed_form), ("uniform", uniform)):
            if (baseline := rule(layers, budget)) is not None:
                baselines.setdefault(f"{name} +%", []).append(gap(baseline.objective, found.objective))
                own_gaps = baselines.setdefault(f"{name}, same widths +%", [])
                own_gaps.append(gap(baseline.objective, without.objective))
    means = {name: float(np.mean(gaps)) for name, gaps in baselines.items()}
    return times, {"MILPs": len(theirs), "gap %": max(theirs, default=math.nan), **means}


def same_widths(layer: WeightLayer) -> WeightLayer:
    """Return ``layer`` without its even grids."""
    return dataclasses.replace(layer, noise=layer.noise[: len(WIDTHS)], coded=layer.coded[: len(WIDTHS)])


def highs(layers: Sequence[WeightLayer], budget: float) -> list[int]:
    """Return the bytes of HiGHS's optimum; empty if it times out, or exceeds the budget within its tolerance."""
    cost = np.array([layer.sizes for layer in layers])
    noise = np.array([layer.noise for layer in layers])
    choice = milp.solve(cost, noise, budget, MILP_SECONDS)
    rows = np.arange(len(layers))
    if choice is None or noise[rows, choice].sum() > budget:
        return []
    return [int(cost[rows, choice].sum())]


def gap(more: int, best: int) -> float:
    """Return the excess of ``more`` over ``best``, in per cent."""
    return 100 * (more / best - 1)


# --- plans with patterns in memory ----------------------------------------------------------------------------------


def online(table: Table, requests: Sequence[Query]) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each plan, and of each with its check, without infeasible demands."""
    for asked in requests[:20]:
        answer(table, asked)
    times, checked = [], []
    for asked in requests:
        taken, found = timed(partial(answer, table, asked))
        if isinstance(found, errors.InfeasibleError):
            for less in relaxed(asked, found):
                must(verify_pick(table, less, choose(table, less)))
            continue
        check, faults = timed(partial(verify_pick, table, asked, found))
        must(faults)
        times.append(taken)
        checked.append(taken + check)
    return times, checked


def answer(table: Table, asked: Query) -> Pick | errors.InfeasibleError:
    """Return the plan, or the refusal."""
    try:
        return choose(table, asked)
    except errors.InfeasibleError as error:
        return error


def relaxed(asked: Query, refusal: errors.InfeasibleError) -> list[Query]:
    """Return ``asked`` with the relaxations that the refusal suggests, all together or each alone."""
    nearest = {
        name: value * {"min_rate_fps": 1 - 1e-9}.get(name, 1.0) if isinstance(value, float) else value
        for name, value in refusal.data["nearest"].items()
    }
    return [_with(asked, nearest)] if refusal.data["all_of"] else [_with(asked, {n: v}) for n, v in nearest.items()]


def _with(asked: Query, values: dict[str, Any]) -> Query:
    memory = values.pop("memory", asked.memory_bytes)
    return dataclasses.replace(asked, memory_bytes=memory, demand=msgspec.structs.replace(asked.demand, **values))


def request(table: Table, rng: np.random.Generator) -> Query:
    """Draw a device, from a small to a fast board, its link, its demand, and the patterns that it may hold."""
    speed, rate = np.exp(rng.uniform(np.log(2.0), np.log(500.0))), np.exp(rng.uniform(np.log(0.25), np.log(1000.0)))
    works = np.array([sum(layer.weights for layer in option.layers) for option in table.options]) / 1e5
    weights = Weights(time=1.0, energy=float(rng.choice([0.0, 0.2])), cost=float(rng.choice([0.0, 0.5])))
    drop = float(rng.uniform(DROPS[0], DROPS[-1]))
    return Query(
        demand=Demand(
            max_drop_points=drop,
            weights=weights,
            keep=str(rng.choice(["nothing", "input"])),
            frames=float(np.exp(rng.uniform(0, 12))),
            max_latency_ms=float(np.exp(rng.uniform(*np.log(LATENCIES)))) if rng.random() < BOUNDED else None,
            min_rate_fps=float(np.exp(rng.uniform(*np.log(RATES_ASKED)))) if rng.random() < BOUNDED else None,
        ),
        link=LinkEstimate(float(rng.uniform(1, 200)), float(rate), float(rate * 2)),
        head_ms=tuple((works * 50 / speed).tolist()),
        power=PowerDraw(5.0, 3.0),
        memory_bytes=int(rng.choice([2**22, 2**28])) if rng.random() < 0.5 else None,
        queue_ms=float(rng.exponential(2.0)),
        held=frozenset(rng.choice(len(table.patterns), 2).tolist()) if rng.random() < 0.5 else frozenset(),
    )


def timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    found = call()
    return (time.perf_counter() - start) * 1e3, found


def must(faults: list[str]) -> None:
    """Exit if a verifier found faults."""
    if faults:
        raise SystemExit(f"the verifier found: {'; '.join(faults)}")


def percentile(times: Sequence[float], share: float) -> float:
    return float(np.percentile(times, share))


# --- synthetic networks ---------------------------------------------------------------------------------------------


def efficient(count: int) -> list[Made]:
    """Return inverted residuals: a stem, then expansion, depthwise window and projection, in stages of equal depth."""
    made = [(3 * 3 * 3 * 32, 112 * 112 * 32)]
    for i in range(count - 2):
        side, channels, times, window = EFFICIENT[i * len(EFFICIENT) // (count - 2)]
        wide = channels * times
        made.append(
            [
                (channels * wide, side * side * wide),
                (window * window * wide, side * side * wide),
                (wide * channels, side * side * channels),
            ][i % 3]
        )
    return [*made, (1280 * 1000, 1000)]


def residual(count: int) -> list[Made]:
    """Return bottlenecks of 1x1, 3x3 and 1x1 layers."""
    made = [(7 * 7 * 3 * 64, 56 * 56 * 64)]
    for i in range(count - 2):
        side, width = RESIDUAL[i * len(RESIDUAL) // (count - 2)]
        made.append(
            [
                (4 * width * width, side * side * width),
                (9 * width * width, side * side * width),
                (4 * width * width, side * side * 4 * width),
            ][i % 3]
        )
    return [*made, (2048 * 1000, 1000)]


def with_noise(made: Sequence[Made], rng: np.random.Generator) -> list[WeightLayer]:
    """Add noise p 4^-b that resembles measurements.

    p spans two decades, smaller layers are more sensitive, each width deviates by a few per cent, and 2 bits are worse
    than the fit. An even grid has the noise of a quarter of a bit more than its rate.
    """
    layers = []
    for i, (weights, _) in enumerate(made):
        p = np.exp(rng.normal(0, 1.2)) * weights**-0.2 * 20
        wobble = np.exp(rng.normal(0, 0.05, len(WIDTHS))) * np.where(np.array(WIDTHS) == 2, 2.0, 1.0)
        noise = np.maximum.accumulate((p * 4.0 ** -np.array(WIDTHS) * wobble)[::-1])[::-1]
        even = p * 4.0 ** -(np.array(RATES) + 0.25) * np.exp(rng.normal(0, 0.05, len(RATES)))
        sizes = [packed_bytes(weights, bits) for bits in WIDTHS] + [round(weights * rate / 8) + 40 for rate in RATES]
        layers.append(WeightLayer(f"layer{i}", weights, (*noise.tolist(), *even.tolist()), tuple(sizes)))
    return layers


def levels(layers: Sequence[WeightLayer]) -> list[Level]:
    """Return a level for each drop, with noise from 7 bits everywhere to 3 bits everywhere."""
    low, high = (sum(layer.noise[WIDTHS.index(bits)] for layer in layers) for bits in (7, 3))
    return [Level(drop, low * (high / low) ** (i / (len(DROPS) - 1))) for i, drop in enumerate(DROPS)]


def options(made: Sequence[Made], layers: Sequence[WeightLayer], rng: np.random.Generator) -> list[CutOption]:
    """Return the input, cuts spread over the layers, and the output."""
    ends = sorted({round(end) for end in np.linspace(0, len(made), CUTS)})
    total = sum(weights for weights, _ in made)
    scale = sum(layer.noise[1] for layer in layers)
    found = []
    for index, end in enumerate(ends):
        kind: Any = "input" if end == 0 else "output" if end == len(made) else "inside"
        values = made[end - 1][1] if end else 224 * 224 * 3
        held = sum(weights for weights, _ in made[:end])
        cut = Cut(index, f"layer{end - 1}" if end else "input", f"t{end}", [values], kind)
        codecs = () if kind == "output" else cut_codecs(values, scale * float(np.exp(rng.normal(-2, 1))))
        inside = frozenset(layer.name for layer in layers[:end])
        found.append(
            CutOption(
                cut, tuple(layers[:end]), codecs, 10.0 * (1 - held / total), 2 * held + values, inside, False, 300 * end
            )
        )
    return found


def cut_codecs(values: int, scale: float) -> tuple[CutCodec, ...]:
    """Return a codec for each width; noise scales as 4^-bits."""
    spread: NDArray[np.float64] = scale * 64 * 4.0 ** -np.array([8.0, 6.0, 4.0, 3.0, 2.0])
    return tuple(
        CutCodec("mse", bits, 40 + -(-values * bits // 8), float(noise))
        for bits, noise in zip((8, 6, 4, 3, 2), spread, strict=True)
    )


if __name__ == "__main__":
    main()
