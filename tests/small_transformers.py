"""Small random transformers: an encoder of text built with onnx.helper, a ViT that torch exported."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from calibration.importing import importer
from calibration.importing.graph import Graph
from tests import models
from tests.small_models import Net

TOKENS, WIDTH, HEADS = 11, 24, 3
SIZE, PATCH, CLASSES = 16, 4, 10


def frame(graph: Graph, seed: int = 0) -> NDArray[Any]:
    """A frame for the head of ``graph``: an image of noise, or token ids of which some are 0."""
    random, shape = np.random.default_rng(seed), graph.stored_shape(graph.input)
    if not graph.takes_ids:
        return random.normal(size=shape).astype(np.float32)
    return (random.integers(1, 50, shape) * (np.arange(shape[0]) < shape[0] - 4)).astype(np.int32)


class Encoder(Net):
    """A small BERT, operator by operator."""

    def __init__(self, seed: int = 0, opset: int = 20) -> None:
        super().__init__([1, TOKENS], seed, opset)
        self.input = helper.make_tensor_value_info("x", TensorProto.INT64, [1, TOKENS])
        table = self.add("Gather", self.random_weight(50, WIDTH, scale=1.0), "x")
        places = self.add("Add", table, self.random_weight(1, TOKENS, WIDTH, scale=1.0))
        self.norm(self.add("Add", places, self.random_weight(WIDTH, scale=0.1)))

    def norm(self, x: str = "") -> str:
        gamma = self.constant(self.random.uniform(0.5, 1.5, WIDTH))
        return self.add("LayerNormalization", x or self.last, gamma, self.random_weight(WIDTH, scale=0.2), epsilon=1e-6)

    def norm_in_pieces(self, x: str, square: str = "Pow", twice: bool = False, odd: str = "") -> str:
        """As exports before version 17 of the operators have it; ``odd`` tells what is not as in a norm."""
        axes = self.constant([-2 if odd == "axis" else -1], np.int64)
        centred = other = self.add("Sub", x, self.add("ReduceMean", x, axes, keepdims=1))
        if twice:
            other = self.add("Sub", x, self.add("ReduceMean", x, axes, keepdims=1))
        two = self.constant(4.0 if odd == "power" else 2.0)
        squared = self.add("Mul", other, other) if square == "Mul" else self.add("Pow", other, two)
        variance = self.add("Add", self.add("ReduceMean", squared, axes, keepdims=1), self.constant(1e-6))
        y = self.add("Div", centred, self.add("Sqrt", variance))
        gamma = self.random.uniform(0.5, 1.5, 1 if odd == "gamma" else WIDTH)
        return self.add("Add", self.add("Mul", y, self.constant(gamma)), self.random_weight(WIDTH, scale=0.2))

    def linear(self, x: str, outs: int, ins: int) -> str:
        product = self.add("MatMul", x, self.random_weight(ins, outs, scale=1 / math.sqrt(ins)))
        return self.add("Add", self.random_weight(outs, scale=0.2), product)

    def mask(self, inverted: bool = False, away: float = -1e9) -> str:
        """``away`` where the id is 0 (or where it is not), as [1, 1, 1, T]."""
        padding = self.add("Equal", "x", self.constant(0, np.int64))
        wide = self.add("Unsqueeze", padding, self.constant([1, 2], np.int64))
        choices = (self.constant(away), self.constant(0.0))
        return self.add("Where", wide, *(choices[::-1] if inverted else choices))

    def fused_attention(self, x: str, interleaved: bool = False, spare: int = 0) -> str:
        """One product for queries, keys and values: [3, heads, size] or [heads, 3, size]; behind them ``spare`` channels that nobody reads."""
        size = WIDTH // HEADS
        made = self.linear(x, 3 * WIDTH + spare, WIDTH)
        if spare:
            zero, end, axis = (self.constant([n], np.int64) for n in (0, 3 * WIDTH, 2))
            made = self.add("Slice", made, zero, end, axis)
        shape = [1, TOKENS, HEADS, 3, size] if interleaved else [1, TOKENS, 3, HEADS, size]
        parts = self.add("Reshape", made, self.constant(shape, np.int64))
        parts = self.add("Transpose", parts, perm=[3, 0, 2, 1, 4] if interleaved else [2, 0, 3, 1, 4])
        query, key, value = (self.add("Gather", parts, self.constant(i, np.int64), axis=0) for i in range(3))
        scores = self.add("MatMul", query, self.add("Transpose", key, perm=[0, 1, 3, 2]))
        weights = self.add("Softmax", self.add("Mul", self.constant(0.35), scores), axis=-1)
        joined = self.add("Transpose", self.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        return self.add("Reshape", joined, self.constant([1, TOKENS, WIDTH], np.int64))

    def attention(self, x: str, mask: str = "", late_factor: bool = False, other: str = "") -> str:
        split, factor = self.constant([1, TOKENS, HEADS, WIDTH // HEADS], np.int64), math.sqrt(WIDTH / HEADS)
        parts = []
        for source, perm in ((other or x, [0, 2, 1, 3]), (x, [0, 2, 3, 1]), (x, [0, 2, 1, 3])):
            heads = self.add("Reshape", self.linear(source, WIDTH, WIDTH), split)
            parts.append(self.add("Transpose", heads, perm=perm))
        query, key, value = parts
        if not late_factor:
            query = self.add("Mul", query, self.constant(1 / factor))
        scores = self.add("MatMul", query, key)
        if late_factor:
            scores = self.add("Div", scores, self.constant(factor))
        if mask:
            scores = self.add("Add", scores, mask)
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        joined = self.add("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.add("Reshape", joined, self.constant([1, TOKENS, WIDTH], np.int64))

    def erf_gelu(self, x: str) -> str:
        erf = self.add("Erf", self.add("Div", x, self.constant(math.sqrt(2))))
        grown = self.add("Mul", x, self.add("Add", erf, self.constant(1.0)))
        return self.add("Mul", grown, self.constant(0.5))

    def tanh_gelu(self, x: str, cubic: bool) -> str:
        """The approximation, with the third power of x or with x x x."""
        weight, root = self.constant(0.044715), self.constant(math.sqrt(2 / math.pi))
        if cubic:
            grown = self.add("Add", x, self.add("Mul", self.add("Pow", x, self.constant(3.0)), weight))
            inner = self.add("Mul", grown, root)
        else:
            square = self.add("Mul", self.add("Mul", x, weight), x)
            inner = self.add("Mul", self.add("Mul", x, root), self.add("Add", square, self.constant(1.0)))
        half = self.add("Mul", x, self.constant(0.5))
        return self.add("Mul", half, self.add("Add", self.add("Tanh", inner), self.constant(1.0)))

    def gelu(self, x: str, form: str) -> str:
        """GELU as an operator, exact or approximate, or in single ones, by erf or tanh."""
        if form in ("Gelu", "approximate"):
            return self.add("Gelu", x, approximate="none" if form == "Gelu" else "tanh")
        return self.erf_gelu(x) if form == "erf" else self.tanh_gelu(x, form == "cubic")

    def block(self, mask: str = "", gelu: str = "Gelu", late_factor: bool = False) -> None:
        x = self.last
        out = self.linear(self.attention(x, mask, late_factor), WIDTH, WIDTH)
        x = self.norm(self.add("Add", x, out))
        hidden = self.linear(x, 40, WIDTH)
        hidden = self.gelu(hidden, gelu)
        self.norm(self.add("Add", self.linear(hidden, WIDTH, 40), x))


def vit_model(qkv: str = "fused", pool: str = "mean", patches: str = "conv") -> onnx.ModelProto:
    """A ViT (`tests.models.networks`) as the importer makes it."""
    return _imported_vit(f"vit-{qkv}-{pool}-{patches}")


@functools.cache
def _imported_vit(name: str) -> onnx.ModelProto:
    return importer.batched(simplified(name))


def simplified(name: str) -> onnx.ModelProto:
    """The stored model ``name``, simplified, with a batch of 1."""
    return importer.simplify(onnx.load(models.path(name)))


@functools.cache
def stored(name: str) -> onnx.ModelProto:
    """The stored model ``name`` as the importer makes it. It has 11 tokens, or images."""
    shape = [d.dim_value or TOKENS for d in onnx.load(models.path(name)).graph.input[0].type.tensor_type.shape.dim]
    return importer.load(models.path(name), [1, *shape[1:]])


def encoder_model(masked: bool = False) -> onnx.ModelProto:
    """An encoder of token ids; ``masked``: those that are 0 are no keys."""
    net = Encoder()
    stream = net.last
    mask = net.mask() if masked else ""
    net.last = stream
    for _ in range(2):
        net.block(mask)
    return importer.batched(importer.simplify(net.model()))
