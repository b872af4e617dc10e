"""Regret of the planner's choice: the chosen plan, all on the server and all on the device, run and timed over emulated links.

    python -m benchmarks.regret --images DIR [--quick] [--json OUT]      (as root, on Linux)

A real server and a real agent, each in a network namespace and on a core of its own, with a link between them (`benchmarks.links`). The agent
measures itself and the link, and negotiates EfficientNet-Lite0. Slower devices are this machine's core, less of it (`benchmarks.slower`), or with
kernels that use no instructions beyond the basic ones; their profiles are measured there like any other.

Frames go one at a time, each plan's in turn, the first of each turn untimed: TCP starts anew after a pause. A frame's time is what the agent says
it took, less preprocessing, which is the same for every plan and which the planner leaves out. Regret is the chosen plan's median over the best of
the three, gain the better of the two extremes over a split that beats both. Where two of the three have the same cut and codec they take the same time
and one is run: a head's time is not a matter of its weights' bits. Noise is how far medians of turns of the same plan lie apart (the interquartile range
over the median; of the chosen plan or the best, whichever is more): a regret below it says nothing.
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

from benchmarks import lite0
from benchmarks.board import Board, Timings
from benchmarks.cache import fingerprint
from benchmarks.links import RATES, ROUND_TRIPS, Network
from benchmarks.models import LITE0_PREPROCESS
from benchmarks.processes import PORT, serving
from benchmarks.report import photo_parser, report
from benchmarks.slower import PREFIX, slower
from edge_agent.planning.downloads import DOWNLOADING
from kernels.jit import cache_base
from splitedge import errors, limits
from splitedge.protocol.messages import Plan, Prediction

ROOT: Final = Path(__file__).resolve().parent.parent
BOARD, SERVER = 0, 1  # nodes of the network
MODEL: Final = "lite0"
CHOSEN, EXTREMES = "chosen", ("device", "server")
SAMPLES: Final = 100  # that calibrate
SOURCES: Final = ("calibration", "kernels", "splitedge/head", "splitedge/codec")

FRAMES, QUICK_FRAMES = 30, 8  # that are timed, of each plan
TURN: Final = 5  # frames in a turn, beside the first
LEAST_TURNS: Final = 3  # for a spread
SECONDS, QUICK_SECONDS = 8.0, 4.0  # for the frames at one link
TRIES: Final = 5  # to have a plan
UNTRUE: Final = 0.05  # a frame's time so far off its prediction is worth a new plan
RENEWALS: Final = limits.MISMATCH_REPLANS  # so many are
HOPELESS: Final = 1.5  # a plan so many times slower than the best after a turn is not run again


@dataclass(frozen=True)
class Device:
    """A board made of one core: ``times`` slower, its kernels on the instruction set ``isa`` (empty: the best)."""

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
    """A plan and its frames' timings so far."""

    plan: Plan
    turns: list[Timings] = field(default_factory=list)
    first: float = 0.0  # ms of the first frame, which found a cold connection

    @property
    def timings(self) -> Timings:
        return [timing for turn in self.turns for timing in turn]

    @property
    def noise(self) -> float:
        """The interquartile range of the turns' medians, as a share of the median; 0 where there are too few turns to tell."""
        if len(self.turns) < LEAST_TURNS:
            return 0.0
        low, _, high = quantiles([median(map(_ms, turn)) for turn in self.turns], method="inclusive")
        return (high - low) / self.ms

    @property
    def ms(self) -> float:
        return median(map(_ms, self.timings)) if self.timings else self.first

    def stage(self, *names: str) -> float:
        """Median milliseconds of these stages together."""
        return median(sum(t[f"{name}_ms"] for name in names) for t in self.timings) if self.timings else 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    options = photo_parser(__doc__ or "")
    options.add_argument(
        "--device", choices=[d.name for d in DEVICES], action="append", help="only this one; may be repeated"
    )
    options.add_argument(
        "--link", metavar="MBPSxMS", type=_link, action="append", help="only this one, such as 16x20; may be repeated"
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
    "parts: predicted / measured ms on the device (head, encoding), of the transfer, on the server (queue, tail), and elsewhere in the agent; ?: this codec was not weighed; -: a far slower plan ran one frame",
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
    """A row for each link, best first. What sends is negotiated anew at each: another link wants another codec of the same picture. The choice is, up to
    `RENEWALS` times more, where frames took longer or shorter than was thought: as an agent does after a minute, with what it learnt meanwhile.
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
    """Give the agent ``name`` the profile that the one of the choice has measured, once there is one."""
    own = place.with_name(f"{place.name}-{name}")
    own.mkdir(exist_ok=True)
    for profile in place.with_name(f"{place.name}-{CHOSEN}").glob("profile-*.json"):
        if not (own / profile.name).exists():
            shutil.copy(profile, own)


def negotiate(board: Board, name: str, network: Network, mbps: float, rtt: float) -> Plan:
    """The plan of the agent ``name`` over the link as it is. The segment is fetched over a better one: no frame waits for it."""

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
        ):  # a server may be longer about building a segment than a request waits; it is ready at the next one
            network.link(BOARD, SERVER, mbps=mbps, rtt_ms=rtt)
    return board.plan(name, on_step, **settings)


def timed(board: Board, plans: dict[str, Plan], frames: int, seconds: float) -> dict[str, Run]:
    """A run of each plan, in turns, until each has its frames or the time is over; the same run for the same plan."""
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
    """A frame to wake the connection, and `TURN` that count; no more than the first where it says that there is no hope."""
    first = _ms(board.frames(name, 1)[0])
    run.first = run.first or first
    if first < 4 * best:
        count = TURN if first < 1000 else 2
        run.turns.append(board.frames(name, count))


def identity(plan: Plan) -> tuple[int, tuple[str, int] | None]:
    """What makes two plans the same for a frame's time: the cut and the codec."""
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
        "device": device.name, "Mbit/s": f"{mbps:g}", "rtt": f"{rtt:g}", "chosen": where, "bits": bits,
        **{f"{name} ms": run.ms for name, run in runs.items()}, "regret %": 100 * (chosen.ms / best.ms - 1),
        "noise %": 100 * max(chosen.noise, best.noise),
        "gain": extreme / chosen.ms if plan.mode == "split" else 1.0,
        **{f"{name} parts": parts(run, expected(plan, run.plan)) for name, run in runs.items()}, "predicted ms": plan.prediction.total_ms,
    }  # fmt: skip


def expected(chosen: Plan, other: Plan) -> Prediction | None:
    """What was predicted of the cut and codec of ``other`` when ``chosen`` was; None where it was not among the runners-up, of which each cut has one."""
    if identity(chosen) == identity(other):
        return chosen.prediction
    told = {
        (one.cut.index, (one.rule, one.activation_bits) if one.activation_bits else None): one.prediction
        for one in chosen.runners_up
    }
    return told.get(identity(other))


def parts(run: Run, p: Prediction | None) -> str:
    """Predicted (? where nothing was) / measured ms (- of a hopeless plan, of which one frame was enough) of device, transfer and server, and what of the
    frame is in neither."""
    told = ("?",) * 3 if p is None else [f"{ms:.1f}" for ms in (p.device_ms, p.transfer_ms, p.queue_ms + p.server_ms)]
    stages = ("head", "encode"), ("link",), ("queue", "tail")
    measured = [f"{run.stage(*names):.1f}" if run.timings else "-" for names in (*stages, ("wait",))]
    return " ".join(f"{predicted}/{found}" for predicted, found in zip([*told, "-"], measured, strict=True))


# --- the processes ----------------------------------------------------------------------------------------------------


def cores() -> tuple[int, int]:
    """The cores of board and server: two where there are two."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[-1], usable[0]


@contextmanager
def on_board(device: Device, network: Network, photos: Path, folder: Path, token: str) -> Iterator[Board]:
    """A board that has measured itself, or does so at its first plan."""
    core, _ = cores()
    place = folder / device.name.replace(" ", "-").replace(",", "")
    for name in (
        CHOSEN,
        *EXTREMES,
    ):  # a folder for each: the agent of the choice learns nothing from the extremes; a variable would move the kernels
        (folder / f"{place.name}-{name}.toml").write_text(f"cache_dir = '{place}-{name}'\n")
    environment = {
        "SPLITEDGE_SERVER": f"http://{network.address(SERVER)}:{PORT}", "SPLITEDGE_TOKEN": token,
        "SPLITEDGE_MODEL": MODEL, "SPLITEDGE_ALLOW_INSECURE": "true", "SPLITEDGE_ISA": device.isa, "SPLITEDGE_DEMAND_MAX_AWAY_S": "120",
        "SPLITEDGE_DEMAND_MAX_DROP_POINTS": "2", "SPLITEDGE_LINK_CONTROLLER": "fixed", "SPLITEDGE_LINK_REPLAN": "false",
    }  # fmt: skip
    # Compiling is not what is measured; it would take minutes on the slower core.
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
    """A store with Lite0, calibrated once for these sources and photographs."""
    names = "\n".join(sorted(path.name for path in given.images.iterdir()))
    key = hashlib.sha256(f"{fingerprint(SOURCES)}{SAMPLES}{names}{given.labels}".encode()).hexdigest()[:16]
    place = cache_base() / "benchmarks" / f"regret-{key}"
    if not (place / "ready").exists():
        print(f"calibrating EfficientNet-Lite0 on {SAMPLES} photographs: minutes, once", file=sys.stderr)
        spec = LITE0_PREPROCESS
        options = ["--labels", given.labels] if given.labels else []
        _command(
            place, "add", lite0.file(), "--name", MODEL, "--images", str(given.images), *options, "--samples", str(SAMPLES),
            "--size", str(spec.shape[0]), "--resize", str(spec.resize), "--mean", str(spec.mean[0]), "--std", str(spec.std[0]),
        )  # fmt: skip
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
