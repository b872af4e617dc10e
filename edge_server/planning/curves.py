"""Trade-offs around a plan, as data and as a picture: bytes against accuracy, and which cut wins at which bandwidth."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np

from edge_server.planner import Allocation, Pick, Place, Request, Table, choose, closed_form, uniform
from splitedge import errors
from splitedge.files import PictureForm
from splitedge.protocol.messages import LinkEstimate, Weights

#: Uplinks, in Mbit/s, at which the planner is asked.
RATES: Final = tuple(float(rate) for rate in np.geomspace(0.1, 1000, 61))
_PLAIN: Final = "{x:g}"  # 0.1, 1, 10 and not powers of ten


class Payload(msgspec.Struct):
    """At a cut: per cent of the float weights and the float tensor that segment and one frame take, where ``drop`` points may be lost; None: cannot be."""

    drop: float
    exact: float | None
    closed_form: float | None
    uniform: float | None


class Best(msgspec.Struct):
    """At an uplink: the objective of the best plan and its cut, and what the ends cost; None where nothing meets the demand."""

    uplink_mbps: float
    objective: float | None
    cut: str
    server: float | None
    device: float | None


class Curves(msgspec.Struct):
    """``cut``: where the payload's curve is measured. The bandwidth's sweep keeps the ratio of downlink to uplink, and the round trip.

    ``uplink_mbps``: of the link that was asked for. ``timed``: the objective is the time of a frame and nothing else, in seconds.
    """

    model: str
    cut: str
    max_drop_points: float
    uplink_mbps: float
    timed: bool
    payload: list[Payload]
    bandwidth: list[Best]


def curves(table: Table, asked: Request, pick: Pick) -> Curves:
    """The trade-offs around ``pick``, the choice for ``asked``. The payload's cut is the pick's, or, where it has no head, the middle one that has."""
    heads = [i for i, place in enumerate(table.places) if place.layers]
    index = pick.place if pick.place in heads or not heads else heads[len(heads) // 2]
    demand = asked.demand
    return Curves(
        table.model,
        table.places[index].cut.layer,
        demand.max_drop_points,
        asked.link.uplink_mbps,
        demand.weights == Weights() and demand.frames is None,
        payload_curve(table, index) if heads else [],
        [_best(table, asked, rate) for rate in RATES],
    )


# --- payload against accuracy -----------------------------------------------------------------------------------------


def payload_curve(table: Table, index: int) -> list[Payload]:
    """For each accuracy level the fewest bytes of segment and one frame at the table's place ``index``."""
    place = table.places[index]
    whole = 4 * (sum(layer.weights for layer in place.layers) + math.prod(place.cut.shape)) / 100
    mine = table.place == index
    total = table.segment_bytes + table.frame_bytes
    found = []
    for k, level in enumerate(table.levels):
        least = total[mine & (table.level <= k)].min(initial=np.inf)
        baselines = [_baseline(rule, place, level.noise) for rule in (closed_form, uniform)]
        each = [None if size == math.inf else size / whole for size in (float(least), *baselines)]
        found.append(Payload(level.drop_points, *each))
    return found


def _baseline(rule: Any, place: Place, noise: float) -> float:
    """The fewest bytes of a baseline's weights with any codec; infinite where it meets the noise with none."""
    sizes = [math.inf]
    sends = place.cut.kind != "output"
    for frame, extra in [(c.frame_bytes, c.noise) for c in place.codecs] if sends else [(0, 0.0)]:
        room = noise - place.noise - extra
        found: Allocation | None = rule(place.layers, room) if room >= 0 else None
        if found is not None:
            sizes.append(found.segment_bytes + place.other_bytes + frame)
    return min(sizes)


# --- objective against bandwidth --------------------------------------------------------------------------------------


def _best(table: Table, asked: Request, rate: float) -> Best:
    link = asked.link
    ratio = link.downlink_mbps / link.uplink_mbps
    there = dataclasses.replace(asked, link=LinkEstimate(link.rtt_ms, rate, rate * ratio))
    whole, server, device = (_choice(table, there, mode) for mode in (asked.demand.mode, "server", "device"))
    whole_of, server_of, device_of = (one.objective if one else None for one in (whole, server, device))
    return Best(rate, whole_of, name_of(table.places[whole.place]) if whole else "", server_of, device_of)


def _choice(table: Table, asked: Request, mode: Any) -> Pick | None:
    try:
        return choose(table, dataclasses.replace(asked, demand=msgspec.structs.replace(asked.demand, mode=mode)))
    except errors.InfeasibleError:
        return None


def name_of(place: Place) -> str:
    """A cut as a legend names it."""
    return {"input": "all on the server", "output": "all on the board"}.get(
        place.cut.kind, f"cut after {place.cut.layer}"
    )


# --- the picture ------------------------------------------------------------------------------------------------------

_INK: Final = "#333333"
_STYLE: Final[dict[Any, Any]] = {
    "axes.edgecolor": "#999999", "axes.labelcolor": _INK, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 12,
    "axes.titlepad": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True,
    "legend.frameon": True, "legend.framealpha": 0.9, "legend.edgecolor": "#dddddd", "legend.fontsize": 9, "text.color": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "font.size": 10, "text.parse_math": False,
}  # fmt: skip
#: Of the methods, and of the cuts' regions; told apart by those who see no red or green.
_BLUE, _ORANGE, _GREEN = "#0072b2", "#d55e00", "#009e73"
_REGIONS: Final = ("#bfdcee", "#f6d3b3", "#bfe5d7", "#eecbe0", "#f5edb0", "#d5d5d5", "#c9c6ec", "#e3d2bd")


def draw(found: Curves, form: PictureForm) -> bytes:
    """Both trade-offs side by side. Raises `errors.PlatformError` where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise errors.PlatformError(
            "matplotlib is not installed on the server, so nothing can be drawn; install splitedge there with its `server` extra"
        ) from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(13, 5.2), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1, wspace=0.04))
        (FigureCanvasSVG if form == "svg" else FigureCanvasAgg)(figure)
        left, right = figure.subplots(1, 2)
        _draw_payload(left, found)
        _draw_bandwidth(right, found)
        image = io.BytesIO()
        figure.savefig(image, format=form, dpi=140)
    return image.getvalue()


def _draw_payload(axes: Any, found: Curves) -> None:
    styles = {
        "uniform": ("equal bits for all layers", {"color": _GREEN, "marker": "^", "linestyle": ":"}),
        "closed_form": ("QPART's closed form", {"color": _ORANGE, "marker": "s", "linestyle": "--"}),
        "exact": ("splitedge", {"color": _BLUE, "marker": "o", "linestyle": "-"}),
    }
    for name, (label, style) in styles.items():
        points = [(one.drop, getattr(one, name)) for one in found.payload if getattr(one, name) is not None]
        axes.plot(*zip(*points, strict=True) if points else ([], []), label=label, markersize=5, linewidth=1.8, **style)
    axes.axvline(found.max_drop_points, color=_INK, linewidth=1, linestyle=(0, (2, 2)), label="accepted loss")
    axes.set(
        xscale="log", xlabel="accepted loss of accuracy, points", ylabel="segment and one frame, % of float32",
        title=f"{found.model}: size against accuracy\ncut after {_short(found.cut)}",
    )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.legend()


def _draw_bandwidth(axes: Any, found: Curves) -> None:
    from matplotlib.ticker import LogFormatter

    rates, scale = [one.uplink_mbps for one in found.bandwidth], 1000 if found.timed else 1
    for name, colours, run in _regions(found.bandwidth):
        step = math.sqrt(rates[1] / rates[0])
        axes.axvspan(run[0] / step, run[1] * step, color=colours, label=name, linewidth=0)
    for field, label, style in (
        ("objective", "the plan", {"color": _INK, "linewidth": 3}),
        ("server", "server only", {"color": _BLUE, "linestyle": "--"}),
        ("device", "board only", {"color": _ORANGE, "linestyle": ":", "linewidth": 2}),
    ):
        axes.plot(rates, [_number(getattr(one, field)) * scale for one in found.bandwidth], label=label, **style)
    if rates[0] <= found.uplink_mbps <= rates[-1]:
        axes.axvline(found.uplink_mbps, color=_INK, linewidth=1, linestyle=(0, (2, 2)), label="this link")
    axes.set(
        xscale="log", yscale="log", xlim=(rates[0], rates[-1]), xlabel="uplink, Mbit/s",
        ylabel="time per frame, ms" if found.timed else "objective (weighted sum)",
        title=f"Best cut by uplink\nloss of at most {found.max_drop_points:g} points",
    )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PLAIN)
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.legend(loc="upper right")


def _regions(bandwidth: list[Best]) -> Iterator[tuple[str | None, str, tuple[float, float]]]:
    """For each run of uplinks at which the same cut wins: its name where it is new, its colour, and the run's ends."""
    seen: dict[str, str] = {}
    for cut, group in itertools.groupby(bandwidth, key=lambda one: one.cut):
        run = [one.uplink_mbps for one in group]
        if cut:
            name = None if cut in seen else f"best: {_short(cut)}"
            yield name, seen.setdefault(cut, _REGIONS[len(seen) % len(_REGIONS)]), (run[0], run[-1])


def _short(name: str) -> str:
    """``name`` in at most `_LETTERS`, its middle left out."""
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS // 2]}…{name[1 - _LETTERS // 2 :]}"


_LETTERS: Final = 46


def _number(value: float | None) -> float:
    return math.nan if value is None else value
