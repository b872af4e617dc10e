"""Put measured tables between the marks of README.md.

python -m benchmarks.accuracy --images DIR --labels FILE --json accuracy.json
python -m benchmarks.heads --json heads.json
python -m benchmarks.readme --accuracy accuracy.json --heads heads.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.report import markdown

README = Path(__file__).resolve().parent.parent / "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accuracy", type=Path, required=True, help="what benchmarks.accuracy wrote with --json")
    parser.add_argument("--heads", type=Path, required=True, help="what benchmarks.heads wrote with --json")
    arguments = parser.parse_args()
    text = README.read_text()
    for name, path, make in (("accuracy", arguments.accuracy, accuracy), ("heads", arguments.heads, heads)):
        made = make(json.loads(path.read_text()))
        before, start, rest = text.partition(f"<!-- figures: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise SystemExit(f"README.md has no place for {name}")
        text = before + start + made + end + after
    README.write_text(text)


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
    notes = "".join(f"{note[0].upper()}{note[1:]}.\n\n" for note in document["notes"])
    return (
        f"Whole networks, batch 1, in turn in one process, on {machine['cpu']} ({machine['cores']} cores, {machine['isa']}); below 1 ours is slower.\n"
        f"`python -m benchmarks.heads`\n\n{markdown(rows)}\n\n{notes}"
    )


if __name__ == "__main__":
    main()
