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

from edge_server.planner import Allocation, CutOption, Pick, Query, Table, choose, closed_form, uniform
from splitedge import errors
from splitedge.files import PictureForm
from splitedge.protocol.messages import LinkEstimate, Weights

#: Uplinks, in Mbit/s, of the bandwidth curve.
RATES: Final = tuple(float(rate) for rate in np.geomspace(0.1, 1000, 61))
_PLAIN: Final = "{x:g}"  # 0.1, 1, 10 instead of powers of ten


class Payload(msgspec.Struct):
    """The size of segment and one frame at a cut for ``drop`` points, in per cent of float weights and float tensor.

    None: the method does not meet the drop.
    """

    drop: float
    exact: float | None
    closed_form: float | None
    uniform: float | None


class Best(msgspec.Struct):
    """The best plan at an uplink: its objective and cut, and the objectives of the server alone and the device alone.

    None: no plan meets the demand.
    """

    uplink_mbps: float
    objective: float | None
    cut: str
    server: float | None
    device: float | None


class Curves(msgspec.Struct):
    """Both trade-offs of a plan.

    ``cut``: the cut of ``payload``. ``bandwidth`` keeps the round trip and the ratio of downlink to uplink.
    ``uplink_mbps``: of the query. ``timed``: the objective is the time of a frame, in seconds, and nothing else.
    """

    model: str
    cut: str
    max_drop_points: float
    uplink_mbps: float
    timed: bool
    payload: list[Payload]
    bandwidth: list[Best]


def curves(table: Table, query: Query, pick: Pick) -> Curves:
    """The trade-offs around ``pick``, the choice for ``query``.

    The payload curve uses the pick's cut; if that has no weights, the middle one of those that have.
    """
    heads = [i for i, option in enumerate(table.options) if option.layers]
    index = pick.option if pick.option in heads or not heads else heads[len(heads) // 2]
    demand = query.demand
    return Curves(
        model=table.model,
        cut=table.options[index].cut.layer,
        max_drop_points=demand.max_drop_points,
        uplink_mbps=query.link.uplink_mbps,
        timed=demand.weights == Weights() and demand.frames is None,
        payload=payload_curve(table, index) if heads else [],
        bandwidth=[_best(table, query, rate) for rate in RATES],
    )


# --- payload against accuracy -----------------------------------------------------------------------------------------


def payload_curve(table: Table, index: int) -> list[Payload]:
    """For each accuracy level the fewest bytes of segment and one frame at the table's option ``index``."""
    option = table.options[index]
    float_percent = 4 * (sum(layer.weights for layer in option.layers) + math.prod(option.cut.shape)) / 100
    here = table.option == index
    total = table.segment_bytes + table.frame_bytes
    found = []
    for k, level in enumerate(table.levels):
        least = total[here & (table.level <= k)].min(initial=np.inf)
        baselines = [_baseline(rule, option, level.noise) for rule in (closed_form, uniform)]
        each = [None if size == math.inf else size / float_percent for size in (float(least), *baselines)]
        found.append(Payload(level.drop_points, *each))
    return found


def _baseline(rule: Any, option: CutOption, noise: float) -> float:
    """The fewest bytes of a baseline's weights with any codec; infinite if it never meets the noise."""
    sizes = [math.inf]
    sends = option.cut.kind != "output"
    for frame, extra in [(c.frame_bytes, c.noise) for c in option.codecs] if sends else [(0, 0.0)]:
        budget = noise - option.noise - extra
        found: Allocation | None = rule(option.layers, budget) if budget >= 0 else None
        if found is not None:
            sizes.append(found.segment_bytes + option.other_bytes + frame)
    return min(sizes)


# --- objective against bandwidth --------------------------------------------------------------------------------------


def _best(table: Table, query: Query, rate: float) -> Best:
    link = query.link
    ratio = link.downlink_mbps / link.uplink_mbps
    there = dataclasses.replace(
        query, link=LinkEstimate(rtt_ms=link.rtt_ms, uplink_mbps=rate, downlink_mbps=rate * ratio)
    )
    best, server, device = (_choice(table, there, mode) for mode in (query.demand.mode, "server", "device"))
    return Best(
        uplink_mbps=rate,
        objective=best.objective if best else None,
        cut=option_name(table.options[best.option]) if best else "",
        server=server.objective if server else None,
        device=device.objective if device else None,
    )


def _choice(table: Table, query: Query, mode: Any) -> Pick | None:
    try:
        return choose(table, dataclasses.replace(query, demand=msgspec.structs.replace(query.demand, mode=mode)))
    except errors.InfeasibleError:
        return None


def option_name(option: CutOption) -> str:
    """A cut as the legend names it."""
    return {"input": "all on the server", "output": "all on the board"}.get(
        option.cut.kind, f"cut after {option.cut.layer}"
    )


# --- the picture ------------------------------------------------------------------------------------------------------

_INK: Final = "#333333"
STYLE: Final[dict[Any, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "legend.edgecolor": "#dddddd",
    "legend.fontsize": 9,
    "legend.framealpha": 0.9,
    "legend.frameon": True,
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
#: Colours of methods and of regions, which people with colour blindness can tell apart.
_BLUE, _ORANGE, _GREEN = "#0072b2", "#d55e00", "#009e73"
_REGIONS: Final = ("#bfdcee", "#f6d3b3", "#bfe5d7", "#eecbe0", "#f5edb0", "#d5d5d5", "#c9c6ec", "#e3d2bd")
_MAX_NAME: Final = 46  # characters of a layer's name


def draw(found: Curves, form: PictureForm) -> bytes:
    """Both trade-offs side by side, as a file of the format ``form``.

    Raises `errors.PlatformError` if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise errors.PlatformError(
            "the server lacks matplotlib to draw the picture: install the `server` extra of splitedge there",
            reason="no-matplotlib",
        ) from error
    with matplotlib.rc_context(STYLE):
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
        xscale="log",
        xlabel="accepted loss of accuracy, points",
        ylabel="segment and one frame, % of float32",
        title=f"{found.model}: size against accuracy\ncut after {_short(found.cut)}",
    )
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.legend()


def _draw_bandwidth(axes: Any, found: Curves) -> None:
    from matplotlib.ticker import LogFormatter

    rates, scale = [one.uplink_mbps for one in found.bandwidth], 1000 if found.timed else 1
    half_step = math.sqrt(rates[1] / rates[0])
    for name, colour, first, last in _regions(found.bandwidth):
        axes.axvspan(first / half_step, last * half_step, color=colour, label=name, linewidth=0)
    for field, label, style in (
        ("objective", "the plan", {"color": _INK, "linewidth": 3}),
        ("server", "server only", {"color": _BLUE, "linestyle": "--"}),
        ("device", "board only", {"color": _ORANGE, "linestyle": ":", "linewidth": 2}),
    ):
        axes.plot(rates, [_number(getattr(one, field)) * scale for one in found.bandwidth], label=label, **style)
    if rates[0] <= found.uplink_mbps <= rates[-1]:
        axes.axvline(found.uplink_mbps, color=_INK, linewidth=1, linestyle=(0, (2, 2)), label="this link")
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(rates[0], rates[-1]),
        xlabel="uplink, Mbit/s",
        ylabel="time per frame, ms" if found.timed else "objective (weighted sum)",
        title=f"Best cut by uplink\nloss of at most {found.max_drop_points:g} points",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PLAIN)
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.legend(loc="upper right")


def _regions(bandwidth: list[Best]) -> Iterator[tuple[str | None, str, float, float]]:
    """For each run of uplinks with the same best cut: its name if it is new, its colour, first and last uplink."""
    colours: dict[str, str] = {}
    for cut, group in itertools.groupby(bandwidth, key=lambda one: one.cut):
        uplinks = [one.uplink_mbps for one in group]
        if cut:
            name = None if cut in colours else f"best: {_short(cut)}"
            colour = colours.setdefault(cut, _REGIONS[len(colours) % len(_REGIONS)])
            yield name, colour, uplinks[0], uplinks[-1]


def _short(name: str) -> str:
    """``name`` in at most `_MAX_NAME` characters, shortened in the middle."""
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME // 2]}…{name[1 - _MAX_NAME // 2 :]}"


def _number(value: float | None) -> float:
    return math.nan if value is None else value
