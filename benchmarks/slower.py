"""Slow down a core of this machine: a process with real-time priority takes it for some milliseconds at a time.

A program on the core then runs on a device that is slower in all respects (Python, kernels, codec, sockets), and its
profile measures it so. A quota of processor time does not work: short work within the quota runs at full speed, and
longer work waits for the next period.

The length of the free slices determines how steady the speed is. In a virtual machine, to release the core and take it
again costs the work 25 microseconds, in some minutes 45, and more while a neighbour of the host empties the caches. The
table shows work that should be 10 times slower: least, quartiles and greatest of rounds of 0.25 s, in turn over three
minutes. A row gives the free slice in microseconds, and the basis of the time that the process takes:

    50, the measured sleep            EfficientNet-Lite0   18.5 18.9 20.3 22.5 85
                                      JPEG                 17.1 19.4 20.8 24.0 57
                                      Python               15.1 15.9 16.4 17.8 40
    150, the same                     EfficientNet-Lite0   13.3 13.7 14.0 14.7 21
                                      JPEG                 12.1 13.1 14.2 16.1 19
                                      Python               11.0 11.4 11.8 12.0 14
    200, the requested sleep          EfficientNet-Lite0   11.5 11.8 12.1 12.4 15
                                      JPEG                 10.0 10.4 11.1 11.6 25
                                      Python                9.7 10.1 10.3 10.5 16
    500, the same                     EfficientNet-Lite0   10.9 11.6 12.1 13.0 15
                                      JPEG                 10.2 10.7 11.8 13.5 17
                                      Python                9.3  9.6  9.9 10.3 12
    quota of 1 ms in 10               EfficientNet-Lite0   10.6 11.0 11.4 12.0 13
                                      JPEG                 10.7 11.6 13.0 15.1 24
                                      Python                9.2 10.1 12.2 15.4 21

The same process in C took as much time as this one. Timer slack has no effect at real-time priority, and the kernel
does not bind SCHED_DEADLINE tasks to a core. With longer slices, work waits longer for the core when an answer wakes
it. Any other program on the core would take half of the free time, so prefix the measured command with `PREFIX`.
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

#: Free slice. The timer fires 15 us late, about the cost for the work to start and stop.
_SLICE_S = 2e-4
MOST = 12.0  # Linux leaves other processes at least a twentieth of a core
#: The highest priority of ordinary processes: others on the core get a ninetieth of its time.
PREFIX = ("nice", "-n", "-20")


@contextmanager
def slower(core: int, times: float) -> Iterator[None]:
    """Make ``core`` ``times`` (1 to `MOST`) slower for all but real-time processes. Needs root."""
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
    """Take ``TIMES`` - 1 parts of ``CORE`` for each free part, until standard input ends."""
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
