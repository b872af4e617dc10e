"""`edge-agent bench`: measure models, compare results, measure the link."""

from __future__ import annotations

import asyncio
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from device_profiles import machine
from device_profiles.machine import usable_threads
from edge_agent.backends import BACKENDS
from edge_agent.bench import alone, cases, fidelity, measuring, planned, render, results, statistics, system
from edge_agent.bench.cases import Case, Model
from edge_agent.bench.measuring import Say, Worker
from edge_agent.bench.results import Method, Result, Row
from edge_agent.config import Settings
from edge_agent.planning import peers, plan_request
from splitedge import files, limits, terminal
from splitedge.errors import UsageError

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}
_MOST_S: Final = 24 * 3600.0


@dataclass(frozen=True)
class Options:
    """The options of the command; see its help."""

    models: Sequence[str]
    backends: str = ""
    threads: str = ""
    repeats: int = 160
    rounds: int = 8
    warmup: int = 3
    delay: float = 0.0
    single_stream: bool = False
    output: str = "table"
    shape: str = ""
    images: str = ""
    mean: str = ""
    std: str = ""
    operators: bool = False
    power: bool = False
    sustained: str = ""
    plot: Path | None = None
    report: Path | None = None


def bench(settings: Settings, options: Options) -> int:
    """Measure, and print the result. Returns 1 if every configuration failed.

    Raises `UsageError`, and for a model of the server what a request for a plan raises.
    """
    backends = _names(options.backends)
    counts = thread_counts(options.threads)
    shape = _shape(options.shape)
    seconds = duration(options.sustained) if options.sustained else 0.0
    for path in (options.plot, options.report):
        if path is not None:
            files.require_writable(path)
    if options.plot is not None:
        files.picture_form(options.plot.name)
        if not seconds:
            raise UsageError("--plot draws the curve of --sustained; give both", reason="plot-without-sustained")
        render.require_plots()
    with tempfile.TemporaryDirectory(prefix="splitedge-bench-") as folder, terminal.Progress("edge-agent") as say:
        before = machine.condition()[0]
        made = [
            _model(text, settings, Path(folder) / str(number), shape, options, say)
            for number, text in enumerate(options.models)
        ]
        todo = cases.cases([one for one, _ in made], backends, counts)
        method = Method(options.repeats, 0.0, options.rounds, options.delay, options.warmup)
        if options.single_stream:
            method = Method(statistics.QUERIES, statistics.SECONDS, options.rounds, options.delay, options.warmup)
        rows = measuring.measure(todo, method, say, operators=options.operators)
        for model, found in made:
            if found is not None:
                _add_fidelity([case for case in todo if case.model == model.name], todo, rows, found, say)
        if options.power:
            alone.add_power(todo, rows, say)
        if seconds:
            alone.add_sustained(todo, rows, seconds, say)
        result = system.result(before, machine.condition()[0], method, rows)
    _show(result, options)
    return int(all(row.failure for row in rows))


def _model(
    text: str, settings: Settings, folder: Path, shape: list[int] | None, options: Options, say: Say
) -> tuple[Model, fidelity.Frames | None]:
    """The model that ``text`` names, a file or a model of the server, and frames to compare its answers with."""
    say(f"preparing {text}")
    folder.mkdir()
    if Path(text).suffix not in cases.SUFFIXES and not Path(text).exists():
        if "/" in text:
            raise UsageError(f"{text} is not a file", reason="no-file")
        found = asyncio.run(planned.head(msgspec.structs.replace(settings, model=text), folder, say))
    else:
        found = cases.plain(text, shape)
    frames = None
    if options.images:
        frames = _frames(found, options, folder)
    if found.files[0].suffix == ".onnx":
        found = cases.exported(found, folder, frames.calibration if frames else None)
    return found, frames


def _frames(model: Model, options: Options, folder: Path) -> fidelity.Frames:
    """Frames for the first file of ``model``, which is loaded to know its input."""
    backend = BACKENDS["onnxruntime"]
    if model.files[0].suffix != ".onnx" or backend.missing():
        raise UsageError(
            f"--images compares with the float model, and {backend.missing() or model.files[0].name + ' is none'}; give "
            "a .onnx file",
            reason="no-float-model",
        )
    worker = Worker(Case(model.name, backend, 1, model.files[0], shape=model.shape))
    worker.end()
    values = fidelity.Normalization(
        _numbers(options.mean, "--mean") or fidelity.MEAN, _numbers(options.std, "--std") or fidelity.STD
    )
    return fidelity.frames(options.images, worker.ready.shape, folder, values, worker.ready.preprocess)


def _add_fidelity(
    own: Sequence[Case], todo: Sequence[Case], rows: Sequence[Row], found: fidelity.Frames, say: Say
) -> None:
    """Set the fidelity of the rows of one model."""
    measured = fidelity.compare(own, found, say)
    for case, row in zip(todo, rows, strict=True):
        if case in own and case.file is not None:
            row.fidelity = measured.get(case.file)


def _show(result: Result, options: Options) -> None:
    if options.output == "table":
        terminal.show(render.table_of(result, terminal.width()))
    else:
        print(render.FORMATS[options.output](result))
    if options.plot is not None:
        files.write(options.plot, render.draw(result.rows, files.picture_form(options.plot.name)))
        print(f"curve: {options.plot}", file=sys.stderr)
    if options.report is not None:
        files.write(options.report, render.as_json(results.anonymous(result)).encode())
        print(f"report: {options.report}; read it before you share it", file=sys.stderr)


def compare(first: Path, second: Path, *, least: float, json: bool) -> int:
    """Print what changed between two results. Returns 1 if a configuration is slower."""
    found = statistics.compare(results.read(first), results.read(second), least)
    if json:
        print(msgspec.json.encode([one._asdict() for one in found]).decode())
    else:
        terminal.show(render.changes(found, terminal.width()))
    return int(any(one.verdict == "slower" for one in found))


async def link(settings: Settings, *, times: int, json: bool) -> None:
    """Measure the way to the server ``times`` times, and print each and the medians."""
    with terminal.Progress("edge-agent") as say:
        async with peers.client(settings) as client:
            found = [await plan_request.measure_link(client, {}, say) for _ in range(times)]
    if json:
        print(msgspec.json.encode(found).decode())
        return
    columns = [
        terminal.Column("measurement"),
        terminal.Column("round trip ms", right=True),
        terminal.Column("up Mbit/s", right=True),
        terminal.Column("down Mbit/s", right=True),
    ]
    rows = [(str(i + 1), one.rtt_ms, one.uplink_mbps, one.downlink_mbps) for i, one in enumerate(found)]
    middle = [sorted(values)[len(values) // 2] for values in list(zip(*rows, strict=True))[1:]]
    shown = [[name, *(f"{value:.2f}" for value in values)] for name, *values in [*rows, ("median", *middle)]]
    terminal.show(terminal.table(columns, shown, terminal.width()))


# --- options ----------------------------------------------------------------------------------------------------------


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def thread_counts(text: str) -> list[int]:
    """The numbers of threads in ``text``; by default 1 and all that this process may use."""
    if not text:
        return sorted({1, usable_threads()})
    names = _names(text)
    if not names or not all(name.isdecimal() and 1 <= int(name) <= limits.MAX_THREADS for name in names):
        raise UsageError(
            f"--threads takes numbers from 1 to {limits.MAX_THREADS}, such as 1,2,4, not {text[:40]!r}",
            reason="threads",
        )
    return [int(name) for name in names]


def _shape(text: str) -> list[int] | None:
    if not text:
        return None
    sizes = re.split("[x,]", text)
    if not all(size.isdecimal() and 1 <= int(size) <= limits.MAX_DIM for size in sizes):
        raise UsageError(f"--shape takes sizes such as 1,3,224,224, not {text[:40]!r}", reason="shape")
    return [int(size) for size in sizes]


def _numbers(text: str, option: str) -> tuple[float, ...]:
    """The one or three numbers in ``text``; empty without."""
    try:
        found = tuple(float(number) for number in text.split(",")) if text else ()
    except ValueError:
        found = (math.nan,)
    if len(found) not in (0, 1, 3) or not all(map(math.isfinite, found)) or (option == "--std" and 0 in found):
        raise UsageError(f"{option} takes one number or three, such as 127 or 124,116,104", reason="normalization")
    return found


def duration(text: str) -> float:
    """The seconds in ``text``: ``90``, ``90s``, ``10m``, ``1h``. Raises `UsageError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 1 <= seconds <= _MOST_S:
        raise UsageError(
            f"--sustained takes a time such as 90s or 10m, up to 24h, not {text[:20]!r}", reason="duration"
        )
    return seconds
