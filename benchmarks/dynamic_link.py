"""Changing links: which controller holds the required rate, and at what accuracy.

    python -m benchmarks.dynamic_link [--images DIR --labels FILE] [--fashion FOLDER] [--json OUT] [--plots DIR]
                                      [--quick]

A real agent and a real server run in separate network namespaces. The link between them follows a trace
(`benchmarks/traces.py`): QuantPipe's schedule and five more, scaled to the frames so that they bind. The benchmark
offers frames to the agent at a fixed rate, and the agent drops frames that exceed their maximum age. The network is a
CNN for Fashion-MNIST, or EfficientNet-Lite0 if you pass photographs, cut where its tensor is large. Calibration has not
seen the frames.

The benchmark compares our controller, QuantPipe's rule and PipeEdge's controller, all with the same link estimate, and
fixed widths. A fixed width is the codec that QuantPipe sends: packed codes of exactly that many bits with a clipped
range. If the ladder has no such codec, the frames of the nearest codec below it replace it. The link is then slower or
faster by the ratio of the sizes.

A window is held if 95 % of the frames offered in it are answered in time. The oracle knows the trace and gives the most
accurate codec that the link carries in each window. Windows in which the link carries no codec do not count. Accuracy
covers the answered frames, in points against the float model and against the oracle's codecs on the same frames.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import accuracy_bound, fashion
from benchmarks.accuracy_bound import Subject
from benchmarks.board import Board
from benchmarks.dynamic_plots import Lane, draw
from benchmarks.links import Network
from benchmarks.processes import PORT, serving
from benchmarks.report import parser, report
from benchmarks.traces import TRACES, Trace, oracle
from calibration.accuracy import evaluation
from edge_server.planning.catalog import Catalog
from edge_server.store.store import Store
from splitedge import errors
from splitedge.codec import packed_bytes
from splitedge.head.executor import load
from splitedge.link.adaptation import Adaptation, Goal, packed
from splitedge.link.estimate import wire_bytes
from splitedge.protocol.frames import HEADER_BYTES
from splitedge.protocol.messages import LinkEstimate, Plan

Bools = NDArray[np.bool_]

ROOT: Final = Path(__file__).resolve().parent.parent
BOARD, SERVER = 0, 1  # nodes of the network
RTT_MS, BACK_MBPS, PLANNED_MBPS = 20.0, 50.0, 200.0
PLANNED: Final = LinkEstimate(RTT_MS, PLANNED_MBPS, BACK_MBPS)
WINDOW_S: Final = 1.0
HELD: Final = 0.95
AGE_MS: Final = 500.0  # a frame without an answer by then is too late
SECONDS, QUICK_SECONDS = 30.0, 10.0
QUICK_TRACES, QUICK_RIVALS = ("quantpipe", "step_down"), ("adaptive", "quantpipe", "fixed8")
OURS: Final = "adaptive"
FLOAT_BITS: Final = 32
WEIGHED: Final = 512  # samples whose frames' bytes are counted


@dataclass(frozen=True)
class Rival:
    """A controller and its initial bits; 0: the plan's."""

    controller: str
    bits: int = 0


RIVALS: Final[dict[str, Rival]] = {
    "adaptive": Rival("adaptive"),
    "quantpipe": Rival("quantpipe"),
    "pipeedge": Rival("pipeedge"),
    "fixed32": Rival("fixed", FLOAT_BITS),
    "fixed8": Rival("fixed", 8),
    "fixed2": Rival("fixed", 2),
}


@dataclass(frozen=True)
class Setting:
    """A network, its cut, the frame rate in frames per second, and the maximum drop of its plan in points."""

    network: str
    cut: str
    fps: float
    drop: float


FASHION: Final = Setting("cnn", "node_max_pool2d", 50.0, 4.0)
PHOTOS: Final = Setting("lite0", "node_add_4", 30.0, 5.0)


@dataclass
class Bench:
    """State that all runs share.

    ``right[r]``: the evaluation samples, the frames' first, that rung r of ``plan`` answers correctly. ``floats``: the
    frames that the float model answers correctly. ``payloads[r]``: mean bytes of the frames of rung r.
    """

    setting: Setting
    network: Network
    board: Board
    plan: Plan
    right: NDArray[np.bool_]
    floats: Bools
    classes: NDArray[np.int64]
    payloads: list[int]

    @property
    def sizes(self) -> list[int]:
        """IP bytes of a frame, for each rung."""
        return [wire_bytes(payload) for payload in self.payloads]

    @property
    def bits(self) -> list[float]:
        """Mean bits per value, for each rung."""
        values = math.prod(self.plan.cut.shape)
        return [8 * (payload - HEADER_BYTES) / values for payload in self.payloads]


@dataclass
class Outcome:
    """The result of one controller on one trace."""

    name: str
    trace_name: str
    trace: Trace
    frames: list[list[Any]]
    status: dict[str, Any]
    bits: list[list[float]]
    best: list[int | None]


def main(arguments: Sequence[str] | None = None) -> None:
    given = _options().parse_args(arguments)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("benchmarks.dynamic_link: stopped by a signal")
    )  # exit handlers remove processes and files
    seconds = QUICK_SECONDS if given.quick else SECONDS
    traces = given.trace or (QUICK_TRACES if given.quick else tuple(TRACES))
    rivals = given.controller or (QUICK_RIVALS if given.quick else tuple(RIVALS))
    outcomes: list[Outcome] = []
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="splitedge-dynamic-") as folder,
        prepared(given, Path(folder), seconds) as bench,
    ):
        for trace in traces:
            for name in rivals:
                outcomes.append(run(bench, name, trace, seconds))
                rows.append(row(bench, outcomes[-1]))
                print(f"[{len(rows)}/{len(traces) * len(rivals)}] {rows[-1]}", file=sys.stderr, flush=True)
        report("Links that change while frames flow", rows, summary(rows), given.json, notes(bench))
        if given.plots:
            plot(given.plots, bench, outcomes, rows)


def _options() -> argparse.ArgumentParser:
    options = parser((__doc__ or "").splitlines()[0])
    fashion.add_option(options)
    options.add_argument("--images", type=Path, help="folder of photographs; selects EfficientNet-Lite0")
    options.add_argument("--labels", help="CSV of file name and ImageNet class index; if omitted, labels.csv")
    options.add_argument("--plots", metavar="DIR", type=Path, help="draw each trace's rates and bit widths, as PNG")
    options.add_argument("--trace", choices=list(TRACES), action="append", help="run only this trace; repeatable")
    options.add_argument("--controller", choices=list(RIVALS), action="append", help="run only this one; repeatable")
    return options


def notes(bench: Bench) -> list[str]:
    codecs = zip(bench.plan.ladder, bench.sizes, strict=True)
    ladder = ", ".join(f"{c.rule if c.tables else f'{c.rule} at {c.bits} bits'} ({size} bytes)" for c, size in codecs)
    return [
        f"network {bench.setting.network}, cut after {bench.plan.cut.layer}, {bench.setting.fps:g} frames/s; on the "
        f"ladder: {ladder}",
        f"held: windows of {WINDOW_S:g} s in which {HELD:.0%} of the frames were answered within {AGE_MS:g} ms, "
        "among windows that some codec could hold",
        "drop: points of top-1 below the float model on the answered frames; gap: of the codecs used below the "
        "oracle's, by their accuracy on all evaluation samples; of these frames: as they were answered",
    ] + [
        f"{name}: the ladder has no packed codec of {rival.bits} bits; frames of another codec over a link "
        f"{slower:.2f} times as slow replace it"
        for name, rival in RIVALS.items()
        if (slower := stand_in(bench.plan, rival.bits)) != 1
    ]


# --- runs -------------------------------------------------------------------------------------------------------------


def run(bench: Bench, name: str, trace_name: str, seconds: float) -> Outcome:
    """Plan with a new agent over a good link, then send frames over the trace."""
    rival, fps = RIVALS[name], bench.setting.fps
    trace = Trace.of(trace_name, seconds, bench.sizes[-1] * fps)
    bench.network.link(BOARD, SERVER, mbps=PLANNED_MBPS, rtt_ms=RTT_MS, back_mbps=BACK_MBPS)
    bench.board.plan(name, SPLITEDGE_LINK_CONTROLLER=rival.controller, SPLITEDGE_LINK_BITS=str(rival.bits))
    slower = stand_in(bench.plan, rival.bits)
    begin = time.monotonic() + 0.5
    stop = threading.Event()
    driver = threading.Thread(target=_drive, args=(bench.network, trace, begin, slower, stop))
    driver.start()
    try:
        found = bench.board.stream(name, begin, fps, int(seconds * fps))
    finally:
        stop.set()
        driver.join()
    best = oracle(trace, bench.sizes, fps, int(seconds / WINDOW_S), WINDOW_S)
    return Outcome(name, trace_name, trace, found["frames"], found["status"], found["bits"], best)


def stand_in(plan: Plan, bits: int) -> float:
    """Return the factor that slows the link so that the sent frames take as long as packed ones of ``bits``.

    1 if the plan has packed codes of ``bits``, or if ``bits`` is 0.
    """
    if not bits or packed(plan, bits) is not None:
        return 1.0
    codec = Adaptation(plan, PLANNED, Goal(), "fixed", bits).rung
    whole = HEADER_BYTES + packed_bytes(math.prod(plan.cut.shape), bits)
    return wire_bytes(whole) / wire_bytes(plan.rungs[codec].payload_bytes)


def _drive(network: Network, trace: Trace, begin: float, slower: float, stop: threading.Event) -> None:
    for at, rate in trace.points:
        if stop.wait(max(0.0, begin + at - time.monotonic())):
            break
        network.link(BOARD, SERVER, mbps=rate * 8e-6 / slower, rtt_ms=RTT_MS, back_mbps=BACK_MBPS)


def row(bench: Bench, outcome: Outcome) -> dict[str, Any]:
    """Return the table row of one run."""
    answered = [(i, f) for i, f in enumerate(outcome.frames) if f[5] == "answered"]
    latency = np.array([1e3 * (f[1] - f[0]) for _, f in answered] or [np.nan])
    possible = [held for held in windows_held(outcome) if held is not None]
    mine, float_right = right_of(bench, answered), bench.floats[[i % len(bench.floats) for i, _ in answered]]
    counts = outcome.status["frames"]
    of_codecs, of_frames = gaps(bench, outcome, answered)
    ended = counts["answered"] + sum(counts["dropped"].values()) + sum(counts["failed"].values())
    return {
        "trace": outcome.trace_name,
        "controller": outcome.name,
        "held %": 100.0 * sum(possible) / max(1, len(possible)),
        "windows": len(possible),
        "p50 ms": float(np.median(latency)),
        "p99 ms": float(np.quantile(latency, 0.99)),
        "drop": 100.0 * float(float_right.mean() - mine.mean()),
        "gap": of_codecs,
        "gap of these frames": of_frames,
        "bytes": float(np.mean([f[2] for _, f in answered])) if answered else 0.0,
        "answered": len(answered),
        "lost": ended - counts["answered"],
        "unaccounted": abs(len(outcome.frames) - ended) + abs(len(answered) - counts["answered"]),
        "overloads": outcome.status["link"]["overloads_total"],
    }


def windows_held(outcome: Outcome) -> list[bool | None]:
    """Return for each window whether it was held; None if the link carries no codec at the required rate."""
    offered = [0] * len(outcome.best)
    in_time = [0] * len(outcome.best)
    for start, end, _, _, _, fate in outcome.frames:
        k = min(len(offered) - 1, int(start / WINDOW_S))
        offered[k] += 1
        in_time[k] += (
            fate == "answered" and end - start <= AGE_MS / 1e3 + 0.05
        )  # allows for the delay until the answer is observed
    return [None if b is None else t >= HELD * o for b, t, o in zip(outcome.best, in_time, offered, strict=True)]


def right_of(bench: Bench, answered: Sequence[tuple[int, list[Any]]]) -> Bools:
    """Return a mask of the answers with the correct class."""
    return np.array([f[3] == bench.classes[i % len(bench.classes)] for i, f in answered], bool)


def gaps(bench: Bench, outcome: Outcome, answered: Sequence[tuple[int, list[Any]]]) -> tuple[float, float]:
    """Return the gap to the oracle's codec of each window in points of top-1, over answered frames of feasible windows.

    The first value uses the codecs' accuracy on all evaluation samples, the second the answers of these frames. The
    frames of one run are too few to distinguish codecs a tenth of a point apart; ten thousand samples are enough.
    """
    last = len(outcome.best) - 1
    pairs = [(i, f, outcome.best[min(last, int(f[0] / WINDOW_S))]) for i, f in answered]
    known = [(i, f, best) for i, f, best in pairs if best is not None]
    if not known:
        return 0.0, 0.0
    accuracy_of = bench.right.mean(axis=1)
    theirs = np.mean([bench.right[best, i] for i, _, best in known])
    return (
        100.0 * float(np.mean([accuracy_of[best] - accuracy_of[f[4]] for _, f, best in known])),
        100.0 * float(theirs - right_of(bench, [(i, f) for i, f, _ in known]).mean()),
    )


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return figures over all traces: windows held, mean gap, unaccounted frames and others.

    Keys of our controller have no prefix; keys of the others start with the controller's name.
    """
    found: dict[str, float] = {}
    for name in dict.fromkeys(row["controller"] for row in rows):
        mine = [row for row in rows if row["controller"] == name]
        prefix = "" if name == OURS else f"{name}."
        windows = sum(row["windows"] for row in mine)
        frames = sum(row["answered"] for row in mine)
        found |= {
            f"{prefix}held_percent": sum(row["held %"] * row["windows"] for row in mine) / max(1, windows),
            f"{prefix}accuracy_gap_points": sum(row["gap"] * row["answered"] for row in mine) / max(1, frames),
            f"{prefix}frames_gap_points": sum(row["gap of these frames"] * row["answered"] for row in mine)
            / max(1, frames),
            f"{prefix}frames_unaccounted": float(sum(row["unaccounted"] for row in mine)),
            f"{prefix}p99_ms": max(row["p99 ms"] for row in mine),
            f"{prefix}held_percent_worst": min(row["held %"] for row in mine),
            f"{prefix}frames_lost_percent": 100.0
            * sum(row["lost"] for row in mine)
            / max(1, frames + sum(row["lost"] for row in mine)),
        }
    return found


def plot(folder: Path, bench: Bench, outcomes: Sequence[Outcome], rows: Sequence[dict[str, Any]]) -> None:
    """Write a plot of each trace to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(outcome.trace_name for outcome in outcomes):
        mine = [(outcome, one) for outcome, one in zip(outcomes, rows, strict=True) if outcome.trace_name == name]
        lanes = [
            Lane(
                name=outcome.name,
                sent=[(f[0], f[4]) for f in outcome.frames if f[5] == "answered"],
                lost=[f[0] for f in outcome.frames if f[5] != "answered"],
                held=windows_held(outcome),
                best=outcome.best,
                caption=f"held {one['held %']:.0f} %, drop {one['drop']:.2f} points, p99 {one['p99 ms']:.0f} ms, {one['lost']} frames lost",
            )
            for outcome, one in mine
        ]
        title = f"{bench.setting.network}, {bench.setting.fps:g} frames/s, trace {name}: codec used (blue), the oracle's (grey), windows missed (red)"
        draw(
            folder / f"dynamic_link_{name}.png",
            title,
            mine[0][0].trace,
            bench.sizes,
            bench.bits,
            bench.setting.fps,
            lanes,
            WINDOW_S,
        )


# --- the processes ----------------------------------------------------------------------------------------------------


@contextmanager
def prepared(given: argparse.Namespace, folder: Path, seconds: float) -> Iterator[Bench]:
    """Calibrate the network, start server and board with frames for ``seconds``, and plan once for the ladder."""
    setting = PHOTOS if given.images else FASHION
    given = argparse.Namespace(**{**vars(given), "quick": False})  # a full calibration, which the cache keeps
    if given.images:
        task = accuracy_bound.photo_task(given)
    else:
        task = next(task for task in accuracy_bound.tasks(given) if task.name == setting.network)
    subject = accuracy_bound.prepare(task, folder)
    store = folder / "store"
    with Store(store) as opened:
        offer_only(folder / "bundle", setting.cut)
        with opened.bundles.create(setting.network) as place:
            shutil.copytree(folder / "bundle", place, dirs_exist_ok=True)
        token = opened.tokens.add("benchmark")
    frames = folder / "frames.npy"
    assert task.evaluated.classes is not None
    classes = task.evaluated.classes[: int(seconds * setting.fps)]
    np.save(frames, np.stack([task.evaluated[i] for i in range(len(classes))]))
    with Network(2) as network:
        network.link(BOARD, SERVER, mbps=PLANNED_MBPS, rtt_ms=RTT_MS, back_mbps=BACK_MBPS)
        server = serving(store, network.inside(SERVER), network.address(SERVER))
        with server, board(setting, network, frames, folder, token) as running:
            plan = running.plan("first")
            with Store(store) as opened:
                found, payloads = answers(opened, plan, subject, len(task.evaluated))
            right, floats = found == task.evaluated.classes, subject.right[: len(classes)]
            yield Bench(setting, network, running, plan, right, floats, np.asarray(classes), payloads)


def offer_only(bundle: Path, layer: str) -> None:
    """Keep only the bundle's cut after ``layer``. Raises `errors.UsageError` if there is none."""
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    if all(listed["cut"]["layer"] != layer for listed in manifest["cuts"]):
        raise errors.UsageError(f"the network has no cut after {layer}; check the importer's current layer names")
    for listed in manifest["cuts"]:
        listed["reason"] = listed["reason"] or ("" if listed["cut"]["layer"] == layer else "left out by a benchmark")
    path.write_text(json.dumps(manifest))


def answers(store: Store, plan: Plan, subject: Subject, count: int) -> tuple[NDArray[np.int64], list[int]]:
    """Return predicted classes [rungs, count] of the first evaluated samples, and each rung's mean frame bytes.

    The bytes are the mean over `WEIGHED` samples, because the planned bytes assume a head with 8-bit weights.
    """
    catalog = Catalog(store)
    bundle = catalog.bundle(plan.model)
    path = store.segments.path(plan.segment.sha256)
    assert path is not None
    head, tail = load(path.read_bytes()), catalog.tail(bundle, bundle.cuts[plan.cut.index])
    values, known = (
        evaluation.head_values(head, subject.task.evaluated, range(count)),
        evaluation.quantization_of(head.output),
    )

    def run(batch: NDArray[np.float32], _ids: NDArray[np.int64] | None = None, /) -> NDArray[np.float32]:
        return np.stack([tail.run(one) for one in batch])

    some = values[:WEIGHED]
    payloads = [HEADER_BYTES + round(fmean(len(evaluation.sent(known, c, one)) for one in some)) for c in plan.ladder]
    named = [evaluation.top1(evaluation.output_of(run, values, evaluation.arrival(known, c))) for c in plan.ladder]
    return np.stack(named), payloads


@contextmanager
def board(setting: Setting, network: Network, frames: Path, folder: Path, token: str) -> Iterator[Board]:
    """Run the agent's process, with its kernels compiled."""
    environment = {
        "SPLITEDGE_SERVER": f"http://{network.address(SERVER)}:{PORT}",
        "SPLITEDGE_TOKEN": token,
        "SPLITEDGE_MODEL": setting.network,
        "SPLITEDGE_ALLOW_INSECURE": "true",
        "SPLITEDGE_DEMAND_MODE": "split",
        "SPLITEDGE_DEMAND_MAX_DROP_POINTS": str(setting.drop),
        "SPLITEDGE_DEMAND_MIN_RATE_FPS": str(setting.fps),
        "SPLITEDGE_LINK_MAX_AGE_MS": str(AGE_MS),
        "SPLITEDGE_LINK_REPLAN": "false",
        "SPLITEDGE_THREADS": "1",
        "SPLITEDGE_CONFIG": str(folder / "board.toml"),
        "SPLITEDGE_TOPK": "1",
    }
    # A file, because an environment variable would also move the kernel cache.
    (folder / "board.toml").write_text(f"cache_dir = '{folder / 'board'}'\n")
    warm = [sys.executable, "-m", "edge_agent", "warm"]
    subprocess.run(warm, cwd=ROOT, env=os.environ | environment, stdout=subprocess.DEVNULL, check=True)
    with Board("board", network.inside(BOARD), environment, frames, most=10_000) as running:
        yield running


if __name__ == "__main__":
    main()
