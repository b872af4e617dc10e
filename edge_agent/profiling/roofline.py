"""The roofline of a board: speed over intensity (S. Williams, A. Waterman and D. Patterson, CACM 52, 2009).

The intensity of an operator is its operations (a product and its sum are two) over the bytes that it must move: inputs,
output and weights, once each. Its speed is bounded by the peak of products, and by bandwidth times intensity if its
bytes come from memory. Kernels whose bytes are in a cache may lie above that line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from device_profiles import measurement, predict
from device_profiles.schema import DeviceProfile
from edge_agent.bench.render import picture
from splitedge import terminal
from splitedge.errors import UsageError
from splitedge.head import executor
from splitedge.head import segment as seg
from splitedge.head.verify import inputs
from splitedge.terminal import Column, plain, table, wrap

_HEIGHT: Final = 18
_MOST_ROWS: Final = 12  # of a model's operators in the table: those that take longest
_REPEATS: Final = 20
#: The letter of each kind; a model's operators have it as a capital.
_LETTERS: Final = {"conv": "c", "pointwise": "p", "depthwise": "d", "dense": "f", "linear": "l", "attention": "a"}
_WORDS: Final = {"dense": "fully connected"}


class Point(NamedTuple):
    """An operator: operations a byte, 10^9 operations a second, and its microseconds."""

    name: str
    kind: str
    intensity: float
    gops: float
    us: float


class Roof(NamedTuple):
    """The bounds on a number of threads; ``gbps`` is None if it is not known."""

    threads: int
    gops: float
    gbps: float | None

    def at(self, intensity: float) -> float:
        """The bound for an intensity."""
        return self.gops if self.gbps is None else min(self.gops, self.gbps * intensity)


@dataclass(frozen=True)
class Roofline:
    """Roofs by ascending threads, the kernels of the profile, and the operators of a model.

    ``exact``: whether the roofs are measured peaks; if not, the best kernel takes their place.
    ``source``: "measured" or "predicted", of the operators.
    """

    roofs: list[Roof]
    kernels: list[Point]
    exact: bool
    operators: list[Point]
    model: str = ""
    source: str = ""


def roofline(profile: DeviceProfile, threads: int | None = None) -> Roofline:
    """The roofs of one thread and of ``threads`` (by default those that heads use), and the kernels on these.

    Raises `UsageError` for a number of threads that the profile does not have.
    """
    used = threads or predict.best_threads(profile)
    if used not in (known := sorted({row.threads for row in profile.kernels})):
        raise UsageError(
            f"the profile has no kernels on {used} threads; choose one of {', '.join(map(str, known))}",
            reason="threads",
        )
    kernels = [
        Point(row.name, row.kind, 2 * row.macs / row.bytes, row.gops, row.time_us)
        for row in profile.kernels
        if row.threads == used and row.macs and row.bytes
    ]
    roofs = [_roof(profile, count) for count in sorted({1, used})]
    return Roofline([one for one in roofs if one is not None], kernels, bool(profile.peaks), [])


def _roof(profile: DeviceProfile, threads: int) -> Roof | None:
    peak = next((one.gops for one in profile.peaks if one.threads == threads), None)
    best = max((row.gops for row in profile.kernels if row.threads == threads), default=None)
    read = next((one.gbps for one in profile.bandwidths if (one.kind, one.threads) == ("read", threads)), None)
    gops = peak or best
    return None if gops is None else Roof(threads, gops, read or profile.copy_gbps)


def measured(data: bytes, profile: DeviceProfile, threads: int) -> list[Point]:
    """The operators with products of the segment file ``data``, measured here. Raises `SegmentError`.

    ``profile``: of this board; it knows what a run takes beside its operators.
    """
    head = executor.load(data, threads)
    entry = head.input
    random, dtype = np.random.default_rng(0), seg.DTYPES[entry.dtype]
    frame = np.ones(entry.shape, dtype) if entry.dtype == "i32" else random.integers(0, 256, entry.shape).astype(dtype)
    times = head.profile(frame, _REPEATS)
    dispatch = measurement.dispatch_us(threads, profile.overhead)
    return _points(head.header, [measurement.own_us(one.us, dispatch) for one in times])


def predicted(data: bytes, profile: DeviceProfile, threads: int) -> list[Point]:
    """As `measured`, with the times that ``profile`` predicts. Raises `SegmentError`, `ProtocolError`."""
    header = executor.load(data).header
    return _points(header, [1e3 * predict.op_ms(op, header, profile, threads) for op in header.ops])


def _points(header: seg.Header, us: Sequence[float]) -> list[Point]:
    found = []
    for op, taken in zip(header.ops, us, strict=True):
        macs = products(op, header)
        if macs:
            kind = predict.op_kind(op, header) if isinstance(op, seg.Conv) else type(op).__name__.lower()
            found.append(Point(op.name, kind, 2 * macs / moved(op, header), 2e-3 * macs / taken, taken))
    return found


def products(op: seg.AnyOp, header: seg.Header) -> int:
    """Multiply-accumulates of one run."""
    out, source = header.tensors[op.out], header.tensors[inputs(op)[0]]
    if isinstance(op, seg.Linear):
        return math.prod(out.shape) * source.shape[-1]
    if isinstance(op, seg.Attention):
        return 2 * out.shape[0] * math.prod(out.shape)
    if isinstance(op, seg.WindowAttention):
        return 2 * out.shape[0] // op.windows * math.prod(out.shape)
    return predict.op_macs(op, header)


def moved(op: seg.AnyOp, header: seg.Header) -> int:
    """Bytes of inputs, output and weights, once each; a weight has one byte, as in the kernels."""
    tensors = [header.tensors[i] for i in (*inputs(op), op.out)]
    weights = 0
    if isinstance(op, seg.Linear):
        weights = tensors[0].shape[-1] * tensors[-1].shape[-1]
    elif isinstance(op, seg.Conv):
        weights = products(op, header) // max(1, math.prod(tensors[-1].shape[:-1]))
    return sum(one.nbytes for one in tensors) + weights


# --- in the terminal --------------------------------------------------------------------------------------------------


def show(found: Roofline, width: int) -> RenderableType:
    """The chart with its legend, and a table of the operators of a model."""
    parts: list[RenderableType] = [Text("\n".join(wrap(_title(found), width)), style="bold")]
    parts += [Text("\n".join(chart(found, width))), Text("\n".join(_legend(found, width)))]
    if found.operators:
        parts += [Text(), *_table(found, width)]
    return Group(*parts)


def _title(found: Roofline) -> str:
    return f"Roofline on {terminal.threads(found.roofs[-1].threads)}: GOPS over operations per byte"


def chart(found: Roofline, width: int) -> list[str]:
    """Points below their roofs, both axes logarithmic, in lines of at most ``width`` characters."""
    points = found.kernels + found.operators
    left, right = _ends([point.intensity for point in points])
    low, high = _ends([*(point.gops for point in points), *(roof.gops for roof in found.roofs)])
    marks = _ticks(low, high)
    label = max(len(text) for _, text in marks)
    columns = max(20, width - label - 3)

    def column(intensity: float) -> int:
        return round((columns - 1) * math.log(intensity / left) / math.log(right / left))

    def line(gops: float) -> int:
        return round((_HEIGHT - 1) * math.log(high / gops) / math.log(high / low))

    cells = [[" "] * columns for _ in range(_HEIGHT)]
    for roof in found.roofs:
        for place in range(columns):
            bound = roof.at(left * (right / left) ** (place / (columns - 1)))
            if bound >= low:
                cells[line(bound)][place] = "=" if roof is found.roofs[-1] else "-"
    for point, own in [*((one, False) for one in found.kernels), *((one, True) for one in found.operators)]:
        letter = _LETTERS.get(point.kind, "o")
        cells[line(point.gops)][column(point.intensity)] = letter.upper() if own else letter
    names = {line(value): text for value, text in marks}
    lines = [f"{names.get(i, ''):>{label}} │" + "".join(each).rstrip() for i, each in enumerate(cells)]
    ticks = [(column(value), text) for value, text in _ticks(left, right, 1e5)]
    return [*lines, f"{'':>{label}} └" + "─" * columns, f"{'':>{label}}  " + _axis(ticks, columns)]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """A range around the values, with some space."""
    return min(values) / 1.5, max(values) * 1.5


def _ticks(low: float, high: float, most: float = 500.0) -> list[tuple[float, str]]:
    """1, 2, 5 in each decade between the ends; of a range above ``most`` 1 alone."""
    steps = (1, 2, 5) if high / low < most else (1,)
    decades = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    values = [step * decade for decade in decades for step in steps]
    return [(value, f"{value:g}") for value in values if low <= value <= high]


def _axis(ticks: Sequence[tuple[int, str]], columns: int) -> str:
    line = [" "] * (columns + 8)
    for place, text in ticks:
        start = max(0, min(place - len(text) // 2, columns - len(text)))
        line[start : start + len(text)] = text
    return "".join(line).rstrip()


def _legend(found: Roofline, width: int) -> list[str]:
    roofs = [f"{mark} {_roof_words(roof, found)}" for mark, roof in zip(_marks(found), found.roofs, strict=True)]
    kinds = list(dict.fromkeys(point.kind for point in found.kernels + found.operators))
    letters = [f"{_LETTERS.get(kind, 'o')} {_WORDS.get(kind, kind)}" for kind in kinds]
    note = f"capitals: {plain(found.model)}, {found.source}" if found.operators else ""
    lines = [*roofs, "   ".join(letters), note]
    return [part for line in lines if line for part in wrap(line, width, "  ")]


def _marks(found: Roofline) -> list[str]:
    return ["=" if roof is found.roofs[-1] else "-" for roof in found.roofs]


def _roof_words(roof: Roof, found: Roofline) -> str:
    peak = "peak" if found.exact else "best kernel"
    memory = f", memory {roof.gbps:.1f} GB/s" if roof.gbps is not None else ""
    return f"{terminal.threads(roof.threads)}: {peak} {roof.gops:,.1f} GOPS{memory}"


def _table(found: Roofline, width: int) -> list[RenderableType]:
    whole = sum(one.us for one in found.operators)
    longest = sorted(found.operators, key=lambda one: -one.us)[:_MOST_ROWS]
    columns = [
        Column(f"operator ({found.source})", shortest=20),
        Column("kind"),
        Column("ops/byte", right=True),
        Column("GOPS", right=True),
        Column("% of roof", right=True),
        Column("us", right=True),
        Column("% of time", right=True, optional=True),
    ]
    rows = [
        [
            plain(one.name),
            one.kind,
            f"{one.intensity:,.1f}",
            f"{one.gops:,.1f}",
            f"{100 * one.gops / found.roofs[-1].at(one.intensity):.0f}",
            f"{one.us:,.1f}",
            f"{100 * one.us / whole:.1f}",
        ]
        for one in longest
    ]
    parts: list[RenderableType] = [table(columns, rows, width)]
    if more := len(found.operators) - len(longest):
        rest = whole - sum(one.us for one in longest)
        parts.append(Text(f"and {more} more, {rest:,.1f} us together", style="dim"))
    return parts


# --- as a picture -----------------------------------------------------------------------------------------------------


def draw(found: Roofline, form: str) -> bytes:
    """The chart as a file of the format ``form``, with matplotlib."""
    points = found.kernels + found.operators
    left, right = _ends([point.intensity for point in points])

    def fill(axes: Any) -> None:
        x = np.geomspace(left, right, 200)
        for roof in found.roofs:
            style = "-" if roof is found.roofs[-1] else "--"
            label = _roof_words(roof, found)
            axes.plot(x, [roof.at(value) for value in x], style, color="0.35", linewidth=1.4, label=label)
        for own, each in ((False, found.kernels), (True, found.operators)):
            for number, kind in enumerate(_LETTERS):
                chosen = [point for point in each if point.kind == kind]
                if chosen:
                    face = {} if own else {"facecolors": "none"}
                    title = f"{_WORDS.get(kind, kind)}, {found.source if own else 'profile'}"
                    axes.scatter(
                        [point.intensity for point in chosen],
                        [point.gops for point in chosen],
                        edgecolors=f"C{number}",
                        label=title,
                        **({"c": f"C{number}"} if own else face),
                    )
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = _ends([*(point.gops for point in points), *(roof.gops for roof in found.roofs)])
        axes.set_xticks(*zip(*_ticks(left, right, 1e5), strict=True))
        axes.set_yticks(*zip(*_ticks(low, high), strict=True))
        axes.minorticks_off()
        axes.set(xlabel="operations per byte", ylabel="GOPS", title=found.model)

    return picture(fill, form)
