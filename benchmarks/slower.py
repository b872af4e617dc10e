"""A core of this machine that is so many times slower: a process of real-time priority takes it away, for a millisecond at a time.

What runs on the core meanwhile is a slower device in all it does (Python, kernels, codec, sockets), and its own profile measures it as such. A quota
of processor time would not be: a short piece of work within the quota runs at full speed and a longer one waits for the next period.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import reap

_IDLE_S = 5e-5  # what it leaves at a time, or as little more as the timer allows
_LEFT_MOST_S = (
    5e-4  # what was left is paid back no longer: after a pause of the machine the core would be gone for seconds
)
MOST = 12.0  # Linux leaves other processes at least a twentieth of a core


@contextmanager
def slower(core: int, times: float) -> Iterator[None]:
    """While the context lasts, ``core`` is ``times`` (1 to `MOST`) slower for everything but real-time processes. Needs root."""
    if times <= 1:
        yield
        return
    command = [sys.executable, "-m", "benchmarks.slower", str(core), str(min(times, MOST))]
    root = Path(__file__).resolve().parent.parent
    thief = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert thief.stdin is not None
    assert thief.stdout is not None
    try:
        thief.stdout.readline()
        yield
    finally:
        thief.stdin.close()
        reap(thief, patience=10)
        thief.stdout.close()


def main() -> None:
    """Steal ``TIMES`` - 1 parts of ``CORE`` for each part that is left, until standard input ends."""
    core, share = int(sys.argv[1]), float(sys.argv[2]) - 1
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))
    os.set_blocking(sys.stdin.fileno(), False)
    print("ready", flush=True)
    clock, looked = time.perf_counter, 0.0
    while True:
        left = clock()
        time.sleep(_IDLE_S)
        woken = clock()
        owed = share * min(woken - left, _LEFT_MOST_S)
        while clock() - woken < owed:
            pass
        if woken - looked > 0.1:
            looked = woken
            if sys.stdin.buffer.read(1) == b"":
                return


if __name__ == "__main__":
    main()
