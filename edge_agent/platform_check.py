"""The first and the last thing that both commands do: refuse a platform that splitedge cannot run on, and end every error as one sentence.

Imports the standard library only (and the error tree): it runs before numpy or numba, which would fail there with a traceback.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import struct
import sys
import warnings
from collections.abc import Callable

from edge_agent.errors import PlatformError, SplitEdgeError

MIN_PYTHON = (3, 11)
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h


def run(program: str, start: Callable[[], object]) -> None:
    """`check`, then ``start()``. An error ends as one line on standard error and an exit status, never as a traceback.

    ``SPLITEDGE_DEBUG=1`` lets the error through and shows the traceback. A warning is one line, too.
    """
    warnings.formatwarning = lambda message, *_, **__: f"{program}: warning: {message}\n"
    try:
        check()
        start()
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("SPLITEDGE_DEBUG"):
            raise
        sys.exit(_ended(program, error))


def check() -> None:
    """Return on a platform that works, raise `PlatformError` on any other."""
    problem = (
        _width_problem(struct.calcsize("P") * 8, sys.maxsize, platform.machine())
        or _python_problem(tuple(sys.version_info[:2]))
        or _name_problem()
    )
    if problem:
        raise PlatformError(problem)


def _ended(program: str, error: BaseException) -> int:
    """Say what ``error`` is; returns the exit status that it has."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout once more
        return 141
    if isinstance(error, SplitEdgeError):
        message, status = error.message, error.exit_status
    elif isinstance(error, KeyboardInterrupt):
        message, status = "interrupted", 130
    else:
        message = f"internal error: {type(error).__name__}: {error}; SPLITEDGE_DEBUG=1 shows more, please report it"
        status = INTERNAL_ERROR
    message = " ".join(message.split())
    print(f"{program}: {message}", file=sys.stderr)
    if os.environ.get("NOTIFY_SOCKET"):
        _tell_systemd(message)
    return status


def _tell_systemd(message: str) -> None:
    """Leave ``message`` as the status of the service that ends, where `edge-agent service status` finds it."""
    from edge_agent.service import notify

    with contextlib.suppress(PlatformError):
        notify.status(message)


def _width_problem(pointer_bits: int, maxsize: int, machine: str) -> str:
    if pointer_bits >= 64 and maxsize > 1 << 32:
        return ""
    return (
        f"splitedge needs a 64-bit system and this Python is a 32-bit one (on {machine}): install a 64-bit operating "
        "system (on a Raspberry Pi: Raspberry Pi OS, 64-bit) and its Python"
    )


def _python_problem(version: tuple[int, ...]) -> str:
    if version >= MIN_PYTHON:
        return ""
    needed, found = (".".join(map(str, v)) for v in (MIN_PYTHON, version))
    return f"splitedge needs Python {needed} or newer and this is Python {found}: install a newer Python and run its -m venv"


def _name_problem() -> str:
    """The distribution named ``kernels`` on PyPI has our package's import name: one of the two would load the other's code."""
    try:
        other = importlib.metadata.distribution("kernels")
    except importlib.metadata.PackageNotFoundError:
        return ""
    place = str(other.locate_file(""))
    return (
        f"the package 'kernels' {other.version} is installed in {place} and its name clashes with a part of splitedge: "
        "give splitedge a virtual environment of its own, or run 'pip uninstall kernels' and install splitedge again"
    )
