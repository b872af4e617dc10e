"""The result of `edge-agent bench`: versioned JSON, which `docs/reference/bench.schema.json` describes.

Names contain units: ``_ms`` milliseconds, ``_mib`` MiB, ``_s`` seconds. None means not measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from device_profiles.schema import Amount, Condition, Machine, Positive, Size, Text
from splitedge import limits
from splitedge.errors import UsageError

SCHEMA_VERSION: Final = 1


class Phases(msgspec.Struct):
    """What precedes the steady state; means over the rounds."""

    import_ms: Amount  # load the runtime
    init_ms: Amount  # load the model
    first_ms: Amount  # the first run


class Times(msgspec.Struct):
    """The steady state: one run with one input. Percentiles are those of single runs, by nearest rank."""

    runs: Size
    mean_ms: Positive
    sd_ms: Amount
    least_ms: Positive
    p50_ms: Positive
    p90_ms: Positive
    p95_ms: Positive
    p99_ms: Positive
    p999_ms: Positive
    per_second: Positive  # 1000 / mean_ms
    rounds_ms: Annotated[list[Positive], Meta(max_length=1000)]  # the fastest run of each round
    single_stream: Text = ""  # which rule of MLPerf's single stream is met: "1,024 queries", "60 s", or none


class Memory(msgspec.Struct):
    """What the process holds more than before it loaded the runtime."""

    resident_mib: float
    peak_mib: float


class Fidelity(msgspec.Struct):
    """The answers to frames against those of the float model."""

    frames: Size
    cosine: Annotated[float, Meta(ge=-1, le=1)]  # the mean over frames
    same_top1_percent: Annotated[float, Meta(ge=0, le=100)]
    top1_percent: Annotated[float, Meta(ge=0, le=100)] | None = None  # right answers, where labels are known


class PowerUse(msgspec.Struct):
    """Power while the configuration runs alone without a pause."""

    sensor: Text
    watts: Amount
    idle_watts: Amount | None
    joules: Amount  # for one run, the idle power included


class OperatorTime(msgspec.Struct):
    """An operator and its median time."""

    name: Text
    kind: Text
    us: Amount


class Sustained(msgspec.Struct):
    """A long run without a pause: runs in each second, and when the system throttled."""

    seconds: Positive
    per_second: Annotated[list[Amount], Meta(max_length=100_000)]
    throttled: Annotated[list[Text], Meta(max_length=100)]  # "63 s: under-voltage"
    first_minute: Amount  # runs a second
    last_minute: Amount


class Row(msgspec.Struct):
    """One configuration. ``failure``: why it has no figures."""

    model: Text
    backend: Text
    precision: Text
    threads: Size
    version: Text = ""  # of the runtime
    failure: Text = ""
    phases: Phases | None = None
    times: Times | None = None
    memory: Memory | None = None
    fidelity: Fidelity | None = None
    power: PowerUse | None = None
    operators: Annotated[list[OperatorTime], Meta(max_length=limits.MAX_OPS)] = []
    sustained: Sustained | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What distinguishes the configuration within a result."""
        return self.model, self.backend, self.precision, self.threads


class Method(msgspec.Struct):
    """How it was measured."""

    repeats: int  # runs of a configuration
    most_s: float  # seconds of runs after which a configuration has fewer; 0: never
    rounds: int  # new processes of a configuration
    delay_s: float  # between two turns
    warmup: int  # runs before the first turn of a process


class Result(msgspec.Struct):
    """The file. ``before`` and ``after``: the condition of the board around the measurement."""

    schema_version: int
    created: Text  # ISO 8601, UTC
    splitedge: Text  # its version
    commit: Text  # of a checkout, or empty
    machine: Machine
    governor: Text
    emulated: bool  # times mean nothing
    before: Condition
    after: Condition
    method: Method
    rows: Annotated[list[Row], Meta(max_length=10_000)]


def anonymous(result: Result) -> Result:
    """``result`` without what may tell more than the board and the figures: times of day, commits, texts of errors."""
    rows = [msgspec.structs.replace(row, failure="failed" if row.failure else "", operators=[]) for row in result.rows]
    return msgspec.structs.replace(result, created=result.created[:10], commit="", rows=rows)


def schema() -> dict[str, Any]:
    """The JSON schema of a result."""
    return msgspec.json.schema(Result) | {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def read(path: Path) -> Result:
    """The result in ``path``. Raises `UsageError` for another file."""
    try:
        size = path.stat().st_size
        if size > limits.MAX_BENCH_BYTES:
            raise UsageError(f"{path} is too large for a result of edge-agent bench", reason="too-large")
        found = msgspec.json.decode(path.read_bytes(), type=Result)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", reason="cannot-read") from error
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{path} is no result of edge-agent bench ({error}); make one with --output json", reason="not-a-result"
        ) from error
    if found.schema_version != SCHEMA_VERSION:
        raise UsageError(
            f"{path} has the schema version {found.schema_version}, and this program reads {SCHEMA_VERSION}; use the "
            "version of splitedge that wrote it",
            reason="schema-version",
        )
    return found
