"""`edge-agent doctor`: one line per check, and a suggested fix for each problem."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.text import Text

from edge_agent.config import Settings
from edge_agent.doctor import Check, bundle, examine, fixes, server
from splitedge.terminal import Cell, Column, Progress, plain, show, table, width

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(path: Path | None, options: Mapping[str, Any], *, json: bool, fix: bool, archive: Path | None) -> int:
    """Print the checks, after the fix-ups if ``fix``; returns 0 if none failed, else 1.

    ``archive``: the bundle to write. Raises `errors.UsageError` before any check if it cannot be written.
    """
    if archive is not None:
        bundle.check(archive)
    settings, _ = server.configuration(path, options)
    with Progress("edge-agent") as say:
        fixed = fixes.apply(settings or Settings(), say) if fix else []
        say("checking")
        checks = asyncio.run(examine(path, options))
    failed = any(check.verdict == "fail" for check in checks)
    found = msgspec.to_builtins({"ok": not failed, "checks": checks, "fixes": fixed})
    if archive is not None:
        bundle.write(archive, found, settings)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        if fix:
            show(repairs(fixed, width()), "")
        show(report(checks, width()), "", summary(checks))
        if archive is not None:
            show("", f"{archive} holds this report, the settings, versions and the journal, without tokens.")
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


def repairs(fixed: Sequence[fixes.Fixed], width: int) -> Text:
    """What the fix-ups did."""
    if not fixed:
        return Text("nothing to fix")
    rows: list[list[Cell]] = [
        [
            Text("done" if one.done else "left", style=_STYLES["ok" if one.done else "warn"]),
            Text(one.name, style="cyan"),
            plain(one.said),
        ]
        for one in fixed
    ]
    return table([Column("state"), Column("fix"), Column("said", wrapped=True)], rows, width, header=False)


def summary(checks: Sequence[Check]) -> Text:
    """The number of checks by verdict."""
    count = {verdict: sum(check.verdict == verdict for check in checks) for verdict in _STYLES}
    worst = next((verdict for verdict in ("fail", "warn") if count[verdict]), "ok")
    return Text(f"{count['ok']} ok, {count['warn']} to check, {count['fail']} failed", style=_STYLES[worst])
