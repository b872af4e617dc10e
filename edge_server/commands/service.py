"""`edge-server service install|uninstall|status`."""

from __future__ import annotations

import sys
from pathlib import Path

from edge_server.config import ServeConfig
from edge_server.service import install as service
from edge_server.service.unit import SERVICE, STATE
from splitedge import errors
from splitedge.service.status import describe, exit_status


def install(serve: ServeConfig, store: Path | None, folder: Path | None, *, dry_run: bool) -> None:
    """Install and start the service, and wait until its port is open. With ``dry_run``, only print the unit."""
    options = service.default_options(serve, store.absolute() if store else None, folder)
    try:
        text = service.install(options, dry_run=dry_run, say=_say)
    except errors.ConfigError as error:
        for problem in error.data.get("problems", [])[1:]:
            print(f"edge-server: {problem}", file=sys.stderr)
        raise
    if dry_run:
        print(text)
        return
    print(f"installed and running; see `edge-server service status` and `journalctl -u {SERVICE.name}`")
    if store is None:
        print(f"add models and tokens as root, with --store {STATE}")


def uninstall(*, purge: bool) -> None:
    """Stop and remove the service, with ``purge`` also its files, and list what was removed and what remains."""
    found = service.uninstall(purge=purge)
    for line in found.lines(purge=purge):
        print(line)


def status() -> int:
    """Print the state and the last error; returns the exit status of `splitedge.service.status.exit_status`."""
    state = service.status()
    print(*describe(SERVICE, state), sep="\n")
    return exit_status(state)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
