"""Joules of frames, from a sensor that is a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_profiles import power
from edge_agent.api.metrics import render
from edge_agent.commands import infer
from edge_agent.runtime import queue_limit
from edge_agent.runtime.agent import Agent
from edge_agent.runtime.energy import FrameEnergy
from edge_agent.runtime.queue_limit import QueueLimit
from tests.small_server import TENSOR, SmallServer


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A root of files with a power monitor that says 5 W."""
    folder = tmp_path / "sys/class/hwmon/hwmon0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("ina226\n")
    (folder / "power1_input").write_text("5000000\n")
    return tmp_path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [50.0]
    for module in (power, queue_limit):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def frame_energy(board: Path, limit: QueueLimit) -> FrameEnergy:
    meter = power.find(board)
    assert meter is not None
    return FrameEnergy(meter, limit)


def test_an_interval_counts_by_the_share_of_it_in_which_frames_were_under_way(board, clock):
    limit = QueueLimit()
    energy = frame_energy(board, limit)
    clock[0] += 3.0
    with limit.slot(1):
        clock[0] += 1.0
    energy.update()
    assert energy.frames_j == pytest.approx(5.0)
    clock[0] += 2.0
    energy.update()
    assert energy.frames_j == pytest.approx(5.0)  # nothing between frames
    with limit.slot(1):
        clock[0] += 2.0
        energy.update()
    assert energy.frames_j == pytest.approx(15.0)


def test_while_the_sensor_is_silent_nothing_is_lost(board, clock):
    limit = QueueLimit()
    energy = frame_energy(board, limit)
    path = board / "sys/class/hwmon/hwmon0/power1_input"
    with limit.slot(1):
        path.unlink()
        clock[0] += 1.0
        energy.update()
        assert energy.frames_j == 0
        path.write_text("7000000\n")
        clock[0] += 1.0
        energy.update()
    assert energy.frames_j == pytest.approx(2 * 6.0)


async def test_where_there_is_a_sensor_the_agent_tells_joules_a_frame(settings, board, monkeypatch):
    meter = power.find(board)
    monkeypatch.setattr(power, "find", lambda: meter)
    async with SmallServer(preprocess=TENSOR) as server:
        server.tail_s = 0.05
        async with Agent(settings(server)) as agent:
            await agent.infer(np.zeros((16, 16, 3), np.float32))
            await agent.infer(np.zeros((16, 16, 3), np.float32))
        energy: dict[str, Any] | None = agent.status()["energy"]
        assert energy is not None
        assert energy["sensor"] == "ina226"
        assert energy["joules_per_frame"] == pytest.approx(energy["joules"] / 2)
        assert energy["joules_per_frame"] > 0.05 * 5 / 2
        text = render(agent.counters, agent.gauges(), {})
    assert "# TYPE splitedge_frame_joules_total counter" in text
    assert "splitedge_joules_per_frame " in text
    assert "ina226" in infer._joules(agent)


async def test_where_there_is_none_nothing_is_said(settings, monkeypatch):
    monkeypatch.setattr(power, "find", lambda: None)
    async with SmallServer(preprocess=TENSOR) as server, Agent(settings(server)) as agent:
        await agent.infer(np.zeros((16, 16, 3), np.float32))
        assert agent.status()["energy"] is None
        assert "joules" not in render(agent.counters, agent.gauges(), {})
        assert infer._joules(agent) == ""
