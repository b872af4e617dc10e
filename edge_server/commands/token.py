"""`edge-server token`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from edge_server.store.store import Store


def token(folder: Path, name: str, *, revoke: bool, show: bool) -> None:
    """Print a new token alone, so that a script can read it; or revoke one; or list names.

    A token that cannot be printed is revoked: it cannot be shown again.
    """
    with Store(folder) as store:
        if show:
            known_tokens = store.tokens.all()
            if not known_tokens:
                print("there are no tokens; create one with `edge-server token NAME`", file=sys.stderr)
            for known in known_tokens:
                print(f"{known.name}\t{datetime.fromtimestamp(known.created_unix, UTC):%Y-%m-%d %H:%M} UTC")
        elif revoke:
            store.tokens.revoke(name)
            print(f"revoked {name}")
        else:
            made = store.tokens.add(name)
            try:
                print(made, flush=True)
            except OSError:
                store.tokens.revoke(name)
                raise
