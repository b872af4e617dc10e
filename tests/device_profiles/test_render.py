"""The tables: readable at 80 columns, nothing hidden, nothing interpreted."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from device_profiles import schema, table


def _shown(profile, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table(profile, width), soft_wrap=True)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_everything_measured_is_shown_within_the_terminal(profile, width):
    text = _shown(profile, width)
    assert max(map(len, text.splitlines())) <= width
    for part in (
        "Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76 (aarch64)", "kernels use   portable", "8,192 MiB", "2,400 MHz", "61.3 °C",
        "throttled since boot", "9.5 GB/s", "1.9 s from the kernel cache", "42.0 s compiling everything", "6.90 W under load",
        "cpu quota", "pointwise 56x56x24 -> 144", "conv 224x224x3 -> 32 k3 s2", "20.0",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("width", [80, 100])
def test_what_was_chosen_is_shown_with_its_reason(profile, width):
    profile.chosen = {
        "instruction set": "dotprod, the fastest set: " + "asimddp " * 20,
        "threads": "4: 3 ms against 9 ms on 1",
    }
    text = _shown(profile, width)
    assert max(map(len, text.splitlines())) <= width
    assert "kernels use   dotprod, the fastest set: asimddp" in text
    assert "threads       4: 3 ms against 9 ms on 1" in text


def test_without_gaps_there_is_no_section_for_them(profile):
    profile.unmeasured = {}
    assert "cpu quota" not in _shown(profile)


def test_throttling_at_this_moment_stands_out(profile):
    profile.condition.throttling = schema.Throttling(True, True, ["under-voltage"], "Raspberry Pi firmware")
    assert "NOW: under-voltage" in _shown(profile)


def test_unknown_values_leave_no_empty_rows(profile):
    profile.condition = schema.Condition(None, None, None, None)
    profile.power = schema.Power("unknown")
    profile.warmup = profile.copy_gbps = profile.machine.board = None
    text = _shown(profile)
    for name in ("board ", "clock", "temperature", "throttling", "power", "start-up", "memory copy"):
        assert not any(line.startswith(name) for line in text.splitlines())


def test_names_from_the_firmware_are_not_markup(profile):
    profile.machine.board = "[bold]board[/bold] [/]"
    assert "[bold]board[/bold] [/]" in _shown(profile)
