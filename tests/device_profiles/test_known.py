"""Profiles of boards that nobody measured: whole, marked, and never taken for measurements."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from device_profiles import from_dict, known, predict, schema, table, to_dict
from device_profiles.measurement import one_operator
from device_profiles.schema import Origin, Shape
from splitedge.errors import ConfigError, ProtocolError, UsageError
from tests.raising import raises

BOARDS = ("jetson-nano", "orin-nano", "pi4", "pi5", "x86-avx2", "x86-vnni")


def test_the_boards_are_listed_and_another_is_refused_with_their_names():
    assert known.names() == sorted(BOARDS)
    with raises(UsageError, reason="unknown-board"):
        known.load("../../secrets")


@pytest.mark.parametrize("name", BOARDS)
def test_a_known_profile_passes_a_plan_request_and_predicts_heads(name):
    profile = from_dict(json.loads(json.dumps(to_dict(known.load(name)))))
    header = one_operator("conv", Shape(56, 56, 64, 64, k=3)).header
    assert predict.best_threads(profile) == profile.machine.physical_cores
    assert 0.1 < predict.head_ms(header, profile) < 20


@pytest.mark.parametrize("name", BOARDS)
def test_every_value_of_a_known_profile_says_where_it_comes_from(name):
    profile = known.load(name)
    paths = [
        "machine",
        "overhead",
        "copy_gbps",
        "condition.mhz_max",
        "power.load_watts",
        *(f"kernels.{k}" for k in schema.KINDS),
    ]
    for path in paths:
        origin = schema.origin(profile, path)
        assert origin.mark in ("specified", "estimated"), path
        assert len(origin.source) > 20, path
    assert profile.power.idle_watts is None or schema.origin(profile, "power.idle_watts").mark == "specified"
    assert "measured" not in {origin.mark for origin in profile.origins.values()}


def test_a_part_has_the_origin_of_the_whole_and_what_is_not_listed_was_measured(profile):
    profile.origins = {"power": Origin("estimated", "a label"), "power.idle_watts": Origin("specified", "a page")}
    assert schema.origin(profile, "power.load_watts").source == "a label"
    assert schema.origin(profile, "power.idle_watts").source == "a page"
    assert schema.origin(profile, "kernels.pool").mark == "measured"
    assert schema.is_measured(profile)
    schema.require_measured(profile)


@pytest.mark.parametrize("path", ["kernels", "kernels.pool", "overhead"])
def test_a_profile_with_times_that_nobody_measured_is_not_measured(profile, path):
    profile.origins = {path: Origin("estimated", "a formula")}
    assert not schema.is_measured(profile)
    with raises(ConfigError, reason="estimated"):
        schema.require_measured(profile)


def test_an_unknown_mark_is_refused(profile):
    value = to_dict(profile)
    value["origins"] = {"kernels": {"mark": "guessed", "source": "nowhere"}}
    with raises(ProtocolError, reason="malformed"):
        from_dict(value)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_says_at_once_that_nobody_measured_the_board(width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table(known.load("pi5"), width), soft_wrap=True)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "not measured" in text.splitlines()[0]
    for part in (
        "(estimated)",
        "kernels.pointwise",
        "power.idle_watts",
        "specified",
        "Raspberry Pi 5, 8 GB",
    ):
        assert part in text, part
