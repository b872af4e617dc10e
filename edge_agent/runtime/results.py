"""What a frame's caller gets, and the counts of what became of every frame."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from splitedge import errors
from splitedge.protocol.messages import OutputKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Upper bounds of the latency histogram's buckets, in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class TopClass(msgspec.Struct):
    """One class of the answer; ``label`` is the index in words where the model has no labels. ``probability``: the class's own score where the output's
    kind is "scores"."""

    index: int
    label: str
    probability: float


class Timing(msgspec.Struct):
    """Where a frame's time went, in milliseconds; ``total_ms`` is the sum of the others.

    ``wait_ms`` is the time in the agent's own queue, ``link_ms`` everything between handing the payload to the link and having the answer
    that the server does not claim as ``queue_ms`` or ``tail_ms``.
    """

    wait_ms: float = 0.0
    preprocess_ms: float = 0.0
    head_ms: float = 0.0
    encode_ms: float = 0.0
    link_ms: float = 0.0
    queue_ms: float = 0.0
    tail_ms: float = 0.0
    total_ms: float = 0.0


class Result(msgspec.Struct):
    """The answer to one frame: its best classes in ``top``, none where the model's output is a tensor; and the whole ``output`` (float32, or int64 where it
    is indices; ONNX order, no batch axis) of a tensor, or where it was asked for (`topk` 0). ``kind``: what the output's values are, see `splitedge.protocol.messages.Output`.

    ``payload_bytes`` left the device for it, coded at ``bits`` (header included; both 0 in mode "device") by number ``rung``
    of the plan's ladder.

    ``cached``: nothing was sent, for the answer of an earlier frame serves, which took ``saved_bytes``. ``distance``: how far the frame is from the one
    whose answer was kept then, see `edge_agent.runtime.answer_reuse`; None where there was none.
    """

    top: list[TopClass]
    timing: Timing
    payload_bytes: int
    plan: str
    mode: str
    bits: int = 0
    rung: int | None = None
    cached: bool = False
    saved_bytes: int = 0
    distance: float | None = None
    kind: OutputKind = "logits"
    output: NDArray[np.float32] | NDArray[np.int64] | None = None


class Counters:
    """Every frame ends in exactly one of these: ``answered``, ``reused`` (an earlier frame's answer), ``dropped`` (by reason), ``failed`` (by error code)."""

    def __init__(self) -> None:
        self.answered = self.reused = 0
        self.dropped: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.payload_bytes = self.saved_bytes = 0
        self.latency = [0] * (len(BUCKETS) + 1)
        self.latency_sum_s = 0.0
        self.stage_sum_s: defaultdict[str, float] = defaultdict(float)

    @property
    def total(self) -> int:
        """Frames that have ended."""
        return self.served + self.dropped.total() + self.failed.total()

    @property
    def served(self) -> int:
        """Frames whose caller has an answer."""
        return self.answered + self.reused

    def end(self, error: errors.SplitEdgeError) -> None:
        """Count a frame that ended in ``error``: a full queue or its age drop it by policy, everything else is a failure its caller sees."""
        if isinstance(error, errors.AgedError):
            self.dropped["aged"] += 1
        elif isinstance(error, errors.BusyError):
            self.dropped["queue_full"] += 1
        else:
            self.failed[error.code] += 1

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Count a frame that ends within without an answer, whatever ends it."""
        try:
            yield
        except errors.SplitEdgeError as error:
            self.end(error)
            raise
        except asyncio.CancelledError:
            self.dropped["cancelled"] += 1
            raise
        except BaseException:
            self.failed["internal"] += 1
            raise

    def answer(self, result: Result) -> None:
        """Count ``result``."""
        self.answered += not result.cached
        self.reused += result.cached
        self.payload_bytes += result.payload_bytes
        self.saved_bytes += result.saved_bytes
        seconds = result.timing.total_ms / 1e3
        self.latency[next((i for i, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))] += 1
        self.latency_sum_s += seconds
        for stage, value in stages(result.timing):
            self.stage_sum_s[stage] += value / 1e3


def stages(timing: Timing) -> list[tuple[str, float]]:
    """The stages of ``timing`` in the order in which a frame passes them, with their milliseconds, without the total."""
    fields = msgspec.structs.asdict(timing)
    return [(name.removesuffix("_ms"), value) for name, value in fields.items() if name != "total_ms"]


def top_classes(pairs: Iterable[tuple[int, float]], labels: Sequence[str]) -> list[TopClass]:
    """(class, probability) pairs with their labels."""
    return [TopClass(i, labels[i] if 0 <= i < len(labels) else str(i), float(p)) for i, p in pairs]


def to_json(result: Result, **extra: Any) -> bytes:
    """One line of JSON: ``extra`` first, then the fields of ``result``; its output as nested lists, null where there is none."""
    fields = msgspec.structs.asdict(result)
    output = None if result.output is None else result.output.tolist()
    return msgspec.json.encode(extra | fields | {"output": output})
