"""The time of each backend of `edge_agent.backends` on the reference network, each in a process of its own.

`calibration.export.reference` makes the files. Plans use our kernels; the times say where another backend is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import edge_agent
from device_profiles.schema import BackendTime
from edge_agent.backends import here
from edge_agent.bench import measuring
from edge_agent.bench.cases import Case
from edge_agent.bench.results import Method

FILES: Final = Path(edge_agent.__file__).parent / "backends/reference"
#: One process each, since its start takes seconds on a board; turns of 20 ms share the drift of the machine.
_METHOD: Final = Method(repeats=300, most_s=1.0, rounds=1, delay_s=0.0, warmup=3)


def times(threads: int, say: Callable[[str], object]) -> list[BackendTime]:
    """A row for each backend that is installed. One that fails is a row with its reason."""
    files = sorted(path for path in FILES.iterdir() if path.is_file())
    todo = [
        Case("reference network", one, threads, path) for one in here() for path in files if path.suffix in one.suffixes
    ]
    rows = measuring.measure(todo, _METHOD, say)
    return [
        BackendTime(row.backend, row.version, row.threads, row.times.p50_ms if row.times else None, row.failure)
        for row in rows
    ]
