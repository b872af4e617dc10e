"""Put the tables of benchmarks between the marks of README.md and the pages in docs/.

python -m benchmarks.accuracy --images DIR --labels FILE --json accuracy.json
python -m benchmarks.boards --json boards.json
python -m benchmarks.heads --json heads.json
python -m benchmarks.kernels --json kernels.json
python -m benchmarks.readme --accuracy accuracy.json --boards boards.json --heads heads.json --kernels kernels.json

and so on with accuracy_bound, payload, pipeline, planner, regret, rounding and segments, for docs/planner.md; of payload there may be a file for each network
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.report import markdown, plain

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    makers = {
        "accuracy": (accuracy, "README.md"),
        "accuracy_bound": (whole, "docs/planner.md"),
        "boards": (boards, "docs/boards.md"),
        "codec_speed": (whole, "docs/codecs.md"),
        "dynamic_link": (dynamic_link, "README.md"),
        "heads": (heads, "README.md"),
        "kernels": (kernels, "docs/kernels.md"),
        "low_bit": (low_bit, "docs/codecs.md"),
        "payload": (payload, "docs/planner.md"),
        "pipeline": (whole, "docs/planner.md"),
        "planner": (whole, "docs/planner.md"),
        "regret": (whole, "docs/planner.md"),
        "reuse": (reuse, "docs/codecs.md"),
        "rounding": (rounding, "docs/planner.md"),
        "segments": (segments, "docs/planner.md"),
    }
    for name, (_, place) in makers.items():
        parser.add_argument(
            f"--{name}", type=Path, nargs="+", help=f"what benchmarks.{name} wrote with --json; goes into {place}"
        )
    given = {name: paths for name, paths in vars(parser.parse_args()).items() if paths}
    if not given:
        parser.error("name at least one file that a benchmark wrote")
    for name, paths in given.items():
        make, place = makers[name]
        document = joined([json.loads(path.read_text()) for path in paths])
        replace(
            ROOT / place,
            name,
            f"`python -m benchmarks.{name}`\n\n{whole(document)}" if make is whole else make(document),
        )


def joined(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows, figures and notes of all, as if one run had written them."""
    rows = [row for document in documents for row in document["rows"]]
    figures = {name: value for document in documents for name, value in document["summary"].items()}
    notes = list(dict.fromkeys(note for document in documents for note in document.get("notes", [])))
    return documents[0] | {"rows": rows, "summary": figures, "notes": notes}


def replace(page: Path, name: str, made: str) -> None:
    """``made`` instead of what stands between the marks of ``name``. Exits where there are none."""
    before, start, rest = page.read_text().partition(f"<!-- figures: {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise SystemExit(f"{page.name} has no place for {name}")
    page.write_text(before + start + made + end + after)


def accuracy(document: dict[str, Any]) -> str:
    """The chosen rule at each cut and width, and the worst rule there."""
    summary = document["summary"]
    order = list(dict.fromkeys(row["cut after"] for row in document["rows"]))
    chosen = [row for row in document["rows"] if row["chosen"]]
    chosen.sort(key=lambda row: (order.index(row["cut after"]), -row["bits"]))
    rows = []
    for row in chosen:
        rivals = [r for r in document["rows"] if (r["cut after"], r["bits"]) == (row["cut after"], row["bits"])]
        worst = max(rivals, key=lambda r: r["drop"])
        rows.append({
            "cut after": row["cut after"].lstrip("_"), "bits": row["bits"], "bytes a frame": f"{row['bytes']:,}",
            "rule": f"{row['rule']}, per {row['ranges']}", "points lost": f"{row['drop']:.1f}",
            "95 % interval": f"{row['low']:.1f} to {row['high']:.1f}", "same answer as float": f"{row['agree']:.1f} %",
            "worst rule": f"{worst['rule']}, per {worst['ranges']}: {worst['drop']:.1f}",
        })  # fmt: skip
    return (
        f"EfficientNet-Lite0 with an 8-bit head, cut and streamed: top-1 on {summary['lite0.samples']:.0f} photos that calibration never saw"
        f" (float {summary['lite0.float_top1']:.1f} %). The rule is chosen on other photos; the last column is the worst choice.\n"
        f"`python -m benchmarks.accuracy --images DIR --labels FILE`\n\n{markdown(rows)}\n\n"
    )


def boards(document: dict[str, Any]) -> str:
    """Head times, plans with a column for each link, and how far the method is off where something was measured."""
    groups: dict[str, list[dict[str, Any]]] = {"100 %": [], "mode": [], "what": []}
    for row in document["rows"]:
        groups[next(name for name in groups if name in row)].append(row)
    heads = [{column: _milliseconds(column, value) for column, value in row.items()} for row in groups["100 %"]]
    plans: dict[str, dict[str, str]] = {}
    for row in groups["mode"]:
        link = f"{row['Mbit/s up']} Mbit/s, {row['rtt ms']} ms"
        where = (
            f"cut after {row['cut after']}"
            if row["mode"] == "split"
            else f"all on {'server' if row['mode'] == 'server' else 'board'}"
        )
        plans.setdefault(row["board"], {"board": f"{row['board']} ({row['is']})"})[link] = (
            f"{where}, {row['ms']:.1f} ms"
        )
    checks = [
        {column: f"{value:.2f}" if isinstance(value, float) else value for column, value in row.items()}
        for row in groups["what"]
    ]
    return (
        f"What if: predictions, not measurements.\n`python -m benchmarks.boards`, on {document['machine']['cpu']}\n\n{_notes(document)}"
        f"Predicted ms of the head of EfficientNet-Lite0 up to the cut nearest to a share of its products:\n\n{markdown(heads)}\n\n"
        f"Predicted plan for EfficientNet-Lite0, by uplink and round trip:\n\n{markdown(list(plans.values()))}\n\n"
        f"The same method where something was measured:\n\n{markdown(checks)}\n\n"
    )


def _milliseconds(column: str, value: Any) -> Any:
    return f"{value:.1f}" if column.endswith("%") else value


def heads(document: dict[str, Any]) -> str:
    """Every row, losses included, and what must be known with them."""
    rows = [
        {
            "network": row["network"], "threads": row["threads"], "runtime": row["runtime"], "ms, mean ± sd": row["ms (mean ± sd)"],
            "median ms": f"{row['median ms']:.2f}", "splitedge is faster by": f"{row['ours is faster by']:.2f}",
        }
        for row in document["rows"]
    ]  # fmt: skip
    machine = document["machine"]
    return (
        f"Whole networks, batch 1, in turn in one process, on {machine['cpu']} ({machine['cores']} cores, {machine['isa']}); below 1 ours is slower.\n"
        f"`python -m benchmarks.heads`\n\n{markdown(rows)}\n\n{_notes(document)}"
    )


def dynamic_link(document: dict[str, Any]) -> str:
    """A row for each controller: windows held on each trace, then what it costs."""
    rows: dict[str, dict[str, str]] = {}
    for row in document["rows"]:
        rows.setdefault(row["controller"], {"controller": row["controller"]})[row["trace"]] = f"{row['held %']:.0f} %"
    for name, made in rows.items():
        prefix = "" if name == "adaptive" else f"{name}."
        figures = {
            key: document["summary"][prefix + key]
            for key in ("held_percent", "accuracy_gap_points", "p99_ms", "frames_lost_percent", "frames_unaccounted")
        }
        p50 = max(row["p50 ms"] for row in document["rows"] if row["controller"] == name)
        made |= {
            "all": f"{figures['held_percent']:.1f} %", "points below the oracle": f"{figures['accuracy_gap_points']:.2f}",
            "worst p50 ms": f"{p50:.0f}", "worst p99 ms": f"{figures['p99_ms']:.0f}", "frames lost": f"{figures['frames_lost_percent']:.1f} %",
            "unaccounted": f"{figures['frames_unaccounted']:.0f}",
        }  # fmt: skip
    machine = document["machine"]
    return (
        f"Links that change while frames flow: windows held, of those in which some codec could be, by trace; on {machine['cpu']} ({machine['cores']} cores).\n"
        f"`python -m benchmarks.dynamic_link`\n\n{markdown(list(rows.values()))}\n\n{_notes(document)}"
    )


def payload(document: dict[str, Any]) -> str:
    """A row for each cut, a column for each method; the frontier where samples are few; what a server plans; then the figures that goals are about."""
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
            frontier.append({
                "network": key[0], "cut at % of products": str(key[1]), "payload": f"{row['payload %']:.2f} %",
                "points lost": _points(row), "agreement": f"{row['agree']:.1f} %", "noise of the logits": f"{row['noise']:.3g}",
            })  # fmt: skip
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
        "`python -m benchmarks.payload`\n\nPayload at points of top-1 lost (its 95 % interval), on samples that calibration never saw. "
        "Nothing quantized is 100 %; fewest bytes: the fewest that calibration takes to keep the goal.\n\n"
        f"{fixed_cuts}{few}{own}{_notes(document)}{_figures(of_goals)}\n\n"
    )


#: Columns of the payload's table; and samples below which no interval tells a point.
_METHODS: Final = ("exact", "closed form", "uniform", "pruned", "exact, fewest bytes")
_FEW: Final = 1000
_FRONTIER: Final = "The frontier where samples are too few for the interval's end to meet a goal: agreement with the float model and noise (mean squared difference of logits) tell more."
_OWN: Final = "What a server would plan for a known board; its drop is measured. The promise counts the bound's interval too, so it spends more bytes than the exact rows at fixed cuts."


def _lost(row: dict[str, Any]) -> str:
    return f"{row['payload %']:.2f} % at {_points(row)}"


def _points(row: dict[str, Any]) -> str:
    return f"{row['drop']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


#: Codecs of the table, and the widths that are shown.
_SHOWN = (
    "minmax", "percentile", "aciq-laplace", "aciq-gauss", "aciq-gelu", "ds-aciq", "ds-aciq-fixed", "ds-aciq-frame", "mse-channel", "hadamard", "entropy",
    "pca", "default",
)  # fmt: skip
_WIDTHS = ("2", "3", "4", "6", "8")


def low_bit(document: dict[str, Any]) -> str:
    """Of each network and codec the error and the accuracy at each width, the mean over cuts; then the figures that goals are about."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in document["rows"]:
        if "cut" in row or row["codec"] not in _SHOWN or row["bits"] not in _WIDTHS:
            continue
        made = rows.setdefault((row["network"], row["codec"]), {"network": row["network"], "codec": row["codec"]})
        there = "" if math.isnan(row["planned"]) else f", planner's {row['planned']:.1f}"
        near = "" if math.isnan(row["zero-shot"]) else f"; zero-shot {row['zero-shot']:.1f}"
        told = f"{row['error']:.3g}, {row['accuracy']:.1f} (worst {row['worst']:.1f}{there}){near}"
        made |= {f"{row['bits']} bits": told}
    columns = ["network", "codec", *(f"{width} bits" for width in _WIDTHS)]
    table = markdown([{column: row.get(column, "") for column in columns} for row in rows.values()])
    return (
        "`python -m benchmarks.low_bit`\n\nError at the output, accuracy in per cent, that of the worst cut and of the planner's; what each is of, `benchmarks.low_bit` says.\n\n"
        f"{table}\n\n{_notes(document)}{_figures(document['summary'])}\n\n"
    )


def reuse(document: dict[str, Any]) -> str:
    """A row for each stream at each cut, a column for each threshold; then the figures."""
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
    notes = "".join(f"{note[0].upper()}{note[1:]}.\n\n" for note in document["notes"])
    goals = markdown([{"figure": f"`{name}`", "measured": plain(value)} for name, value in document["summary"].items()])
    return (
        "`python -m benchmarks.reuse --images DIR --labels FILE`\n\nBy threshold the share of frames that is not sent, and how many answers more in a hundred differ from the "
        "float model's on the same frame; `missed`: frames that got another scene's answer. What the streams are, `benchmarks.reuse` says.\n\n"
        f"{markdown(list(rows.values()))}\n\n{notes}{goals}\n\n"
    )


def rounding(document: dict[str, Any]) -> str:
    """Of whole networks a row for each pair of bits, a column for each rounding."""
    rows: dict[tuple[str, int, int], dict[str, str]] = {}
    for row in document["rows"]:
        if row["cut %"] == 100:
            key = row["network"], row["depthwise"], row["others"]
            bits = str(key[2]) if key[1] == key[2] else f"{key[2]}, depthwise {key[1]}"
            made = rows.setdefault(key, {"network": key[0], "bits": bits})
            made[row["rounding"]] = f"{row['drop']:.1f} ({row['low']:.1f} to {row['high']:.1f}), {row['noise']:.3g}"
    return (
        "`python -m benchmarks.rounding --images DIR --labels FILE`\n\nPoints of top-1 lost by the whole network (95 % interval), and mean squared error "
        f"of its logits. What the columns are, `benchmarks.rounding` says.\n\n{markdown(list(rows.values()))}\n\n{_notes(document)}"
    )


def segments(document: dict[str, Any]) -> str:
    """What an upgrade from few bits to more takes, and what nested weights would have cost; then all weights by coder."""
    ways = [
        {
            "from bits": row["from"], "to": row["to"], "file, bytes": f"{row['many whole']:,}", "upgrade, % of it": f"{row['upgrade %']:.1f}",
            "applied, s": f"{row['applied s']:.2f}", "noise before": f"{row['noise']:.3g}", "noise if nested": f"{row['nested noise']:.3g}",
        }
        for row in document["rows"] if "from" in row
    ]  # fmt: skip
    coders = [
        {name: f"{value:.1f}" if isinstance(value, float) else value for name, value in row.items()}
        for row in document["rows"]
        if "from" not in row
    ]
    machine = document["machine"]
    return (
        f"`python -m benchmarks.segments --images DIR --labels FILE`, on {machine['cpu']}\n\n"
        "EfficientNet-Lite0 whole, all layers at the same bits. Noise: mean squared error "
        "of the logits at the fewer bits, on photographs that calibration did not see; nested: where these bits are the upper ones of those that follow.\n\n"
        f"{markdown(ways)}\n\nAll its weights, bytes when packed and per cent of that by coder:\n\n{markdown(coders)}\n\n"
    )


def whole(document: dict[str, Any]) -> str:
    """Every row, what must be known with them, and the figures."""
    machine = document["machine"]
    rows = [
        {
            column: f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
            for column, value in row.items()
        }
        for row in document["rows"]
    ]
    return f"On {machine['cpu']} ({machine['cores']} cores).\n\n{markdown(rows)}\n\n{_notes(document)}{_figures(document['summary'])}\n\n"


def kernels(document: dict[str, Any]) -> str:
    """Products, convolutions and the codec, each a table; then the figures that goals are about."""
    machine = document["machine"]
    groups: dict[str, list[dict[str, Any]]] = {"product": [], "convolution": [], "codec": []}
    for row in document["rows"]:
        name = next(name for name in groups if name in row)
        groups[name].append({column: _short(column, value) for column, value in row.items()})
    tables = "\n\n".join(markdown(rows) for rows in groups.values())
    return (
        f"One thread on {machine['cpu']} ({machine['isa']}); `vs`: how many times as fast ours is, below 1 it is slower.\n"
        f"`python -m benchmarks.kernels`\n\n{tables}\n\n{_notes(document)}{_figures(document['summary'])}\n\n"
    )


def _notes(document: dict[str, Any]) -> str:
    """Each note as a paragraph."""
    return "".join(f"{note[0].upper()}{note[1:]}.\n\n" for note in document["notes"])


def _figures(summary: dict[str, float]) -> str:
    """The figures that goals are about, as a table."""
    return markdown([{"figure": f"`{name}`", "measured": plain(value)} for name, value in summary.items()])


def _short(column: str, value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if column == "of peak":
        return f"{100 * value:.0f} %"
    return f"{value:.1f}" if column.endswith("us") else f"{value:.0f}" if column == "GOPS" else f"{value:.2f}"


if __name__ == "__main__":
    main()
