"""Each configuration alone, without a pause: its power, and its speed over a long time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean
from typing import Final

from device_profiles import machine, power
from edge_agent.bench.cases import Case
from edge_agent.bench.measuring import FailedError, Say, Worker
from edge_agent.bench.results import PowerUse, Row, Sustained
from splitedge.errors import PlatformError

IDLE_S: Final = 2.0
POWER_S: Final = 5.0
_SAMPLE_S: Final = 0.1  # between two readings of a sensor
_MOST_EVENTS: Final = 100
_MINUTE: Final = 60


def add_power(cases: Sequence[Case], rows: Sequence[Row], say: Say) -> None:
    """Measure the power of each configuration that has times. Raises `PlatformError` without a sensor."""
    meter = power.find()
    if meter is None:
        raise PlatformError(f"--power needs a sensor, and {power.why_none()}", reason="no-power-sensor")
    idle = _watts_idle(meter)
    for case, row in zip(cases, rows, strict=True):
        if row.failure:
            continue
        say(f"{case.model}: power of {case.backend.name}")
        try:
            row.power = _power(case, meter, idle)
        except FailedError as error:
            row.failure = error.message


def _watts_idle(meter: power.PowerMeter) -> float | None:
    meter.start()
    end = time.monotonic() + IDLE_S
    while time.monotonic() < end:
        time.sleep(_SAMPLE_S)
        meter.sample()
    return meter.watts()


def _power(case: Case, meter: power.PowerMeter, idle: float | None) -> PowerUse | None:
    worker = Worker(case)
    try:
        worker.ask(run=3)
        meter.start()
        runs, end = 0, time.monotonic() + POWER_S
        while time.monotonic() < end:
            runs += len(worker.ask(spin=_SAMPLE_S).ms)
            meter.sample()
        watts = meter.watts()
        return None if watts is None else PowerUse(meter.name, watts, idle, meter.joules / runs)
    finally:
        worker.end()


def add_sustained(cases: Sequence[Case], rows: Sequence[Row], seconds: float, say: Say) -> None:
    """Run each configuration that has times for so many ``seconds``, and note when the system throttles."""
    for case, row in zip(cases, rows, strict=True):
        if not row.failure:
            try:
                row.sustained = _sustained(case, seconds, say)
            except FailedError as error:
                row.failure = error.message


def _sustained(case: Case, seconds: float, say: Say) -> Sustained:
    worker = Worker(case)
    rates: list[float] = []
    events: list[str] = []
    last: list[str] = []
    try:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            say(f"{case.model}, {case.backend.name}: {passed:.0f} of {seconds:.0f} s")
            ms = worker.ask(spin=min(1.0, seconds - passed)).ms
            rates.append(1000 * len(ms) / sum(ms))
            state = machine.throttling()
            now = state.reasons if state is not None and state.now else []
            if now != last and len(events) < _MOST_EVENTS:
                events.append(f"{passed:.0f} s: {', '.join(now) or 'no throttling'}")
            last = now
    finally:
        worker.end()
    first, end = fmean(rates[:_MINUTE]), fmean(rates[-_MINUTE:])
    return Sustained(time.monotonic() - began, rates, events, first, end)
