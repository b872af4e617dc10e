"""What the doctor says of other backends, from the profile that is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from device_profiles import save
from device_profiles.schema import BackendTime
from edge_agent.config import Settings
from edge_agent.doctor.other_backends import other_backends
from tests.round_profile import round_profile


def kept(folder: Path, *rows: BackendTime, name: str = "profile-0123456789abcdef.json") -> Settings:
    profile = round_profile()
    profile.backends = list(rows)
    save(profile, folder / name)
    return Settings(cache_dir=str(folder))


@pytest.fixture(autouse=True)
def _no_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("SPLITEDGE_CACHE_DIR", str(tmp_path / "other"))


def test_nothing_is_said_without_a_profile_or_its_backends(tmp_path: Path) -> None:
    assert other_backends(Settings(cache_dir=str(tmp_path))) is None
    assert other_backends(kept(tmp_path)) is None
    (tmp_path / "profile-0123456789abcdef.json").write_text("{")
    assert other_backends(Settings(cache_dir=str(tmp_path))) is None
    assert other_backends(Settings(profile=str(tmp_path / "none.json"))) is None


NATIVE = BackendTime("native", "0.1.0", 4, 2.0)


def test_a_faster_backend_is_named_with_its_speed(tmp_path: Path) -> None:
    found = other_backends(kept(tmp_path, NATIVE, BackendTime("onnxruntime-cuda", "1.20", 4, 0.8)))
    assert found is not None
    assert found.verdict == "ok"
    assert "onnxruntime-cuda" in found.found
    assert "2.5 times" in found.found


@pytest.mark.parametrize("ms", [1.7, 2.0, 9.0])
def test_a_backend_that_is_hardly_faster_is_not_recommended(tmp_path: Path, ms: float) -> None:
    found = other_backends(kept(tmp_path, NATIVE, BackendTime("litert", "2.0", 4, ms)))
    assert found is not None
    assert "times as fast" not in found.found


def test_a_failure_is_told(tmp_path: Path) -> None:
    rows = [NATIVE, BackendTime("litert", "2.0", 4, None, "SIGILL ended the process")]
    found = other_backends(kept(tmp_path, *rows))
    assert found is not None
    assert "litert fails: SIGILL" in found.found


def test_the_named_profile_counts_before_the_newest_that_is_kept(tmp_path: Path) -> None:
    settings = kept(tmp_path, NATIVE, BackendTime("litert", "2.0", 4, 0.5))
    kept(tmp_path, NATIVE, BackendTime("tflite", "2.0", 4, 0.5), name="profile-aaaaaaaaaaaaaaaa.json")
    os.utime(tmp_path / "profile-0123456789abcdef.json", (1, 1))
    kept(tmp_path, NATIVE, BackendTime("onnxruntime", "2.0", 4, 0.5), name="named.json")
    newest = other_backends(settings)
    named = other_backends(Settings(cache_dir=str(tmp_path), profile=str(tmp_path / "named.json")))
    assert newest is not None
    assert named is not None
    assert newest.found.startswith("tflite ")
    assert named.found.startswith("onnxruntime ")
