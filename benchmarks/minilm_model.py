"""all-MiniLM-L6-v2 as a torch module with weights from a file, and as ONNX."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.minilm import WEIGHTS
from calibration.importing import importer

LAYERS, WIDTH, HEADS, HIDDEN, VOCABULARY, POSITIONS = 6, 384, 12, 1536, 30522, 512
EPSILON: Final = 1e-12


def encoder(place: Path | None, tokens: int) -> onnx.ModelProto:
    """Return the encoder as simplified ONNX: token ids [1, tokens] to the last hidden state; the id 0 is padding.

    Without ``place`` it has seeded random weights.
    """
    torch.manual_seed(0)
    module = Encoder()
    if place is not None:
        module.load_state_dict(renamed(load_file(place / WEIGHTS)))
    ids = torch.ones((1, tokens), dtype=torch.int64)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within the exporter
        path = Path(scratch) / "model.onnx"
        torch.onnx.export(module.eval(), (ids,), path, dynamo=True, verbose=False)
        return importer.simplify(onnx.load(path))


class Layer(nn.Module):  # type: ignore[misc]
    """One block of BERT: attention and a hidden layer, each followed by its residual and layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.joined = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=EPSILON), nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, x: Any, mask: Any) -> Any:
        heads = [
            part(x).view(*x.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        ]
        mixed = nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask)
        x = self.norm1(x + self.joined(mixed.transpose(1, 2).reshape(x.shape)))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):  # type: ignore[misc]
    """BERT without its pooler; the ids are its only input. Unless ``masked``, padding counts as an ordinary token."""

    def __init__(self, masked: bool = True) -> None:
        super().__init__()
        self.masked = masked
        self.word, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(POSITIONS, WIDTH)
        self.kind, self.norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH, eps=EPSILON)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, ids: Any) -> Any:
        places = self.position(torch.arange(ids.shape[1]))
        x = self.norm(self.word(ids) + places + self.kind.weight[0])
        mask = (ids != 0)[:, None, None, :] if self.masked else None
        for layer in self.layers:
            x = layer(x, mask)
        return x


_NAMES: Final = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "joined": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}


def renamed(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the package's tensors under the names of `Encoder`."""
    names = {"word": "word_embeddings", "position": "position_embeddings", "kind": "token_type_embeddings"}
    found = {f"{ours}.weight": stored[f"embeddings.{theirs}.weight"] for ours, theirs in names.items()}
    for part in ("weight", "bias"):
        found[f"norm.{part}"] = stored[f"embeddings.LayerNorm.{part}"]
        for i in range(LAYERS):
            for ours, theirs in _NAMES.items():
                found[f"layers.{i}.{ours}.{part}"] = stored[f"encoder.layer.{i}.{theirs}.{part}"]
    return found
