"""Tables for the README from what the benchmarks wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import heads, readme, tables
from benchmarks.report import report, write
from benchmarks.tables import Document


def test_the_table_of_heads_has_every_row_and_note(tmp_path: Path) -> None:
    out = tmp_path / "heads.json"
    rows = [
        heads._row("A network", 1, name, [taken, taken], taken / 2)
        for name, taken in (("splitedge int8", 2.0), ("LiteRT int8", 3.0), ("splitedge int8, AVX2 only", 4.0))
    ]
    report("Whole heads", rows, {"net.ms_1t": 2.0}, out, ["a lower set is timed right after"])
    text = tables.heads(json.loads(out.read_text()))
    assert "| A network | 1 | LiteRT int8 | 3.000 ± 0.000 | 3.00 | 1.50 |" in text
    assert "| splitedge int8, AVX2 only |" in text
    assert "A lower set is timed right after.\n" in text


def test_the_tables_of_boards_say_that_they_are_predictions(tmp_path: Path) -> None:
    out = tmp_path / "boards.json"
    fold = {"left out": "a board", "of": "all", "runs": 859, "inside %": 83.2, "band": 2.14, "error": 0.178}
    part = fold | {"left out": "board", "of": "pi4"}
    figure = {"board of others": "Pi 4", "network": "mobilenet_v2 int8", "program": "tflite", "threads": 4}
    figure |= {"mark": "measured", "theirs ms": 23.04, "predicted ms": 21.0, "10 %": 15.0, "90 %": 129.6}
    target = figure | {"mark": "target", "predicted ms": None, "10 %": None, "90 %": None}
    heads_row = {"board": "pi5", "is": "prediction", "kernels": "dotprod", "threads": 4, "25 %": 1.0, "100 %": 2.75}
    heads_row |= {"100 % fast": 2.0, "100 % slow": 4.25}
    plan_row = {
        "board": "pi5",
        "is": "prediction",
        "Mbit/s up": "5",
        "rtt ms": "40",
        "mode": "split",
        "cut after": "conv7",
        "ms": 12.34,
        "all on server": 50.0,
    }
    there = plan_row | {"Mbit/s up": "1000", "rtt ms": "1", "mode": "server", "cut after": "input", "ms": 3.0}
    check = {"what": "this machine", "predicted ms": 1.5, "measured ms": 1.4}
    notes = ["theirs is measured", "predictions for boards that nobody measured", "the slow end counts"]
    write(out, "What if", [fold, part, figure, target, heads_row, plan_row, there, check], {}, notes)
    text = tables.boards(json.loads(out.read_text()))
    assert "predictions, not measurements" in text
    assert "Predictions for boards that nobody measured." in text
    assert text.index("Theirs is measured.") < text.index("Our kernels, predicted") < text.index("The slow end counts.")
    assert "| a board | all | 859 | 83 | 2.14 | 0.18 |" in text
    assert "| Pi 4 | mobilenet_v2 int8 | tflite | 4 | 23 | 21 | 15 to 130 |" in text
    assert "| Pi 4 | mobilenet_v2 int8 | tflite | 4 | 23 (target) | - | - |" in text
    assert "| pi5 | prediction | dotprod | 4 | 1.0 | 2.8 | 2.0 to 4.2 |" in text
    assert "| board | 5 Mbit/s, 40 ms | 1000 Mbit/s, 1 ms |" in text
    assert "| pi5 (prediction) | cut after conv7, 12.3 ms | all on server, 3.0 ms |" in text
    assert "| this machine | 1.50 | 1.40 |" in text


def test_what_a_server_plans_is_a_table_by_itself_where_there_are_no_fixed_cuts() -> None:
    row = {"network": "mlp", "cut %": "own", "method": "device", "payload %": 6.0, "bits": "after c, 2.0"}
    row |= {"drop": 0.2, "low": -0.1, "high": 0.5, "samples": 1000, "agree": 98.25, "noise": 0.01234}
    text = tables.payload({"rows": [row], "summary": {"mlp.payload_percent_chosen": 6.0}, "notes": []})
    assert "| mlp | device | 1000 | 6.00 % at 0.20 (-0.10 to 0.50) | after c, 2.0 |" in text
    assert "cut at %" not in text


def test_payloads_of_several_runs_are_one_table_with_a_column_for_each_method() -> None:
    def of(network: str, cut: object, method: str, percent: float, samples: int = 1000) -> dict[str, object]:
        drop = {"drop": 0.2, "low": -0.1, "high": 0.5, "samples": samples, "bits": "after c, 2.0 | 3 mse"}
        close = {"agree": 98.25, "noise": 0.01234}
        return {"network": network, "cut %": cut, "method": method, "payload %": percent, **drop, **close}

    refused = of("cnn", "own", "device", 0.0) | {
        "payload %": None,
        "drop": None,
        "bits": "no plan of cnn: allow 2 points",
    }

    first = {
        "rows": [of("mlp", 25, "exact", 6.0), of("mlp", 25, "uniform", 11.0)],
        "summary": {"mlp.payload_percent": 6.0},
    }
    second = {
        "rows": [
            of("cnn", 50, "exact", 8.0),
            of("cnn", "own", "split, chosen", 9.0),
            refused,
            of("cnn", 50, "float32", 100.0),
            of("lite0", 50, "exact", 15.0, 500),
            of("lite0", 50, "exact, 8 %", 8.0, 500),
        ],
        "notes": ["own: a board"],
        "summary": {"cnn.payload_percent": 8.0, "cnn.payload_percent_at_50": 8.0},
    }
    text = tables.payload(readme.joined(first | {"notes": []}, second))
    assert "| mlp | 25 | 1000 | 6.00 % at 0.20 (-0.10 to 0.50) | 11.00 % at 0.20 (-0.10 to 0.50) |" in text
    assert "| cnn | 50 | 1000 | 8.00 % at 0.20 (-0.10 to 0.50) |  |" in text
    assert "| cnn | split, chosen | 1000 | 9.00 % at 0.20 (-0.10 to 0.50) | after c, 2.0 / 3 mse |" in text
    assert "| cnn | device | 1000 | none | no plan of cnn: allow 2 points |" in text
    few, many = "| lite0 | 50 | 8.00 % | 0.20 (-0.10 to 0.50) | 98.2 % | 0.0123 |", "| lite0 | 50 | 15.00 % |"
    assert text.index(few) < text.index(many)
    assert text.count("8.00 % at") == 1
    assert "Own: a board." in text
    assert "_at_50" not in text
    assert "`cnn.payload_percent`" in text
    assert "| float32 |" not in text


def test_a_network_measured_again_keeps_its_place() -> None:
    def document(*rows: tuple[str, int | str]) -> dict[str, object]:
        return {"rows": [{"network": name, "cut %": cut} for name, cut in rows], "summary": {}, "notes": []}

    old = document(("mlp", 25), ("mlp", "own"), ("cnn", 25), ("cnn", "own"))
    found = readme.joined(old, document(("vit", 25), ("mlp", 50)))
    assert found["rows"] == document(("mlp", 50), ("mlp", "own"), ("cnn", 25), ("cnn", "own"), ("vit", 25))["rows"]


def test_codecs_are_a_row_each_with_a_column_for_each_width() -> None:
    def of(codec: str, bits: str, **more: object) -> dict[str, object]:
        return {
            "network": "net",
            "codec": codec,
            "bits": bits,
            "error": 0.01234,
            "accuracy": 91.26,
            "worst": 88.0,
            "planned": 90.0,
            "zero-shot": None,
            **more,
        }

    rows = [
        of("minmax", "2"),
        of("minmax", "4"),
        of("default", "2"),
        of("mse", "2"),
        of("default", "1.5"),
        of("default", "2", cut="c"),
    ]
    rows.append(of("pca", "2") | {"planned": None, "zero-shot": 40.0})
    text = tables.low_bit({"rows": rows, "summary": {"net.error_vs_ds_aciq_2bit": 0.2}, "notes": ["net: 2 of 4 cuts"]})
    cell = "0.0123, 91.3 (worst 88.0, planner's 90.0)"
    assert f"| net | minmax | {cell} |  | {cell} |  |  |" in text
    assert "| net | pca | 0.0123, 91.3 (worst 88.0); zero-shot 40.0 |" in text
    assert "Net: 2 of 4 cuts." in text
    assert text.count("| net |") == 3
    assert "`net.error_vs_ds_aciq_2bit`" in text


def test_streams_are_a_row_each_with_a_column_for_each_threshold() -> None:
    def of(stream: str, threshold: float, missed: int = 0) -> dict[str, object]:
        shares = {"not sent %": 80.4, "differ, all sent %": 1.25, "differ %": 1.5, "extra": 0.25, "lost": 0.0}
        return {"cut after": "_add", "stream": stream, "threshold": threshold, **shares, "missed cuts": missed}

    rows = [of("noise 2", 0.1), of("noise 2", 0.5, 3), of("pan 1 px", 0.1), of("pan 1 px", 0.5)]
    text = tables.reuse({"rows": rows, "summary": {"reuse.missed_cuts": 0.0}, "notes": ["some scenes"]})
    assert "| cut after | stream | differ if all are sent | 0.1 | 0.5 |" in text
    assert "| add | noise 2 | 1.2 % | 80 %, +0.2 | 80 %, +0.2, 3 missed |" in text
    assert "| `reuse.missed_cuts` | 0 |" in text
    assert "Some scenes.\n" in text


def test_roundings_are_columns_and_pairs_of_bits_rows() -> None:
    def of(cut: int, depthwise: int, bits: int, kind: str) -> dict[str, object]:
        worth = {"noise": 0.01234, "drop": 1.26, "low": -0.5, "high": 3.0}
        return {"network": "net", "cut %": cut, "depthwise": depthwise, "others": bits, "rounding": kind, **worth}

    rows = [
        of(100, 3, 3, "plain"),
        of(100, 3, 3, "gptq"),
        of(50, 3, 3, "plain"),
        of(100, 8, 4, "plain"),
        of(100, 8, 4, "gptq"),
    ]
    text = tables.rounding({"rows": rows, "notes": ["net: 9 pairs"]})
    assert "| network | bits | plain | gptq |" in text
    assert "| net | 3 | 1.3 (-0.5 to 3.0), 0.0123 | 1.3 (-0.5 to 3.0), 0.0123 |" in text
    assert "| net | 4, depthwise 8 |" in text
    assert text.count("| net |") == 2
    assert "Net: 9 pairs.\n" in text


def test_upgrades_show_what_nesting_would_cost() -> None:
    row = {
        "from": 4, "to": 6, "few whole": 2_000_000, "many whole": 3_000_000, "upgrade %": 41.26, "applied s": 0.5,
        "noise": 0.5, "nested noise": 1.5,
    }  # fmt: skip
    coded = {"bits": 4, "packed": 123, "entropy": 89.123, "ours": 89.26, "decoded M/s": 50.0}
    text = tables.segments({"rows": [coded, row], "machine": {"cpu": "a processor"}})
    assert "| 4 | 6 | 3,000,000 | 41.3 | 0.50 | 0.5 | 1.5 |" in text
    assert "| 4 | 123 | 89.1 | 89.3 | 50.0 |" in text


def test_a_run_of_one_network_replaces_its_rows_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(network: str, drop: float, cut: object = 25) -> dict[str, object]:
        return {"network": network, "cut %": cut, "drop": drop}

    old = {"title": "t", "machine": {}, "rows": [row("a", 1.0), row("a", 1.5, "own"), row("b", 2.0)]}
    old |= {"summary": {"a.drop": 1.0, "b.drop": 2.0}, "notes": ["a: old", "b: old"]}
    fresh = old | {"rows": [row("a", 0.5)], "summary": {"a.drop": 0.5}, "notes": ["a: new"]}
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    readme.keep("payload", old)
    readme.keep("payload", fresh)
    kept = readme.kept("payload")
    assert kept["rows"] == [row("a", 0.5), row("a", 1.5, "own"), row("b", 2.0)]
    assert kept["summary"] == {"a.drop": 0.5, "b.drop": 2.0}
    assert kept["notes"] == ["b: old", "a: new"]


def test_kept_results_hold_a_row_a_line_and_null_for_what_is_no_number() -> None:
    document = {
        "title": "t",
        "machine": {},
        "rows": [{"x": math.nan}, {"x": 1.5}],
        "summary": {"y": math.nan},
        "notes": [],
    }
    text = readme.compact(document)
    assert json.loads(text)["rows"] == [{"x": None}, {"x": 1.5}]
    assert json.loads(text)["summary"] == {"y": None}
    assert '\n{"x": 1.5}\n' in text


def service_document(tmp_path: Path, verdict: str, notes: list[str]) -> Document:
    out = tmp_path / "service.json"
    row = {"step": "kill -9", "seconds": 8.44, "verdict": verdict, "note": "a note"}
    write(out, "The service", [row], {"systemd.ready_after_restart_s": 8.1, "systemd.failed": 0}, notes)
    document: Document = json.loads(out.read_text())
    return document


def test_the_lab_on_an_emulated_board_shows_what_it_left_out_and_no_figures_in_seconds(tmp_path: Path) -> None:
    text = tables.service_arm64(service_document(tmp_path, "skipped", ["not enforced: SystemCallFilter="]))
    assert text.startswith("Not enforced: SystemCallFilter=.\n\n")
    assert "| step | emulated seconds | verdict | what it found |" in text
    assert "| kill -9 | 8.4 | skipped | a note |" in text
    assert "| `systemd.failed` | 0 |" in text
    assert "ready_after_restart_s" not in text
    native = tables.service(service_document(tmp_path, "ok", []))
    assert "| step | seconds | verdict | what it found |" in native
    assert "| `systemd.ready_after_restart_s` | 8.100 |" in native


def test_two_results_can_share_a_page() -> None:
    page = readme.page_of("service_arm64")
    assert page == readme.page_of("service")
    text = readme.pages()[page]
    assert [text.count(f"<!-- figures: {name} -->") for name in ("service", "service_arm64")] == [1, 1]
    assert text.count("`scripts/test-systemd arm64`, on ") == 1
