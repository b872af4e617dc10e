"""What calibration keeps for the next one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from calibration.bundle.cache import Cache, key, programs, remembered
from splitedge import errors, limits
from tests.raising import raises


def test_what_is_kept_is_made_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> list[float]:
        calls.append(1)
        return [0.1, 1e-300, 2.0]

    cache = Cache(tmp_path / "made" / "anew")
    assert [remembered(cache, "a", list[float], make) for _ in range(3)] == [[0.1, 1e-300, 2.0]] * 3
    assert len(calls) == 1
    assert remembered(None, "a", list[float], make) == [0.1, 1e-300, 2.0]
    assert len(calls) == 2
    assert [path.name for path in cache.folder.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d[:7], lambda d: b"", lambda d: d[:-1] + bytes([d[-1] ^ 1])]
)
def test_a_damaged_entry_is_none(tmp_path: Path, damage: object) -> None:
    cache = Cache(tmp_path)
    cache.write("a", b"some bytes")
    assert cache.read("a") == b"some bytes"
    (tmp_path / "a").write_bytes(damage((tmp_path / "a").read_bytes()))  # type: ignore[operator]
    assert cache.read("a") is None
    cache.write("a", b"others")
    assert cache.read("a") == b"others"


def test_names_tell_apart_whatever_differs() -> None:
    array = np.arange(4, dtype=np.int8)
    parts: list[list[bytes | str | np.ndarray]] = [
        [], ["ab"], ["a", "b"], [b"a", b"bc"], [b"ab", b"c"], [array], [array.reshape(2, 2)], [array.view(np.uint8)], [array, array],
    ]  # fmt: skip
    names = [key(kind, *some) for kind in ("x", "y") for some in parts]
    assert len(set(names)) == len(names)
    assert key("x", array.reshape(2, 2).T) == key("x", np.array([[0, 2], [1, 3]], np.int8))


def test_a_program_that_changed_finds_nothing_of_the_old(tmp_path: Path) -> None:
    found = []
    for name, source in (("a", "RATES = (1, 2)"), ("b", "RATES = (1, 2)"), ("c", "RATES = (1, 3)")):
        (tmp_path / name / "calibration" / "layers").mkdir(parents=True)
        (tmp_path / name / "calibration" / "layers" / "x.py").write_text(source)
        found.append(programs(tmp_path / name))
    assert found[0] == found[1] != found[2]


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, now = Cache(tmp_path), time.time()
    for i, name in enumerate(("a", "b", "c", "d")):
        cache.write(name, bytes(1000))
        os.utime(tmp_path / name, (now - 100 + i, now - 100 + i))
    cache.read("a")
    for name, age in ((".new-old", limits.LEFTOVER_AGE + 1), (".new-now", 0)):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (now - age, now - age))
    monkeypatch.setattr(limits, "CALIBRATION_CACHE_BYTES", 2500)
    cache.prune()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new-now", "a", "d"]
    Cache(tmp_path / "missing").prune()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file")
    for use in (lambda: cache.write("a", b""), lambda: cache.read("a")):
        with raises(errors.StoreError, reason="cache-folder"):
            use()
