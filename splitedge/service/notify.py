"""A client of systemd's notification socket (sd_notify(3)): readiness, status, watchdog.

Without ``NOTIFY_SOCKET`` in the environment, every call does nothing and returns False.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping

from splitedge.errors import PlatformError

MAX_STATUS = 500  # characters of a status line

# Prefixes of status lines, from which `service install` and `service status` read the state of the program.
READY = "ready"
WAITING = "waiting for the server"
REFUSED = "refused by the server"


def watched() -> bool:
    """Whether systemd started this process and listens to it."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def state(text: str, *, ready: bool) -> str:
    """The status line for ``text``. ``ready``: the program serves frames."""
    return f"{READY}: {text}" if ready and text != READY else text


def ready(status: str = "") -> bool:
    """Start-up is finished: `systemctl start` returns."""
    return send({"READY": "1"} | ({"STATUS": status} if status else {}))


def status(text: str) -> bool:
    """One line for `systemctl status`, without control characters, which could add a field to the message."""
    return send({"STATUS": text})


def watchdog() -> bool:
    """The program is alive. systemd restarts a service that does not send this for ``WatchdogSec``."""
    return send({"WATCHDOG": "1"})


def stopping() -> bool:
    """Shut-down has begun."""
    return send({"STOPPING": "1"})


async def keep_alive(alive: Callable[[], bool] = lambda: True) -> None:
    """Feed the watchdog from the event loop while ``alive()``, until cancelled. So it detects a blocked loop, and what
    ``alive`` looks at. Returns at once without a watchdog.
    """
    period = watchdog_interval()
    while period is not None:
        with contextlib.suppress(PlatformError):  # systemd may restart itself
            if alive():
                watchdog()
        await asyncio.sleep(period / 3)


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """The watchdog period of this process in seconds, or None without a watchdog."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) > 0 else None


def send(fields: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> bool:
    """Send ``NAME=value`` lines as one datagram, without waiting.

    Returns False if there is no socket or its queue is full. Raises `PlatformError` if the socket in the environment is
    not usable.
    """
    name = environ.get("NOTIFY_SOCKET", "")
    if not name:
        return False
    if name[0] not in "@/":
        raise PlatformError(
            f"NOTIFY_SOCKET={name[:100]} is not a Unix socket; unset it, or start the program with systemd",
            reason="not-a-socket",
        )
    message = "\n".join(f"{key}={_clean(value)}" for key, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
            notifier.setblocking(False)
            notifier.connect("\0" + name[1:] if name[0] == "@" else name)
            notifier.send(message.encode())
    except BlockingIOError:
        return False
    except OSError as error:
        reason = error.strerror or error
        raise PlatformError(
            f"the systemd socket {name[:100]} refuses messages ({reason}); restart the service",
            reason="refused",
        ) from error
    return True


def _clean(value: str) -> str:
    return "".join(c if c.isprintable() else " " for c in value)[:MAX_STATUS]
