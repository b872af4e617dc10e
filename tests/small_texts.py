"""A small vocabulary, and a small head that takes its ids, for tests of texts."""

from __future__ import annotations

import hashlib
from typing import Any

from splitedge.head import Head
from splitedge.head import segment as seg
from splitedge.protocol import messages as m
from tests.segment_builder import Builder
from tests.small_server import SmallServer, make_plan

TOKENS = 8
WORDS = [
    "play",
    "##ing",
    "the",
    "a",
    ",",
    "cafe",
    "ball",
    "bank",
    "rate",
    "rates",
    "film",
    "star",
    "中",
    "!",
    "goal",
    "loan",
    "actor",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]


def vocabulary(size: int = 50) -> str:
    """The lines of a vocab.txt of so many tokens."""
    return "\n".join([*VOCABULARY, *(f"word{i}" for i in range(size - len(VOCABULARY)))]) + "\n"


def ids(*tokens: str) -> list[int]:
    """The ids of a text of ``tokens``, with what stands around them and fills them up."""
    found = [VOCABULARY.index(token) for token in ("[CLS]", *tokens, "[SEP]")]
    return found + [0] * (TOKENS - len(found))


def segment_file() -> bytes:
    """A head from token ids to [tokens, 16], whose golden answer holds."""
    builder = Builder([TOKENS], dtype="i32")
    builder.norm(builder.embed(builder.input, 16, vocabulary=50))
    parsed = builder.finish(model="small")
    answer = hashlib.sha256(Head(parsed, check_golden=False).run(seg.golden_frame(parsed.header)).tobytes()).hexdigest()
    header = builder.finish(model="small", golden=seg.Golden("seed", answer)).header
    return seg.build(header, builder.blob)


class TextServer(SmallServer):
    """A `SmallServer` of a head that takes token ids; its plan names the ``tokenizer`` that it serves, unless that is empty. ``changes``: of the plan."""

    def __init__(self, tokenizer: bytes, **changes: Any) -> None:
        super().__init__()
        self.data, self.tokenizer = segment_file(), tokenizer
        output = seg.parse(self.data).header.tensors[-1]
        self.ref = m.TokenizerRef(hashlib.sha256(tokenizer).hexdigest(), len(tokenizer), 0) if tokenizer else None
        codec = m.Codec("minmax", 8, (-4.0,), (0.03125,))
        given = {"tokenizer": self.ref, "ladder": [codec], "cut": m.Cut(1, "norm1", "norm1", output.shape, "inside")}
        self.plan = make_plan("split", self.data, **(given | changes))
