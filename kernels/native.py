"""Kernels that are already compiled: a shared library for each instruction set, built by `kernels.build`.

A library depends neither on Python nor on Numba, so one file serves every version of them. It is code that this process
runs, so it must be protected like the package's Python files, and its hash is in the manifest beside it.
The manifest also has the hash of the kernels' sources: after a change of them the library is not used.

A function of the library takes one pointer, to a row of 8-byte slots, one for each argument: a number, or the address
of an array object. It reads the array's data and shape itself, from the fields that NumPy's C interface keeps at fixed
places, because Python takes longer to read them than some kernels run. Its result is the kernel's, which is never
negative, or an error: `FAILED`, or `UNFIT` - i for an array in slot i that is not contiguous, aligned or writable.
"""

from __future__ import annotations

import ast
import ctypes
import hashlib
import os
import platform
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np

from kernels import isa
from splitedge.errors import PlatformError

#: The libraries for this kind of processor, and their manifest.
FOLDER: Final = Path(__file__).parent / "libraries" / platform.machine()
MANIFEST: Final = "manifest.json"
#: If this variable is "jit", Numba compiles the kernels even if there is a library.
VARIABLE: Final = "SPLITEDGE_KERNELS"
FAILED: Final = -1
UNFIT: Final = -1000


class Array(msgspec.Struct, frozen=True):
    """An array argument in C order. ``fields``: of a record, as `numpy.dtype.descr` in a Python literal, or empty."""

    dtype: str
    ndim: int
    writable: bool
    fields: str = ""

    @classmethod
    def of(cls, dtype: np.dtype[Any], ndim: int, *, writable: bool) -> Array:
        """An array of ``dtype``."""
        return cls(
            dtype.name if dtype.names is None else "record", ndim, writable, repr(dtype.descr) * bool(dtype.names)
        )

    def numpy(self) -> np.dtype[Any]:
        """Its type in NumPy."""
        return np.dtype(ast.literal_eval(self.fields) if self.fields else self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(':' * self.ndim)}]"


#: A number ("int64", "float32", "bool"), None ("none"), an array, or a tuple of arrays.
Argument: TypeAlias = str | Array | list[Array]
#: By the name of a kernel, the arguments of each overload.
Signatures: TypeAlias = dict[str, list[list[Argument]]]
_FORMATS: Final = {"int64": "q", "float32": "f4x", "bool": "?7x", "none": "q"}


class Manifest(msgspec.Struct, frozen=True):
    """The libraries of a folder.

    ``sources``: as `sources_hash`. ``libraries``: SHA-256 of each by its instruction set.
    """

    sources: str
    libraries: dict[str, str]
    kernels: Signatures


class Library:
    """The library at ``path`` with this hash and these ``kernels``."""

    def __init__(self, path: Path, sha256: str, kernels: Signatures) -> None:
        self.path, self.sha256, self._kernels = path, sha256, kernels
        self._loaded = ctypes.CDLL(str(path))

    def kernel(self, name: str) -> Kernel:
        """The kernel of this name. One that the library lacks cannot be called."""
        overloads = self._kernels.get(name, [])
        return Kernel(name, [_Overload(self._loaded[symbol(name, i)], one) for i, one in enumerate(overloads)])


class Kernel:
    """A kernel of a library: called with the arguments of the Python function that it was compiled from."""

    def __init__(self, name: str, overloads: Sequence[_Overload]) -> None:
        self.name, self._overloads = name, overloads

    def __call__(self, *arguments: Any) -> int:
        """Run the overload for these arguments; 0 if it returns nothing.

        Raises `TypeError`, `MemoryError`, and `PlatformError` if the library lacks the kernel.
        """
        nones = [argument is None for argument in arguments]
        for overload in self._overloads:
            if overload.nones == nones:
                return overload(arguments)
        if not self._overloads:
            raise PlatformError(
                f"the package's library has no kernel {self.name}; set {VARIABLE}=jit to compile it", reason="no-kernel"
            )
        raise TypeError(f"{self.name} takes {' or '.join(map(str, self._overloads))}")


class _Overload:
    def __init__(self, function: Any, arguments: Sequence[Argument]) -> None:
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_char_p]
        self._function, self._arguments = function, arguments
        self.nones = [one == "none" for one in arguments]
        self._readers = [_reader(one) for one in arguments]
        self._pack = struct.Struct("<" + "".join(_FORMATS.get(str(one), "q") for one in flatten(arguments))).pack

    def __str__(self) -> str:
        return f"({', '.join(map(str, self._arguments))})"

    def __call__(self, arguments: Sequence[Any]) -> int:
        slots: list[Any] = []
        for read, argument in zip(self._readers, arguments, strict=True):
            read(argument, slots)
        found: int = self._function(self._pack(*slots))
        if found >= 0:
            return found
        if found <= UNFIT:
            raise TypeError(f"argument {UNFIT - found} of {self} is not contiguous, aligned or writable")
        raise MemoryError(f"a kernel {self} is out of memory")


def _reader(argument: Argument) -> Callable[[Any, list[Any]], None]:
    """A function that appends the slots of a value to a list. It raises `TypeError` for another type."""
    if isinstance(argument, list):
        readers = [_reader(one) for one in argument]

        def fields(value: Any, slots: list[Any]) -> None:
            for read, one in zip(readers, value, strict=True):
                read(one, slots)

        return fields
    if isinstance(argument, Array):
        dtype, ndim = argument.numpy(), argument.ndim

        def address(value: Any, slots: list[Any]) -> None:
            if (
                type(value) is not np.ndarray
                or value.ndim != ndim
                or (value.dtype is not dtype and value.dtype != dtype)
            ):
                raise TypeError(f"a kernel takes {argument}, not {getattr(value, 'dtype', type(value))}")
            slots.append(id(value))

        return address
    if argument == "none":
        return lambda _, slots: slots.append(0)
    return lambda value, slots: slots.append(value)


def flatten(arguments: Iterable[Argument]) -> list[str | Array]:
    """``arguments`` with the fields of tuples in place of the tuples."""
    return [one for some in arguments for one in (flatten(some) if isinstance(some, list) else [some])]


def name_of(function: Callable[..., Any]) -> str:
    """The name of a kernel in a library."""
    return f"{function.__module__.removeprefix('kernels.')}.{function.__name__}"


def symbol(name: str, overload: int) -> str:
    """The symbol of an overload in the library."""
    return f"splitedge_{name.replace('.', '_')}_{overload}"


def sources_hash(folder: Path = Path(__file__).parent) -> str:
    """SHA-256 of all Python files below ``folder``."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def usable(folder: Path, isa: str) -> tuple[Library | None, str]:
    """The library of ``folder`` for the instruction set, or None and the reason why Numba compiles instead.

    The reason is empty if there are no libraries at all, as in a checkout.
    """
    path, manifest = folder / f"{isa}.so", folder / MANIFEST
    try:
        known = msgspec.json.decode(manifest.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None, ""
    except (OSError, msgspec.DecodeError) as error:
        return None, f"{manifest} is unreadable ({error})"
    if known.sources != sources_hash():
        return None, f"the libraries in {folder} belong to other sources"
    if isa not in known.libraries:
        return None, f"there is no library for {isa} in {folder}"
    if sysconfig.get_config_var("Py_GIL_DISABLED") or sys.byteorder != "little":
        return None, "libraries need a Python with a global lock"
    try:
        problem = next(filter(None, map(_problem, (path, manifest, folder))), "")
        data = path.read_bytes()
    except OSError as error:
        return None, f"{path} is unreadable ({error.strerror})"
    if problem or hashlib.sha256(data).hexdigest() != known.libraries[isa]:
        return None, problem or f"{path} is not the file that was installed"
    try:
        return Library(path, known.libraries[isa], known.kernels), ""
    except OSError as error:
        return None, f"{path} cannot be loaded ({error})"


def _problem(path: Path) -> str:
    """Why others than those who may change this file may change ``path``, or an empty string."""
    own, status = Path(__file__).stat(), path.stat()
    if status.st_uid not in (0, os.getuid(), own.st_uid):
        return f"{path} belongs to another user"
    open_to = status.st_mode & (~own.st_mode if status.st_gid == own.st_gid else -1)
    return f"others may write to {path}" if open_to & 0o022 else ""


def _choose() -> tuple[Library | None, str]:
    if os.environ.get(VARIABLE, "") == "jit":
        return None, ""
    return usable(FOLDER, isa.ISA)


#: The library of this process; without one, why Numba compiles, if that needs saying.
LIBRARY, REASON = _choose()
