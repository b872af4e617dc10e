"""The executor: a verified segment becomes a table of integers, packed constants and one arena; a frame is one call
into compiled code.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import emit, reference, team
from kernels.operators import conv, depthwise, gemm, transformer
from kernels.program import OPERATOR, Kind, Memory, dismiss, operator_sets, run
from splitedge import limits
from splitedge.errors import InputError, SegmentError, UsageError
from splitedge.head import segment as seg
from splitedge.head.verify import conv_layout, hwc, verify

U8 = NDArray[np.uint8]
Values = NDArray[Any]

#: Kernels read and copy whole vectors: up to a vector beyond the last byte of a tensor, never used and never outside
#: the arena.
SLACK = 256


@dataclass(frozen=True)
class OpTiming:
    """One operator of a head: its layer's name, kernel kind, products (0 where it has none), median microseconds."""

    name: str
    kind: str
    macs: int
    us: float


class Head:
    """A quantized head, ready to run. One thread at a time; a second caller waits.

    Raises `SegmentError` if the segment breaks a rule of `splitedge.head.verify`, or if this machine does not compute
    the bits that the golden hash promises.
    """

    def __init__(self, segment: seg.Segment, *, check_golden: bool = True, threads: int = 1) -> None:
        """``threads``: how many work on one frame; the bits are the same for any number."""
        weights = verify(segment)
        if not 1 <= threads <= limits.MAX_THREADS:
            raise UsageError(f"a head runs on 1 to {limits.MAX_THREADS} threads, not {threads}", reason="threads")
        self.header = segment.header
        self.input = self.header.tensors[self.header.input]
        self.output = self.header.tensors[self.header.output]
        self.threads = threads
        self._vocabulary = seg.vocabulary(self.header)
        self._table = _lower(segment, weights, threads)
        self._arena = _aligned(seg.roundup(self.header.arena_bytes) + threads * self._table.scratch_bytes + SLACK)
        self._lock = threading.Lock()
        t, sync = self._table, _aligned(8 * team.SYNC).view(np.int64)
        self._memory = Memory(
            t.operators, self._arena, t.weights, t.biases, t.multipliers, t.tables, t.ints, t.floats, t.taps, sync
        )
        self._operator_sets = operator_sets(t.operators["kind"])
        for member in range(1, threads):
            arguments = (self._memory, *self._operator_sets, 0, 0, t.scratch_bytes, member, threads)
            threading.Thread(target=run, args=arguments, name=f"head-{member}", daemon=True).start()
        if threads > 1:
            weakref.finalize(self, dismiss, sync)
        if check_golden:
            self._check_golden()

    @property
    def arena_bytes(self) -> int:
        """Memory for activations and scratch, in bytes."""
        return self._arena.size

    @property
    def constant_bytes(self) -> int:
        """Memory for packed weights and tables, in bytes."""
        t = self._table
        return sum(a.nbytes for a in (t.weights, t.biases, t.multipliers, t.tables))

    def run(self, x: Values) -> Values:
        """Output codes of the input codes ``x`` (uint8, the input's shape), or float32 values where the output's
        ``dtype`` is f32.

        Raises `InputError` for another shape or type than the input's, and for token ids that the model does not know.
        """
        with self._lock:
            self._put(x)
            self._call(0, len(self._table.operators))
            return self._get(self.header.output)

    def taps(self, x: Values, tensors: list[int]) -> list[Values]:
        """The codes or values of several tensors of one frame, in the order of ``tensors`` (indices into the header's
        tensors).
        """
        found: dict[int, Values] = {}
        with self._lock:
            self._put(x)
            found[self.header.input] = self._get(self.header.input)
            for i, op in enumerate(self.header.ops):
                self._call(self._table.starts[i], self._table.starts[i + 1])
                if op.out in tensors:
                    found[op.out] = self._get(op.out)
        return [found[t] for t in tensors]

    def profile(self, x: Values, repeats: int = 20) -> list[OpTiming]:
        """Median time of each operator over ``repeats`` frames; the sum is more than a whole frame's time by a call for
        each operator.
        """
        times: list[list[float]] = [[] for _ in self.header.ops]
        with self._lock:
            for _ in range(repeats):
                self._put(x)
                for i, into in enumerate(times):
                    start = time.perf_counter()
                    self._call(self._table.starts[i], self._table.starts[i + 1])
                    into.append((time.perf_counter() - start) * 1e6)
        return [
            OpTiming(op.name, kind, macs, median(into))
            for op, kind, macs, into in zip(self.header.ops, self._table.kinds, self._table.macs, times, strict=True)
        ]

    def _put(self, x: Values) -> None:
        wanted = seg.DTYPES[self.input.dtype]
        if x.dtype != wanted or list(x.shape) != self.input.shape:
            kind = {"u8": "uint8 codes", "f32": "float32 values", "i32": "int32 token ids"}[self.input.dtype]
            raise InputError(
                f"the head takes {kind} of shape {self.input.shape}, not {x.dtype} of shape {list(x.shape)}",
                reason="other-tensor",
            )
        if self.input.dtype == "i32" and not (int(x.min()) >= 0 and int(x.max()) < self._vocabulary):
            raise InputError(
                f"the model knows the token ids 0 to {self._vocabulary - 1}; use the tokenizer of this model",
                reason="token-ids",
            )
        self._arena[self.input.offset :][: x.nbytes] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)

    def _get(self, tensor: int) -> Values:
        t = self.header.tensors[tensor]
        values: Values = self._arena[t.offset : t.offset + t.nbytes].view(seg.DTYPES[t.dtype])
        return values.reshape(t.shape).copy()

    def _call(self, start: int, stop: int) -> None:
        run(self._memory, *self._operator_sets, start, stop, self._table.scratch_bytes, 0, self.threads)

    def _check_golden(self) -> None:
        frame = seg.golden_frame(self.header)
        if hashlib.sha256(self.run(frame).tobytes()).hexdigest() != self.header.golden.sha256:
            raise SegmentError(
                "this machine does not compute the segment's golden answer; fetch it again, and if that does not "
                "help, report it",
                reason="golden-answer",
            )


def load(data: bytes, threads: int = 1) -> Head:
    """The head in a segment file: parsed, verified, prepared, compiled kernels warm, golden answer checked."""
    return Head(seg.parse(data), threads=threads)


def _aligned(size: int) -> U8:
    """``size`` bytes that start at a multiple of 64."""
    memory = np.zeros(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]


# --- from operators to the table --------------------------------------------------------------------------------------


class _Pool:
    """Constants of one type, each part at a multiple of 64 bytes."""

    def __init__(self, kind: type) -> None:
        self.kind, self.parts, self.size = np.dtype(kind), [], 0  # type: tuple[Any, list[Any], int]

    def put(self, values: NDArray[Any]) -> int:
        """Element offset of ``values`` in the pool."""
        start, fill = self.size, -values.size % (64 // self.kind.itemsize)
        self.parts += [values.reshape(-1).astype(self.kind, copy=False), np.zeros(fill, self.kind)]
        self.size += values.size + fill
        return start

    def array(self) -> NDArray[Any]:
        memory: NDArray[Any] = _aligned(self.size * self.kind.itemsize + 64).view(
            self.kind
        )  # a vector may be read beyond
        if self.parts:
            np.concatenate(self.parts, out=memory[: self.size])
        return memory


@dataclass
class _Table:
    """Arguments of `kernels.program.run`; for each operator the start of its rows, its kind and its products."""

    operators: NDArray[np.void]
    weights: U8
    biases: NDArray[np.int32]
    multipliers: NDArray[np.float32]
    tables: U8
    ints: NDArray[np.int32]
    floats: NDArray[np.float32]
    taps: NDArray[np.int64]
    scratch_bytes: int
    starts: list[int]
    kinds: list[str]
    macs: list[int]


@dataclass
class _Lowering:
    """What grows while operators are lowered one by one."""

    segment: seg.Segment
    rows: list[NDArray[np.void]] = field(default_factory=list)
    weights: _Pool = field(default_factory=lambda: _Pool(np.uint8))
    biases: _Pool = field(default_factory=lambda: _Pool(np.int32))
    multipliers: _Pool = field(default_factory=lambda: _Pool(np.float32))
    tables: _Pool = field(default_factory=lambda: _Pool(np.uint8))
    scratch: int = 0  # bytes after the header's arena, shared by all operators
    ints: int = 1
    floats: int = 1
    taps: int = 1

    def tensor(self, index: int) -> seg.Tensor:
        return self.segment.header.tensors[index]

    def row(self, kind: Kind, source: int, target: int, **fields: float | Sequence[int]) -> None:
        """Append a row from tensor ``source`` to tensor ``target``; ``fields``: values of columns of `OPERATOR`."""
        x, y = self.tensor(source), self.tensor(target)
        places = {"x": x.offset, "y": y.offset, "scratch": seg.roundup(self.segment.header.arena_bytes)}
        row = np.zeros(1, OPERATOR)
        for name, value in ({"kind": kind, "zero_x": x.zero_point, "zero_y": y.zero_point} | places | fields).items():
            row[name] = value
        self.rows.append(row)

    def floats_at(self, offset: int, count: int) -> int:
        """Place among the multipliers of ``count`` float32 numbers in the blob."""
        return self.multipliers.put(self.segment.blob[offset : offset + 4 * count].view(np.float32))

    def table(self, offset: int) -> int:
        return self.tables.put(self.segment.blob[offset : offset + 256])


def _lower(segment: seg.Segment, weights: dict[int, NDArray[np.int8]], threads: int) -> _Table:
    low = _Lowering(segment)
    starts, kinds, macs = [0], [], []
    for i, op in enumerate(segment.header.ops):
        if isinstance(op, seg.Conv):
            kinds.append(_lower_conv(low, op, weights[i]))
            macs.append(math.prod(low.tensor(op.out).shape) * weights[i][0].size)
        elif isinstance(op, seg.Linear | seg.Embed | seg.Attention | seg.WindowAttention):
            kinds.append(type(op).__name__.lower())
            macs.append(_lower_transformer(low, op, weights.get(i)))
        else:
            _LOWER[type(op)](low, op)
            kinds.append(type(op).__name__.lower())
            macs.append(0)
        starts.append(len(low.rows))
    return _Table(
        operators=np.concatenate([np.zeros(0, OPERATOR), *low.rows]),
        weights=low.weights.array(),
        biases=low.biases.array(),
        multipliers=low.multipliers.array(),
        tables=low.tables.array(),
        ints=np.zeros((threads, low.ints), np.int32),
        floats=np.zeros((threads, low.floats), np.float32),
        taps=np.zeros((threads, low.taps), np.int64),
        scratch_bytes=seg.roundup(low.scratch),
        starts=starts,
        kinds=kinds,
        macs=macs,
    )


def _window(op: seg.Conv | seg.Pool, x: tuple[int, int, int], y: tuple[int, int, int]) -> dict[str, int]:
    kernel_h, kernel_w = op.kernel
    stride_h, stride_w = op.stride
    top, left, bottom, right = op.pad
    return {
        "height": x[0],
        "width": x[1],
        "channels": x[2],
        "out_height": y[0],
        "out_width": y[1],
        "out_channels": y[2],
        "kernel_h": kernel_h,
        "kernel_w": kernel_w,
        "stride_h": stride_h,
        "stride_w": stride_w,
        "top": top,
        "left": left,
        "bottom": bottom,
        "right": right,
    }


def _lower_conv(low: _Lowering, op: seg.Conv, w: NDArray[np.int8]) -> str:
    """Choose the kernel: depthwise, or products of matrices. Returns its kind for people."""
    x, y = hwc(low.tensor(op.x).shape), hwc(low.tensor(op.out).shape)
    blob = low.segment.blob
    bias = emit.correct_bias(blob[op.bias : op.bias + 4 * y[2]].view(np.int32), w)
    multiplier = blob[op.multiplier : op.multiplier + 4 * y[2]].view(np.float32)
    pointwise = w.shape[1:3] == (1, 1) and op.groups == 1 and op.stride == [1, 1] and not any(op.pad)
    fields = _window(op, x, y)
    if op.groups == x[2] == y[2] and not pointwise:
        kind, spread = Kind.DEPTHWISE, depthwise.pack_channels
        stride, dilation = (op.stride[0], op.stride[1]), (op.dilation[0], op.dilation[1])
        packed = depthwise.pack_weights(w.reshape(w.shape[:3]), stride, dilation)
        low.scratch = max(low.scratch, x[1] * x[2] + SLACK)
        low.taps = max(low.taps, w.shape[1] * w.shape[2] + depthwise.GROUP)
    else:
        layout = conv_layout(op, x, y)
        kind, packed = Kind.CONV, conv.pack_weights(w, op.groups, layout.lines)
        spread = partial(conv.pack_columns, groups=op.groups)
        fields["rows_per_copy"] = layout.rows_per_copy
        low.scratch = max(low.scratch, layout.scratch_bytes)
    low.row(
        kind,
        op.x,
        op.out,
        **fields,
        dilation_h=op.dilation[0],
        dilation_w=op.dilation[1],
        groups=op.groups,
        lo=op.lo,
        hi=op.hi,
        weights=low.weights.put(packed),
        bias=low.biases.put(spread(bias)),
        multiplier=low.multipliers.put(spread(multiplier)),
    )
    if pointwise:
        return "dense" if x[0] * x[1] == 1 else "pointwise"
    return kind.name.lower()


def _lower_pair(low: _Lowering, op: seg.Add | seg.Mul) -> None:
    a, b = low.tensor(op.a), low.tensor(op.b)
    size = math.prod(a.shape)
    fields = {"height": size, "second": b.offset, "zero_second": b.zero_point, "lo": op.lo, "hi": op.hi}
    fields["period"] = size if a.shape == b.shape else b.shape[-1]
    if isinstance(op, seg.Add):
        low.row(Kind.ADD, op.a, op.out, **fields, multiplier_x=op.multiplier_a, multiplier_second=op.multiplier_b)
    else:
        low.row(Kind.MUL, op.a, op.out, **fields, multiplier_x=op.multiplier)


def _lower_lut(low: _Lowering, op: seg.Lut) -> None:
    low.row(Kind.LUT, op.x, op.out, height=math.prod(low.tensor(op.x).shape), table=low.table(op.table))


def _lower_pool(low: _Lowering, op: seg.Pool) -> None:
    x, y = hwc(low.tensor(op.x).shape), hwc(low.tensor(op.out).shape)
    low.ints = max(low.ints, x[2])
    kind = Kind.MAX_POOL if op.kind == "max" else Kind.AVG_POOL
    fields = {"count_pad": int(op.count_pad), "lo": op.lo, "hi": op.hi}
    low.row(kind, op.x, op.out, **_window(op, x, y), **fields, multiplier_x=op.multiplier)


def _lower_concat(low: _Lowering, op: seg.Concat) -> None:
    step, start = low.tensor(op.out).shape[-1], low.tensor(op.out).offset
    for x, table in zip(op.inputs, op.tables, strict=True):
        *rows, channels = low.tensor(x).shape
        fields = {"height": math.prod(rows), "channels": channels, "step": step}
        low.row(Kind.COPY_COLUMNS, x, op.out, **fields, y=start, table=-1 if table == -1 else low.table(table))
        start += channels


def _lower_transpose(low: _Lowering, op: seg.Transpose) -> None:
    shape = low.tensor(op.x).shape
    steps = [math.prod(shape[axis + 1 :]) for axis in op.perm]
    sizes = [shape[axis] for axis in op.perm]
    _lower_strided(low, op, 0, sizes, steps)


def _lower_view(low: _Lowering, op: seg.View) -> None:
    _lower_strided(low, op, op.start, op.sizes, op.steps)


def _lower_strided(
    low: _Lowering, op: seg.Transpose | seg.View, start: int, sizes: list[int], steps: list[int]
) -> None:
    """Elements of x from ``start`` on: one for each index below ``sizes``, ``steps`` apart."""
    missing = 4 - len(sizes)
    fields = {"sizes": [1] * missing + sizes, "steps": [0] * missing + steps}
    if low.tensor(op.x).dtype == "f32":
        place = low.tensor(op.x).offset + 4 * start
        low.row(Kind.VIEW, op.x, op.out, x=place, height=math.prod(sizes) // sizes[-1], channels=1, **fields)
        return
    low.row(Kind.TRANSPOSE, op.x, op.out, x=low.tensor(op.x).offset + start, **fields)


def _lower_reshape(low: _Lowering, op: seg.Reshape) -> None:
    """Nothing to do where both tensors are the same bytes."""
    x, y = low.tensor(op.x), low.tensor(op.out)
    if x.offset != y.offset:
        size = x.nbytes
        low.row(Kind.COPY_COLUMNS, op.x, op.out, height=1, channels=size, step=size, table=-1)


def _lower_pad(low: _Lowering, op: seg.Pad) -> None:
    h, w, c = hwc(low.tensor(op.x).shape)
    top, left, bottom, right = op.pad
    fields = {"top": top, "left": left, "bottom": bottom, "right": right, "zero_x": op.value}
    low.row(Kind.PAD, op.x, op.out, height=h, width=w, channels=c, **fields)


def _lower_softmax(low: _Lowering, op: seg.Softmax) -> None:
    x, y = low.tensor(op.x), low.tensor(op.out)
    low.floats = max(low.floats, x.shape[-1] + 16)
    fields = {"height": math.prod(x.shape[:-1]), "channels": x.shape[-1], "lo": op.lo, "hi": op.hi}
    low.row(Kind.SOFTMAX, op.x, op.out, **fields, scale_x=x.scale, scale_y=y.scale)


def _lower_norm(low: _Lowering, op: seg.Norm) -> None:
    *rows, channels = low.tensor(op.x).shape
    fields = {"height": math.prod(rows), "channels": channels, "epsilon": op.epsilon}
    gamma, beta = low.floats_at(op.gamma, channels), low.floats_at(op.beta, channels)
    low.row(Kind.NORM, op.x, op.out, **fields, multiplier=gamma, floats=beta)


def _lower_patches(low: _Lowering, op: seg.Patches) -> None:
    x, y = low.tensor(op.x).shape, low.tensor(op.out).shape
    low.row(Kind.PATCHES, op.x, op.out, height=y[0], width=x[1] // op.size, channels=x[2], kernel_h=op.size)


def _lower_position(low: _Lowering, op: seg.Position) -> None:
    rows, channels = low.tensor(op.out).shape
    table = low.floats_at(op.table, rows * channels)
    ahead = rows - low.tensor(op.x).shape[0]
    low.row(Kind.POSITION, op.x, op.out, height=rows, channels=channels, ahead=ahead, floats=table)


def _lower_mean(low: _Lowering, op: seg.Mean) -> None:
    channels = low.tensor(op.x).shape[1]
    first = low.tensor(op.x).offset + 4 * op.first * channels
    low.row(Kind.MEAN, op.x, op.out, x=first, height=op.count, channels=channels)


def _lower_normalize(low: _Lowering, op: seg.Normalize) -> None:
    *rows, channels = low.tensor(op.x).shape
    fields = {"height": op.rows, "width": math.prod(rows) // op.rows, "channels": channels, "groups": op.groups}
    gamma, beta = low.floats_at(op.gamma, channels), low.floats_at(op.beta, channels)
    places = {"multiplier": gamma, "floats": beta, "lo": op.lo, "hi": op.hi}
    low.row(Kind.NORMALIZE, op.x, op.out, **fields, **places, epsilon=op.epsilon)


def _lower_resample(low: _Lowering, op: seg.Resample) -> None:
    x, y = low.tensor(op.x).shape, low.tensor(op.out).shape
    blob = low.segment.blob
    ends = ((op.rows, op.row_weights, y[0]), (op.columns, op.column_weights, y[1]))
    places = np.concatenate([blob[place : place + 4 * n].view(np.int32) for place, _, n in ends])
    weights = np.concatenate([blob[weight : weight + 4 * n].view(np.float32) for _, weight, n in ends])
    sizes = {"height": x[0], "width": x[1], "channels": x[2], "out_height": y[0], "out_width": y[1]}
    low.row(Kind.RESAMPLE, op.x, op.out, **sizes, bias=low.biases.put(places), multiplier=low.multipliers.put(weights))


def _lower_transformer(
    low: _Lowering, op: seg.Linear | seg.Embed | seg.Attention | seg.WindowAttention, w: NDArray[np.int8] | None
) -> int:
    """Lower an operator with products or weights; return the number of its products."""
    if isinstance(op, seg.Attention | seg.WindowAttention):
        return _lower_attention(low, op)
    assert w is not None
    return _lower_embed(low, op, w) if isinstance(op, seg.Embed) else _lower_linear(low, op, w)


def _lower_attention(low: _Lowering, op: seg.Attention | seg.WindowAttention) -> int:
    rows, channels = low.tensor(op.out).shape
    windows = op if isinstance(op, seg.WindowAttention) else None
    tokens = rows // windows.windows if windows else rows
    low.scratch = max(low.scratch, transformer.attention_scratch(tokens, channels, op.heads))
    low.row(
        Kind.WINDOW_ATTENTION if windows else Kind.ATTENTION,
        op.x,
        op.out,
        height=tokens,
        channels=channels,
        heads=op.heads,
        factor=op.factor,
        ids=-1 if op.ids == -1 else low.tensor(op.ids).offset,
        pad_token=op.pad,
        **(_added(low, windows, tokens) if windows else {}),
    )
    return 2 * rows * tokens * channels


def _added(low: _Lowering, op: seg.WindowAttention, tokens: int) -> dict[str, int]:
    """The fields of windows, and of what is added to their scores."""
    return {
        "windows": op.windows,
        "added_bias": -1 if op.bias == -1 else low.multipliers.put(_bias(low.segment.blob, op, tokens)),
        "added_mask": -1 if op.mask == -1 else low.floats_at(op.mask, op.windows * tokens * tokens),
    }


def _bias(blob: U8, op: seg.WindowAttention, tokens: int) -> NDArray[np.float32]:
    """The bias [heads, T, T] of an attention."""
    values = blob[op.bias : op.bias + 4 * op.heads * op.values].view(np.float32).reshape(op.heads, op.values)
    return values[:, blob[op.places : op.places + 4 * tokens * tokens].view(np.int32)]


def _lower_embed(low: _Lowering, op: seg.Embed, w: NDArray[np.int8]) -> int:
    tokens, channels = low.tensor(op.out).shape
    low.row(
        Kind.EMBED,
        op.x,
        op.out,
        height=tokens,
        channels=channels,
        out_channels=op.vocabulary,
        weights=low.weights.put(w.view(np.uint8)),
        multiplier=low.floats_at(op.scales, op.vocabulary),
        floats=low.floats_at(op.position, tokens * channels),
    )
    return 0


def _lower_linear(low: _Lowering, op: seg.Linear, w: NDArray[np.int8]) -> int:
    *rows, k = low.tensor(op.x).shape
    row_count, n = math.prod(rows), low.tensor(op.out).shape[-1]
    low.scratch = max(low.scratch, transformer.linear_scratch(row_count, k))
    low.row(
        Kind.LINEAR,
        op.x,
        op.out,
        height=row_count,
        channels=k,
        out_channels=n,
        weights=low.weights.put(gemm.pack_panels(w)),
        bias=low.biases.put(gemm.pad_columns(w.sum(axis=1, dtype=np.int32))),
        multiplier=low.floats_at(op.scales, n),
        floats=low.floats_at(op.bias, n),
        gelu=int(op.activation == "gelu"),
        residual=-1 if op.residual == -1 else low.tensor(op.residual).offset,
    )
    return row_count * w.size


def _lower_function(low: _Lowering, op: seg.Function | seg.Gate) -> None:
    *rows, channels = low.tensor(op.out).shape
    kind = Kind.GATE if isinstance(op, seg.Gate) else Kind.FUNCTION
    number = reference.FUNCTIONS.index(op.kind)
    low.row(kind, op.x, op.out, height=math.prod(rows), channels=channels, function=number)


def _lower_rms_norm(low: _Lowering, op: seg.RmsNorm) -> None:
    *rows, channels = low.tensor(op.x).shape
    gamma = low.floats_at(op.gamma, channels)
    low.row(
        Kind.RMS_NORM, op.x, op.out, height=math.prod(rows), channels=channels, epsilon=op.epsilon, multiplier=gamma
    )


def _lower_sum(low: _Lowering, op: seg.Sum) -> None:
    *rows, channels = low.tensor(op.out).shape
    low.row(Kind.SUM, op.a, op.out, height=math.prod(rows), channels=channels, second=low.tensor(op.b).offset)


def _lower_rotary(low: _Lowering, op: seg.Rotary) -> None:
    rows, channels = low.tensor(op.out).shape
    fields = {"height": rows, "channels": channels, "out_channels": op.size, "heads": op.heads, "tokens": op.tokens}
    low.row(Kind.ROTARY, op.x, op.out, **fields, floats=low.floats_at(op.table, 2 * op.tokens * op.size))


def _lower_gather(low: _Lowering, op: seg.Gather) -> None:
    rows, channels = low.tensor(op.out).shape
    places = low.segment.blob[op.rows : op.rows + 4 * rows].view(np.int32)
    low.row(Kind.GATHER, op.x, op.out, height=rows, channels=channels, bias=low.biases.put(places))


def _lower_quantize(low: _Lowering, op: seg.Quantize) -> None:
    y = low.tensor(op.out)
    low.row(Kind.QUANTIZE, op.x, op.out, height=math.prod(y.shape[:-1]), channels=y.shape[-1], scale_y=y.scale)


def _lower_dequantize(low: _Lowering, op: seg.Dequantize) -> None:
    x = low.tensor(op.x)
    low.row(Kind.DEQUANTIZE, op.x, op.out, height=math.prod(x.shape[:-1]), channels=x.shape[-1], scale_x=x.scale)


_LOWER: dict[type, Any] = {
    seg.Add: _lower_pair,
    seg.Mul: _lower_pair,
    seg.Lut: _lower_lut,
    seg.Pool: _lower_pool,
    seg.Concat: _lower_concat,
    seg.Transpose: _lower_transpose,
    seg.View: _lower_view,
    seg.Reshape: _lower_reshape,
    seg.Pad: _lower_pad,
    seg.Softmax: _lower_softmax,
    seg.Norm: _lower_norm,
    seg.Patches: _lower_patches,
    seg.Position: _lower_position,
    seg.Mean: _lower_mean,
    seg.Normalize: _lower_normalize,
    seg.Resample: _lower_resample,
    seg.Function: _lower_function,
    seg.Gate: _lower_function,
    seg.RmsNorm: _lower_rms_norm,
    seg.Sum: _lower_sum,
    seg.Rotary: _lower_rotary,
    seg.Gather: _lower_gather,
    seg.Quantize: _lower_quantize,
    seg.Dequantize: _lower_dequantize,
}
