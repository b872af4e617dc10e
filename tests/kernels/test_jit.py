"""The compiled-code cache: never stale, never needed, warm when it is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kernels
from kernels import isa, jit

PROGRAM = """
import json, warnings
from kernels import jit, user
result = user.twice_helped(20)
stats = user.twice_helped.stats
print(json.dumps([result, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), jit.CACHE_PROBLEM, jit.CACHE_DIR.name]))
"""
HELPER = "from kernels.jit import inline\n@inline\ndef helped(x):\n    return x + {}\n"
USER = "from kernels.helper import helped\nfrom kernels.jit import kernel\n@kernel\ndef twice_helped(x):\n    return 2 * helped(x)\n"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the real plumbing with one kernel and, in another file, one helper."""
    copy = tmp_path / "kernels"
    copy.mkdir()
    for name in ("__init__.py", "isa.py", "jit.py"):
        shutil.copy(Path(kernels.__file__).parent / name, copy / name)
    (copy / "helper.py").write_text(HELPER.format(1))
    (copy / "user.py").write_text(USER)
    return copy


def run(package: Path, **environment: str) -> tuple[int, int, int, str, str]:
    """Result, cache hits, cache misses, the cache's problem and its name, in a fresh process."""
    settings = {"SPLITEDGE_CACHE_DIR": str(package.parent / "cache"), **environment}
    child = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": str(package.parent)} | settings,
        capture_output=True,
        text=True,
        check=True,
        cwd=package.parent,
    )
    result: tuple[int, int, int, str, str] = tuple(json.loads(child.stdout))
    return result


def test_an_edited_helper_gives_the_new_result(package: Path) -> None:
    before = run(package)
    (package / "helper.py").write_text(HELPER.format(2))
    after = run(package)
    assert (before[0], after[0]) == (42, 44)
    assert before[4] != after[4]


def test_a_warm_start_compiles_nothing(package: Path) -> None:
    assert run(package)[:3] == (42, 0, 1)
    assert run(package)[:3] == (42, 1, 0)


def test_without_a_writable_cache_kernels_still_run(package: Path) -> None:
    (package.parent / "file").write_text("not a folder")
    result, _, _, problem, _ = run(package, SPLITEDGE_CACHE_DIR=str(package.parent / "file" / "cache"))
    assert result == 42
    assert problem


def test_a_disk_that_fills_up_costs_the_cache_and_nothing_else(package: Path) -> None:
    (package / "full.py").write_text(
        "import warnings\n"
        "from kernels.user import twice_helped\n"
        "def no_room(*_):\n"
        "    raise OSError(28, 'No space left on device')\n"
        "twice_helped._cache._impl.__class__.reduce = no_room\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    print(twice_helped(20), seen[0].message)\n"
    )
    child = subprocess.run(
        [sys.executable, "-P", "-m", "kernels.full"],
        env=os.environ | {"PYTHONPATH": str(package.parent), "SPLITEDGE_CACHE_DIR": str(package.parent / "cache")},
        capture_output=True,
        text=True,
        check=True,
        cwd=package.parent,
    )
    assert child.stdout.startswith("42 compiled kernels cannot be kept in")
    assert "No space left on device" in child.stdout


def test_the_service_managers_cache_directory_is_used(package: Path) -> None:
    run(package, SPLITEDGE_CACHE_DIR="", CACHE_DIRECTORY=str(package.parent / "given"))
    assert list((package.parent / "given").glob("kernels-*/**/*.nbi"))


def test_the_fingerprint_depends_on_every_source_file(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    one = jit.fingerprint(tmp_path)
    assert one == jit.fingerprint(tmp_path)
    (tmp_path / "b.py").write_text("")
    two = jit.fingerprint(tmp_path)
    (tmp_path / "a.py").write_text("x = 2")
    assert len({one, two, jit.fingerprint(tmp_path)}) == 3


def test_an_instruction_set_that_is_not_there_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITEDGE_ISA", "avx1024")
    with pytest.warns(RuntimeWarning, match="avx1024 is not available here"):
        assert isa.choose() == isa.best(isa.host_features())


def aged(path: Path, days: float) -> Path:
    """``path``, last used so long ago."""
    then = time.time() - days * 86_400
    os.utime(path, (then, then))
    return path


def test_caches_of_other_versions_go_when_nothing_has_used_them_for_a_month(package: Path) -> None:
    cache = package.parent / "cache"
    names = {"kernels-0123456789abcdef": 31, "kernels-fedcba9876543210": 29, "kernels-of-mine": 99, "segments": 99}
    for name in names:
        (cache / name / "kernels_1").mkdir(parents=True)
        (cache / name / "kernels_1" / "user.twice.nbc").write_text("code")
    (cache / "kernels-00000000000000ff").symlink_to(cache / "segments")
    for name, days in names.items():
        aged(cache / name, days)
    own = run(package)[4]
    assert {path.name for path in cache.iterdir()} == {own, "kernels-00000000000000ff", *names} - {
        "kernels-0123456789abcdef"
    }
    assert (cache / "segments/kernels_1/user.twice.nbc").exists()


def test_a_start_counts_as_use_and_one_s_own_cache_never_goes(package: Path) -> None:
    own = package.parent / "cache" / run(package)[4]
    aged(own, 99)
    assert run(package)[1:3] == (1, 0)
    assert time.time() - own.stat().st_mtime < 86_400
    (package / "helper.py").write_text(HELPER.format(2))
    run(package)  # another version
    assert own.exists()


def test_a_cache_that_cannot_be_removed_stops_no_start(package: Path) -> None:
    jit.prune(package.parent / "nowhere" / "kernels-0123456789abcdef")
    cache = package.parent / "cache"
    for i in range(20):
        (cache / f"kernels-{i:016x}").mkdir(parents=True)
        aged(cache / f"kernels-{i:016x}", 31)
    assert run(package)[0] == 42
    assert 0 < len(list(cache.iterdir())) - 1 < 20  # some at each start


def test_a_cache_that_others_may_write_to_is_not_used(package: Path) -> None:
    """What lies in the cache is run."""
    name = run(package)[4]
    (package.parent / "cache" / name).chmod(0o777)
    result, hits, _, problem, _ = run(package)
    assert (result, hits, problem) == (42, 0, "others may write to it")
