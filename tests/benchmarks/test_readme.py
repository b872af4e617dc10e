"""Tables for the README from what the benchmarks wrote."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import heads, readme
from benchmarks.report import report


def test_the_table_of_heads_has_every_row_and_note(tmp_path: Path) -> None:
    out = tmp_path / "heads.json"
    rows = [
        heads._row("A network", 1, name, [taken, taken], taken / 2)
        for name, taken in (("splitedge int8", 2.0), ("LiteRT int8", 3.0), ("splitedge int8, AVX2 only", 4.0))
    ]
    report("Whole heads", rows, {"net.ms_1t": 2.0}, out, ["a lower set is timed right after"])
    text = readme.heads(json.loads(out.read_text()))
    assert "| A network | 1 | LiteRT int8 | 3.000 ± 0.000 | 3.00 | 1.50 |" in text
    assert "| splitedge int8, AVX2 only |" in text
    assert "A lower set is timed right after.\n" in text
