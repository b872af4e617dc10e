"""The segment file: the quantized head of a network. The server sends it and the agent stores it.

    offset  0   8 bytes   magic b"SPLITSEG"
            8   u32       format version (3); all numbers are little-endian
           12   u32       length of the header
           16   header    UTF-8 JSON of `Header`, deflated with `DICTIONARY`; its blob size and offsets into the blob are 0
            .   constants weights, biases, multipliers, tables: see `splitedge.head.compression`

In memory a segment is its header and a blob of constants in the order of `constants`, each at a multiple of 64 bytes.
Their number and size follow from the operators, so the file does not store them, and memory is bounded before it is
allocated. Segments are untrusted: `parse` checks the container, and `splitedge.head.verify` everything else, before a
kernel sees a pointer.
"""

from __future__ import annotations

import copy
import hashlib
import math
import zlib
from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from splitedge import errors, limits
from splitedge.head import compression
from splitedge.protocol.messages import Preprocess

MAGIC = b"SPLITSEG"
FORMAT_VERSION = 3
ALIGN = 64
#: The preset dictionary of the deflated header. A change of it is a new format version.
DICTIONARY: Final = (
    b'{"model":"","cut":"","weight_bits":8,"preprocess":{"kind":"image","shape":[224,224,3],"resize":256,"fit":"crop","interpolation":"bicubic",'
    b'"mean":[127.0],"std":[128.0]},"tensors":[{"shape":[],"scale":0.0,"zero_point":0,"offset":0,"dtype":"f32"}],"input":0,"output":1,"ops":[],'
    b'"arena_bytes":0,"blob_bytes":0,"golden":{"seed":"","sha256":""}}{"op":"linear","name":"","out":2,"x":1,"bits":8,"weight":0,"scales":0,'
    b'"bias":0,"activation":"gelu","residual":-1},"activation":"none",{"op":"add","name":"","out":2,"a":1,"b":0,"multiplier_a":0.,"multiplier_b":0.,'
    b'"lo":0,"hi":255},{"op":"conv","name":"","out":2,"x":1,"bits":8,"weight":0,"bias":0,"multiplier":0,"kernel":[3,3],"stride":[1,1],'
    b'"dilation":[1,1],"pad":[1,1,1,1],"groups":1,"lo":0,"hi":255},{"op":"conv","name":"","out":2,"x":1,"bits":8,"weight":0,"bias":0,'
    b'"multiplier":0,"kernel":[1,1],"stride":[1,1],"dilation":[1,1],"pad":[0,0,0,0],"groups":1,"lo":0,"hi":255},'
)


DTYPES: dict[str, np.dtype[Any]] = {"u8": np.dtype(np.uint8), "f32": np.dtype(np.float32), "i32": np.dtype(np.int32)}


#: See `kernels.reference.FUNCTIONS`.
FunctionKind: TypeAlias = Literal["relu", "gelu", "silu", "quick_gelu", "sigmoid", "tanh", "hard_swish"]


class Tensor(msgspec.Struct, omit_defaults=True):
    """One activation: uint8 codes with value = scale * (code - zero_point). ``shape``: 1 to 4 axes, channels last,
    without the batch axis.

    ``offset``: its first byte in the arena, a multiple of 64. A tensor of n bytes occupies roundup(n, 64) bytes. For
    ``dtype`` ``f32`` (the stream of a
    transformer, [tokens, channels]) and ``i32`` (token ids), scale is 1 and zero_point is 0.
    """

    shape: list[int]
    scale: float  # an exact float32
    zero_point: int
    offset: int
    dtype: Literal["u8", "f32", "i32"] = "u8"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Op(msgspec.Struct, tag_field="op"):
    """Base of the operators. ``out`` and the inputs index `Header.tensors`; earlier operators write the inputs.

    ``name``: the layer's name in the model, for messages and measurements.
    """

    name: str
    out: int


class Conv(Op, tag="conv"):
    """Convolution, depthwise convolution (groups = channels) and matrix product (kernel 1x1 on a 1 x 1 x K or rows x 1
    x K tensor).

    x [H, W, C] uint8; weight [OC, KH, KW, C / groups] at ``bits`` bits; bias [OC] int32; multiplier [OC] float32. All
    are offsets into the blob. acc = bias[oc] + sum x * w. The bias includes -zero_point_x * sum w; padding has the code
    zero_point_x. y = zero_point_y + rint(clamp(float32(acc) * multiplier[oc], lo - zero_point_y, hi - zero_point_y)).
    """

    x: int
    bits: int
    weight: int
    bias: int
    multiplier: int
    kernel: list[int]  # KH, KW
    stride: list[int]
    dilation: list[int]
    pad: list[int]  # top, left, bottom, right
    groups: int
    lo: int  # least and greatest output code, for a fused ReLU or ReLU6
    hi: int


class Add(Op, tag="add"):
    """y = zero_point_y + rint(clamp((a - za) * ma + (b - zb) * mb, lo - zero_point_y, hi - zero_point_y)) in float32,
    with two products and one sum, each rounded.

    Same shape, or ``b`` has one value for each channel (shape [C] or [1, 1, C]).
    """

    a: int
    b: int
    multiplier_a: float
    multiplier_b: float
    lo: int
    hi: int


class Mul(Op, tag="mul"):
    """y = zero_point_y + rint(clamp(float32((a - za) * (b - zb)) * m, lo - zero_point_y, hi - zero_point_y));
    broadcast as in `Add`.
    """

    a: int
    b: int
    multiplier: float
    lo: int
    hi: int


class Lut(Op, tag="lut"):
    """y = table[x]: any element-wise function; ``table`` is the offset of 256 bytes in the blob."""

    x: int
    table: int


class Pool(Op, tag="pool"):
    """Maximum or average over windows of [KH, KW]. Global pooling is a window of the whole plane.

    max: padding is ignored; x and y share scale and zero point; ``multiplier`` is unused.
    avg: acc = sum (x - zx) over n cells (all KH * KW if ``count_pad``, else those inside);
    y = zero_point_y + rint(clamp(float32(acc) * (multiplier / n), lo .. hi as in `Conv`)), the quotient in float32.
    """

    x: int
    kind: Literal["max", "avg"]
    kernel: list[int]
    stride: list[int]
    pad: list[int]
    count_pad: bool
    multiplier: float
    lo: int
    hi: int


class Concat(Op, tag="concat"):
    """Along the last axis.

    ``tables[i]`` is the offset of a 256-byte table that requantizes input i to the output's scale, or -1 for none.
    """

    inputs: list[int]
    tables: list[int]


class Transpose(Op, tag="transpose"):
    """y = x transposed by ``perm`` (of its 1 to 4 axes, without the batch axis)."""

    x: int
    perm: list[int]


class View(Op, tag="view"):
    """y = elements of x: those at ``start`` + i . ``steps`` for each index i below ``sizes`` (1 to 4 axes), in order.

    Steps count elements of x in its stored order; a step of 0 repeats. So it selects channels, crops, repeats rows and
    shuffles channels. x and y are codes, or both f32.
    """

    x: int
    start: int
    sizes: list[int]
    steps: list[int]


class Reshape(Op, tag="reshape"):
    """The same bytes with another shape."""

    x: int


class Pad(Op, tag="pad"):
    """Spatial padding of [H, W, C] with the code ``value``; ``pad`` = top, left, bottom, right."""

    x: int
    pad: list[int]
    value: int


class Softmax(Op, tag="softmax"):
    """Over the last axis: p = exp(scale * (x - max x)) / sum, by the fixed sequence of `kernels.reference.softmax`,
    then quantized to y.
    """

    x: int
    lo: int
    hi: int


# Transformers. x and y are f32 [..., channels]; all axes but the last are rows. `Linear` and `Attention` quantize their
# inputs.


class Embed(Op, tag="embed"):
    """y[t] = w[x[t]] * scales[x[t]] + position[t]: token ids i32 [T] to f32 [T, C].

    weight [vocabulary, C] at ``bits`` bits; scales [vocabulary] float32; position [T, C] float32. An id out of range is
    clamped.
    """

    x: int
    bits: int
    vocabulary: int
    weight: int
    scales: int
    position: int


class Linear(Op, tag="linear"):
    """y = activation(x * w + bias) + residual by `kernels.reference.linear`: each row of x is quantized to 8 bits by
    its own range.

    weight [N, K] at ``bits`` bits; scales and bias [N] float32. ``residual``: a tensor of y's shape, or -1.
    """

    x: int
    bits: int
    weight: int
    scales: int
    bias: int
    activation: Literal["none", "gelu"]
    residual: int


class Norm(Op, tag="norm"):
    """Layer norm over the last axis by `kernels.reference.norm`; gamma and beta [C] float32."""

    x: int
    gamma: int
    beta: int
    epsilon: float


class Attention(Op, tag="attention"):
    """x [T, 3 C] (queries, keys, values) to [T, C] by `kernels.reference.attention`; scores are multiplied by
    ``factor``.

    ``ids``: the tensor of token ids i32 [T]; tokens with the id ``pad`` are no keys. -1: every token is a key.
    """

    x: int
    heads: int
    factor: float
    ids: int
    pad: int


class Patches(Op, tag="patches"):
    """y = the squares of ``size`` x ``size`` pixels of x f32 [H, W, C], row by row: [H / size * W / size, size *
    size * C], in memory order.
    """

    x: int
    size: int


class Position(Op, tag="position"):
    """y = table + x for the last T rows, and the table alone for the rows before: f32 [T, C] to [R, C], R >= T.

    ``table``: [R, C] float32.
    """

    x: int
    table: int


class Mean(Op, tag="mean"):
    """y = mean of ``count`` rows of x f32 [T, C] from row ``first`` on, by `kernels.reference.mean`: [C] or [1, C]."""

    x: int
    first: int
    count: int


class Normalize(Op, tag="normalize"):
    """Layer, group or instance norm of codes by `kernels.reference.normalize`: blocks of ``rows`` rows of x [..., C]
    and ``groups`` groups of channels get mean 0 and variance 1; then times gamma [C] plus beta [C], both float32.

    gamma and beta are in units of y's scale, and epsilon is (norm's epsilon) * (n / scale_x)^2 for n codes of a group.
    """

    x: int
    rows: int
    groups: int
    gamma: int
    beta: int
    epsilon: float
    lo: int
    hi: int


class Resample(Op, tag="resample"):
    """x [H, W, C] to [OH, OW, C] with the same scale by `kernels.reference.resample`: linear between neighbours, or
    the nearest of them.

    ``rows`` [OH] and ``columns`` [OW] int32: first row and column; ``row_weights`` and ``column_weights`` float32: the
    share of the next, 0 to 1.
    """

    x: int
    rows: int
    row_weights: int
    columns: int
    column_weights: int


class Function(Op, tag="function"):
    """y = a function of each element of x f32, by `kernels.reference.function`."""

    x: int
    kind: FunctionKind


class Gate(Op, tag="gate"):
    """y = a function of the first half of x f32 [T, 2 C], times the second half: [T, C], by `kernels.reference.gate`."""

    x: int
    kind: FunctionKind


class RmsNorm(Op, tag="rms_norm"):
    """Norm without a mean over the last axis of x f32, by `kernels.reference.rms_norm`; gamma [C] float32."""

    x: int
    gamma: int
    epsilon: float


class Sum(Op, tag="sum"):
    """y = a + b, f32 tensors of one shape."""

    a: int
    b: int


class Rotary(Op, tag="rotary"):
    """Turns the first ``heads`` groups of D columns of x f32 [R, N] by `kernels.reference.rotary`; row r has the
    position r mod ``tokens``.

    ``table``: [tokens, 2, D] float32; D is ``size``, an even number.
    """

    x: int
    heads: int
    size: int
    tokens: int
    table: int


class WindowAttention(Op, tag="window_attention"):
    """`Attention` within each of ``windows`` groups of T consecutive rows, by `kernels.reference.window_attention`:
    x [windows * T, 3 C] to [windows * T, C].

    The score of query i and key j of a head gets bias[head, places[i, j]] added, then mask[window, i, j]. ``bias`` is
    float32 [heads, values], ``places`` int32 [T, T], ``mask`` float32 [windows, T, T]. ``bias`` and ``mask`` are -1 for
    none. ``ids`` needs ``windows`` = 1.
    """

    x: int
    heads: int
    factor: float
    windows: int
    ids: int
    pad: int
    bias: int
    values: int
    places: int
    mask: int


class Gather(Op, tag="gather"):
    """y [R, C] = the rows of x f32 [N, C] that ``rows`` int32 [R] names; -1 is a row of zeros."""

    x: int
    rows: int


class Quantize(Op, tag="quantize"):
    """Codes of the values x f32, with the scale and zero point of y, by `kernels.reference.quantize`.

    x and y have as many elements, in one order.
    """

    x: int


class Dequantize(Op, tag="dequantize"):
    """Values f32 of the codes x, by `kernels.reference.dequantize`; x and y have as many elements, in one order."""

    x: int


AnyOp = (
    Conv
    | Add
    | Mul
    | Lut
    | Pool
    | Concat
    | Transpose
    | View
    | Reshape
    | Pad
    | Softmax
    | Embed
    | Linear
    | Norm
    | Attention
    | Patches
    | Position
    | Mean
    | Normalize
    | Resample
    | Function
    | Gate
    | RmsNorm
    | Sum
    | Rotary
    | WindowAttention
    | Gather
    | Quantize
    | Dequantize
)


def operator(op: Op) -> str:
    """The name of the kind of ``op`` in the file."""
    return str(op.__struct_config__.tag)


#: The names of all operators, and of those that every agent knows that does not say which ones it knows.
OPERATORS: Final = frozenset(str(kind.__struct_config__.tag) for kind in get_args(AnyOp))
FIRST_OPERATORS: Final = OPERATORS - {
    "view",
    "normalize",
    "resample",
    "function",
    "gate",
    "rms_norm",
    "sum",
    "rotary",
    "window_attention",
    "gather",
    "quantize",
    "dequantize",
}


class Golden(msgspec.Struct):
    """A test that a machine computes the same bits: input codes are SHAKE-256(``seed``), the output hashes to
    ``sha256``.
    """

    seed: str
    sha256: str


class Header(msgspec.Struct):
    model: str
    cut: str
    weight_bits: int  # the most bits of any operator
    preprocess: Preprocess
    tensors: list[Tensor]
    input: int
    output: int
    ops: list[AnyOp]
    arena_bytes: int
    blob_bytes: int
    golden: Golden


#: Operators whose results are, in general, sums or choices of several values. All others can be inverted, or nearly.
_MIXING: Final = (Conv, Linear, Attention, WindowAttention, Pool, Mean)


def reveals_input(header: Header) -> bool:
    """Whether the head only moves, converts, looks up or normalizes values, so that its output reveals the input."""
    return not any(isinstance(op, _MIXING) for op in header.ops)


class Segment(msgspec.Struct):
    """A parsed segment: the header, and the blob as uint8."""

    header: Header
    blob: NDArray[np.uint8]


def spread_bytes(header: Header, op: AnyOp) -> int:
    """The bytes of the bias [heads, T, T] that `WindowAttention` reads, which the file holds as values and places."""
    if not isinstance(op, WindowAttention) or op.bias == -1:
        return 0
    return 4 * op.heads * (header.tensors[op.out].shape[0] // max(op.windows, 1)) ** 2


def needed(header: Header) -> frozenset[str]:
    """The operators that an agent must know to run the head.

    Older agents know `View` of codes only. Those that know it of float32 know `Gather` too, which came with it.
    """
    floats = any(isinstance(op, View) and header.tensors[op.out].dtype == "f32" for op in header.ops)
    return frozenset({*map(operator, header.ops), *(["gather"] if floats else [])})


def roundup(n: int) -> int:
    """``n`` rounded up to a multiple of `ALIGN`."""
    return -(-n // ALIGN) * ALIGN


class Constant(NamedTuple):
    """An array of an operator: ``size`` values of ``kind`` (codes at ``bits`` bits) in ``rows`` output channels.

    Its offset is the field ``field`` of ``op``, or the element ``entry`` of that field for a `Concat`.
    """

    op: AnyOp
    field: str
    kind: compression.Kind
    size: int
    bits: int = 8
    rows: int = 1
    entry: int = -1

    @property
    def offset(self) -> int:
        value = getattr(self.op, self.field)
        return int(value if self.entry < 0 else value[self.entry])

    def place(self, offset: int) -> None:
        """Set its offset."""
        if self.entry < 0:
            setattr(self.op, self.field, offset)
        else:
            getattr(self.op, self.field)[self.entry] = offset

    def part(self) -> compression.Part:
        """Its place in the blob."""
        if self.kind == "codes" and isinstance(self.op, Embed):
            return compression.Part(self.kind, self.offset, self.size, self.bits, self.rows, self.op.scales)
        return compression.Part(self.kind, self.offset, self.size, self.bits)


def constants(header: Header) -> list[Constant]:
    """Every array of the operators, in file order. Raises `errors.SegmentError` for sizes beyond the limits."""
    found: list[Constant] = []
    size = 0
    for op in header.ops:
        for constant in _constants(header, op):
            found.append(constant)
            size += roundup(constant.part().nbytes)
            if constant.size < 0 or size > limits.MAX_SEGMENT_BYTES or len(found) > limits.MAX_CONSTANTS:
                raise errors.SegmentError(
                    "the segment has more constants than the limit; use a smaller model",
                    reason="too-many-constants",
                )
    return found


def parts(header: Header) -> list[compression.Part]:
    """The places of all `constants` in the blob."""
    return [constant.part() for constant in constants(header)]


def _constants(header: Header, op: AnyOp) -> Iterator[Constant]:
    match op:
        case Conv():
            rows, inner = _side(header, op.out), _side(header, op.x) // max(op.groups, 1)
            yield Constant(op, "weight", "codes", rows * _area(op) * inner, _bits(op), rows)
            yield Constant(op, "bias", "i32", rows)
            yield Constant(op, "multiplier", "f32", rows)
        case Linear():
            rows = _side(header, op.out)
            yield Constant(op, "weight", "codes", rows * _side(header, op.x), _bits(op), rows)
            yield Constant(op, "scales", "f32", rows)
            yield Constant(op, "bias", "f32", rows)
        case Embed():
            width, tokens = _side(header, op.out), _side(header, op.x)
            yield Constant(op, "weight", "codes", op.vocabulary * width, _bits(op), op.vocabulary)
            yield Constant(op, "scales", "f32", op.vocabulary)
            yield Constant(op, "position", "f32", tokens * width)
        case Norm():
            yield Constant(op, "gamma", "f32", _side(header, op.out))
            yield Constant(op, "beta", "f32", _side(header, op.out))
        case Position():
            _side(header, op.out)
            yield Constant(op, "table", "f32", math.prod(header.tensors[op.out].shape))
        case Normalize():
            yield Constant(op, "gamma", "f32", _side(header, op.out))
            yield Constant(op, "beta", "f32", _side(header, op.out))
        case Resample():
            for side, field in enumerate(("row", "column")):
                size = _plane_side(header, op.out, side)
                yield Constant(op, f"{field}s", "i32", size)
                yield Constant(op, f"{field}_weights", "f32", size)
        case RmsNorm():
            yield Constant(op, "gamma", "f32", _side(header, op.out))
        case Rotary():
            yield Constant(op, "table", "f32", 2 * op.tokens * op.size)
        case WindowAttention():
            _side(header, op.out)
            area = (header.tensors[op.out].shape[0] // max(op.windows, 1)) ** 2
            if op.bias != -1:
                yield Constant(op, "bias", "f32", op.heads * op.values)
                yield Constant(op, "places", "i32", area)
            if op.mask != -1:
                yield Constant(op, "mask", "f32", op.windows * area)
        case Gather():
            _side(header, op.out)
            yield Constant(op, "rows", "i32", header.tensors[op.out].shape[0])
        case Lut():
            yield Constant(op, "table", "table", compression.TABLE)
        case Concat():
            for entry, table in enumerate(op.tables):
                if table != -1:
                    yield Constant(op, "tables", "table", compression.TABLE, entry=entry)


def _side(header: Header, tensor: int) -> int:
    """The last axis of a tensor."""
    if not 0 <= tensor < len(header.tensors) or not header.tensors[tensor].shape:
        raise errors.SegmentError(
            "the segment refers to a tensor that does not exist or has no shape; download it again",
            reason="unknown-tensor",
        )
    return header.tensors[tensor].shape[-1]


def _plane_side(header: Header, tensor: int, axis: int) -> int:
    """The height (axis 0) or the width (1) of a plane."""
    _side(header, tensor)
    shape = header.tensors[tensor].shape
    if len(shape) != 3:
        raise errors.SegmentError(
            "the segment resizes a tensor that is no plane; download it again", reason="shapes-differ"
        )
    return shape[axis]


def _area(op: Conv) -> int:
    return math.prod(op.kernel[:2])


def _bits(op: Conv | Linear | Embed) -> int:
    if not 2 <= op.bits <= 8:
        raise errors.SegmentError(
            f"the segment has weights of {op.bits} bits in {op.name!r}; download it again", reason="weight-bits"
        )
    return op.bits


def build(header: Header, blob: bytes) -> bytes:
    """The segment file of ``header`` and ``blob``; ``header.blob_bytes`` must be the blob's length.

    The file stores only `constants`; the rest of the blob must be 0. Offsets may change when the file is parsed.
    """
    if header.blob_bytes != len(blob):
        raise errors.SegmentError(
            f"the header declares a blob of {header.blob_bytes} bytes; it has {len(blob)}", reason="blob-bytes"
        )
    places = parts(header)
    if any(part.offset < 0 or part.offset + part.nbytes > len(blob) for part in places):
        raise errors.SegmentError(
            "the header has constants outside the blob; correct their offsets", reason="constants-outside"
        )
    rest = np.frombuffer(blob, np.uint8).copy()
    for part in places:
        part.of(rest)[:] = 0
    if rest.any():
        raise errors.SegmentError(
            "the blob has bytes outside all constants; add their operator to `segment.constants`",
            reason="unnamed-bytes",
        )
    data = frame(header) + compression.encode(np.frombuffer(blob, np.uint8), places)
    check_inflation(header, len(data))
    return data


def frame(header: Header) -> bytes:
    """The segment file up to its constants."""
    bare = copy.deepcopy(header)
    bare.blob_bytes = 0
    for constant in constants(bare):
        constant.place(0)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    text = deflate.compress(msgspec.json.encode(bare)) + deflate.flush()
    return MAGIC + FORMAT_VERSION.to_bytes(4, "little") + len(text).to_bytes(4, "little") + text


def parse(data: bytes) -> Segment:
    """The segment in ``data``. Raises `errors.SegmentError` for a malformed container; `verify` checks the contents.

    The blob takes at most `limits.MAX_SEGMENT_BYTES`, and at most `limits.MAX_INFLATION` times the size of ``data`` (or
    `limits.SMALL_BLOB`).
    """
    header, start = parse_header(data)
    check_inflation(header, len(data))
    return Segment(header, compression.decode(data[start:], parts(header), header.blob_bytes))


def check_inflation(header: Header, size: int) -> None:
    """Raise `errors.SegmentError` if the blob is much larger than its source of ``size`` bytes."""
    if header.blob_bytes > max(limits.MAX_INFLATION * size, limits.SMALL_BLOB):
        raise errors.SegmentError(
            "the constants of the segment are too large for its file; download it again",
            reason="constants-too-large",
        )


def parse_header(data: bytes) -> tuple[Header, int]:
    """The header, with offsets, and the position of the constants in ``data``, a segment file or its beginning.

    Raises `errors.SegmentError`.
    """
    if len(data) < 16 or data[:8] != MAGIC:
        raise errors.SegmentError("the file is not a segment; download it again", reason="not-a-segment")
    version, length = int.from_bytes(data[8:12], "little"), int.from_bytes(data[12:16], "little")
    if version != FORMAT_VERSION:
        raise errors.SegmentError(
            f"segment format {version} is not supported (this version reads {FORMAT_VERSION}); run the same "
            "splitedge version on both sides",
            reason="format",
            version=version,
        )
    if length > limits.MAX_HEADER_BYTES or 16 + length > len(data):
        raise errors.SegmentError("the segment is truncated; download it again", reason="truncated")
    try:
        header = msgspec.json.decode(_inflated(data[16 : 16 + length]), type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, zlib.error) as error:
        raise errors.SegmentError(
            f"the header of the segment is corrupt: {str(error)[:300]}", reason="header"
        ) from error
    _place(header)
    return header, 16 + length


def _inflated(text: bytes) -> bytes:
    inflate = zlib.decompressobj(-15, DICTIONARY)
    found = inflate.decompress(text, limits.MAX_HEADER_BYTES)
    if not inflate.eof or inflate.unused_data:
        raise zlib.error("too long or incomplete")
    return found


def _place(header: Header) -> None:
    """Set the offsets of all constants, one after another at multiples of `ALIGN`."""
    header.blob_bytes = 0
    for constant in constants(header):
        constant.place(header.blob_bytes)
        header.blob_bytes += roundup(constant.part().nbytes)


def digest(data: bytes) -> str:
    """SHA-256 of a segment file in hex, its name."""
    return hashlib.sha256(data).hexdigest()


def golden_input(seed: str, size: int) -> NDArray[np.uint8]:
    """The golden input codes: SHAKE-256 of ``seed``, ``size`` bytes."""
    return np.frombuffer(hashlib.shake_256(seed.encode()).digest(size), np.uint8)


def golden_frame(header: Header) -> NDArray[Any]:
    """The golden input in the head's type: codes; float32 (byte - 128) / 32; or token ids, two bytes modulo the
    vocabulary.
    """
    tensor = header.tensors[header.input]
    count = math.prod(tensor.shape)
    if tensor.dtype == "i32":
        pairs = golden_input(header.golden.seed, 2 * count).view("<u2").astype(np.int64)
        return (pairs % vocabulary(header)).astype(np.int32).reshape(tensor.shape)
    codes = golden_input(header.golden.seed, count).reshape(tensor.shape)
    return codes if tensor.dtype == "u8" else (codes.astype(np.float32) - np.float32(128)) / np.float32(32)


def vocabulary(header: Header) -> int:
    """The number of token ids that the head's input allows."""
    sizes = [op.vocabulary for op in header.ops if isinstance(op, Embed) and op.x == header.input]
    return min(sizes, default=1 << 31)
