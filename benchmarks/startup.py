"""Start-up in fresh processes: imports, `--help`, a head, `edge-agent warm`, and a running agent with its memory.

    python -m benchmarks.startup [--json OUT] [--quick] [--release FOLDER]

The head is EfficientNet-Lite0, 8 bits, on one thread, with its first frame; loading it includes its golden check. Cold
means an empty kernel cache; cold runs happen twice, or once with --quick, which also omits `edge-agent warm`.

The agent runs the whole EfficientNet-Lite0 (`--mode device`) behind a server on this machine, on two threads. Ready
counts from the start of its process. Idle memory is that of the ready agent, memory under load that after `FRAMES`
photographs. All other figures are medians over several processes.

If the package has a library of kernels for this processor (`python -m kernels.build`), the agent runs with it and with
compiled kernels, in turn. All other figures are of compiled kernels.

With the folder of a release (`scripts/release`), install-agent installs its archive, and that agent answers a frame. It
measures the board and downloads the segment, as on a new board.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.report import parser, report
from kernels import native

ROOT = Path(__file__).resolve().parent.parent
#: Photographs of a run of the agent.
FRAMES: Final = 200
#: Accuracy drop in points that its plan may cost: the demo's store was calibrated on ten photographs.
MAX_DROP: Final = 3
#: How the kernels of an agent come about, and the value of `native.VARIABLE` for it.
KERNELS: Final = {"library": "", "jit": "jit"}
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
    parsing = parser(__doc__ or "")
    parsing.add_argument("--release", type=Path, metavar="FOLDER", help="also install and run the release in FOLDER")
    options = parsing.parse_args()
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
        agents = running(runs, caches[0])
        installs = installed(options.release, colds) if options.release else []
    rows, summary = figures(cold, warm, commands)
    if options.release:
        archive = next(options.release.glob(f"splitedge-agent-*-{platform.machine()}.tar"))
        summary["startup.package_mib"] = archive.stat().st_size / 2**20
    for name, what in {"files_s": "install-agent, the files", "first_frame_s": "install-agent, first frame"}.items():
        if installs:
            rows.append(_row(what, [one[name] for one in installs]))
            summary[f"startup.install_to_{name}"] = statistics.median(one[name] for one in installs)
    for kernels, each in agents.items():
        rows.append(_row(f"agent ready, {kernels}", [one["ready_s"] for one in each]))
        summary |= {f"startup.{kernels}.{name}": statistics.median(one[name] for one in each) for name in each[0]}
    if native.FOLDER.is_dir():
        summary["startup.libraries_mib"] = sum(path.stat().st_size for path in native.FOLDER.iterdir()) / 2**20
    report("Start-up, a fresh process each", rows, summary, options.json)


def start(segment: Path, cache: Path) -> dict[str, float]:
    """Load the head in the file ``segment`` in a new process.

    Returns seconds of its ``import``, ``head`` and first ``frame``, and the peak ``rss`` in MiB.
    """
    found: dict[str, float] = json.loads(_run(("-c", CHILD, str(segment)), cache))
    return found


def running(runs: int, cache: Path) -> dict[str, list[dict[str, float]]]:
    """Run an agent ``runs`` times with each kind of `KERNELS` that is there; return its figures by kind."""
    kinds = [kind for kind in KERNELS if kind == "jit" or native.LIBRARY is not None]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with demo_server() as (server, files):
        for turn in range(runs + 1):
            for kind in kinds:
                own = {native.VARIABLE: KERNELS[kind], "SPLITEDGE_CACHE_DIR": str(cache)}
                one = agent([sys.executable, "-m", "edge_agent"], os.environ | server | own, files)
                if turn:  # the first turn compiles, downloads the segment and measures the board
                    found[kind].append(one)
    return found


def installed(release: Path, runs: int) -> list[dict[str, float]]:
    """Install the release, start its agent and send it one frame, ``runs`` times, each on a new board.

    Returns the seconds from the start of install-agent until its files are there, and until the frame is answered.
    """
    found = []
    with demo_server() as (server, files):
        for _ in range(runs):
            with tempfile.TemporaryDirectory() as folder:
                plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
                environment = plain | server | {"SPLITEDGE_PREFIX": folder, "SPLITEDGE_CACHE_DIR": f"{folder}/cache"}
                begun = time.perf_counter()
                command = ["sh", f"{release}/install-agent", "--offline", str(release), "--files-only"]
                subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
                files_s = time.perf_counter() - begun
                program = next(Path(folder).glob("*/bin/edge-agent"))
                agent([str(program)], environment, files[:1], frames=1)
                found.append({"files_s": files_s, "first_frame_s": time.perf_counter() - begun})
    return found


@contextmanager
def demo_server() -> Iterator[tuple[dict[str, str], list[bytes]]]:
    """Serve the demo's model; yields the variables of an agent, and photographs."""
    from benchmarks import photos, ways  # they import what the server needs
    from benchmarks.processes import serving
    from edge_server.store.store import Store

    store, files = ways.calibrated(photos.demo()), [photo.path.read_bytes() for photo in photos.demo()]
    with Store(store) as opened:
        token = opened.tokens.add(f"startup-{time.time_ns()}")
    with serving(store, port=0) as port:
        variables = {
            "SPLITEDGE_SERVER": f"http://127.0.0.1:{port}",
            "SPLITEDGE_TOKEN": token,
            "SPLITEDGE_MODEL": ways.MODEL,
            "SPLITEDGE_API_PORT": "0",
            "SPLITEDGE_THREADS": "2",
        }
        yield variables, files


def agent(
    program: Sequence[str], environment: dict[str, str], files: Sequence[bytes], frames: int = FRAMES
) -> dict[str, float]:
    """Start an agent and send it ``frames`` of ``files``, again and again.

    Returns its ``ready_s``, the number of kernels that it ``compiled``, and its memory in MiB.
    """
    command = [*program, "run", "--mode", "device", "--max-drop", f"{MAX_DROP:g}"]
    before, begun = _kept(environment), time.perf_counter()
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = ""
    try:
        for line in process.stderr:
            if ready := re.search(r"ready on (\S+):", line):
                break
        else:
            raise SystemExit(f"the agent did not start: {line.strip()}")
        taken, idle = time.perf_counter() - begun, memory(process.pid)
        for i in range(frames):
            data = files[i % len(files)]
            request = urllib.request.Request(f"{ready[1]}/v1/infer", data, {"Content-Type": "image/jpeg"})  # noqa: S310
            with urllib.request.urlopen(request) as answer:  # noqa: S310
                answer.read()
        load = memory(process.pid)
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()
    return {
        "ready_s": taken,
        "compiled_at_start": _kept(environment) - before,
        **{f"{name}_mib_idle": value for name, value in idle.items()},
        **{f"{name}_mib_load": value for name, value in load.items()},
    }


def _kept(environment: dict[str, str]) -> int:
    """The number of compiled kernels in the agent's cache."""
    return sum(1 for _ in Path(environment["SPLITEDGE_CACHE_DIR"]).rglob("*.nbc"))


def memory(process: int) -> dict[str, float]:
    """Return the resident, proportional and anonymous memory of a process in MiB."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return {
        name.lower(): int(re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[0]) / 1024
        for name in ("Rss", "Pss", "Anonymous")
    }


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
    rows = [_row(what, times) for what, times in taken.items()]
    medians = {what: statistics.median(times) for what, times in taken.items()}
    summary = {
        "startup.import_s": medians["import of the agent"],
        "startup.cold_head_s": medians["Lite0 head, cold cache"],
        "startup.warm_head_s": medians["Lite0 head, warm cache"],
        "startup.rss_mib": statistics.median(run["rss"] for run in warm),
        "startup.cold_rss_mib": statistics.median(run["rss"] for run in cold),
    }
    return rows, summary


def _row(what: str, times: list[float]) -> dict[str, Any]:
    return {
        "what": what,
        "processes": len(times),
        "median s": statistics.median(times),
        "least s": min(times),
        "most s": max(times),
    }


def _run(arguments: Sequence[str], cache: Path) -> str:
    environment = os.environ | {"SPLITEDGE_CACHE_DIR": str(cache), native.VARIABLE: KERNELS["jit"]}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)[-60:]}: {done.stderr}")
    return done.stdout


def _lite0() -> bytes:
    from benchmarks import heads, models  # they import torch and ONNX Runtime, which the functions above do not need

    return heads.our_segment(models.load("lite0"), heads.SHAPE)


if __name__ == "__main__":
    main()
