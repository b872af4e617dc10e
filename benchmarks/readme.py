"""Keep benchmark results in benchmarks/results, and write the tables of README.md and docs/results from them.

python -m benchmarks.readme                                  # write every table again python -m benchmarks.readme
--heads heads.json               # keep what benchmarks.heads wrote with --json, then write the tables python -m
benchmarks.readme --payload cnn.json vit.json      # the same for several runs

A run of some networks replaces the kept rows of those networks only, so you can measure one network again by itself.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, Final

from benchmarks.tables import MAKERS, Document, bench_example, comparison, is_shown, setup, ways

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "benchmarks/results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in (*MAKERS, "setup"):
        parser.add_argument(f"--{name}", type=Path, nargs="+", metavar="JSON", help=f"results for the page {name}")
    for name, paths in vars(parser.parse_args()).items():
        for path in paths or []:
            keep(name, json.loads(path.read_text()))
    for page, text in pages().items():
        page.write_text(text)


def pages() -> dict[Path, str]:
    """Return every page with tables and its text from the kept results. Raises `ValueError` if marks are missing."""
    documents = {name: kept(name) for name in MAKERS}
    made: dict[Path, str] = {}
    for name, document in documents.items():
        page = page_of(name)
        made[page] = filled(made.get(page) or page.read_text(), name, figures(name, document))
    readme = ROOT / "README.md"
    text = filled(readme.read_text(), "comparison", comparison(documents))
    text = filled(text, "bench", bench_example(documents["bench"]))
    text = filled(text, "ways", ways(documents["ways"]))
    return made | {readme: filled(text, "setup", setup(kept("setup")))}


def figures(name: str, document: Document) -> str:
    """Return the command of the benchmark and the tables of ``document``."""
    options = " --images DIR --labels FILE" if name in _OF_PHOTOS else ""
    command = _SCRIPTS.get(name, f"python -m benchmarks.{name}{options}")
    return f"`{command}`{_machine(document)}\n\n{MAKERS[name](document).rstrip()}\n\n"


#: Results that do not come from a benchmark, and their command.
_SCRIPTS: Final = {"service": "scripts/test-systemd", "service_arm64": "scripts/test-systemd arm64"}
#: Results that share the page of others.
_PAGES: Final = {"service_arm64": "service"}
#: Benchmarks that need a folder of labelled photographs.
_OF_PHOTOS: Final = ("accuracy", "reuse", "rounding", "segments", "ways")


def _machine(document: Document) -> str:
    """Format the known facts of the machine."""
    machine = document["machine"]
    parts = [f"{machine['cores']} cores"] if "cores" in machine else []
    parts += [machine["isa"]] if "isa" in machine else []
    return f", on {machine['cpu']}" + (f" ({', '.join(parts)})" if parts else "") if "cpu" in machine else ""


def page_of(name: str) -> Path:
    """Return the path of the page that shows the results ``name``."""
    return ROOT / f"docs/results/{_PAGES.get(name, name)}.md"


def filled(text: str, name: str, made: str) -> str:
    """Return ``text`` with ``made`` between the marks of ``name``. Raises `ValueError` if there are none."""
    before, start, rest = text.partition(f"<!-- figures: {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise ValueError(f"no marks for the figures of {name}")
    return before + start + made + end + after


def kept(name: str) -> Document:
    """Return the kept results of benchmark ``name``."""
    document: Document = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def keep(name: str, fresh: Document) -> None:
    """Replace the kept results of benchmark ``name`` by ``fresh``, but keep rows of networks that ``fresh`` lacks."""
    path = RESULTS / f"{name}.json"
    shown = fresh | {"rows": [row for row in fresh["rows"] if name != "low_bit" or is_shown(row)]}
    path.write_text(compact(joined(kept(name), shown) if path.exists() else shown))


def joined(old: Document, fresh: Document) -> Document:
    """Return ``fresh`` with the rows, figures and notes of ``old`` for other networks, in the order of ``old``."""
    groups = {_group(row) for row in fresh["rows"]}
    names = {str(group[0]) for group in groups}
    others = [row for row in old["rows"] if _group(row) not in groups]
    order = list(dict.fromkeys(_group(row) for row in (*old["rows"], *fresh["rows"])))
    figures = old["summary"] if others else {}
    notes = [note for note in old.get("notes", []) if others and note.partition(":")[0] not in names]
    return fresh | {
        "rows": sorted(others + fresh["rows"], key=lambda row: order.index(_group(row))),
        "summary": figures | fresh["summary"],
        "notes": list(dict.fromkeys([*notes, *fresh.get("notes", [])])),
    }


def _group(row: dict[str, Any]) -> tuple[Any, bool]:
    """Return the group of rows that a run replaces: a network, and in `benchmarks.payload` fixed cuts or own plans."""
    return row.get("network"), row.get("cut %") == "own"


def compact(document: Document) -> str:
    """Return ``document`` as JSON with one row per line. NaN becomes null."""
    parts = []
    for name in ("title", "machine", "rows", "summary", "notes"):
        value = document.get(name, [])
        lines = [_json(one) for one in value] if name in ("rows", "notes") else []
        parts.append(f'"{name}": ' + ("[\n" + ",\n".join(lines) + "\n]" if lines else _json(value)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _json(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: None if isinstance(one, float) and math.isnan(one) else one for key, one in value.items()}
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


if __name__ == "__main__":
    main()
