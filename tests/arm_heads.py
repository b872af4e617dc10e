"""What scripts/test-arm runs here and on emulated processors: every kernel against its committed hash, and whole heads against the answer that
this machine gave when it made them.

``python -m tests.arm_heads --make FAMILY FILE`` writes a segment with its golden answer: for "integers" EfficientNet-Lite0 in 6 bits, for
"transformers" the MiniLM encoder over 16 tokens in 8 bits, with seeded weights in place of its own where the package is not installed.
``python -m tests.arm_heads PROCESSOR SET FAMILY FILE [--team]`` prints a row for each check and fails unless all agree and this process uses the
instruction set SET; with ``--team`` two threads run the head, too. A process needs one half of the interpreter only, which is what takes long.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kernels import isa, native
from splitedge.head import Head
from splitedge.head import segment as seg
from tests.kernels import golden

TOKENS = 16
TITLES = {"integers": "EfficientNet-Lite0", "transformers": f"MiniLM, {TOKENS} tokens"}


def make(family: str, path: Path) -> None:
    if family == "integers":
        from benchmarks import heads, models

        path.write_bytes(heads.our_segment(models.load("lite0"), heads.SHAPE, weight_bits=6))
    else:
        from benchmarks import heads, minilm, minilm_model

        path.write_bytes(heads.our_segment(minilm_model.encoder(minilm.folder(), TOKENS)))


def kernels_differ(family: str) -> str:
    """The groups of `golden` whose hash is not the committed one."""
    expected = golden.expected()
    groups = [g for g in golden.GROUPS if (g in golden.INTEGERS) == (family == "integers")]
    return " ".join(group for group in groups if golden.digest(group) != expected[group])


def head_differs(segment: seg.Segment, threads: int) -> str:
    """Empty, or the hash of an answer that is not the segment's golden one."""
    head = Head(segment, check_golden=False, threads=threads)
    found = hashlib.sha256(head.run(seg.golden_frame(segment.header)).tobytes()).hexdigest()
    return "" if found == segment.header.golden.sha256 else found


def main() -> None:
    if sys.argv[1] == "--make":
        make(sys.argv[2], Path(sys.argv[3]))
        return
    processor, wanted, family, file, *team = sys.argv[1:]
    segment = seg.parse(Path(file).read_bytes())
    compiled = "compiled here" if native.LIBRARY is None else "library"
    checks: dict[str, Callable[[], str]] = {
        f"instruction set, {compiled}": lambda: "" if wanted == isa.ISA else isa.explain(),
        f"kernels, {family}": lambda: kernels_differ(family),
        TITLES[family]: lambda: head_differs(segment, 1),
    }
    if team:
        checks[f"{TITLES[family]}, two threads"] = lambda: head_differs(segment, 2)
    failed = False
    for name, check in checks.items():
        start = time.monotonic()
        difference = check()
        failed = failed or bool(difference)
        verdict = f"DIFFERS: {difference}" if difference else "ok"
        print(f"{processor:11} {isa.ISA:11} {name:32} {time.monotonic() - start:5.0f} s  {verdict}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
