"""`edge-agent profile`: measure this machine."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from device_profiles import measure, save, table
from device_profiles.schema import require_folder


def profile(*, quick: bool, out: Path | None, json: bool, watts: float | None) -> None:
    """Print a table, or JSON; write the profile to ``out``. The bar goes to standard error."""
    if out is not None:
        require_folder(out)  # before the minutes of measuring
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
