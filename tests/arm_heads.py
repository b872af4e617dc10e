"""What scripts/test-arm runs twice, here and on an emulated ARM: heads whose answers must be the same bits.

``python -m tests.arm_heads`` prints one line of JSON: what the processor was taken for, and a hash of each head's answers.
``python -m tests.arm_heads FILE...`` also loads each segment file, and so checks its golden answer.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_agent.head import Head
from edge_agent.head import segment as seg
from edge_agent.head.executor import load
from kernels import isa
from tests.edge_agent.head.test_executor import _golden_hash
from tests.segment_builder import Builder

# EfficientNet-Lite0: expansion, window, stride, channels, repetitions.
STAGES = [(1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)]  # fmt: skip


def lite0_like(pixels: int = 224) -> Builder:
    """The shapes of EfficientNet-Lite0 with random weights of 2 to 8 bits."""
    builder = Builder([pixels, pixels, 3], seed=7, zero_point=127)
    x = builder.conv(builder.input, 32, (3, 3), (2, 2), (0, 0, 1, 1))
    for expansion, window, stride, channels, repetitions in STAGES:
        for i in range(repetitions):
            x = _block(builder, x, expansion, window, stride if i == 0 else 1, channels)
    x = builder.conv(x, 1280, bits=4)
    size = builder.tensors[x].shape[:2]
    x = builder.append(
        seg.Pool, [1, 1, 1280], x=x, kind="avg", kernel=size, stride=[1, 1], pad=[0] * 4, count_pad=False, multiplier=1.0, lo=0, hi=255
    )  # fmt: skip
    builder.conv(x, 1000)
    return builder


def _block(builder: Builder, x: int, expansion: int, window: int, stride: int, channels: int) -> int:
    """Expansion, depthwise, projection; the sum with the input where the shapes agree."""
    wide = builder.tensors[x].shape[-1] * expansion
    y = builder.conv(x, wide, bits=5) if expansion > 1 else x
    pad = [window // 2] * 4 if stride == 1 else [(window - 1) // 2, (window - 1) // 2, window // 2, window // 2]
    y = builder.conv(y, wide, (window, window), (stride, stride), pad, groups=wide)
    y = builder.conv(y, channels, bits=6)
    if builder.tensors[y].shape != builder.tensors[x].shape:
        return y
    half = 0.5
    return builder.append(
        seg.Add, builder.tensors[x].shape, a=x, b=y, multiplier_a=half, multiplier_b=half, lo=0, hi=255
    )


def answers() -> Iterator[tuple[str, str, float]]:
    """Each head's name, the hash of its answer, and seconds; a segment file named on the command line answers for itself."""
    start = time.perf_counter()
    yield "mixed network", _golden_hash(), time.perf_counter() - start
    start = time.perf_counter()
    builder = lite0_like()
    segment, x = builder.finish(), builder.codes()
    yield "Lite0's shapes", _hash(Head(segment, check_golden=False).run(x)), time.perf_counter() - start
    start = time.perf_counter()
    head = Head(segment, check_golden=False, threads=2)
    yield "Lite0's shapes, two threads", _hash(head.run(x)), time.perf_counter() - start
    for name in sys.argv[1:]:
        start = time.perf_counter()
        head = load(Path(name).read_bytes())
        yield Path(name).stem, head.header.golden.sha256, time.perf_counter() - start


def _hash(codes: Any) -> str:
    return hashlib.sha256(codes.tobytes()).hexdigest()


if __name__ == "__main__":
    print(json.dumps({"isa": isa.ISA, "why": isa.explain(), "heads": list(answers())}))
