"""What a result says of the machine and the program."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import splitedge
from device_profiles import machine
from device_profiles.schema import Condition
from edge_agent.bench.results import SCHEMA_VERSION, Method, Result, Row

_ROOT = Path(splitedge.__file__).parents[1]
#: What the kernel shows in the files of a machine that emulates another.
_EMULATOR = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")


def result(before: Condition, after: Condition, method: Method, rows: list[Row]) -> Result:
    """The result of a measurement with the ``rows``."""
    from kernels import isa

    return Result(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        splitedge=splitedge.__version__,
        commit=commit(),
        machine=machine.machine(isa.ISA)[0],
        governor=", ".join(machine.governors()),
        emulated=emulated(),
        before=before,
        after=after,
        method=method,
        rows=rows,
    )


def commit(root: Path = _ROOT) -> str:
    """The commit of the checkout in ``root``; empty elsewhere."""
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()[:40] if done.returncode == 0 else ""


def emulated() -> bool:
    """Whether another processor emulates this one, so that times mean nothing."""
    if platform.machine() != "aarch64":
        return False
    x86 = "vendor_id" in Path("/proc/cpuinfo").read_text("utf-8", "replace")
    return x86 or _EMULATOR.exists()
