"""Power from the sensors of boards and PCs.

In this order: a power monitor (INA2xx, INA3221) on the rail that feeds the whole board; the sum of all monitored rails;
the power management chip of a Raspberry Pi 5; the processor's energy counter (RAPL), which excludes the rest of a PC.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path("/")
_WHOLE = re.compile(r"VDD_IN|POM_5V_IN", re.IGNORECASE)  # a Jetson's rail for the whole module
_ENERGY_ZONES = (("psys",), ("package-0", "package-1", "package-2", "package-3"))  # the platform, else all packages

#: Reads all rails (watts) or all counters (joules); None if one of them gives no answer.
Read = Callable[[], Sequence[float] | None]


class PowerMeter:
    """Energy since `start`, from samples; power is interpolated linearly between two samples.

    ``read`` yields the watts of rails, which are added up, or, with ``wraps``, the joules of counters that wrap at
    these values. Sample counters more often than they wrap, at least every minute.
    """

    def __init__(self, name: str, read: Read, wraps: Sequence[float] | None = None) -> None:
        self.name = name
        self._read, self._wraps = read, wraps
        self.start()

    def start(self) -> None:
        """Start counting now."""
        self.joules = self.seconds = 0.0
        self._last = self._reading()

    def sample(self) -> None:
        """Count up to now. If a sensor gives no answer, the next sample covers that time too."""
        now = self._reading()
        if now is None:
            return
        if self._last is not None:
            elapsed = now[0] - self._last[0]
            self.joules += self._energy(self._last[1], now[1], elapsed)
            self.seconds += elapsed
        self._last = now

    def watts(self) -> float | None:
        """Mean power in watts up to now; None if the sensor gave no answer or no time has passed."""
        self.sample()
        return self.joules / self.seconds if self.seconds > 0 else None

    def _reading(self) -> tuple[float, Sequence[float]] | None:
        values = self._read()
        return None if values is None else (time.monotonic(), values)

    def _energy(self, before: Sequence[float], after: Sequence[float], seconds: float) -> float:
        if self._wraps is None:
            return (sum(before) + sum(after)) / 2 * seconds
        return sum((b - a) % wrap for a, b, wrap in zip(before, after, self._wraps, strict=True))


def find(root: Path = ROOT) -> PowerMeter | None:
    """The best power sensor that this user may read; None if there is none."""
    return _monitors(root) or (_pi_chip() if root == ROOT else None) or _energy_counters(root)


def why_none(root: Path = ROOT) -> str:
    """Why `find` returned None, for people."""
    if any((zone / "energy_uj").exists() for zone in root.glob("sys/class/powercap/intel-rapl:*")):
        return "only root may read the processor's energy counter (RAPL)"
    return "no power sensor was found"


# --- power monitors -------------------------------------------------------------------------------------------------


def _monitors(root: Path) -> PowerMeter | None:
    rails = _hwmon_rails(root) + _l4t_rails(root)
    if not (readable := [(name, watts) for name, watts in rails if watts() is not None]):
        return None
    whole = [rail for rail in readable if _WHOLE.search(rail[0])][:1] or readable
    return PowerMeter(" + ".join(name for name, _ in whole)[:300], partial(_all, [watts for _, watts in whole]))


def _hwmon_rails(root: Path) -> list[tuple[str, Callable[[], float | None]]]:
    """Each rail of each INA chip: its name, and a function that reads its watts.

    An INA2xx has one rail and reports power; an INA3221 has three and reports voltage and current.
    """
    found: list[tuple[str, Callable[[], float | None]]] = []
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        name = _text(chip / "name")
        if not name.startswith("ina"):
            continue
        if (chip / "power1_input").exists():
            label = _text(chip / "label")
            found.append((f"{label} ({name})" if label else name, partial(_scaled, chip / "power1_input", 1e-6)))
            continue
        for path in sorted(chip.glob("in*_label")):
            number = path.name[2:].removesuffix("_label")
            found.append((f"{_text(path)} ({name})", partial(_product, chip, number)))
    return found


def _l4t_rails(root: Path) -> list[tuple[str, Callable[[], float | None]]]:
    """The rails of a Jetson with kernel 4.9, such as the Jetson Nano: NVIDIA's own driver, in milliwatts."""
    names = sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio*/rail_name_*"))
    return [
        (f"{_text(path)} (ina3221x)", partial(_scaled, path.with_name(f"in_power{path.name[10:]}_input"), 1e-3))
        for path in names
    ]


def _product(chip: Path, number: str) -> float | None:
    """Watts from millivolts and milliamperes."""
    volts, amperes = _number(chip / f"in{number}_input"), _number(chip / f"curr{number}_input")
    return None if volts is None or amperes is None else volts * amperes / 1e6


def _scaled(path: Path, unit: float) -> float | None:
    value = _number(path)
    return None if value is None else value * unit


def _all(reads: Sequence[Callable[[], float | None]]) -> list[float] | None:
    values = [value for read in reads if (value := read()) is not None]
    return values if len(values) == len(reads) else None


# --- Raspberry Pi 5 -------------------------------------------------------------------------------------------------


def _pi_chip() -> PowerMeter | None:
    """The chip that makes the board's voltages, without USB devices. Members of the group `video` may read it."""
    tool = shutil.which("vcgencmd")
    if tool is None or _pi_watts(tool) is None:
        return None
    return PowerMeter("all rails of the power management chip (vcgencmd)", partial(_pi_watts, tool))


def _pi_watts(tool: str) -> list[float] | None:
    try:
        command = [tool, "pmic_read_adc"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None  # as for any sensor without an answer
    return rail_watts(done.stdout)


def rail_watts(text: str) -> list[float] | None:
    """Watts of each rail with both current and voltage in the output of ``vcgencmd pmic_read_adc``.

    None if there is none, as on boards before the Raspberry Pi 5.
    """
    found = re.findall(r"^\s*(\w+)_([AV]) \w+\(\d+\)=(\d+\.\d+)[AV]\s*$", text, re.MULTILINE)
    values = {(rail, unit): float(value) for rail, unit, value in found}
    currents = {rail: value for (rail, unit), value in values.items() if unit == "A"}
    return [amperes * values[rail, "V"] for rail, amperes in currents.items() if (rail, "V") in values] or None


# --- energy counters ------------------------------------------------------------------------------------------------


def _energy_counters(root: Path) -> PowerMeter | None:
    zones = {_text(zone / "name"): zone for zone in sorted(root.glob("sys/class/powercap/intel-rapl:*"))}
    for names in _ENERGY_ZONES:
        chosen = {name: zones[name] for name in names if name in zones}
        wraps = _all([partial(_scaled, zone / "max_energy_range_uj", 1e-6) for zone in chosen.values()])
        read = partial(_all, [partial(_scaled, zone / "energy_uj", 1e-6) for zone in chosen.values()])
        if chosen and wraps and all(wraps) and read() is not None:
            return PowerMeter(f"RAPL {' + '.join(chosen)}", read, wraps)
    return None


# --- files ----------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()[:200]
    except OSError:
        return ""  # absent, or readable by root only


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None
