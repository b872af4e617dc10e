"""The cache of the benchmarks' models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITEDGE_CACHE_DIR", str(tmp_path))
    return tmp_path / "benchmarks"


def test_files_are_made_once(folder: Path) -> None:
    made = {"splitedge int8": b"ours", "ONNX Runtime float": b"theirs"}
    calls = []
    for _ in range(2):
        assert cache.kept("net", lambda: calls.append(1) or made) == made
    assert len(calls) == 1
    assert cache.kept("other", lambda: {"a": b""}) == {"a": b""}


def test_files_of_other_sources_are_not_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(6):
        monkeypatch.setattr(cache, "fingerprint", lambda i=i: f"{i:016}")
        assert cache.kept("net", lambda i=i: {"n": bytes([i])}) == {"n": bytes([i])}
    assert len(list(folder.iterdir())) == 2  # the newest few stay


def test_the_fingerprint_sees_sources_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cache._SOURCES:
        shutil.copytree(cache._ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    seen = {cache.fingerprint()}
    monkeypatch.setattr(cache, "_ROOT", tmp_path)
    assert cache.fingerprint() in seen
    with (tmp_path / "calibration" / "lowering" / "lower.py").open("a") as source:
        source.write("\n")
    seen.add(cache.fingerprint())
    monkeypatch.setattr(cache, "_version", lambda package: "9.9")
    seen.add(cache.fingerprint())
    assert len(seen) == 3


def test_a_half_made_network_is_not_kept(folder: Path) -> None:
    def broken() -> dict[str, bytes]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.kept("net", broken)
    assert cache.kept("net", lambda: {"a": b"1"}) == {"a": b"1"}


def test_without_a_place_files_are_made_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPLITEDGE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="cannot cache"):
        assert cache.kept("net", lambda: {"a": b"1"}) == {"a": b"1"}
