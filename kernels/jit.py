"""Everything about Numba: the decorators `kernel`, `inline` and `macro`, and the cache of compiled code.

Numba's own cache notices a change in the file of a compiled function, but not in the file of a helper, and would run
the old kernel after an upgrade. Therefore the name of the cache directory contains a hash of all kernel sources, the
versions of numba and llvmlite, and the CPU features.

LLVM aborts the process on damaged object code. Therefore each cache file begins with a hash of its contents, which is
checked before the file is used. A file that does not load is removed, and its kernel is compiled again.
"""

from __future__ import annotations

import glob
import hashlib
import io
import itertools
import os
import pickle
import re
import shutil
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import llvmlite
import llvmlite.binding as llvm
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, UserProvidedCacheLocator

from kernels import isa  # before numba: it may set variables that numba reads at import
from kernels.cache import cache_base
from kernels.native import sources_hash
from splitedge.errors import PlatformError

F = TypeVar("F", bound=Callable[..., Any])

_UNUSED_S: Final = 30 * 86_400.0  # a cache of another version is removed if no process has used it for this long
_HASH_BYTES: Final = 16  # before the contents of each file
_PRUNED: Final = 8  # caches to remove at one start, at most: each takes time


def fingerprint(sources: Path) -> str:
    """A hash of everything that compiled code depends on: all ``*.py`` files below ``sources``, compiler versions, and
    the CPU.
    """
    cpu = (
        os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name(),
        os.environ.get("NUMBA_CPU_FEATURES") or sorted(isa.host_features()),
    )
    parts = (sources_hash(sources), numba.__version__, llvmlite.__version__, isa.ISA, cpu)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _writable(directory: Path) -> str:
    """Why ``directory`` cannot hold the cache, or an empty string after marking it as used now.

    Its contents are executed, so no other user may write to it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return "others may write to it"
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"splitedge")
        os.utime(directory)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def prune(own: Path) -> None:
    """Remove caches of other versions beside ``own`` that no process has started to use for `_UNUSED_S`.

    A process that still runs keeps the code that it has loaded; code that it compiles later is not cached. Caches that
    cannot be listed or removed only take disk space: the next start tries again.
    """
    with suppress(OSError):
        for path in itertools.islice(_unused(own), _PRUNED):
            shutil.rmtree(path, ignore_errors=True)


def _unused(own: Path) -> Iterator[Path]:
    with os.scandir(own.parent) as entries:
        for entry in entries:
            ours = re.fullmatch(r"kernels-[0-9a-f]{16}", entry.name) and entry.is_dir(follow_symlinks=False)
            if ours and entry.name != own.name:
                status = entry.stat(follow_symlinks=False)
                if status.st_uid == os.getuid() and time.time() - status.st_mtime > _UNUSED_S:
                    yield Path(entry.path)


CACHE_DIR: Final = cache_base() / f"kernels-{fingerprint(Path(__file__).parent)}"
#: Why compiled kernels cannot be kept, or an empty string. If they cannot, every start compiles them again.
CACHE_PROBLEM: Final = _writable(CACHE_DIR)

if not CACHE_PROBLEM:
    prune(CACHE_DIR)

if numba.config.DISABLE_JIT:  # only if numba was imported earlier: `isa` removes the variable
    raise PlatformError(
        "NUMBA_DISABLE_JIT is set, but the kernels of splitedge must be compiled; unset it", reason="jit-disabled"
    )


OPTIONS: Final = {"nogil": True, "error_model": "numpy", "fastmath": False, "boundscheck": False}


def kernel(function: F) -> F:
    """Compile ``function`` without Python objects, with the GIL released and exact IEEE arithmetic. Compiled code is
    cached on disk.
    """
    compiled: Any = numba.njit(**OPTIONS)(function)
    if not CACHE_PROBLEM:
        compiled._cache = _Cache(function)
    kept: F = compiled
    return kept


class _Locator(UserProvidedCacheLocator):  # type: ignore[misc]  # numba has no types
    """Places the cache in `CACHE_DIR`, independent of Numba's own settings."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        super().__init__(function, file)
        self._cache_path = str(CACHE_DIR / self.get_suitable_cache_subpath(file))

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> _Locator:
        return cls(function, file)


class _Impl(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes: ClassVar[list[type]] = [_Locator]


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of one kernel. Damaged files and a full disk are not errors."""

    _impl_class = _Impl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp())

    def load_overload(self, types: Any, context: Any) -> Any:
        """The compiled kernel, or None. Numba calls this before it compiles."""
        try:
            return super().load_overload(types, context)
        except Exception:  # pickle and LLVM raise many types
            self._cache_file.remove()
            return None

    def save_overload(self, types: Any, result: Any) -> None:
        """Keep a compiled kernel. A full disk only means that the next start compiles it again."""
        try:
            super().save_overload(types, result)
        except OSError as error:
            problem = f"compiled kernels cannot be kept in {CACHE_DIR}: {error.strerror}"
            warnings.warn(problem, RuntimeWarning, stacklevel=1)
        except DamagedError:
            self._cache_file.remove()


class _Files(IndexDataCacheFile):  # type: ignore[misc]
    """The files of one kernel: an index of signatures, and one file of code for each.

    Each file begins with the hash of its contents. Code files have unique names, so that an index never names the code
    of another process.
    """

    def remove(self) -> None:
        """Remove all files of the kernel, with a warning."""
        warnings.warn(
            f"compiled kernels in {CACHE_DIR} are damaged; removing them and compiling again",
            RuntimeWarning,
            stacklevel=1,
        )
        folder, index = Path(self._cache_path), Path(self._index_path)
        with suppress(OSError):
            for path in [index, *folder.glob(f"{glob.escape(index.stem)}.*.nbc")]:
                path.unlink(missing_ok=True)

    def _load_index(self) -> dict[Any, str]:
        data = _checked(Path(self._index_path))  # pickle is safe: only this user may write to the folder
        version, stamp, names = pickle.loads(data) if data else (None, None, {})  # noqa: S301
        return names if (version, stamp) == (self._version, self._source_stamp) else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        with self._open_for_write(self._index_path) as file:
            file.write(self._dump((self._version, self._source_stamp, overloads)))

    def _load_data(self, name: str) -> Any:
        data = _checked(Path(self._data_path(name)))
        return pickle.loads(data) if data else None  # noqa: S301

    def _data_name(self, number: int) -> str:  # noqa: ARG002 (two processes may use the same number)
        return str(super()._data_name(uuid.uuid4().int >> 64))

    @contextmanager
    def _open_for_write(self, path: str) -> Iterator[io.BytesIO]:
        """A file in memory that is written to ``path`` with its hash, atomically."""
        held = io.BytesIO()
        yield held
        with super()._open_for_write(path) as file:
            file.write(_hash(held.getbuffer()) + held.getbuffer())


class DamagedError(Exception):
    """A cache file does not match its hash."""


def _checked(path: Path) -> bytes:
    """The contents of the file at ``path`` without its hash, or nothing if there is no file. Raises `DamagedError`,
    `OSError`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    if len(data) <= _HASH_BYTES or _hash(memoryview(data)[_HASH_BYTES:]) != data[:_HASH_BYTES]:
        raise DamagedError(path)
    return data[_HASH_BYTES:]


def _hash(data: memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).digest()


def is_kept(compiled: Any, arguments: Sequence[Any]) -> bool:
    """Whether the cache holds the code for a call of the kernel ``compiled`` with ``arguments``. Compiles nothing."""
    return compiled._cache.load_overload(signature(compiled, arguments), compiled.targetctx) is not None


def compile_for(compiled: Any, arguments: Sequence[Any]) -> None:
    """Compile the kernel ``compiled`` for ``arguments`` and cache the result, without calling it."""
    compiled.compile(signature(compiled, arguments))


def signature(compiled: Any, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Numba's types of ``arguments``."""
    return tuple(compiled.typeof_pyval(argument) for argument in arguments)


def inline(function: F) -> F:
    """Mark a helper that only kernels call. It is compiled together with them and not cached by itself."""
    compiled: F = numba.njit(**OPTIONS)(function)
    return compiled


def macro(function: F) -> F:
    """Mark a part of one long function. Numba copies its source into the caller and compiles both as one function.

    An `inline` helper is optimized on its own, and again in each of its callers with everything that it contains. For
    the parts of the interpreter that cost 10 % of its compile time.
    """
    copied: F = numba.njit(inline="always", **OPTIONS)(function)
    return copied
