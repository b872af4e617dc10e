"""Regret of the planner's choice: the chosen plan, full offload and all on the device, timed over emulated links.

    python -m benchmarks.regret --images DIR [--quick] [--json OUT]      (as root, on Linux)

A real server and a real agent run in separate network namespaces on separate cores, with a link between them
(`benchmarks.links`). The agent measures itself and the link, and negotiates EfficientNet-Lite0. Slower devices are this
machine's core slowed down (`benchmarks.slower`), or with kernels of the basic instruction set only. Their profiles are
measured on them as on any device.

Frames run one at a time, with the plans in turn. The first frame of each turn is untimed, because TCP restarts after a
pause. A frame's time is the agent's own measurement without preprocessing, which is the same for every plan and not
part of the planner's model. Regret is the chosen plan's median over the best of the three. Gain is the better extreme
over a split that beats both. Plans with the same cut and codec take the same time, so one run serves for both: a head's
time does not depend on its weights' bits. Noise is the interquartile range of the medians of a plan's turns over the
median, for the chosen plan or the best, the greater of both. A regret below the noise is not significant.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from benchmarks.board import Board, Timings
from benchmarks.cache import fingerprint
from benchmarks.links import RATES, ROUND_TRIPS, Network
from benchmarks.processes import PORT, add_command, serving
from benchmarks.report import photo_parser, report
from benchmarks.slower import PREFIX, slower
from edge_agent.planning.downloads import DOWNLOADING
from kernels.cache import cache_base
from splitedge import errors, limits
from splitedge.protocol.messages import Plan, Prediction

ROOT: Final = Path(__file__).resolve().parent.parent
BOARD, SERVER = 0, 1  # nodes of the network
MODEL: Final = "lite0"
CHOSEN, EXTREMES = "chosen", ("device", "server")
SAMPLES: Final = 100  # for calibration
SOURCES: Final = ("calibration", "kernels", "splitedge/head", "splitedge/codec")

FRAMES, QUICK_FRAMES = 30, 8  # timed frames of each plan
TURN: Final = 5  # frames in a turn after the first
LEAST_TURNS: Final = 3  # to estimate a spread
SECONDS, QUICK_SECONDS = 8.0, 4.0  # time for the frames of one link
TRIES: Final = 5  # attempts to get a plan
UNTRUE: Final = 0.05  # relative prediction error of a frame's time that triggers a new plan
RENEWALS: Final = limits.MISMATCH_REPLANS  # maximum number of new plans
HOPELESS: Final = 1.5  # a plan this many times slower than the best is dropped after a turn


@dataclass(frozen=True)
class Device:
    """An emulated board: one core, ``times`` slower, with kernels of the instruction set ``isa`` (empty: the best)."""

    name: str
    times: float = 1.0
    isa: str = ""


DEVICES: Final = (
    Device("this core"),
    Device("a tenth of it", 10),
    Device("a tenth, portable kernels", 10, "portable"),
)
QUICK_LINKS: Final = ((4.0, 20.0), (64.0, 1.0))
LINKS: Final = tuple((mbps, rtt) for rtt in ROUND_TRIPS for mbps in RATES)


@dataclass
class Run:
    """A plan and the timings of its frames."""

    plan: Plan
    turns: list[Timings] = field(default_factory=list)
    first: float = 0.0  # ms of the first frame, over a cold connection

    @property
    def timings(self) -> Timings:
        return [timing for turn in self.turns for timing in turn]

    @property
    def noise(self) -> float:
        """Interquartile range of the turns' medians, as a share of the median; 0 with too few turns."""
        if len(self.turns) < LEAST_TURNS:
            return 0.0
        low, _, high = quantiles([median(map(_ms, turn)) for turn in self.turns], method="inclusive")
        return (high - low) / self.ms

    @property
    def ms(self) -> float:
        return median(map(_ms, self.timings)) if self.timings else self.first

    def stage(self, *names: str) -> float:
        """Return the median milliseconds of the sum of these stages."""
        return median(sum(t[f"{name}_ms"] for name in names) for t in self.timings) if self.timings else 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    options = photo_parser(__doc__ or "")
    options.add_argument(
        "--device", choices=[d.name for d in DEVICES], action="append", help="run only this device; repeatable"
    )
    options.add_argument(
        "--link", metavar="MBPSxMS", type=_link, action="append", help="run only this link, such as 16x20; repeatable"
    )
    given = options.parse_args(arguments)
    devices = [
        d for d in DEVICES if d.name in (given.device or [d.name for d in (DEVICES[1:2] if given.quick else DEVICES)])
    ]
    links = given.link or (QUICK_LINKS if given.quick else LINKS)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="splitedge-regret-") as folder, Network(2) as network:
        store = bundle_store(given)
        token = _command(store, "token", f"regret-{time.time_ns()}").strip()
        prefix = [*network.inside(SERVER), "taskset", "-c", str(cores()[1])]
        with serving(store, prefix, network.address(SERVER)):
            for device in devices:
                with on_board(device, network, given.images, Path(folder), token) as board:
                    for row in sweep(device, board, network, links, quick=given.quick):
                        rows.append(row)
                        _show(len(rows), len(devices) * len(links), row)
    report("Regret: chosen plan, all on the server, all on the device, timed", rows, summary(rows), given.json, NOTES)


NOTES: Final = [
    "ms: median time of a frame without preprocessing; a plan that is far slower than the others runs few frames",
    "noise: the spread between turns of one plan; a regret below it means nothing",
    "parts: predicted / measured ms on the device (head, encoding), of the transfer, on the server (queue, tail), "
    "and elsewhere in the agent; ?: this codec was not weighed; -: a far slower plan ran one frame",
    "if the choice is all on the device or all on the server, one run serves for both",
]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    off = [abs(row["predicted ms"] / row["chosen ms"] - 1) for row in rows]
    return {
        "worst_regret_percent": max(row["regret %"] for row in rows),
        "regret_over_5_percent": float(sum(row["regret %"] > 5 for row in rows)),
        "regret_over_5_percent_and_noise": float(sum(row["regret %"] > max(5, row["noise %"]) for row in rows)),
        "best_gain_times": max(row["gain"] for row in rows),
        "links_where_split_wins": float(sum(row["gain"] > 1 for row in rows)),
        "links": float(len(rows)),
        "prediction_error_percent_median": 100 * median(off),
        "prediction_error_percent_worst": 100 * max(off),
    }


# --- one device over all links ----------------------------------------------------------------------------------------


def sweep(
    device: Device, board: Board, network: Network, links: Sequence[tuple[float, float]], *, quick: bool
) -> Iterator[dict[str, Any]]:
    """Yield a row for each link, best first.

    The choice and full offload are negotiated anew at each link, because another link needs another codec. If frames
    take much longer or shorter than predicted, the choice is renewed up to `RENEWALS` times, as an agent does after a
    minute.
    """
    plans: dict[str, Plan] = {}
    for mbps, rtt in sorted(links, key=lambda link: (link[1], -link[0])):
        network.link(BOARD, SERVER, mbps=mbps, rtt_ms=rtt)
        plans[CHOSEN] = negotiate(board, CHOSEN, network, mbps, rtt)
        for _ in range(RENEWALS):
            found = median(_ms(t) for t in board.frames(CHOSEN, 1 + TURN)[1:])
            if abs(found / plans[CHOSEN].prediction.total_ms - 1) <= UNTRUE:
                break
            plans[CHOSEN] = negotiate(board, CHOSEN, network, mbps, rtt)
        for name in EXTREMES:
            share_profile(Path(board.name), name)
            if name == "server" or name not in plans:
                plans[name] = negotiate(board, name, network, mbps, rtt)
        runs = timed(board, plans, *((QUICK_FRAMES, QUICK_SECONDS) if quick else (FRAMES, SECONDS)))
        yield row(device, mbps, rtt, runs)


def share_profile(place: Path, name: str) -> None:
    """Copy the profile of the choice's agent to the agent ``name``, if it has none."""
    own = place.with_name(f"{place.name}-{name}")
    own.mkdir(exist_ok=True)
    for profile in place.with_name(f"{place.name}-{CHOSEN}").glob("profile-*.json"):
        if not (own / profile.name).exists():
            shutil.copy(profile, own)


def negotiate(board: Board, name: str, network: Network, mbps: float, rtt: float) -> Plan:
    """Negotiate a plan of the agent ``name`` over the current link; download its segment over a faster one.

    No frame waits for the segment, so its download does not matter.
    """

    def on_step(text: str) -> None:
        if text == DOWNLOADING:
            network.link(BOARD, SERVER, mbps=1000, rtt_ms=1)
        elif text == "preparing the head":
            network.link(BOARD, SERVER, mbps=mbps, rtt_ms=rtt)

    settings = {
        "SPLITEDGE_DEMAND_MODE": "any" if name == CHOSEN else name,
        "SPLITEDGE_CONFIG": f"{board.name}-{name}.toml",
    }
    for _ in range(TRIES - 1):
        try:
            return board.plan(name, on_step, **settings)
        except (
            errors.LinkError
        ):  # the server may take longer to build a segment than a request waits; the next request finds it ready
            network.link(BOARD, SERVER, mbps=mbps, rtt_ms=rtt)
    return board.plan(name, on_step, **settings)


def timed(board: Board, plans: dict[str, Plan], frames: int, seconds: float) -> dict[str, Run]:
    """Run the plans in turns until each has its frames or the time is over. Equal plans share a run."""
    runs: dict[str, Run] = {}
    for name in (CHOSEN, *EXTREMES):
        same = next((runs[other] for other in runs if identity(runs[other].plan) == identity(plans[name])), None)
        runs[name] = same or Run(plans[name])
    left = {name: run for name, run in runs.items() if next(n for n in runs if runs[n] is run) == name}
    end = time.monotonic() + seconds
    while left:
        for name, run in list(left.items()):
            _turn(board, name, run, min((r.ms for r in runs.values() if r.timings), default=float("inf")))
            best = min((r.ms for r in runs.values() if r.timings), default=float("inf"))
            if not run.timings or len(run.timings) >= frames or run.ms > HOPELESS * best or time.monotonic() > end:
                del left[name]
    return runs


def _turn(board: Board, name: str, run: Run, best: float) -> None:
    """Run a frame to warm the connection, then `TURN` timed frames, unless the first shows a far slower plan."""
    first = _ms(board.frames(name, 1)[0])
    run.first = run.first or first
    if first < 4 * best:
        count = TURN if first < 1000 else 2
        run.turns.append(board.frames(name, count))


def identity(plan: Plan) -> tuple[int, tuple[str, int] | None]:
    """Return the cut and the codec, which determine a frame's time."""
    codec = plan.ladder[plan.codec] if plan.ladder and plan.mode != "device" else None
    return plan.cut.index, (codec.rule, codec.bits) if codec else None


def _ms(timing: dict[str, float]) -> float:
    return timing["total_ms"] - timing["preprocess_ms"]


def row(device: Device, mbps: float, rtt: float, runs: dict[str, Run]) -> dict[str, Any]:
    chosen, plan = runs[CHOSEN], runs[CHOSEN].plan
    best = min(runs.values(), key=lambda run: run.ms)
    extreme = min(runs[name].ms for name in EXTREMES)
    where = plan.cut.layer if plan.mode == "split" else plan.mode
    weights = "-" if plan.mode == "server" else f"{plan.mean_bits():.1f}"
    bits = f"{weights}/{plan.ladder[plan.codec].bits if plan.ladder else '-'}"
    return {
        "device": device.name,
        "Mbit/s": f"{mbps:g}",
        "rtt": f"{rtt:g}",
        "chosen": where,
        "bits": bits,
        **{f"{name} ms": run.ms for name, run in runs.items()},
        "regret %": 100 * (chosen.ms / best.ms - 1),
        "noise %": 100 * max(chosen.noise, best.noise),
        "gain": extreme / chosen.ms if plan.mode == "split" else 1.0,
        **{f"{name} parts": parts(run, expected(plan, run.plan)) for name, run in runs.items()},
        "predicted ms": plan.prediction.total_ms,
    }


def expected(chosen: Plan, other: Plan) -> Prediction | None:
    """Return the prediction for the cut and codec of ``other`` from the planning of ``chosen``.

    None if it is not a runner-up; each cut has one.
    """
    if identity(chosen) == identity(other):
        return chosen.prediction
    told = {
        (one.cut.index, (one.rule, one.activation_bits) if one.activation_bits else None): one.prediction
        for one in chosen.runners_up
    }
    return told.get(identity(other))


def parts(run: Run, p: Prediction | None) -> str:
    """Format predicted / measured ms of device, transfer and server, and the measured ms of the rest of the frame.

    "?": no prediction; "-": a far slower plan, for which one frame is enough.
    """
    told = ("?",) * 3 if p is None else [f"{ms:.1f}" for ms in (p.device_ms, p.transfer_ms, p.queue_ms + p.server_ms)]
    stages = ("head", "encode"), ("link",), ("queue", "tail")
    measured = [f"{run.stage(*names):.1f}" if run.timings else "-" for names in (*stages, ("wait",))]
    return " ".join(f"{predicted}/{found}" for predicted, found in zip([*told, "-"], measured, strict=True))


# --- the processes ----------------------------------------------------------------------------------------------------


def cores() -> tuple[int, int]:
    """Return the cores of board and server, different ones if the machine has two."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[-1], usable[0]


@contextmanager
def on_board(device: Device, network: Network, photos: Path, folder: Path, token: str) -> Iterator[Board]:
    """Run a board, which measures itself at its first plan."""
    core, _ = cores()
    place = folder / device.name.replace(" ", "-").replace(",", "")
    for name in (
        CHOSEN,
        *EXTREMES,
    ):  # separate caches: the choice must not learn from the extremes; a variable would also move the kernels
        (folder / f"{place.name}-{name}.toml").write_text(f"cache_dir = '{place}-{name}'\n")
    environment = {
        "SPLITEDGE_SERVER": f"http://{network.address(SERVER)}:{PORT}",
        "SPLITEDGE_TOKEN": token,
        "SPLITEDGE_MODEL": MODEL,
        "SPLITEDGE_ALLOW_INSECURE": "true",
        "SPLITEDGE_ISA": device.isa,
        "SPLITEDGE_DEMAND_MAX_AWAY_S": "120",
        "SPLITEDGE_DEMAND_MAX_DROP_POINTS": "2",
        "SPLITEDGE_LINK_CONTROLLER": "fixed",
        "SPLITEDGE_LINK_REPLAN": "false",
    }
    # Compile before the measurement; it takes minutes on the slower core.
    subprocess.run(
        [sys.executable, "-m", "edge_agent", "warm"],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    prefix = [*network.inside(BOARD), "taskset", "-c", str(core), *PREFIX]
    with Board(str(place), prefix, environment, photos) as board, slower(core, device.times):
        yield board


def bundle_store(given: argparse.Namespace) -> Path:
    """Return a store with Lite0, calibrated once for these sources and photographs."""
    names = "\n".join(sorted(path.name for path in given.images.iterdir()))
    key = hashlib.sha256(f"{fingerprint(SOURCES)}{SAMPLES}{names}{given.labels}".encode()).hexdigest()[:16]
    place = cache_base() / "benchmarks" / f"regret-{key}"
    if not (place / "ready").exists():
        print(f"calibrating EfficientNet-Lite0 on {SAMPLES} photographs (once, a few minutes)", file=sys.stderr)
        options = ["--labels", given.labels] if given.labels else []
        command = add_command(place, given.images, *options, "--samples", str(SAMPLES))
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        (place / "ready").touch()
    return place


def _command(store: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "edge_server", *arguments, "--store", str(store)]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def _link(text: str) -> tuple[float, float]:
    mbps, rtt = map(float, text.split("x"))
    return mbps, rtt


def _show(done: int, total: int, row: dict[str, Any]) -> None:
    words = (f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values())
    print(f"[{done}/{total}] {' | '.join(words)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
