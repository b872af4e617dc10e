"""Plans by id, and the bit-width patterns from which plans are chosen."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edge_server.store.database import Database
from splitedge import errors, limits
from splitedge.protocol.messages import Plan


class Plans:
    """The plans of one store. They expire; the store holds at most `limits.MAX_PLANS`."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def put(self, plan: Plan) -> None:
        """Store ``plan``; delete expired plans, and those closest to expiry above the limit."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM plans WHERE expires < ?", (self._clock() - limits.PLAN_GRACE,))
            body = msgspec.json.encode(plan)
            db.execute("INSERT OR REPLACE INTO plans VALUES (?, ?, ?)", (plan.id, plan.expires_unix, body))
            db.execute(
                "DELETE FROM plans WHERE id IN (SELECT id FROM plans ORDER BY expires DESC LIMIT -1 OFFSET ?)",
                (limits.MAX_PLANS,),
            )

    def get(self, plan_id: str) -> Plan:
        """The plan ``plan_id``, up to `limits.PLAN_GRACE` seconds after expiry. Raises `errors.UnknownPlanError`."""
        oldest = self._clock() - limits.PLAN_GRACE
        rows = self._database.read("SELECT body FROM plans WHERE id = ? AND expires >= ?", (plan_id, oldest))
        if not rows:
            raise errors.UnknownPlanError(
                f"the plan {plan_id[:40]!r} is unknown or expired: request a new one", reason="unknown-plan"
            )
        return msgspec.json.decode(rows[0][0], type=Plan)


class Patterns:
    """The planner's patterns of at most `limits.KEPT_PATTERNS` bundles, as opaque bytes, by the bundle's SHA-256."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def put(self, bundle: str, body: bytes) -> None:
        """Store ``body`` unless it exceeds `limits.MAX_PATTERN_BYTES`; delete the oldest above the limit."""
        if len(body) > limits.MAX_PATTERN_BYTES:
            return
        with self._database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO patterns VALUES (?, ?, ?)", (bundle, self._clock(), body))
            db.execute(
                "DELETE FROM patterns WHERE bundle IN"
                " (SELECT bundle FROM patterns ORDER BY made DESC LIMIT -1 OFFSET ?)",
                (limits.KEPT_PATTERNS,),
            )

    def get(self, bundle: str) -> bytes | None:
        """The bytes that `put` stored for ``bundle``, or None. The caller checks that they are whole."""
        query = "SELECT body FROM patterns WHERE bundle = ? AND length(body) <= ?"
        rows = self._database.read(query, (bundle, limits.MAX_PATTERN_BYTES))
        return next((body for (body,) in rows), None)

    def forget(self, bundle: str) -> None:
        """Delete the patterns of ``bundle``."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM patterns WHERE bundle = ?", (bundle,))
