"""Small random transformers: an encoder of text built with onnx.helper, a ViT built in torch."""

from __future__ import annotations

import functools
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from calibration.importing import importer
from calibration.importing.graph import Graph
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


def _vary_norms(module: nn.Module) -> None:
    """As after training: all different."""
    for norm in (m for m in module.modules() if isinstance(m, nn.LayerNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)


class Block(nn.Module):  # type: ignore[misc]
    """Attention and a hidden layer, each behind a norm; ``qkv``: one product seen as five axes, one cut into three, or three.

    ``eager``: attention in single operators, the only form that torch exports before version 14 of the operators.
    """

    def __init__(self, qkv: str, eager: bool = False) -> None:
        super().__init__()
        self.qkv, self.eager = qkv, eager
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
        if self.eager:
            query, key, value = parts
            mixed = (query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1) @ value
        else:
            mixed = nn.functional.scaled_dot_product_attention(*parts)
        x = x + self.joined(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):  # type: ignore[misc]
    """``pool``: "mean" of the tokens, a class "token", or "two" of them with a classifier each; ``patches``: by "conv" or "linear"."""

    def __init__(self, qkv: str, pool: str, patches: str, eager: bool = False) -> None:
        super().__init__()
        self.pool, self.patches = pool, patches
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH) if patches == "conv" else nn.Linear(3 * PATCH * PATCH, WIDTH)
        ahead = {"mean": 0, "token": 1, "two": 2}[pool]
        self.tokens = nn.ParameterList(torch.randn(1, 1, WIDTH) for _ in range(ahead))
        self.position = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2 + ahead, WIDTH))
        self.blocks = nn.ModuleList(Block(qkv, eager) for _ in range(2))
        self.norm, self.head, self.other = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)
        _vary_norms(self)

    def forward(self, x: Any) -> Any:
        if self.patches == "conv":
            x = self.embed(x).flatten(2).transpose(1, 2)
        else:
            n, p = SIZE // PATCH, PATCH
            x = self.embed(x.reshape(-1, 3, n, p, n, p).permute(0, 2, 4, 3, 5, 1).reshape(-1, n * n, p * p * 3))
        if self.pool != "mean":
            x = torch.cat([*(token.expand(x.shape[0], -1, -1) for token in self.tokens), x], 1)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.pool == "two":
            return (self.head(x[:, 0]) + self.other(x[:, 1])) / 2
        return self.head(x[:, 0] if self.pool == "token" else x.mean(1))


class Bert(nn.Module):  # type: ignore[misc]
    """Takes and yields what the BERT of a library does: ids, mask and types; the last hidden state, and the first token's through a tanh."""

    def __init__(self, gelu: str = "none") -> None:
        super().__init__()
        self.gelu = gelu
        self.word, self.kind, self.place = nn.Embedding(50, WIDTH), nn.Embedding(2, WIDTH), nn.Embedding(32, WIDTH)
        self.register_buffer("places", torch.arange(32)[None])
        self.norm, self.pooler = nn.LayerNorm(WIDTH, eps=1e-12), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block("separate") for _ in range(2))
        _vary_norms(self)

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        x = self.word(input_ids) + self.kind(token_type_ids) + self.place(self.places[:, : input_ids.shape[1]])
        x = self.norm(x)
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for block in self.blocks:
            x = self.block(block, x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))

    def block(self, block: Block, x: Any, mask: Any) -> Any:
        """Norms behind the sums, and attention in single operators."""
        query, key, value = (
            part(x).view(x.shape[0], x.shape[1], HEADS, -1).permute(0, 2, 1, 3) for part in block.parts
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + mask
        mixed = (scores.softmax(-1) @ value).permute(0, 2, 1, 3).contiguous()
        x = block.norm1(block.joined(mixed.view(x.shape)) + x)
        return block.norm2(block.down(nn.functional.gelu(block.up(x), approximate=self.gelu)) + x)


class DistilBert(nn.Module):  # type: ignore[misc]
    """Takes and yields what the DistilBERT of a library does: ids and mask, no types; queries are divided, and scores of padding filled in."""

    def __init__(self, eager: bool) -> None:
        super().__init__()
        self.eager = eager
        self.word, self.place = nn.Embedding(50, WIDTH), nn.Embedding(32, WIDTH)
        self.register_buffer("places", torch.arange(32)[None])
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.blocks = nn.ModuleList(Block("separate") for _ in range(2))
        _vary_norms(self)

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        x = self.norm(self.word(input_ids) + self.place(self.places[:, : input_ids.shape[1]]))
        for block in self.blocks:
            x = block.norm1(block.joined(self.mixed(block, x, attention_mask)) + x)
            x = block.norm2(block.down(nn.functional.gelu(block.up(x))) + x)
        return x

    def mixed(self, block: Block, x: Any, mask: Any) -> Any:
        batch, tokens, width = x.shape
        query, key, value = (part(x).view(batch, -1, HEADS, width // HEADS).transpose(1, 2) for part in block.parts)
        if self.eager:
            scores = (query / math.sqrt(width // HEADS)) @ key.transpose(2, 3)
            hidden = (mask == 0).view(batch, 1, 1, tokens).expand_as(scores)
            scores = scores.masked_fill(hidden, torch.tensor(torch.finfo(scores.dtype).min))
            mixed = scores.softmax(-1) @ value
        else:
            hidden = (1.0 - mask[:, None, None, :].expand(batch, 1, tokens, tokens).to(x.dtype)).to(torch.bool)
            away = torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, torch.finfo(x.dtype).min)
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=away)
        return mixed.transpose(1, 2).contiguous().view(batch, -1, width)


def traced(module: nn.Module, args: tuple[Any, ...], path: Path, opset: int, names: list[str], dynamic: bool) -> str:
    """``module`` in the file ``path``, exported by tracing, as most files that are about were; with ``dynamic`` axes of batch and tokens."""
    axes = {
        name: {0: "batch", 1: "sequence"} if x.ndim == 2 else {0: "batch"} for name, x in zip(names, args, strict=True)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            module.eval(), args, path, dynamo=False, opset_version=opset, input_names=names,
            dynamic_axes=axes if dynamic else None,
        )  # fmt: skip
    return str(path)


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


def encoder_model(masked: bool = False) -> onnx.ModelProto:
    """An encoder of token ids; ``masked``: those that are 0 are no keys."""
    net = Encoder()
    stream = net.last
    mask = net.mask() if masked else ""
    net.last = stream
    for _ in range(2):
        net.block(mask)
    return importer.batched(importer.simplify(net.model()))
