"""How a process that a benchmark began ends."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.processes import reap


def begun(code: str) -> subprocess.Popen[bytes]:
    """A process that has begun to run ``code``."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == b"here\n"
    return process


def test_a_process_that_ends_when_told_is_waited_for() -> None:
    process = begun(
        "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('here', flush=True); signal.pause()"
    )
    process.terminate()
    reap(process)
    assert process.returncode == 7


def test_a_process_that_does_not_end_is_killed() -> None:
    process = begun("import signal; signal.signal(15, signal.SIG_IGN); print('here', flush=True); signal.pause()")
    process.terminate()
    reap(process, patience=0.1)
    assert process.returncode == -9
