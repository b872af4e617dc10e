"""A core of this machine that is so many times slower: a process of real-time priority takes it away, for some milliseconds at a time.

What runs on the core meanwhile is a slower device in all it does (Python, kernels, codec, sockets), and its own profile measures it as such. A quota
of processor time would not be: a short piece of work within the quota runs at full speed and a longer one waits for the next period.

How long the core is left at a time is a matter of how steady it is. In a virtual machine to give the core back and to take it again costs the work 25
microseconds, in some minutes 45, and more while a neighbour of the host empties the caches. Work that should be 10 times slower, by the slices that it got
(least, quartiles and greatest of rounds of 0.25 s, in turn over three minutes; microseconds left at a time, and what the time to take is a multiple of):

    50, of the time the sleep took      EfficientNet-Lite0   18.5 18.9 20.3 22.5 85   JPEG   17.1 19.4 20.8 24.0 57   Python   15.1 15.9 16.4 17.8 40
    150, the same                                            13.3 13.7 14.0 14.7 21          12.1 13.1 14.2 16.1 19            11.0 11.4 11.8 12.0 14
    200, of the time that was asked for                      11.5 11.8 12.1 12.4 15          10.0 10.4 11.1 11.6 25             9.7 10.1 10.3 10.5 16
    500, the same                                            10.9 11.6 12.1 13.0 15          10.2 10.7 11.8 13.5 17             9.3  9.6  9.9 10.3 12
    quota of 1 ms in 10                                      10.6 11.0 11.4 12.0 13          10.7 11.6 13.0 15.1 24             9.2 10.1 12.2 15.4 21

A thief in C took the same as this one, timer slack changes nothing for real-time priority, and the kernel lets no SCHED_DEADLINE task be bound to a core.
With longer slices work waits longer for the core when an answer wakes it. Anything else on the core would take half of what is left: `PREFIX` begins the
command of what is measured.
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

_SLICE_S = 2e-4  # what it leaves at a time; the timer comes 15 us later, about what it costs the work to begin and end
MOST = 12.0  # Linux leaves other processes at least a twentieth of a core
#: The highest priority of ordinary processes: what else is on the core gets a ninetieth.
PREFIX = ("nice", "-n", "-20")


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
    clock, looked, owed = time.perf_counter, 0.0, share * _SLICE_S
    while True:
        time.sleep(_SLICE_S)
        woken = clock()
        while clock() - woken < owed:
            pass
        if woken - looked > 0.1:
            looked = woken
            if sys.stdin.buffer.read(1) == b"":
                return


if __name__ == "__main__":
    main()
