"""Progress of a long command, and its orderly end on a signal."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

#: Seconds between two lines about the same phase, without a terminal.
EVERY_S: Final = 10.0
#: Share of the estimate that the pace so far must outweigh.
PRIOR: Final = 0.1
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
    "tails": "timing the rest of the model",
    "patterns": "allocating bits",
}


class Phases:
    """Progress on standard error, called with a phase, the amount done, and the total (0: unknown).

    `expect` announces the work. From then on one bar shows all phases together, with the time left. Without a terminal
    there is a line for each phase, and one every `EVERY_S` seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
        # without a terminal, rich prints an empty line at the end of a bar
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = None if self._bar is None else self._bar.add_task("", total=None, left="")
        self._phase, self._start, self._printed = "", clock(), clock()
        self._work = Work({}, clock())

    def __enter__(self) -> Phases:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Announce the phases to come, in order, with their estimated ``seconds``."""
        self._work = Work(seconds, self._clock())

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = self._clock()
        self._work.done(phase, done / total if total else 0.0)
        phase = WORDS.get(phase, phase)
        if self._bar is not None and self._task is not None:
            share, left = self._work.share, self._work.left(now)
            shown = "" if left is None else f"{100 * share:.0f} %, {duration(left)} left"
            whole = None if left is None else 1.0
            self._bar.update(self._task, description=phase, completed=share, total=whole, left=shown)
            return
        if phase == self._phase and now - self._printed < EVERY_S:
            return
        self._phase, self._printed = phase, now
        left = self._work.left(now)
        text = "" if left is None else f": {100 * self._work.share:.0f} %, {duration(left)} left"
        print(f"edge-server: [{now - self._start:.0f} s] {phase}{text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"edge-server: {text}", file=sys.stderr, flush=True)


class Work:
    """The share of a long work that is done, and the seconds left.

    ``seconds``: the estimate of each phase, in order; empty if there is none. ``start``: when the work starts. The pace
    so far corrects the estimate. It counts little at the beginning.
    """

    def __init__(self, seconds: Mapping[str, float], start: float) -> None:
        self._seconds, self._start = dict(seconds), start
        self._total, self._done = sum(seconds.values()), 0.0

    def done(self, phase: str, share: float) -> None:
        """The ``share`` (0 to 1) of ``phase`` is done, and so are all phases before it. Unknown phases change nothing."""
        if phase in self._seconds:
            names = list(self._seconds)
            before = sum(self._seconds[name] for name in names[: names.index(phase)])
            self._done = max(self._done, before + min(share, 1.0) * self._seconds[phase])

    @property
    def share(self) -> float:
        """The share that is done, 0 to 1."""
        return self._done / self._total if self._total else 0.0

    def left(self, now: float) -> float | None:
        """Seconds left at ``now``; None without an estimate."""
        if not self._total:
            return None
        trust = PRIOR * self._total
        pace = (now - self._start + trust) / (self._done + trust)
        return pace * (self._total - self._done)


def duration(seconds: float) -> str:
    """``seconds`` for people: 8 s, 40 s, 3 min, 1.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


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
