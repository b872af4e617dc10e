"""A pipeline of two boards and the server, each in a network namespace: bits, predicted rate, and a killed board.

    python -m benchmarks.pipeline --images DIR [--labels FILE] [--json OUT] [--quick]

EfficientNet-Lite0 is planned for the greatest rate over board, board and server, all of which must take part. The
boards differ: the first has a slowed core (`benchmarks.slower`), the second shares the other core with the server and
the relay. The bottleneck is never on the shared core, so that its processes do not wait for each other. It is the first
board in one setting, and the link behind it in the other. Both boards use kernels of the basic instruction set and keep
the codecs of the plan. The benchmark needs root and two cores.

bits_equal: with lossless codecs, the outputs behind the last integer stage equal those of the same integer network in
one process, bit for bit.

throughput_prediction_error_percent: the measured frame rate against the plan's. Before the plan, some frames measure
the boards' segment times and their other time per frame (image preparation, the programs' own work). The prediction
includes these, the links' bytes and round trips, and the tail.

frames_unaccounted: frames of a stream that did not end as answered, dropped or failed, by the callers' count and by the
agent's. During the stream the second board is killed (SIGKILL) and restarted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.board import Board, load_pictures
from benchmarks.links import Network
from benchmarks.processes import PORT, reap, serving
from benchmarks.regret import MODEL, ROOT, bundle_store, cores
from benchmarks.report import photo_parser, report
from benchmarks.slower import PREFIX, slower
from calibration.bundle.bundle import Bundle
from edge_agent.runtime.engine import Engine
from edge_server.planning.catalog import Catalog
from edge_server.store.store import Store
from splitedge import codec
from splitedge.protocol.messages import Demand, Plan

FIRST, SECOND, SERVER = 0, 1, 2  # nodes of the network
AGENT: Final = "first"
STAGE_PORT: Final = 8472
TOKEN: Final = "pipeline-stage"  # noqa: S105  within namespaces of this process
PICTURES: Final = 8
AT_ONCE: Final = 10
ISA: Final = "portable"
PLANS: Final = 3  # at most, until two in a row have the same cuts
LEARN, FRAMES, KILLED = 60, 240, 240
QUICK: Final = (20, 60, 80)


@dataclass(frozen=True)
class Setting:
    """A setting of the pipeline.

    ``times``: slowdown of the first board's core. Links are Mbit/s and ms of round trip. ``near``: to the next board.
    ``far``: from there to the server. ``past``: from the first board to the server.
    """

    name: str
    times: float
    near: tuple[float, float]
    far: tuple[float, float]
    past: tuple[float, float] = (10.0, 20.0)


SETTINGS: Final = (
    Setting("the first board bounds the rate", 8.0, (200.0, 2.0), (100.0, 10.0)),
    Setting("the link between the boards does", 2.0, (0.5, 4.0), (50.0, 10.0)),
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = photo_parser(__doc__ or "")
    options.add_argument("--store", type=Path, help="existing server store that holds lite0")
    given = options.parse_args(arguments)
    learn, frames, killed = QUICK if given.quick else (LEARN, FRAMES, KILLED)
    store = given.store or bundle_store(given)
    rows: list[dict[str, Any]] = []
    equal: list[bool] = []
    lost = 0
    with tempfile.TemporaryDirectory(prefix="splitedge-pipeline-") as folder, Network(3) as network:
        token = _token(store)
        prefix = [*network.inside(SERVER), "taskset", "-c", str(cores()[1])]
        with serving(store, prefix, network.address(SERVER)):
            for index, setting in enumerate(SETTINGS[: 1 if given.quick else None]):
                _shape(network, setting)
                place = Path(folder) / str(index)
                place.mkdir()
                with Pipeline(network, setting, place, given.images, token) as pipeline:
                    rows.append(pipeline.rate(learn, frames))
                    equal.append(pipeline.bits_equal(store))
                    lost += pipeline.killed(killed)
    worst = max((abs(row["error %"]) for row in rows), default=float("nan"))
    summary = {
        "bits_equal": float(all(equal)),
        "throughput_prediction_error_percent": worst,
        "frames_unaccounted": float(lost),
    }
    report("A pipeline of two boards and the server", rows, summary, given.json, NOTES)


NOTES: Final = [
    "ms: prediction for the first board, its link, the second board, its link, and the server; the slowest bounds "
    "the rate",
    "the prediction includes what frames take on each board (as the board measured it), the links and the tail",
]


class Pipeline:
    """The two boards: a stage, as `edge-agent run` in a process that can be killed, and the first board before it."""

    def __init__(self, network: Network, setting: Setting, place: Path, photos: Path, token: str) -> None:
        self._network, self._setting, self._place, self._photos = network, setting, place, photos
        self._common = {
            "SPLITEDGE_SERVER": f"http://{network.address(SERVER)}:{PORT}",
            "SPLITEDGE_TOKEN": token,
            "SPLITEDGE_ALLOW_INSECURE": "true",
            "SPLITEDGE_ISA": ISA,
            "SPLITEDGE_DEMAND_MAX_AWAY_S": "120",
            "SPLITEDGE_DEMAND_MAX_DROP_POINTS": "2",
            "SPLITEDGE_THREADS": "1",
        }

    def __enter__(self) -> Pipeline:
        subprocess.run(
            [sys.executable, "-m", "edge_agent", "warm"],
            cwd=ROOT,
            env=os.environ | self._common,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        self._stage = self._start_stage()
        prefix = [*self._network.inside(FIRST), "taskset", "-c", str(cores()[0]), *PREFIX]
        environment = self._common | {
            "SPLITEDGE_CONFIG": self._config("first"),
            "SPLITEDGE_MODEL": MODEL,
            "SPLITEDGE_CHAIN_NEXT": f"http://{self._network.address(SECOND)}:{STAGE_PORT}",
            "SPLITEDGE_CHAIN_TOKEN": TOKEN,
            "SPLITEDGE_CHAIN_OBJECTIVE": "rate",
            "SPLITEDGE_CHAIN_SPREAD": "true",
            "SPLITEDGE_LINK_CONTROLLER": "fixed",
        }
        self._board = Board("first", prefix, environment, self._photos, PICTURES).__enter__()
        self._slower = slower(cores()[0], self._setting.times)
        self._slower.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._slower.__exit__(None, None, None)
        self._board.__exit__(None, None, None)
        self._stage.terminate()
        reap(self._stage)

    def rate(self, learn: int, frames: int) -> dict[str, Any]:
        """Return a row: the measured rate of ``frames`` frames and the plan's rate.

        Planning repeats until new measurements do not move a cut.
        """
        plan = self._plan()
        for _ in range(PLANS - 1):
            self._board.rush(AGENT, learn, AT_ONCE)
            before, plan = plan, self._plan()
            if _cuts(before) == _cuts(plan):
                break
        fps, ends = self._board.rush(AGENT, frames, AT_ONCE)
        assert plan.stage is not None
        first, second = plan.stage.route
        p = plan.prediction
        stages = (first.device_ms, first.sending_ms, second.device_ms, second.sending_ms)
        tail = p.server_ms - second.device_ms - second.sending_ms - second.rtt_ms
        return {
            "setting": self._setting.name,
            "cuts": " > ".join(_cuts(plan)),
            "bits": f"{first.activation_bits} {second.activation_bits}",
            "ms": " ".join(f"{ms:.1f}" for ms in (*stages, tail)),
            "predicted/s": plan.stage.rate_fps,
            "measured/s": fps,
            "error %": 100 * (fps / plan.stage.rate_fps - 1),
            "answered": ends.get("answered", 0),
        }

    def bits_equal(self, store: Path) -> bool:
        """Return whether outputs with exact codecs equal those of the same integer network in one process."""
        plan = self._plan(exact=True)
        return self._board.outputs(AGENT, PICTURES) == in_one_process(
            store, plan, load_pictures(self._photos, PICTURES)
        )

    def killed(self, frames: int) -> int:
        """Return the unaccounted frames of a stream. After about a third, the second board is killed and restarted."""
        plan = self._plan()
        assert plan.stage is not None
        timer = threading.Timer(frames / 3 / plan.stage.rate_fps, self._restart)
        timer.start()
        _, ends = self._board.rush(AGENT, frames, AT_ONCE)
        timer.join()
        told = self._board.counted(AGENT)
        counted: int = told["answered"] + sum(told["dropped"].values()) + sum(told["failed"].values())
        return max(abs(frames - sum(ends.values())), abs(frames - counted))

    def _restart(self) -> None:
        self._stage.kill()
        self._stage.wait()
        self._stage = self._start_stage()

    def _plan(self, exact: bool = False) -> Plan:
        """Return a new agent's plan. The previous agent ends, because a stage holds few plans."""
        return self._board.plan(AGENT, SPLITEDGE_CHAIN_EXACT=str(exact).lower())

    def _config(self, name: str) -> str:
        """Set a board's cache folder in a file, because an environment variable would also move the kernels."""
        path = self._place / f"{name}.toml"
        path.write_text(f"cache_dir = '{self._place / name}'\n")
        return str(path)

    def _start_stage(self) -> subprocess.Popen[bytes]:
        """Start the second board and return its process once it listens."""
        environment = (
            os.environ
            | self._common
            | {
                "SPLITEDGE_CONFIG": self._config("second"),
                "SPLITEDGE_MODEL": "",
                "SPLITEDGE_STAGE_TOKEN": TOKEN,
                "SPLITEDGE_STAGE_HOST": self._network.address(SECOND),
                "SPLITEDGE_STAGE_PORT": str(STAGE_PORT),
                "SPLITEDGE_API_PORT": "0",
            }
        )
        prefix = [*self._network.inside(SECOND), "taskset", "-c", str(cores()[1])]
        command = [*prefix, sys.executable, "-m", "edge_agent", "run"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        for line in process.stderr:
            if b"ready as a stage" in line:
                threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
                return process
        sys.exit("benchmarks.pipeline: the second board did not start; run `edge-agent doctor`")


def _drain(lines: IO[bytes]) -> None:
    for line in lines:
        sys.stderr.buffer.write(line)


def _cuts(plan: Plan) -> tuple[str, ...]:
    assert plan.stage is not None
    return tuple(one.cut for one in plan.stage.route)


def in_one_process(store: Path, plan: Plan, pictures: Sequence[NDArray[np.uint8]]) -> list[str]:
    """Return the full outputs (hexadecimal) for ``pictures`` of the chain's integer network as one head and one tail.

    ``plan``: the first plan of a chain with exact codecs.
    """
    with Store(store) as opened:
        catalog = Catalog(opened)
        bundle = catalog.bundle(plan.model)
        last, bits = plan, _bits(opened, bundle, plan)
        while last.stage is not None and last.stage.downstream:
            last = opened.plans.get(last.stage.downstream)
            bits |= _bits(opened, bundle, last)
        whole = bundle.segment(last.cut.index, bits)
        one = msgspec.structs.replace(plan, cut=last.cut, ladder=last.ladder, rungs=last.rungs, codec=last.codec)
        engine, tail = Engine(one, whole, Demand(max_drop_points=100.0)), catalog.tail(bundle, last.cut)
        sent = [engine.process(picture).payload for picture in pictures]
        values = [codec.decode(payload, last.ladder[last.codec], last.cut.shape) for payload in sent]
        return [tail.run(value).astype("<f4").tobytes().hex() for value in values]


def _bits(store: Store, bundle: Bundle, plan: Plan) -> dict[str, int]:
    """Return the bits of the layers in the segment of ``plan``."""
    start, cut, bits = store.segments.known(bundle.sha256, [plan.segment.sha256])[plan.segment.sha256]
    return dict(zip(bundle.weight_layers(cut, start), bits, strict=True))


def _shape(network: Network, setting: Setting) -> None:
    ends = ((FIRST, SECOND, setting.near), (SECOND, SERVER, setting.far), (FIRST, SERVER, setting.past))
    for a, b, (mbps, rtt) in ends:
        network.link(a, b, mbps=mbps, rtt_ms=rtt)


def _token(store: Path) -> str:
    with Store(store) as opened:
        return opened.tokens.add(f"pipeline-{time.time_ns()}")


if __name__ == "__main__":
    main()
