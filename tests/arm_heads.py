"""What scripts/test-arm runs here and on an emulated ARM: heads whose answers must be the same bits.

``python -m tests.arm_heads --make FILE`` writes a segment: all of EfficientNet-Lite0 with its real weights, in 6 bits, with its golden answer.
``python -m tests.arm_heads FILE`` prints a line of JSON: the instruction set, why, and [name, hash of the answer, seconds] of each head.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.head import Head
from edge_agent.head import segment as seg
from kernels import isa
from tests.edge_agent.head.test_executor import _golden_hash


def make(path: Path) -> None:
    from benchmarks import heads, models
    from calibration import importer

    path.write_bytes(heads.our_segment(importer.load(models.LITE0, models.LITE0_SHAPE), heads.SHAPE, weight_bits=6))


def lite0(segment: seg.Segment, threads: int) -> str:
    """Hash of the golden answer; `SegmentError` where it is another than on the machine that made the segment."""
    head = Head(segment, threads=threads)
    codes = seg.golden_input(segment.header.golden.seed, 3 * 224 * 224).reshape(head.input.shape)
    return hashlib.sha256(head.run(codes).tobytes()).hexdigest()


def timed(name: str, answer: Callable[[], str]) -> tuple[str, str, float]:
    start = time.perf_counter()
    return name, answer(), time.perf_counter() - start


def main() -> None:
    if sys.argv[1] == "--make":
        make(Path(sys.argv[2]))
        return
    segment = seg.parse(Path(sys.argv[1]).read_bytes())
    answers = [
        timed("every kernel, mixed bits", _golden_hash),  # the first call compiles
        timed("EfficientNet-Lite0", lambda: lite0(segment, 1)),
        timed("EfficientNet-Lite0, two threads", lambda: lite0(segment, 2)),
    ]
    print(json.dumps({"isa": isa.ISA, "why": isa.explain(), "heads": answers}))


if __name__ == "__main__":
    main()
