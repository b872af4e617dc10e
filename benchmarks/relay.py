"""A TCP relay on this machine that limits all its connections together to one rate: a slow link without root.

`benchmarks.links` emulates packets, delays and queues; it needs root. This relay delays bytes only.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

_PIECE: Final = 1448  # bytes sent at once, as many as a TCP segment carries


class Relay:
    """Relays connections at `port` to ``target`` on this machine, in a separate thread; a context manager.

    ``mbps``: Mbit/s each way, shared by all connections; None: unlimited. It may change at any time.
    """

    def __init__(self, target: int, mbps: float | None) -> None:
        self.mbps = mbps
        self.port = 0
        self._target = target
        self._free = [0.0, 0.0]  # time when each direction has sent its last byte, of `time.monotonic`
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._server = self._loop.run_until_complete(asyncio.start_server(self._connect, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):  # either side may close, or the relay may stop
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                await asyncio.gather(self._pump(0, reader, far_writer), self._pump(1, far_reader, writer))
            finally:
                far_writer.close()
        writer.close()

    async def _pump(self, direction: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy until the end; each piece leaves when its last bit leaves the link."""
        while data := await reader.read(_PIECE):
            await asyncio.sleep(self._wait_s(direction, len(data)))
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    def _wait_s(self, direction: int, size: int) -> float:
        if self.mbps is None:
            return 0.0
        now = time.monotonic()
        self._free[direction] = max(self._free[direction], now) + size * 8e-6 / self.mbps
        return self._free[direction] - now
