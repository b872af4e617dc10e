"""The last words of a service that fails."""

from __future__ import annotations

import os
from contextlib import suppress

from splitedge.errors import PlatformError


def keep(message: str) -> None:
    """Keep ``message`` as the status of the failed service, where `service status` finds it."""
    if os.environ.get("NOTIFY_SOCKET"):
        from splitedge.service import notify

        with suppress(PlatformError):
            notify.status(message)
