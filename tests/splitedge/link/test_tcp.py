"""What the kernel says, of a real connection; and that it is told to hold little."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

import pytest

from splitedge import limits
from splitedge.link import tcp

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux's kernel says so much")


async def connected(served: asyncio.Event) -> tuple[asyncio.Server, asyncio.StreamWriter]:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await served.wait()
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
        writer.transport.abort()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0, limit=4096)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    return server, writer


@linux
async def test_a_connection_is_idle_once_all_is_acknowledged_and_not_while_it_is_stuck():
    served = asyncio.Event()
    server, writer = await connected(served)
    tcp.tune(writer.transport)
    sock = writer.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, tcp._NOTSENT_LOWAT) == limits.UNSENT_BYTES
    writer.write(b"x")
    await asyncio.sleep(0.05)
    seen = tcp.sample(writer.transport)
    assert seen is not None
    assert seen.idle
    assert seen.trip_s is not None
    assert 0 < seen.trip_s < 5
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    while not writer.transport.get_write_buffer_size():
        writer.write(bytes(1 << 20))
        await asyncio.sleep(0)
    assert tcp.sample(writer.transport) is None  # some of it is here still
    writer.transport.abort()
    served.set()
    await asyncio.sleep(0.05)
    server.close()


async def test_where_there_is_no_socket_nothing_is_known():
    class Pipe(asyncio.Transport):
        pass

    assert tcp.sample(Pipe()) is None
    assert tcp.bytes_received(Pipe()) == 0
