"""`edge-agent profile`: measure this machine, or show what is known of other boards."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from device_profiles import known, measure, save, table
from splitedge import files
from splitedge.errors import UsageError


def profile(*, quick: bool, out: Path | None, json: bool, watts: float | None) -> None:
    """Print a table, or JSON; write the profile to ``out``. The bar goes to standard error."""
    if out is not None:
        files.require_writable(out)
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")

        def show(done: int, total: int, step: str) -> None:
            bar.update(task, completed=done, total=total, description=step)

        measured = measure(quick=quick, progress=show, declared_watts=watts)
    if out is not None:
        save(measured, out)
    if json:
        print(msgspec.json.encode(measured).decode())
    else:
        Console(highlight=False).print(table(measured))
        if out is not None:
            print(f"written to {out}")


def known_boards(name: str | None, *, asked: bool, json: bool) -> None:
    """Print the profile of the known board ``name``, or list the boards. Raises `UsageError` for another name, or where it was not ``asked`` for."""
    if not asked:
        raise UsageError(f"edge-agent profile measures this machine: for a known board say --known {name}")
    console = Console(highlight=False)
    if name is not None:
        found = known.load(name)
        print(msgspec.json.encode(found).decode()) if json else console.print(table(found))
        return
    boards = {board: known.load(board) for board in known.names()}
    if json:
        print(msgspec.json.encode({board: found.machine.board for board, found in boards.items()}).decode())
        return
    listed = Table("name", "board", "cores", "kernels use", box=None, pad_edge=False)
    for board, found in boards.items():
        machine = found.machine
        listed.add_row(board, machine.board, f"{machine.physical_cores} x {machine.cpu}", machine.isa)
    console.print(listed, "\nNobody measured these: for `edge-agent plan --board NAME` only.", sep="\n")
