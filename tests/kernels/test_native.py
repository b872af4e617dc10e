"""Libraries of kernels: which are used, what they compute, and which arguments they refuse."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from kernels import codec, isa, native
from kernels.native import Array, Manifest
from splitedge.errors import PlatformError
from tests.kernels import golden
from tests.raising import raises

ROOT = Path(__file__).parents[2]

GOLDEN = """
import json, sys

sys.modules["numba"] = sys.modules["llvmlite"] = None  # importing them fails
from tests.kernels import golden

print(json.dumps({group: golden.digest(group) for group in golden.GROUPS}))
"""
PEAK = """
import sys

sys.modules["numba"] = sys.modules["llvmlite"] = None  # importing them fails
from kernels import peak

print(peak.gops())
"""
ARGUMENTS = """
import json, sys
import numpy as np
from kernels import codec, native
from kernels.rans import static

data, out = np.arange(8, dtype=np.uint8), np.zeros(8, np.uint8)
fixed = data.copy()
fixed.flags.writeable = False
found = {}
for name, call in {
    "fits": lambda: codec.unpack(data, 8, out),
    "dtype": lambda: codec.unpack(data.view(np.int8), 8, out),
    "rank": lambda: codec.unpack(data.reshape(2, 4), 8, out),
    "list": lambda: codec.unpack([1, 2], 8, out),
    "strided": lambda: codec.unpack(np.zeros(16, np.uint8)[::2], 8, out),
    "fixed": lambda: codec.unpack(data, 8, fixed),
    "unaligned": lambda: codec.rotate(np.zeros(40, np.uint8)[1:33].view(np.float32), 8, 1, np.zeros(8, np.float32)),
    "count": lambda: codec.unpack(data, 8),
    "none": lambda: codec.unpack(None, 8, out),
    "float": lambda: codec.unpack(data, 8.5, out),
}.items():
    try:
        found[name] = int(call())
    except Exception as error:
        found[name] = type(error).__name__
print(json.dumps([found, out.tolist(), str(native.LIBRARY.path), [one for one in ("numba", "llvmlite") if one in sys.modules]]))
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library for this machine."""
    place = tmp_path_factory.mktemp("libraries")
    done = python(ROOT, "-m", "kernels.build", "--isa", isa.ISA, str(place))
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, libraries: Path) -> Path:
    """A copy of the packages that kernels need, with the library."""
    place = tmp_path_factory.mktemp("tree")
    for name in ("kernels", "splitedge"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "libraries"))
    shutil.copytree(libraries, place / "kernels" / "libraries" / native.FOLDER.name)
    return place


def python(place: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python with the packages of ``place`` before all others."""
    environment = os.environ | {"PYTHONPATH": f"{place}:{ROOT}", native.VARIABLE: ""} | variables
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=place, capture_output=True, text=True, timeout=600
    )


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_library_computes_the_committed_hashes_without_a_compiler(tree: Path) -> None:
    done = python(tree, "-c", GOLDEN)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == golden.expected()


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_library_loads_on_systems_with_large_pages(libraries: Path) -> None:
    check = (
        "import sys, pathlib, wheel_check as w; print(w.loads_on_large_pages(pathlib.Path(sys.argv[1]).read_bytes()))"
    )
    done = python(ROOT / "scripts", "-c", check, str(libraries / f"{isa.ISA}.so"))
    assert done.stdout == "True\n", done.stderr


def test_a_set_of_another_machine_is_refused(tmp_path: Path) -> None:
    done = python(ROOT, "-m", "kernels.build", "--machine", "aarch64", "--isa", "avx2", str(tmp_path))
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_arguments_that_do_not_fit_are_refused(tree: Path) -> None:
    done = python(tree, "-c", ARGUMENTS)
    assert done.returncode == 0, done.stderr
    found, out, path, compilers = json.loads(done.stdout)
    assert found.pop("fits") == 0
    assert found.pop("float") == "error"  # of struct
    assert set(found.values()) == {"TypeError"}
    assert out == list(range(8))
    assert Path(path) == tree / "kernels" / "libraries" / native.FOLDER.name / f"{isa.ISA}.so"
    assert not compilers


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_kernel_of_a_library_equals_the_compiled_one(libraries: Path) -> None:
    library, reason = native.usable(libraries, isa.ISA)
    assert library is not None, reason
    assert len(library.sha256) == 64
    codes = np.arange(0, 256, 3, dtype=np.uint8) % 16
    for bits in range(4, 9):
        one, other = (np.zeros((len(codes) * bits + 7) // 8, np.uint8) for _ in range(2))
        assert library.kernel("codec.bits.pack")(codes, bits, one) == 0
        codec.pack(codes, bits, other)
        np.testing.assert_array_equal(one, other)
    pack = library.kernel("codec.bits.pack")
    fixed = one.copy()
    fixed.flags.writeable = False
    for arguments in [
        (codes, 8, fixed),
        (codes[::2], 8, one),
        (codes.view(np.int8), 8, one),
        (codes, 8),
        (None, 8, one),
    ]:
        with pytest.raises(TypeError):
            pack(*arguments)
    with raises(PlatformError, reason="no-kernel"):
        library.kernel("codec.bits.no_kernel")(codes)
    values = np.array([1, 2, np.nan, 4] * 8, np.float32)
    encode = library.kernel("codec.fused.encode")
    zero, scale, none = np.zeros(1, np.float32), np.ones(1, np.float32), np.zeros(0, np.float32)
    assert encode(values, zero, scale, none, 0, 8, np.zeros(32, np.uint8)) == 0  # not finite
    assert encode(np.abs(np.nan_to_num(values)), zero, scale, none, 0, 8, np.zeros(32, np.uint8)) == 1


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_changed_sources_are_compiled_instead(tree: Path) -> None:
    source = tree / "kernels" / "cache.py"
    before = source.read_bytes()
    source.write_bytes(before + b"# changed\n")
    done = python(tree, "-c", "from kernels import native; print(native.LIBRARY, native.REASON)")
    source.write_bytes(before)
    assert done.stdout.startswith("None the libraries in")


def folder_of(place: Path, **changes: Any) -> Path:
    """A folder with a file for the set "neon" that is not a library, and its manifest."""
    data = b"not a library"
    (place / "neon.so").write_bytes(data)
    fields = {"sources": native.sources_hash(), "libraries": {"neon": hashlib.sha256(data).hexdigest()}, "kernels": {}}
    (place / native.MANIFEST).write_bytes(msgspec.json.encode(Manifest(**(fields | changes))))
    for path in (place, *place.iterdir()):
        path.chmod(0o755)
    return place


def test_a_checkout_has_no_library_and_no_reason(tmp_path: Path) -> None:
    assert native.usable(tmp_path, "neon") == (None, "")


@pytest.mark.parametrize("changes", [{"sources": "0"}, {"libraries": {"neon": "0"}}, {"libraries": {}}])
def test_a_library_that_does_not_match_its_manifest_is_not_loaded(tmp_path: Path, changes: dict[str, Any]) -> None:
    library, reason = native.usable(folder_of(tmp_path, **changes), "neon")
    assert library is None
    assert str(tmp_path) in reason


@pytest.mark.parametrize("name", ["neon.so", native.MANIFEST, "."])
def test_a_library_that_others_may_write_is_not_loaded(tmp_path: Path, name: str) -> None:
    path = folder_of(tmp_path) / name
    path.chmod(0o777)
    assert native.usable(tmp_path, "neon") == (None, f"others may write to {path}")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_library_of_another_user_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path)
    os.chown(tmp_path / "neon.so", 12345, -1)
    assert native.usable(tmp_path, "neon")[1].endswith("belongs to another user")


def test_a_damaged_manifest_is_a_reason(tmp_path: Path) -> None:
    (folder_of(tmp_path) / native.MANIFEST).write_text("{")
    assert "unreadable" in native.usable(tmp_path, "neon")[1]


def test_a_file_that_is_no_library_is_a_reason(tmp_path: Path) -> None:
    library, reason = native.usable(folder_of(tmp_path), "neon")
    assert library is None
    assert "cannot be loaded" in reason


def test_records_and_tuples_flatten() -> None:
    record = np.dtype([("a", "<i8"), ("b", "<f4", (3,))])
    array = Array.of(record, 1, writable=True)
    assert array.numpy() == record
    assert str(array) == "record[:]"
    assert Array.of(np.dtype(np.float32), 2, writable=False).numpy() == np.float32
    assert native.flatten([[array, "int64"], "none"]) == [array, "int64", "none"]


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_library_has_the_peak_for_profiles(tree: Path) -> None:
    done = python(tree, "-c", PEAK)
    assert done.returncode == 0, done.stderr
    assert 0.1 < float(done.stdout) < 100_000
