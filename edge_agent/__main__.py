"""The entry point of `edge-agent`: errors end as one sentence on standard error and their exit status, never as a traceback.

``SPLITEDGE_DEBUG=1`` shows the traceback.
"""

from __future__ import annotations

import os
import sys

from edge_agent import platform_check
from edge_agent.errors import SplitEdgeError

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h


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
        _leave(
            f"internal error: {type(error).__name__}: {error}; SPLITEDGE_DEBUG=1 shows more, please report it",
            INTERNAL_ERROR,
        )


def _run() -> None:
    platform_check.check()
    from edge_agent.cli import app

    app(prog_name="edge-agent")


def _leave(message: str, status: int) -> None:
    print(f"edge-agent: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
