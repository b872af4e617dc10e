from __future__ import annotations

import os

import pytest

from edge_agent import errors, limits
from edge_agent.cache import Cache
from edge_agent.head.segment import digest
from edge_agent.protocol.messages import SegmentRef


def put(cache: Cache, data: bytes, age: float = 0) -> SegmentRef:
    ref = SegmentRef(digest(data), len(data))
    cache.path(ref).write_bytes(data)
    os.utime(cache.path(ref), (1e9 - age, 1e9 - age))
    return ref


def test_a_whole_segment_is_read_and_listed(tmp_path):
    cache = Cache(tmp_path / "made" / "here")
    ref = put(cache, b"segment")
    assert cache.read(ref) == b"segment"
    assert cache.held() == [ref.sha256]
    assert cache.read(SegmentRef("0" * 64, 7)) is None


@pytest.mark.parametrize("damage", [b"", b"segmen", b"segmenT", b"segments"])
def test_a_damaged_segment_is_removed_to_be_fetched_again(tmp_path, damage):
    cache = Cache(tmp_path)
    ref = put(cache, b"segment")
    cache.path(ref).write_bytes(damage)
    assert cache.read(ref) is None
    assert cache.held() == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "", "0" * 63, "0" * 64 + "\n"])
def test_a_name_that_is_no_hash_never_becomes_a_path(tmp_path, name):
    with pytest.raises(errors.ProtocolError, match="SHA-256"):
        Cache(tmp_path).path(SegmentRef(name, 1))


def test_only_the_newest_are_kept_and_other_files_are_left_alone(tmp_path):
    cache = Cache(tmp_path)
    refs = [put(cache, bytes([i]), age=i) for i in range(limits.CACHED_SEGMENTS + 3)]
    (tmp_path / "notes.txt").write_text("mine")
    cache.prune()
    assert cache.held() == [ref.sha256 for ref in refs[: limits.CACHED_SEGMENTS]]
    assert (tmp_path / "notes.txt").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StoreError, match=r"the cache folder .*file cannot be used .*set `cache_dir`"):
        Cache(tmp_path / "file")
