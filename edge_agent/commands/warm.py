"""`edge-agent warm`: compile every kernel that a service may need, so that later starts are fast."""

from __future__ import annotations

import time

from rich.console import Console

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
    steps = kernels.steps()
    compiled = sum(_compile(step) for step in steps)
    seconds = time.monotonic() - started
    if left := kernels.missing():
        raise StoreError(
            f"cannot store {', '.join(left)} in {kernels.folder()}; free some space and run `edge-agent warm` again",
            reason="cannot-keep",
        )
    print(f"{len(steps) - compiled} of {len(steps)} kernels were compiled already, {compiled} now; {seconds:.1f} s")


def _compile(step: kernels.Step) -> bool:
    """Compile ``step`` unless it is stored; returns whether it was compiled."""
    if step.is_kept():
        return False
    started = time.monotonic()
    with Console(stderr=True).status(f"compiling {step.name}"):
        step.compile()
    print(f"  {step.name:24} compiled in {time.monotonic() - started:.1f} s", flush=True)
    return True
