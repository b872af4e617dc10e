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

pytestmark = pytest.mark.thorough  # each test starts processes that compile

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
    for name in ("__init__.py", "cache.py", "isa.py", "jit.py", "native.py"):
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


def test_an_edited_helper_in_a_subfolder_gives_the_new_result(package: Path) -> None:
    room = package / "room"
    room.mkdir()
    (room / "__init__.py").touch()
    (package / "helper.py").rename(room / "helper.py")
    (package / "user.py").write_text(USER.replace("kernels.helper", "kernels.room.helper"))
    before = run(package)
    (room / "helper.py").write_text(HELPER.format(2))
    after = run(package)
    assert (before[0], after[0]) == (42, 44)
    assert before[4] != after[4]


def test_a_tilde_in_the_cache_folder_is_the_home(package: Path) -> None:
    home = package.parent / "home"
    result, _, _, problem, name = run(package, HOME=str(home), SPLITEDGE_CACHE_DIR="~/kept")
    assert (result, problem) == (42, "")
    assert (home / "kept" / name).is_dir()
    assert not (package.parent / "~").exists()


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


DAMAGE = """
import json, sys, warnings
from pathlib import Path
from kernels import jit, user

def fresh():
    return jit.kernel(user.twice_helped.py_func)

def call():
    # Result, hits, and warnings of a kernel that nothing has loaded yet.
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        kernel = fresh()
        return kernel(20), sum(kernel.stats.cache_hits.values()), [str(one.message) for one in seen]

def points(size):
    return sorted({0, 1, 7, 15, 16, 17, 40, size // 3, size // 2, size - 17, size - 1} & set(range(size)))

outcomes = []
user.twice_helped(20)
for kind in ("nbi", "nbc"):
    for change in ("cut", "flip", "overwrite", "append"):
        [path] = jit.CACHE_DIR.glob(f"*/*.{kind}")
        for at in points(path.stat().st_size):
            [path] = jit.CACHE_DIR.glob(f"*/*.{kind}")
            good = path.read_bytes()
            at = min(at, len(good) - 1)  # what is compiled again may be some bytes shorter
            bad = {
                "cut": good[:at],
                "flip": good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :],
                "overwrite": good[:at] + bytes(len(good) - at),
                "append": good + bytes(at + 1),
            }[change]
            path.write_bytes(bad)
            outcomes.append([call(), call()] if bad != good else None)
print(json.dumps([each for each in outcomes if each]))
"""


@pytest.mark.slow
def test_damaged_files_are_removed_and_their_kernel_is_compiled_again(package: Path) -> None:
    """Each file cut, changed and grown in many places; LLVM would abort the process on some."""
    child = start(package, "-c", DAMAGE)
    output, complaint = child.communicate(timeout=200)
    assert child.returncode == 0, complaint
    outcomes = json.loads(output)
    assert len(outcomes) > 70
    for (result, hits, said), again in outcomes:
        assert (result, hits, len(said)) == (42, 0, 1)
        assert "damaged" in said[0]
        assert again == [42, 1, []]


def start(package: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    settings = {"PYTHONPATH": str(package.parent), "SPLITEDGE_CACHE_DIR": str(package.parent / "cache"), **environment}
    return subprocess.Popen(
        [sys.executable, "-P", *arguments], env=os.environ | settings, cwd=package.parent, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_an_emptied_file_costs_a_new_process_one_compilation(package: Path) -> None:
    run(package)
    for file in ("nbi", "nbc"):
        [path] = (package.parent / "cache").rglob(f"*.{file}")
        path.write_bytes(b"")
        assert run(package)[:3] == (42, 0, 1)
        assert run(package)[:3] == (42, 1, 0)


def test_a_folder_in_the_place_of_a_file_stops_nothing(package: Path) -> None:
    run(package)
    for path in list((package.parent / "cache").rglob("*.nb?")):
        path.unlink()
        path.mkdir()
    assert run(package)[0] == 42


def test_processes_that_compile_at_once_do_not_mix_up_their_code(package: Path) -> None:
    """Each compiles for another type; numba's own names of files are counted up, and two processes count alike."""
    calls = {"20": 42, "20.0": 42.0, "np.float32(20)": 42.0, "np.arange(2)": [2, 4]}
    program = "import json, numpy as np\nfrom kernels import user\nprint(json.dumps(np.asarray(user.twice_helped({})).tolist()))"
    for _ in range(2):  # compiled, then loaded
        children = {call: start(package, "-W", "error", "-c", program.format(call)) for call in calls}
        for call, child in children.items():
            output, complaint = child.communicate(timeout=60)
            assert child.returncode == 0, complaint
            assert json.loads(output) == calls[call]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NUMBA_CPU_NAME", "generic"), ("NUMBA_CPU_FEATURES", "-avx2"), ("NUMBA_DISABLE_JIT", "1"), ("NUMBA_OPT", "0"),
        ("NUMBA_BOUNDSCHECK", "1"), ("NUMBA_CACHE_DIR", "/nowhere"), ("NUMBA_CACHE_LOCATOR_CLASSES", "nonsense"),
        ("NUMBA_NUM_THREADS", "-3"), ("NUMBA_DEBUG", "1"),
    ],
)  # fmt: skip
def test_numba_s_own_variables_decide_nothing(package: Path, name: str, value: str) -> None:
    plain = run(package)
    child = start(package, "-c", PROGRAM, **{name: value})
    output, complaint = child.communicate(timeout=60)
    assert child.returncode == 0, complaint
    assert json.loads(output) == [42, 1, 0, "", plain[4]]
    assert name in complaint


def test_what_a_process_of_ours_told_numba_is_no_user_s_wish() -> None:
    environment = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "", "HOME": "/root"}
    assert isa.take_over(environment) == []
    assert environment == {"HOME": "/root"}
    assert isa.take_over({"NUMBA_CPU_NAME": "generic", "NUMBA_OPT": "9"}) == ["NUMBA_CPU_NAME", "NUMBA_OPT"]


def test_without_a_compiler_the_refusal_names_the_variable(package: Path) -> None:
    child = start(package, "-c", "import numba\nfrom kernels import user", NUMBA_DISABLE_JIT="1")
    assert "PlatformError: NUMBA_DISABLE_JIT" in child.communicate(timeout=60)[1]


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
    with pytest.warns(RuntimeWarning, match="avx1024"):
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
