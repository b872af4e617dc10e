"""A process that runs one configuration: `python -m edge_agent.bench.worker`.

The first line of standard input is a `Job`, each further line a `Turn`; the process answers each with one line of JSON
on standard output and ends with its input. What a runtime prints goes to standard error. So a runtime that crashes ends
only its own process, and its memory is its own.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from splitedge.errors import SplitEdgeError
from splitedge.protocol.messages import Preprocess

#: Environment variable: per cent by which each run is prolonged, to test comparisons.
HANDICAP: Final = "SPLITEDGE_BENCH_HANDICAP"


class Job(msgspec.Struct):
    """What to load."""

    file: str
    backend: str
    threads: int
    shape: list[int] | None = None  # of the first input


class Turn(msgspec.Struct):
    """What to do next: one of these.

    ``run``: this many runs, after one that is not timed. ``frames``: a .npy file of frames [n, ...]; their outputs go
    to the .npy file ``outputs``. ``operators``: time each operator over this many runs. ``spin``: run for so many
    seconds.
    """

    run: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    frames: str = ""
    outputs: str = ""
    operators: int = 0
    spin: float = 0.0


class Ready(msgspec.Struct):
    """The phases before the steady state: milliseconds to import the runtime, to load the model, and of the first run.

    ``memory``: MiB that the process has more than before the import. ``shape``: of the first input.
    """

    import_ms: float
    init_ms: float
    first_ms: float
    memory_mib: float
    precision: str
    version: str
    shape: list[int]
    preprocess: Preprocess | None


class Answer(msgspec.Struct):
    """The result of a turn, or ``error``: why there is none."""

    error: str = ""
    ready: Ready | None = None
    ms: list[float] = []
    operators: list[tuple[str, str, float]] = []  # name, kind, median microseconds
    memory_mib: float = 0.0
    peak_mib: float = 0.0


def main() -> None:
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: Answer) -> None:
        answers.write(msgspec.json.encode(answer).decode() + "\n")
        answers.flush()

    try:
        worker = Worker(msgspec.json.decode(sys.stdin.readline(), type=Job))
        say(Answer(ready=worker.ready))
        for line in sys.stdin:
            say(worker.turn(msgspec.json.decode(line, type=Turn)))
    except SplitEdgeError as error:
        say(Answer(error=error.message))
    except Exception as error:  # runtimes raise many types
        text = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        say(Answer(error=f"{type(error).__name__}: {text[:300]}"))


class Worker:
    """A loaded model and its input."""

    def __init__(self, job: Job) -> None:
        before = memory_mib()[0]
        began = time.perf_counter()
        from edge_agent import backends
        from edge_agent.bench import feed

        backend = backends.find(job.backend)
        if reason := backend.missing():
            raise SplitEdgeError(reason)
        backend.prepare()
        imported = time.perf_counter()
        self._feed = feed
        self._model = backend.load(Path(job.file), job.threads)
        self._ports = feed.resolved(self._model.ports, job.shape)
        self._model.put(feed.noise(self._ports))
        loaded = time.perf_counter()
        self._model.run()
        first = time.perf_counter()
        self._before = before
        self._prolonged = 1 + float(os.environ.get(HANDICAP, "0")) / 100
        self.ready = Ready(
            import_ms=1e3 * (imported - began),
            init_ms=1e3 * (loaded - imported),
            first_ms=1e3 * (first - loaded),
            memory_mib=memory_mib()[0] - before,
            precision=self._model.precision,
            version=backend.version(),
            shape=list(self._ports[0].shape),
            preprocess=self._model.preprocess,
        )

    def turn(self, turn: Turn) -> Answer:
        answer = Answer()
        if turn.frames:
            self._frames(Path(turn.frames), Path(turn.outputs))
        elif turn.operators:
            answer.operators = [(one.name, one.kind, one.us) for one in self._model.operators(turn.operators)]
        elif turn.spin:
            end = time.perf_counter() + turn.spin
            answer.ms = [self._timed()]
            while time.perf_counter() < end:
                answer.ms.append(self._timed())
        else:
            self._model.run()
            answer.ms = [self._timed() for _ in range(turn.run)]
        now, peak = memory_mib()
        answer.memory_mib, answer.peak_mib = now - self._before, peak - self._before
        return answer

    def _timed(self) -> float:
        """The milliseconds of a run."""
        start = time.perf_counter()
        self._model.run()
        end = start + (time.perf_counter() - start) * self._prolonged
        while self._prolonged > 1 and time.perf_counter() < end:
            pass
        return 1e3 * (time.perf_counter() - start)

    def _frames(self, frames: Path, outputs: Path) -> None:
        import numpy as np

        found = []
        for values in np.load(frames, allow_pickle=False):
            self._model.put(self._feed.frame(self._ports, values))
            self._model.run()
            found.append(self._model.output().copy())
        self._model.put(self._feed.noise(self._ports))
        np.save(outputs, np.stack(found), allow_pickle=False)


def memory_mib() -> tuple[float, float]:
    """The resident memory of this process now and at most, in MiB."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    kib = {
        name: float(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if name[:2] == "Vm"
    }
    return kib.get("VmRSS", 0.0) / 1024, kib.get("VmHWM", 0.0) / 1024


if __name__ == "__main__":
    main()
