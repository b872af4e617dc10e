"""Messages of a service: lines on standard error, and under systemd entries of the journal with a priority and fields.

An entry keeps the text of its line, so `journalctl --priority warning` and `journalctl SPLITEDGE_EVENT=link-down` find
what a person reads. The journal's socket takes ``NAME=value`` lines (systemd's "native protocol").
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from splitedge import platform_check
from splitedge.platform_check import journaled

#: Priorities of syslog(3).
ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6
SOCKET: Final = Path("/run/systemd/journal/socket")
PREFIX: Final = "SPLITEDGE_"  # of the names of our fields


def log(
    program: str, text: str, priority: int = INFO, fields: Mapping[str, str] | None = None, *, place: Path = SOCKET
) -> None:
    """Write the line ``program: text``.

    If standard error is the journal, the line gets ``priority`` and ``fields``, whose names get `PREFIX` and upper
    case. A message that the journal does not accept goes to standard error with its priority only.
    """
    line = f"{program}: {_clean(text)}"
    if journaled():
        entry = {"MESSAGE": line, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": program}
        entry |= {f"{PREFIX}{name.upper()}": _clean(value) for name, value in (fields or {}).items()}
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as journal:
            journal.setblocking(False)
            journal.connect(str(place))
            journal.send("".join(f"{name}={value}\n" for name, value in entry.items()).encode("utf-8", "replace"))
            return
    print(f"{platform_check.priority(priority)}{line}", file=sys.stderr, flush=True)


def _clean(text: str) -> str:
    """``text`` on one line: a new line would begin another field."""
    return "".join(c for c in text if c.isprintable())
