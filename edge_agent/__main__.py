"""The entry point of `edge-agent`."""

from __future__ import annotations

import os
from contextlib import suppress

from splitedge import platform_check
from splitedge.errors import PlatformError


def main() -> None:
    """Run the command line; leaves by `SystemExit`."""
    platform_check.run("edge-agent", _start, _failed)


def _failed(message: str) -> None:
    """Keep ``message`` as the status of the failed service, where `edge-agent service status` finds it."""
    if os.environ.get("NOTIFY_SOCKET"):
        from splitedge.service import notify

        with suppress(PlatformError):
            notify.status(message)


def _start() -> object:
    from edge_agent.cli import app

    return app(prog_name="edge-agent", standalone_mode=False)


if __name__ == "__main__":
    main()
