"""`edge-server preset list`."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from edge_server.presets.catalog import PRESETS, Preset
from splitedge import terminal
from splitedge.terminal import Column


def show(*, json: bool = False) -> None:
    """Print the presets, and how to install those whose packages are missing."""
    if json:
        print(msgspec.json.encode([_fields(one) for one in PRESETS.values()]).decode())
        return
    columns = [
        Column("preset"),
        Column("answers"),
        Column("size", right=True),
        Column("package"),
        Column("installed"),
    ]
    terminal.show(terminal.table(columns, [_row(one) for one in PRESETS.values()], terminal.width()), "")
    terminal.show(*(f"{one.name}: {one.title} ({one.licence})" for one in PRESETS.values()))
    if missing := [one for one in PRESETS.values() if one.missing()]:
        terminal.show("", "To install:")
        for one in missing:
            print(f"  {one.command}")
    first = min(PRESETS.values(), key=lambda one: one in missing)  # the first that is installed, else the first
    terminal.show("", "To add one, give it samples like your inputs:")
    print(f"  edge-server add {first.name} --{first.samples} DIR")


def _row(one: Preset) -> list[str]:
    package = one.packages[0]
    return [one.name, one.answers, terminal.size(one.size), f"{package.name} {package.version}", _state(one)]


def _state(one: Preset) -> str:
    """Whether the preset can be used; another version of its package by number."""
    if not one.missing():
        return "yes"
    for package in one.packages:
        found = package.installed()
        if found is not None and found != package.version:
            return found
    return "no"


def _fields(one: Preset) -> dict[str, Any]:
    return {
        "name": one.name,
        "title": one.title,
        "answers": one.answers,
        "samples": one.samples,
        "bytes": one.size,
        "licence": one.licence,
        "packages": [
            {"name": package.name, "version": package.version, "installed": package.installed()}
            for package in one.packages
        ],
        "installed": not one.missing(),
        "command": one.command,
        "pixels": dict(one.pixels),
        "task": {name: value for name, value in dataclasses.asdict(one.task).items() if value is not None},
    }
