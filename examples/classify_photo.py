"""Classify one photo.

    python -m examples.classify_photo SERVER MODEL PHOTO

The token comes from the variable SPLITEDGE_TOKEN or from the configuration file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import edge_agent


def main(server: str, model: str, photo: str) -> None:
    with edge_agent.connect(server, model) as agent:
        result = agent.infer(Path(photo))
    for best in result.top:
        print(f"{best.label}: {100 * best.probability:.1f} %")
    print(f"{result.payload_bytes} bytes sent in {result.timing.total_ms:.0f} ms")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
