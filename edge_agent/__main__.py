"""The entry point of `edge-agent`."""

from __future__ import annotations

from splitedge import platform_check
from splitedge.service import failure


def main() -> None:
    """Run the command line; leaves by `SystemExit`."""
    platform_check.run("edge-agent", _start, failure.keep)


def _start() -> object:
    from edge_agent.cli import app

    return app(prog_name="edge-agent", standalone_mode=False)


if __name__ == "__main__":
    main()
