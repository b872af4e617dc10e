"""What a long command shows of its progress, and how it ends when it is told to stop."""

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

#: Without a terminal, a phase that goes on says how far it is so often, in seconds.
EVERY_S: Final = 10.0


class Phases:
    """Progress of phases, called with a phase, how much of it is done, and of how much (0: unknown). On a terminal a bar; elsewhere, and in logs, a line for each
    phase, and one every `EVERY_S` seconds with the share done. Everything goes to standard error."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # elsewhere than on a terminal, the end of a bar is an empty line
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._phase, self._start, self._told = "", clock(), clock()

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
        if self._bar is not None:
            if phase not in self._tasks:
                self._tasks[phase] = self._bar.add_task(phase, total=total or None)
            self._bar.update(self._tasks[phase], completed=done, total=total or None)
            return
        now = self._clock()
        if phase == self._phase and now - self._told < EVERY_S:
            return
        share = f": {100 * done // total} %" if total and phase == self._phase else ""
        self._phase, self._told = phase, now
        print(f"edge-server: [{now - self._start:.0f} s] {phase}{share}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"edge-server: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def stopped_in_order() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the block as an error does, so that nothing unfinished stays, with one sentence and the exit status 128 + signal."""

    def stop(number: int, _: FrameType | None) -> None:
        raise _Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except _Stopped as stopped:
        print("edge-server: stopped; the same command goes on with what is calculated so far", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class _Stopped(BaseException):
    """No `Exception`: what catches all errors of a library must not swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
