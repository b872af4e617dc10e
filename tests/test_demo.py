"""What the demo prints."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks.test_ways import FOUND, FRAMES


@pytest.fixture
def demo(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``scripts/demo.py`` with a terminal of 80 columns."""
    spec = importlib.util.spec_from_file_location("demo", root / "scripts" / "demo.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "console", module.Console(width=80))
    return module


def test_its_tables_fit_eighty_columns(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    demo.show(FOUND, FRAMES)
    demo.show_answers(FOUND, FRAMES)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    for row in demo.ways.rows(FOUND, FRAMES):
        assert row["bytes/frame"] in out
        assert row["as float"] in out
        assert row["points lost"] not in out


def test_a_long_title_hides_no_column(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    long = [dataclasses.replace(way, title="split after blocks.12._project_conv of the network") for way in FOUND]
    demo.show(long, FRAMES)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    heading = next(line.split() for line in lines if "bytes/frame" in line)
    assert heading == ["way", "bytes/frame", "ms/frame", "as", "float", "right", "bound"]


def test_each_step_is_timed_and_printed_on_a_line(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    steps = demo.Steps()
    with steps("network", "EfficientNet-Lite0 [of ten] layers"):
        pass
    assert list(steps.seconds) == ["network"]
    (line,) = capsys.readouterr().out.splitlines()
    assert "[of ten]" in line
    assert len(line) <= 80
    assert set(demo.figures(steps, FOUND, FRAMES)) >= {"demo.network_s", "demo.seconds", "ways.split.bytes"}


def test_it_tells_how_to_go_on(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    demo.show_next(demo.ROOT / "store", demo.Photo(demo.ROOT / "a.jpg", 1))
    out = capsys.readouterr().out
    for command in ("edge-server serve --store store", "edge-server token", "edge-agent plan", "edge-agent infer"):
        assert command in out
