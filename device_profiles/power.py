"""Power from the sensors that boards and PCs have; None where there is none."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

_RAILS = re.compile(r"VDD_IN|POM_5V_IN|VIN_SYS", re.IGNORECASE)  # a Jetson's rail for the whole module


class PowerMeter:
    """Mean watts since `start`. A sensor of momentary power is read at each `sample`, an energy counter at both ends."""

    def __init__(self, name: str, read: Callable[[], float | None], *, counts_joules: bool, wrap: float = 0.0) -> None:
        self.name = name
        self._read, self._joules, self._wrap = read, counts_joules, wrap
        self.start()

    def start(self) -> None:
        self._since = time.monotonic()
        first = self._read()
        self._values = [] if first is None else [first]

    def sample(self) -> None:
        value = self._read()
        if value is not None:
            self._values.append(value)

    def watts(self) -> float | None:
        """Mean power in watts, or None if the sensor gave no answer or too little time has passed."""
        self.sample()
        if not self._joules:
            return fmean(self._values) if self._values else None
        seconds = time.monotonic() - self._since
        if len(self._values) < 2 or seconds <= 0:
            return None
        joules = self._values[-1] - self._values[0]
        return (joules + self._wrap if joules < 0 else joules) / seconds


def find(root: Path = Path("/")) -> PowerMeter | None:
    """The best power sensor of this machine: the whole board's, else the processor package's energy counter."""
    return _board_rail(root) or _package(root)


def _board_rail(root: Path) -> PowerMeter | None:
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if not _text(chip / "name").startswith("ina"):
            continue
        for label in sorted(chip.glob("in*_label")):
            number = label.name[2:].removesuffix("_label")
            if _RAILS.search(_text(label)) and _product(chip, number) is not None:
                return PowerMeter(
                    f"{_text(label)} ({_text(chip / 'name')})", partial(_product, chip, number), counts_joules=False
                )
    return None


def _package(root: Path) -> PowerMeter | None:
    zones = {_text(zone / "name"): zone for zone in sorted(root.glob("sys/class/powercap/intel-rapl:?"))}
    for name in ("psys", "package-0"):
        zone = zones.get(name)
        wrap = _number(zone / "max_energy_range_uj") if zone else None
        if zone and wrap and _joules(zone) is not None:
            return PowerMeter(f"RAPL {name}", partial(_joules, zone), counts_joules=True, wrap=wrap / 1e6)
    return None


def _product(chip: Path, number: str) -> float | None:
    """Watts from millivolts and milliamperes."""
    volts, amperes = _number(chip / f"in{number}_input"), _number(chip / f"curr{number}_input")
    return None if volts is None or amperes is None else volts * amperes / 1e6


def _joules(zone: Path) -> float | None:
    energy = _number(zone / "energy_uj")
    return None if energy is None else energy / 1e6


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()[:200]
    except OSError:
        return ""  # absent, or for root only


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None
