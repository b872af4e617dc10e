"""A plan in words and tables: where the cut is, what it costs, and why the others lost."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edge_agent.protocol.messages import Candidate, Cut, Plan, Prediction

BAR_WIDTH = 48
_STAGES = (("device", "green", "█"), ("transfer", "yellow", "▒"), ("server", "blue", "░"))


def explain(plan: Plan) -> RenderableType:
    """Everything about ``plan`` that a person wants to know, for a rich console."""
    parts: list[RenderableType] = [
        Text(headline(plan), style="bold"),
        Text(),
        _facts(plan),
        Text(),
        _time(plan.prediction),
    ]
    if plan.runners_up:
        parts += [Text(), runners_up(plan)]
    return Group(*parts)


def headline(plan: Plan) -> str:
    """The choice in one sentence."""
    where = {
        "server": f"{plan.model} runs wholly on the server; the input is sent",
        "device": f"{plan.model} runs wholly on this device; nothing is sent",
        "split": f"{plan.model} is cut after {_cut(plan.cut)}: what lies before it runs here, the rest on the server",
    }
    return plain(where[plan.mode])


def runners_up(plan: Plan) -> Table:
    """The plans that lost, and why."""
    table = Table(title=f"Runners-up ({plan.considered} plans weighed)", title_justify="left", title_style="")
    for name in ("cut after", "weights", "activation", "total ms", "drop", "payload"):
        table.add_column(name, justify="left" if name == "cut after" else "right", no_wrap=name != "cut after")
    table.add_column("why it lost", ratio=1)
    for candidate in plan.runners_up:
        table.add_row(*(Text(plain(cell)) for cell in _row(candidate)))
    return table


def plain(text: str) -> str:
    """``text`` without control characters: names come from the server and end on a terminal."""
    return "".join(c for c in text if c.isprintable())


def size(count: float) -> str:
    """Bytes for people: ``3.1 kB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def drop(prediction: Prediction) -> str:
    """The predicted accuracy drop with its interval and sample count."""
    return (
        f"{prediction.drop_points:.2f} points (95 % interval {prediction.drop_low:.2f} to {prediction.drop_high:.2f}, "
        f"{prediction.samples} samples)"
    )


def _facts(plan: Plan) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in _fact_rows(plan):
        table.add_row(Text(name, style="cyan"), Text(plain(value)))
    return table


def _fact_rows(plan: Plan) -> list[tuple[str, str]]:
    p, sent = plan.prediction, plan.mode != "device"
    rows = [
        ("cut", _cut(plan.cut) + f" {plan.cut.shape}"),
        ("weights", f"{plan.weight_bits} bits" if plan.mode != "server" else "none here"),
    ]
    if sent:
        chosen = plan.ladder[plan.codec]
        ranges = "per channel" if len(chosen.scale) > 1 else "per tensor"
        rows.append(("activation", f"{chosen.bits} bits, clipped by {chosen.rule}, {ranges}"))
        ratio = f", {100 * p.payload_bytes / p.float_bytes:.1f} % of it" if p.float_bytes else ""
        rows.append(("payload", f"{size(p.payload_bytes)} a frame; {size(p.float_bytes)} in float{ratio}"))
    else:
        rows.append(("payload", "nothing leaves the device"))
    rows += [(f"{plan.metric} drop", drop(p)), ("segment", size(p.segment_bytes)), ("must stay here", plan.demand.keep)]
    if p.energy_source != "unknown":
        rows.append(("energy", f"{p.energy_j:.3g} J a frame ({p.energy_source})"))
    return rows


def _time(prediction: Prediction) -> RenderableType:
    values = (prediction.device_ms, prediction.transfer_ms, prediction.server_ms)
    bar, total = Text("time    "), max(prediction.total_ms, sum(values), 1e-9)
    for value, (_, colour, block) in zip(values, _STAGES, strict=True):
        bar.append(block * round(BAR_WIDTH * (value / total)), style=colour)
    legend = Text("        ")
    for value, (name, colour, block) in zip(values, _STAGES, strict=True):
        legend.append(f"{block} ", style=colour).append(f"{name} {value:.2f} ms   ")
    return Group(bar, legend.append(f"total {prediction.total_ms:.2f} ms", style="bold"))


def _cut(cut: Cut) -> str:
    return {"input": "the input", "output": "the output", "inside": cut.layer}[cut.kind]


def _row(candidate: Candidate) -> tuple[str, ...]:
    p, kind = candidate.prediction, candidate.cut.kind
    weights = "-" if kind == "input" else f"{candidate.weight_bits} bits"
    activation = "-" if kind == "output" else f"{candidate.activation_bits} bits {candidate.rule}"
    payload = size(p.payload_bytes) if p.payload_bytes else "none"
    return (
        _cut(candidate.cut),
        weights,
        activation,
        f"{p.total_ms:.2f}",
        f"{p.drop_points:.2f}",
        payload,
        candidate.reason,
    )
