"""A plan in words and tables: where the cut is, what it costs, and why the others lost."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from splitedge.protocol.messages import Candidate, Codec, Cut, Output, Plan, Prediction, StageTime

BAR_WIDTH = 48
SHOWN = 3  # runners-up with a cut inside the network
MANY, TWO_COLUMNS = 16, 116  # layers, and columns of a terminal, from which the table of layers is set in two columns
WIDE = 100  # columns of a terminal from which the table of runners-up has the bits
_STAGES = (("device", "green", "█"), ("transfer", "yellow", "▒"), ("queue", "magenta", "▓"), ("server", "blue", "░"))


def explain(plan: Plan, width: int, command: str, *, layers: bool = False) -> RenderableType:
    """``plan`` on a screen of ``width`` columns; ``layers`` adds a row for each. ``command``: the one that prints this, with ``--json`` all of it."""
    parts: list[RenderableType] = [
        Text(headline(plan), style="bold"),
        Text(),
        *_time(plan, width),
        Text(),
        _facts(plan),
    ]
    if boards(plan) > 1:
        parts += [Text(), _chain(plan)]
    if layers and plan.layers:
        parts += [Text(), noise(plan, width)]
    elif layers:
        parts += [Text(), Text("No layer with weights runs on this board by this plan.")]
    if plan.runners_up:
        parts += [Text(), runners_up(plan, width, command)]
    return Group(*parts)


def boards(plan: Plan) -> int:
    """How many boards share the model of ``plan``."""
    return len(plan.stage.route) if plan.stage is not None else 1


def _chain(plan: Plan) -> Table:
    """What each board of a chain does, how long it takes, and its link to whoever follows."""
    assert plan.stage is not None
    title = f"{boards(plan)} boards, {plan.stage.rate_fps:.4g} frames/s"
    table = Table("board", "from", "to", "weights / sent", "ms", "link ms", "a frame", title=title, box=box.SIMPLE)
    for number, one in enumerate(plan.stage.route, 1):
        bits = f"{one.weight_bits:.1f} / {_bits(coding(one)) if one.activation_bits else '- bits'}"
        link = _ms(one.sending_ms + one.rtt_ms) if one.activation_bits else "-"
        cells = (str(number), one.start, one.cut, bits, _ms(one.device_ms), link, size(one.payload_bytes))
        table.add_row(*(Text(plain(cell)) for cell in cells))
    return table


def headline(plan: Plan) -> str:
    """The choice in one sentence."""
    if boards(plan) > 1:
        return plain(
            f"{plan.model} runs on {boards(plan)} boards and the server; this board computes up to {_cut(plan.cut)}"
        )
    where = {
        "server": f"{plan.model} runs on the server; this board sends the input",
        "device": f"{plan.model} runs on this board; nothing is sent",
        "split": f"{plan.model} is split after {_cut(plan.cut)}; the layers up to it run on this board",
    }
    return plain(where[plan.mode])


def noise(plan: Plan, width: int = 80) -> RenderableType:
    """Bits and share of the noise of every layer, the codec and the head's activations; in two columns where they are many and ``width`` allows."""
    rows = [(plain(one.layer), str(one.weights), f"{one.bits:.1f}", _share(one.noise_share)) for one in plan.layers]
    if plan.mode != "device":
        rows.append(("(codec at the cut)", "", coding(plan.ladder[plan.codec]), _share(plan.codec_share)))
    rows.append(("(8-bit activations)", "", "", _share(plan.head_share)))
    half = -(-len(rows) // 2) if width >= TWO_COLUMNS and len(rows) > MANY else len(rows)
    side_by_side = Table.grid(padding=(0, 4, 0, 0))
    side_by_side.add_row(*(_noise_table(part) for part in (rows[:half], rows[half:]) if part))
    return Group(
        Text("Layers: number of weights, their bits, and their share of the noise at the output", style="bold"),
        Text(),
        side_by_side,
    )


def _noise_table(rows: list[tuple[str, str, str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("layer", "weights", "bits", "noise"):
        table.add_column(name, justify="left" if name == "layer" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def bits(plan: Plan) -> str:
    """The weights' bits: ``3.4 bits on average (2.0 to 6.0 by layer)``."""
    if not plan.layers:
        return "none on this board"
    widths = [layer.bits for layer in plan.layers]
    if len(widths) == 1:
        return f"{widths[0]:.1f} bits"
    return f"{plan.mean_bits():.1f} bits on average ({min(widths):.1f} to {max(widths):.1f} by layer)"


def runners_up(plan: Plan, width: int, command: str) -> RenderableType:
    """The best plans that lost, and why: at most `SHOWN` that cut inside the network, one a cut, and those that do not cut. Names stand in full, for
    ``--keep``; where they leave too little room for the reasons, each has a line of its own.
    """
    shown = _best(plan.runners_up)
    rows = [[plain(cell) for cell in _row(candidate, wide=width >= WIDE)] for candidate in shown]
    headers = ["cut after", "ms", "drop", "sent", *(["bits"] if width >= WIDE else []), "why it lost"]
    columns = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    beside = sum(columns[1:-1]) + 2 * len(headers) + columns[0] + _REASON <= width
    count = f"{len(shown)} of {len(plan.runners_up)}; {plan.considered} plans compared"
    hint = "" if len(shown) == len(plan.runners_up) else f"; all: {command} --json"
    parts: list[RenderableType] = [Text(f"Runners-up ({count}{hint})", style="bold")]
    if beside:
        return Group(*parts, _rows(headers, rows, columns))
    indent = (0, 0, 0, 2)
    parts.append(Padding(_rows(headers[1:], [], columns[1:]), indent))
    for name, *cells in rows:
        parts.append(Text(name, no_wrap=True, overflow="ignore"))
        parts.append(Padding(_rows(headers[1:], [cells], columns[1:], show_header=False), indent))
    return Group(*parts)


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
    low, high, count = prediction.drop_low, prediction.drop_high, prediction.samples
    return f"{prediction.drop_points:.2f} points ({low:.2f} to {high:.2f} when measured; {count} samples)"


def _facts(plan: Plan) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in _fact_rows(plan):
        table.add_row(Text(name, style="cyan"), Text(plain(value)))
    return table


def _fact_rows(plan: Plan) -> list[tuple[str, str]]:
    p, sent = plan.prediction, plan.mode != "device"
    rows = [("weights", f"{bits(plan)}; segment {size(plan.segment.size)}" if plan.layers else bits(plan))]
    if sent:
        ratio = f", {100 * p.payload_bytes / p.float_bytes:.1f} % of float32" if p.float_bytes else ""
        shape = " x ".join(map(str, plan.cut.shape))
        rows.append(("sent", f"{size(p.payload_bytes)} per frame{ratio}; tensor {shape}"))
        rows.append(("codec", _codec(plan)))
        rows.append(("ladder", _ladder(plan)))
    rows.append(("output", output(plan.output)))
    rows.append((f"{plan.metric} drop", drop(p)))
    if plan.demand.keep != "nothing":
        kept = "the input" if plan.demand.keep == "input" else f"everything before the output of {plan.demand.keep}"
        rows.append(("kept here", kept))
    if p.energy_source != "unknown":
        rows.append(("energy", f"{p.energy_j:.3g} J per frame ({p.energy_source})"))
    parts = {name: getattr(p.parts, name) for name in ("time", "fetch", "energy", "cost")}
    if sum(value > 0 for value in parts.values()) > 1:
        rows.append(
            ("objective", f"{p.objective:.4g} = {' + '.join(f'{name} {v:.4g}' for name, v in parts.items() if v)}")
        )
    return rows


def output(found: Output) -> str:
    """What a model's answers hold, in words."""
    size, shape = math.prod(found.shape), " x ".join(map(str, found.shape))
    if found.greatest is not None:
        count = found.greatest.shape[found.greatest.axis]
        return f"a map {shape} of indices from 0 to {count - 1}; answers hold all of it"
    told = {
        "logits": f"{size} logits; answers are their softmax",
        "probabilities": f"{size} probabilities, as the model gives them",
        "scores": f"{size} scores from 0 to 1, each by itself, as the model gives them",
        "tensor": f"a tensor {shape} without classes; answers hold all of it",
    }
    return told[found.kind]


def _codec(plan: Plan) -> str:
    """How the tensor at the cut is coded."""
    chosen = plan.ladder[plan.codec]
    if chosen.jpeg:
        return f"JPEG, quality {chosen.jpeg}"
    if chosen.tables:
        values = math.prod(plan.cut.shape)
        return f"{chosen.rule}: entropy-coded, {8 * plan.prediction.payload_bytes / values:.1f} bits per value"
    if chosen.bits > 8:
        return f"{chosen.bits}-bit floats"
    ranges = "a range per channel" if len(chosen.scale) > 1 else "one range"
    return f"{chosen.bits} bits, clip rule {chosen.rule}, {ranges}"


def coding(codec: Codec | Candidate | StageTime) -> str:
    """How the tensor at a cut is coded, in a word: its bits, or that it is a JPEG of some quality."""
    bits = codec.bits if isinstance(codec, Codec) else codec.activation_bits
    return plain(codec.rule) if codec.rule.startswith(("jpeg", "entropy", "pca")) else str(bits)


def _ladder(plan: Plan) -> str:
    """The codecs between which the agent moves while frames flow: the most accurate and the cheapest."""
    if len(plan.rungs) == 1:
        return "1 codec"
    (most, first), (least, last) = ((plan.rungs[i], _bits(coding(plan.ladder[i]))) for i in (0, -1))
    return (
        f"{len(plan.rungs)} codecs, {size(most.payload_bytes)} ({first}, drop {most.drop_points:.2f}) "
        f"to {size(least.payload_bytes)} ({last}, {least.drop_points:.2f})"
    )


def _bits(widths: str) -> str:
    return f"{widths} bits" if widths.rpartition(" ")[2].isdigit() else widths


def _time(plan: Plan, width: int) -> list[RenderableType]:
    """The time of a frame, its parts as a bar with a legend, and what it leaves out."""
    p = plan.prediction
    values = (p.device_ms, p.transfer_ms, p.queue_ms, p.server_ms)
    bar, total = Text(), max(p.total_ms, sum(values), 1e-9)
    legend: list[Text] = []
    for value, (name, colour, block) in zip(values, _STAGES, strict=True):
        if value > 0:
            bar.append(block * max(1, round(min(BAR_WIDTH, width) * (value / total))), style=colour)
            legend.append(Text.assemble((block, colour), f" {name} {_ms(value)} ms"))
    line = Text("   ").join(legend)
    notes = [text for applies, text in _LEFT_OUT if applies(plan)]
    head = Text.assemble(
        ("time  ", "cyan"), (f"{_ms(p.total_ms)} ms per frame", "bold"), "".join(f", {note}" for note in notes)
    )
    return [head, bar, *([line] if line.cell_len <= width else legend)]


#: What the time of a frame does not tell.
_LEFT_OUT: tuple[tuple[Callable[[Plan], bool], str], ...] = (
    (lambda plan: plan.preprocess.kind == "image", "without decoding and resizing the image"),
    (lambda plan: plan.tokenizer is not None, "without tokenizing the text"),
    (lambda plan: boards(plan) > 1, "with all that follows this board as server"),
)


def _ms(value: float) -> str:
    """Milliseconds in at most 8 characters."""
    if value < 1000:
        return f"{value:.2f}"
    return f"{value:.0f}" if value < 1e6 else f"{value:.2g}"


def _cut(cut: Cut) -> str:
    return {"input": "the input", "output": "the output", "inside": cut.layer}[cut.kind]


_REASON = 29  # columns that a reason needs beside a name; it is wrapped if it is longer


def _best(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates to show, in their order."""
    found: list[Candidate] = []
    for candidate in candidates:
        inside = [c.cut.index for c in found if c.cut.kind == "inside"]
        if candidate.cut.kind != "inside" or (len(inside) < SHOWN and candidate.cut.index not in inside):
            found.append(candidate)
    return found


def _row(candidate: Candidate, *, wide: bool) -> list[str]:
    """One cell for each of the headers."""
    p, kind = candidate.prediction, candidate.cut.kind
    place = {"input": "(all on the server)", "output": "(all on this board)"}.get(kind, candidate.cut.layer)
    weights = f"{candidate.weight_bits:.1f}" if candidate.weight_bits else "-"
    sent = size(p.payload_bytes) if p.payload_bytes else "none"
    cells = [place, _ms(p.total_ms), f"{p.drop_points:.2f}", sent]
    if wide:
        cells.append(f"{weights} / {'-' if kind == 'output' else coding(candidate)}")
    return [*cells, candidate.reason]


def _rows(headers: list[str], rows: list[list[str]], columns: list[int], *, show_header: bool = True) -> Table:
    """A table without rules; a last column that is too long is wrapped in its column."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", show_header=show_header)
    for name, wide in zip(headers[:-1], columns[:-1], strict=True):
        right = name in ("ms", "drop", "sent")
        table.add_column(name, justify="right" if right else "left", no_wrap=True, min_width=wide)
    table.add_column(headers[-1])
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
