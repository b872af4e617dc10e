"""Common output of all benchmarks: a table on the terminal, and JSON with ``machine``, ``rows`` and ``summary``."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from kernels import isa

Row = Mapping[str, Any]

#: Maximum columns of a table on the terminal. A table with more columns is transposed if that makes it narrower.
MOST_COLUMNS: Final = 14


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark: ``--json OUT`` and ``--quick``."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--json", metavar="OUT", type=Path, help="write rows and summary to this file")
    options.add_argument("--quick", action="store_true", help="fewer repeats or samples: under 30 seconds")
    return options


def photo_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser that also has the options for the photographs."""
    options = parser(description.splitlines()[0])
    options.add_argument("--images", type=Path, required=True, help="folder of photographs")
    options.add_argument("--labels", help="CSV of file name and ImageNet class index; if omitted, labels.csv")
    return options


def quiet(phase: str, done: int, total: int) -> None:
    """Ignore progress, because the table is the output."""


def report(
    title: str,
    rows: Sequence[Row],
    summary: Mapping[str, float],
    out: Path | None = None,
    notes: Sequence[str] = (),
    width: int = 130,
) -> None:
    """Print ``rows`` (all with the same keys) and ``summary``, and write both to ``out``.

    ``width``: columns where there is no terminal. A table with more than `MOST_COLUMNS` columns and fewer rows is transposed.
    """
    console = Console() if sys.stdout.isatty() else Console(width=width)
    table = Table(title=title, title_justify="left", header_style="bold")
    columns = {name: [_text(row[name]) for row in rows] for name in (rows[0] if rows else ())}
    if len(columns) > MOST_COLUMNS > len(rows):
        (first, heads), *others = columns.items()
        for head in (first, *heads):
            table.add_column(head, justify="left" if head is first else "right", no_wrap=True)
        for name, values in others:
            table.add_row(name, *values)
    else:
        for name, values in columns.items():
            text = isinstance(rows[0][name], str)
            one_word = text and not any(" " in value for value in values)
            table.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=one_word)
        for cells in zip(*columns.values(), strict=True):
            table.add_row(*cells)
    console.print(table)
    for note in notes:
        console.print(f"[dim]{note}[/dim]", highlight=False)
    for name, value in summary.items():
        console.print(f"{name} = {plain(value)}", highlight=False)
    if out:
        write(out, title, rows, summary, notes)


def write(out: Path, title: str, rows: Sequence[Row], summary: Mapping[str, float], notes: Sequence[str] = ()) -> None:
    """Write the document of ``--json`` to ``out``."""
    document = {
        "title": title,
        "machine": machine(),
        "rows": list(rows),
        "summary": dict(summary),
        "notes": list(notes),
    }
    out.write_text(json.dumps(document, indent=1, default=float) + "\n")


def plain(value: float) -> str:
    """Format whole numbers as integers, others with 4 significant digits, without exponents."""
    if not math.isfinite(value) or value == int(value):
        return f"{value:.0f}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def markdown(rows: Sequence[Row]) -> str:
    """Return ``rows`` as a Markdown table for the documentation."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(_text(row[name]) for name in names) + " |" for row in rows])


def machine() -> dict[str, Any]:
    """Describe the machine and the time of the measurement."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "isa": isa.ISA,
        "python": platform.python_version(),
        "system": platform.platform(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def in_turn(
    calls: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 3, rest: float = 0.0
) -> dict[str, list[float]]:
    """Return the milliseconds of each call, measured in turns (A B C A B C ...).

    In turns, a machine whose speed drifts slows all calls alike. ``rest``: seconds of sleep before each call, so that
    threads that still spin after one call do not slow the next one.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + warmup):
        for name, call in calls.items():
            if rest:
                time.sleep(rest)
            start = time.perf_counter()
            call()
            if turn >= warmup:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def spread(times: Sequence[float]) -> str:
    """Format the mean ± standard deviation."""
    return f"{statistics.fmean(times):.3f} ± {statistics.pstdev(times):.3f}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return our speedup: the median of the pairwise ratios theirs / ours."""
    return float(np.median(np.asarray(theirs) / np.asarray(ours)))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))),
        platform.machine(),
    )
