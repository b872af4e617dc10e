"""Small random transformers: an encoder of text built with onnx.helper, a ViT built in torch."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from calibration import importer
from calibration.graph import Graph
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

    def __init__(self, seed: int = 0) -> None:
        super().__init__([1, TOKENS], seed, opset=20)
        self.input = helper.make_tensor_value_info("x", TensorProto.INT64, [1, TOKENS])
        table = self.add("Gather", self.random_weight(50, WIDTH, scale=1.0), "x")
        places = self.add("Add", table, self.random_weight(1, TOKENS, WIDTH, scale=1.0))
        self.norm(self.add("Add", places, self.random_weight(WIDTH, scale=0.1)))

    def norm(self, x: str = "") -> str:
        gamma = self.constant(self.random.uniform(0.5, 1.5, WIDTH))
        return self.add("LayerNormalization", x or self.last, gamma, self.random_weight(WIDTH, scale=0.2), epsilon=1e-6)

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

    def block(self, mask: str = "", gelu: str = "Gelu", late_factor: bool = False) -> None:
        x = self.last
        out = self.linear(self.attention(x, mask, late_factor), WIDTH, WIDTH)
        x = self.norm(self.add("Add", x, out))
        hidden = self.linear(x, 40, WIDTH)
        hidden = self.add("Gelu", hidden) if gelu == "Gelu" else self.erf_gelu(hidden)
        self.norm(self.add("Add", self.linear(hidden, WIDTH, 40), x))


class Block(nn.Module):  # type: ignore[misc]
    """Attention and a hidden layer, each behind a norm; ``qkv``: one product seen as five axes, one cut into three, or three."""

    def __init__(self, qkv: str) -> None:
        super().__init__()
        self.qkv = qkv
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        outs = [WIDTH] * 3 if qkv == "separate" else [3 * WIDTH]
        self.parts = nn.ModuleList(nn.Linear(WIDTH, n) for n in outs)
        self.joined, self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)

    def forward(self, x: Any) -> Any:
        batch, tokens, width = x.shape
        y = self.norm1(x)
        if self.qkv == "fused":
            parts = self.parts[0](y).reshape(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            made = self.parts[0](y).chunk(3, -1) if self.qkv == "chunk" else [part(y) for part in self.parts]
            parts = [part.view(batch, tokens, HEADS, -1).transpose(1, 2) for part in made]
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        x = x + self.joined(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):  # type: ignore[misc]
    """``pool``: "mean" of the tokens, or a class "token"; ``patches``: by "conv" or "linear"."""

    def __init__(self, qkv: str, pool: str, patches: str) -> None:
        super().__init__()
        self.pool, self.patches = pool, patches
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH) if patches == "conv" else nn.Linear(3 * PATCH * PATCH, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2 + (pool == "token"), WIDTH))
        self.blocks = nn.ModuleList(Block(qkv) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        for norm in (m for m in self.modules() if isinstance(m, nn.LayerNorm)):  # as after training: all different
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)

    def forward(self, x: Any) -> Any:
        if self.patches == "conv":
            x = self.embed(x).flatten(2).transpose(1, 2)
        else:
            n, p = SIZE // PATCH, PATCH
            x = self.embed(x.reshape(-1, 3, n, p, n, p).permute(0, 2, 4, 3, 5, 1).reshape(-1, n * n, p * p * 3))
        if self.pool == "token":
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0] if self.pool == "token" else x.mean(1))


@functools.cache
def vit_model(qkv: str = "fused", pool: str = "mean", patches: str = "conv") -> onnx.ModelProto:
    """`ViT` as the importer makes it."""
    return importer.batched(exported(qkv, pool, patches))


@functools.cache
def exported(qkv: str, pool: str, patches: str) -> onnx.ModelProto:
    """`ViT`, exported and simplified, with a batch of 1."""
    torch.manual_seed(0)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    module = ViT(qkv, pool, patches).eval()
    return importer.simplify(importer.export(module, [1, 3, SIZE, SIZE]))


def encoder_model(blocks: int = 2, seed: int = 0) -> onnx.ModelProto:
    """An encoder of token ids without a mask."""
    net = Encoder(seed)
    for _ in range(blocks):
        net.block()
    return importer.batched(importer.simplify(net.model()))
