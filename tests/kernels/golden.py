"""Golden hashes: every kernel over seeded inputs of awkward sizes, one hash for each group, the same on every processor and instruction set.

``python -m tests.kernels.golden [GROUP...]`` prints, as JSON, the hashes that this machine's kernels give (of these groups, else of all).
``python -m tests.kernels.golden --write`` makes golden.json anew from the slow twins in `kernels.reference`, after a change of what is computed.

What is hashed is each tensor whole, and the bytes beside what the codec writes. Inputs come from SHAKE-256 and exact arithmetic: no library's
random numbers and no library's logarithm have a part in them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import codec
from kernels import reference as ref
from kernels.codec import fused_ir, hadamard, projection
from kernels.rans import adaptive, static
from splitedge.head import Head
from splitedge.head import segment as seg
from tests import reference_head
from tests.segment_builder import Builder

Array = NDArray[Any]
FILE = Path(__file__).with_name("golden.json")
SIZES = (1, 2, 3, 5, 7, 8, 15, 31, 63, 127, 257)  # eleven, a prime: see `walk`
BITS = range(2, 9)
NONE = np.zeros(0, np.float32)
NO_SIDE = np.zeros((0, 2), np.float32)
WINDOWS = [
    # kernel, stride, pad, dilation
    ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((3, 3), (2, 2), (0, 0, 1, 1), (1, 1)),
    ((5, 5), (1, 1), (2, 2, 2, 2), (1, 1)),
    ((5, 5), (2, 2), (2, 2, 2, 2), (1, 1)),
    ((3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    ((1, 7), (1, 3), (0, 3, 0, 3), (1, 1)),
    ((2, 3), (2, 1), (1, 0, 0, 2), (1, 1)),
    ((7, 9), (1, 1), (0, 0, 0, 0), (1, 1)),
]
PLANE = (7, 11)


class Stream:
    """What `Builder` wants of a numpy generator, from SHAKE-256 of a name and a counter."""

    def __init__(self, name: str) -> None:
        self.name, self.drawn = name, 0

    def _numbers(self, size: int | Sequence[int] | None, each: int) -> Array:
        """[*size, each] of 16 random bits."""
        shape = () if size is None else (size,) if isinstance(size, int) else tuple(size)
        self.drawn += 1
        data = hashlib.shake_256(f"{self.name} {self.drawn}".encode()).digest(2 * each * math.prod(shape))
        return np.frombuffer(data, "<u2").astype(np.int64).reshape(*shape, each)

    def integers(self, low: int, high: int, size: int | Sequence[int] | None = None) -> Any:
        """low .. high - 1."""
        pair = self._numbers(size, 2)
        return low + (pair[..., 0] + (pair[..., 1] << 16)) % (high - low)

    def random(self, size: int | Sequence[int] | None = None) -> Any:
        """0 to 1, multiples of 2^-16."""
        return self._numbers(size, 1)[..., 0] * 2.0**-16

    def normal(self, size: int | Sequence[int] | None = None) -> Any:
        """Nearly normal, mean 0 and deviation 1: a sum of four."""
        return (self._numbers(size, 4).sum(axis=-1) - 2 * 65535) / 37837.0


def build(shape: Sequence[int], dtype: str = "u8", zero_point: int = 0, scale: float = 1.0) -> Builder:
    """A builder whose numbers depend on its input's shape and type alone."""
    return Builder(shape, Stream(f"{dtype} {list(shape)} {scale}"), scale, zero_point, dtype)


def tensors(builder: Builder, twin: bool, factor: float = 1) -> list[Array]:
    """Every tensor after one frame (of numbers times ``factor``, if they are floats), the arena full of ones before it."""
    segment, x = builder.finish(), builder.codes()
    if factor != 1:
        x = x * np.float32(factor)
    if twin:
        found = reference_head.run(segment, x)
        return [found[t] for t in range(len(builder.tensors))]
    head = Head(segment, check_golden=False)
    head._arena[: head.header.arena_bytes] = 0xFF
    head.run(x)
    return [head._get(t) for t in range(len(builder.tensors))]


def walk() -> Iterator[int]:
    """`SIZES` in such an order that each follows each, itself too."""
    at = 0
    for stride in range(1, len(SIZES)):
        for _ in SIZES:
            if stride == 1:
                yield SIZES[at]
            at = (at + stride) % len(SIZES)
            yield SIZES[at]


def gemm(twin: bool) -> Iterator[Array]:
    """Products of every number of rows, depth and columns, weights of 2 to 8 bits."""
    for rows in SIZES:
        builder = build([rows, 1, SIZES[0]], zero_point=7)
        x = builder.input
        for i, outs in enumerate(walk()):
            x = builder.conv(x, outs, bits=BITS[i % 7], lo=3 * (i % 2), hi=255 - 5 * (i % 2))
        yield from tensors(builder, twin)


def conv(twin: bool) -> Iterator[Array]:
    """Every number of channels in every window; groups."""
    for i, channels in enumerate(SIZES):
        builder = build([*PLANE, channels], zero_point=13)
        for j, window in enumerate(WINDOWS):
            builder.conv(builder.input, SIZES[(i * 5 + j) % 11], *window, bits=BITS[(i + j) % 7])
        yield from tensors(builder, twin)
    for channels, outs, groups in ((18, 12, 3), (8, 16, 8), (40, 20, 4), (6, 6, 2), (62, 34, 2)):
        builder = build([*PLANE, channels], zero_point=200)
        for j, window in enumerate(WINDOWS):
            builder.conv(builder.input, outs, *window, groups=groups, bits=BITS[j % 7])
        yield from tensors(builder, twin)


def depthwise(twin: bool) -> Iterator[Array]:
    """Every number of channels in every window."""
    for i, channels in enumerate((*SIZES, 16, 17, 24, 33, 48, 64, 96, 144)):
        builder = build([*PLANE, channels], zero_point=77)
        for j, window in enumerate(WINDOWS):
            builder.conv(builder.input, channels, *window, groups=channels, bits=BITS[(i + j) % 7])
        yield from tensors(builder, twin)


def elementwise(twin: bool) -> Iterator[Array]:
    """Tables, sums and products of tensors, and of a tensor and a value for each channel."""
    first, second, third = (float(np.float32(f)) for f in (0.37, 0.81, 0.0042))
    for channels in SIZES:
        shape = [3, 4, channels]
        b = build(shape, zero_point=100)
        a = b.append(seg.Lut, shape, x=b.input, table=b.constant(b.random.integers(0, 256, 256).astype(np.uint8)))
        c = b.append(seg.Add, shape, a=b.input, b=a, multiplier_a=first, multiplier_b=second, lo=0, hi=255)
        d = b.append(seg.Mul, shape, a=c, b=a, multiplier=third, lo=5, hi=240)
        row = b.append(seg.Pool, [1, 1, channels], x=d, **pooled("avg", [3, 4], [1, 1], [0] * 4))
        b.append(seg.Mul, shape, a=d, b=row, multiplier=third, lo=0, hi=255)
        b.append(seg.Add, shape, a=d, b=row, multiplier_a=first, multiplier_b=second, lo=0, hi=255)
        yield from tensors(b, twin)


def pooled(kind: str, kernel: list[int], stride: list[int], pad: list[int], count_pad: bool = False) -> dict[str, Any]:
    """The fields of a pool but its input."""
    window = {"kernel": kernel, "stride": stride, "pad": pad, "count_pad": count_pad}
    return {"kind": kind, **window, "multiplier": float(np.float32(0.9)), "lo": 0, "hi": 255}


def pools(twin: bool) -> Iterator[Array]:
    """Both kinds over overlapping, padded and whole windows."""
    for channels in SIZES:
        builder = build([7, 9, channels], zero_point=40)
        for kernel, stride, pad in (([3, 3], [2, 2], [1] * 4), ([2, 2], [2, 2], [0] * 4), ([7, 9], [1, 1], [0] * 4)):
            out = [(n + pad[i] + pad[i + 2] - kernel[i]) // stride[i] + 1 for i, n in enumerate((7, 9))]
            for kind, count_pad in (("max", False), ("avg", False), ("avg", True)):
                fields = pooled(kind, kernel, stride, pad, count_pad)
                builder.append(seg.Pool, [*out, channels], 40 if kind == "max" else None, x=builder.input, **fields)
        yield from tensors(builder, twin)


def moves(twin: bool) -> Iterator[Array]:
    """Padding, transposition, concatenation with and without a table."""
    for channels in SIZES:
        b = build([4, 5, channels])
        table = b.constant(b.random.integers(0, 256, 256).astype(np.uint8))
        padded = b.append(seg.Pad, [7, 10, channels], x=b.input, pad=[1, 2, 2, 3], value=9)
        turned = b.append(seg.Transpose, [channels, 7, 10], x=padded, perm=[2, 0, 1])
        flat = b.append(seg.Reshape, [channels * 7, 10], x=turned)
        joined = b.append(seg.Concat, [channels * 7, 20], inputs=[flat, flat], tables=[-1, table])
        b.append(seg.Transpose, [20, channels * 7], x=joined, perm=[1, 0])
        yield from tensors(b, twin)


def softmax(twin: bool) -> Iterator[Array]:
    """Narrow and wide rows of small and great scale."""
    for columns in (*SIZES, 16, 17, 1000):
        for scale in (1e-3, 0.1, 2.0):
            builder = build([3, columns], scale=scale)
            builder.append(seg.Softmax, [3, columns], 0, 1 / 256, x=builder.input, lo=0, hi=255)
            yield from tensors(builder, twin)


def linear(twin: bool) -> Iterator[Array]:
    """Float products of every number of rows, depth and columns, quantized row by row; GELU; residuals."""
    for rows in (*SIZES, 48, 49):
        builder = build([rows, SIZES[0]], "f32")
        x = builder.input
        for i, outs in enumerate(walk()):
            same = builder.tensors[x].shape == [rows, outs]
            kind = "gelu" if i % 3 == 1 else "none"
            x = builder.linear(x, outs, BITS[i % 7], kind, residual=x if same else -1)
        yield from tensors(builder, twin)
    for factor in (0, 1e-38, 1e-31, 1e-29, 1e25, 1e37):  # rows whose range is of no use
        builder = build([4, 33], "f32")
        builder.linear(builder.input, 20)
        yield from tensors(builder, twin, factor)


def norm(twin: bool) -> Iterator[Array]:
    """Layer norm of every width."""
    for channels in SIZES:
        builder = build([5, channels], "f32")
        builder.norm(builder.norm(builder.input))
        yield from tensors(builder, twin)


def normalize(twin: bool) -> Iterator[Array]:
    """Norms of codes: of each row, of planes, of groups of channels; hardly any spread, and none."""
    for channels in SIZES:
        builder = build([3, 6, channels], zero_point=40)
        b, flat = (
            builder,
            builder.append(seg.Lut, [3, 6, channels], x=builder.input, table=builder.constant(np.zeros(256, np.uint8))),
        )
        groups = next(g for g in (4, 3, 7, 1) if channels % g == 0)
        for x, rows, parts in (
            (b.input, 1, 1),
            (b.input, 18, channels),
            (b.input, 18, groups),
            (b.input, 6, 1),
            (flat, 1, 1),
        ):
            for epsilon in (1e-30, 0.5, 1e6):
                b.normalize(x, rows, parts, epsilon)
        yield from tensors(builder, twin)


def resample(twin: bool) -> Iterator[Array]:
    """Planes of every number of channels, larger and smaller, linear and to the nearest."""
    for channels in SIZES:
        builder = build([5, 7, channels], zero_point=40)
        for size in ((5, 7), (10, 21), (3, 4), (1, 1), (11, 2)):
            builder.resample(builder.input, *size)
            builder.resample(builder.input, *size, linear=False)
        yield from tensors(builder, twin)


def attention(twin: bool) -> Iterator[Array]:
    """Every number of tokens, all of them counted or some; heads of several sizes."""
    for tokens in SIZES:
        for heads, size in ((1, 1), (2, 3), (3, 8), (2, 15), (1, 33), (4, 32)):
            builder = build([tokens], "i32")
            stream = builder.embed(builder.input, 3 * heads * size)
            builder.attention(stream, heads, ids=builder.input)
            builder.attention(stream, heads)
            yield from tensors(builder, twin)


def embed(twin: bool) -> Iterator[Array]:
    """Rows of every width and bit width."""
    for i, channels in enumerate(SIZES):
        builder = build([7], "i32")
        for j in range(2):
            builder.embed(builder.input, channels, bits=BITS[(i + 3 * j) % 7])
        yield from tensors(builder, twin)


def rows(twin: bool) -> Iterator[Array]:
    """Squares of a picture, a table of positions with rows ahead, means of some rows and of one."""
    for size, channels in ((1, 1), (2, 3), (3, 7), (4, 16), (5, 33)):
        builder = build([2 * size, 3 * size, channels], "f32")
        wide = size * size * channels
        x = builder.append(seg.Patches, [6, wide], dtype="f32", x=builder.input, size=size)
        for ahead in (0, 1, 2):
            y = builder.append(seg.Position, [6 + ahead, wide], dtype="f32", x=x, table=builder.floats(6 + ahead, wide))
            for first, count in ((0, 1), (ahead, 6), (1, 3)):
                builder.append(seg.Mean, [wide], dtype="f32", x=y, first=first, count=count)
        yield from tensors(builder, twin)


def functions(twin: bool) -> Iterator[Array]:
    """Each function of rows of every width, alone and as a gate; sums; codes and back."""
    for channels in SIZES:
        builder = build([3, 2 * channels], "f32", scale=1.0)
        x = builder.input
        for kind in ref.FUNCTIONS:
            same = builder.append(seg.Function, [3, 2 * channels], dtype="f32", x=x, **{"kind": kind})
            builder.append(seg.Gate, [3, channels], dtype="f32", x=same, **{"kind": kind})
            builder.append(seg.Sum, [3, 2 * channels], dtype="f32", a=x, b=same)
        builder.rms_norm(builder.rms_norm(x))
        scale = float(np.float32(0.037))
        codes = builder.append(seg.Quantize, [6, channels], zero_point=77, scale=scale, x=x)
        builder.append(seg.Dequantize, [3, 2 * channels], dtype="f32", x=codes)
        for factor in (1, 0, 30, 1e-38, 1e37):
            yield from tensors(builder, twin, factor)


def windows(twin: bool) -> Iterator[Array]:
    """Attention within windows of every number of tokens, with a bias, a mask, both, or neither; and of some tokens."""
    for tokens in SIZES[:9]:
        for heads, size, count in ((1, 1, 3), (2, 3, 2), (3, 8, 1), (2, 15, 4), (1, 33, 1)):
            builder = build([tokens * count, 3 * heads * size], "f32")
            for bias, mask in itertools.product((False, True), repeat=2):
                builder.window_attention(builder.input, heads, count, bias=bias, mask=mask)
            yield from tensors(builder, twin)
        builder = build([tokens], "i32")
        stream = builder.embed(builder.input, 3 * 16)
        builder.window_attention(stream, 2, ids=builder.input)
        builder.window_attention(stream, 2, ids=builder.input, mask=False)
        yield from tensors(builder, twin)


def turns(twin: bool) -> Iterator[Array]:
    """Rotary positions of every size, in rows of one table and of several; rows gathered."""
    for i, half in enumerate(SIZES[:9]):
        for heads, count in ((1, 1), (2, 3)):
            builder = build([5 * count, 2 * heads * half + i], "f32")
            turned = builder.rotary(builder.input, heads, 2 * half, 5)
            builder.gather(turned, 17)
            yield from tensors(builder, twin)


def views(twin: bool) -> Iterator[Array]:
    """Elements of rows: turned, every other one, repeated."""
    for columns in SIZES:
        builder = build([6, columns], "f32")
        for sizes, steps, start in (([columns, 6], [1, columns], 0), ([2, 3, columns], [3 * columns, columns, 1], 0), ([3, 1, 2, columns], [2 * columns, 9, 0, 1], columns)):  # fmt: skip
            builder.append(
                seg.View, [math.prod(sizes)], dtype="f32", x=builder.input, start=start, sizes=sizes, steps=steps
            )
        yield from tensors(builder, twin)


def at_the_cut(twin: bool) -> Iterator[Array]:
    """The codec, a range for the tensor or for each channel: payloads of values and of 8-bit codes, values and codes out of them again."""
    block, answer = codec.BLOCK, _codec_twin if twin else _codec
    for rows, channels in (*((n, 1) for n in (*SIZES, block - 1, block, block + 13)), *((31, n) for n in SIZES)):
        stream = Stream(f"codec {rows} {channels}")
        x = (stream.normal((rows, channels)) * 3).astype(np.float32)
        codes = stream.integers(0, 256, (rows, channels)).astype(np.uint8)
        for bits in BITS:
            lo = (stream.random(channels) * -3).astype(np.float32)
            scale = ((1 + 5 * stream.random(channels)) / ((1 << bits) - 1)).astype(np.float32)
            scale[1::4] = 0
            yield from answer(x, codes, lo, scale, bits)
    most, least = float(np.finfo(np.float32).max), 1e-45
    few = np.array([0, -0.0, most, -most, least, -least, 1, -1, 0.5, 1.5, 2.5, 3.5, 1e30, -1e-30], np.float32)
    ends = np.tile(few, 24)[:, None]
    for lo, scale in itertools.product((0, -most, most, least, -1), (0, least, 1e-38, 1, most / 255)):
        yield from answer(ends, ends.astype(bool).view(np.uint8), np.float32([lo]), np.float32([scale]), 5)


def _codec_twin(x: Array, codes: Array, lo: Array, scale: Array, bits: int) -> list[Array]:
    cut = ref.codec_quantize(x, lo, scale, bits)
    looked_up = ref.codec_tables(0.037, 77, lo, scale, bits)[np.arange(len(lo)), codes]
    payload, other = (_framed(ref.pack_bits(part.reshape(-1), bits)) for part in (cut, looked_up))
    return [
        payload,
        other,
        payload,
        _framed(cut.reshape(-1)),
        _framed(ref.codec_dequantize(cut, lo, scale).reshape(-1)),
    ]


def _codec(x: Array, codes: Array, lo: Array, scale: Array, bits: int) -> list[Array]:
    size = -(-x.size * bits // 8)
    payload, other, packed = (_framed(np.zeros(size, np.uint8)) for _ in range(3))
    cut, values = _framed(np.zeros(x.size, np.uint8)), _framed(np.zeros(x.size, np.float32))
    codec.encode(x.reshape(-1), lo, ref.codec_inverse(scale), NONE, 0, bits, payload[8:-8])
    tables = ref.codec_tables(0.037, 77, lo, scale, bits)
    codec.encode_codes(codes.reshape(-1), tables.reshape(-1), bits, other[8:-8])
    codec.unpack(payload[8:-8].copy(), bits, cut[8:-8])
    codec.pack(cut[8:-8], bits, packed[8:-8])
    codec.decode(payload[8:-8], lo, scale, NONE, NO_SIDE, 0, bits, values[8:-8])
    return [payload, other, packed, cut, values]


def stages(twin: bool) -> Iterator[Array]:
    """What else the codec may do: rotations and codebooks, ranges of a row's own, changes of basis, and rANS."""
    for size, rows in itertools.product(hadamard.SIZES, (1, 2, 17)):
        stream = Stream(f"rotation {size} {rows}")
        x = (stream.normal((rows, size)) * 3).astype(np.float32)
        lo, scale = (stream.random(size) * -3).astype(np.float32), (0.2 + stream.random(size)).astype(np.float32)
        for bits in BITS:
            levels = np.sort(stream.normal(1 << bits)).astype(np.float32) if bits in fused_ir.CODEBOOKS else NONE
            yield from (_turned_twin if twin else _turned)(x, lo, scale, levels, size, bits)
    for rows, ins, outs in itertools.product((1, 2, 9), (1, 5, 40), SIZES):
        stream = Stream(f"basis {rows} {ins} {outs}")
        x, centre, matrix = ((stream.normal(s) * 3).astype(np.float32) for s in ((rows, ins), ins, (ins, outs)))
        values, sides = np.empty((rows, outs), np.float32), np.empty((2, rows, 2), np.float32)
        if twin:
            yield ref.codec_project(x, centre, matrix)
            yield np.stack([ref.codec_side(x, by_range) for by_range in (True, False)])
        else:
            projection.project(x, centre, projection.panels(matrix), values)
            for side, by_range in zip(sides, (True, False), strict=True):
                codec.measure(x, by_range, side)
            yield from (values, sides)
    for lanes, rows in itertools.product((1, static.LANES), (1, 5, 200)):
        codes = Stream(f"rans {rows}").integers(0, 3, (rows, 7)).astype(np.uint8)
        table = [[4000, 90, 6], [1, 1, 4094]]
        tables = [table[c % 2] for c in range(7)]
        if twin:
            states, words = ref.static_rans_encode(codes, tables, lanes)
            yield from (np.array(states, np.uint32), np.array(words, np.uint16))
        else:
            yield from _rans(codes, table, lanes)


def _turned_twin(x: Array, lo: Array, scale: Array, levels: Array, size: int, bits: int) -> list[Array]:
    book = levels if levels.size else None
    codes = ref.codec_quantize(ref.codec_rotate(x, size), lo, scale, bits, book)
    own = ref.codec_dequantize(codes, *ref.codec_stretched(lo, scale, np.abs(x[:, :2])), book)
    back = [ref.codec_rotate(v, size, 1 / size) for v in (ref.codec_dequantize(codes, lo, scale, book), own)]
    return [ref.pack_bits(codes.reshape(-1), bits), *back]


def _turned(x: Array, lo: Array, scale: Array, levels: Array, size: int, bits: int) -> list[Array]:
    data, values, own = np.zeros(-(-x.size * bits // 8), np.uint8), np.empty_like(x), np.empty_like(x)
    limits = ref.codec_thresholds(levels) if levels.size else NONE
    codec.encode(x.reshape(-1), lo, ref.codec_inverse(scale), limits, size, bits, data)
    codec.decode(data, lo, scale, levels, NO_SIDE, size, bits, values.reshape(-1))
    codec.decode(data, lo, scale, levels, np.abs(x[:, :2]), size, bits, own.reshape(-1))
    return [data, values, own]


def _rans(codes: Array, table: list[list[int]], lanes: int) -> list[Array]:
    starts = np.concatenate([[0, *np.cumsum(t)] for t in table]).astype(np.uint32)
    inverse = np.concatenate([[*(-(-(1 << 44) // f) for f in t), 0] for t in table]).astype(np.uint64)
    states, words = np.zeros(lanes, np.uint32), np.zeros(codes.size + 1, np.uint16)
    base = np.arange(codes.shape[1], dtype=np.int64) % 2 * (len(table[0]) + 1)
    used = static.encode(codes.reshape(-1), base, starts, inverse, states, words)
    return [states, words[words.size - used :]]


def entropy_coded(twin: bool) -> Iterator[Array]:
    """Rows of arrays of every size and alphabet, lopsided and flat, of one context and several: the coder's number and words, and the codes again."""
    for bits in BITS:
        stream, arrays = Stream(f"entropy {bits}"), []
        for i, size in enumerate((0, 64, 65, *SIZES, 2000)):
            sides = stream.integers(0, 1 << bits, (1 + i % 3, size)).min(axis=0).astype(np.uint8)
            contexts = 1 + 2 * (i % 2)
            where = stream.integers(0, contexts, size if contexts > 1 else 1).astype(np.uint8)
            arrays.append((sides, where, 1 + stream.integers(0, 300, (contexts, 1 << bits)).astype(np.int64)))
        yield from _entropy_twin(arrays) if twin else _entropy(arrays)


def _entropy_twin(arrays: list[tuple[Array, Array, Array]]) -> Iterator[Array]:
    x, words = ref.adaptive_rans_encode(arrays)
    yield _framed(np.array([x, *words], np.int64))
    sizes = [(len(codes), where, start) for codes, where, start in arrays]
    yield from (_framed(codes) for codes in ref.adaptive_rans_decode(x, words, sizes))


def _entropy(arrays: list[tuple[Array, Array, Array]]) -> Iterator[Array]:
    room = np.full(3000, 91, np.uint32)
    state = np.array([adaptive.SEED, 2992], np.int64)
    for codes, where, start in reversed(arrays):
        adaptive.encode(codes, where, start, state, room)
    words = room[state[1] : -8].copy()
    yield _framed(np.array([state[0], *words], np.int64))
    state[1] = 0
    for codes, where, start in arrays:
        out = _framed(np.zeros_like(codes))
        adaptive.decode(words, where, start, state, out[8:-8])
        yield out
    assert state.tolist() == [adaptive.SEED, len(words)]


def _framed(values: Array) -> Array:
    """``values`` between eight elements on each side that nobody may write to."""
    return np.concatenate([np.full(8, 91, values.dtype), values, np.full(8, 91, values.dtype)])


GROUPS: dict[str, Callable[[bool], Iterator[Array]]] = {
    "gemm": gemm, "conv": conv, "depthwise": depthwise, "elementwise": elementwise, "pools": pools, "moves": moves, "softmax": softmax,
    "linear": linear, "norm": norm, "attention": attention, "embed": embed, "rows": rows, "normalize": normalize, "resample": resample, "codec": at_the_cut, "stages": stages, "entropy": entropy_coded,
    "functions": functions, "windows": windows, "turns": turns, "views": views,
}  # fmt: skip
#: Those that need the integer half of the interpreter; the others need its transformers' half, or none.
INTEGERS = ("gemm", "conv", "depthwise", "elementwise", "pools", "moves", "softmax", "normalize", "resample")


def digest(group: str, twin: bool = False) -> str:
    """Hash of what the kernels of ``group`` compute, or of what their twins do."""
    found = hashlib.sha256()
    with np.errstate(all="ignore"):  # the ends of float32
        for values in GROUPS[group](twin):
            found.update(values.tobytes())
    return found.hexdigest()


def expected() -> dict[str, str]:
    """The committed hashes."""
    hashes: dict[str, str] = json.loads(FILE.read_text())
    return hashes


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(json.dumps({group: digest(group, twin=True) for group in GROUPS}, indent=2) + "\n")
    else:
        print(json.dumps({group: digest(group) for group in sys.argv[1:] or GROUPS}))
