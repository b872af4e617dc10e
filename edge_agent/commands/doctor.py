"""`edge-agent doctor`: one line for each check, and a sentence for each that is not ok."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_agent.doctor import Check, examine
from splitedge.report import plain

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


async def doctor(path: Path | None, options: Mapping[str, Any], *, json: bool) -> int:
    """Print the checks; returns 0 if none failed, else 1."""
    checks = await examine(path, options)
    failed = any(check.verdict == "fail" for check in checks)
    if json:
        print(msgspec.json.encode({"ok": not failed, "checks": checks}).decode())
    else:
        console = Console(highlight=False)
        console.print(table(checks))
        console.print(summary(checks))
    return int(failed)


def table(checks: Sequence[Check]) -> Table:
    """Verdict, name and what was found; below it, marked by an arrow, what to do."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(2):
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for check in checks:
        style = _STYLES[check.verdict]
        grid.add_row(Text(check.verdict, style=style), Text(check.name, style="cyan"), Text(plain(check.found)))
        if check.advice:
            grid.add_row("", "", Text(f"-> {plain(check.advice)}", style=style))
    return grid


def summary(checks: Sequence[Check]) -> Text:
    """How many need attention."""
    count = {verdict: sum(check.verdict == verdict for check in checks) for verdict in _STYLES}
    worst = next((verdict for verdict in ("fail", "warn") if count[verdict]), "ok")
    return Text(f"\n{count['ok']} ok, {count['warn']} to look at, {count['fail']} failed", style=_STYLES[worst])
