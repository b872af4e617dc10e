"""`edge-server explain` without one board: where splitting a model pays, as tables and as a picture."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import RenderableType
from rich.text import Text

from device_profiles import DeviceProfile
from device_profiles.schema import is_measured
from edge_server.planning import survey as surveys
from edge_server.planning.catalog import Catalog
from edge_server.planning.curves import STYLE
from edge_server.planning.survey import Case, Survey, Winner
from edge_server.store.store import Store
from splitedge import errors, files, terminal
from splitedge.files import PictureForm
from splitedge.protocol.messages import Demand, LinkEstimate
from splitedge.terminal import Column, size, wrap

_NAMES: Final[dict[Winner, str]] = {"device": "board", "split": "split", "server": "server", "": "none"}
_STYLES: Final[dict[Winner, str]] = {"device": "", "split": "bold green", "server": "cyan", "": "dim"}
_COLOURS: Final[dict[Winner, str]] = {"device": "#f6d3b3", "split": "#bfe5d7", "server": "#bfdcee", "": "#eeeeee"}
_SHOWN: Final = 3  # cases in which splitting gains most


def explain(
    folder: Path,
    model: str,
    boards: Mapping[str, DeviceProfile],
    links: Sequence[LinkEstimate],
    demand: Demand,
    plot: Path | None,
    *,
    json: bool,
) -> None:
    """Print where splitting ``model`` pays on ``boards`` and ``links``, and draw it to ``plot``."""
    form = files.picture_form(plot.name) if plot else "svg"
    if plot:
        files.require_writable(plot)
    with Store(folder) as store:
        found = surveys.survey(Catalog(store), model, boards, links, demand)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        terminal.show(*page(found, terminal.width(), guessed=not all(map(is_measured, boards.values()))))
    if plot:
        files.write(plot, draw(found, form))
        print(f"picture: {plot}", file=sys.stderr if json else sys.stdout)


def page(found: Survey, width: int, *, guessed: bool) -> Iterator[RenderableType]:
    """The tables and sentences of a survey; ``guessed``: some boards were not measured."""
    yield Text(f"{found.model}: the best way for each board and link, ms per frame", style="bold")
    yield _grid(found, width)
    yield ""
    for line in _notes(found, guessed=guessed):
        yield Text("\n".join(wrap(line, width)))
    yield ""
    if any(_sent(case) for case in found.cases):
        yield Text("Codec of the input, if the server computes everything", style="bold")
        yield _inputs(found, width)
        yield ""
    yield Text("What splitting gains", style="bold")
    for line in _gains(found.cases):
        yield Text("\n".join(wrap(line, width, "  ")))
    yield ""
    yield Text("What changes the choice", style="bold")
    yield _changes(found, width)


def _grid(found: Survey, width: int) -> RenderableType:
    boards, uplinks = _axes(found.cases)
    columns = [Column("Mbit/s up"), *(Column(f"{rate:g}", right=True) for rate in uplinks)]
    by_place = {(case.board, case.link.uplink_mbps): case for case in found.cases}
    rows: list[list[Text]] = [[Text(board), *(_cell(by_place[board, rate]) for rate in uplinks)] for board in boards]
    return terminal.table(columns, rows, width)


def _inputs(found: Survey, width: int) -> RenderableType:
    """The codec of the input on each board and link, if the server computes everything."""
    boards, uplinks = _axes(found.cases)
    columns = [Column("Mbit/s up"), *(Column(f"{rate:g}", right=True) for rate in uplinks)]
    sent = {(case.board, case.link.uplink_mbps): _sent(case) for case in found.cases}
    rows: list[list[Text]] = [[Text(board), *(Text(sent[board, rate]) for rate in uplinks)] for board in boards]
    return terminal.table(columns, rows, width)


def _sent(case: Case) -> str:
    return next((way.codec for way in case.ways if way.mode == "server"), "")


def _cell(case: Case) -> Text:
    return Text(_words(case), style=_STYLES[case.winner])


def _words(case: Case) -> str:
    if not case.ways:
        return "none"
    return f"{_NAMES[case.winner]} {_ms(case.ways[0].ms)}{'' if case.sure else '?'}"


def _notes(found: Survey, *, guessed: bool) -> Iterator[str]:
    demand, link = found.demand, found.cases[0].link
    yield (
        f"Accuracy drop of at most {demand.max_drop_points:g} pt; round trip {link.rtt_ms:g} ms. "
        "board: all on the board, nothing is sent. server: the input is sent. split: a tensor inside is sent."
    )
    if guessed:
        yield (
            "Boards that were not measured have predicted times, here at the slow end of their band (--pace). "
            "?: within the band another way may win."
        )
    if any(not case.ways for case in found.cases):
        yield "none: no plan meets the demand."


def _gains(cases: Sequence[Case]) -> Iterator[str]:
    won = [case for case in cases if case.winner == "split"]
    if not won:
        yield f"Nothing: in all {len(cases)} cases the board alone or the server alone is at least as good."
        return
    yield f"Splitting is the best way in {len(won)} of {len(cases)} cases:"
    for case in sorted(won, key=lambda one: (not one.only, -one.gain))[:_SHOWN]:
        yield _gain(case)


def _gain(case: Case) -> str:
    """One case in which splitting wins, against the other ways."""
    split, *others = case.ways
    parts = [f"{_ms(split.ms)} ms, {size(split.payload_bytes)} per frame, cut after {split.cut}"]
    for way in others:
        sent = f", {size(way.payload_bytes)}" if way.payload_bytes else ""
        parts.append(f"{_NAMES[way.mode]} alone {_ms(way.ms)} ms{sent}")
    best = f"{case.gain:.2f} times as good" if others else "the only way that meets the demand"
    return f"- {case.board} at {case.link.uplink_mbps:g} Mbit/s: {best}: {'; '.join(parts)}"


def _changes(found: Survey, width: int) -> RenderableType:
    columns = [
        Column("demand"),
        Column("board", right=True),
        Column("split", right=True),
        Column("server", right=True),
        Column("none", right=True),
        Column("largest gain of splitting", optional=True),
    ]
    rows = []
    for change in found.changes:
        winners = [case.winner for case in change.cases]
        counts = [str(winners.count(one)) for one in ("device", "split", "server", "")]
        best = max(change.cases, key=lambda case: (case.only, case.gain))
        gain = "the only way" if best.only else f"{best.gain:.2f} times" if best.gain > 1 else ""
        where = f", {best.board} at {best.link.uplink_mbps:g} Mbit/s" if gain else ""
        rows.append([change.option or "as given", *counts, gain + where])
    return terminal.table(columns, rows, width)


def _axes(cases: Sequence[Case]) -> tuple[list[str], list[float]]:
    """Boards and uplinks in order."""
    return list(dict.fromkeys(case.board for case in cases)), sorted({case.link.uplink_mbps for case in cases})


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}" if value < 1e6 else f"{value:.1e}"


def draw(found: Survey, form: PictureForm) -> bytes:
    """The grid of boards and links as a picture. Raises `errors.PlatformError` if matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise errors.PlatformError(
            "a picture needs matplotlib: install the `server` extra of splitedge", reason="no-matplotlib"
        ) from error
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=_size(found.cases), dpi=140, layout="constrained")
        (FigureCanvasSVG if form == "svg" else FigureCanvasAgg)(figure)
        _draw(figure.subplots(), found)
        legend = [Patch(color=_COLOURS[one], label=_NAMES[one]) for one in ("device", "split", "server")]
        figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format=form)
    return file.getvalue()


def _size(cases: Sequence[Case]) -> tuple[float, float]:
    """Width and height in inches."""
    boards, uplinks = _axes(cases)
    return 2.0 + 1.25 * len(uplinks), 1.6 + 0.6 * len(boards)


def _draw(axes: Any, found: Survey) -> None:
    boards, uplinks = _axes(found.cases)
    for case in found.cases:
        x, y = uplinks.index(case.link.uplink_mbps), boards.index(case.board)
        axes.add_patch(_square(x, y, _COLOURS[case.winner]))
        axes.text(x, y, _words(case).replace(" ", "\n"), ha="center", va="center", fontsize=9)
    axes.set(
        xlim=(-0.5, len(uplinks) - 0.5),
        ylim=(len(boards) - 0.5, -0.5),
        xticks=range(len(uplinks)),
        yticks=range(len(boards)),
        xlabel="uplink, Mbit/s",
        title=f"{found.model}: the best way, ms per frame",
    )
    axes.set_xticklabels([f"{rate:g}" for rate in uplinks])
    axes.set_yticklabels(boards)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _square(x: int, y: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, color=colour)
