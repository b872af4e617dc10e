"""Tables of the documentation, each from the document that a benchmark wrote (see `benchmarks.report`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from benchmarks.report import markdown, plain

Document = dict[str, Any]


def accuracy(document: dict[str, Any]) -> str:
    """Return the chosen rule at each cut and width, and the worst rule there."""
    summary = document["summary"]
    order = list(dict.fromkeys(row["cut after"] for row in document["rows"]))
    chosen = [row for row in document["rows"] if row["chosen"]]
    chosen.sort(key=lambda row: (order.index(row["cut after"]), -row["bits"]))
    rows = []
    for row in chosen:
        rivals = [r for r in document["rows"] if (r["cut after"], r["bits"]) == (row["cut after"], row["bits"])]
        worst = max(rivals, key=lambda r: r["drop"])
        rows.append(
            {
                "cut after": row["cut after"].lstrip("_"),
                "bits": row["bits"],
                "bytes a frame": f"{row['bytes']:,}",
                "rule": f"{row['rule']}, per {row['ranges']}",
                "points lost": f"{row['drop']:.1f}",
                "95 % interval": f"{row['low']:.1f} to {row['high']:.1f}",
                "same answer as float": f"{row['agree']:.1f} %",
                "worst rule": f"{worst['rule']}, per {worst['ranges']}: {worst['drop']:.1f}",
            }
        )
    return (
        f"EfficientNet-Lite0 with an 8-bit head, split and streamed: top-1 on {summary['lite0.samples']:.0f} photos "
        "that calibration never saw. "
        f"The float model has {summary['lite0.float_top1']:.1f} %. The clip rule is chosen on other photos. The last "
        "column is the worst rule.\n\n"
        f"{markdown(rows)}\n\n"
    )


def boards(document: dict[str, Any]) -> str:
    """Return what others measured beside its prediction, then our predictions: head times and plans by link."""
    groups: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("left out", "board of others", "without", "100 %", "mode", "core counted", "what")
    }
    for row in document["rows"]:
        groups[next(name for name in groups if name in row)].append(row)
    folds = [row for row in groups["left out"] if row["left out"].startswith("a ")]
    parts = [row for row in groups["left out"] if row not in folds]
    published, ours = document["notes"][:-2], document["notes"][-2:]
    parts_of_page = [
        "## What others measured\n\nTheirs: their kernels, measured. Predicted: from published runs of other boards.",
        _sentences(published),
        "How many published figures are inside the band:",
        markdown([_board_cells(row) for row in folds]),
        "By board and by kind of core that was left out:",
        markdown([_board_cells(row) for row in parts]),
        "Published figures beside the prediction of a fit without the board:",
        markdown([_figure_cells(row) for row in groups["board of others"]]),
    ]
    if groups["without"]:
        parts_of_page += [
            "The same model without some effects, leaving out a kind of core:",
            markdown([_board_cells(row) for row in groups["without"]]),
        ]
    parts_of_page += [
        "## Our kernels, predicted\n\nThese are predictions, not measurements.",
        _sentences(ours),
        "Predicted ms of the head of EfficientNet-Lite0 up to the cut nearest to a share of its products, and the band "
        "of the whole:",
        markdown([_head_cells(row) for row in groups["100 %"]]),
        "Predicted plan for EfficientNet-Lite0, by uplink and round trip:",
        markdown(_plans(groups["mode"])),
    ]
    if groups["core counted"]:
        parts_of_page += [
            "A whole head on emulated cores, counted and not timed: one frame of EfficientNet-Lite0 with 6-bit weights on "
            "one thread. Instructions a cycle are over the middle of the predicted time, and at most what the core "
            "decodes. The caches have no prefetcher.",
            markdown([_counts(row) for row in groups["core counted"]]),
        ]
    if groups["what"]:
        parts_of_page += [
            "The counts of cycles against a measurement:",
            markdown([_checks(row) for row in groups["what"]]),
        ]
    return "\n\n".join(parts_of_page) + "\n\n"


def _board_cells(row: dict[str, Any]) -> dict[str, Any]:
    numbers = {"inside %": "{:.0f}", "band": "{:.2f}", "error": "{:.2f}"}
    return {name: numbers[name].format(value) if name in numbers else value for name, value in row.items()}


def _figure_cells(row: dict[str, Any]) -> dict[str, Any]:
    band = "-" if row["predicted ms"] is None else f"{plain3(row['10 %'])} to {plain3(row['90 %'])}"
    return {
        "board": row["board of others"],
        "network": row["network"],
        "program": row["program"],
        "threads": row["threads"],
        "theirs, ms": f"{plain3(row['theirs ms'])}" + ("" if row["mark"] == "measured" else f" ({row['mark']})"),
        "predicted, ms": "-" if row["predicted ms"] is None else plain3(row["predicted ms"]),
        "10 to 90 %": band,
    }


def plain3(value: float) -> str:
    """Format a time in ms with three significant digits, or as a whole number from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _head_cells(row: dict[str, Any]) -> dict[str, Any]:
    ends = [row.get("100 % fast"), row.get("100 % slow")]
    cells = {name: _milliseconds(name, value) for name, value in row.items() if not name.endswith(("fast", "slow"))}
    return cells | {"10 to 90 %": "-" if None in ends else f"{ends[0]:.1f} to {ends[1]:.1f}"}


def _plans(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    plans: dict[str, dict[str, str]] = {}
    for row in rows:
        link = f"{row['Mbit/s up']} Mbit/s, {row['rtt ms']} ms"
        side = "server" if row["mode"] == "server" else "board"
        where = f"cut after {row['cut after']}" if row["mode"] == "split" else f"all on {side}"
        cells = plans.setdefault(row["board"], {"board": f"{row['board']} ({row['is']})"})
        cells[link] = f"{where}, {row['ms']:.1f} ms"
    return list(plans.values())


def _counts(row: dict[str, Any]) -> dict[str, Any]:
    return {column: plain3(value) if isinstance(value, float) else value for column, value in row.items()}


def _checks(row: dict[str, Any]) -> dict[str, Any]:
    return {column: f"{value:.2f}" if isinstance(value, float) else value for column, value in row.items()}


def _milliseconds(column: str, value: Any) -> Any:
    return f"{value:.1f}" if column.endswith("%") else value


def heads(document: dict[str, Any]) -> str:
    """Return every row, losses included, and the notes."""
    rows = [
        {
            "network": row["network"],
            "threads": row["threads"],
            "runtime": row["runtime"],
            "ms, mean ± sd": row["ms (mean ± sd)"],
            "median ms": f"{row['median ms']:.2f}",
            "splitedge is faster by": f"{row['ours is faster by']:.2f}",
        }
        for row in document["rows"]
    ]
    return (
        "Whole networks at batch 1. The runtimes take turns in one process. Below 1, splitedge is slower.\n\n"
        f"{markdown(rows)}\n\n{_notes(document)}"
    )


def dynamic_link(document: dict[str, Any]) -> str:
    """Return a row for each controller: windows held on each trace, then its losses."""
    rows: dict[str, dict[str, str]] = {}
    for row in document["rows"]:
        rows.setdefault(row["controller"], {"controller": row["controller"]})[row["trace"]] = f"{row['held %']:.0f} %"
    for name, made in rows.items():
        prefix = "" if name == "adaptive" else f"{name}."
        figures = {
            key: document["summary"][prefix + key]
            for key in (
                "held_percent",
                "accuracy_gap_points",
                "p50_ms",
                "p99_ms",
                "frames_lost_percent",
                "frames_unaccounted",
            )
        }
        made |= {
            "all": f"{figures['held_percent']:.1f} %",
            "points below the oracle": f"{figures['accuracy_gap_points']:.2f}",
            "worst p50 ms": f"{figures['p50_ms']:.0f}",
            "worst p99 ms": f"{figures['p99_ms']:.0f}",
            "frames lost": f"{figures['frames_lost_percent']:.1f} %",
            "unaccounted": f"{figures['frames_unaccounted']:.0f}",
        }
    return (
        "By trace, the share of windows that the controller held, of the windows that some codec could hold.\n\n"
        f"{markdown(list(rows.values()))}\n\n{_notes(document)}"
    )


def payload(document: dict[str, Any]) -> str:
    """Return the tables of payloads.

    They are: a row per cut and a column per method; the frontier for few samples; plans of a server; figures of goals.
    """
    fixed: dict[tuple[str, int], dict[str, str]] = {}
    frontier: list[dict[str, str]] = []
    planned = []
    for row in document["rows"]:
        key = row["network"], row["cut %"]
        told = "none" if row["drop"] is None else _lost(row)
        if row["cut %"] == "own":
            samples, detail = str(row["samples"]), row["bits"].replace("|", "/")
            planned.append(
                {"network": key[0], "mode": row["method"], "samples": samples, "payload": told, "plan": detail}
            )
            continue
        if row["method"].startswith("exact") and row["samples"] < _FEW:
            frontier.append(
                {
                    "network": key[0],
                    "cut at % of products": str(key[1]),
                    "payload": f"{row['payload %']:.2f} %",
                    "points lost": _points(row),
                    "agreement": f"{row['agree']:.1f} %",
                    "noise of the logits": f"{row['noise']:.3g}",
                }
            )
        if row["method"] in _METHODS:
            made = fixed.setdefault(
                key, {"network": key[0], "cut at % of products": str(key[1]), "samples": str(row["samples"])}
            )
            made[row["method"]] = told
    columns = list(dict.fromkeys(column for row in fixed.values() for column in row))
    fixed_rows = [{column: row.get(column, "") for column in columns} for row in fixed.values()]
    fixed_cuts = f"{markdown(fixed_rows)}\n\n" if fixed_rows else ""
    frontier.sort(key=lambda row: (row["network"], int(row["cut at % of products"]), float(row["payload"].split()[0])))
    few = f"{_FRONTIER}\n\n{markdown(frontier)}\n\n" if frontier else ""
    own = f"{_OWN}\n\n{markdown(planned)}\n\n" if planned else ""
    of_goals = {name: value for name, value in document["summary"].items() if "_at_" not in name}
    return (
        "Payload in per cent of float32, at the points of top-1 lost and their 95 % interval, on samples that "
        "calibration never saw. "
        "`exact, fewest bytes`: the fewest bytes with which calibration expects to keep the goal.\n\n"
        f"{fixed_cuts}{few}{own}{_notes(document)}{_figures(of_goals)}\n\n"
    )


#: Columns of the payload's table; and the number of samples below which the interval exceeds a point.
_METHODS: Final = ("exact", "closed form", "uniform", "pruned", "exact, fewest bytes")
_FEW: Final = 1000
_FRONTIER: Final = "With few samples the interval is too wide to meet a goal. Agreement with the float model and noise (mean squared difference of logits) say more:"
_OWN: Final = (
    "Plans that a server makes for a known board, with measured drops. The accuracy bound includes an interval, so "
    "these plans spend more bytes "
    "than the exact rows at fixed cuts:"
)


def _lost(row: dict[str, Any]) -> str:
    return f"{row['payload %']:.2f} % at {_points(row)}"


def _points(row: dict[str, Any]) -> str:
    return f"{row['drop']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


#: Codecs and widths in the table.
_SHOWN = (
    "minmax",
    "percentile",
    "aciq-laplace",
    "aciq-gauss",
    "aciq-gelu",
    "ds-aciq",
    "ds-aciq-fixed",
    "ds-aciq-frame",
    "mse-channel",
    "hadamard",
    "entropy",
    "pca",
    "default",
)
_WIDTHS = ("2", "3", "4", "6", "8")


def is_shown(row: dict[str, Any]) -> bool:
    """Return whether the page shows ``row``: a mean over all cuts, of a codec and a width of the table."""
    return "cut" not in row and row["codec"] in _SHOWN and row["bits"] in _WIDTHS


def low_bit(document: dict[str, Any]) -> str:
    """Return error and accuracy of each network and codec at each width, as means over cuts; then figures of goals."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in document["rows"]:
        if not is_shown(row):
            continue
        made = rows.setdefault((row["network"], row["codec"]), {"network": row["network"], "codec": row["codec"]})
        there = "" if row["planned"] is None else f", planner's {row['planned']:.1f}"
        near = "" if row["zero-shot"] is None else f"; zero-shot {row['zero-shot']:.1f}"
        told = f"{row['error']:.3g}, {row['accuracy']:.1f} (worst {row['worst']:.1f}{there}){near}"
        made |= {f"{row['bits']} bits": told}
    columns = ["network", "codec", *(f"{width} bits" for width in _WIDTHS)]
    table = markdown([{column: row.get(column, "") for column in columns} for row in rows.values()])
    return (
        "A cell holds the error at the output, the accuracy in per cent, and in parentheses the accuracy at the "
        "worst cut and at the planner's cut.\n\n"
        f"{table}\n\n{_notes(document)}{_figures(document['summary'])}\n\n"
    )


def reuse(document: dict[str, Any]) -> str:
    """Return a row for each stream at each cut, a column for each threshold; then the figures."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in document["rows"]:
        made = rows.setdefault(
            (row["cut after"], row["stream"]),
            {
                "cut after": row["cut after"].lstrip("_"),
                "stream": row["stream"],
                "differ if all are sent": f"{row['differ, all sent %']:.1f} %",
            },
        )
        missed = f", {row['missed cuts']} missed" if row["missed cuts"] else ""
        made[f"{row['threshold']:g}"] = f"{row['not sent %']:.0f} %, {row['extra']:+.1f}{missed}"
    return (
        "A cell holds the share of frames that is not sent, and how many more answers in a hundred differ from the "
        "float model's on the same frame. "
        "`missed`: frames that got the answer of another scene.\n\n"
        f"{markdown(list(rows.values()))}\n\n{_notes(document)}{_figures(document['summary'])}\n\n"
    )


def rounding(document: dict[str, Any]) -> str:
    """Return a row for each pair of bits of whole networks, a column for each rounding."""
    rows: dict[tuple[str, int, int], dict[str, str]] = {}
    for row in document["rows"]:
        if row["cut %"] == 100:
            key = row["network"], row["depthwise"], row["others"]
            bits = str(key[2]) if key[1] == key[2] else f"{key[2]}, depthwise {key[1]}"
            made = rows.setdefault(key, {"network": key[0], "bits": bits})
            made[row["rounding"]] = f"{row['drop']:.1f} ({row['low']:.1f} to {row['high']:.1f}), {row['noise']:.3g}"
    return (
        "A cell holds the points of top-1 that the whole network loses, their 95 % interval, and the mean squared "
        "error of the logits.\n\n"
        f"{markdown(list(rows.values()))}\n\n{_notes(document)}"
    )


def segments(document: dict[str, Any]) -> str:
    """Return the cost of upgrades from few bits to more and of nested weights; then all weights by coder."""
    ways = [
        {
            "from bits": row["from"],
            "to": row["to"],
            "file, bytes": f"{row['many whole']:,}",
            "upgrade, % of it": f"{row['upgrade %']:.1f}",
            "applied, s": f"{row['applied s']:.2f}",
            "noise before": f"{row['noise']:.3g}",
            "noise if nested": f"{row['nested noise']:.3g}",
        }
        for row in document["rows"]
        if "from" in row
    ]
    coders = [
        {name: f"{value:.1f}" if isinstance(value, float) else value for name, value in row.items()}
        for row in document["rows"]
        if "from" not in row
    ]
    return (
        "The whole EfficientNet-Lite0, with all layers at the same bits. Noise is the mean squared error of the "
        "logits at the fewer bits, on photographs "
        "that calibration never saw. Nested codes use the upper bits of the larger segment.\n\n"
        f"{markdown(ways)}\n\nAll weights: bytes when packed, and per cent of that by coder:\n\n{markdown(coders)}\n\n"
    )


def whole(document: dict[str, Any]) -> str:
    """Return every row, the notes, and the figures."""
    rows = [
        {
            column: f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
            for column, value in row.items()
        }
        for row in document["rows"]
    ]
    return f"{markdown(rows)}\n\n{_notes(document)}{_figures(document['summary'])}\n\n"


def coverage(document: Document) -> str:
    """Return a row for each network, and the figures."""
    rows = [
        {
            "network": row["network"],
            "reach, %": f"{row['reach %']:.1f}" if row["imported"] else "not imported",
            "cosine, device": _cosine(row["device"]),
            "cosine, split": _cosine(row["split"]),
            "s": f"{row['s']:.0f}",
            "MB": row["MB"],
            "stopped by": row["stopped by"].replace("|", "/"),
        }
        for row in document["rows"]
    ]
    return f"{markdown(rows)}\n\n{_notes(document)}{_figures(document['summary'])}\n\n"


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def bench(document: Document) -> str:
    """Return the rows of `edge-agent bench`, and how well `bench compare` decides."""
    rows = [row for row in document["rows"] if "second run" not in row]
    decided = [_rounded(row) for row in document["rows"] if "second run" in row]
    return (
        f"{markdown(_measured(rows))}\n\n`bench compare` of two results of the same network, and of "
        f"one with a slowdown put in on purpose:\n\n{markdown(decided)}\n\n"
        f"{_notes(document)}{_figures(document['summary'])}\n\n"
    )


def bench_example(document: Document) -> str:
    """Return the rows of the first model on one thread, for the README."""
    first = document["rows"][0]
    rows = [row for row in document["rows"] if (row.get("model"), row.get("threads")) == (first["model"], 1)]
    return f"{markdown(_measured(rows))}\n\n"


def _measured(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` of `edge-agent bench` with two decimal places, and without an empty column of failures."""
    names = [name for name in rows[0] if name != "failure" or any(row["failure"] for row in rows)]
    return [{name: f"{row[name]:.2f}" if isinstance(row[name], float) else row[name] for name in names} for row in rows]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: f"{value:.1f}" if isinstance(value, float) else value for name, value in row.items()}


def kernels(document: dict[str, Any]) -> str:
    """Return a table each of products, convolutions and the codec; then the figures of goals."""
    groups: dict[str, list[dict[str, Any]]] = {"product": [], "convolution": [], "codec": []}
    for row in document["rows"]:
        name = next(name for name in groups if name in row)
        groups[name].append({column: _short(column, value) for column, value in row.items()})
    tables = "\n\n".join(markdown(rows) for rows in groups.values())
    return (
        "One thread. The `vs` columns say how many times as fast splitedge is. Below 1 it is slower.\n\n"
        f"{tables}\n\n{_notes(document)}{_figures(document['summary'])}\n\n"
    )


def ways(document: Document) -> str:
    """Return a row for each way to classify the same photographs."""
    return f"{markdown(document['rows'])}\n\n{_notes(document)}"


_TOGETHER: Final = {"downloads": ("download_mb", "MB"), "first run": ("first_s", "s")}
#: Columns of each command's table, with figures of `benchmarks.setup` and their units.
COMMANDS: Final = {
    "demo": _TOGETHER | {"later": ("repeat_s", "s")},
    "test": _TOGETHER | {"later": ("seconds", "s")},
}


def setup(document: Document) -> str:
    """Return the cost of the README's two commands in a fresh clone with an empty home folder.

    Whichever runs first compiles the kernels for both.
    """
    figures = document["summary"]
    compiling = {"compiling kernels, once": _quantity(figures.get("demo.compile_s"), "s")}
    rows = [
        {"command": f"`scripts/{name}`"}
        | {title: _quantity(figures.get(f"{name}.{key}"), unit) for title, (key, unit) in columns.items()}
        | compiling
        for name, columns in COMMANDS.items()
    ]
    return f"{markdown(rows)}\n\n{_notes(document)}"


def _quantity(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:,.0f} {unit}"


def comparison(documents: dict[str, Document]) -> str:
    """Return the table of the README: a row for each rival, gains and losses."""
    onnx, litert = (_heads_against(documents["heads"]["rows"], name) for name in ("ONNX Runtime int8", "LiteRT int8"))
    link, codec, kernel = (documents[name]["summary"] for name in ("dynamic_link", "codec_speed", "kernels"))
    rows = [
        {
            "against": "ONNX Runtime int8, on the board",
            "gain": onnx[0],
            "loss": f"single matrix products: {kernel['gemm.min_ratio_ort']:.2f} times as fast at worst",
        },
        {"against": "LiteRT int8, on the board", "gain": litert[0], "loss": litert[1]},
        {"against": "everything on the server"} | _regret_against_server(documents["regret"]),
        {
            "against": "PipeEdge's rate control, changing links",
            "gain": f"holds {link['held_percent']:.1f} % of windows (PipeEdge {link['pipeedge.held_percent']:.1f} %), loses {link['frames_lost_percent']:.1f} % of frames ({link['pipeedge.frames_lost_percent']:.1f} %)",
            "loss": f"misses {100 - link['held_percent']:.1f} % of the windows that some codec could hold",
        },
        {
            "against": "PipeEdge's encoder",
            "gain": f"{codec['speedup_over_pipeedge_min']:.0f} times as fast or more, packed codecs of 2 to 8 bits",
            "loss": f"{codec['pca.speedup_over_pipeedge_min']:.2f} times as fast with principal components, which send fewer bytes",
        },
    ]
    return f"{markdown(rows)}\n\n"


def _heads_against(rows: Sequence[dict[str, Any]], rival: str) -> tuple[str, str]:
    """Return the speedup on one thread over all networks, and the least with more threads."""
    alone = [row["ours is faster by"] for row in rows if row["runtime"] == rival and row["threads"] == 1]
    beside = min(
        (row for row in rows if row["runtime"] == rival and row["threads"] > 1),
        key=lambda row: row["ours is faster by"],
    )
    return (
        f"{min(alone):.2f} to {max(alone):.2f} times as fast, {len(alone)} networks, one thread",
        f"{beside['ours is faster by']:.2f} times as fast at worst, {beside['network']}, {beside['threads']} threads",
    )


def _regret_against_server(document: Document) -> dict[str, str]:
    """Return the speedup of the chosen plan on links where it splits, and the number of links where it does not."""
    split = [row for row in document["rows"] if row["chosen"] not in ("device", "server")]
    gains = [row["server ms"] / row["chosen ms"] for row in split]
    alike = sum(row["chosen"] == "server" for row in document["rows"])
    return {
        "gain": f"{min(gains):.1f} to {max(gains):.1f} times as fast, on the {len(split)} of {len(document['rows'])} links where the planner splits",
        "loss": f"no gain on the {alike} links where the planner sends the input; the board computes all on the others",
    }


def _notes(document: dict[str, Any]) -> str:
    """Return each note as a paragraph."""
    return _sentences(document["notes"]) + "\n\n" if document["notes"] else ""


def _sentences(notes: Sequence[str]) -> str:
    return "\n\n".join(f"{note[0].upper()}{note[1:]}." for note in notes)


def _figures(summary: dict[str, float]) -> str:
    """Return the figures of goals as a table."""
    return markdown([{"figure": f"`{name}`", "measured": plain(value)} for name, value in summary.items()])


def _short(column: str, value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if column == "of peak":
        return f"{100 * value:.0f} %"
    return f"{value:.1f}" if column.endswith("us") else f"{value:.0f}" if column == "GOPS" else f"{value:.2f}"


def service(document: Document) -> str:
    """Return a row for each step of `scripts/test-systemd`, and its figures."""
    return f"{_steps(document, 'seconds')}\n\n{_figures(document['summary'])}\n\n"


def service_arm64(document: Document) -> str:
    """Return what the emulator leaves unproven, a row for each step, and the figures that are not seconds."""
    figures = {name: value for name, value in document["summary"].items() if not name.endswith("_s")}
    return f"{_notes(document)}{_steps(document, 'emulated seconds')}\n\n{_figures(figures)}\n\n"


def _steps(document: Document, seconds: str) -> str:
    rows = [
        {"step": row["step"], seconds: f"{row['seconds']:.1f}", "verdict": row["verdict"], "what it found": row["note"]}
        for row in document["rows"]
    ]
    return markdown(rows)


MAKERS: Final[dict[str, Callable[[Document], str]]] = {
    "accuracy": accuracy,
    "accuracy_bound": whole,
    "bench": bench,
    "boards": boards,
    "codec_speed": whole,
    "coverage": coverage,
    "detector": whole,
    "dynamic_link": dynamic_link,
    "heads": heads,
    "kernels": kernels,
    "low_bit": low_bit,
    "payload": payload,
    "pipeline": whole,
    "planner": whole,
    "predictions": whole,
    "regret": whole,
    "reuse": reuse,
    "rounding": rounding,
    "segments": segments,
    "service": service,
    "service_arm64": service_arm64,
    "startup": whole,
    "ways": ways,
}
