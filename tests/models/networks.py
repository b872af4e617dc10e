"""Small networks in torch, with the habits of the libraries that people export from."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tests.small_transformers import CLASSES, HEADS, PATCH, SIZE, WIDTH


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
        self.tokens = nn.ParameterList(torch.zeros(1, 1, WIDTH) for _ in range(ahead))
        self.position = nn.Parameter(torch.zeros(1, (SIZE // PATCH) ** 2 + ahead, WIDTH))
        self.blocks = nn.ModuleList(Block(qkv, eager) for _ in range(2))
        self.norm, self.head, self.other = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

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


class Classifier(nn.Module):  # type: ignore[misc]
    """A `Bert` that tells three classes of texts apart."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.probe = Bert(), nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        return self.probe(self.encoder(input_ids, attention_mask, token_type_ids)[1])
