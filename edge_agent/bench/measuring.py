"""Start a worker for each configuration, give all of them turns, and collect their times."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from statistics import fmean
from typing import IO, Final

import msgspec

from edge_agent.bench import statistics
from edge_agent.bench.cases import Case
from edge_agent.bench.results import Memory, Method, OperatorTime, Phases, Row
from edge_agent.bench.worker import Answer, Job, Ready, Turn
from splitedge import limits, terminal
from splitedge.errors import SplitEdgeError

Say = Callable[[str], object]

#: A turn takes about this long, so that it shows the steady state, and changes of the machine hit all alike.
TURN_S: Final = 0.02
MOST_RUNS: Final = 50  # of a turn
OPERATOR_RUNS: Final = 20


class FailedError(SplitEdgeError):
    """Why a worker gave no answer. It becomes a row."""


class Worker:
    """A process that runs one configuration."""

    def __init__(self, case: Case) -> None:
        """Start it and wait until its model is loaded. Raises `FailedError`."""
        assert case.file is not None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  `end` closes it
        self.case = case
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from edge_agent.bench.worker import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        try:
            job = Job(str(case.file.absolute()), case.backend.name, case.threads, case.shape)
            ready = self._ask(msgspec.json.encode(job)).ready
            assert ready is not None
            self.ready: Ready = ready
        except BaseException:
            self.end()
            raise

    def ask(self, **turn: object) -> Answer:
        """Its answer to a `Turn`. Raises `FailedError`."""
        return self._ask(msgspec.json.encode(msgspec.convert(turn, Turn)))

    def _ask(self, line: bytes) -> Answer:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], limits.BENCH_TURN)[0]:
            raise FailedError(f"no answer within {limits.BENCH_TURN:.0f} s")
        said = self.process.stdout.readline()
        if not said:
            raise FailedError(self._why_ended())
        answer = msgspec.json.decode(said, type=Answer)
        if answer.error:
            raise FailedError(answer.error[:300])
        return answer

    def _why_ended(self) -> str:
        status = self.process.wait()
        if status < 0:
            return f"{signal.Signals(-status).name} ended the process"
        self._log.seek(0)
        lines = self._log.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return (lines or [f"the process ended with status {status}"])[-1][:300]

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self._log.close()


@dataclass
class _Collected:
    """What the rounds of a case found."""

    case: Case
    rounds: list[list[float]] = field(default_factory=list)
    ready: list[Ready] = field(default_factory=list)
    memory: Memory | None = None
    operators: list[OperatorTime] = field(default_factory=list)
    failure: str = ""


def measure(cases: Sequence[Case], method: Method, say: Say, *, operators: bool = False) -> list[Row]:
    """A row for each case. Cases of the same model and number of threads take turns.

    ``operators``: also the time of each operator. ``say`` receives status messages.
    """
    rows = []
    for (name, threads), group in groupby(cases, lambda case: (case.model, case.threads)):
        found = [_Collected(case, failure=case.failure) for case in group]
        for number in range(method.rounds):
            say(f"{name}, {terminal.threads(threads)}, round {number + 1} of {method.rounds}")
            _round(found, number, method, operators=operators)
        rows += [_row(one) for one in found]
    return rows


def _round(found: Sequence[_Collected], number: int, method: Method, *, operators: bool) -> None:
    """New processes for all cases that did not fail; they take turns until each has its share of the runs."""
    last = number == method.rounds - 1
    turned = number % len(found)
    with ExitStack() as stack:
        active = []
        for each in [*found[turned:], *found[:turned]]:  # another order in each round
            if not each.failure:
                with _recorded(each):
                    active.append(_Active(each, method, stack))
        while turns := [one for one in active if one.left]:
            for one in turns:
                time.sleep(method.delay_s)
                with _recorded(one.found):
                    one.turn()
        for one in active:
            if last and not one.found.failure:
                with _recorded(one.found):
                    one.finish(operators=operators)


class _Active:
    """A case in a round."""

    def __init__(self, found: _Collected, method: Method, stack: ExitStack) -> None:
        """Start its process. Raises `FailedError`."""
        self.found, self._method = found, method
        self._share = -(-method.repeats // method.rounds)
        self._worker = Worker(found.case)
        stack.callback(self._worker.end)
        found.ready.append(self._worker.ready)
        ms = self._worker.ask(run=max(1, method.warmup)).ms
        self._runs = max(1, min(MOST_RUNS, int(1e3 * TURN_S / max(min(ms), 1e-3))))
        self._times: list[float] = []
        found.rounds.append(self._times)

    @property
    def left(self) -> int:
        """The runs that it still needs; 0 after a failure."""
        late = self._method.most_s and sum(self._times) >= 1e3 * self._method.most_s / self._method.rounds
        return 0 if self.found.failure or late else self._share - len(self._times)

    def turn(self) -> None:
        """Run for about `TURN_S`. Raises `FailedError`."""
        self._times += self._worker.ask(run=min(self._runs, self.left)).ms

    def finish(self, *, operators: bool) -> None:
        """Ask for what is needed once. Raises `FailedError`."""
        last = self._worker.ask(run=1)
        self.found.memory = Memory(last.memory_mib, last.peak_mib)
        if operators:
            with contextlib.suppress(FailedError):  # the runtime does not tell
                told = self._worker.ask(operators=OPERATOR_RUNS).operators
                self.found.operators = [OperatorTime(*each) for each in told]


@contextlib.contextmanager
def _recorded(found: _Collected) -> Iterator[None]:
    """A failure in this block is recorded, and ends only this case."""
    try:
        yield
    except FailedError as error:
        found.failure = error.message


def _row(found: _Collected) -> Row:
    case = found.case
    precision = found.ready[0].precision if found.ready else case.precision
    row = Row(case.model, case.backend.name, precision, case.threads, case.backend.version(), found.failure)
    if not found.failure:
        names = ("import_ms", "init_ms", "first_ms")
        row.phases = Phases(*(fmean(getattr(ready, name) for ready in found.ready) for name in names))
        row.times, row.memory, row.operators = statistics.times(found.rounds), found.memory, found.operators
    return row
