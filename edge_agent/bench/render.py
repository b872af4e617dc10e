"""Results as tables, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Any, Final

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from edge_agent.bench.results import Result, Row, Sustained
from edge_agent.bench.statistics import Change
from splitedge import terminal
from splitedge.errors import PlatformError
from splitedge.terminal import Column, definitions, plain, table, wrap

_HEIGHT: Final = 8  # lines of a curve
_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
#: A column of Markdown and CSV, with the path of its value in a row.
_FLAT: Final = {
    "model": "model",
    "backend": "backend",
    "type": "precision",
    "threads": "threads",
    "mean ms": "times.mean_ms",
    "sd ms": "times.sd_ms",
    "p50 ms": "times.p50_ms",
    "p90 ms": "times.p90_ms",
    "p95 ms": "times.p95_ms",
    "p99 ms": "times.p99_ms",
    "p99.9 ms": "times.p999_ms",
    "per second": "times.per_second",
    "runs": "times.runs",
    "import ms": "phases.import_ms",
    "init ms": "phases.init_ms",
    "first run ms": "phases.first_ms",
    "resident MiB": "memory.resident_mib",
    "peak MiB": "memory.peak_mib",
    "cosine": "fidelity.cosine",
    "same top-1 %": "fidelity.same_top1_percent",
    "top-1 %": "fidelity.top1_percent",
    "watts": "power.watts",
    "joules": "power.joules",
    "version": "version",
    "failure": "failure",
}
#: The columns of Markdown, which is for forums; the others only where a row has a value.
_ALWAYS: Final = ("model", "backend", "type", "threads", "mean ms", "sd ms", "p50 ms", "p99 ms", "resident MiB")
_OPTIONAL: Final = ("cosine", "same top-1 %", "top-1 %", "watts", "joules", "failure")


def table_of(result: Result, width: int) -> RenderableType:
    """The result in ``width`` columns: the machine, and for each model a table and the failures."""
    parts: list[RenderableType] = [Text("\n".join(wrap(headline(result), width)))]
    if notes := _notes(result):
        parts.append(Text("\n".join(line for note in notes for line in wrap(note, width)), style="yellow"))
    for name, group in groupby(result.rows, lambda row: row.model):
        parts += [Text(), Text(plain(name), style="bold"), *_of_model(list(group), width)]
    return Group(*parts)


def headline(result: Result) -> str:
    """The machine and the program in one line."""
    board = f"{result.machine.board}, " if result.machine.board else ""
    built = f" ({result.commit})" if result.commit else ""
    clock = f" at {result.before.mhz_now:,.0f} MHz" if result.before.mhz_now else ""
    heat = f", {result.before.temperature_c:.0f} °C" if result.before.temperature_c is not None else ""
    return plain(
        f"{board}{result.machine.cpu}{clock}{heat}, {result.machine.isa}; splitedge {result.splitedge}{built}; "
        f"{result.method.repeats} runs in {result.method.rounds} {'process' if result.method.rounds == 1 else 'processes'} each"
    )


def _notes(result: Result) -> list[str]:
    """What makes the figures doubtful."""
    notes = ["emulated: the times mean nothing"] if result.emulated else []
    for when, condition in (("before", result.before), ("after", result.after)):
        if condition.throttling is not None and condition.throttling.now:
            notes.append(f"throttled {when} the measurement: {', '.join(condition.throttling.reasons)}")
    return notes


def _of_model(rows: Sequence[Row], width: int) -> list[RenderableType]:
    good = [row for row in rows if row.times is not None]
    parts: list[RenderableType] = []
    if good:
        columns = [
            Column("backend"),
            Column("type"),
            Column("threads", right=True),
            Column("ms", right=True),
            Column("± sd", right=True),
            Column("p50", right=True),
            Column("p99", right=True),
            Column("MiB", right=True),
        ]
        cells = [[*_words(row)] for row in good]
        for heading, values in (
            ("cosine", [_fixed(_at(row, "fidelity.cosine"), 4) for row in good]),
            ("top-1 %", [_fixed(_at(row, "fidelity.top1_percent"), 1) for row in good]),
            ("J", [_fixed(_at(row, "power.joules"), 3) for row in good]),
            ("p99.9", [_figure(_at(row, "times.p999_ms")) for row in good]),
        ):
            if any(values):
                columns.append(Column(heading, right=True, optional=heading == "p99.9"))
                for line, value in zip(cells, values, strict=True):
                    line.append(value)
        parts.append(table(columns, cells, width))
    failed = [
        (f"{row.backend} {row.precision} {row.threads}".replace("  ", " "), row.failure) for row in rows if row.failure
    ]
    if failed:
        parts.append(definitions([(Text(what, style="yellow"), plain(why)) for what, why in failed], width))
    for row in good:
        parts += _operators(row, width) + _curve(row, width)
    return parts


def _words(row: Row) -> list[str]:
    assert row.times is not None
    t, memory = row.times, row.memory
    figures = [_figure(value) for value in (t.mean_ms, t.sd_ms, t.p50_ms, t.p99_ms)]
    return [row.backend, row.precision, str(row.threads), *figures, f"{memory.resident_mib:.0f}" if memory else ""]


def _figure(value: float | None) -> str:
    """Milliseconds with three significant digits, and at least one decimal place below 100."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _fixed(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"


def _operators(row: Row, width: int) -> list[RenderableType]:
    if not row.operators:
        return []
    whole = sum(one.us for one in row.operators)
    columns = [Column("operator", shortest=20), Column("kind"), Column("us", right=True), Column("%", right=True)]
    cells = [
        [plain(one.name), plain(one.kind), f"{one.us:,.1f}", f"{100 * one.us / whole:.1f}" if whole else ""]
        for one in row.operators
    ]
    title = f"\n{row.backend} {row.precision}, {terminal.threads(row.threads)}, every operator"
    return [Text(title, style="bold"), table(columns, cells, width)]


# --- the curve of a long run ------------------------------------------------------------------------------------------


def _curve(row: Row, width: int) -> list[RenderableType]:
    if row.sustained is None:
        return []
    s = row.sustained
    change = 100 * (s.last_minute / s.first_minute - 1) if s.first_minute else 0.0
    part = f"{min(60, s.seconds):.0f} s"
    title = (
        f"{row.backend} {row.precision}, {terminal.threads(row.threads)}, {s.seconds:.0f} s: {s.first_minute:.1f} runs a second "
        f"in the first {part}, {s.last_minute:.1f} in the last {part} ({change:+.1f} %)"
    )
    lines = [*curve(s.per_second, width), *(plain(f"  {event}") for event in s.throttled)]
    return [Text(), Text("\n".join(wrap(title, width)), style="bold"), Text("\n".join(lines))]


def curve(values: Sequence[float], width: int) -> list[str]:
    """``values`` over time as a chart from 0 to their maximum, in lines of at most ``width`` characters."""
    most = max(values, default=0.0)
    label = len(f"{most:.0f}")
    columns = max(1, width - label - 3)
    ends = [i * len(values) // columns for i in range(columns + 1)]
    cells = [_mean(values[start : max(end, start + 1)]) for start, end in pairwise(ends)] if values else []
    heights = [round(8 * _HEIGHT * value / most) if most > 0 else 0 for value in cells]
    lines = []
    for line in range(_HEIGHT - 1, -1, -1):
        mark = f"{most:.0f}" if line == _HEIGHT - 1 else "0" if line == 0 else ""
        lines.append(f"{mark:>{label}} │" + "".join(_EIGHTHS[min(8, max(0, height - 8 * line))] for height in heights))
    return [text.rstrip() for text in lines]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def require_plots() -> None:
    """Raise `PlatformError` without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PlatformError("--plot needs matplotlib; run `pip install splitedge[plot]`", reason="no-matplotlib")


def draw(rows: Sequence[Row], form: str) -> bytes:
    """The curves of long runs as a file of the format ``form``, with matplotlib."""

    def curves(axes: Any) -> None:
        for row, long in _long(rows):
            label = f"{row.model}, {row.backend} {row.precision}, {terminal.threads(row.threads)}"
            seconds = [long.seconds * i / len(long.per_second) for i in range(len(long.per_second))]
            axes.plot(seconds, long.per_second, linewidth=1.4, label=label)
        axes.set(xlabel="seconds", ylabel="runs a second")
        axes.set_ylim(bottom=0)

    return picture(curves, form)


def picture(fill: Callable[[Any], None], form: str) -> bytes:
    """The file of a plot whose axes ``fill`` fills, with matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    (FigureCanvasSVG if form == "svg" else FigureCanvasAgg)(figure)
    axes = figure.subplots()
    fill(axes)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format=form, dpi=140)
    return image.getvalue()


def _long(rows: Sequence[Row]) -> list[tuple[Row, Sustained]]:
    return [(row, row.sustained) for row in rows if row.sustained is not None]


# --- other formats ----------------------------------------------------------------------------------------------------


def markdown(result: Result) -> str:
    """A table to paste, below a line on the machine."""
    rows = [_flat(row) for row in result.rows]
    names = [*_ALWAYS, *(name for name in _OPTIONAL if any(row[name] not in ("", None) for row in rows))]
    table = markdown_table(names, [[row[name] for name in names] for row in rows])
    return "\n".join([headline(result), "", table, *(f"\n{note}" for note in _notes(result))])


def markdown_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of Markdown; None is an empty cell."""
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(_escaped(value) for value in row) + " |" for row in rows)])


def _escaped(value: Any) -> str:
    text = (
        _figure(value)
        if isinstance(value, float) and value >= 1
        else f"{value:.4g}"
        if isinstance(value, float)
        else value
    )
    return "" if text is None else plain(str(text)).replace("|", "\\|")


def as_csv(result: Result) -> str:
    """All rows with a heading."""
    return csv_table(list(_FLAT), [list(_flat(row).values()) for row in result.rows])


def csv_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue().rstrip("\n")


def _flat(row: Row) -> dict[str, Any]:
    return {name: _at(row, path) for name, path in _FLAT.items()}


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return value


def as_json(result: Result) -> str:
    """The document of `results.schema`."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1).decode()


def as_json_lines(result: Result) -> str:
    """A line for each row, each with the whole result around it, so that lines of many boards can be mixed."""
    return "\n".join(msgspec.json.encode(msgspec.structs.replace(result, rows=[row])).decode() for row in result.rows)


FORMATS: Final = {"md": markdown, "csv": as_csv, "json": as_json, "jsonl": as_json_lines}


# --- comparison -------------------------------------------------------------------------------------------------------


def changes(found: Sequence[Change], width: int) -> RenderableType:
    """The changes as a table."""
    columns = [
        Column("model", shortest=16),
        Column("backend", shortest=8),
        Column("type"),
        Column("threads", right=True),
        Column("change", right=True),
        Column("interval", right=True),
        Column("verdict", wrapped=True),
    ]
    style = {"slower": "red", "faster": "green"}
    cells: list[list[str | Text]] = []
    for one in found:
        model, backend, precision, threads = one.key
        known = not math.isnan(one.percent)
        cells.append(
            [
                plain(model),
                plain(backend),
                precision,
                str(threads),
                f"{one.percent:+.1f} %" if known else "",
                f"{one.low:+.1f} to {one.high:+.1f}" if known else "",
                Text(plain(one.verdict), style=style.get(one.verdict, "")),
            ]
        )
    return table(columns, cells, width)
