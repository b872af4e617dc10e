"""Progress of a long command, and its orderly end on a signal."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

#: Seconds between two lines about the same phase, without a terminal.
EVERY_S: Final = 10.0
#: The phases of calibration in words.
WORDS: Final = {
    "first look": "checking the float model on some samples",
    "observe": "measuring activation ranges",
    "moments": "collecting layer inputs for weight rounding",
    "rounding": "rounding weights",
    "answers": "running the float model",
    "histograms": "collecting activation histograms",
    "codecs of cuts": "fitting codecs",
    "noise of cuts": "measuring the noise of codecs",
    "sensitivity of layers": "measuring the sensitivity of layers",
    "sensitivity of cuts": "measuring the sensitivity of cuts",
    "trials": "testing quantized models",
    "segments": "writing segments",
    "patterns": "allocating bits",
}


class Phases:
    """Progress on standard error, called with a phase, the amount done, and the total (0: unknown).

    On a terminal a bar; elsewhere a line for each phase, and one every `EVERY_S` seconds with the share done.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # without a terminal, rich prints an empty line at the end of a bar
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._phase, self._start, self._printed = "", clock(), clock()

    def __enter__(self) -> Phases:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        phase = WORDS.get(phase, phase)
        if self._bar is not None:
            if phase not in self._tasks:
                self._tasks[phase] = self._bar.add_task(phase, total=total or None)
            self._bar.update(self._tasks[phase], completed=done, total=total or None)
            return
        now = self._clock()
        if phase == self._phase and now - self._printed < EVERY_S:
            return
        share = f": {100 * done // total} %" if total and phase == self._phase else ""
        self._phase, self._printed = phase, now
        print(f"edge-server: [{now - self._start:.0f} s] {phase}{share}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"edge-server: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def stopped_in_order() -> Iterator[None]:
    """SIGTERM and Ctrl-C raise in the block, so that it removes unfinished files; then print one sentence and exit
    with 128 + signal.
    """

    def stop(number: int, _: FrameType | None) -> None:
        raise _Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except _Stopped as stopped:
        print("edge-server: stopped; the same command continues from the results so far", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class _Stopped(BaseException):
    """Not an `Exception`, so that no ``except Exception`` in a library catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
