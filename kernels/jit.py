"""All Numba plumbing: the decorator of every kernel, and where compiled code is kept.

Numba's own cache sees a change in the file of the function that it compiled, not in a helper's file, and would run the old kernel after an
upgrade. So the cache directory is named by a hash of all kernel sources, the versions of numba and llvmlite, and the CPU features.

LLVM aborts the process on damaged object code, so each file of the cache begins with a hash of its other bytes, which is checked first. A file
that does not load is removed, and its kernel is compiled again.
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

from kernels import isa  # before numba: it may set what numba reads at import
from splitedge.errors import PlatformError

F = TypeVar("F", bound=Callable[..., Any])

_KEPT_S: Final = 30 * 86_400.0  # a cache of another version that nothing has used for so long goes
_HASH_BYTES: Final = 16  # before the content of each file
_PRUNED: Final = 8  # at most so many at one start: removing them takes its time


def cache_base() -> Path:
    """Where caches live: ``SPLITEDGE_CACHE_DIR``, systemd's ``CACHE_DIRECTORY``, or the user's cache folder."""
    for variable in ("SPLITEDGE_CACHE_DIR", "CACHE_DIRECTORY"):
        if os.environ.get(variable):
            return Path(os.environ[variable].split(":")[0])
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"splitedge-{os.getuid()}"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "splitedge"


def fingerprint(sources: Path) -> str:
    """Hash of everything that compiled code depends on: the ``*.py`` files in ``sources``, compiler versions, CPU."""
    digest = hashlib.sha256()
    for path in sorted(sources.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    cpu = (
        os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name(),
        os.environ.get("NUMBA_CPU_FEATURES") or sorted(isa.host_features()),
    )
    digest.update(repr((numba.__version__, llvmlite.__version__, isa.ISA, cpu)).encode())
    return digest.hexdigest()[:16]


def _writable(directory: Path) -> str:
    """Why ``directory`` cannot be used, or an empty string: then it is marked as used now. What lies there is run, so it must be ours alone to write."""
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
    """Remove caches of other versions beside ``own`` that no process has begun to use for `_KEPT_S`.

    One that still runs has what it loaded; should it compile more, that is not kept and its next start compiles again. What cannot be listed or
    removed costs disk space and nothing else, so it is left to the next start.
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
                if status.st_uid == os.getuid() and time.time() - status.st_mtime > _KEPT_S:
                    yield Path(entry.path)


CACHE_DIR: Final = cache_base() / f"kernels-{fingerprint(Path(__file__).parent)}"
#: Empty, or why compiled kernels cannot be kept: then every start compiles anew.
CACHE_PROBLEM: Final = _writable(CACHE_DIR)

if not CACHE_PROBLEM:
    prune(CACHE_DIR)

if numba.config.DISABLE_JIT:  # somebody imported numba before us, else `isa` has seen to it
    raise PlatformError(
        "NUMBA_DISABLE_JIT is set and the kernels of splitedge must be compiled: unset it", reason="jit-disabled"
    )


_OPTIONS: Final = {"nogil": True, "error_model": "numpy", "fastmath": False, "boundscheck": False}


def kernel(function: F) -> F:
    """Compile ``function``: no Python objects, the GIL released, IEEE arithmetic exactly as written, result kept on disk if there is room."""
    compiled: Any = numba.njit(**_OPTIONS)(function)
    if not CACHE_PROBLEM:
        compiled._cache = _Cache(function)
    kept: F = compiled
    return kept


class _Locator(UserProvidedCacheLocator):  # type: ignore[misc]  # numba has no types
    """`CACHE_DIR` and no other place, whatever numba's own settings say."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        super().__init__(function, file)
        self._cache_path = str(CACHE_DIR / self.get_suitable_cache_subpath(file))

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> _Locator:
        return cls(function, file)


class _Impl(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes: ClassVar[list[type]] = [_Locator]


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of one kernel, in which nothing that lies on the disk, and no disk that is full, is an error."""

    _impl_class = _Impl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp())

    def load_overload(self, signature: Any, context: Any) -> Any:
        """What numba asks before it compiles: the compiled kernel, or None."""
        try:
            return super().load_overload(signature, context)
        except Exception:  # whatever pickle and LLVM raise
            self._cache_file.remove()
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """What numba calls after it compiled. A disk that is full costs the next start some seconds, not this one its life."""
        try:
            super().save_overload(signature, result)
        except OSError as error:
            problem = f"compiled kernels cannot be kept in {CACHE_DIR}: {error.strerror}"
            warnings.warn(problem, RuntimeWarning, stacklevel=1)
        except DamagedError:
            self._cache_file.remove()


class _Files(IndexDataCacheFile):  # type: ignore[misc]
    """The files of one kernel: an index of signatures, and one file for each of them.

    Each begins with the hash of what follows. A file of code has a name that no other process chooses, so an index never names another's code.
    """

    def remove(self) -> None:
        """Remove all files of the kernel, and say once in a process that there was a reason."""
        warnings.warn(
            f"compiled kernels in {CACHE_DIR} are damaged: they are removed and compiled again",
            RuntimeWarning,
            stacklevel=1,
        )
        folder, index = Path(self._cache_path), Path(self._index_path)
        with suppress(OSError):
            for path in [index, *folder.glob(f"{glob.escape(index.stem)}.*.nbc")]:
                path.unlink(missing_ok=True)

    def _load_index(self) -> dict[Any, str]:
        data = _checked(Path(self._index_path))
        version, stamp, names = pickle.loads(data) if data else (None, None, {})  # noqa: S301 (our own: the folder is nobody else's to write)
        return names if (version, stamp) == (self._version, self._source_stamp) else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        with self._open_for_write(self._index_path) as file:
            file.write(self._dump((self._version, self._source_stamp, overloads)))

    def _load_data(self, name: str) -> Any:
        data = _checked(Path(self._data_path(name)))
        return pickle.loads(data) if data else None  # noqa: S301

    def _data_name(self, number: int) -> str:  # noqa: ARG002 (two processes at once count alike)
        return str(super()._data_name(uuid.uuid4().int >> 64))

    @contextmanager
    def _open_for_write(self, path: str) -> Iterator[io.BytesIO]:
        """A file in memory, which becomes the one at ``path``, whole and behind its hash."""
        held = io.BytesIO()
        yield held
        with super()._open_for_write(path) as file:
            file.write(_hash(held.getbuffer()) + held.getbuffer())


class DamagedError(Exception):
    """A file of the cache that is not what was written."""


def _checked(path: Path) -> bytes:
    """What the file at ``path`` holds behind its hash; nothing where there is no file. Raises `DamagedError`, `OSError`."""
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
    """Whether the cache holds what a call of the kernel ``compiled`` with ``arguments`` would run. Nothing is compiled."""
    return compiled._cache.load_overload(_signature(compiled, arguments), compiled.targetctx) is not None


def compile_for(compiled: Any, arguments: Sequence[Any]) -> None:
    """Compile the kernel ``compiled`` as a call with ``arguments`` would, and keep the result; it is not called."""
    compiled.compile(_signature(compiled, arguments))


def _signature(compiled: Any, arguments: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(compiled.typeof_pyval(argument) for argument in arguments)


def advice() -> str:
    """Empty, or one sentence for people: that compiled kernels cannot be kept, why, and what to do."""
    if not CACHE_PROBLEM:
        return ""
    return (
        f"compiled kernels cannot be kept in {CACHE_DIR} ({CACHE_PROBLEM}), so every start compiles them anew: make the folder this user's own "
        "and writable, or name another in SPLITEDGE_CACHE_DIR"
    )


def inline(function: F) -> F:
    """A helper that only kernels call; it is compiled with them."""
    compiled: F = numba.njit(**_OPTIONS)(function)
    return compiled
