"""Our head on a lower instruction set than this machine's, in turn with ONNX Runtime float.

It shows the speed on a machine with that set. The set is selected before compilation, so `timed` starts a child:
``python -m benchmarks.restricted FOLDER REPEATS`` with ``SPLITEDGE_ISA``.
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
#: Display names of the sets.
TITLES: Final = {"avxvnni": "AVX-VNNI", "avx2": "AVX2", "dotprod": "dot product", "neon": "NEON"}
_SECONDS: Final = 900  # a first run compiles

Times = dict[str, dict[str, list[float]]]


def timed(name: str, networks: Mapping[str, Mapping[str, bytes]], repeats: int) -> Times:
    """Return milliseconds of `OURS` on the set ``name`` and of ONNX Runtime float, on one thread, for each network.

    ``networks``: for each key the segment (`OURS`) and the ONNX file (`rivals.FLOAT`). ONNX Runtime keeps this
    machine's own set.
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
