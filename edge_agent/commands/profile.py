"""`edge-agent profile`: measure this machine; show, compare and export profiles; the roofline; known boards."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

import device_profiles
from device_profiles import DeviceProfile, known, machine, measurement, predict, save, schema, table
from device_profiles.schema import Machine
from edge_agent.bench import cases, planned, system
from edge_agent.bench.render import require_plots
from edge_agent.commands.bench import duration
from edge_agent.config import Settings
from edge_agent.planning import device
from edge_agent.profiling import backends, comparison, formats, roofline
from edge_agent.profiling.comparison import Change
from kernels import isa
from splitedge import files, terminal
from splitedge.errors import UsageError
from splitedge.terminal import Column


@dataclass(frozen=True)
class Options:
    """The options of the command; see its help."""

    quick: bool = False
    out: Path | None = None
    keep: bool = False
    json: bool = False
    watts: float | None = None
    sustained: str = ""


def profile(settings: Settings, options: Options) -> None:
    """Measure; print a table, or JSON; write the profile to a file. The progress bar goes to standard error."""
    if options.quick and options.sustained:
        raise UsageError("a quick profile has no load; give --quick or --sustained", reason="quick-and-sustained")
    sustained = {"sustained_s": duration(options.sustained)} if options.sustained else {}
    if options.out is not None:
        files.require_writable(options.out)
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")

        def update(done: int, total: int, step: str) -> None:
            bar.update(task, completed=done, total=total, description=step)

        measured = device_profiles.measure(
            quick=options.quick, progress=update, declared_watts=options.watts, **sustained
        )
        if not options.quick:
            bar.update(task, description="backends")
            measured.backends = backends.times(predict.best_threads(measured), lambda _: None)
    _mark_emulated(measured)
    written = []
    if options.out is not None:
        save(measured, options.out)
        written.append(options.out)
    if options.keep:
        written.append(device.keep(measured, settings))
    if options.json:
        print(msgspec.json.encode(measured).decode())
        return
    terminal.show(table(measured, terminal.width()))
    for path in written:
        print(f"written to {path}")


def _mark_emulated(profile: DeviceProfile) -> None:
    if system.emulated():
        profile.unmeasured["times"] = "this processor is emulated, so they mean nothing"


def load(path: Path | None, settings: Settings) -> DeviceProfile:
    """The profile in ``path``, by default the one in use. Raises `UsageError` if there is none in use."""
    place = path or device.place(settings)
    if path is None and not place.exists():
        raise UsageError(
            "no profile is in use yet; name a file, or run `edge-agent profile --keep`", reason="none-kept"
        )
    return device_profiles.load(place)


def show(path: Path | None, settings: Settings, *, json: bool) -> None:
    """Print the profile in ``path``, by default the one in use."""
    found = load(path, settings)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        terminal.show(table(found, terminal.width()))


def export(path: Path | None, settings: Settings, form: str) -> None:
    """Print the profile without what may tell more than the board and the figures."""
    print(formats.FORMATS[form](formats.anonymous(load(path, settings))))


def compare(first: Path, second: Path, *, least: float, json: bool) -> int:
    """Print what changed between two profiles. Returns 1 if a kernel is slower.

    Raises `UsageError` if they have no kernel with intervals in common.
    """
    old, new = device_profiles.load(first), device_profiles.load(second)
    found = comparison.compare(old, new, least)
    if all(math.isnan(one.percent) for one in found):
        raise UsageError(
            "the profiles share no kernel with intervals, which older and known profiles lack; measure both with "
            "`edge-agent profile --out FILE`",
            reason="not-comparable",
        )
    if json:
        print(msgspec.json.encode([one._asdict() for one in found]).decode())
    else:
        heads = [formats.headline(one) for one in (old, new)]
        other = [] if heads[0] == heads[1] else [f"first:  {heads[0]}", f"second: {heads[1]}", ""]
        terminal.show(*other, changes(found, terminal.width()), "", _summary(found))
    return int(any(one.verdict == "slower" for one in found))


def changes(found: Sequence[Change], width: int) -> RenderableType:
    """The changes as a table."""
    columns = [
        Column("kernel and shape", alone=True),
        Column("threads", right=True),
        Column("change", right=True),
        Column("interval", right=True),
        Column("verdict", wrapped=True),
    ]
    style = {"slower": "red", "faster": "green"}
    rows = [
        (
            terminal.plain(one.name),
            str(one.threads),
            "" if math.isnan(one.percent) else f"{one.percent:+.1f} %",
            "" if math.isnan(one.percent) else f"{one.low:+.1f} to {one.high:+.1f}",
            Text(terminal.plain(one.verdict), style=style.get(one.verdict, "")),
        )
        for one in found
    ]
    return terminal.table(columns, rows, width)


def _summary(found: Sequence[Change]) -> str:
    count = {name: sum(one.verdict == name for one in found) for name in ("slower", "faster", "no change")}
    return f"{count['slower']} slower, {count['faster']} faster, {count['no change']} without change"


@dataclass(frozen=True)
class Roofs:
    """The options of `profile roofline`; see its help."""

    path: Path | None = None
    model: str = ""
    threads: int | None = None
    plot: Path | None = None


def roofs(settings: Settings, options: Roofs) -> None:
    """Print the roofline of a profile, with the operators of a model; draw it to a file.

    Raises `PlatformError` without matplotlib if there is a file.
    """
    if options.plot is not None:
        files.picture_form(options.plot.name)
        require_plots()
        files.require_writable(options.plot)
    profile = load(options.path, settings)
    found = roofline.roofline(profile, options.threads)
    if options.model:
        found = _with_model(found, profile, settings, options)
    terminal.show(roofline.show(found, terminal.width()))
    if options.plot is not None:
        files.write(options.plot, roofline.draw(found, files.picture_form(options.plot.name)))
        print(f"written to {options.plot}")


def _with_model(
    found: roofline.Roofline, profile: DeviceProfile, settings: Settings, options: Roofs
) -> roofline.Roofline:
    """``found`` with the operators of the model: measured if ``profile`` is this board's, else predicted."""
    threads = found.roofs[-1].threads
    with tempfile.TemporaryDirectory(prefix="splitedge-roofline-") as folder, terminal.Progress("edge-agent") as say:
        model = _model(options.model, settings, Path(folder), say)
        data = model.files[0].read_bytes()
        say(f"measuring {model.name}")
        if is_here(profile) and threads <= machine.usable_threads():
            points, source = roofline.measured(data, profile, threads), "measured"
        else:
            points, source = roofline.predicted(data, profile, threads), "predicted"
    if not points:
        raise UsageError(
            f"{model.name} has no operator with products, so there is nothing to draw", reason="no-products"
        )
    return replace(found, operators=points, model=model.name, source=source)


def _model(text: str, settings: Settings, folder: Path, say: terminal.Progress) -> cases.Model:
    """The segment that ``text`` names, a file or a model of the server."""
    path = Path(text)
    if path.suffix == ".segment":
        return replace(cases.plain(text), name=path.name)
    if path.suffix or "/" in text:
        raise UsageError(
            f"the roofline takes a .segment file or a model of the server, not {text[-60:]}", reason="no-segment"
        )
    return asyncio.run(planned.head(msgspec.structs.replace(settings, model=text), folder, say))


def is_here(profile: DeviceProfile) -> bool:
    """Whether ``profile`` was measured on a board like this one."""
    own = machine.machine(isa.ISA)[0]
    return schema.is_measured(profile) and all(
        getattr(own, name) == getattr(profile.machine, name) for name in ("board", "cpu", "isa", "logical_cores")
    )


def kernels(counts: Sequence[int], output: str) -> None:
    """Measure the kernels on each number of threads, and print them (`edge-agent bench kernels`)."""
    with terminal.Progress("edge-agent") as say:
        found = measurement.measure_kernels(counts, lambda done, total, step: say(f"{step} ({done}/{total})"))
    _mark_emulated(found)
    if output == "table":
        width = terminal.width()
        terminal.show(formats.headline(found), "", device_profiles.render.kernel_table(found, width))
    else:
        print(formats.FORMATS[output](found))


def known_boards(name: str | None, *, asked: bool, json: bool) -> None:
    """Print the profile of the known board ``name``, or list all.

    Raises `UsageError` for an unknown name, or without ``asked`` (--known).
    """
    if not asked:
        raise UsageError(
            f"`edge-agent profile` measures this machine; for a known board give --known {name}",
            reason="measures-this-machine",
        )
    if name is None:
        _list(json=json)
    elif json:
        print(msgspec.json.encode(known.load(name)).decode())
    else:
        terminal.show(table(known.load(name), terminal.width()))


def boards(width: int) -> Text:
    """The known boards as a table."""
    columns = [Column("name"), Column("board", shortest=16), Column("cores", shortest=16), Column("kernels use")]
    rows = []
    for name, one in _machines().items():
        rows.append((name, one.board or "", f"{one.physical_cores} x {one.cpu}", one.isa))
    return terminal.table(columns, rows, width)


def _list(*, json: bool) -> None:
    if json:
        print(msgspec.json.encode({name: one.board for name, one in _machines().items()}).decode())
        return
    note = "These profiles are published or estimated, not measured. Use them with `edge-agent plan --board NAME`."
    terminal.show(boards(terminal.width()), "", note)


def _machines() -> dict[str, Machine]:
    return {name: known.load(name).machine for name in known.names()}
