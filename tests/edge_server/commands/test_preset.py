"""`edge-server preset list`."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from edge_server.cli import app
from edge_server.commands import preset as command
from edge_server.presets.catalog import PRESETS, Package, Preset


def run(*options: str) -> str:
    result = CliRunner().invoke(app, ["preset", "list", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_every_preset_has_a_row_in_80_columns() -> None:
    lines = run().splitlines()
    assert max(map(len, lines)) <= 80
    for one in PRESETS.values():
        (row,) = (line for line in lines if line.split()[:1] == [one.name])
        assert one.packages[0].name in row
        assert row.endswith("no" if one.missing() else "yes")


def test_commands_of_missing_packages_fit_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {one: absent(one) for one in PRESETS}
    monkeypatch.setattr(command, "PRESETS", present)
    lines = run().splitlines()
    assert max(map(len, lines)) <= 80
    for one in present.values():
        assert f"  {one.command}" in lines


def absent(name: str) -> Preset:
    """The preset ``name``, but its packages have names of the same length that are nowhere."""
    one = PRESETS[name]
    nowhere = tuple(Package("x" * len(p.name), p.version, "x" * len(p.module)) for p in one.packages)
    return dataclasses.replace(one, packages=nowhere)


def test_presets_as_json() -> None:
    found = {one["name"]: one for one in json.loads(run("--json"))}
    assert list(found) == list(PRESETS)
    for name, one in PRESETS.items():
        assert found[name]["installed"] == (not one.missing())
        assert found[name]["command"] == one.command
        assert found[name]["bytes"] == one.size
        assert [package["name"] for package in found[name]["packages"]] == [p.name for p in one.packages]
