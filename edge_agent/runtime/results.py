"""What a frame's caller gets, and the counts of how every frame ended."""

from __future__ import annotations

import asyncio
import base64
import io
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

    from splitedge.tasks.detection import Boxes

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


class Box(msgspec.Struct):
    """One box of a detector's answer, in pixels of the caller's image.

    ``points``: x and y of its key points. Coordinates may lie outside of the image.
    """

    index: int
    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float
    points: list[tuple[float, float]] = []


class Region(msgspec.Struct):
    """A class of a segmenter's map, and its share of the pixels, 0 to 1."""

    index: int
    label: str
    share: float


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

    ``top`` holds its best classes, none if the model's output is a tensor. ``output`` is the whole output of a tensor
    without a task, or with `topk` 0: float32, or int64 for indices, in ONNX order without the batch axis. ``outputs``
    are the same values by name for a model with several outputs, which has no ``output``. ``kind`` says what the
    output's values are: see `splitedge.protocol.messages.Output`.

    ``task``: "detection", "segmentation" or "". A detector's answer has ``boxes``, best first. A segmenter's has
    ``map``, the class of each pixel of the model's input, and ``regions``, its classes, largest first.
    ``placement``: left, top, width and height of the model's input over the caller's image, in pixels.

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
    outputs: dict[str, NDArray[np.float32]] = {}
    task: str = ""
    boxes: list[Box] = []
    regions: list[Region] = []
    map: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    placement: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


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
    return [TopClass(i, _label(i, labels), float(p)) for i, p in pairs]


def placed_boxes(found: Boxes, labels: Sequence[str], place: Sequence[float]) -> list[Box]:
    """``found``, whose coordinates are relative to the model's input, over an image as `Result.placement` says."""
    left, top, width, height = place

    def placed(x: float, y: float) -> tuple[float, float]:
        return left + width * x, top + height * y

    boxes = []
    for i, index in enumerate(found.classes.tolist()):
        x0, y0, x1, y1 = found.corners[i].tolist()
        points = [placed(x, y) for x, y in found.points[i].tolist()]
        score, label = float(found.scores[i]), _label(index, labels)
        boxes.append(Box(index, label, score, *placed(x0, y0), *placed(x1, y1), points))
    return boxes


def regions(shares: Iterable[tuple[int, float]], labels: Sequence[str]) -> list[Region]:
    """(class, share) pairs with their labels."""
    return [Region(i, _label(i, labels), share) for i, share in shares]


def _label(index: int, labels: Sequence[str]) -> str:
    return labels[index] if 0 <= index < len(labels) else str(index)


def to_json(result: Result, **extra: Any) -> bytes:
    """One line of JSON: ``extra`` first, then the fields of ``result``.

    Its outputs are nested lists or null. Its map is a grey PNG image in base64, whose pixels are the classes.
    """
    fields = msgspec.structs.asdict(result)
    outputs = {name: values.tolist() for name, values in result.outputs.items()}
    fields |= {"output": None if result.output is None else result.output.tolist(), "outputs": outputs}
    fields["map"] = None if result.map is None else base64.b64encode(png(result.map)).decode()
    return msgspec.json.encode(extra | fields)


def png(found: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """The map ``found`` as a grey PNG image whose pixels are the classes."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(found).save(file, "PNG")
    return file.getvalue()


def from_json(data: bytes) -> Result:
    """The result in ``data``, which `to_json` wrote; unknown fields are ignored. Raises `errors.ProtocolError`."""
    try:
        fields = {k: v for k, v in msgspec.json.decode(data).items() if k in Result.__struct_fields__}
        fields["top"] = msgspec.convert(fields["top"], list[TopClass])
        fields["timing"] = msgspec.convert(fields["timing"], Timing)
        fields["output"] = None if fields["output"] is None else _array(fields["output"])
        fields["outputs"] = {name: _array(values) for name, values in fields.get("outputs", {}).items()}
        fields["boxes"] = msgspec.convert(fields.get("boxes", []), list[Box])
        fields["regions"] = msgspec.convert(fields.get("regions", []), list[Region])
        fields["placement"] = tuple(fields.get("placement", (0.0, 0.0, 1.0, 1.0)))
        fields["map"] = None if fields.get("map") is None else _map(fields["map"])
        return Result(**fields)
    except (msgspec.MsgspecError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise errors.ProtocolError(
            "the agent on this machine gave an answer that is none; upgrade it, or pass --own",
            reason="malformed-answer",
        ) from error


def _map(text: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The map as `to_json` writes it."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as image:
        return np.array(image, np.uint8) if image.mode == "L" else np.array(image, np.uint16)


def _array(nested: list[Any]) -> NDArray[np.float32] | NDArray[np.int64]:
    """The whole output as `to_json` lists it: integers are indices, the JSON of float32 values is exact."""
    import numpy as np

    found = np.asarray(nested)
    return found if found.dtype == np.int64 else found.astype(np.float32)
