"""A plan in words and tables: where the cut is, what it costs, and why the others lost; and the files of its pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from device_profiles.schema import MARKS, DeviceProfile
from edge_agent import errors
from edge_agent.protocol.messages import Candidate, Codec, Cut, LinkEstimate, Output, Plan, Prediction, StageTime

PictureForm = Literal["png", "svg"]

BAR_WIDTH = 48
SHOWN = 8  # runners-up with a cut inside the network
MANY, TWO_COLUMNS = 16, 116  # rows of the noise's table, and columns of a terminal, from which it is set in two columns
WIDE = 100  # columns of a terminal from which the table of runners-up names clipping rules
_STAGES = (("device", "green", "█"), ("transfer", "yellow", "▒"), ("queue", "magenta", "▓"), ("server", "blue", "░"))
_COME_ON_TOP = "decoding and resizing the image come on top; `edge-agent infer` shows them"
_TOKENS_COME_ON_TOP = "cutting a text into tokens comes on top; `edge-agent infer` shows it"


def explain(plan: Plan, width: int = 80) -> RenderableType:
    """Everything about ``plan`` that a person wants to know, for a rich console of ``width`` columns."""
    parts: list[RenderableType] = [Text(headline(plan), style="bold"), Text(), _facts(plan)]
    if boards(plan) > 1:
        parts += [Text(), _chain(plan)]
    parts += [Text(), _time(plan.prediction, width)]
    if boards(plan) > 1:
        parts.append(Text("all that lies behind this board's link is told as server", style="dim"))
    if plan.tokenizer is not None:
        parts.append(Text(_TOKENS_COME_ON_TOP, style="dim"))
    if plan.preprocess.kind == "image":
        parts.append(Text(_COME_ON_TOP, style="dim"))
    if plan.layers:
        parts += [Text(), noise(plan, width)]
    if plan.runners_up:
        parts += [Text(), runners_up(plan, width)]
    return Group(*parts)


@dataclass(frozen=True)
class WhatIf:
    """What a plan was asked for in place of this machine and its link: a known ``board`` with its profile, and the ``given`` values of the link."""

    board: str | None
    profile: DeviceProfile | None
    link: LinkEstimate
    given: list[str]

    def document(self) -> dict[str, Any]:
        """JSON values: the board with the origin of each field of its profile, and the link with the origin of each value."""
        marks = {field: "given" if field in self.given else "measured" for field in LinkEstimate.__struct_fields__}
        found: dict[str, Any] = {"link": msgspec.to_builtins(self.link), "link_marks": marks, "board": self.board}
        if self.profile is not None:
            found |= {"title": self.profile.machine.board, "marks": msgspec.to_builtins(self.profile.origins)}
        return found

    def words(self) -> RenderableType:
        """What is assumed, and that times for a board that is not here are predictions."""
        parts = [Text(f"What if: {self._board()}, {self._link()}", style="bold yellow")]
        if self.profile is not None:
            fields: dict[str, list[str]] = {mark: [] for mark in MARKS}
            for path, origin in self.profile.origins.items():
                whole = self.profile.origins.get(path.rpartition(".")[0])
                if whole is None or whole.mark != origin.mark:
                    fields[origin.mark].append(path)
            told = "; ".join(f"{mark}: {', '.join(paths)}" for mark, paths in fields.items() if paths)
            parts.append(Text("All times are predictions for a board that nobody measured.", style="yellow"))
            parts.append(Text(f"Of its profile {told}. Sources: edge-agent profile --known {self.board}", style="dim"))
        return Group(*parts)

    def _board(self) -> str:
        return "this machine" if self.profile is None else f"{self.board} ({self.profile.machine.board})"

    def _link(self) -> str:
        units = {"uplink_mbps": "{:g} Mbit/s up", "downlink_mbps": "{:g} Mbit/s down", "rtt_ms": "{:g} ms round trip"}
        values = {name: words.format(round(getattr(self.link, name), 2)) for name, words in units.items()}
        origin = {True: "given", False: "measured"}
        return ", ".join(f"{value} ({origin[name in self.given]})" for name, value in values.items())


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
        return plain(f"{plan.model} is shared by {boards(plan)} boards: this one computes up to {_cut(plan.cut)}")
    where = {
        "server": f"{plan.model} runs wholly on the server; the input is sent",
        "device": f"{plan.model} runs wholly on this device; nothing is sent",
        "split": f"{plan.model} is cut after {_cut(plan.cut)}: what lies before it runs here, the rest on the server",
    }
    return plain(where[plan.mode])


def noise(plan: Plan, width: int = 80) -> RenderableType:
    """Bits and share of the noise of every layer, the codec and the head's activations; in two columns where they are many and ``width`` allows."""
    rows = [(plain(one.layer), str(one.weights), f"{one.bits:.1f}", _share(one.noise_share)) for one in plan.layers]
    if plan.mode != "device":
        rows.append(("the codec at the cut", "", coding(plan.ladder[plan.codec]), _share(plan.codec_share)))
    rows.append(("8-bit activations of the head", "", "", _share(plan.head_share)))
    half = -(-len(rows) // 2) if width >= TWO_COLUMNS and len(rows) > MANY else len(rows)
    side_by_side = Table.grid(padding=(0, 4, 0, 0))
    side_by_side.add_row(*(_noise_table(part) for part in (rows[:half], rows[half:]) if part))
    return Group(Text("Noise on the output, by what makes it", style="bold"), Text(), side_by_side)


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
    """The weights' bits: ``3.4 bits in the mean, 2 to 6 by layer``."""
    if not plan.layers:
        return "none here"
    widths = [layer.bits for layer in plan.layers]
    if len(widths) == 1:
        return f"{widths[0]:.1f} bits"
    return f"{plan.mean_bits():.1f} bits in the mean, {min(widths):.1f} to {max(widths):.1f} by layer"


def runners_up(plan: Plan, width: int = 80) -> RenderableType:
    """The best plans that lost, and why: at most `SHOWN` that cut inside the network, one a cut, and those that do not cut."""
    shown = _best(plan.runners_up)
    wide = width >= WIDE
    headers = ("cut after", "weights / activation" if wide else "bits", "ms", "drop", "sent", "why it lost")
    rows = [[plain(cell) for cell in _row(candidate, wide=wide)] for candidate in shown]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in headers:
        table.add_column(
            name, justify="right" if name in ("ms", "drop", "sent") else "left", no_wrap=name != "why it lost"
        )
    # The other columns come first, then the names; a reason is wrapped where even short names leave it too little.
    taken = sum(2 + min(max(map(len, column)), _REASON) for column in list(zip(headers, *rows, strict=True))[1:])
    for row in rows:
        table.add_row(*(Text(cell) for cell in (_shortened(row[0], max(width - taken, _SHORTEST)), *row[1:])))
    title = f"Runners-up ({plan.considered} plans weighed{'' if wide else '; bits of weights / activation'})"
    parts: list[RenderableType] = [Text(title, style="bold"), Text(), table]
    if left := len(plan.runners_up) - len(shown):
        parts.append(Text(f"and {left} more; `edge-agent plan --json` has them all", style="dim"))
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
    return (
        f"{prediction.drop_points:.2f} points ({prediction.drop_low:.2f} to {prediction.drop_high:.2f} where it is measured; "
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
        ("weights", bits(plan)),
    ]
    if sent:
        chosen = plan.ladder[plan.codec]
        ranges = "per channel" if len(chosen.scale) > 1 else "per tensor"
        told = f"{chosen.bits} bits, clipped by {chosen.rule}, {ranges}"
        if chosen.bits > 8:
            told = f"floats of {chosen.bits} bits"
        if chosen.tables:
            values = math.prod(plan.cut.shape)
            told = f"{chosen.rule}: entropy-coded, {8 * p.payload_bytes / values:.1f} bits a value"
        rows.append(("activation", f"a JPEG of quality {chosen.jpeg}" if chosen.jpeg else told))
        rows.append(("ladder", _ladder(plan)))
        ratio = f", {100 * p.payload_bytes / p.float_bytes:.1f} % of it" if p.float_bytes else ""
        rows.append(("payload", f"{size(p.payload_bytes)} a frame; {size(p.float_bytes)} in float{ratio}"))
    else:
        rows.append(("payload", "nothing leaves the device"))
    rows.append(("output", output(plan.output)))
    rows += [(f"{plan.metric} drop", drop(p)), ("segment", size(p.segment_bytes)), ("must stay here", plan.demand.keep)]
    if p.energy_source != "unknown":
        rows.append(("energy", f"{p.energy_j:.3g} J a frame ({p.energy_source})"))
    rows.append(("objective", _objective(plan)))
    return rows


def output(found: Output) -> str:
    """What a model's answers hold, in words."""
    size, shape = math.prod(found.shape), " x ".join(map(str, found.shape))
    told = {
        "logits": f"{size} logits; answers are their softmax",
        "probabilities": f"{size} probabilities, as the model gives them",
        "scores": f"{size} scores from 0 to 1, each by itself, as the model gives them",
        "tensor": f"a tensor {shape} without classes; answers hold all of it",
    }
    return told[found.kind]


def coding(codec: Codec | Candidate | StageTime) -> str:
    """How the tensor at a cut is coded, in a word: its bits, or that it is a JPEG of some quality."""
    bits = codec.bits if isinstance(codec, Codec) else codec.activation_bits
    return plain(codec.rule) if codec.rule.startswith(("jpeg", "entropy", "pca")) else str(bits)


def _ladder(plan: Plan) -> str:
    """Between what codecs the agent may move while frames flow."""
    widths = " ".join(coding(codec) for codec in plan.ladder)
    first, last = plan.rungs[0], plan.rungs[-1]
    if len(plan.rungs) == 1:
        return f"{_bits(widths)} only"
    return (
        f"{_bits(widths)}, {size(first.payload_bytes)} to {size(last.payload_bytes)} a frame, "
        f"{first.drop_points:.2f} to {last.drop_points:.2f} points"
    )


def _bits(widths: str) -> str:
    return f"{widths} bits" if widths.rpartition(" ")[2].isdigit() else widths


def _objective(plan: Plan) -> str:
    """The sum and its parts, those that weigh nothing left out."""
    parts = {name: getattr(plan.prediction.parts, name) for name in ("time", "fetch", "energy", "cost")}
    told = " + ".join(f"{name} {value:.4g}" for name, value in parts.items() if value)
    return f"{plan.prediction.objective:.4g} = {told}" if told else "0"


def _time(prediction: Prediction, width: int) -> RenderableType:
    values = (prediction.device_ms, prediction.transfer_ms, prediction.queue_ms, prediction.server_ms)
    bar, total = Text(), max(prediction.total_ms, sum(values), 1e-9)
    for value, (_, colour, block) in zip(values, _STAGES, strict=True):
        bar.append(block * round(min(BAR_WIDTH, width) * (value / total)), style=colour)
    legend = [
        Text.assemble((block, colour), f" {name} {_ms(value)} ms")
        for value, (name, colour, block) in zip(values, _STAGES, strict=True)
    ]
    line = Text("   ").join(legend)
    head = Text.assemble(("time  ", "cyan"), (f"total {_ms(prediction.total_ms)} ms a frame", "bold"))
    return Group(head, bar, *([line] if line.cell_len <= width else legend))


def _ms(value: float) -> str:
    """Milliseconds in at most 8 characters."""
    if value < 1000:
        return f"{value:.2f}"
    return f"{value:.0f}" if value < 1e6 else f"{value:.2g}"


def _cut(cut: Cut) -> str:
    return {"input": "the input", "output": "the output", "inside": cut.layer}[cut.kind]


_REASON = 31  # characters that a reason is given before it is wrapped
_SHORTEST = 17  # of a shortened name: "all on the server" is whole


def _best(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates to show, in their order."""
    found: list[Candidate] = []
    for candidate in candidates:
        inside = [c.cut.index for c in found if c.cut.kind == "inside"]
        if candidate.cut.kind != "inside" or (len(inside) < SHOWN and candidate.cut.index not in inside):
            found.append(candidate)
    return found


def _row(candidate: Candidate, *, wide: bool) -> tuple[str, ...]:
    """One cell for each of the headers."""
    p, kind = candidate.prediction, candidate.cut.kind
    place = {"input": "all on the server", "output": "all on the device"}.get(kind, candidate.cut.layer)
    weights = f"{candidate.weight_bits:.1f}" if candidate.weight_bits else "-"
    activation = "-" if kind == "output" else coding(candidate)
    rule = f" {candidate.rule}" if wide and kind != "output" and activation != candidate.rule else ""
    return (
        place,
        f"{weights} / {activation}{rule}",
        _ms(p.total_ms),
        f"{p.drop_points:.2f}",
        size(p.payload_bytes) if p.payload_bytes else "none",
        candidate.reason,
    )


def _shortened(name: str, room: int) -> str:
    """``name`` in at most ``room`` characters, its middle left out: what tells two layers apart is at their ends."""
    if len(name) <= room:
        return name
    front = 5 * room // 8
    return f"{name[:front]}…{name[front + 1 - room :]}"


def picture_form(name: str) -> PictureForm:
    """The format that a file's name asks for. Raises `errors.UsageError` for another than PNG and SVG."""
    forms: tuple[PictureForm, ...] = ("png", "svg")
    for form in forms:
        if name.lower().endswith(f".{form}"):
            return form
    raise errors.UsageError(f"{name[-40:]} is no picture that can be drawn: give a name that ends in .png or .svg")


def write_picture(path: Path, image: bytes) -> None:
    """Raises `errors.StoreError` where ``path`` cannot be written."""
    try:
        path.write_bytes(image)
    except OSError as error:
        raise errors.StoreError(f"{path} cannot be written ({error.strerror}): choose another place") from error
