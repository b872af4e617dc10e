"""Real servers on loopback, and a relay that cuts, swallows or slows what passes."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
import trustme
from aiohttp import web

from splitedge import errors
from splitedge.link import stream_server
from splitedge.protocol.frames import Frame
from splitedge.protocol.messages import Open


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def ca_file(authority, tmp_path):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@contextlib.asynccontextmanager
async def serving(app: web.Application, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[str]:
    """``app`` on loopback; yields its address."""
    runner = web.AppRunner(app, shutdown_timeout=1.0, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    await site.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class Tail:
    """A handler that echoes, counts, and does what a test wants in between."""

    act: Callable[[Frame], object] = lambda frame: None
    gate: asyncio.Event | None = None  # answers wait for it
    opened: list[Open] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def open(self, message: Open) -> "Tail":
        self.opened.append(message)
        if message.plan != "plan":
            raise errors.UnknownPlanError("the plan is not known here; ask for a new one", plan=message.plan)
        return self

    async def answer(self, frame: Frame) -> tuple[bytes, int]:
        self.seen.append(frame.seq)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.gate is not None:
                await self.gate.wait()
            self.act(frame)
            return bytes(frame.payload), 10
        finally:
            self.at_once -= 1


def stream_app(tail: Tail, token: str = "secret", **options) -> web.Application:
    async def stream(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {token}":
            return web.json_response({"error": errors.AuthError("wrong token").to_wire()}, status=401)
        return await stream_server.serve_session(request, tail.open, **options)

    app = web.Application()
    stream_server.install(app)
    app.router.add_get("/v1/stream", stream)
    return app


class Relay:
    """A TCP relay to ``port``. ``swallow``: nothing passes and nothing closes. `cut` resets every connection.

    ``up_rate``: bytes a second that pass to ``port``.
    """

    def __init__(self, port: int, up_rate: int | None = None) -> None:
        self.port = port
        self.swallow = False
        self.up_rate = up_rate
        self.cut_after: int | None = None  # bytes to the client, of the next connection
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task] = set()

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 16)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_) -> None:
        self._server.close()
        await asyncio.sleep(0)  # a connection that was just accepted has its task now
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut()
        await asyncio.sleep(0)  # what was aborted closes in the loop's next round

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        budget, self.cut_after = self.cut_after, None
        self._tasks.add(asyncio.current_task())
        self._writers.add(writer)  # before the wait: it is closed also if the relay ends meanwhile
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(far_writer)
        await asyncio.gather(self._pass(reader, far_writer, None, up=True), self._pass(far_reader, writer, budget))

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None, up: bool = False
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(self.up_rate // 50 if up and self.up_rate else 1 << 14):
                if up and self.up_rate:
                    await asyncio.sleep(len(data) / self.up_rate)
                while self.swallow:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                if budget is not None and len(data) >= budget:
                    writer.write(data[:budget])
                    await writer.drain()
                    await asyncio.sleep(0.05)  # let it arrive: a reset would overtake it
                    self.cut()
                    return
                budget = None if budget is None else budget - len(data)
                writer.write(data)
                await writer.drain()
        writer.close()
