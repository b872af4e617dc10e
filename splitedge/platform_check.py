"""Start and end of both commands: refuse an unsupported platform, and turn every error into one sentence and an exit
status.

It imports only the standard library and the error tree, because it runs before numpy and numba, which fail with a
traceback on such a platform.
"""

from __future__ import annotations

import codecs
import errno
import importlib.util
import io
import os
import platform
import struct
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from splitedge.errors import PlatformError, SplitEdgeError, StoreError, UsageError

MIN_PYTHON = (3, 11)
PACKAGES = ("splitedge", "edge_agent", "edge_server", "calibration", "device_profiles", "kernels")
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
OUT_OF_MEMORY = 71  # EX_OSERR
OUTPUT_FAILED = 74  # EX_IOERR
BROKEN_PIPE = 141  # the shell's status of a program that SIGPIPE ended

#: Replacements for the characters of tables and bars on a terminal without Unicode.
_SIGNS = dict(zip("█▒▓░━─│…→×°±µ", "#=%.--|~>x*~u", strict=True))
#: Errors of the machine, not of the program.
_SYSTEM = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EFBIG,
}


def run(program: str, start: Callable[[], object], failed: Callable[[str], object] | None = None) -> None:
    """`check`, then ``start()``. Leaves by `SystemExit` with the exit status that ``start`` returns.

    An error prints one line on standard error and sets the exit status; ``failed`` gets that line.
    ``SPLITEDGE_DEBUG=1`` shows the traceback instead. A warning is one line too.
    """
    warnings.formatwarning = lambda message, *_, **__: f"{priority(4)}{program}: warning: {printable(str(message))}\n"
    try:
        prepare_streams()
        check()
        status = start()
        sys.stdout.flush()
    except SystemExit as left:
        if not isinstance(left.__context__, BrokenPipeError):  # typer and rich turn it into status 1
            raise
        status = _ended(program, left.__context__, failed)
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("SPLITEDGE_DEBUG"):
            raise
        status = _ended(program, error, failed)
    sys.exit(status if isinstance(status, int) else 0)


def prepare_streams() -> None:
    """Open missing standard streams, and escape characters that a stream cannot encode."""
    codecs.register_error("splitedge", _spelled)
    for name, mode, raw in (("stdin", "r", None), ("stdout", "w", _Output), ("stderr", "w", _Log)):
        if getattr(sys, name) is None:  # closed: the next file to be opened would get its descriptor
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (until the end)
        elif raw is not None:
            setattr(sys, name, _over(raw, getattr(sys, name)))


class OutputError(OSError):
    """Standard output cannot be written."""


class _Output(io.FileIO):
    """Standard output. Its errors become `OutputError`."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error


class _Log(io.FileIO):
    """Standard error. A failed write (a full disk, a closed pipe) does not end the program."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _over(raw: type[io.FileIO], stream: Any) -> Any:
    """``stream`` through ``raw`` and with our handler of encoding errors, if it is a system file.

    Tests replace it by other streams.
    """
    buffered = isinstance(getattr(stream, "buffer", None), io.BufferedWriter)  # otherwise PYTHONUNBUFFERED is set
    if type(stream) is not io.TextIOWrapper or not isinstance(
        stream.buffer.raw if buffered else stream.buffer, io.FileIO
    ):
        return stream
    stream.flush()
    file = raw(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(file) if buffered else file,
        stream.encoding,
        "splitedge",
        line_buffering=stream.line_buffering,
        write_through=not buffered,
    )


def printable(text: str) -> str:
    """``text`` on one line without control characters.

    Bytes of a file name that are not UTF-8 are shown as ``\\xe9``.
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else _spelling(c) for c in line)


def priority(level: int) -> str:
    """The beginning of a line on standard error that gives it the priority ``level`` of syslog(3) in the journal; empty
    if standard error is not the journal.
    """
    return f"<{level}>" if journaled() else ""


def journaled() -> bool:
    """Whether standard error is the journal: systemd names its device and inode in ``JOURNAL_STREAM``."""
    named = os.environ.get("JOURNAL_STREAM", "")
    if named:
        with suppress(OSError, ValueError, AttributeError):
            found = os.fstat(sys.stderr.fileno())
            return named == f"{found.st_dev}:{found.st_ino}"
    return False


def check() -> None:
    """Raise `PlatformError` on an unsupported platform."""
    problems = {
        "32-bit": _width_problem(struct.calcsize("P") * 8, sys.maxsize, platform.machine()),
        "python": _python_problem(tuple(sys.version_info[:2])),
        "foreign-package": _name_problem(),
        "numba-config": _numba_problem(Path(".numba_config.yaml")),
    }
    for reason, problem in problems.items():
        if problem:
            raise PlatformError(problem, reason=reason)


def _ended(program: str, error: BaseException, failed: Callable[[str], object] | None) -> int:
    """Report ``error``, and return its exit status."""
    if isinstance(error, BrokenPipeError):
        _give_up_stdout()
        return BROKEN_PIPE
    if isinstance(error, OutputError):
        _give_up_stdout()
    message, status = _told(error)
    if message:
        print(f"{priority(3)}{program}: {printable(message)}", file=sys.stderr)
        if failed is not None:
            failed(message)
    return status


def _told(error: BaseException) -> tuple[str, int]:
    """The message and the exit status of ``error``."""
    if isinstance(error, SplitEdgeError):
        return error.message, error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, MemoryError):
        return "out of memory; stop other programs, add swap or raise the limit", OUT_OF_MEMORY
    if isinstance(error, OutputError):
        return f"standard output cannot be written ({error.strerror}); the output is incomplete", OUTPUT_FAILED
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _SYSTEM):
        place = f"{_name(error.filename)} cannot be used" if error.filename is not None else "a file cannot be used"
        return (
            f"{place} ({error.strerror or error}); check the path, its permissions and the free space",
            StoreError.exit_status,
        )
    if isinstance(error, UnicodeEncodeError) and any("\udc80" <= c <= "\udcff" for c in error.object):
        return f"{error.object[:200]} is not UTF-8; use a UTF-8 name or text", UsageError.exit_status
    if isinstance(error, Warning):
        return f"{error}; PYTHONWARNINGS or -W turns this warning into an error; unset it", UsageError.exit_status
    show, status = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show) and isinstance(status, int):  # a usage error of typer
        show()
        return "", status
    cause = (
        error.__cause__ if type(error).__name__ == "Abort" and error.__cause__ else error
    )  # typer turns an EOFError into Abort
    return (
        f"internal error: {type(cause).__name__}: {cause}; SPLITEDGE_DEBUG=1 shows more, please report it",
        INTERNAL_ERROR,
    )


def _name(path: Any) -> str:
    return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)


def _give_up_stdout() -> None:
    """Redirect standard output to /dev/null, because the interpreter flushes it once more at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Handler of encoding errors: an ASCII replacement for a character that the stream cannot encode."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelling, error.object[error.start : error.end])), error.end


def _spelling(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if 0x2800 <= code <= 0x28FF:  # a spinner
        return "*"
    return _SIGNS.get(character) or character.encode("unicode_escape").decode()


def _width_problem(pointer_bits: int, maxsize: int, machine: str) -> str:
    if pointer_bits >= 64 and maxsize > 1 << 32:
        return ""
    return (
        f"splitedge needs a 64-bit system and this Python is 32-bit (on {machine}); install a 64-bit operating "
        "system (on a Raspberry Pi: Raspberry Pi OS, 64-bit) and its Python"
    )


def _python_problem(version: tuple[int, ...]) -> str:
    if version >= MIN_PYTHON:
        return ""
    needed, found = (".".join(map(str, v)) for v in (MIN_PYTHON, version))
    return f"splitedge needs Python {needed} or newer and this is Python {found}; install a newer Python and create a new virtual environment"


def _name_problem(packages: Iterable[str] = PACKAGES) -> str:
    """Other distributions also install a package named ``kernels`` or ``edge_agent``: each of ours must come from
    this installation.
    """
    for package in packages:
        origin = _origin(package)
        if origin is not None and origin.resolve() != Path(__file__).resolve().parents[1] / package:
            return (
                f"Python finds the package '{package}' in {origin.parent}, and that is not part of splitedge: "
                "install splitedge in its own virtual environment, or remove the other package"
            )
    return ""


def _origin(package: str) -> Path | None:
    """The folder that ``package`` is imported from, without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else Path(spec.origin) if spec and spec.origin else None


def _numba_problem(settings: Path) -> str:
    """Numba reads this file of the working directory when it compiles.

    Its settings can slow kernels down or abort the process.
    """
    if not settings.is_file():
        return ""
    return f"{settings.absolute()} changes how numba compiles kernels; remove it, or run in another folder"
