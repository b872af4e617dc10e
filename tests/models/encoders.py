"""Small transformers in torch whose attention, norms and hidden layers differ from those of `networks`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tests.small_transformers import CLASSES, HEADS, PATCH, SIZE, WIDTH

functional = nn.functional
HEAD = WIDTH // HEADS


class Stack(nn.Module):  # type: ignore[misc]
    """torch's own encoder layers over [1, T, C], and the mean of the tokens."""

    def __init__(self, activation: str, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 40, activation=activation, batch_first=True, norm_first=norm_first
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Any) -> Any:
        return self.head(self.layers(x).mean(1))


class MhaBlock(nn.Module):  # type: ignore[misc]
    """As torchvision's: `nn.MultiheadAttention`, and a hidden layer in a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 40), nn.GELU(), nn.Dropout(), nn.Linear(40, WIDTH))

    def forward(self, x: Any) -> Any:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Torchvision(nn.Module):  # type: ignore[misc]
    """torchvision's ViT: the class token expanded and joined, position added, `MhaBlock`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.tokens = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(torch.zeros(1, (SIZE // PATCH) ** 2 + 1, WIDTH))
        self.blocks = nn.Sequential(*(MhaBlock() for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Any) -> Any:
        x = self.embed(x).reshape(x.shape[0], WIDTH, -1).permute(0, 2, 1)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class DinoBlock(nn.Module):  # type: ignore[misc]
    """Both branches scaled by a factor for each channel; the hidden layer is a GELU or a gated SiLU of one product."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale1, self.scale2 = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))
        self.up, self.down = nn.Linear(WIDTH, 80 if gated else 40), nn.Linear(40, WIDTH)

    def forward(self, x: Any) -> Any:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0] * HEAD**-0.5, qkv[1], qkv[2]
        mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width)) * self.scale1
        y = self.up(self.norm2(x))
        if self.gated:
            first, second = y.chunk(2, -1)
            y = functional.silu(first) * second
        else:
            y = functional.gelu(y)
        return x + self.down(y) * self.scale2


class Dino(nn.Module):  # type: ignore[misc]
    """DINOv2: the class token joined, position added, register tokens joined between both."""

    def __init__(self, gated: bool, registers: int) -> None:
        super().__init__()
        self.registers = registers
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.tokens = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.tokens_more = nn.Parameter(torch.zeros(1, registers, WIDTH))
        self.position = nn.Parameter(torch.zeros(1, (SIZE // PATCH) ** 2 + 1, WIDTH))
        self.blocks = nn.ModuleList(DinoBlock(gated) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH, eps=1e-6), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Any) -> Any:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], 1) + self.position
        if self.registers:
            x = torch.cat([x[:, :1], self.tokens_more.expand(x.shape[0], -1, -1), x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(torch.cat([x[:, 0], x[:, 1 + self.registers :].mean(1)], 1))


class RmsNorm(nn.Module):  # type: ignore[misc]
    """Without a mean, written out as T5 and LLaMA have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Any) -> Any:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotary(x: Any, table: Any, interleaved: bool) -> Any:
    """``table``: cosines and sines [T, D / 2]."""
    cos, sin = (
        torch.stack([part] * 2, -1).flatten(-2) if interleaved else torch.cat([part, part], -1) for part in table
    )
    if interleaved:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    else:
        first, second = x.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
    return x * cos + turned * sin


class Rotary(nn.Module):  # type: ignore[misc]
    """Text encoders with rotary positions and a gated hidden layer; ``form``: "nomic", "modern" or "llama".

    "modern": pre-norm, one product for the gate, GELU, and in the second layer only near tokens attend.
    "nomic": post-norm, two products, SiLU. "llama": pre-norm without a mean, interleaved pairs.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.word, self.norm = nn.Embedding(50, WIDTH), nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.layers:
            layer.qkv, layer.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
            layer.gate, layer.up = nn.Linear(WIDTH, 40, bias=False), nn.Linear(WIDTH, 40, bias=False)
            layer.both, layer.down = nn.Linear(WIDTH, 80, bias=False), nn.Linear(40, WIDTH, bias=False)
            kind = RmsNorm if form == "llama" else lambda: nn.LayerNorm(WIDTH, bias=form == "nomic")
            layer.norm1, layer.norm2 = kind(), kind()
        angles = torch.arange(64)[:, None] / 100 ** (torch.arange(HEAD // 2) / (HEAD // 2))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        x = self.norm(self.word(input_ids))
        tokens = x.shape[1]
        hidden = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        places = torch.arange(tokens)
        far = (places[:, None] - places[None]).abs() > 6
        for i, layer in enumerate(self.layers):
            mask = hidden
            if self.form == "modern" and i == 1:
                mask = hidden.expand(-1, -1, tokens, -1).masked_fill(far, torch.finfo(x.dtype).min)
            if self.form == "nomic":
                x = layer.norm1(x + self.attention(layer, x, mask))
                x = layer.norm2(x + layer.down(functional.silu(layer.gate(x)) * layer.up(x)))
                continue
            x = x + self.attention(layer, layer.norm1(x), mask)
            y = layer.norm2(x)
            if self.form == "modern":
                first, second = layer.both(y).chunk(2, -1)
                x = x + layer.down(functional.gelu(first) * second)
            else:
                x = x + layer.down(functional.silu(layer.gate(y)) * layer.up(y))
        return x

    def attention(self, layer: Any, x: Any, mask: Any) -> Any:
        tokens = x.shape[1]
        qkv = layer.qkv(x).view(x.shape[0], tokens, 3, HEADS, HEAD)
        query, key, value = qkv.transpose(3, 1).unbind(2)
        table = self.cos[:tokens], self.sin[:tokens]
        query, key = (rotary(part, table, self.form == "llama") for part in (query, key))
        if self.form == "modern":
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            scores = query @ key.transpose(-1, -2) / math.sqrt(HEAD) + mask
            mixed = scores.softmax(-1) @ value
        return layer.out(mixed.transpose(1, 2).reshape(x.shape[0], tokens, WIDTH))


class Relative(nn.Module):  # type: ignore[misc]
    """T5's encoder: norms without a mean, scores without a factor and with a bias by distance, ReLU, no biases."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.word, self.distance = nn.Embedding(50, WIDTH), nn.Embedding(8, HEADS)
        self.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.layers:
            layer.q, layer.k, layer.v, layer.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
            layer.wi, layer.wg, layer.wo = (
                nn.Linear(*size, bias=False) for size in ((WIDTH, 40), (WIDTH, 40), (40, WIDTH))
            )
            layer.norm1, layer.norm2 = RmsNorm(), RmsNorm()
        self.norm = RmsNorm()

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        x = self.word(input_ids)
        batch, tokens, _ = x.shape
        places = torch.arange(tokens)
        buckets = (places[None] - places[:, None]).clamp(-4, 3) + 4
        bias = self.distance(buckets).permute(2, 0, 1)[None]
        bias = bias + (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            y = layer.norm1(x)
            query, key, value = (
                part(y).view(batch, -1, HEADS, HEAD).transpose(1, 2) for part in (layer.q, layer.k, layer.v)
            )
            scores = query @ key.transpose(3, 2)
            scores = scores + bias
            mixed = scores.float().softmax(-1) @ value
            x = x + layer.o(mixed.transpose(1, 2).contiguous().view(batch, -1, WIDTH))
            y = layer.norm2(x)
            y = functional.gelu(layer.wi(y), approximate="tanh") * layer.wg(y) if self.gated else layer.wi(y).relu()
            x = x + layer.wo(y)
        return self.norm(x)


class Swin(nn.Module):  # type: ignore[misc]
    """Two blocks, the second with shifted windows, merged patches, one block more; ``form``: "timm" or "torchvision"."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.embed, self.norm0 = nn.Conv2d(3, WIDTH, 2, 2), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(
            SwinBlock(form, width, side, shift) for width, side, shift in ((24, 8, 0), (24, 8, 2), (48, 4, 0))
        )
        self.norm1, self.merge = nn.LayerNorm(4 * WIDTH), nn.Linear(4 * WIDTH, 2 * WIDTH, bias=False)
        self.norm, self.head = nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Any) -> Any:
        x = self.norm0(self.embed(x).permute(0, 2, 3, 1))
        x = self.blocks[1](self.blocks[0](x))
        if self.form == "timm":
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
        else:
            x = torch.cat([x[..., a::2, b::2, :] for b in (0, 1) for a in (0, 1)], -1)
        x = self.norm(self.blocks[2](self.merge(self.norm1(x))))
        if self.form == "timm":
            return self.head(x.mean((1, 2)))
        return self.head(functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1).flatten(1))


class SwinBlock(nn.Module):  # type: ignore[misc]
    """Attention in windows of 4 x 4 tokens of a plane with ``side`` x ``side``, shifted by ``shift``."""

    def __init__(self, form: str, channels: int, side: int, shift: int) -> None:
        super().__init__()
        self.form, self.side, self.shift = form, side, shift
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.table = nn.Parameter(torch.zeros(49, HEADS))
        places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        distance = places[:, :, None] - places[:, None] + 3
        self.register_buffer("places", distance[0] * 7 + distance[1])
        regions = torch.zeros(side, side)
        if shift:
            for i, rows in enumerate((slice(0, -4), slice(-4, -shift), slice(-shift, None))):
                for j, columns in enumerate((slice(0, -4), slice(-4, -shift), slice(-shift, None))):
                    regions[rows, columns] = 3 * i + j
        regions = regions.view(side // 4, 4, side // 4, 4).permute(0, 2, 1, 3).reshape(-1, 16)
        self.register_buffer("mask", (regions[:, None] != regions[:, :, None]) * -100.0)

    def forward(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))

    def attention(self, x: Any) -> Any:
        batch, height, width, channels = x.shape
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(batch, height // 4, 4, width // 4, 4, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels)
        size = channels // HEADS
        query, key, value = self.qkv(x).reshape(-1, 16, 3, HEADS, size).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.places.reshape(-1)].view(16, 16, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if self.form == "timm":
            if self.shift:
                count = self.mask.shape[0]
                bias = bias + self.mask.view(1, count, 1, 16, 16).expand(x.shape[0] // count, -1, HEADS, -1, -1).reshape(-1, HEADS, 16, 16)  # fmt: skip
            x = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        else:
            scores = (query * size**-0.5) @ key.transpose(-2, -1) + bias
            if self.shift:
                count = self.mask.shape[0]
                scores = scores.view(x.shape[0] // count, count, HEADS, 16, 16) + self.mask[None, :, None]
                scores = scores.view(-1, HEADS, 16, 16)
            x = scores.softmax(-1) @ value
        x = self.proj(x.transpose(1, 2).reshape(-1, 16, channels))
        x = x.view(batch, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, height, width, channels)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class MobileVit(nn.Module):  # type: ignore[misc]
    """Convolutions, tokens of a quarter of the pixels each, and planes again, joined with those before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.local = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.widen, self.narrow = nn.Conv2d(16, WIDTH, 1, bias=False), nn.Conv2d(WIDTH, 16, 1)
        self.fuse, self.last = nn.Conv2d(32, 16, 3, 1, 1), nn.Conv2d(16, 32, 1)
        self.blocks = nn.ModuleList(DinoBlock(False) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(32, CLASSES)

    def forward(self, x: Any) -> Any:
        x = functional.silu(self.stem(x))
        y = self.widen(functional.silu(self.local(x)))
        batch, channels, height, width = y.shape
        rows, columns = height // 2, width // 2
        y = y.reshape(batch * channels * rows, 2, columns, 2).transpose(1, 2)
        y = y.reshape(batch, channels, rows * columns, 4).transpose(1, 3).reshape(batch * 4, rows * columns, channels)
        for block in self.blocks:
            y = block(y)
        y = self.norm(y).contiguous().view(batch, 4, rows * columns, channels).transpose(1, 3)
        y = y.reshape(batch * channels * rows, columns, 2, 2).transpose(1, 2).reshape(batch, channels, height, width)
        y = functional.silu(self.narrow(y))
        y = functional.silu(self.fuse(torch.cat([x, y], 1)))
        return self.head(functional.silu(self.last(y)).mean((2, 3)))


class Recognizer(nn.Module):  # type: ignore[misc]
    """Convolutions, columns as tokens, an encoder, and characters for each token: a CRNN without a recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, WIDTH, 3, (2, 1), 1)
        self.blocks = nn.ModuleList(DinoBlock(False) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Any) -> Any:
        x = functional.relu(self.second(functional.relu(self.first(x))))
        x = functional.max_pool2d(x, (x.shape[2], 1)).squeeze(2).permute(0, 2, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
