"""The documents and control messages of the protocol, as typed values. `encode` and `decode` convert them to and from
JSON.

Units: times in milliseconds (``_ms``) or seconds (``_s``), rates in Mbit/s (10^6 bit/s), energy in joules, accuracy
drops in points of the bundle's metric (top-1 by default).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from splitedge import errors, limits

PROTOCOL_VERSION = 4
OUTPUTS_PROTOCOL = 4  # the first in which plans say what an answer holds
OLDEST_PROTOCOL = 3
"""Peers from this version on are served; `docs/topics/versions.md` says how."""

T = TypeVar("T")

Names = Annotated[list[str], msgspec.Meta(max_length=100)]

Mode = Literal["server", "split", "device"]
"""Where the network runs: on the server, split, or on the device."""


class Message(msgspec.Struct, forbid_unknown_fields=False, omit_defaults=False):
    """Base of the messages. Unknown fields of a newer peer are ignored."""


# --- the demand and the request -------------------------------------------------------------------------------------


class Weights(Message):
    """Weights of the planner's objective: ``time * total_s + energy * energy_j + cost * server_s + megabyte * MB``.

    The megabytes are those of a frame, and of the segment divided by the expected frames.
    """

    time: float = 1.0
    energy: float = 0.0
    cost: float = 0.0
    megabyte: float = 0.0


class Demand(Message):
    """The demands on a plan.

    ``max_drop_points`` bounds the upper end of the interval of the predicted accuracy drop. ``keep`` names what must
    not leave the device: ``"nothing"``, ``"input"``, or a layer; then no tensor before that layer's output may be sent.
    ``frames``: the expected number of frames of the plan, over which the segment's transfer is spread; None ignores
    that transfer. ``max_away_s``: time without the server after which frames fail. ``mode`` restricts plans to one
    mode.
    """

    max_drop_points: float = 1.0
    max_latency_ms: float | None = None
    min_rate_fps: float | None = None
    weights: Weights = msgspec.field(default_factory=Weights)
    keep: str = "nothing"
    frames: float | None = None
    max_away_s: float = 10.0
    mode: Literal["any"] | Mode = "any"


class LinkEstimate(Message):
    """The link measured by the agent: round trip, and payload rates up and down."""

    rtt_ms: float
    uplink_mbps: float
    downlink_mbps: float


class Outline(Message):
    """The operators of a model's longest head.

    ``header``: the beginning of its segment file, without constants. ``bundle``: SHA-256 of the bundle.
    """

    bundle: str
    header: bytes


class DryRun(Message):
    """Times of the head of an `Outline` on the device: ``ms[i]`` milliseconds until its operator i is done."""

    bundle: str
    ms: list[float]


class PlanRequest(Message, kw_only=True):
    model: str
    profile: dict[str, Any]  # a device profile; device_profiles has its schema
    link: LinkEstimate
    demand: Demand = msgspec.field(default_factory=Demand)
    held: list[str] = msgspec.field(default_factory=list)  # SHA-256 of the segments on the device
    measured: dict[str, float] = {}  # the wire form of `MeasuredTimes`
    dry_run: DryRun | None = msgspec.field(default=None, name="rehearsal")
    protocol: int = PROTOCOL_VERSION
    operators: Names = []  # kinds that its heads may have; empty: those of older agents
    tasks: Names = []  # what plans and answers may need: of `TASKS`, and image formats; empty: nothing, as for older agents


_SENDING, _OVERHEAD = "sending", "beside"  # keys of the wire form; every other key is a segment's SHA-256


class MeasuredTimes(msgspec.Struct):
    """Median frame times on a device, in milliseconds; None where there are too few frames.

    Its wire form is one JSON object of numbers: each segment's SHA-256 with its head's time, "sending" and "beside".
    """

    head_ms: dict[str, float] = {}  # by the segment's SHA-256
    sending_ms: float | None = None  # encoding, sending and receiving the answer, beyond what profile and link predict
    overhead_ms: float | None = None  # on the device beside head and codec: preprocessing and the program's own work

    @classmethod
    def from_wire(cls, times: Mapping[str, float]) -> MeasuredTimes:
        """The times in a message's ``measured`` field."""
        heads = {name: ms for name, ms in times.items() if name not in (_SENDING, _OVERHEAD)}
        return cls(heads, times.get(_SENDING), times.get(_OVERHEAD))

    def to_wire(self) -> dict[str, float]:
        """The times as a message's ``measured`` field."""
        others = {_SENDING: self.sending_ms, _OVERHEAD: self.overhead_ms}
        return self.head_ms | {name: ms for name, ms in others.items() if ms is not None}


# --- the plan -------------------------------------------------------------------------------------------------------


class Basis(msgspec.Struct, frozen=True, cache_hash=True):
    """An orthogonal change of the channel axis: component k = sum over c of (x[c] - centre[c]) * columns[c, k].

    ``columns``: int16 [channels, components], little-endian, row by row; at most as many components as channels, of any
    length. The inverse:
    x[c] = centre[c] + sum over k of component[k] / (sum of the squares of column k) * columns[c, k].
    """

    centre: tuple[float, ...]
    columns: bytes


ImageFormat: TypeAlias = Literal["jpeg", "webp"]
"""A format of image files. Each is also a field of `Codec` and a stage of a codec (`splitedge.codec.STAGES`)."""

#: All formats, with their names.
IMAGE_FORMATS: Final[dict[ImageFormat, str]] = {"jpeg": "JPEG", "webp": "WebP"}


class Codec(msgspec.Struct, frozen=True, cache_hash=True):
    """How the tensor at the cut is coded: an optional change of its channel axis, clipping, quantization, packing.

    value = lo[c] + scale[c] * code, with code in 0 .. 2^bits - 1. ``lo`` and ``scale`` are exact float32 values, one
    for the tensor or one for each channel of the last axis. ``scale`` 0 is a constant: every code decodes to ``lo``.
    Each other field changes one thing:

    - ``rule``: how the codec was fitted: one of `splitedge.codec.FAMILIES`, or ``jpeg-QUALITY``, ``webp-QUALITY``.
    - ``bits``: 2 to 8 for codes. 16 and 32 send float16 and float32 values; then all other fields are unused.
    - ``levels``: a codebook of 2^bits ascending levels, at 2 and 3 bits: value = lo[c] + scale[c] * levels[code].
    - ``rotation``: channels in one Hadamard block, 0 for none. ``lo`` and ``scale`` then apply to the rotated channels.
    - ``basis``: a change of basis in place of a rotation. ``lo`` and ``scale`` then apply to the components.
    - ``dynamic``: ``lo`` and ``scale`` are multiples of the span of each tensor, or of each row of its last axis
      (``token``).
    - ``span``: that span: least and greatest value (``range``), or mean magnitude with offset 0 (``mean``).
    - ``tables``: the entropy stage: frequencies of the codes, with the sum 4096. A channel has as many codes as its
      table.
    - ``table``: the index of each channel's table, or one for all.
    - ``jpeg``: 8-bit codes are the pixels of an image [H, W, 1 or 3], sent as JPEG of this quality. 0 for none.
    - ``webp``: the same as WebP, for [H, W, 3]. Only for agents that name it in `PlanRequest.tasks`.
    """

    rule: str
    bits: int
    lo: tuple[float, ...]
    scale: tuple[float, ...]
    levels: tuple[float, ...] = ()
    rotation: int = 0
    basis: Basis | None = None
    dynamic: Literal["", "tensor", "token"] = ""
    span: Literal["range", "mean"] = "range"
    tables: tuple[tuple[int, ...], ...] = ()
    table: tuple[int, ...] = ()
    jpeg: int = 0
    webp: int | msgspec.UnsetType = msgspec.UNSET  # as other plans do not change

    @property
    def image(self) -> tuple[ImageFormat, int] | None:
        """The format of the image file that this codec makes, and its quality; None if it makes none."""
        if self.jpeg:
            return "jpeg", self.jpeg
        return ("webp", self.webp) if isinstance(self.webp, int) else None


class Preprocess(Message):
    """How a caller's image or array becomes the model's input tensor.

    ``image``: decode, convert to RGB, resize (``crop``: short side to ``resize``, then centre crop to ``height`` x
    ``width``; ``stretch``: directly to that size; ``stretch`` with a ``border``: as large as fits into that size, in
    its centre, with borders of this pixel value), then (pixel - mean[c]) / std[c] with pixel in 0..255. ``tensor``: the
    array is the input.
    """

    kind: Literal["image", "tensor"]
    shape: list[int]  # of one frame at the head, channels last, without the batch axis
    resize: int = 256
    fit: Literal["crop", "stretch"] = "crop"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: list[float] = msgspec.field(default_factory=lambda: [0.0])
    std: list[float] = msgspec.field(default_factory=lambda: [1.0])
    border: int | msgspec.UnsetType = msgspec.UNSET  # as old agents, which ignore it, can still read a list of models


class Cut(Message):
    """A possible cut: after ``layer``, whose output is ``tensor`` of ``shape`` (channels last, no batch axis).

    ``padding``: the id of padding tokens, if the tail needs to know them. Frames then carry a mask
    (`splitedge.codec.padding_mask`).
    """

    index: int  # 0 is the input; the last is the output
    layer: str
    tensor: str
    shape: list[int]
    kind: Literal["input", "inside", "output"]
    padding: int | None = None


OutputKind = Literal["logits", "probabilities", "scores", "tensor"]
"""The meaning of the values of a model's output, see `Output`."""


class Greatest(Message):
    """The model's last operator: an ArgMax over ``axis`` of scores of ``shape``, in ONNX order without the batch
    axis.
    """

    axis: int
    shape: list[int]


class Part(Message):
    """One of several outputs of a model, which head and tail compute joined to one vector.

    ``shape``: in ONNX order without the batch axis. Its values are ``scale`` times the computed ones.
    """

    name: str
    shape: list[int]
    scale: float = 1.0


class Columns(Message):
    """Columns ``first`` to ``first + count`` of the output ``part``, a table with one row for each box.

    ``turned``: the table is the other way round, with one column for each box.
    """

    part: int
    first: int
    count: int
    turned: bool = False


class Detection(Message, tag="detection", tag_field="task"):
    """The outputs hold boxes. `splitedge.tasks.detection` decodes them.

    - ``boxes``: their four coordinates. ``layout``: ``centres`` (x, y, width, height) or ``corners`` (left, top, right,
      bottom). ``rows_first``: y comes before x. ``width``, ``height``: the coordinates of the input's far corner.
    - ``anchors``: float32 [N, 4], little-endian: centre x, centre y, width and height of the box that each row changes.
      A centre is relative to it in its size; a size is a factor, or the exponent of one (``exponential``).
    - ``scores``: one for each class. ``activation``: the function that makes them scores; with ``softmax`` the last
      class is "no box". ``certainty``: a factor for all scores of a box. ``classes``: the class of each box, where
      ``scores`` holds one score.
    - ``points``: x and y of key points.
    - ``score``: the least score of a box in an answer. ``iou``: the largest overlap of two boxes of a class. ``most``:
      the most boxes of an answer.
    """

    boxes: Columns
    scores: Columns
    layout: Literal["centres", "corners"] = "centres"
    rows_first: bool = False
    width: float = 1.0
    height: float = 1.0
    anchors: bytes = b""
    exponential: bool = False
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    certainty: Columns | None = None
    classes: Columns | None = None
    points: Columns | None = None
    score: float = 0.25
    iou: float = 0.45
    most: int = 100


class Segmentation(Message, tag="segmentation", tag_field="task"):
    """The output is a map: the class of each pixel.

    ``axis``: the axis of the classes, whose greatest value decides. None: the map has one value for each pixel, of
    class 1 above ``threshold`` and else of class 0.
    """

    axis: int | None = 0
    threshold: float = 0.0


Task = Detection | Segmentation
"""What an output without classes means. `splitedge.tasks` computes it."""


class Output(Message):
    """The model's output: the ``kind`` of its values, and the ``shape`` of one answer, in ONNX order without the batch
    axis.

    ``logits``: one value for each class; their softmax gives probabilities. ``probabilities``: one for each class, with
    the sum 1. ``scores``: one for
    each class, independent and from 0 to 1, as for tags. ``tensor``: no classes but an embedding or a map, which an
    answer holds whole. With ``greatest``, head and tail compute scores, and the answer holds the indices of the
    greatest ones.

    ``parts``: the outputs of a model with several; the output then is their values in a row. ``task``: what a tensor
    means.
    """

    kind: OutputKind = "logits"
    shape: list[int] = []
    greatest: Greatest | None = None
    parts: list[Part] = []
    task: Task | None = None

    @property
    def computed(self) -> list[int]:
        """The shape of the tensor that head and tail compute."""
        return self.greatest.shape if self.greatest else self.shape

    @property
    def has_classes(self) -> bool:
        return self.kind != "tensor"

    @property
    def needs(self) -> set[str]:
        """The names in `PlanRequest.tasks` without which an agent cannot read answers with this output."""
        return {*(["parts"] if self.parts else []), *([self.task_name] if self.task else [])}

    @property
    def task_name(self) -> str:
        """ "detection", "segmentation", or empty."""
        return "" if self.task is None else str(self.task.__struct_config__.tag)


#: The names that this program knows, for `PlanRequest.tasks`. "pad": images may have borders.
TASKS = ["detection", "segmentation", "parts", "pad"]


class SegmentRef(Message):
    sha256: str
    size: int


class TokenizerRef(Message):
    """The tokenizer.json of a text model, and the id of its padding token."""

    sha256: str
    size: int
    padding: int


class Parts(Message, kw_only=True):
    """The weighted terms of the objective: frame time, the segment's transfer for each frame, energy, server cost,
    bytes.
    """

    time: float
    fetch: float
    energy: float
    cost: float
    traffic: float = 0.0


class Prediction(Message, kw_only=True):
    """The planner's prediction for a candidate.

    ``drop_points``: the expected accuracy drop. A measurement on new samples is below ``drop_low`` in 3 % of cases, and
    above ``drop_high`` in 3 %.
    ``samples``: the number of samples behind the prediction. ``noise``: the energy that weights, codec and head
    together add to the output.
    """

    device_ms: float
    transfer_ms: float
    queue_ms: float  # waiting time on the server
    server_ms: float
    total_ms: float
    energy_j: float
    energy_source: Literal["measured", "declared", "unknown"]
    drop_points: float
    drop_low: float
    drop_high: float
    samples: int
    noise: float
    payload_bytes: int  # one frame with its header; 0 if nothing is sent
    float_bytes: int  # the same tensor in float32
    segment_bytes: int  # to download
    objective: float
    parts: Parts
    sending_ms: float = 0.0  # the part of transfer_ms that is not the link's: `MeasuredTimes.sending_ms`


class LayerBits(Message, kw_only=True):
    """A layer of the head: its number of weights, their bits in the segment, and their share (0..1) of the plan's
    noise.
    """

    layer: str
    bits: float
    weights: int
    noise_share: float


class Rung(Message, kw_only=True):
    """The prediction for a codec of the ladder: bytes of a frame with its header, noise at the output, and the drop
    as in `Prediction`.
    """

    payload_bytes: int
    noise: float
    drop_points: float
    drop_high: float


class Candidate(Message, kw_only=True):
    """The best plan of another cut, and why it lost.

    ``weight_bits``: the mean, 0 without weights. ``activation_bits``: 0 if nothing is sent.
    """

    cut: Cut
    weight_bits: float
    activation_bits: int
    rule: str
    prediction: Prediction
    reason: str = ""


class StageTime(Message, kw_only=True):
    """The prediction for one board of a chain: its part, its time with decoding and encoding, and its link to the
    next board or the server.
    """

    device: str
    start: str  # the layer before its part
    cut: str  # the last layer of its part
    weight_bits: float
    activation_bits: int  # 0 if nothing is sent
    device_ms: float
    sending_ms: float  # bytes of a frame over the uplink
    rtt_ms: float
    payload_bytes: int
    rule: str = ""  # of its codec


class Stage(Message, kw_only=True):
    """A plan's place in a chain of boards. Each board of a chain has its own plan.

    The board accepts frames of the plan ``upstream`` ("" for the first board, whose frames come from callers), decodes
    them with that plan's ladder ``incoming``, and computes from ``start`` to its plan's cut. It sends to the board of
    the plan ``downstream``, or to the server if that is "".
    ``route``: the predictions for all boards, in order. ``rate_fps``: the predicted rate of the chain.
    """

    device: str
    start: Cut
    incoming: list[Codec]
    upstream: str
    downstream: str
    route: list[StageTime]
    rate_fps: float


class Plan(Message, kw_only=True):
    """The planner's answer. ``ladder[codec]`` is the first codec; every codec of the ladder meets the demand.

    ``rungs[i]`` has the cost of ``ladder[i]``. The ladder goes from the most accurate codec to the cheapest. Only the
    first codec used may be less accurate than a cheaper one, if that one takes longer to encode.

    ``layers``: the head's layers with weights, in order. ``codec_share`` and ``head_share``: the shares of codec and
    head activations in the noise.
    ``stage``: set if the plan is part of a chain. Then ``prediction`` starts at its board, and ``server_ms`` includes
    everything behind its link.
    ``tokenizer``: set if callers may pass texts in place of token ids. ``output``: what an answer holds.
    """

    id: str
    model: str
    bundle: str  # SHA-256 of the bundle
    mode: Mode
    cut: Cut
    layers: list[LayerBits]
    codec_share: float
    head_share: float
    ladder: list[Codec]
    rungs: list[Rung]
    codec: int
    segment: SegmentRef
    preprocess: Preprocess
    prediction: Prediction
    runners_up: list[Candidate]
    considered: int
    expires_unix: float
    demand: Demand
    labels: list[str] = msgspec.field(default_factory=list)
    metric: str = "top1"
    stage: Stage | None = None
    tokenizer: TokenizerRef | None = None
    output: Output = msgspec.field(default_factory=Output)
    protocol: int = PROTOCOL_VERSION  # of the plan's streams

    def mean_bits(self) -> float:
        """Mean bits of a weight; 0 without weights."""
        return sum(one.bits * one.weights for one in self.layers) / max(1, sum(one.weights for one in self.layers))


# --- chains: a model over several boards and the server ---------------------------------------------------------------

Objective = Literal["latency", "rate"]
"""The goal of a chain: the shortest frame time, or the highest frame rate."""


class ChainDevice(Message, kw_only=True):
    """A board's description of itself for a chain. ``next``: its link to the next board, None for the last. ``server``:
    its link to the server.

    ``device`` is the name that the board generated once; a plan names its board by it. ``held`` and ``measured`` are as
    in `PlanRequest`. The measured overhead counts too: it bounds a board's rate as the segment does.
    """

    device: str
    profile: dict[str, Any]
    next: LinkEstimate | None
    server: LinkEstimate
    held: list[str] = msgspec.field(default_factory=list)
    measured: dict[str, float] = {}
    operators: Names = []  # as in `PlanRequest`


class ChainRequest(Message, kw_only=True):
    """Share ``model`` among ``devices``, in this order, and the server. The answer is the plan of the first of them.

    ``exact``: only lossless codecs, so that the stages together compute the same bits as one head. ``spread``: every
    board and the server must get a
    part, even if another plan is better.
    """

    model: str
    devices: list[ChainDevice]
    demand: Demand = msgspec.field(default_factory=Demand)
    objective: Objective = "latency"
    exact: bool = False
    spread: bool = False
    protocol: int = PROTOCOL_VERSION
    tasks: Names = []  # as in `PlanRequest`


def is_served(protocol: int) -> bool:
    """Whether this program works with a peer of version ``protocol``."""
    return OLDEST_PROTOCOL <= protocol <= PROTOCOL_VERSION


# --- model listing --------------------------------------------------------------------------------------------------


class ModelInfo(Message, kw_only=True):
    name: str
    bundle: str
    metric: str
    samples: int
    cuts: list[Cut]
    unsupported: list[str]  # operators without an integer kernel: "OpType (node name)"
    preprocess: Preprocess
    float_top1: float | None = None  # of the float model, in per cent of the calibration samples; None without labels
    tokenizer: TokenizerRef | None = None
    output: Output = msgspec.field(default_factory=Output)
    offered: list[int] = []  # indices of the cuts that plans may use


class ServerVersion(Message):
    version: str
    protocol: int


# --- the frame session (text messages of the WebSocket; binary ones are frames, see frames.py) ------------------------


class Open(Message, tag="open", tag_field="type"):
    """Agent to server, first message: stream frames of ``plan``.

    An answer holds the ``topk`` best classes, or the whole output for 0.
    """

    plan: str
    topk: int = 5
    window: int = limits.WINDOW
    protocol: int = PROTOCOL_VERSION


class Opened(Message, tag="opened", tag_field="type"):
    """Server to agent: the stream is open. ``window`` is at most the requested one."""

    window: int
    heartbeat_s: float = limits.HEARTBEAT


class Ping(Message, tag="ping", tag_field="type"):
    nonce: int


class Pong(Message, tag="pong", tag_field="type"):
    nonce: int


class Failed(Message, tag="failed", tag_field="type"):
    """Either side: the session ends with this error (``{"code", "message", "data"}``, see `splitedge.errors`)."""

    error: dict[str, Any]


class Close(Message, tag="close", tag_field="type"):
    """Either side: no more frames follow. The session ends when those in flight are answered."""


SessionMessage = Open | Opened | Ping | Pong | Failed | Close


def encode(message: msgspec.Struct) -> bytes:
    """``message`` as UTF-8 JSON."""
    return msgspec.json.encode(message)


def decode(data: bytes | str, kind: type[T] | Any, limit: int = limits.MAX_REQUEST_BYTES) -> T:
    """The ``kind`` in ``data`` (UTF-8 JSON of at most ``limit`` bytes). Raises `errors.ProtocolError`."""
    if len(data) > limit:
        raise errors.ProtocolError(
            f"a message of {len(data)} bytes exceeds the limit of {limit}", limit=limit, reason="message-too-large"
        )
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise errors.ProtocolError(
            f"a message violates the protocol: {str(error)[:300]}", reason="malformed-message"
        ) from error
