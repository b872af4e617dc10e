"""`edge-agent profile`: measure this machine, or show a known board."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from device_profiles import known, measure, save, table
from device_profiles.schema import Machine
from splitedge import files, terminal
from splitedge.errors import UsageError
from splitedge.terminal import Column


def profile(*, quick: bool, out: Path | None, json: bool, watts: float | None) -> None:
    """Measure; print a table, or JSON; write the profile to ``out``. The progress bar goes to standard error."""
    if out is not None:
        files.require_writable(out)
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")

        def update(done: int, total: int, step: str) -> None:
            bar.update(task, completed=done, total=total, description=step)

        measured = measure(quick=quick, progress=update, declared_watts=watts)
    if out is not None:
        save(measured, out)
    if json:
        print(msgspec.json.encode(measured).decode())
        return
    terminal.show(table(measured, terminal.width()))
    if out is not None:
        print(f"written to {out}")


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
    for name, machine in _machines().items():
        rows.append((name, machine.board or "", f"{machine.physical_cores} x {machine.cpu}", machine.isa))
    return terminal.table(columns, rows, width)


def _list(*, json: bool) -> None:
    if json:
        print(msgspec.json.encode({name: machine.board for name, machine in _machines().items()}).decode())
        return
    note = "These profiles are published or estimated, not measured. Use them with `edge-agent plan --board NAME`."
    terminal.show(boards(terminal.width()), "", note)


def _machines() -> dict[str, Machine]:
    return {name: known.load(name).machine for name in known.names()}
