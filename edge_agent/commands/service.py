"""`edge-agent service install|uninstall|status`."""

from __future__ import annotations

import sys
from pathlib import Path

from edge_agent.service import install as service
from edge_agent.service.status import last_error
from edge_agent.service.unit import NAME
from splitedge import errors


def install(config: Path | None, token_file: Path | None, *, dry_run: bool) -> None:
    """Write the unit, start it and wait until it serves or waits for its server; with ``dry_run`` print the unit only."""
    given = {"config_path": config.absolute()} if config else {}
    options = service.default_options(**given, token_file=token_file.absolute() if token_file else None)
    try:
        text = service.install(options, dry_run=dry_run, say=_say)
    except errors.ConfigError as error:
        for problem in error.data.get("problems", [])[1:]:
            print(f"edge-agent: {problem}", file=sys.stderr)
        raise
    print(text if dry_run else f"installed and running; see `edge-agent service status` and `journalctl -u {NAME}`")


def uninstall(*, purge: bool) -> None:
    """Stop and remove the unit, with ``purge`` all files of the service, and list what is gone and what stays."""
    found = service.uninstall(purge=purge)
    print("the service is stopped and removed:")
    for path in found.gone:
        print(f"  {path}")
    if found.kept:
        print(
            "these stay:"
            if purge
            else "these stay; `edge-agent service uninstall --purge` removes those of the service:"
        )
    for path in found.kept:
        print(f"  {path}")


def status() -> int:
    """Print the state and the last error; returns 0 if frames are served, 1 if it runs and none are, 3 if it does not run."""
    state = service.status()
    print(
        f"{NAME}: {state.active} ({state.state}), {'enabled' if state.enabled else 'not enabled'}, {state.restarts} restarts"
    )
    if state.pid:
        print(f"process {state.pid} since {state.since}")
    error = last_error(state)
    if state.active == "active" and state.says and state.says != error:
        print(state.says)
    if error:
        print(f"last error: {error}")
    if state.active != "active":
        return 3
    return 0 if state.ready else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
