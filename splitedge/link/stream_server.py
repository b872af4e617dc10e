"""The server side of the frame stream: one WebSocket request becomes one session that answers frames."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

from aiohttp import web

from splitedge import errors, limits
from splitedge.link.connection import MAX_MSG_SIZE, Connection
from splitedge.protocol.frames import Answer, Frame, Refusal
from splitedge.protocol.messages import Open
from splitedge.protocol.session import Event, Role, Session, wire_error

log = logging.getLogger(__name__)


class FrameHandler(Protocol):
    """Answers the frames of one opened plan. Several frames may be in progress at once."""

    async def answer(self, frame: Frame) -> tuple[bytes, int]:
        """The payload of the answer, and the tail's time in microseconds.

        ``frame.wait_ms`` is the time left for the frame, 0 without a limit.
        """
        ...


OpenPlan = Callable[[Open], Awaitable[FrameHandler]]

SESSIONS: Final = web.AppKey("sessions", set[Callable[[], None]])


def install(app: web.Application) -> None:
    """Close the sessions of ``app`` on shutdown: frames in flight are answered, then the agents reconnect."""
    sessions: set[Callable[[], None]] = set()
    app[SESSIONS] = sessions
    app.on_shutdown.append(_close_all)


async def serve_session(
    request: web.Request,
    open_plan: OpenPlan,
    *,
    workers: int = limits.SESSION_WORKERS,
    heartbeat_s: float = limits.HEARTBEAT,
    silence_s: float = limits.SILENCE,
    on_end: Callable[[errors.SplitEdgeError | None], object] = lambda _: None,
    on_reply: Callable[[errors.SplitEdgeError | None], object] = lambda _: None,
) -> web.WebSocketResponse:
    """Serve ``request`` as a frame session until it ends.

    If ``open_plan`` raises `errors.SplitEdgeError`, the agent gets it and the session ends. The handler gets up to
    ``workers`` frames at once; the rest of the window waits in order, and a frame that exceeds its time there is
    refused. An error of the handler refuses its frame, and the session continues. ``on_end`` is called with the reason
    of the end, None for an orderly one; ``on_reply`` for each frame with the reason of its refusal, None for an answer.
    """
    ws = web.WebSocketResponse(
        max_msg_size=MAX_MSG_SIZE,
        compress=False,
        autoclose=False,
        autoping=False,
        timeout=limits.CLOSE_TIMEOUT,
        writer_limit=0,
    )
    await ws.prepare(request)
    if request.transport is None:  # the client has disconnected
        return ws
    session = Session(Role.SERVER, asyncio.get_running_loop().time(), heartbeat_s=heartbeat_s, silence_s=silence_s)
    listener = _Listener(ws, request.transport, session, open_plan, workers, on_reply)
    sessions = request.app.get(SESSIONS, set())
    sessions.add(listener.close)
    try:
        await listener.run()
    finally:
        sessions.discard(listener.close)
        on_end(session.error)
    return ws


async def _close_all(app: web.Application) -> None:
    sessions = app[SESSIONS]
    for close in list(sessions):
        close()


class _Listener:
    def __init__(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport,
        session: Session,
        open_plan: OpenPlan,
        workers: int,
        on_reply: Callable[[errors.SplitEdgeError | None], object],
    ) -> None:
        self._session, self._open_plan, self._on_reply = session, open_plan, on_reply
        self._connection = Connection(ws, transport, session, self._on_event, self._next_reply)
        self._time = asyncio.get_running_loop().time
        self._workers = asyncio.Semaphore(workers)
        self._replies: deque[Answer | Refusal] = deque()  # at most the window; `_room` bounds their bytes
        self._written = asyncio.Event()  # set when a reply leaves `_replies`
        self._tasks: set[asyncio.Task[None]] = set()
        self._handler: FrameHandler | None = None

    async def run(self) -> None:
        try:
            await self._connection.run()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session.error is not None:
            log.info("session ended: %s", self._session.error)

    def close(self) -> None:
        self._session.close()
        self._connection.wake()

    def _on_event(self, event: Event, now: float) -> None:
        if isinstance(event, Open):
            self._spawn(self._open(event))
        elif isinstance(event, Frame):
            self._spawn(self._answer(event, now))

    async def _open(self, message: Open) -> None:
        try:
            self._handler = await self._open_plan(message)
            self._session.opened()
        except Exception as error:
            self._session.fail(_presentable(error, f"plan {message.plan[: limits.MAX_NAME]!r}"))
        self._connection.wake()

    async def _answer(self, frame: Frame, arrived: float) -> None:
        refused: errors.SplitEdgeError | None = None
        try:
            async with self._workers:
                await self._room()
                payload, tail_us = await self._tail(frame, arrived)
            total_us = int((self._time() - arrived) * 1e6)
            reply: Answer | Refusal = Answer(frame.seq, _u32(total_us - tail_us), _u32(tail_us), payload)
        except Exception as error:
            refused = _presentable(error, f"frame {frame.seq}")
            reply = Refusal(frame.seq, wire_error(refused))
        self._on_reply(refused)
        self._replies.append(reply)
        self._connection.wake()

    async def _room(self) -> None:
        """Wait while unread answers take `limits.MAX_INFLIGHT_BYTES`. Each worker may add one to them."""
        while sum(len(r.payload) for r in self._replies if isinstance(r, Answer)) >= limits.MAX_INFLIGHT_BYTES:
            self._written.clear()
            await self._written.wait()

    async def _tail(self, frame: Frame, arrived: float) -> tuple[bytes, int]:
        assert self._handler is not None  # the session refuses frames before Opened
        if frame.wait_ms:
            left_ms = frame.wait_ms - int((self._time() - arrived) * 1000)
            if left_ms <= 0:
                raise errors.LinkLostError(
                    f"the frame waited {frame.wait_ms} ms on the server, its maximum age; send fewer at once",
                    reason="aged",
                )
            frame = Frame(frame.seq, frame.codec, left_ms, frame.payload)
        payload, tail_us = await self._handler.answer(frame)
        if len(payload) > limits.MAX_FRAME_BYTES:
            raise errors.ModelError(
                f"an answer of {len(payload)} bytes is over the limit of {limits.MAX_FRAME_BYTES}; ask for topk",
                reason="answer-too-large",
            )
        return payload, tail_us

    def _next_reply(self, now: float) -> bytes | None:  # noqa: ARG002  the interface of Connection
        if not self._replies:
            return None
        self._written.set()
        return self._session.reply(self._replies.popleft())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _presentable(error: Exception, what: str) -> errors.SplitEdgeError:
    """The error for the agent. An internal error is logged with its traceback and reported without details."""
    if isinstance(error, errors.SplitEdgeError):
        return error
    log.error("%s failed", what, exc_info=error)
    return errors.SplitEdgeError(f"the server failed on {what}; see its log", reason="internal")


def _u32(value: int) -> int:
    return min(max(0, value), 0xFFFFFFFF)
