"""Published measurements on Arm boards: who measured what with which program, and the facts of each board.

`boards.json` holds the sources with their licences, and the boards; a board with two kinds of cores has an entry for
each. `measurements.csv` has a row for each figure.
"""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from benchmarks.published import networks

FOLDER: Final = Path(__file__).parent
Core = Literal[
    "cortex-a53", "cortex-a55", "cortex-a57", "cortex-a72", "cortex-a73", "cortex-a76", "cortex-a78ae", "neoverse-n2"
]
Precision = Literal["int8", "fp16", "fp32"]
Runtime = Literal["ncnn", "tflite", "xnnpack", "armnn", "onnxruntime", "openvino", "splitedge"]
#: ``measured``: a time that somebody measured. ``target``: a setting of an MLPerf run. ``converted``: from frames a
#: second that include more than the network, or with unknown precision.
Mark = Literal["measured", "target", "converted"]
#: Networks that `networks` does not describe, whose figures are shown without a prediction.
OTHERS: Final = ("ssd_mobilenet_v2_300", "yolo11n_640")

Text = Annotated[str, Meta(min_length=1, max_length=300)]
Count = Annotated[int, Meta(ge=0, le=1 << 20)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: Text
    address: Annotated[str, Meta(pattern="^https://")]
    licence: Text


class Board(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A board, or one kind of its cores. ``board``: its name, the same for all its kinds.

    ``l2_kib``: of one core, or of a cluster where it is shared. ``l3_kib``: the largest shared cache; 0: none.
    ``copy_gbps``: rate of a memory copy of one core, bytes read plus written.
    """

    title: Text
    board: Text
    core: Core
    cores: Annotated[int, Meta(ge=1, le=256)]
    mhz: Positive
    l2_kib: Count
    l3_kib: Count
    copy_gbps: Positive
    copy_source: Text


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Milliseconds ``ms`` of one inference at batch 1. ``year``: of the publication."""

    board: Text
    threads: Annotated[int, Meta(ge=1, le=256)]
    network: Text
    precision: Precision
    runtime: Runtime
    ms: Positive
    mark: Mark
    year: Annotated[int, Meta(ge=2015, le=2100)]
    source: Text


class Published(msgspec.Struct, frozen=True):
    sources: dict[str, Source]
    boards: dict[str, Board]
    rows: tuple[Measurement, ...]

    @property
    def compared(self) -> tuple[Measurement, ...]:
        """The measured rows of networks whose layers are known, which the model learns from."""
        return tuple(row for row in self.rows if row.mark == "measured" and row.network in networks.NAMES)


class _Facts(msgspec.Struct, forbid_unknown_fields=True):
    sources: dict[str, Source]
    boards: dict[str, Board]


@functools.cache
def load(folder: Path = FOLDER) -> Published:
    """The measurements in ``folder``. Raises `ValueError` for a row that the schema or another file contradicts."""
    facts = msgspec.convert(json.loads((folder / "boards.json").read_text()), _Facts)
    with (folder / "measurements.csv").open(newline="") as file:
        rows = tuple(msgspec.convert(row, Measurement, strict=False) for row in csv.DictReader(file))
    for number, row in enumerate(rows, 2):
        _check(row, facts, f"measurements.csv: line {number}")
    keys = [(row.board, row.threads, row.network, row.precision, row.runtime) for row in rows]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"measurements.csv has two rows of {', '.join(map(str, twice))}: keep one")
    return Published(facts.sources, facts.boards, rows)


def _check(row: Measurement, facts: _Facts, where: str) -> None:
    if row.board not in facts.boards:
        raise ValueError(f"{where}: boards.json has no board {row.board}")
    if row.source not in facts.sources:
        raise ValueError(f"{where}: boards.json has no source {row.source}")
    if row.network not in (*networks.NAMES, *OTHERS):
        raise ValueError(f"{where}: the network {row.network} is unknown; describe it in networks.py")
    if row.runtime == "splitedge":
        raise ValueError(f"{where}: only figures of other programs belong here")
    if row.threads > facts.boards[row.board].cores:
        raise ValueError(f"{where}: {row.threads} threads on {facts.boards[row.board].cores} cores")
