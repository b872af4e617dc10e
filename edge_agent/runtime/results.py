"""What a frame's caller gets, and the counts of how every frame ended."""

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
    """One class of an answer.

    ``label`` is the index as text if the model has no labels. For an output of kind "scores", ``probability`` is the
    class's own score.
    """

    index: int
    label: str
    probability: float


class Timing(msgspec.Struct):
    """Where a frame's time went, in milliseconds. ``total_ms`` is the sum of the others.

    ``wait_ms`` is the time in the agent's own queue. ``link_ms`` is the time from handing the payload to the link until
    the answer is there, without ``queue_ms`` and ``tail_ms``, which the server reports.
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
    """The answer to one frame.

    ``top`` holds its best classes, none if the model's output is a tensor. ``output`` is the whole output of a tensor,
    or with `topk` 0: float32, or int64 for indices, in ONNX order without the batch axis. ``kind`` says what the
    output's values are: see `splitedge.protocol.messages.Output`.

    ``payload_bytes`` were sent, header included, encoded at ``bits`` by number ``rung`` of the plan's ladder; all 0 or
    None in mode "device".

    ``cached``: the frame reuses an earlier frame's answer and was not sent, which saved ``saved_bytes``. ``distance``:
    from the frame whose answer was kept, see `edge_agent.runtime.answer_reuse`; None if there was none.
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
    """Each frame ends in exactly one of ``answered``, ``reused`` (an earlier frame's answer), ``dropped`` (by reason)
    and ``failed`` (by error code).
    """

    def __init__(self) -> None:
        self.answered = self.reused = 0
        self.dropped: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.payload_bytes = self.saved_bytes = 0
        self.latency = [0] * (len(BUCKETS) + 1)
        self.latency_sum_s = 0.0
        self.phase_sum_s: defaultdict[str, float] = defaultdict(float)

    @property
    def total(self) -> int:
        """Frames that have ended."""
        return self.served + self.dropped.total() + self.failed.total()

    @property
    def served(self) -> int:
        """Frames with an answer."""
        return self.answered + self.reused

    def count_error(self, error: errors.SplitEdgeError) -> None:
        """Count a frame that ended in ``error``: dropped if it aged out or the queue was full, else failed."""
        if isinstance(error, errors.AgedError):
            self.dropped["aged"] += 1
        elif isinstance(error, errors.BusyError):
            self.dropped["queue_full"] += 1
        else:
            self.failed[error.code] += 1

    @contextmanager
    def counting_errors(self) -> Iterator[None]:
        """Count a frame whose block ends in an exception of any kind."""
        try:
            yield
        except errors.SplitEdgeError as error:
            self.count_error(error)
            raise
        except asyncio.CancelledError:
            self.dropped["cancelled"] += 1
            raise
        except BaseException:
            self.failed["internal"] += 1
            raise

    def count_answer(self, result: Result) -> None:
        """Count a frame that ended in ``result``."""
        self.answered += not result.cached
        self.reused += result.cached
        self.payload_bytes += result.payload_bytes
        self.saved_bytes += result.saved_bytes
        seconds = result.timing.total_ms / 1e3
        self.latency[next((i for i, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))] += 1
        self.latency_sum_s += seconds
        for phase, value in phases(result.timing):
            self.phase_sum_s[phase] += value / 1e3


def phases(timing: Timing) -> list[tuple[str, float]]:
    """The phases of ``timing`` in the order of a frame's way, with their milliseconds, without the total."""
    fields = msgspec.structs.asdict(timing)
    return [(name.removesuffix("_ms"), value) for name, value in fields.items() if name != "total_ms"]


def top_classes(pairs: Iterable[tuple[int, float]], labels: Sequence[str]) -> list[TopClass]:
    """(class, probability) pairs with their labels."""
    return [TopClass(i, labels[i] if 0 <= i < len(labels) else str(i), float(p)) for i, p in pairs]


def to_json(result: Result, **extra: Any) -> bytes:
    """One line of JSON: ``extra`` first, then the fields of ``result``, its output as nested lists or null."""
    fields = msgspec.structs.asdict(result)
    output = None if result.output is None else result.output.tolist()
    return msgspec.json.encode(extra | fields | {"output": output})


def from_json(data: bytes) -> Result:
    """The result in ``data``, which `to_json` wrote; unknown fields are ignored. Raises `errors.ProtocolError`."""
    try:
        fields = {k: v for k, v in msgspec.json.decode(data).items() if k in Result.__struct_fields__}
        fields["top"] = msgspec.convert(fields["top"], list[TopClass])
        fields["timing"] = msgspec.convert(fields["timing"], Timing)
        fields["output"] = None if fields["output"] is None else _array(fields["output"])
        return Result(**fields)
    except (msgspec.MsgspecError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise errors.ProtocolError(
            "the agent on this machine gave an answer that is none; upgrade it, or pass --own",
            reason="malformed-answer",
        ) from error


def _array(nested: list[Any]) -> NDArray[np.float32] | NDArray[np.int64]:
    """The whole output as `to_json` lists it: integers are indices, the JSON of float32 values is exact."""
    import numpy as np

    found = np.asarray(nested)
    return found if found.dtype == np.int64 else found.astype(np.float32)
