"""`edge-agent service install|uninstall|upgrade|auto-upgrade|status|logs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edge_agent.service import install as service
from edge_agent.service import upgrade as upgrades
from edge_agent.service import versions
from edge_agent.service.unit import SERVICE
from splitedge import errors
from splitedge.service.status import describe, exit_status, journal_command


def install(
    path: Path | None,
    token_file: Path | None,
    *,
    camera: bool | None = None,
    limits: bool | None = None,
    dry_run: bool,
) -> None:
    """Install and start the service, and wait until it is ready or waits for its server.

    ``camera`` and ``limits`` write or remove drop-ins; None leaves them. With ``dry_run``, only print the unit.
    """
    given = {"config_path": path.absolute()} if path else {}
    token = token_file.absolute() if token_file else None
    options = service.default_options(**given, token_file=token, camera=camera, limits=limits)
    try:
        text = service.install(options, dry_run=dry_run, say=_say)
    except errors.ConfigError as error:
        for problem in error.data.get("problems", [])[1:]:
            print(f"edge-agent: {problem}", file=sys.stderr)
        raise
    print(text if dry_run else "installed and running; see `edge-agent service status` and `edge-agent service logs`")


def uninstall(*, purge: bool) -> None:
    """Stop and remove the service, with ``purge`` also its files, and list what was removed and what remains."""
    found = service.uninstall(purge=purge)
    for line in found.lines(purge=purge):
        print(line)


def upgrade(version: str | None, *, limit_s: float) -> None:
    """Upgrade to a version, the file of an archive, or the newest version; on failure return to the old one."""
    before = versions.Versions().current()
    outcome = upgrades.upgrade(version, _say, limit_s=limit_s)
    print(f"upgraded to {outcome.version}" if outcome.version != before else f"{outcome.version} is in use already")


def settle() -> None:
    """End an upgrade that is under way."""
    upgrades.settle(_say)


def auto_upgrade(*, on: bool) -> None:
    """Switch daily upgrades on or off."""
    upgrades.automatic(on=on)
    print("the service looks for a new version once a day" if on else "the service is upgraded only on demand")


def status() -> int:
    """Print the state and the last error; returns 0 if the agent is ready, 1 if it runs but is not ready, 3 if it
    does not run.
    """
    state = service.status()
    print(*describe(SERVICE, state), sep="\n")
    return exit_status(state)


def logs(*, lines: int, follow: bool) -> None:
    """Become `journalctl` on the journal of the service, so that its signals and its exit status are those of this
    command.
    """
    service.require_installed()
    command = journal_command(SERVICE, lines=lines, follow=follow)
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
