"""Bearer tokens: the store keeps their SHA-256 only."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from edge_server.store.database import Database
from edge_server.store.names import check_name
from splitedge import errors


@dataclass(frozen=True, slots=True)
class Token:
    """A token's record; the token itself is not stored."""

    name: str
    created_unix: float


class Tokens:
    """The tokens of one store."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def add(self, name: str) -> str:
        """Create a token called ``name`` and return it; it cannot be read again.

        Raises `errors.UsageError` if the name is taken or invalid.
        """
        check_name(name, "token")
        token = "se_" + secrets.token_urlsafe(32)
        with self._database.transaction() as db:
            if db.execute("SELECT 1 FROM tokens WHERE name = ?", (name,)).fetchone():
                raise errors.UsageError(
                    f"a token named {name!r} exists: choose another name, or revoke it first", reason="token-exists"
                )
            db.execute("INSERT INTO tokens VALUES (?, ?, ?)", (name, _hash(token), self._clock()))
        return token

    def revoke(self, name: str) -> None:
        """Delete the token ``name``. Raises `errors.UsageError` if it does not exist."""
        with self._database.transaction() as db:
            if db.execute("DELETE FROM tokens WHERE name = ?", (name,)).rowcount == 0:
                raise errors.UsageError(
                    f"no token is named {name!r}: `edge-server token --list` lists them", reason="unknown-token"
                )

    def all(self) -> list[Token]:
        """All tokens, by name."""
        return [Token(*row) for row in self._database.read("SELECT name, created FROM tokens ORDER BY name")]

    def holder(self, token: str) -> str | None:
        """The name of ``token``, or None if it is unknown. Takes the same time however much of it is right."""
        offered = _hash(token)
        found = None
        for name, known in self._database.read("SELECT name, hash FROM tokens"):
            if hmac.compare_digest(offered, known):
                found = name
        return found


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
