"""The entry point of `edge-server`: errors end as one sentence on standard error and their exit status, never as a traceback.

``SPLITEDGE_DEBUG=1`` shows the traceback.
"""

from __future__ import annotations

import os
import sys

from edge_agent import platform_check
from edge_agent.errors import PlatformError, SplitEdgeError

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
_EXTRA = {"onnx", "onnxruntime", "safetensors"}


def main() -> None:
    """Run the command line; leaves by `SystemExit`."""
    if os.environ.get("SPLITEDGE_DEBUG"):
        _run()
    try:
        _run()
    except SplitEdgeError as error:
        _leave(error.message, error.exit_status)
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout once more
        sys.exit(141)
    except Exception as error:
        _leave(*_unexpected(error))


def _run() -> None:
    platform_check.check()
    from edge_server.cli import app

    app(prog_name="edge-server")


def _unexpected(error: Exception) -> tuple[str, int]:
    """What to say of an error that is none of ours: a package of the ``server`` extra is missing, or it is a fault of this program."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _EXTRA:
        message = f"the server needs {error.name}, which is not installed: run pip install 'splitedge[server]'"
        return message, PlatformError.exit_status
    return (
        f"internal error: {type(error).__name__}: {error}; SPLITEDGE_DEBUG=1 shows more, please report it",
        INTERNAL_ERROR,
    )


def _leave(message: str, status: int) -> None:
    print(f"edge-server: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
