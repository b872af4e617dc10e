"""`edge-agent warm`: compile every kernel that a service may need, so that no start has to."""

from __future__ import annotations

import time

from rich.console import Console

from kernels import isa, jit
from kernels import warm as kernels
from splitedge.errors import StoreError


def warm() -> None:
    """A line for each kernel that had to be compiled, as it is done, and a summary. Raises `StoreError` where compiled kernels cannot be kept."""
    if jit.CACHE_PROBLEM:
        raise StoreError(jit.advice())
    started = time.monotonic()
    print(f"kernels for {isa.ISA} in {jit.CACHE_DIR}", flush=True)
    steps = kernels.steps()
    compiled = sum(_compile(step) for step in steps)
    seconds = time.monotonic() - started
    if left := kernels.missing():
        raise StoreError(
            f"{', '.join(left)}: compiled, but not kept in {jit.CACHE_DIR}; free space there and run it again"
        )
    there = f"{len(steps) - compiled} of {len(steps)} were there already"
    print(f"{there}; {compiled} compiled; {seconds:.1f} s")


def _compile(step: kernels.Step) -> bool:
    """Whether ``step`` had to be compiled."""
    if step.is_kept():
        return False
    started = time.monotonic()
    with Console(stderr=True).status(f"compiling: {step.name}"):
        step.compile()
    print(f"  {step.name:24} compiled in {time.monotonic() - started:.1f} s", flush=True)
    return True
