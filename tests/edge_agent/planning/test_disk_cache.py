from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from edge_agent.config import Settings
from edge_agent.planning import disk_cache
from edge_agent.planning.disk_cache import DiskCache
from splitedge import errors, limits
from splitedge.head.segment import build
from tests.raising import raises
from tests.segment_builder import Builder


def put(folder: Path, name: str, age: float = 0) -> Path:
    path = folder / name
    path.write_bytes(b"segment")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_segments_are_listed_the_last_used_first(tmp_path):
    cache = DiskCache(tmp_path / "made" / "here")
    old = put(cache.directory, "a" * 64 + ".segment", age=100)
    put(cache.directory, "b" * 64 + ".segment", age=50)
    for other in ("c" * 63 + ".segment", "d" * 64 + ".part", "profile-1.json"):
        put(cache.directory, other)
    assert cache.held() == ["b" * 64, "a" * 64]
    assert cache.read(old) == b"segment"
    assert cache.held() == ["a" * 64, "b" * 64]


def test_only_the_last_used_are_kept_and_other_files_are_left_alone(tmp_path):
    cache = DiskCache(tmp_path)
    names = [f"{i:064x}" for i in range(limits.CACHED_SEGMENTS + 3)]
    for age, name in enumerate(names):
        put(tmp_path, name + ".segment", age)
    put(tmp_path, "a" * 64 + ".part", age=100_000)
    put(tmp_path, f"{'a' * 64}-{'b' * 64}.part", age=100_000)
    put(tmp_path, "b" * 64 + ".part")
    put(tmp_path, ".new-0123456789abcdef", age=100_000)
    put(tmp_path, "notes.txt", age=100_000)
    put(tmp_path, "profile-of-mine.json", age=100_000)
    profiles = [f"profile-{i:016x}.json" for i in range(limits.CACHED_PROFILES + 2)]
    for age, name in enumerate(profiles):
        put(tmp_path, name, age)
    cache.prune()
    assert cache.held() == names[: limits.CACHED_SEGMENTS]
    assert {path.name for path in tmp_path.iterdir()} >= {"b" * 64 + ".part", "notes.txt"}
    assert not [*tmp_path.glob("a*.part"), *tmp_path.glob(".new-*")]
    assert {path.name for path in tmp_path.glob("profile-*")} == {
        "profile-of-mine.json",
        *profiles[: limits.CACHED_PROFILES],
    }


@pytest.mark.parametrize("kind", ["profile", "timings", "rehearsals"])
def test_measurements_of_old_builds_of_the_kernels_are_pruned(tmp_path, kind):
    cache = DiskCache(tmp_path)
    names = [f"{kind}-{i:016x}.json" for i in range(limits.CACHED_PROFILES + 2)]
    for age, name in enumerate(names):
        put(tmp_path, name, age)
    cache.prune()
    assert {path.name for path in tmp_path.iterdir()} == set(names[: limits.CACHED_PROFILES])


def test_the_nearest_is_of_the_same_model_and_if_possible_of_the_same_cut(tmp_path):
    def segment(name: str, model: str, cut: str, age: float) -> Path:
        builder = Builder([4])
        made = builder.finish(model=model, cut=cut)
        path = put(tmp_path, name * 64 + ".segment", age)
        path.write_bytes(build(made.header, made.blob.tobytes()))
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    cache = DiskCache(tmp_path)
    assert cache.nearest("net", "conv1") is None
    put(tmp_path, "0" * 64 + ".segment")
    segment("a", "other", "conv1", 1)
    assert cache.nearest("net", "conv1") is None
    late = segment("b", "net", "conv9", 20)
    segment("c", "net", "conv8", 30)
    assert cache.nearest("net", "conv1") == late
    same = segment("d", "net", "conv1", 40)
    segment("e", "net", "conv1", 50)
    assert cache.nearest("net", "conv1") == same


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with raises(errors.StoreError, reason="cache-folder"):
        DiskCache(tmp_path / "file")
    cache = DiskCache(tmp_path / "folder")
    with raises(errors.StoreError, reason="cache-folder"):
        cache.read(tmp_path / "folder" / "absent.segment")
    (tmp_path / "folder").rmdir()
    with raises(errors.StoreError, reason="cache-folder"):
        cache.held()


def test_a_service_whose_cache_cannot_be_written_works_in_memory_with_the_measurements_of_the_cache(
    tmp_path, monkeypatch
):
    full, memory = tmp_path / "full", tmp_path / "memory"
    full.mkdir()
    memory.mkdir()
    settings, environ = Settings(cache_dir=str(full)), {"RUNTIME_DIRECTORY": str(memory)}
    put(full, "profile-0123456789abcdef.json")
    put(full, "a" * 64 + ".segment")
    assert disk_cache.writable(settings, environ) == (settings, None)
    unusable = Settings(cache_dir=str(full / "a"))
    (full / "a").write_text("a file in the place of the folder")
    found, error = disk_cache.writable(unusable, environ)
    assert (found.cache_dir, error is not None and error.data["reason"]) == (str(memory), "cache-folder")
    assert not any(memory.iterdir())
    assert disk_cache.writable(unusable, {}) == (unusable, None)

    def no_space(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.TemporaryFile", no_space)
    found, error = disk_cache.writable(settings, environ)
    assert (found.cache_dir, error is not None) == (str(memory), True)
    assert [path.name for path in memory.iterdir()] == ["profile-0123456789abcdef.json"]
