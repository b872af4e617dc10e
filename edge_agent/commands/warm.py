"""`edge-agent warm`: compile every kernel that a service may need, so that later starts are fast."""

from __future__ import annotations

import os
import time

from rich.console import Console

from device_profiles import machine
from kernels import isa, native
from kernels import warm as kernels
from splitedge.errors import StoreError


def warm() -> None:
    """Print a line for each kernel as it is compiled, and a summary.

    Raises `StoreError` if compiled kernels cannot be stored.
    """
    if native.LIBRARY is not None:
        print(f"the kernels for {isa.ISA} are in the package; nothing to compile")
        return
    if kernels.problem():
        raise StoreError(kernels.advice())
    started = time.monotonic()
    print(f"kernels for {isa.ISA} in {kernels.folder()}", flush=True)
    with Console(stderr=True).status("compiling kernels"):
        compiled = kernels.compile_missing(_jobs(), _report)
    seconds = time.monotonic() - started
    if left := kernels.missing():
        raise StoreError(
            f"cannot store {', '.join(left)} in {kernels.folder()}; free some space and run `edge-agent warm` again",
            reason="cannot-keep",
        )
    kept = len(kernels.steps()) - compiled
    print(f"{kept} of {kept + compiled} kernels were compiled already, {compiled} now; {seconds:.1f} s")


def _jobs() -> int:
    """Processes that compile: one for each core, as far as half of the available memory allows."""
    return max(1, min(len(os.sched_getaffinity(0)), machine.memory().available // 2 // kernels.JOB_BYTES))


def _report(name: str, seconds: float) -> None:
    print(f"  {name:24} compiled in {seconds:.1f} s", flush=True)
