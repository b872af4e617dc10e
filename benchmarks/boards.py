"""What-if planning: EfficientNet-Lite0 on known boards, predicted from the profiles in device_profiles/known/.

    python -m benchmarks.boards [--json OUT] [--quick]

The profiles are not measured. The benchmark predicts head times for the cuts nearest to a quarter, a half, three
quarters and all of the network's products. For each board and a few links, the planner then chooses between full
offload, full on-device inference and every cut. It uses 8-bit heads, 6 bits at the cut and JPEG input, and ignores
accuracy. Server times are measured on one core of this machine. The last table compares the method with measurements on
this machine and with published ones on a Raspberry Pi 4.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from benchmarks import cache, heads, known_boards, models
from benchmarks.report import in_turn, parser, report, write
from benchmarks.restricted import OURS
from calibration.accuracy import tail_runs
from calibration.bundle import creation
from calibration.importing import cuts
from calibration.importing.graph import Graph, tail_model
from calibration.lowering import layers
from calibration.lowering.lower import lower
from calibration.samples.samples import Samples
from device_profiles import known, measure, predict, schema
from edge_server.planner import MODES, CutCodec, CutOption, Level, Pick, Query, choose, precompute
from edge_server.planning.plan_message import codec_stage_ns, energy_source, power_draw
from kernels import isa, peak
from splitedge.codec import packed_bytes
from splitedge.head import load
from splitedge.head import segment as seg
from splitedge.protocol.frames import HEADER_BYTES
from splitedge.protocol.messages import Cut, Demand, LinkEstimate, Preprocess

WEIGHT_BITS, CUT_BITS = 8, 6
#: Bits per value of a photograph of 224 x 224 pixels as JPEG of quality 90.
JPEG_BITS: Final = 1
SHARES: Final = (25, 50, 75, 100)
#: Mbit/s up, Mbit/s down, milliseconds of round trip.
LINKS: Final = ((1.0, 4.0, 60.0), (5.0, 20.0, 40.0), (20.0, 50.0, 20.0), (100.0, 100.0, 5.0), (1000.0, 1000.0, 1.0))
#: MobileNetV2, int8, four threads, arm64, a Raspberry Pi 4 at 1.5 GHz, in another runtime. Source: README.md of
#: github.com/google/XNNPACK, February 2022.
XNNPACK_PI4_MS: Final = 17.0
TAIL_RUNS, HEAD_RUNS = 9, 50
#: The llvm-mca model that represents a core of this machine.
MODELS: Final = {
    "avx512vnni": "icelake-server",
    "avxvnni": "alderlake",
    "avx2": "skylake",
    "i8mm": "neoverse-n2",
    "dotprod": "neoverse-n1",
    "neon": "cortex-a72",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A cut, its head, and the server's time for the tail."""

    cut: Cut
    header: seg.Header
    tail_ms: float

    @property
    def macs(self) -> int:
        return sum(predict.op_macs(op, self.header) for op in self.header.ops)


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    links = LINKS[1::2] if arguments.quick else LINKS
    found = places(9 if not arguments.quick else 3)
    profiles = {name: known.load(name) for name in known.names()}
    notes = [
        "nobody measured these boards; the prediction models no misses of the inner caches and no throttling, so "
        "expect the boards to be slower",
        f"{WEIGHT_BITS}-bit heads, {CUT_BITS} bits at the cut, the input as JPEG at {JPEG_BITS} bit a value; "
        "accuracy is left out; the server is one core of this machine",
    ]
    head_rows = [head_row(name, profile, found) for name, profile in profiles.items()]
    report(
        "What if (predictions): head of EfficientNet-Lite0 in ms, up to a share of its products",
        head_rows,
        {},
        notes=notes,
    )
    plan_rows = [plan_row(name, profile, found, link) for name, profile in profiles.items() for link in links]
    checks, figures = check(arguments.quick)
    report("What if (predictions): the plan for EfficientNet-Lite0", plan_rows, {}, notes=notes)
    summary = figures | {f"{name}.lite0_head_ms": row["100 %"] for name, row in zip(profiles, head_rows, strict=True)}
    report("The method against measurements", checks, summary)
    if arguments.json:
        write(
            arguments.json, "What if: predictions for known boards", [*head_rows, *plan_rows, *checks], summary, notes
        )


def places(runs: int = TAIL_RUNS) -> list[Place]:
    """Return all offered cuts of the network, including the input and the output, in order of index."""
    kept = cache.kept("boards", headers)
    described = msgspec.json.decode(kept["cuts.json"], type=list[Cut])
    model = models.load("lite0")
    graph = Graph.of(model)
    return [
        Place(cut, msgspec.json.decode(kept[f"{cut.index}.json"], type=seg.Header), tail_ms(model, graph, cut, runs))
        for cut in described
    ]


def headers() -> Mapping[str, bytes]:
    """Return the offered cuts and the header of the head up to each.

    Speed does not depend on values, so calibration uses noise.
    """
    model = models.load("lite0")
    network = layers.build(Graph.of(model))
    random = np.random.default_rng(1)
    noise = [random.normal(size=heads.SHAPE).astype(np.float32) for _ in range(2)]
    calibration = creation.calibrate(model, network, Samples(Preprocess("tensor", heads.SHAPE), noise))
    offered = [place.cut for place in cuts.find(network) if place.offered]
    files = {"cuts.json": msgspec.json.encode(offered)}
    for cut in offered:
        files[f"{cut.index}.json"] = msgspec.json.encode(lower(network, calibration, cut.tensor, WEIGHT_BITS).header)
    return files


def tail_ms(model: Any, graph: Graph, cut: Cut, runs: int) -> float:
    """Measure the milliseconds of the tail behind ``cut`` on one thread of this machine; 0 at the output.

    The result is the fastest of ``runs``, because other load only adds time.
    """
    if cut.kind == "output":
        return 0.0
    run = tail_runs.runner(tail_model(model, cut.tensor, graph.shapes[cut.tensor][1:]), threads=1)
    frame = np.zeros((1, *cut.shape), np.float32)
    return min(in_turn({"tail": lambda: run(frame)}, runs)["tail"])


def head_row(name: str, profile: schema.DeviceProfile, found: list[Place]) -> dict[str, Any]:
    """Return a row of the first table: predicted milliseconds up to the cut nearest to each of `SHARES`."""
    whole = found[-1].macs

    def at(share: int) -> float:
        nearest = min(found, key=lambda place: abs(place.macs - share / 100 * whole))
        return predict.head_ms(nearest.header, profile)

    row: dict[str, Any] = {"board": name, "is": "prediction", "kernels": profile.machine.isa}
    return row | {"threads": predict.best_threads(profile)} | {f"{share} %": at(share) for share in SHARES}


def plan_row(
    name: str, profile: schema.DeviceProfile, found: list[Place], link: tuple[float, float, float]
) -> dict[str, Any]:
    """Return a row of the second table: the planner's fastest choice, and its two rivals without an inner cut."""
    up, down, rtt = link
    chosen, cut = best(profile, found, LinkEstimate(rtt, up, down))
    server, device = (
        best(profile, [p for p in found if p.cut.kind == kind], LinkEstimate(rtt, up, down))[0].total_ms
        for kind in ("input", "output")
    )
    return {
        "board": name,
        "is": "prediction",
        "Mbit/s up": f"{up:g}",
        "rtt ms": f"{rtt:g}",
        "mode": MODES[cut.kind],
        "cut after": cut.layer.lstrip("_"),
        "ms": chosen.total_ms,
        "all on server": server,
        "all on board": device,
        "J a frame": f"{chosen.energy_j:.3f} ({energy_source(power_draw(profile.power))})",
    }


def best(profile: schema.DeviceProfile, found: list[Place], link: LinkEstimate) -> tuple[Pick, Cut]:
    """Return the planner's fastest choice among the cuts ``found``, all assumed as accurate as the float model."""
    sites = [
        CutOption(
            cut=p.cut,
            layers=(),
            codecs=codecs(p.cut),
            tail_ms=p.tail_ms,
            memory_bytes=p.header.arena_bytes,
        )
        for p in found
    ]
    table = precompute("lite0", sites, [Level(1.0, 1.0)])
    heads_ms = tuple(predict.head_ms(p.header, profile) for p in found)
    asked = Query(Demand(), link, heads_ms, power_draw(profile.power), stage_ns=codec_stage_ns(profile))
    pick = choose(table, asked)
    return pick, table.options[pick.option].cut


def codecs(cut: Cut) -> tuple[CutCodec, ...]:
    """Return the only codec of the tensor at ``cut``; none at the output."""
    size = math.prod(cut.shape)
    if cut.kind == "input":
        return (CutCodec("jpeg-90", 8, HEADER_BYTES + packed_bytes(size, JPEG_BITS), 0.0, {"jpeg": float(size)}),)
    return (
        ()
        if cut.kind == "output"
        else (CutCodec("minmax", CUT_BITS, HEADER_BYTES + packed_bytes(size, CUT_BITS), 0.0),)
    )


# --- the method against measurements ----------------------------------------------------------------------------------


def check(quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Compare the method with measurements; return rows and figures."""
    rows, figures = [], {}
    mobile = seg.parse(_ours("mobilenetv2")).header
    ours = predict.head_ms(mobile, known.load("pi4"))
    rows.append(
        _row("Raspberry Pi 4, MobileNetV2 int8, 4 threads", ours, XNNPACK_PI4_MS, "XNNPACK's README, another runtime")
    )
    figures["check.pi4_published_over_predicted"] = XNNPACK_PI4_MS / ours
    if (board := _here()) is not None:
        segment = _ours("lite0")
        head = load(segment, 1)
        codes = np.zeros(heads.SHAPE, np.uint8)
        call: Callable[[], Any] = lambda: head.run(codes)  # noqa: E731
        taken = min(in_turn({"head": call}, 20 if quick else HEAD_RUNS)["head"])
        counted = known_boards.cost(board)
        best = max(counted.macs.values())
        board = dataclasses.replace(
            board, mhz=peak.gops() * 1000 / 2 / best
        )  # the clock that matches the measured peak
        made = known_boards.profile(board, counted)
        predicted = predict.head_ms(seg.parse(segment).header, made)
        rows.append(
            _row(
                f"this machine, EfficientNet-Lite0, {isa.ISA}, 1 thread", predicted, taken, "here, fastest of the runs"
            )
        )
        figures["check.here_measured_over_predicted"] = taken / predicted
    return rows, figures


def _row(what: str, predicted: float, measured: float, by: str) -> dict[str, Any]:
    return {
        "what": what,
        "predicted ms": predicted,
        "measured ms": measured,
        "measured over predicted": measured / predicted,
        "measured by": by,
    }


def _ours(key: str) -> bytes:
    """Return the splitedge segment that `benchmarks.heads` caches."""
    return cache.kept(key, lambda: heads.cnn_files(heads.NETWORKS[key][1]))[OURS]


def _here() -> known_boards.Board | None:
    """Describe this machine on one thread with unknown clock; None if llvm-mca has no model of it."""
    if not shutil.which("llvm-mca-19") or isa.ISA not in MODELS:
        return None
    mine = measure(quick=True)
    return known_boards.Board(
        "here",
        "this machine",
        mine.machine.cpu,
        isa.ISA,
        MODELS[isa.ISA],
        (),
        1,
        math.nan,
        mine.machine.memory_total_bytes,
        mine.machine.last_cache_bytes or 1,
        mine.copy_gbps or math.inf,
        None,
        1.0,
        1.0,
    )


if __name__ == "__main__":
    main()
