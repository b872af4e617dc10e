"""The kernel's state of a TCP connection, and its buffer sizes. Linux only; elsewhere connections work without both.

`limits.UNSENT_BYTES` (TCP_NOTSENT_LOWAT) keeps frames out of the kernel until they can be sent. A frame that waits in
the process can still age out, and the next one is coded for the current rate. Without the option the window of frames
in flight is the only bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Final

from splitedge import limits

_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)  # named from Python 3.12 on; 25 on Linux
#: Fields of Linux's struct tcp_info: tcpi_unacked (packets), tcpi_bytes_received, tcpi_notsent_bytes, tcpi_min_rtt
#: (microseconds).
_BYTES_RECEIVED: Final = struct.Struct("<128xQ")
_SENDING: Final = struct.Struct("<24xI100xQ8xII")
_NO_TRIP: Final = 0xFFFFFFFF  # min_rtt before the first one


@dataclass(frozen=True, slots=True)
class TcpSample:
    """``idle``: everything written is acknowledged.

    ``trip_s``: the least round trip that the kernel measured, None before the first.
    """

    idle: bool
    trip_s: float | None


def tune(transport: asyncio.Transport) -> None:
    """Disable Nagle's algorithm. Buffer at most one write in the process and `limits.UNSENT_BYTES` in the kernel."""
    transport.set_write_buffer_limits(high=1)  # with 0, asyncio's TLS transport stays paused with nothing to write
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # not Linux or macOS
            sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, limits.UNSENT_BYTES)


def bytes_received(transport: asyncio.Transport) -> int:
    """Bytes received so far, counted by the kernel.

    They show that a slow link with a long message is alive. 0 if unknown.
    """
    info = _info(transport, _BYTES_RECEIVED)
    return int(info[0]) if info else 0


def sample(transport: asyncio.Transport) -> TcpSample | None:
    """The state of the sending side; None if unknown."""
    info = _info(transport, _SENDING)
    if info is None or transport.get_write_buffer_size():
        return None
    unacked, _, unsent, trip = info
    return TcpSample(not unacked and not unsent, None if trip in (0, _NO_TRIP) else trip / 1e6)


def _info(transport: asyncio.Transport, form: struct.Struct) -> tuple[int, ...] | None:
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0 or not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, form.size)
    except OSError:  # not Linux's TCP
        return None
    return form.unpack(info) if len(info) == form.size else None
