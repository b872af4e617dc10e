"""Trade-offs around a plan, as data and as a picture: bytes against accuracy, and which cut wins at which bandwidth."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from typing import Any, Final

import msgspec
import numpy as np

from edge_agent import errors
from edge_agent.files import PictureForm
from edge_agent.protocol.messages import LinkEstimate
from edge_server.planner import Allocation, Pick, Place, Request, Table, choose, closed_form, uniform

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
    """``cut``: where the payload's curve is measured. The bandwidth's sweep keeps the ratio of downlink to uplink, and the round trip."""

    model: str
    cut: str
    max_drop_points: float
    payload: list[Payload]
    bandwidth: list[Best]


def curves(table: Table, asked: Request, pick: Pick) -> Curves:
    """The trade-offs around ``pick``, the choice for ``asked``. The payload's cut is the pick's, or, where it has no head, the middle one that has."""
    heads = [i for i, place in enumerate(table.places) if place.layers]
    index = pick.place if pick.place in heads or not heads else heads[len(heads) // 2]
    return Curves(
        table.model,
        table.places[index].cut.layer,
        asked.demand.max_drop_points,
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
    """A cut as a legend says it."""
    return {"input": "all on the server", "output": "all on the device"}.get(
        place.cut.kind, place.cut.layer.lstrip("_")
    )


# --- the picture ------------------------------------------------------------------------------------------------------


def draw(found: Curves, form: PictureForm) -> bytes:
    """Both trade-offs side by side. Raises `errors.UsageError` where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise errors.UsageError("pictures need matplotlib: install splitedge[plots] on the server") from error
    figure = Figure(figsize=(13, 5), layout="constrained")
    (FigureCanvasSVG if form == "svg" else FigureCanvasAgg)(figure)
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"{found.model}: what is traded for what")
    _draw_payload(left, found)
    _draw_bandwidth(right, found)
    image = io.BytesIO()
    figure.savefig(image, format=form, dpi=140)
    return image.getvalue()


def _draw_payload(axes: Any, found: Curves) -> None:
    styles = {
        "exact": ("exact (this planner)", "o-"),
        "closed_form": ("QPART's closed form", "s--"),
        "uniform": ("same bits for all", "^:"),
    }
    for name, (label, style) in styles.items():
        points = [(one.drop, getattr(one, name)) for one in found.payload if getattr(one, name) is not None]
        axes.plot(*zip(*points, strict=True) if points else ([], []), style, label=label, markersize=4)
    axes.set(
        xscale="log",
        xlabel="accuracy that may be lost, in points (upper end of the prediction)",
        ylabel="segment and one frame, % of float32",
        title=f"cut after {found.cut.lstrip('_')}",
    )
    axes.axvline(found.max_drop_points, color="grey", linewidth=0.8)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_bandwidth(axes: Any, found: Curves) -> None:
    from matplotlib import colormaps

    rates = [one.uplink_mbps for one in found.bandwidth]
    for end, label, style in (("server", "all on the server", "--"), ("device", "all on the device", ":")):
        axes.plot(rates, [_number(getattr(one, end)) for one in found.bandwidth], style, color="grey", label=label)
    axes.plot(rates, [_number(one.objective) for one in found.bandwidth], "-", color="black", label="the plan")
    regions = [(cut, list(run)) for cut, run in itertools.groupby(found.bandwidth, key=lambda one: one.cut) if cut]
    names = list(dict.fromkeys(cut for cut, _ in regions))
    colours = dict(zip(names, colormaps["tab20"](np.linspace(0, 1, max(2, len(names)))), strict=False))
    step = math.sqrt(rates[1] / rates[0])
    for cut, run in regions:
        said = cut if cut in names else None
        axes.axvspan(
            run[0].uplink_mbps / step,
            run[-1].uplink_mbps * step,
            color=colours[cut],
            alpha=0.3,
            label=said,
            linewidth=0,
        )
        names = [name for name in names if name != cut]  # a cut that wins twice stands in the legend once
    axes.set(
        xscale="log", yscale="log", xlim=(rates[0], rates[-1]), xlabel="uplink, Mbit/s", ylabel="objective, s (or as weighed)",
        title=f"which cut wins where at most {found.max_drop_points:g} points may be lost",
    )  # fmt: skip
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.yaxis.set_major_formatter(_PLAIN)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _number(value: float | None) -> float:
    return math.nan if value is None else value
