"""`edge-agent doctor`: one line per check, and a suggested fix for each problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.text import Text

from edge_agent.doctor import Check, examine
from splitedge.terminal import Cell, Column, plain, show, table, width

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


async def doctor(path: Path | None, options: Mapping[str, Any], *, json: bool) -> int:
    """Print the checks; returns 0 if none failed, else 1."""
    checks = await examine(path, options)
    failed = any(check.verdict == "fail" for check in checks)
    if json:
        print(msgspec.json.encode({"ok": not failed, "checks": checks}).decode())
    else:
        show(report(checks, width()), "", summary(checks))
    return int(failed)


def report(checks: Sequence[Check], width: int) -> Text:
    """Verdict, name and finding of each check; below a problem, after an arrow, its fix."""
    rows: list[list[Cell]] = []
    for check in checks:
        style = _STYLES[check.verdict]
        rows.append([Text(check.verdict, style=style), Text(check.name, style="cyan"), plain(check.found)])
        if check.advice:
            rows.append(["", "", Text(f"-> {plain(check.advice)}", style=style)])
    return table([Column("verdict"), Column("check"), Column("found", wrapped=True)], rows, width, header=False)


def summary(checks: Sequence[Check]) -> Text:
    """The number of checks by verdict."""
    count = {verdict: sum(check.verdict == verdict for check in checks) for verdict in _STYLES}
    worst = next((verdict for verdict in ("fail", "warn") if count[verdict]), "ok")
    return Text(f"{count['ok']} ok, {count['warn']} to check, {count['fail']} failed", style=_STYLES[worst])
