"""Our head on a lower instruction set than this machine's, with ONNX Runtime float in turn beside it: what a user of such a machine gets.

The set is chosen before anything is compiled, so `timed` starts a child: ``python -m benchmarks.restricted FOLDER REPEATS`` with ``SPLITEDGE_ISA``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks import rivals
from benchmarks.report import in_turn
from splitedge.head import load

OURS: Final = "splitedge int8"
#: How people call the sets.
TITLES: Final = {"avxvnni": "AVX-VNNI", "avx2": "AVX2", "dotprod": "dot product", "neon": "NEON"}
_SECONDS: Final = 900  # a first run compiles

Times = dict[str, dict[str, list[float]]]


def timed(name: str, networks: Mapping[str, Mapping[str, bytes]], repeats: int) -> Times:
    """Milliseconds of `OURS` on the set ``name`` and of ONNX Runtime float (which keeps this machine's own set), one thread, of each of ``networks``.

    ``networks``: for each key the segment (`OURS`) and the ONNX file (`rivals.FLOAT`).
    """
    with tempfile.TemporaryDirectory() as folder:
        for key, files in networks.items():
            (Path(folder) / f"{key}.segment").write_bytes(files[OURS])
            (Path(folder) / f"{key}.onnx").write_bytes(files[rivals.FLOAT])
        command = [sys.executable, "-m", "benchmarks.restricted", folder, str(repeats)]
        environment = os.environ | {"SPLITEDGE_ISA": name}
        root = Path(__file__).resolve().parent.parent
        child = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, timeout=_SECONDS, check=True)
    found: Times = json.loads(child.stdout)
    return found


def main() -> None:
    folder, repeats = Path(sys.argv[1]), int(sys.argv[2])
    print(json.dumps({path.stem: _times(path, repeats) for path in sorted(folder.glob("*.segment"))}))


def _times(path: Path, repeats: int) -> dict[str, list[float]]:
    head = load(path.read_bytes())
    codes, frame = rivals.noise(head)
    peer = rivals.onnx_runtime(path.with_suffix(".onnx").read_bytes(), 1, frame)
    return in_turn({OURS: lambda: head.run(codes), rivals.FLOAT: peer}, repeats)


if __name__ == "__main__":
    main()
