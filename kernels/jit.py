"""All Numba plumbing: the decorator of every kernel, and where compiled code is kept.

Numba's own cache sees a change in the file of the function that it compiled, not in a helper's file, and would run the old kernel after an
upgrade. So the cache directory is named by a hash of all kernel sources, the versions of numba and llvmlite, and the CPU features.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import llvmlite
import llvmlite.binding as llvm
import numba

from kernels import isa  # before numba: it may set what numba reads at import

F = TypeVar("F", bound=Callable[..., Any])

_KEPT_S: Final = 30 * 86_400.0  # a cache of another version that nothing has used for so long goes
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
    numba.config.CACHE_DIR = str(CACHE_DIR)
    prune(CACHE_DIR)


_OPTIONS: Final = {"nogil": True, "error_model": "numpy", "fastmath": False, "boundscheck": False}


def kernel(function: F) -> F:
    """Compile ``function``: no Python objects, the GIL released, IEEE arithmetic exactly as written, result kept on disk if there is room."""
    compiled: Any = numba.njit(cache=not CACHE_PROBLEM, **_OPTIONS)(function)
    if not CACHE_PROBLEM:
        compiled._cache.save_overload = _unless_full(compiled._cache.save_overload)
    kept: F = compiled
    return kept


def _unless_full(save: Callable[..., None]) -> Callable[..., None]:
    """``save``, which numba calls after it compiled; a disk that is full costs the next start some seconds, not this one its life."""

    def attempt(*arguments: Any) -> None:
        try:
            save(*arguments)
        except OSError as error:
            warnings.warn(
                f"compiled kernels cannot be kept in {CACHE_DIR}: {error.strerror}", RuntimeWarning, stacklevel=2
            )

    return attempt


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
