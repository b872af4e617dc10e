"""What `--fix` changes, and what it leaves alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_agent.config import Settings
from edge_agent.doctor import fixes
from splitedge import limits


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITEDGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SPLITEDGE_KERNELS", "jit")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_missing_cache_folder_is_created(tmp_path: Path) -> None:
    settings = Settings(cache_dir=str(tmp_path / "a/b"))
    found = fixes.cache_folder(settings)
    assert found is not None
    assert found.done
    assert (mode(tmp_path / "cache"), mode(tmp_path / "a/b")) == (0o700, 0o700)
    assert fixes.cache_folder(settings) is None


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = fixes.cache_folder(Settings(cache_dir=str(tmp_path / "file/b")))
    assert found is not None
    assert not found.done
    assert (tmp_path / "cache").is_dir()  # the other one


def test_only_this_user_may_write_to_the_cache(tmp_path: Path) -> None:
    kernels, other = tmp_path / "cache/kernels-0123456789abcdef", tmp_path / "cache/other"
    for folder in (kernels, other):
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    (tmp_path / "cache").chmod(0o775)
    found = fixes.folder_modes(Settings())
    assert found is not None
    assert [mode(path) for path in (tmp_path / "cache", kernels, other)] == [0o755, 0o755, 0o777]
    assert fixes.folder_modes(Settings()) is None


def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(0o777)
    (tmp_path / "cache").symlink_to(target)
    assert fixes.folder_modes(Settings()) is None
    assert mode(target) == 0o777


def test_other_users_lose_the_token_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("se_x")
    path.chmod(0o664)
    found = fixes.token_mode(Settings(token_file=str(path)))
    assert found is not None
    assert (found.done, mode(path)) == (True, 0o640)
    assert fixes.token_mode(Settings(token_file=str(path))) is None
    assert fixes.token_mode(Settings(token_file=str(tmp_path / "absent"))) is None
    assert fixes.token_mode(Settings()) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("se_x")
    path.chmod(0o644)
    os.chown(path, 12345, 12345)
    found = fixes.token_mode(Settings(token_file=str(path)))
    assert found is not None
    assert (found.done, mode(path)) == (False, 0o644)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write to the folder of another user")
def test_root_makes_nothing_in_the_folder_of_another_user(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    found = [fixes.cache_folder(Settings()), fixes.compiled_kernels(Settings())]
    assert [one and one.done for one in found] == [False, False]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_kernels_are_not_compiled_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMPILE_MEMORY", 1 << 60)
    found = fixes.compiled_kernels(Settings())
    assert found is not None
    assert not found.done
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_compilation_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WARMUP_TIMEOUT", 0.5)
    found = fixes.compiled_kernels(Settings())
    assert found is not None
    assert not found.done


@pytest.mark.thorough
def test_missing_kernels_are_compiled() -> None:
    found = fixes.compiled_kernels(Settings())
    assert found is not None
    assert found.done, found.said
    assert fixes.compiled_kernels(Settings()) is None


def test_what_is_in_order_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache/numpy").mkdir()
    monkeypatch.setattr(fixes, "FIXES", {name: fix for name, fix in fixes.FIXES.items() if "kernels" not in name})
    told: list[str] = []
    assert fixes.apply(Settings(), told.append) == []
    assert told == list(fixes.FIXES)
