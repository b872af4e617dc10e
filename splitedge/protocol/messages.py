"""What agent and server say to each other, as typed values. Every one is JSON through `encode` and `decode`.

Units: times in milliseconds (``_ms``) or seconds (``_s``), rates in megabits a second (10^6 bit/s), energy in joules, accuracy drops
in points of the bundle's metric (top-1 unless it says otherwise).
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from splitedge import errors, limits

PROTOCOL_VERSION = 4

T = TypeVar("T")

Mode = Literal["server", "split", "device"]
"""Which side computes: all on the server, both, or all on the device."""


class Message(msgspec.Struct, forbid_unknown_fields=False, omit_defaults=False):
    """Base of everything that is sent; a newer peer's extra fields are ignored."""


# --- the demand and the request -------------------------------------------------------------------------------------


class Weights(Message):
    """Weights of the planner's objective: ``time * total_s + energy * energy_j + cost * server_s``."""

    time: float = 1.0
    energy: float = 0.0
    cost: float = 0.0


class Demand(Message):
    """What the caller wants of a plan.

    ``max_drop_points`` bounds the upper end of the predicted drop's interval. ``keep`` says what must not leave the device: ``"nothing"``,
    ``"input"``, or the name of a layer: then no tensor before that layer's output may be sent. ``frames``: how many the plan is expected to serve,
    among which the segment's transfer is shared out; None: so many that it does not count. ``max_away_s`` is how long the server may be away before
    a frame fails. ``mode`` other than ``"any"`` leaves only plans of that mode: to compare with, or where a board must not or need not compute.
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
    """The link as the agent measured it: round trip, payload rate up and down."""

    rtt_ms: float
    uplink_mbps: float
    downlink_mbps: float


class Outline(Message):
    """What a model's longest head computes: ``header`` is the beginning of a segment file, without constants; ``bundle`` the bundle's SHA-256."""

    bundle: str
    header: bytes


class Rehearsal(Message):
    """What the head of an `Outline` takes on the device: ``ms[i]`` until its operator i is done."""

    bundle: str
    ms: list[float]


class PlanRequest(Message):
    model: str
    profile: dict[str, Any]  # a device profile; its schema lives in device_profiles
    link: LinkEstimate
    demand: Demand = msgspec.field(default_factory=Demand)
    held: list[str] = msgspec.field(default_factory=list)  # SHA-256 of the segments the agent already has
    measured: dict[str, float] = {}  # by a segment's SHA-256: ms that the head really took on the device; and `SENDING`
    rehearsal: Rehearsal | None = None
    protocol: int = PROTOCOL_VERSION


#: The key in a device's ``measured`` times of what coding a frame, sending it and taking its answer took beyond what profile and link say.
SENDING = "sending"


# --- the plan -------------------------------------------------------------------------------------------------------


class Basis(msgspec.Struct, frozen=True, cache_hash=True):
    """An orthogonal change of the channel axis: component k = sum over c of (x[c] - centre[c]) * columns[c, k].

    ``columns``: int16 [channels, components], little-endian, row by row; at most as many components as channels. Squares need not sum to 1. Back:
    x[c] = centre[c] + sum over k of component[k] / (sum of the squares of column k) * columns[c, k].
    """

    centre: tuple[float, ...]
    columns: bytes


class Codec(msgspec.Struct, frozen=True, cache_hash=True):
    """What happens to the tensor at the cut: a change of its channel axis if any, clip, quantization to codes, and their packing.

    value = lo[c] + scale[c] * code, code in 0 .. 2^bits - 1; ``lo`` and ``scale`` have one entry (per tensor) or one for each channel
    (the last axis) and are exact float32 values. ``scale`` 0 means a constant: it decodes to ``lo`` whatever the code. The other fields change one
    thing each; docs/architecture.md has the arithmetic.
    """

    rule: str  # how it was fitted: one of splitedge.codec.FAMILIES, or jpeg-QUALITY
    bits: int  # 2 to 8: of a code; 16 and 32: the values go as float16 and float32, and no other field is used
    lo: tuple[float, ...]
    scale: tuple[float, ...]
    levels: tuple[
        float, ...
    ] = ()  # codebook of 2^bits ascending levels, at 2 and 3 bits: value = lo[c] + scale[c] * levels[code]
    rotation: int = 0  # channels in one Hadamard block; lo and scale are those of the rotated channels. 0: none
    basis: Basis | None = None  # instead of a rotation; lo and scale are those of the components
    dynamic: Literal["", "tensor", "token"] = (
        ""  # lo and scale are multiples of what each tensor, or row of its last axis, spans itself
    )
    span: Literal["range", "mean"] = (
        "range"  # and that is: its least and greatest value; or its mean magnitude, offset 0
    )
    tables: tuple[
        tuple[int, ...], ...
    ] = ()  # entropy stage: frequencies of the codes, 4096 in sum; a channel has as many codes as its table
    table: tuple[int, ...] = ()  # the table of each channel, or one for all
    jpeg: int = 0  # codes of 8 bits are the pixels of a picture [H, W, 1 or 3], which goes as JPEG of this quality. 0: they do not


class Preprocess(Message):
    """From a caller's image or array to the model's input tensor.

    ``image``: decode, convert to RGB, resize (``crop``: short side to ``resize``, then centre crop to ``height`` x ``width``; ``stretch``: straight
    to that size), then (pixel - mean[c]) / std[c] with pixel in 0..255. ``tensor``: the array is the input as it stands.
    """

    kind: Literal["image", "tensor"]
    shape: list[int]  # of one frame as the head sees it, channels last, without the batch axis
    resize: int = 256
    fit: Literal["crop", "stretch"] = "crop"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: list[float] = msgspec.field(default_factory=lambda: [0.0])
    std: list[float] = msgspec.field(default_factory=lambda: [1.0])


class Cut(Message):
    """Where a network may be cut: after ``layer``, which yields ``tensor`` of ``shape`` (channels last, no batch axis).

    ``padding``: what lies behind needs to know which tokens are padding, those with this id: frames then tell it of each (`splitedge.codec.padding_mask`).
    """

    index: int  # 0 is the input; the last is the output
    layer: str
    tensor: str
    shape: list[int]
    kind: Literal["input", "inside", "output"]
    padding: int | None = None


OutputKind = Literal["logits", "probabilities", "scores", "tensor"]
"""What the values of a model's output are: see `Output`."""


class Greatest(Message):
    """The model's last operator, an ArgMax over ``axis`` of scores of ``shape``, both in ONNX order without the batch axis."""

    axis: int
    shape: list[int]


class Output(Message):
    """The model's output: the ``kind`` of its values, and the ``shape`` of one answer, in ONNX order without the batch axis.

    ``logits``: one value a class, of which a softmax makes probabilities. ``probabilities``: one a class, which sum to 1. ``scores``: one a class,
    each from 0 to 1 by itself, as tags have. ``tensor``: no classes, but an embedding or a map, which answers hold whole; integers where head and
    tail yield scores, of which ``greatest`` takes the index.
    """

    kind: OutputKind = "logits"
    shape: list[int] = []
    greatest: Greatest | None = None

    @property
    def computed(self) -> list[int]:
        """The shape of what head and tail yield."""
        return self.greatest.shape if self.greatest else self.shape

    @property
    def has_classes(self) -> bool:
        return self.kind != "tensor"


class SegmentRef(Message):
    sha256: str
    size: int


class TokenizerRef(Message):
    """The tokenizer.json that turns a model's texts into the token ids that it takes, and the id that fills short ones up."""

    sha256: str
    size: int
    padding: int


class Parts(Message):
    """What the objective is made of, each with its weight: time of a frame, transfer of the segment for each frame, energy, server cost."""

    time: float
    fetch: float
    energy: float
    cost: float


class Prediction(Message):
    """What the planner expects of a candidate.

    ``drop_points`` is the expected drop, of which a measurement on fresh samples is below ``drop_low`` or above ``drop_high`` in 3 % of cases each;
    ``samples`` are those behind the prediction. ``noise``: energy at the output of weights, codec and head together.
    """

    device_ms: float
    transfer_ms: float
    queue_ms: float  # waiting at the server
    server_ms: float
    total_ms: float
    energy_j: float
    energy_source: Literal["measured", "declared", "unknown"]
    drop_points: float
    drop_low: float
    drop_high: float
    samples: int
    noise: float
    payload_bytes: int  # one frame, header included; 0 where nothing is sent
    float_bytes: int  # the same tensor in float32
    segment_bytes: int  # to fetch
    objective: float
    parts: Parts
    sending_ms: float = 0.0  # of transfer_ms, what is not the link's: what the device told as `SENDING`


class LayerBits(Message):
    """A layer of the head: its weights' number, the bits that each takes in the segment, and their share (0..1) of the plan's noise."""

    layer: str
    bits: float
    weights: int
    noise_share: float


class Rung(Message):
    """What a plan expects of a codec on its ladder: bytes of a frame (header included), noise at the output, and the drop as in `Prediction`."""

    payload_bytes: int
    noise: float
    drop_points: float
    drop_high: float


class Candidate(Message):
    """The best plan of another cut, and why it lost. ``weight_bits``: the mean over its weights, 0 without any; ``activation_bits`` 0 where nothing is sent."""

    cut: Cut
    weight_bits: float
    activation_bits: int
    rule: str
    prediction: Prediction
    reason: str = ""


class StageTime(Message):
    """What is predicted of one board of a chain: its part, its time with decoding and encoding, and its link to whoever comes next."""

    device: str
    start: str  # the layer behind which it begins
    cut: str  # and after which it sends
    weight_bits: float
    activation_bits: int  # 0 where nothing is sent
    device_ms: float
    sending_ms: float  # a frame's bytes over the uplink
    rtt_ms: float
    payload_bytes: int
    rule: str = ""  # of the codec by which it sends


class Stage(Message):
    """A plan's place in a chain of boards, of which each has a plan of its own.

    The board takes frames of the plan ``upstream`` ("" for the first board, whose frames come from callers), decodes them with ``incoming``, that plan's
    ladder, and computes from ``start`` to the plan's cut. What it sends goes to the board of the plan ``downstream``, or to the server where that is "".
    ``route``: what is predicted of all boards, in order; ``rate_fps``: of the whole.
    """

    device: str
    start: Cut
    incoming: list[Codec]
    upstream: str
    downstream: str
    route: list[StageTime]
    rate_fps: float


class Plan(Message):
    """The planner's answer. ``ladder[codec]`` is the codec to start with; every codec on the ladder meets the demand.

    ``rungs[i]`` says what ``ladder[i]`` costs; they go from the most accurate to the cheapest. Only the codec to start with may be less accurate than a
    cheaper one, where that takes longer to make.

    ``layers``: the head's layers with weights, in order; ``codec_share`` and ``head_share``: of the noise, what the codec and the head's activations add.
    ``stage``: where the plan is one of a chain's; then ``prediction`` is from its board on, all that lies behind its link being ``server_ms``.
    ``tokenizer``: where callers may give texts in the place of token ids; the input's length is that of the ids. ``output``: what an answer holds.
    """

    id: str
    model: str
    bundle: str  # SHA-256 of the bundle the plan was made from
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

    def mean_bits(self) -> float:
        """Bits of a weight in the mean; 0 without weights."""
        return sum(one.bits * one.weights for one in self.layers) / max(1, sum(one.weights for one in self.layers))


# --- chains: a model over several boards and the server ---------------------------------------------------------------

Objective = Literal["latency", "rate"]
"""What a chain is planned for: the least time of a frame, or the most frames a second."""


#: The key in a board's ``measured`` times of what a frame takes there beside segment and codec: preparing pictures, and the programs' own work.
BESIDE = "beside"


class ChainDevice(Message):
    """A board of a chain, as it describes itself. ``next``: its link to the board after it, None for the last; ``server``: to the server.

    ``device`` is the name that the board gave itself once: a plan says by it for whom it is. ``held`` and ``measured`` as in `PlanRequest`; what is
    there by the name `BESIDE` comes on top, for it bounds a board's rate as its segment does.
    """

    device: str
    profile: dict[str, Any]
    next: LinkEstimate | None
    server: LinkEstimate
    held: list[str] = msgspec.field(default_factory=list)
    measured: dict[str, float] = {}


class ChainRequest(Message):
    """Share ``model`` among ``devices``, in this order, and the server. The answer is the plan of the first of them.

    ``exact``: only codecs that send tensors as they are, so that the stages together compute the bits of one head. ``spread``: every board and the
    server must have a part, be it better or not.
    """

    model: str
    devices: list[ChainDevice]
    demand: Demand = msgspec.field(default_factory=Demand)
    objective: Objective = "latency"
    exact: bool = False
    spread: bool = False
    protocol: int = PROTOCOL_VERSION


# --- model listing --------------------------------------------------------------------------------------------------


class ModelInfo(Message):
    name: str
    bundle: str
    metric: str
    samples: int
    cuts: list[Cut]
    unsupported: list[str]  # operators that the integer head does not support: "OpType (node name)"
    preprocess: Preprocess
    float_top1: float | None = None  # per cent of the calibration samples, of the float model; None without labels
    tokenizer: TokenizerRef | None = None
    output: Output = msgspec.field(default_factory=Output)
    offered: list[int] = []  # indices of the cuts that plans may choose


class ServerVersion(Message):
    version: str
    protocol: int


# --- the frame session (text messages of the WebSocket; binary ones are frames, see frames.py) ------------------------


class Open(Message, tag="open", tag_field="type"):
    """Agent -> server, first message: stream frames of ``plan``. An answer holds the ``topk`` best classes, or for 0 the whole output."""

    plan: str
    topk: int = 5
    window: int = 8
    protocol: int = PROTOCOL_VERSION


class Opened(Message, tag="opened", tag_field="type"):
    """Server -> agent: the stream is ready; the window is at most what was asked."""

    window: int
    heartbeat_s: float = limits.HEARTBEAT


class Ping(Message, tag="ping", tag_field="type"):
    nonce: int


class Pong(Message, tag="pong", tag_field="type"):
    nonce: int


class Failed(Message, tag="failed", tag_field="type"):
    """Either side: the session ends for this reason (``{"code", "message", "data"}`` as in errors.py)."""

    error: dict[str, Any]


class Close(Message, tag="close", tag_field="type"):
    """Either side: no more frames will come; the session ends once those in flight are answered."""


SessionMessage = Open | Opened | Ping | Pong | Failed | Close


def encode(message: msgspec.Struct) -> bytes:
    """``message`` as UTF-8 JSON."""
    return msgspec.json.encode(message)


def decode(data: bytes | str, kind: type[T] | Any, limit: int = limits.MAX_REQUEST_BYTES) -> T:
    """The ``kind`` in ``data`` (UTF-8 JSON). Raises `errors.ProtocolError` for anything else, or more than ``limit`` bytes."""
    if len(data) > limit:
        raise errors.ProtocolError(f"a message of {len(data)} bytes is over the limit of {limit}", limit=limit)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise errors.ProtocolError(f"a message does not follow the protocol: {str(error)[:300]}") from error
