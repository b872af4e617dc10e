"""Facts about the system from /proc and /sys. Every function takes the root of the tree, so a test can lay out a board.

A value that the system does not provide is None or empty, never a guess.
"""

from __future__ import annotations

import os
import platform
import re
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from device_profiles import tools
from device_profiles.schema import Condition, Machine, Throttling
from splitedge import limits

ROOT = Path("/")
_AT_PAGESZ = 6  # the entry of the auxiliary vector with the page size
_MAX_TEXT = 1 << 20  # /proc/cpuinfo of a machine with 256 cores is 400 KiB

T = TypeVar("T", int, float)

# Implementer and part number (MIDR) of Arm cores, from the CPUs' technical reference manuals.
_ARM_PARTS = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd44"): "Cortex-X1",
    ("0x41", "0xd46"): "Cortex-A510",
    ("0x41", "0xd47"): "Cortex-A710",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4d"): "Cortex-A715",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x4e", "0x003"): "NVIDIA Denver 2",
    ("0x4e", "0x004"): "NVIDIA Carmel",
}

# Instruction sets that integer kernels can use: the flag in /proc/cpuinfo -> the name in a profile.
_FLAGS = {
    "sse4_2": "sse4.2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "avx_vnni": "avx-vnni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512_vnni": "avx512vnni",
    "amx_int8": "amx-int8",
    "neon": "neon",
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
}

# Bits of the Raspberry Pi firmware's get_throttled; bit + 16 means "since boot".
_PI_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


def machine(isa: str, root: Path = ROOT) -> tuple[Machine, dict[str, str]]:
    """The machine, and the reason for each unknown value. ``isa``: the instruction set in use."""
    held = memory(root)
    logical = _logical_cores(root)
    found = Machine(
        board=board(root),
        cpu=cpu_name(root),
        architecture=platform.machine() if root == ROOT else _architecture(root),
        instruction_sets=instruction_sets(root),
        isa=isa,
        physical_cores=_physical_cores(root) or logical,
        logical_cores=logical,
        usable_cores=len(os.sched_getaffinity(0)) if root == ROOT else logical,
        cpu_quota=cpu_quota(root),
        memory_total_bytes=held.total,
        memory_available_bytes=held.available,
        last_cache_bytes=last_cache(root),
        os=_os_name(root),
    )
    return found, _machine_gaps(found, root)


def condition(root: Path = ROOT) -> tuple[Condition, dict[str, str]]:
    """Current clock, temperature and throttling, and the reason for each unknown value."""
    now, most = clock(root)
    found = Condition(mhz_now=now, mhz_max=most, temperature_c=temperature(root), throttling=throttling(root))
    gaps = {
        "clock now": (now, "the system reports no current clock"),
        "clock max": (most, "the system reports no frequency scaling (usual in a virtual machine)"),
        "temperature": (found.temperature_c, "the system reports no thermal zone of the processor"),
        "throttling": (
            found.throttling,
            "the system reports neither firmware flags, cooling devices nor throttle counters",
        ),
    }
    return found, {what: why for what, (value, why) in gaps.items() if value is None}


def board(root: Path = ROOT) -> str | None:
    """The board's name from the device tree, or the product name of a PC."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model", "sys/class/dmi/id/product_name"):
        if name := _text(root / path).strip("\0 \n"):
            return name[:300]
    return None


def cpu_name(root: Path = ROOT) -> str:
    """The processor's name; on Arm the names of its cores, with counts if they differ."""
    rows = _cpuinfo(root)
    names = Counter(_arm_core(row) for row in rows if "CPU part" in row)
    if len(names) == 1:
        return next(iter(names))
    if names:
        return " + ".join(f"{count} x {name}" for name, count in sorted(names.items()))
    return next((row["model name"] for row in rows if row.get("model name")), "unknown")[:300]


def instruction_sets(root: Path = ROOT) -> list[str]:
    """The instruction sets of `_FLAGS` that every core has."""
    each = [set((row.get("flags") or row.get("Features") or "").split()) for row in _cpuinfo(root)]
    each = [flags for flags in each if flags]
    common = set.intersection(*each) if each else set()
    return list(dict.fromkeys(name for flag, name in _FLAGS.items() if flag in common))


def usable_threads(root: Path = ROOT) -> int:
    """Threads that a head may use: the cores of this process, within its control group's quota."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return max(1, min(cores, limits.MAX_THREADS, int(quota) if quota else cores))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores of processor time that the control group (v2) and its parents allow; None without a limit."""
    return _cgroup_least(root, "cpu.max", _cores_limit)


def last_cache(root: Path = ROOT) -> int | None:
    """Bytes of the largest cache that core 0 uses."""
    sizes = [_text(path).strip() for path in root.glob("sys/devices/system/cpu/cpu0/cache/index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    found = [int(size[:-1]) * units[size[-1]] for size in sizes if re.fullmatch(r"\d+[KMG]", size)]
    return max(found, default=None)


def clock(root: Path = ROOT) -> tuple[float | None, float | None]:
    """Current and maximum MHz of the fastest core."""
    now = _numbers(root, "sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")
    most = _numbers(root, "sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq")
    shown = [float(row["cpu MHz"]) for row in _cpuinfo(root) if re.fullmatch(r"\d+(\.\d+)?", row.get("cpu MHz", ""))]
    return (max(now) / 1000 if now else max(shown, default=None)), (max(most) / 1000 if most else None)


def governors(root: Path = ROOT) -> dict[str, str]:
    """The governors of the cores' clocks, each with its driver; empty if the system reports none."""
    folders = _sorted(root, "sys/devices/system/cpu/cpu*/cpufreq")
    found = {_text(folder / "scaling_governor").strip(): _text(folder / "scaling_driver").strip() for folder in folders}
    return {governor: driver for governor, driver in found.items() if governor}


def temperature(root: Path = ROOT) -> float | None:
    """Degrees Celsius of the processor's hottest thermal zone or hardware monitor."""
    zones = [(_text(zone / "type").strip(), zone / "temp") for zone in _sorted(root, "sys/class/thermal/thermal_zone*")]
    chips = [
        (_text(chip / "name").strip(), path)
        for chip in _sorted(root, "sys/class/hwmon/hwmon*")
        for path in sorted(chip.glob("temp*_input"))
    ]
    pattern = re.compile(r"cpu|x86_pkg|soc|coretemp|k10temp|zenpower|bcm2835", re.IGNORECASE)
    degrees = [value / 1000 for name, path in zones + chips if pattern.search(name) for value in _number(path)]
    return max((d for d in degrees if -100 <= d <= 300), default=None)


def zones(root: Path = ROOT) -> dict[str, float]:
    """Degrees Celsius of every thermal zone that answers, by its type."""
    found: dict[str, float] = {}
    for zone in _sorted(root, "sys/class/thermal/thermal_zone*"):
        name = _text(zone / "type").strip()
        for value in _number(zone / "temp"):
            if "PMIC" not in name and -100_000 <= value <= 300_000:  # a Jetson Nano's PMIC zone always says 100 °C
                found[name] = max(value / 1000, found.get(name, -100.0))
    return found


def is_jetson(root: Path = ROOT) -> bool:
    """Whether this is an NVIDIA Jetson."""
    return (root / "etc/nv_tegra_release").exists() or "jetson" in (board(root) or "").lower()


def power_mode(root: Path = ROOT) -> str | None:
    """The power mode of a Jetson (``15W, mode 2``), from nvpmodel or its state file; None if there is none."""
    shown = tools.output(root, "nvpmodel", "-q") or ""
    if match := re.search(r"NV Power Mode: *(\S[^\n]*)\n\s*(\d+)", shown):
        return f"{match[1].strip()[:40]}, mode {match[2]}"
    match = re.search(r"pmode:(\d{1,4})", _text(root / "var/lib/nvpmodel/status"))
    return f"mode {int(match[1])}" if match else None


def offline_cores(root: Path = ROOT) -> int:
    """Cores that are present and switched off."""
    present, online = (_ranges(root / f"sys/devices/system/cpu/{name}") for name in ("present", "online"))
    return max(0, present - online) if present and online else 0


def page_size(root: Path = ROOT) -> int | None:
    """Bytes of a page of memory."""
    try:
        data = (root / "proc/self/auxv").read_bytes()[:_MAX_TEXT]
    except OSError:
        return None
    words = struct.unpack(f"={len(data) // 8}Q", data[: len(data) // 8 * 8])
    return dict(zip(words[::2], words[1::2], strict=False)).get(_AT_PAGESZ)


class Memory(NamedTuple):
    """Bytes of memory. ``total`` and ``available`` are within the limit of the control group."""

    total: int
    available: int
    swap_total: int
    swap_free: int
    zram: int  # of ``swap_total``, compressed in memory


def memory(root: Path = ROOT) -> Memory:
    """Memory and swap; zeros if the system does not report them."""
    known = _meminfo(root)
    limit = _cgroup_least(root, "memory.max", _bytes_limit)
    total, available = (known.get(name, 0) for name in ("MemTotal", "MemAvailable"))
    rows = re.findall(r"^/dev/zram\d+\s+\S+\s+(\d+)", _text(root / "proc/swaps"), re.MULTILINE)
    return Memory(
        total=min(total, limit) if limit else total,
        available=min(available, limit) if limit else available,
        swap_total=known.get("SwapTotal", 0),
        swap_free=known.get("SwapFree", 0),
        zram=sum(int(kib) * 1024 for kib in rows),
    )


def throttling(root: Path = ROOT) -> Throttling | None:
    """Whether the processor is throttled, from the first source of: firmware, cooling devices, counters."""
    return _pi_throttling(root) or _cooling(root) or _x86_counters(root)


# --- throttling -----------------------------------------------------------------------------------------------------


def _pi_throttling(root: Path) -> Throttling | None:
    for path in _sorted(root, "sys/devices/platform/*soc*/*firmware*/get_throttled"):
        if (found := _pi_flags(_text(path), "Raspberry Pi firmware")) is not None:
            return found
    shown = tools.output(root, "vcgencmd", "get_throttled") or ""
    return _pi_flags(shown.strip().removeprefix("throttled="), "vcgencmd get_throttled")


def _pi_flags(text: str, source: str) -> Throttling | None:
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", text.strip()):
        return None
    flags = int(text, 16)
    now = [name for bit, name in _PI_BITS.items() if flags >> bit & 1]
    past = [f"{name} since boot" for bit, name in _PI_BITS.items() if flags >> bit + 16 & 1 and name not in now]
    return Throttling(bool(now), bool(flags), now + past, source)


def _cooling(root: Path) -> Throttling | None:
    devices = [
        (_text(device / "type").strip(), _number(device / "cur_state"))
        for device in _sorted(root, "sys/class/thermal/cooling_device*")
    ]
    processors = [(name, state[0]) for name, state in devices if state and re.search(r"cpu|processor", name, re.I)]
    if not processors:
        return None
    events = [value for path in _sorted(root, "sys/class/hwmon/hwmon*/oc*_event_cnt") for value in _number(path)]
    reasons = [f"{name} lowers the clock" for name, state in processors if state > 0]
    reasons += [f"{sum(events)} over-current events since boot"] if sum(events) else []
    now = any(state > 0 for _, state in processors)
    return Throttling(now, bool(now or sum(events)) if events else None, reasons[:20], "thermal cooling devices")


def _x86_counters(root: Path) -> Throttling | None:
    counters = _numbers(root, "sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")
    if not counters:
        return None
    count = max(counters)
    return Throttling(
        False, count > 0, [f"{count} thermal events since boot"] if count else [], "x86 throttle counters"
    )


# --- pieces of the machine ------------------------------------------------------------------------------------------


def _machine_gaps(found: Machine, root: Path) -> dict[str, str]:
    gaps = {
        "board": (found.board, "the firmware reports neither a board nor a product"),
        "last cache": (found.last_cache_bytes, "the system does not report its caches"),
        "cpu quota": (
            found.cpu_quota is not None or (root / "sys/fs/cgroup/cgroup.controllers").exists() or None,
            "the system has no control groups of version 2",
        ),
        "memory": (found.memory_total_bytes or None, "/proc/meminfo cannot be read"),
    }
    return {what: why for what, (value, why) in gaps.items() if value is None}


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    blocks = _text(root / "proc/cpuinfo").strip().split("\n\n")
    rows = [dict(re.findall(r"^(.*?)\s*:[ \t]?(.*)$", block, re.MULTILINE)) for block in blocks]
    return [row for row in rows if "processor" in row]


def _arm_core(row: dict[str, str]) -> str:
    key = (row.get("CPU implementer", ""), row["CPU part"])
    return _ARM_PARTS.get(key, f"Arm core {key[0]}/{key[1]}"[:60])


def _architecture(root: Path) -> str:
    return "aarch64" if any("CPU part" in row for row in _cpuinfo(root)) else "x86_64"


def _logical_cores(root: Path) -> int:
    return _ranges(root / "sys/devices/system/cpu/online") or len(_cpuinfo(root)) or 1


def _ranges(path: Path) -> int:
    """How many numbers a list such as ``0-3,6`` holds."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", _text(path))
    return sum(int(last or first) - int(first) + 1 for first, last in ranges)


def _physical_cores(root: Path) -> int:
    """The number of sets of sibling threads: unlike ``core_id`` they are right on every architecture."""
    pattern = "sys/devices/system/cpu/cpu*/topology/thread_siblings_list"
    return len({text for path in root.glob(pattern) if (text := _text(path).strip())})


def _meminfo(root: Path) -> dict[str, int]:
    return {
        name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", _text(root / "proc/meminfo"), re.M)
    }


def _os_name(root: Path) -> str:
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text(root / "etc/os-release"), re.MULTILINE)
    kernel = _text(root / "proc/sys/kernel/osrelease").strip()
    return f"{release[1] if release else 'Linux'}, kernel {kernel or 'unknown'}"[:300]


def _cgroup_least(root: Path, file: str, read: Callable[[str], T | None]) -> T | None:
    """The smallest limit in ``file``, from this process's control group up to the root."""
    own = re.search(r"^0::/(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    top = root / "sys/fs/cgroup"
    group: Path = top / (own[1] if own and ".." not in own[1] else "")
    folders = [folder for folder in (group, *group.parents) if folder.is_relative_to(top)]
    values = [read(_text(folder / file)) for folder in folders]
    return min((value for value in values if value is not None), default=None)


def _cores_limit(text: str) -> float | None:
    match = re.fullmatch(r"(\d+) ([1-9]\d*)\s*", text)
    return int(match[1]) / int(match[2]) if match else None


def _bytes_limit(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


# --- files ----------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    """The file's text; empty if it cannot be read: it may be absent, and a sensor may answer EAGAIN."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_TEXT).decode("utf-8", "replace")
    except OSError:
        return ""


def _number(path: Path) -> list[int]:
    """The integer in ``path``, or nothing."""
    text = _text(path).strip()
    return [int(text)] if re.fullmatch(r"-?\d{1,18}", text) else []


def _numbers(root: Path, pattern: str) -> list[int]:
    return [value for path in root.glob(pattern) for value in _number(path)]


def _sorted(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))
