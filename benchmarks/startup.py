"""Start-up in fresh processes: imports, `--help`, a head with cold and warm kernel cache, and `edge-agent warm`.

    python -m benchmarks.startup [--json OUT] [--quick]

The head is EfficientNet-Lite0, 8 bits, on one thread, with its first frame; loading it includes its golden check. Cold
means an empty kernel cache; cold runs happen twice, or once with --quick, which also omits `edge-agent warm`. All other
figures are medians over several processes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import parser, report

ROOT = Path(__file__).resolve().parent.parent
HELP, WARM = ("-m", "edge_agent", "--help"), ("-m", "edge_agent", "warm")
#: The imports of `edge-agent run`, a head, one frame. Peak memory comes from VmHWM, because the process's maximum
#: resident size includes its parent's.
CHILD = """
import json, re, sys, time
from pathlib import Path
start = time.perf_counter()
import edge_agent.commands.run
imported = time.perf_counter()
from splitedge.head import load, segment
head = load(Path(sys.argv[1]).read_bytes())
loaded = time.perf_counter()
frame = segment.golden_frame(head.header)
begun = time.perf_counter()
head.run(frame)
done = time.perf_counter()
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({"import": imported - start, "head": loaded - imported, "frame": done - begun, "rss": peak}))
"""


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    runs, colds = (3, 1) if options.quick else (7, 2)
    with tempfile.TemporaryDirectory() as folder:
        segment = Path(folder) / "lite0.segment"
        segment.write_bytes(_lite0())
        caches = [Path(folder) / f"head{i}" for i in range(colds)]
        cold = [start(segment, cache) for cache in caches]
        warm = [start(segment, caches[0]) for _ in range(runs)]
        commands = {"edge-agent --help": [seconds(HELP, caches[0]) for _ in range(runs)]}
        if not options.quick:
            places = [Path(folder) / f"all{i}" for i in range(colds)]
            commands["edge-agent warm, nothing compiled"] = [seconds(WARM, place) for place in places]
            commands["edge-agent warm, all there"] = [seconds(WARM, places[0]) for _ in range(runs)]
    rows, summary = figures(cold, warm, commands)
    report("Start-up, a fresh process each", rows, summary, options.json)


def start(segment: Path, cache: Path) -> dict[str, float]:
    """Load the head in the file ``segment`` in a new process.

    Returns seconds of its ``import``, ``head`` and first ``frame``, and the peak ``rss`` in MiB.
    """
    found: dict[str, float] = json.loads(_run(("-c", CHILD, str(segment)), cache))
    return found


def seconds(command: Sequence[str], cache: Path) -> float:
    """Return the seconds of one run of the interpreter with the arguments ``command``."""
    begun = time.perf_counter()
    _run(command, cache)
    return time.perf_counter() - begun


def figures(
    cold: list[dict[str, float]], warm: list[dict[str, float]], commands: dict[str, list[float]]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the rows of the table and the summary from runs of `start` and `seconds`."""
    taken = {
        "import of the agent": [run["import"] for run in warm],
        "Lite0 head, cold cache": [run["head"] for run in cold],
        "Lite0 head, warm cache": [run["head"] for run in warm],
        "its first frame": [run["frame"] for run in warm],
    } | commands
    rows: list[dict[str, Any]] = [
        {
            "what": what,
            "processes": len(times),
            "median s": statistics.median(times),
            "least s": min(times),
            "most s": max(times),
        }
        for what, times in taken.items()
    ]
    medians = {what: statistics.median(times) for what, times in taken.items()}
    summary = {
        "startup.import_s": medians["import of the agent"],
        "startup.cold_head_s": medians["Lite0 head, cold cache"],
        "startup.warm_head_s": medians["Lite0 head, warm cache"],
        "startup.rss_mib": statistics.median(run["rss"] for run in warm),
        "startup.cold_rss_mib": statistics.median(run["rss"] for run in cold),
    }
    return rows, summary


def _run(arguments: Sequence[str], cache: Path) -> str:
    environment = os.environ | {"SPLITEDGE_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)[-60:]}: {done.stderr}")
    return done.stdout


def _lite0() -> bytes:
    from benchmarks import heads, models  # they import torch and ONNX Runtime, which the functions above do not need

    return heads.our_segment(models.load("lite0"), heads.SHAPE, 8)


if __name__ == "__main__":
    main()
