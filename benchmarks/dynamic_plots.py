"""Plots of `benchmarks.dynamic_link`: the link's rate over time, and the bits per value of each controller's codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.traces import Trace
from splitedge import errors

_LINK, _LINE, _ORACLE, _MISSED, _LOST = "#9ecae1", "#08519c", "#bdbdbd", "#fcae91", "#cb181d"
_STEP_S: Final = 0.05
_APART: Final = 0.055  # minimum distance between labels, as a share of the axis


@dataclass(frozen=True)
class Lane:
    """One controller's run. Codecs are indices of the ladder, most bytes first.

    ``sent``: (seconds, codec) of each answered frame. ``lost``: seconds of the other frames. ``held``: for each window,
    whether it was held; None if no codec was feasible. ``best``: the oracle's codec of each window, or None.
    """

    name: str
    sent: Sequence[tuple[float, int]]
    lost: Sequence[float]
    held: Sequence[bool | None]
    best: Sequence[int | None]
    caption: str


def draw(
    path: Path,
    title: str,
    trace: Trace,
    sizes: Sequence[int],
    bits: Sequence[float],
    fps: float,
    lanes: Sequence[Lane],
    window_s: float,
) -> None:
    """Write a plot to ``path`` (PNG).

    ``sizes`` and ``bits``: bytes per frame and bits per value of each codec of the ladder. ``fps``: required frames per
    second. Raises `errors.UsageError` without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise errors.UsageError("--plots needs matplotlib; install it with pip or omit --plots") from error
    seconds = window_s * len(lanes[0].held)
    figure = Figure(figsize=(11, 2.4 + 1.15 * len(lanes)), dpi=130, layout="constrained")
    heights = [2.0, *[1.0] * len(lanes)]
    axes = figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights})
    _link(axes[0], trace, [(size, size * fps) for size in sizes], seconds)
    axes[0].set_title(title, loc="left", fontweight="bold")
    for one, lane in zip(axes[1:], lanes, strict=True):
        _lane(one, lane, bits, window_s)
    figure.supylabel("bits of a value, by codec of the ladder", fontsize=8)
    axes[-1].set_xlabel("seconds")
    axes[-1].set_xlim(0, seconds)
    figure.savefig(path)


def _link(axes: Any, trace: Trace, needs: Sequence[tuple[int, float]], seconds: float) -> None:
    times = np.arange(0, seconds, _STEP_S)
    top = 1.6 * max(need for _, need in needs) * 8e-6
    rates = np.array([trace.rate(at) * 8e-6 for at in times])
    axes.fill_between(times, np.minimum(rates, top), step="post", color=_LINK, alpha=0.6, linewidth=0)
    axes.step(times, np.minimum(rates, top), where="post", color=_LINE, linewidth=1.2)
    labelled = np.inf
    for size, need in needs:
        axes.axhline(need * 8e-6, color="#525252", linewidth=0.7, linestyle=(0, (4, 3)))
        if labelled - need * 8e-6 < _APART * top:
            continue
        labelled = need * 8e-6
        axes.annotate(
            f"{size:,} B",
            (1.003, need * 8e-6),
            xycoords=("axes fraction", "data"),
            fontsize=7,
            va="center",
            annotation_clip=False,
        )
    axes.set_ylim(0, top)
    axes.set_ylabel("link, Mbit/s")
    _bare(axes)


def _lane(axes: Any, lane: Lane, bits: Sequence[float], window_s: float) -> None:
    for k, held in enumerate(lane.held):
        if held is not True:
            colour = _MISSED if held is False else "#f0f0f0"
            axes.axvspan(k * window_s, (k + 1) * window_s, color=colour, linewidth=0, zorder=0)
    last = len(bits) - 1  # the fewest bytes at the bottom
    best = [np.nan if rung is None else last - rung for rung in lane.best]
    sent = [last - rung for _, rung in lane.sent]
    axes.step(
        window_s * np.arange(len(best) + 1),
        [*best, best[-1]],
        where="post",
        color=_ORACLE,
        linewidth=4,
        solid_capstyle="butt",
    )
    times = [at for at, _ in lane.sent]
    axes.step(times, sent, where="post", color=_LINE, linewidth=1.1)
    axes.plot(lane.lost, [-0.55] * len(lane.lost), "|", color=_LOST, markersize=5, markeredgewidth=0.7)
    axes.set_yticks(range(len(bits)), [f"{own:.1f}" for own in reversed(bits)], fontsize=5)
    axes.set_ylim(-0.8, len(bits) - 0.6)
    axes.set_ylabel(lane.name, rotation=0, ha="right", va="center", labelpad=16, fontweight="bold", fontsize=9)
    axes.set_title(lane.caption, loc="right", fontsize=7.5, pad=2)
    _bare(axes)


def _bare(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
