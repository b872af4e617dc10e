"""Builds small segments by hand, one operator after another, for tests of the executor and the verifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels import reference
from splitedge.head import segment as seg
from splitedge.protocol.messages import Preprocess


class Builder:
    """A segment that grows: each method appends one operator and returns its output tensor. Every tensor has its own place in the arena."""

    def __init__(
        self, shape: Sequence[int], seed: Any = 0, scale: float = 1.0, zero_point: int = 0, dtype: Any = "u8"
    ) -> None:
        """``seed``: of numpy's generator, or what is to be used in its place."""
        self.random: Any = np.random.default_rng(seed) if isinstance(seed, int) else seed
        self.tensors: list[seg.Tensor] = []
        self.ops: list[seg.AnyOp] = []
        self.blob = b""
        self.arena = 0
        self.input = self.tensor(shape, scale, zero_point, dtype)

    def tensor(self, shape: Sequence[int], scale: float = 1.0, zero_point: int | None = None, dtype: Any = "u8") -> int:
        zero = int(self.random.integers(0, 256)) if zero_point is None and dtype == "u8" else zero_point or 0
        self.tensors.append(seg.Tensor([int(n) for n in shape], float(np.float32(scale)), zero, self.arena, dtype))
        self.arena += -(-self.tensors[-1].nbytes // 64) * 64
        return len(self.tensors) - 1

    def constant(self, values: Any) -> int:
        offset = len(self.blob)
        data = np.ascontiguousarray(values).tobytes()
        self.blob += data + bytes(-len(data) % 64)
        return offset

    def append(
        self, op: type, shape: Sequence[int], zero_point: int | None = None, scale: float = 1.0, dtype: Any = "u8", **fields: Any
    ) -> int:  # fmt: skip
        out = self.tensor(shape, scale, zero_point, dtype)
        self.ops.append(op(name=f"{op.__name__.lower()}{len(self.ops)}", out=out, **fields))
        return out

    def conv(
        self, x: int, outs: int, kernel: Sequence[int] = (1, 1), stride: Sequence[int] = (1, 1), pad: Sequence[int] = (0, 0, 0, 0),
        dilation: Sequence[int] = (1, 1), groups: int = 1, bits: int = 8, lo: int = 0, hi: int = 255,
    ) -> int:  # fmt: skip
        h, w, c = ([1, 1, *self.tensors[x].shape] if len(self.tensors[x].shape) == 1 else self.tensors[x].shape)[-3:]
        shape = (outs, *kernel, c // groups)
        levels = reference.weight_levels(bits)
        codes = self.random.integers(0, len(levels) if bits == 2 else len(levels) - 1, shape).astype(np.uint8)
        window = math.prod(shape[1:])
        spread = float(np.abs(levels.astype(np.float64)).mean()) * 100 * math.sqrt(window)
        multiplier = (self.random.random(outs) * 80 / spread + 1e-6).astype(np.float32)
        bias = self.random.integers(-int(spread), int(spread) + 1, outs).astype(np.int32)
        oh = (h + pad[0] + pad[2] - (kernel[0] - 1) * dilation[0] - 1) // stride[0] + 1
        ow = (w + pad[1] + pad[3] - (kernel[1] - 1) * dilation[1] - 1) // stride[1] + 1
        return self.append(
            seg.Conv, [outs] if len(self.tensors[x].shape) == 1 else [oh, ow, outs], x=x, bits=bits,
            weight=self.constant(reference.pack_bits(codes.reshape(-1), bits)), bias=self.constant(bias), multiplier=self.constant(multiplier),
            kernel=list(kernel), stride=list(stride), dilation=list(dilation), pad=list(pad), groups=groups, lo=lo, hi=hi,
        )  # fmt: skip

    def weights(self, shape: tuple[int, ...], bits: int) -> int:
        """Packed random codes."""
        top = (1 << bits) - (1 if bits == 2 else 2)
        codes = self.random.integers(0, top + 1, math.prod(shape)).astype(np.uint8)
        return self.constant(reference.pack_bits(codes, bits))

    def floats(self, *shape: int, scale: float = 1.0) -> int:
        return self.constant((self.random.normal(size=shape) * scale).astype(np.float32))

    def embed(self, x: int, channels: int, vocabulary: int = 99, bits: int = 8) -> int:
        tokens = self.tensors[x].shape[0]
        return self.append(
            seg.Embed, [tokens, channels], dtype="f32", x=x, bits=bits, vocabulary=vocabulary, weight=self.weights((vocabulary, channels), bits),
            scales=self.floats(vocabulary, scale=0.01), position=self.floats(tokens, channels),
        )  # fmt: skip

    def linear(self, x: int, outs: int, bits: int = 8, activation: str = "none", residual: int = -1) -> int:
        *rows, inner = self.tensors[x].shape
        spread = 1 / (np.abs(reference.weight_levels(bits).astype(np.float64)).mean() * math.sqrt(inner))
        return self.append(
            seg.Linear, [*rows, outs], dtype="f32", x=x, bits=bits, weight=self.weights((outs, inner), bits),
            scales=self.floats(outs, scale=spread), bias=self.floats(outs), activation=activation, residual=residual,
        )  # fmt: skip

    def norm(self, x: int) -> int:
        shape = self.tensors[x].shape
        places = {"gamma": self.floats(shape[-1]), "beta": self.floats(shape[-1])}
        return self.append(seg.Norm, shape, dtype="f32", x=x, epsilon=float(np.float32(1e-5)), **places)

    def normalize(self, x: int, rows: int = 1, groups: int = 1, epsilon: float = 0.5) -> int:
        shape = self.tensors[x].shape
        places = {"gamma": self.floats(shape[-1], scale=40.0), "beta": self.floats(shape[-1], scale=20.0)}
        numbers = {"rows": rows, "groups": groups, "epsilon": float(np.float32(epsilon)), "lo": 3, "hi": 250}
        return self.append(seg.Normalize, shape, x=x, **numbers, **places)

    def resample(self, x: int, height: int, width: int, linear: bool = True) -> int:
        source = self.tensors[x]
        fields = {}
        for name, size, before in (("row", height, source.shape[0]), ("column", width, source.shape[1])):
            share = self.random.random(size) if linear else np.zeros(size)
            fields[f"{name}s"] = self.constant(self.random.integers(0, before, size).astype(np.int32))
            fields[f"{name}_weights"] = self.constant(share.astype(np.float32))
        return self.append(
            seg.Resample, [height, width, source.shape[2]], source.zero_point, source.scale, x=x, **fields
        )

    def attention(self, x: int, heads: int, ids: int = -1) -> int:
        tokens, width = self.tensors[x].shape
        factor = float(np.float32(1 / math.sqrt(width / 3 / heads)))
        return self.append(
            seg.Attention, [tokens, width // 3], dtype="f32", x=x, heads=heads, factor=factor, ids=ids, pad=0
        )

    def window_attention(
        self, x: int, heads: int, windows: int = 1, ids: int = -1, bias: bool = True, mask: bool = True
    ) -> int:
        rows, width = self.tensors[x].shape
        tokens = rows // windows
        values = max(1, tokens * tokens // 3)
        places = self.random.integers(0, values, (tokens, tokens)).astype(np.int32)
        return self.append(
            seg.WindowAttention, [rows, width // 3], dtype="f32", x=x, heads=heads, windows=windows, ids=ids, pad=0,
            factor=float(np.float32(1 / math.sqrt(width / 3 / heads))),
            bias=self.floats(heads, values) if bias else -1, values=values, places=self.constant(places) if bias else -1,
            mask=self.floats(windows, tokens, tokens, scale=9) if mask else -1,
        )  # fmt: skip

    def rotary(self, x: int, heads: int, size: int, tokens: int) -> int:
        return self.append(
            seg.Rotary, self.tensors[x].shape, dtype="f32", x=x, heads=heads, size=size, tokens=tokens,
            table=self.floats(tokens, 2, size),
        )  # fmt: skip

    def gather(self, x: int, count: int) -> int:
        """Random rows, and rows of zeros."""
        rows, channels = self.tensors[x].shape
        places = self.constant(self.random.integers(-1, rows, count).astype(np.int32))
        return self.append(seg.Gather, [count, channels], dtype="f32", x=x, rows=places)

    def rms_norm(self, x: int) -> int:
        shape = self.tensors[x].shape
        gamma = self.floats(shape[-1])
        return self.append(seg.RmsNorm, shape, dtype="f32", x=x, epsilon=float(np.float32(1e-5)), gamma=gamma)

    def finish(self, output: int | None = None, **changes: Any) -> seg.Segment:
        """The parsed segment; ``changes`` replace fields of the header. Its golden hash is not meant to hold."""
        fields: dict[str, Any] = {
            "model": "test", "cut": "end", "weight_bits": 8, "preprocess": Preprocess("tensor", self.tensors[self.input].shape),
            "tensors": self.tensors, "input": self.input, "output": len(self.tensors) - 1 if output is None else output, "ops": self.ops,
            "arena_bytes": self.arena, "blob_bytes": len(self.blob), "golden": seg.Golden("seed", ""),
        }  # fmt: skip
        header = seg.Header(**(fields | changes))
        return seg.parse(seg.build(header, self.blob))

    def codes(self, tensor: int | None = None) -> Any:
        """Random input codes, values, or token ids of which a third are 0."""
        chosen = self.tensors[self.input if tensor is None else tensor]
        if chosen.dtype == "f32":
            return self.random.normal(size=chosen.shape).astype(np.float32)
        if chosen.dtype == "i32":
            ids = self.random.integers(0, 99, chosen.shape) * (self.random.random(chosen.shape) < 0.7)
            return ids.astype(np.int32)
        return self.random.integers(0, 256, chosen.shape).astype(np.uint8)
