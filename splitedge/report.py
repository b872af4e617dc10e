"""A plan as text and tables: the cut, its cost, and why other plans lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from splitedge.protocol.messages import (
    IMAGE_FORMATS,
    Candidate,
    Codec,
    Cut,
    Detection,
    ModelInfo,
    Output,
    Plan,
    Prediction,
    StageTime,
    Task,
)
from splitedge.terminal import Column, definitions, plain, shorten, size, table, wrap

BAR_WIDTH = 48
SHOWN = 3  # runners-up with a cut inside the network
MANY, TWO_COLUMNS = 16, 116  # layers, and columns of the terminal, from which the layers are listed side by side
_STAGES = (("device", "green", "█"), ("transfer", "yellow", "▒"), ("queue", "magenta", "▓"), ("server", "blue", "░"))


def explain(plan: Plan, width: int, command: str, *, layers: bool = False) -> RenderableType:
    """``plan`` in ``width`` columns, with a row for each layer if ``layers``.

    ``command`` prints this; with ``--json`` it prints everything.
    """
    title = Text("\n".join(wrap(headline(plan), width)), style="bold")
    parts: list[RenderableType] = [title, Text(), *_time(plan, width), Text(), _facts(plan, width)]
    if boards(plan) > 1:
        parts += [Text(), _chain(plan, width)]
    if layers and plan.layers:
        parts += [Text(), noise(plan, width)]
    elif layers:
        parts += [Text(), Text("This plan runs no layer with weights on this board.")]
    if plan.runners_up:
        parts += [Text(), runners_up(plan, width, command)]
    return Group(*parts)


def boards(plan: Plan) -> int:
    """The number of boards that share the model of ``plan``."""
    return len(plan.stage.route) if plan.stage is not None else 1


def _chain(plan: Plan, width: int) -> RenderableType:
    """The last layer, the time and the link of each board of a chain. A board begins where the one before it ends."""
    assert plan.stage is not None
    title = f"{boards(plan)} boards, {plan.stage.rate_fps:.4g} frames/s"
    columns = [
        Column("board and its last layer", alone=True),
        Column("weights / sent"),
        Column("ms", right=True),
        Column("link ms", right=True),
        Column("per frame", right=True),
    ]
    rows = []
    for number, one in enumerate(plan.stage.route, 1):
        bits = f"{one.weight_bits:.1f} / {_bits(coding(one)) if one.activation_bits else '- bits'}"
        link = _ms(one.sending_ms + one.rtt_ms) if one.activation_bits else "-"
        rows.append((f"{number}  {plain(one.cut)}", bits, _ms(one.device_ms), link, size(one.payload_bytes)))
    return Group(Text(title, style="bold"), table(columns, rows, width))


def headline(plan: Plan) -> str:
    """The plan in one sentence."""
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


def noise(plan: Plan, width: int) -> RenderableType:
    """Bits and share of the noise of every layer, of the codec and of the activations in the head; side by side if
    there are many.
    """
    rows = [(plain(one.layer), str(one.weights), f"{one.bits:.1f}", _share(one.noise_share)) for one in plan.layers]
    if plan.mode != "device":
        rows.append(("(codec at the cut)", "", coding(plan.ladder[plan.codec]), _share(plan.codec_share)))
    rows.append(("(8-bit activations)", "", "", _share(plan.head_share)))
    title = "\n".join(wrap("Layers: number of weights, bits per weight, and share of the noise at the output", width))
    columns = [
        Column("layer", alone=True),
        Column("weights", right=True),
        Column("bits", right=True),
        Column("noise", right=True),
    ]
    return Group(Text(title, style="bold"), Text(), _side_by_side(columns, rows, width))


def _side_by_side(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Text:
    """The table of ``rows``; two halves beside each other if they are many and ``width`` allows."""
    half = -(-len(rows) // 2)
    if width < TWO_COLUMNS or len(rows) <= MANY:
        return table(columns, rows, width)
    left, right = (table(columns, part, (width - 4) // 2).split() for part in (rows[:half], rows[half:]))
    wide = max(line.cell_len for line in left)
    if wide > (width - 4) // 2 or max(line.cell_len for line in right) > (width - 4) // 2:
        return table(columns, rows, width)
    for i, line in enumerate(right):
        left[i].append(" " * (wide - left[i].cell_len + 4)).append_text(line)
    return Text("\n").join(left)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def bits(plan: Plan) -> str:
    """The bits of the weights: ``3.4 bits on average (2.0 to 6.0 by layer)``."""
    if not plan.layers:
        return "none on this board"
    widths = [layer.bits for layer in plan.layers]
    if len(widths) == 1:
        return f"{widths[0]:.1f} bits"
    return f"{plan.mean_bits():.1f} bits on average ({min(widths):.1f} to {max(widths):.1f} by layer)"


def runners_up(plan: Plan, width: int, command: str) -> RenderableType:
    """The best plans that lost, and why: at most `SHOWN` that cut inside the network, one per cut, and those that do
    not cut.

    Names are complete, for ``--keep``.
    """
    shown = _best(plan.runners_up)
    count = f"{len(shown)} of {len(plan.runners_up)}; {plan.considered} plans compared"
    hint = "" if len(shown) == len(plan.runners_up) else f"; all: {command} --json"
    title = "\n".join(wrap(f"Runners-up ({count}{hint})", width))
    columns = [
        Column("cut after", alone=True),
        Column("ms", right=True),
        Column("drop", right=True),
        Column("sent", right=True),
        Column("bits", optional=True),
        Column("why it lost", wrapped=True),
    ]
    return Group(Text(title, style="bold"), table(columns, [_row(candidate) for candidate in shown], width))


def models(found: Sequence[ModelInfo], width: int) -> RenderableType:
    """A row for each model, then the operators that do not run on boards."""
    columns = [
        Column("model", alone=True),
        Column("input"),
        Column("cuts offered", right=True),
        Column("metric"),
        Column("samples", right=True),
    ]
    notes = [
        Text("\n".join(wrap(f"{plain(model.name)}: not in the integer head: {_unsupported(model)}", width, "  ")))
        for model in found
        if model.unsupported
    ]
    return Group(table(columns, [_model(model) for model in found], width), *([Text(), *notes] if notes else []))


def _model(model: ModelInfo) -> list[str]:
    shape = " x ".join(map(str, model.preprocess.shape))
    if model.tokenizer is not None:
        shape = f"text, {shape} tokens"
    metric = model.metric if model.float_top1 is None else f"{model.metric} ({model.float_top1:.1f} %)"
    return [plain(model.name), shape, f"{len(model.offered)} of {len(model.cuts)}", metric, str(model.samples)]


def _unsupported(model: ModelInfo) -> str:
    """The first operators that the integer head does not support."""
    names = [shorten(plain(one), 60 if len(model.unsupported) > 1 else 200) for one in model.unsupported[:5]]
    more = len(model.unsupported) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def drop(prediction: Prediction) -> str:
    """The predicted accuracy drop with its interval and sample count."""
    low, high, count = prediction.drop_low, prediction.drop_high, prediction.samples
    return f"{prediction.drop_points:.2f} points ({low:.2f} to {high:.2f} when measured; {count} samples)"


def _facts(plan: Plan, width: int) -> Text:
    return definitions([(Text(name, style="cyan"), plain(value)) for name, value in _fact_rows(plan)], width)


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
    parts = {name: getattr(p.parts, name) for name in ("time", "fetch", "energy", "cost", "traffic")}
    if sum(value > 0 for value in parts.values()) > 1:
        rows.append(
            ("objective", f"{p.objective:.4g} = {' + '.join(f'{name} {v:.4g}' for name, v in parts.items() if v)}")
        )
    return rows


def output(found: Output) -> str:
    """The output of a model, and the part of it that answers contain."""
    count, shape = math.prod(found.shape), " x ".join(map(str, found.shape))
    if found.task is not None:
        return _task(found.task, shape)
    if found.parts:
        names = ", ".join(f"{plain(part.name)} {' x '.join(map(str, part.shape))}" for part in found.parts)
        return f"{len(found.parts)} outputs: {names}; answers contain all of them"
    if found.greatest is not None:
        classes = found.greatest.shape[found.greatest.axis]
        return f"a map {shape} of indices from 0 to {classes - 1}; answers contain the whole map"
    kinds = {
        "logits": f"{count} logits; answers contain their softmax",
        "probabilities": f"{count} probabilities, as the model returns them",
        "scores": f"{count} independent scores from 0 to 1, as the model returns them",
        "tensor": f"a tensor {shape} without classes; answers contain the whole tensor",
    }
    return kinds[found.kind]


def _task(task: Task, shape: str) -> str:
    if isinstance(task, Detection):
        points = f" with {task.points.count // 2} points each" if task.points is not None else ""
        return f"at most {task.most} boxes{points}, with a score of at least {task.score:g}"
    return f"the class of each pixel, from a map {shape}"


def _codec(plan: Plan) -> str:
    """The codec of the tensor at the cut."""
    chosen = plan.ladder[plan.codec]
    if image := chosen.image:
        kind, quality = image
        return f"{IMAGE_FORMATS[kind]}, quality {quality}"
    if chosen.tables:
        values = math.prod(plan.cut.shape)
        return f"{chosen.rule}: entropy-coded, {8 * plan.prediction.payload_bytes / values:.1f} bits per value"
    if chosen.bits > 8:
        return f"{chosen.bits}-bit floats"
    ranges = "a range per channel" if len(chosen.scale) > 1 else "one range"
    return f"{chosen.bits} bits, clip rule {chosen.rule}, {ranges}"


def coding(codec: Codec | Candidate | StageTime) -> str:
    """A codec in one word: its bits, or its rule where the bits do not describe it."""
    bits = codec.bits if isinstance(codec, Codec) else codec.activation_bits
    return plain(codec.rule) if codec.rule.startswith((*IMAGE_FORMATS, "entropy", "pca")) else str(bits)


def _ladder(plan: Plan) -> str:
    """The codecs that the agent may use while frames flow: the most accurate and the smallest."""
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
    """The time of a frame, its parts as a bar with a legend, and the parts that it excludes."""
    p = plan.prediction
    values = (p.device_ms, p.transfer_ms, p.queue_ms, p.server_ms)
    bar, total = Text(), max(p.total_ms, sum(values), 1e-9)
    legend: list[Text] = []
    for value, (name, colour, block) in zip(values, _STAGES, strict=True):
        if value > 0:
            bar.append(block * max(1, round(min(BAR_WIDTH, width) * (value / total))), style=colour)
            legend.append(Text.assemble((block, colour), f" {name} {_ms(value)} ms"))
    line = Text("   ").join(legend)
    notes = "".join(f", {note}" for applies, note in _LEFT_OUT if applies(plan))
    head = Text("\n".join(wrap(f"time  {_ms(p.total_ms)} ms per frame{notes}", width, " " * 6)))
    head.stylize("cyan", 0, 4)
    return [head, bar, *([line] if line.cell_len <= width else legend)]


#: What the predicted time of a frame does not include.
_LEFT_OUT: tuple[tuple[Callable[[Plan], bool], str], ...] = (
    (lambda plan: plan.preprocess.kind == "image", "without decoding and resizing the image"),
    (lambda plan: plan.tokenizer is not None, "without tokenizing the text"),
    (lambda plan: boards(plan) > 1, "with all later boards counted as the server"),
)


def _ms(value: float) -> str:
    """Milliseconds in at most 8 characters."""
    if value < 1000:
        return f"{value:.2f}"
    return f"{value:.0f}" if value < 1e6 else f"{value:.2g}"


def _cut(cut: Cut) -> str:
    return {"input": "the input", "output": "the output", "inside": cut.layer}[cut.kind]


def _best(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates to show, in their order."""
    found: list[Candidate] = []
    for candidate in candidates:
        inside = [c.cut.index for c in found if c.cut.kind == "inside"]
        if candidate.cut.kind != "inside" or (len(inside) < SHOWN and candidate.cut.index not in inside):
            found.append(candidate)
    return found


def _row(candidate: Candidate) -> list[str]:
    p, kind = candidate.prediction, candidate.cut.kind
    place = {"input": "(all on the server)", "output": "(all on this board)"}.get(kind, candidate.cut.layer)
    weights = f"{candidate.weight_bits:.1f}" if candidate.weight_bits else "-"
    sent = size(p.payload_bytes) if p.payload_bytes else "none"
    widths = f"{weights} / {'-' if kind == 'output' else coding(candidate)}"
    cells = [place, _ms(p.total_ms), f"{p.drop_points:.2f}", sent, widths, candidate.reason]
    return [plain(cell) for cell in cells]
