"""Predictions for boards: of what others measured there, with a band, and of EfficientNet-Lite0 on known boards.

    python -m benchmarks.boards [--json OUT] [--quick]

The first part predicts published runs of other programs with the model of `benchmarks.published`, fitted without the
board, the kind of core, or the network of the run. It counts how many figures are inside the band from 10 to 90 %.

The second part is what-if planning. The profiles in device_profiles/known/ are not measured; they hold what the same
model expects of our kernels. The benchmark predicts head times for the cuts nearest to a quarter, a half, three
quarters and all of the network's products. For each board and a few links, the planner then chooses between full
offload, full on-device inference and every cut, and counts on the band's slow end. It uses 8-bit heads, 6 bits at the
cut and JPEG input, and ignores accuracy. Server times are measured on one core of this machine. The last tables check
the method: counts of `benchmarks.head_counts` where its tools are installed, and a measurement on this machine.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from benchmarks import cache, head_counts, heads, known_boards, models
from benchmarks.published import data, networks, shares
from benchmarks.published.shares import HeldOut
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
from device_profiles.band import times
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
#: Boards and cores that ``--quick`` leaves out, each by itself.
QUICK: Final = {"board": ("pi4", "pi5"), "core": ("cortex-a57",), "network": ("mobilenet_v2",)}
#: Groups of effects whose removal the last table of the first part shows.
ABLATIONS: Final = (("order",), ("core kind", "board kind"), ("memory", "year"), ("network",))
#: Boards whose published figures the page shows one by one.
SHOWN: Final = ("pi-zero-2w", "pi3bplus", "pi4", "pi5", "jetson-nano", "orin-nano")
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
    held_out, figures = validated(arguments.quick)
    rows: list[dict[str, Any]] = [
        *fold_rows(held_out),
        *part_rows(held_out["board"]),
        *part_rows(held_out["core"], "core"),
    ]
    report("Others' measurements inside the predicted band", rows, figures, notes=PUBLISHED_NOTES)
    shown = [*published_rows(held_out["board"]), *other_rows()]
    report("What others measured, and what a fit without the board predicts", shown, {})
    removed = [] if arguments.quick else ablation_rows(held_out)
    if removed:
        report("The model without some effects", removed, {})
    found = places(9 if not arguments.quick else 3)
    profiles = {name: known.load(name) for name in known.names()}
    head_rows = [head_row(name, profile, found) for name, profile in profiles.items()]
    report(
        "What if (predictions): head of EfficientNet-Lite0 in ms, up to a share of its products",
        head_rows,
        {},
        notes=NOTES,
    )
    plan_rows = [plan_row(name, profile, found, link) for name, profile in profiles.items() for link in links]
    counted = [] if arguments.quick or head_counts.unmet() else head_counts.counted()
    if counted:
        report("A whole head on emulated cores", counted, {}, notes=head_counts.NOTES)
    checks, here = check(arguments.quick)
    report("What if (predictions): the plan for EfficientNet-Lite0", plan_rows, {}, notes=NOTES)
    figures |= here | {
        f"{row['board']}.lite0_head_ms{end}": row[f"100 %{end.replace('_', ' ')}"]
        for row in head_rows
        for end in ("_fast", "", "_slow")
    }
    report("The counts of cycles against a measurement", checks, figures)
    if arguments.json:
        everything = [*rows, *shown, *removed, *head_rows, *plan_rows, *counted, *checks]
        write(
            arguments.json, "Boards: predictions and published figures", everything, figures, [*PUBLISHED_NOTES, *NOTES]
        )


# --- what others measured ---------------------------------------------------------------------------------------------

PUBLISHED_NOTES: Final = (
    "measured: by others, with their kernels; predicted: from a fit that saw no run on the board, the kind of core, or "
    "of the network",
    "the band holds 80 % of the runs if it is right; band: median of slow end over fast end; error: median of "
    "|log(measured / predicted)|, 0.2 is 20 %",
    "rows marked target (a setting of a run) or converted (from frames a second) are shown, but not counted",
)
NOTES: Final = (
    "nobody measured these boards with our kernels; the middle is what published programs reach on the board, and a "
    "tenth of programs and networks is beyond each end",
    f"plans count on the slow end, with {WEIGHT_BITS}-bit heads, {CUT_BITS} bits at the cut, and the input as JPEG at "
    f"{JPEG_BITS} bit a value",
    "accuracy is left out, and the server is one core of this machine",
)


def validated(quick: bool) -> tuple[dict[str, list[HeldOut]], dict[str, float]]:
    """Predict the published runs, leaving out a board, a kind of core, or a network; return them and figures."""
    runs = published_runs()
    found = {fold: shares.cross_validate(runs, fold, QUICK[fold] if quick else None) for fold in shares.FOLDS}
    figures = {"boards.runs": float(len(runs))}
    for fold, name in (("board", ""), ("core", "core_"), ("network", "network_")):
        row = measures(found[fold])
        figures[f"boards.coverage_{name}percent"] = row["inside %"]
        figures[f"boards.band_ratio_{name}median"] = row["band"]
        figures[f"boards.{name}median_abs_log_error"] = row["error"]
    errors = [abs(math.log(one.row.ms / 1000 / one.seconds.sum())) for one in runs]
    figures["boards.roofline_median_abs_log_error"] = float(np.median(errors))
    return found, figures


def published_runs() -> list[shares.Run]:
    """Return all published runs that the model learns from."""
    published = data.load()
    return [shares.run(row, published.boards[row.board]) for row in published.compared]


def measures(found: Sequence[HeldOut]) -> dict[str, float]:
    """Return the share inside the band in percent, the median width of the band, and the median error."""
    return {
        "inside %": 100 * float(np.mean([one.inside for one in found])),
        "band": float(np.median([one.band.ratio for one in found])),
        "error": float(np.median([abs(one.log_error) for one in found])),
    }


def fold_rows(found: Mapping[str, list[HeldOut]]) -> list[dict[str, Any]]:
    """Return a row for each way to leave out, of all runs and of those in int8."""
    rows = []
    for fold, ones in found.items():
        for kind in ("all", "int8"):
            some = [one for one in ones if kind == "all" or one.run.row.precision == kind]
            if some:
                rows.append({"left out": f"a {fold}", "of": kind, "runs": len(some)} | measures(some))
    return rows


def part_rows(found: list[HeldOut], fold: str = "board") -> list[dict[str, Any]]:
    """Return a row for each board or core that was left out."""
    label = shares.FOLDS[fold]
    rows = []
    for name in sorted({label(one.run) for one in found}):
        some = [one for one in found if label(one.run) == name]
        rows.append({"left out": fold, "of": name, "runs": len(some)} | measures(some))
    return rows


def published_rows(found: list[HeldOut]) -> list[dict[str, Any]]:
    """Return the int8 figures of the boards in `SHOWN` on all their cores, each with its band."""
    some = [one for one in found if one.run.row.precision == "int8" and one.run.row.board.split("-1")[0] in SHOWN]
    return [
        published_row(one.run.row, one.run.board, one.band)
        for one in some
        if one.run.row.threads == min(one.run.board.cores, 6)
    ]


def other_rows() -> list[dict[str, Any]]:
    """Return the figures that do not count: targets, converted ones, and networks whose layers are not described."""
    published = data.load()
    rows = []
    for row in published.rows:
        if row not in published.compared:
            board = published.boards[row.board]
            known_network = row.network in networks.NAMES
            band = shares.predict(shares.of_all(), shares.run(row, board)) if known_network else None
            rows.append(published_row(row, board, band))
    return rows


def published_row(row: data.Measurement, board: data.Board, band: shares.Band | None) -> dict[str, Any]:
    """Return a row with another's figure and our prediction of it."""
    return {
        "board of others": board.title,
        "network": f"{row.network} {row.precision}",
        "program": row.runtime,
        "threads": row.threads,
        "mark": row.mark,
        "theirs ms": row.ms,
        "predicted ms": None if band is None else band.middle,
        "10 %": None if band is None else band.fast,
        "90 %": None if band is None else band.slow,
    }


def ablation_rows(found: Mapping[str, list[HeldOut]]) -> list[dict[str, Any]]:
    """Return the figures of the model and of models without some groups of effects, leaving out a core."""
    runs = published_runs()
    without = {", ".join(groups): shares.cross_validate(runs, "core", without=groups) for groups in ABLATIONS}
    return [{"without": name} | measures(ones) for name, ones in ({"-": found["core"]} | without).items()]


# --- what if ----------------------------------------------------------------------------------------------------------


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
    """Return the middle of the milliseconds up to the cut nearest to each of `SHARES`, and the band of the last."""
    whole, middle = found[-1].macs, msgspec.structs.replace(profile, pace="middle")

    def at(share: int) -> float:
        nearest = min(found, key=lambda place: abs(place.macs - share / 100 * whole))
        return predict.head_ms(nearest.header, middle)

    row: dict[str, Any] = {"board": name, "is": "prediction", "kernels": profile.machine.isa}
    row |= {"threads": predict.best_threads(profile)} | {f"{share} %": at(share) for share in SHARES}
    ends = times(row["100 %"], middle)
    return row | {"100 % fast": ends.fast if ends else None, "100 % slow": ends.slow if ends else None}


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


# --- the counts against measurements ----------------------------------------------------------------------------------


def check(quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Compare the counts of cycles with measurements; return rows and figures."""
    rows, figures = [], {}
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
        made = msgspec.structs.replace(known_boards.profile(board, counted), pace="middle")
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
