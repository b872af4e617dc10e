"""Test the accuracy bound: random demands, the plan for each, and its accuracy loss on data unseen by calibration.

    python -m benchmarks.accuracy_bound [--fashion FOLDER] [--images DIR] [--labels FILE] [--plot FILE] [--json OUT]
                                        [--quick]

A demand is a device, a link, weights of time, energy and cost, and a maximum drop of 0.25 to 5 points. Its plan comes
from the bundle, as a server makes it. The integer head, the codec and the tail then answer the evaluation data. Each
demand is tested on one fold of that data. A violation is a fold that loses more than the demand allows. The error is
the absolute difference between the expected drop and the drop on all evaluation data. For comparison, QPART's rule
bounds the noise at which the mean loss reaches the demanded drop. The planner refuses infeasible demands; a refusal is
not a violation.

A device is a board with the proportions of `what_if.BOARD`, faster or slower. The column "parts" describes the heads
that calibration tried: noise at the output over the summed noise of their layers and codec, median and range.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import cache, fashion, models, what_if
from benchmarks.report import parser, quiet, report
from calibration.accuracy import evaluation, tail_runs, trials
from calibration.bundle import creation
from calibration.bundle.bundle import Bundle
from calibration.samples.samples import Samples, open_samples
from edge_server.planner import Level, Pick, PowerDraw, Query, Table, choose, precompute
from edge_server.planning.pattern_tables import DROPS, build_table
from splitedge import errors
from splitedge.head import segment as seg
from splitedge.head.executor import Head
from splitedge.protocol.messages import Demand, LinkEstimate, Weights

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
Rule = Callable[[Bundle], Table]
Plan = tuple[int, tuple[int, ...], tuple[str, int] | None]  # cut, bits, rule and bits of the codec

#: Feasible demands per network, and the maximum number of draws to find them.
DEMANDS, ASKED = 60, 240
QUICK_DEMANDS: Final = 12
#: Images that calibrate a network for Fashion-MNIST, and images in a fold.
CALIBRATING, FOLD = 4000, 1000
QUICK_CALIBRATING, QUICK_EVALUATED = 500, 2000
#: Every other one of the 500 photographs calibrates. The rest make this number of folds.
PHOTO_FOLDS: Final = 2
#: Demands are drawn from these ranges, uniformly in the logarithm. Its time for the deepest head identifies a device.
POINTS, UPLINK, ROUND_TRIP = (0.25, 5.0), (0.25, 1000.0), (1.0, 200.0)
DEVICE_MS, WATTS, FRAMES = (0.3, 1000.0), (0.5, 15.0), (10.0, 1e6)


@dataclass(frozen=True)
class Task:
    """A network, its calibration samples, and the labelled data that tests plans, ``fold`` samples at a time."""

    name: str
    model: Callable[[], onnx.ModelProto]
    calibrating: Samples
    evaluated: Samples
    fold: int


@dataclass
class Subject:
    """A calibrated task.

    ``right``: the evaluated samples that the float model classifies correctly. ``known``: the same for each measured
    plan.
    """

    task: Task
    bundle: Bundle
    right: Bools
    known: dict[Plan, Bools] = field(default_factory=dict)

    def measure(self, table: Table, pick: Pick) -> Bools:
        """Return a mask of the samples that the plan classifies correctly."""
        key = plan_of(table, pick.option, pick.pattern, pick.codec)
        if key not in self.known:
            found = outputs(self.bundle, key, self.task.evaluated)
            self.known[key] = evaluation.top1(found) == self.task.evaluated.classes
        return self.known[key]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options().parse_args(arguments)
    rows: list[dict[str, Any]] = []
    pairs: dict[str, list[tuple[float, float, float, float]]] = {}
    for seed, task in enumerate(tasks(options)):
        with tempfile.TemporaryDirectory() as folder:
            subject = prepare(task, Path(folder))
            for name, rule in RULES.items():
                count = QUICK_DEMANDS if options.quick else DEMANDS
                found, asked = judge(subject, rule, np.random.default_rng(seed), count)
                rows.append(row(subject, name, found, asked))
                if name == OURS:
                    pairs[task.name] = [(one.expected, one.lost, one.low, one.high) for one in found]
    notes = [
        "drops are points of top-1; the demand bounds the drop of each fold, the error compares the expected drop "
        "with the drop on all evaluation data"
    ]
    report("The accuracy bound", rows, summary(rows), options.json, notes)
    if options.plot:
        plot(options.plot, pairs)


def _options() -> argparse.ArgumentParser:
    options = parser((__doc__ or "").splitlines()[0])
    fashion.add_option(options)
    options.add_argument("--images", type=Path, help="folder of photographs; required for EfficientNet-Lite0")
    options.add_argument("--labels", help="CSV of file name and ImageNet class index; if omitted, labels.csv")
    options.add_argument("--plot", metavar="FILE", type=Path, help="draw predicted against measured drops, as PNG")
    return options


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    """Yield the networks for which ``options`` provide data."""
    data = fashion.load(options.fashion)
    calibrating = data.calibration.samples(QUICK_CALIBRATING if options.quick else CALIBRATING)
    evaluated = data.test.samples(QUICK_EVALUATED if options.quick else None)
    for name in ("mlp",) if options.quick else fashion.NETWORKS:
        yield Task(name, lambda name=name: fashion.network(name, data), calibrating, evaluated, FOLD)  # type: ignore[misc]
    if options.images and not options.quick:
        yield photo_task(options)


def photo_task(options: argparse.Namespace) -> Task:
    """Return EfficientNet-Lite0 with the photographs of ``options``; every other photograph calibrates.

    Raises `errors.UsageError` if labels are missing.
    """
    photos = open_samples(options.images, models.LITE0_PREPROCESS, options.labels)
    if photos.classes is None:
        raise errors.UsageError(
            "accuracy needs labels; pass --labels with a CSV of file name and class index", reason="no-labels"
        )
    held = photos[1::2]
    return Task(
        "lite0",
        lambda: models.load("lite0"),
        photos[::2],
        held,
        len(held) // PHOTO_FOLDS,
    )


def prepare(task: Task, folder: Path) -> Subject:
    """Calibrate ``task`` in ``folder``, or load its bundle from the cache. Its accuracy bound applies to one fold."""
    bundle = calibrated(task.name, task.model, task.calibrating, folder)
    bundle.accuracy = bundle.accuracy.promising(task.fold)
    run = tail_runs.runner(onnx.load(bundle.path / "model.onnx"))
    found = evaluation.top1(evaluation.float_outputs(run, task.evaluated))
    return Subject(task, bundle, found == task.evaluated.classes)


def calibrated(name: str, model: Callable[[], onnx.ModelProto], samples: Samples, folder: Path) -> Bundle:
    """Return the bundle of ``model`` in ``folder``, from the cache if the sources are unchanged."""

    def make() -> Mapping[str, bytes]:
        made = creation.create(folder / "made", name, model(), samples, progress=quiet)
        return {path.name: path.read_bytes() for path in made.path.iterdir()}

    kept = folder / "bundle"
    files = cache.kept(f"bound-{name}-{len(samples)}", make)
    kept.mkdir()
    for file, data in files.items():
        (kept / file).write_bytes(data)
    return Bundle.open(kept)


def mean_rule(bundle: Bundle) -> Table:
    """Build the table of patterns for QPART's bound."""
    options = build_table(bundle).options
    levels: list[Level] = []
    for drop in DROPS:
        noise = bundle.accuracy.qpart(drop)
        if noise > (levels[-1].noise if levels else 0.0):
            levels.append(Level(drop, noise))
    return precompute(bundle.name, options, levels)


OURS, QPARTS = "interval", "mean"
RULES: Final[Mapping[str, Rule]] = {OURS: build_table, QPARTS: mean_rule}


@dataclass(frozen=True)
class Verdict:
    """Result of one demand, in points: the demanded limit, losses on its fold and on all data, and the predicted range.

    ``plan`` identifies the plan by indices of option, pattern and codec.
    """

    demanded: float
    fold: float
    lost: float
    expected: float
    low: float
    high: float
    plan: tuple[int, int, int | None]


def judge(subject: Subject, rule: Rule, random: np.random.Generator, count: int) -> tuple[list[Verdict], int]:
    """Return verdicts of up to ``count`` feasible demands, and the number of demands drawn."""
    table, asked = rule(subject.bundle), 0
    found: list[Verdict] = []
    board = what_if.heads_ms([subject.bundle.header(option.cut.index) for option in table.options])
    folds = len(subject.right) // subject.task.fold
    while asked < ASKED and len(found) < count:
        asked += 1
        request, fold = draw(random, board), int(random.integers(folds)) * subject.task.fold
        try:
            pick = choose(table, request)
        except errors.InfeasibleError:
            continue
        found.append(_verdict(subject, table, request, pick, slice(fold, fold + subject.task.fold)))
    return found, asked


def _verdict(subject: Subject, table: Table, request: Query, pick: Pick, fold: slice) -> Verdict:
    before, after = subject.right, subject.measure(table, pick)
    promised = subject.bundle.accuracy.at(pick.noise)
    return Verdict(
        request.demand.max_drop_points,
        100.0 * float(before[fold].mean() - after[fold].mean()),
        100.0 * float(before.mean() - after.mean()),
        promised.expected,
        promised.low,
        promised.high,
        (pick.option, pick.pattern, pick.codec),
    )


def draw(random: np.random.Generator, board: Sequence[float]) -> Query:
    """Draw a device, a link and a demand. ``board``: time of the head at each cut on a board, in any unit."""

    def between(limits: tuple[float, float]) -> float:
        return float(np.exp(random.uniform(*np.log(limits))))

    slower, (time, energy, cost) = between(DEVICE_MS) / max(board), random.dirichlet([1.0, 0.5, 0.5])
    demand = Demand(
        max_drop_points=between(POINTS),
        weights=Weights(float(time), float(energy), float(cost)),
        keep=str(random.choice(["nothing", "input"])),
        frames=between(FRAMES),
    )
    link = LinkEstimate(between(ROUND_TRIP), between(UPLINK), between(UPLINK))
    return Query(demand, link, tuple(ms * slower for ms in board), PowerDraw(between(WATTS), between(WATTS)))


def plan_of(table: Table, option: int, pattern: int, chosen: int | None) -> Plan:
    """Identify a candidate by its bundle's own keys."""
    made = None if chosen is None else table.options[option].codecs[chosen]
    return (
        table.options[option].cut.index,
        table.patterns[pattern].bits,
        None if made is None else (made.rule, made.bits),
    )


def outputs(bundle: Bundle, plan: Plan, samples: Samples) -> F32:
    """Return the outputs [n, ...] of a split network: integer head, codec, float tail."""
    cut, bits, rule = plan
    head = Head(seg.parse(bundle.segment(cut, dict(zip(bundle.weight_layers(cut), bits, strict=True)))))
    made = None if rule is None else bundle.codec(cut, *rule)
    data = bundle.tail(cut)
    run = None if data is None else tail_runs.runner(onnx.load_model_from_string(data))
    return evaluation.split_outputs(head, made, run, samples)


def row(subject: Subject, rule: str, found: Sequence[Verdict], asked: int) -> dict[str, Any]:
    """Return the table row of one network and rule."""
    count = max(1, len(found))
    parts = trials.ratios(subject.bundle.manifest.trials)
    return {
        "network": subject.task.name,
        "rule": rule,
        "fold": subject.task.fold,
        "evaluated": len(subject.right),
        "parts": f"{median(parts):.2f} ({parts[0]:.2f} to {parts[-1]:.2f})",
        "demands": len(found),
        "refused": asked - len(found),
        "plans": len({one.plan for one in found}),
        "demanded": sum(one.demanded for one in found) / count,
        "lost": sum(one.fold for one in found) / count,
        "above high %": 100.0 * sum(one.fold > one.high for one in found) / count,
        "violations %": 100.0 * sum(one.fold > one.demanded for one in found) / count,
        "error": sum(abs(one.lost - one.expected) for one in found) / count,
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return violations over all networks, and the error over networks with at least `FOLD` evaluated samples.

    With fewer samples the measured drop is too uncertain for an error.
    """

    def mean(chosen: Sequence[Mapping[str, Any]], name: str) -> float:
        total = sum(float(one[name]) * int(one["demands"]) for one in chosen)
        return total / max(1, sum(int(one["demands"]) for one in chosen))

    ours, theirs = ([one for one in rows if one["rule"] == rule] for rule in (OURS, QPARTS))
    many = [one for one in ours if one["evaluated"] >= FOLD]
    return {
        "demands": float(sum(one["demands"] for one in ours)),
        "networks": float(len(ours)),
        "violations_percent": mean(ours, "violations %"),
        "violations_percent_mean_rule": mean(theirs, "violations %"),
        "mean_abs_error_points": mean(many, "error"),
    }


def plot(out: Path, pairs: Mapping[str, Sequence[tuple[float, float, float, float]]]) -> None:
    """Plot predicted against measured drops with their intervals to a PNG file, one colour per network."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise errors.UsageError(
            "--plot needs matplotlib; install it with pip or omit --plot", reason="no-matplotlib"
        ) from error
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted drop, points", ylabel="measured drop, points", aspect="equal")
    most = 0.5
    for name, found in pairs.items():
        expected, lost, low, high = np.array(sorted(set(found))).reshape(-1, 4).T
        spread = [expected - np.minimum(low, expected), np.maximum(high, expected) - expected]
        axes.errorbar(expected, lost, xerr=spread, fmt="o", markersize=4, elinewidth=0.5, alpha=0.7, label=name)
        most = max(most, float(lost.max(initial=0.0)), float(high.max(initial=0.0)))
    axes.plot([0, most], [0, most], color="black", linewidth=1)
    axes.legend()
    try:
        figure.savefig(out, format="png", dpi=150)
    except OSError as error:
        raise errors.UsageError(
            f"cannot write {out} ({error.strerror}); choose another file", reason="cannot-write"
        ) from error


if __name__ == "__main__":
    main()
