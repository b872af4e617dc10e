"""`edge-server token`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from edge_server.store.store import Store, default_folder


def token(folder: Path | None, name: str, *, revoke: bool, show: bool) -> None:
    """Prints a new token and nothing else, so that a script can take it; or revokes one; or lists names.

    A token that cannot be printed is revoked: nobody can read it later.
    """
    with Store(folder or default_folder()) as store:
        if show:
            known_tokens = store.tokens()
            if not known_tokens:
                print("there is no token yet: `edge-server token NAME` makes one", file=sys.stderr)
            for known in known_tokens:
                print(f"{known.name}\t{datetime.fromtimestamp(known.created_unix, UTC):%Y-%m-%d %H:%M} UTC")
        elif revoke:
            store.revoke_token(name)
            print(f"revoked {name}")
        else:
            made = store.add_token(name)
            try:
                print(made, flush=True)
            except OSError:
                store.revoke_token(name)
                raise
