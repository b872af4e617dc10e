"""Drives one `Session` over one WebSocket, on both sides.

Three tasks read, write and keep time. They never wait for each other: on a link that silently drops bytes the writer
blocks, and the timer still ends the session. A single writer sends everything, so no message waits for the drain of
another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import aiohttp

from splitedge import errors, limits
from splitedge.link import tcp
from splitedge.protocol import frames
from splitedge.protocol.session import Event, Session

#: aiohttp (3.14 and later) refuses a message of this length or longer on its header, before it reads it.
MAX_MSG_SIZE: Final = frames.MAX_MESSAGE + 1

# Close codes after bytes that violate the protocol (RFC 6455, 7.4.1).
_BREACH: Final = {
    1002: "bad bytes",
    1003: "a message of the wrong type",
    1007: "bad text",
    1009: "a message that is too long",
}


class WebSocket(Protocol):
    """The common interface of aiohttp's client and server WebSockets."""

    async def receive(self) -> aiohttp.WSMessage: ...
    async def send_str(self, data: str) -> None: ...
    async def send_bytes(self, data: bytes) -> None: ...
    async def pong(self, message: bytes = b"") -> None: ...
    async def close(self) -> bool: ...


class Connection:
    """Runs ``session`` on ``ws``.

    ``on_event(event, now)`` gets each event; ``next_frame(now)`` returns the next binary message once the socket has
    room.
    """

    def __init__(
        self,
        ws: WebSocket,
        transport: asyncio.Transport,
        session: Session,
        on_event: Callable[[Event, float], None],
        next_frame: Callable[[float], bytes | None],
    ) -> None:
        self._ws, self._transport, self._session = ws, transport, session
        self._on_event, self._next_frame = on_event, next_frame
        self._time = asyncio.get_running_loop().time
        self._wake = asyncio.Event()
        self._received = tcp.bytes_received(transport)
        self._pong: bytes | None = None  # payload of a WebSocket ping, which a proxy may send
        tcp.tune(transport)

    def wake(self) -> None:
        """Call after anything that may give the writer work."""
        self._wake.set()

    def sample(self) -> tcp.TcpSample | None:
        """The kernel's state of the sending side."""
        return tcp.sample(self._transport)

    async def run(self) -> None:
        """Run until the session ends and the connection is closed.

        Raises only what `on_event` and `next_frame` raise.
        """
        reader, writer, clock = tasks = [self._task(self._read()), self._task(self._write()), self._task(self._beat())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            reader.cancel()
            clock.cancel()
            await self._part(writer)
        finally:
            self._transport.abort()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self._session.lost("the connection was broken off")
            await self._close()  # returns at once on an aborted connection, and frees it
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _part(self, writer: asyncio.Task[None]) -> None:
        """Write the last messages and close in order within `limits.CLOSE_TIMEOUT`.

        A dead connection is not waited for.
        """
        if self._session.broken or not self._session.ended:
            return
        self.wake()
        await asyncio.wait([writer], timeout=limits.CLOSE_TIMEOUT)
        if writer.done():
            await self._close()

    async def _close(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.CLOSE_TIMEOUT):
                await self._ws.close()

    async def _read(self) -> None:
        while not self._session.ended:
            message = await self._ws.receive()
            now = self._time()
            if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                self._received = tcp.bytes_received(self._transport)
                event = self._session.receive(message.data, now)
                if event is not None:
                    self._on_event(event, now)
            elif message.type in (aiohttp.WSMsgType.PING, aiohttp.WSMsgType.PONG):
                self._session.heard(now)
                self._pong = message.data if message.type is aiohttp.WSMsgType.PING else self._pong
            else:
                self._end(message)
            self.wake()

    def _end(self, message: aiohttp.WSMessage) -> None:
        """End the session after the last WebSocket message."""
        if isinstance(message.data, aiohttp.WebSocketError):
            self._session.fail(
                errors.ProtocolError(f"the peer violated the WebSocket protocol: {message.data}", reason="websocket")
            )
        elif message.type is aiohttp.WSMsgType.CLOSE and message.data in _BREACH:
            self._session.fail(
                errors.ProtocolError(
                    f"the peer refused {_BREACH[message.data]}; run the same splitedge version on both sides",
                    reason="refused",
                )
            )
        else:
            self._session.lost("the connection was closed by the peer")

    async def _write(self) -> None:
        try:
            while await self._write_one():
                pass
        except (ConnectionError, aiohttp.ClientError) as error:
            self._session.lost(f"the connection broke: {str(error)[:200] or type(error).__name__}")

    async def _write_one(self) -> bool:
        """Write the next message, or wait for one. False when the session ended and everything is written."""
        if self._pong is not None:
            data, self._pong = self._pong, None
            await self._ws.pong(data)
        elif (text := self._session.next_control()) is not None:
            await self._ws.send_str(text)
        elif not self._session.ended and (frame := self._next_frame(self._time())) is not None:
            await self._ws.send_bytes(frame)
        elif self._session.ended:
            return False
        else:
            self._wake.clear()
            await self._wake.wait()
        return True

    async def _beat(self) -> None:
        while not self._session.ended:
            await asyncio.sleep(max(0.0, self._session.next_deadline() - self._time()))
            before, self._received = self._received, tcp.bytes_received(self._transport)
            if self._received != before:
                self._session.heard(self._time())
            self._session.tick(self._time())
            self.wake()

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)
