"""Measure functions, classes and sentences of this or another tree: `scripts/measure_code.py [TREE] [--json FILE]`.

Code: the installed packages, benchmarks, examples and scripts. Sentences: README and docs, without code blocks, tables
and headings.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

CODE = (
    "splitedge",
    "edge_agent",
    "edge_server",
    "calibration",
    "device_profiles",
    "kernels",
    "benchmarks",
    "examples",
    "scripts",
)
PROSE = ("README.md", "CONTRIBUTING.md", "docs", "benchmarks/README.md")
COLUMNS = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args()
    rows = [*code_rows(given.tree), *prose_rows(given.tree)]
    print(f"{'':42}{'count':>7}{'median':>8}{'p95':>6}{'most':>6}  where")
    for row in rows:
        print(f"{row['name']:42}{row['count']:>7}{row['median']:>8g}{row['p95']:>6}{row['most']:>6}  {row['where']}")
    if given.json:
        given.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def code_rows(tree: Path) -> Iterator[dict[str, Any]]:
    paths = [path for name in CODE for path in sorted((tree / name).rglob("*.py"))]
    functions, methods, parameters = [], [], []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(tree)}:{getattr(node, 'name', '')}"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append((lines_of(node), where))
                given = node.args
                names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                parameters.append((len([name for name in names if name not in ("self", "cls")]), where))
            elif isinstance(node, ast.ClassDef):
                methods.append((sum(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) for n in node.body), where))
    yield row("lines of a function, without its docstring", functions)
    yield row("parameters of a function", parameters)
    yield row("methods of a class", methods)
    yield row("lines of a file", [(len(p.read_text().splitlines()), str(p.relative_to(tree))) for p in paths])
    everything = [*paths, *sorted((tree / "tests").rglob("*.py"))]
    lines = [(line, str(path.relative_to(tree))) for path in everything for line in path.read_text().splitlines()]
    yield row(f"lines over {COLUMNS} columns", [(len(line), where) for line, where in lines if len(line) > COLUMNS])
    skipped = [(1, where) for line, where in lines if re.search(r"# fmt: (skip|off)", line)]
    yield row("lines that the formatter skips", skipped)


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of the function without its docstring."""
    assert node.end_lineno is not None
    total = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None and first.end_lineno is not None:
        total -= first.end_lineno - first.lineno + 1
    return total


def prose_rows(tree: Path) -> Iterator[dict[str, Any]]:
    named = [tree / name for name in PROSE]
    pages = [
        page for path in named for page in (sorted(path.rglob("*.md")) if path.is_dir() else [path]) if page.is_file()
    ]
    counted = [(words, str(page.relative_to(tree))) for page in pages for words in sentences(page.read_text())]
    yield row("words of a sentence in README and docs", counted)
    yield row("words of a page", [(len(page.read_text().split()), str(page.relative_to(tree))) for page in pages])


def sentences(text: str) -> Iterator[int]:
    """Yield the number of words of each sentence of a page in Markdown."""
    text = re.sub(r"<!--.*?-->", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M), flags=re.S)
    for block in re.split(r"\n\s*\n|\n(?= *(?:[-*]|\d+\.) )", text):
        if block.lstrip().startswith(("#", "|", "<", "!")):
            continue
        plain = re.sub(r"`[^`]*`", "code", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", block))
        for sentence in re.split(r"(?<=[.!?:])\s+", plain.strip()):
            words = re.findall(r"[A-Za-z0-9][\w'’-]*", sentence)
            if len(words) > 2:
                yield len(words)


def row(name: str, found: Sequence[tuple[int, str]]) -> dict[str, Any]:
    values = sorted(value for value, _ in found) or [0]
    return {
        "name": name,
        "count": len(found),
        "median": median(values),
        "p95": values[int(0.95 * (len(values) - 1))],
        "most": values[-1],
        "where": max(found, default=(0, ""))[1],
    }


if __name__ == "__main__":
    main()
