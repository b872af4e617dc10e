"""`edge-agent service install|uninstall|status`."""

from __future__ import annotations

from pathlib import Path

from edge_agent.service import install as service
from edge_agent.service.unit import NAME


def install(config: Path | None, token_file: Path | None, *, dry_run: bool) -> None:
    """Write the unit and start it; with ``dry_run`` print it only."""
    given = {"config_path": config.absolute()} if config else {}
    options = service.default_options(**given, token_file=token_file.absolute() if token_file else None)
    text = service.install(options, dry_run=dry_run, say=lambda words: print(words, flush=True))
    print(text if dry_run else f"installed and started; see `edge-agent service status` and `journalctl -u {NAME}`")


def uninstall() -> None:
    """Stop and remove the unit."""
    service.uninstall()
    print("the service is stopped and removed; configuration and token are kept")


def status() -> int:
    """Print the state; returns 0 if the service runs, else 3, as systemctl does."""
    state = service.status()
    print(
        f"{NAME}: {state.active} ({state.state}), {'enabled' if state.enabled else 'not enabled'}, {state.restarts} restarts"
    )
    if state.pid:
        print(f"process {state.pid} since {state.since}")
    for line in (state.says, "" if state.result in ("", "success") else f"the last run ended with {state.result}"):
        if line:
            print(line)
    return 0 if state.active == "active" else 3
