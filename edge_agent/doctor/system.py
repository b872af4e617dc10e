"""Checks of the system: platform, userland, page size, memory, date, and other programs."""

from __future__ import annotations

import os
import platform as python_platform
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import splitedge
from device_profiles import machine, tools
from edge_agent.doctor.check import Check, fail, ok, warn
from splitedge import errors, limits, platform_check

#: No clock is right that is before the day of this release.
RELEASED: Final = datetime(2026, 1, 1, tzinfo=UTC)
_LATE_YEARS: Final = 30  # after `RELEASED`: a clock with a broken battery may also be far ahead
_PROGRAMS: Final = ("bin/sh", "usr/bin/env")
_PAUSE_S: Final = 0.3  # between two looks at the processor time of all processes
_BUSY_CORES: Final = 0.5  # a program that uses less does not slow heads down much
_AGENT: Final = "edge-agent"


def board(root: Path = machine.ROOT) -> Check:
    """The board, its processor and its operating system."""
    found, _ = machine.machine("", root)
    parts = [part for part in (found.board, found.cpu, found.os) if part]
    return ok("board", "; ".join(parts))


def platform() -> Check:
    """The platform: operating system, processor and Python."""
    found = (
        f"{python_platform.system()} on {python_platform.machine()}, Python {python_platform.python_version()}, "
        f"splitedge {splitedge.__version__}"
    )
    try:
        platform_check.check()
    except errors.PlatformError as error:
        return fail("platform", found, error.message)
    return ok("platform", f"{found}, 64 bit")


def userland(root: Path = machine.ROOT) -> Check | None:
    """Whether the system's programs are 32-bit below a 64-bit kernel."""
    bits = next(filter(None, (elf_bits(_head(root / program)) for program in _PROGRAMS)), None)
    kernel = _kernel(root)
    if bits is None or not kernel:
        return None
    found = f"{bits}-bit programs on a kernel for {kernel}"
    if bits == 32 and kernel in ("aarch64", "x86_64"):
        advice = "install a 64-bit operating system: 32-bit libraries of this one cannot be used by a 64-bit Python"
        return warn("userland", found, advice)
    return ok("userland", found)


def elf_bits(head: bytes) -> int | None:
    """32 or 64, from the first bytes of a program; None if it is no ELF file."""
    return {1: 32, 2: 64}.get(head[4]) if len(head) > 4 and head[:4] == b"\x7fELF" else None


def page_size(root: Path = machine.ROOT) -> Check | None:
    """The size of a page of memory."""
    size = machine.page_size(root)
    if not size:
        return None
    more = "" if size == 4096 else "; the kernels run with every size, libraries of others may not"
    return ok("pages", f"{size // 1024} KiB{more}")


def memory(root: Path = machine.ROOT, *, compiled: bool = True) -> Check:
    """Free memory for heads and, unless the kernels are ``compiled``, for compiling them, which may use swap."""
    found = machine.memory(root)
    if not found.total:
        return ok("memory", "unknown on this system")
    text = f"{_mib(found.available)} of {_mib(found.total)} MiB available, {_swap(found)}"
    use, least, free = ("large heads", limits.LOW_MEMORY, found.available)
    if not compiled:
        use, least, free = ("compiling the kernels", limits.COMPILE_MEMORY, found.available + found.swap_free)
    if free >= least:
        return ok("memory", text)
    more = "add swap" if not found.swap_total else "add more swap"
    return warn("memory", text, f"stop other programs, {more} or raise the limit: {use} may need more")


def _swap(found: machine.Memory) -> str:
    if not found.swap_total:
        return "no swap"
    kind = f", {_mib(found.zram)} of it zram" if found.zram else ""
    return f"{_mib(found.swap_free)} of {_mib(found.swap_total)} MiB swap free{kind}"


def _mib(count: int) -> str:
    return f"{count // limits.MiB:,}"


def date(root: Path = machine.ROOT, now: datetime | None = None, installed: datetime | None = None) -> Check:
    """Whether the clock is plausible and synchronized: TLS refuses certificates while it is wrong.

    ``installed``: when this installation was written, which a right clock is past.
    """
    now, earliest = now or datetime.now(UTC), max(RELEASED, installed or _installed())
    found = f"{now:%Y-%m-%d %H:%M} UTC"
    set_it = "set the clock (`sudo timedatectl set-ntp true`, or `sudo date -s`): TLS refuses certificates until then"
    if now < earliest.replace(hour=0, minute=0, second=0, microsecond=0):
        return warn("date", f"{found}, before this installation ({earliest:%Y-%m-%d})", set_it)
    if now.year > RELEASED.year + _LATE_YEARS:
        return warn("date", f"{found}, far in the future", set_it)
    shown = tools.output(root, "timedatectl", "show", "--property=NTPSynchronized", "--property=NTP") or ""
    if "NTPSynchronized=yes" in shown:
        return ok("date", f"{found}, synchronized")
    if "NTPSynchronized=no" in shown:
        why = (
            "allow its server in the firewall" if "NTP=yes" in shown.split() else "run `sudo timedatectl set-ntp true`"
        )
        return warn("date", f"{found}, not synchronized", f"{why}: TLS refuses certificates if the clock drifts far")
    return ok("date", found)


class Process(NamedTuple):
    """A process, its name as the kernel shows it, and its processor time in clock ticks."""

    pid: int
    name: str
    ticks: int


def load(root: Path = machine.ROOT, pause: Callable[[], object] = lambda: time.sleep(_PAUSE_S)) -> Check:
    """Whether another program takes the cores. Looks at the processes before and after ``pause``."""
    first = re.match(r"(\d+\.\d+) ", _text(root / "proc/loadavg"))
    if first is None:
        return ok("load", "unknown on this system")
    cores = machine.usable_threads(root)
    found = f"{first[1]} on {cores} cores in the last minute"
    busiest = _busiest(root, pause)
    if busiest is None:
        return ok("load", found)
    process, used = busiest
    found += f"; busiest: {process.name} (pid {process.pid}) with {used:.1f} cores"
    if process.name == _AGENT or used < _BUSY_CORES or float(first[1]) < cores / 2:
        return ok("load", found)
    return warn("load", found, f"stop {process.name} or give it fewer cores: heads wait for the slowest thread")


def _busiest(root: Path, pause: Callable[[], object]) -> tuple[Process, float] | None:
    """The process that uses most processor time during ``pause`` apart from this one, and its cores."""
    before, began = {one.pid: one for one in _processes(root)}, time.monotonic()
    pause()
    seconds = max(time.monotonic() - began, _PAUSE_S)
    used = [(one.ticks - before[one.pid].ticks, one) for one in _processes(root) if one.pid in before]
    ticks, process = max(used, default=(0, None), key=lambda pair: pair[0])
    return (process, ticks / os.sysconf("SC_CLK_TCK") / seconds) if process is not None and ticks > 0 else None


def _processes(root: Path) -> list[Process]:
    found = (parse_stat(_text(path)) for path in (root / "proc").glob("[0-9]*/stat"))
    return [one for one in found if one is not None and one.pid != os.getpid()]


def parse_stat(text: str) -> Process | None:
    """The process of a line of /proc/PID/stat; None if it is not valid. A name may hold spaces and brackets."""
    begin, _, end = text.rpartition(")")
    pid, _, name = begin.partition(" (")
    fields = end.split()
    if not pid.isdecimal() or len(fields) < 13 or not all(re.fullmatch(r"\d{1,20}", field) for field in fields[11:13]):
        return None
    return Process(int(pid), "".join(c for c in name if c.isprintable()), int(fields[11]) + int(fields[12]))


def _installed() -> datetime:
    return datetime.fromtimestamp(Path(splitedge.__file__).stat().st_mtime, UTC)


def _kernel(root: Path) -> str:
    """The kernel's architecture: that of a 32-bit process may be hidden by its personality."""
    return _text(root / "proc/sys/kernel/arch").strip() or (python_platform.machine() if root == machine.ROOT else "")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError:
        return b""


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
