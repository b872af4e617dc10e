"""The agent's side of the frame stream: one WebSocket at a time, reconnected when it breaks, and an account of every
frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import ssl as ssl_module
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from splitedge import errors, limits
from splitedge.backoff import Backoff
from splitedge.link import endpoint
from splitedge.link.adaptation import Adaptation
from splitedge.link.connection import MAX_MSG_SIZE, Connection
from splitedge.protocol.flight import Flight, Stats
from splitedge.protocol.frames import HEADER_BYTES, Answer, Refusal
from splitedge.protocol.messages import PROTOCOL_VERSION, Open, Opened
from splitedge.protocol.session import Event, Role, Session


class LinkState(enum.Enum):
    """State of the connection to the server."""

    NEW = "new"
    CONNECTING = "connecting"  # connecting and opening the plan
    STREAMING = "streaming"
    WAITING = "waiting"  # for the next attempt
    FAILED = "failed"  # by an error that a retry cannot fix
    CLOSED = "closed"


TRANSITIONS: Final[dict[LinkState, tuple[LinkState, ...]]] = {
    LinkState.NEW: (LinkState.CONNECTING, LinkState.CLOSED),
    LinkState.CONNECTING: (LinkState.STREAMING, LinkState.WAITING, LinkState.FAILED, LinkState.CLOSED),
    LinkState.STREAMING: (LinkState.WAITING, LinkState.FAILED, LinkState.CLOSED),
    LinkState.WAITING: (LinkState.CONNECTING, LinkState.CLOSED),
    LinkState.FAILED: (LinkState.CLOSED,),
    LinkState.CLOSED: (),
}


class FrameStream:
    """Sends frames of one plan and returns their answers, over as many connections as it takes.

    ``async with stream:`` starts to connect and does not wait. At most ``window`` frames (and
    `limits.MAX_INFLIGHT_BYTES`) are in flight. Each is answered, refused, aged out after ``frame_age_s``, or failed;
    `stats` counts them. When the server is unreachable for more than ``max_away_s``, frames fail at once until it is
    back. ``ssl`` is a context from `endpoint.tls_context`; None trusts the system's CA certificates. ``adaptation``
    gets every frame that is written or answered. Raises `errors.UsageError` for an invalid address, or a token that
    would be sent unencrypted (unless ``allow_insecure``).
    """

    def __init__(
        self,
        base_url: str,
        token: str | None,
        plan_id: str,
        *,
        topk: int = 5,
        window: int = limits.WINDOW,
        protocol: int = PROTOCOL_VERSION,
        max_away_s: float = 10.0,
        frame_age_s: float = limits.FRAME_AGE,
        ssl: ssl_module.SSLContext | None = None,
        allow_insecure: bool = False,
        adaptation: Adaptation | None = None,
        heartbeat_s: float = limits.HEARTBEAT,
        silence_s: float = limits.SILENCE,
        backoff_first_s: float = limits.BACKOFF_FIRST,
        backoff_max_s: float = limits.BACKOFF_MAX,
    ) -> None:
        self._base = endpoint.server_url(base_url, token, allow_insecure=allow_insecure)
        self._headers, self._ssl = endpoint.headers(token), ssl
        self._open = Open(plan_id, topk=topk, window=max(1, min(window, limits.MAX_WINDOW)), protocol=protocol)
        self._max_away_s, self._frame_age_s = max_away_s, frame_age_s
        self._times = {"heartbeat_s": heartbeat_s, "silence_s": silence_s}
        self._backoff = Backoff(backoff_first_s, backoff_max_s)
        self._adaptation = adaptation
        self.state = LinkState.NEW
        self.on_state: Callable[[], object] = lambda: None  # called after each change of `state`
        self.error: errors.SplitEdgeError | None = None  # why `state` is FAILED, or why the last connection ended
        self._flight = Flight(self._open.window)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._unsent: deque[int] = deque()  # numbers not yet sent in this session
        self._leaving: dict[int, Callable[[], object]] = {}
        self._session: Session | None = None
        self._connection: Connection | None = None
        self._away_since: float | None = None
        self._ever_open, self._opened_at = False, 0.0
        self._turn = asyncio.Lock()  # callers get room in their order
        self._changed = asyncio.Event()  # set when there is room, or the state changed
        self._timer: asyncio.TimerHandle | None = None
        self._runner: asyncio.Task[None] | None = None

    @property
    def stats(self) -> Stats:
        """Live counts; copy them with `dataclasses.replace`."""
        return self._flight.stats

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._away_since = self._loop.time()
        self._runner = self._loop.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self._drain()
        finally:  # a cancelled caller leaves no task and no socket
            await self._shut()

    async def _shut(self) -> None:
        failed = self.state is LinkState.FAILED  # then the runner ends by itself
        self._enter(LinkState.CLOSED)
        self._fail_all(
            errors.LinkLostError("the stream was closed before the frame was answered", reason="closed-before-answer")
        )
        if self._timer is not None:
            self._timer.cancel()
        assert self._runner is not None
        if self._session is not None and self._connection is not None:
            self._session.close()
            self._connection.wake()
        try:
            if failed or self._connection is not None:
                await asyncio.wait([self._runner], timeout=limits.CLOSE_TIMEOUT)
        finally:
            self._runner.cancel()
            await asyncio.wait([self._runner])
        if not self._runner.cancelled():
            self._runner.result()

    async def ready(self) -> None:
        """Wait until the stream is open. Raises as `send`."""
        while self.state is not LinkState.STREAMING:
            self._check()
            self._changed.clear()
            self._arm()
            await self._changed.wait()

    async def send(
        self,
        payload: bytes,
        codec: int,
        deadline: float | None = None,
        leaving: Callable[[], object] = lambda: None,
    ) -> Answer:
        """Wait for room in the window, send one frame coded by ladder entry ``codec``, and return its answer.

        ``deadline``: when the frame ages out, by the event loop's clock; default ``frame_age_s`` after it got room.
        ``leaving`` is called when the frame
        is first written to a connection. If the caller is cancelled, its frame stays in flight and is counted when it
        ends.

        Raises the server's error for a refused frame; `errors.AgedError` if it ages out unsent; `errors.LinkLostError`
        if it ages out later, or the server is unreachable for ``max_away_s`` (`errors.UnreachableError` if it never
        answered); and at once every error that a retry cannot fix: `errors.AuthError`, `errors.UnknownPlanError`,
        `errors.ProtocolError`, a certificate.
        """
        if len(payload) > limits.MAX_FRAME_BYTES:
            raise errors.ProtocolError(
                f"a frame of {len(payload)} bytes exceeds the limit of {limits.MAX_FRAME_BYTES}; use fewer bits or a "
                "later cut",
                reason="frame-too-large",
            )
        async with self._turn:
            await self._room(len(payload))
            seq = self._flight.accept(payload, codec, deadline or self._loop.time() + self._frame_age_s)
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[seq] = answer
        self._leaving[seq] = leaving
        self._unsent.append(seq)
        self._arm()
        if self._connection is not None:
            self._connection.wake()
        return await answer

    # --- room and accounts

    async def _room(self, size: int) -> None:
        while True:
            self._check()
            if self._flight.has_room(size):
                return
            self._changed.clear()
            self._arm()
            await self._changed.wait()

    def _check(self) -> None:
        """Raise the reason if no frame can be sent now."""
        if self._runner is None or self.state is LinkState.CLOSED:
            raise errors.LinkLostError("the stream is closed; open a new one", reason="closed")
        if self.state is LinkState.FAILED and self.error is not None:
            raise self.error.copy()
        if self._loop.time() >= self._away_deadline():
            raise self._away_error()

    def _away_deadline(self) -> float:
        return float("inf") if self._away_since is None else self._away_since + self._max_away_s

    def _away_error(self) -> errors.SplitEdgeError:
        if not self._ever_open:
            last = self.error or endpoint.explain(TimeoutError(), self._base)
            return errors.UnreachableError(last.message, **last.data)
        reason = f" ({self.error.message})" if self.error else ""
        return errors.LinkLostError(
            f"the server {self._base.origin()} has been unreachable for more than {self._max_away_s:g} s{reason}",
            reason="away",
        )

    def _settle(self, reply: Answer | Refusal, now: float) -> None:
        error = errors.from_wire(reply.error) if isinstance(reply, Refusal) else None
        self._tell(reply, now)
        if not self._flight.settle(reply, now):
            return
        if error is not None:
            self._raise_in([reply.seq], error)
        elif isinstance(reply, Answer):
            future = self._waiting.pop(reply.seq)
            if not future.done():
                future.set_result(reply)
        self._changed.set()

    def _fail_all(self, error: errors.SplitEdgeError) -> None:
        self._flight.fail_all()
        self._raise_in(list(self._waiting), error)
        self._changed.set()

    def _raise_in(self, numbers: list[int], error: errors.SplitEdgeError) -> None:
        for seq in numbers:
            self._leaving.pop(seq, None)
            future = self._waiting.pop(seq)
            if not future.done():
                future.set_exception(error.copy())

    def _arm(self) -> None:
        """Schedule `_on_time` for the next deadline of a frame, or of the server's absence."""
        when = min(self._flight.next_deadline(), self._away_deadline())
        if self._timer is not None and self._timer.when() > when:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and when != float("inf"):
            self._timer = self._loop.call_at(when, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        now = self._loop.time()
        unsent, aged = set(self._unsent), self._flight.expire(now)
        self._raise_in([seq for seq in aged if seq in unsent], errors.AgedError(AGED))
        self._raise_in(
            [seq for seq in aged if seq not in unsent],
            errors.LinkLostError(
                "no answer arrived in time; check the network or send fewer frames", reason="no-answer"
            ),
        )
        if now >= self._away_deadline():
            self._fail_all(self._away_error())
        self._changed.set()
        if self._flight:
            self._arm()

    async def _drain(self) -> None:
        """Wait up to `limits.CLOSE_TIMEOUT` for frames in flight."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.CLOSE_TIMEOUT):
                while self._flight:
                    self._changed.clear()
                    await self._changed.wait()

    # --- the connection

    async def _run(self) -> None:
        """Connect, stream, wait and reconnect, until the stream is closed or an error is permanent."""
        connector = aiohttp.TCPConnector(limit=1, force_close=True)
        async with aiohttp.ClientSession(
            connector=connector, ws_response_class=_Socket, trace_configs=[_no_redirects()]
        ) as http:
            while await self._attempt(http):
                lived = self._loop.time() - self._opened_at if self.state is LinkState.STREAMING else 0.0
                if lived > self._backoff.base:
                    self._backoff.reset()
                self._enter(LinkState.WAITING)
                await asyncio.sleep(self._backoff.next())

    async def _attempt(self, http: aiohttp.ClientSession) -> bool:
        """One connection. Returns whether to try another."""
        self._enter(LinkState.CONNECTING)
        try:
            await self._connect(http)
        except errors.SplitEdgeError as error:
            self.error = error
            if not endpoint.heals(error):
                self._give_up(error)
        except Exception as error:  # an internal error: callers must not wait for ever
            self._give_up(
                errors.SplitEdgeError(f"internal error of the stream ({error!r}); please report it", reason="internal")
            )
            raise
        return self.state not in (LinkState.CLOSED, LinkState.FAILED)

    def _give_up(self, error: errors.SplitEdgeError) -> None:
        if self.state is not LinkState.CLOSED:
            self.error = error
            self._enter(LinkState.FAILED)
            self._fail_all(error)

    async def _connect(self, http: aiohttp.ClientSession) -> None:
        """One connection from start to end. Raises the reason of its end, unless the server closed it in order."""
        ws = await self._dial(http)
        session = self._session = Session(Role.AGENT, self._loop.time(), **self._times)
        session.open(self._open)
        self._connection = Connection(ws, ws.transport, session, self._on_event, self._next_frame)
        try:
            await self._connection.run()
        finally:
            self._session = self._connection = None
            if self._adaptation is not None:
                self._adaptation.disconnected()
            if self._away_since is None:
                self._away_since = self._loop.time()
                self._arm()
        if session.error is not None:
            raise session.error

    async def _dial(self, http: aiohttp.ClientSession) -> _Socket:
        url = self._base / "v1/stream"
        try:
            async with asyncio.timeout(limits.CONNECT_TIMEOUT):
                return await http.ws_connect(  # type: ignore[return-value]  # ws_response_class of this session
                    url,
                    headers=self._headers,
                    ssl=self._ssl or True,
                    max_msg_size=MAX_MSG_SIZE,
                    compress=0,
                    autoclose=False,
                    autoping=False,
                )
        except aiohttp.WSServerHandshakeError as error:
            raise endpoint.status_error(error.status, url) from error
        except (aiohttp.ClientError, OSError) as error:
            raise await endpoint.explained(error, url, self._ssl) from error

    def _on_event(self, event: Event, now: float) -> None:
        if isinstance(event, Opened):
            self.stats.reconnects += self._ever_open
            self._ever_open, self._away_since, self.error = True, None, None
            self._opened_at = now
            self._unsent = deque(self._flight)
            self._enter(LinkState.STREAMING)
        elif isinstance(event, Answer | Refusal):
            self._settle(event, now)

    def _next_frame(self, now: float) -> bytes | None:
        if now >= self._flight.next_deadline():
            self._on_time()
        while self._session is not None and self._unsent:
            size = self._flight.size(self._unsent[0])
            if size is None:  # aged out unsent
                self._unsent.popleft()
            elif self._session.has_room(size):
                return self._written(self._session, self._unsent.popleft(), now)
            else:
                break
        return None

    def _written(self, session: Session, seq: int, now: float) -> bytes:
        """The message of frame ``seq``, reported to its caller and to the adaptation."""
        frame = self._flight.frame(seq, now)
        if (leaving := self._leaving.pop(seq, None)) is not None:
            leaving()
        if self._adaptation is not None:
            self._sample(now)
            self._adaptation.sent(seq, frame.codec, HEADER_BYTES + len(frame.payload), now)
        return session.send(frame)

    def _tell(self, reply: Answer | Refusal, now: float) -> None:
        """Report a reply to the adaptation, also a late one: its frame used the link too."""
        if self._adaptation is None:
            return
        if isinstance(reply, Answer):
            self._adaptation.acked(reply.seq, now, (reply.queue_us + reply.tail_us) / 1e6)
        else:
            self._adaptation.lost(reply.seq)
        self._sample(now)

    def _sample(self, now: float) -> None:
        if (
            self._adaptation is not None
            and self._connection is not None
            and (seen := self._connection.sample()) is not None
        ):
            self._adaptation.tcp(seen, now)

    def _enter(self, state: LinkState) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state
        self._changed.set()
        self.on_state()


AGED: Final = (
    "the frame exceeded its maximum age before it was sent, and was dropped; send fewer, or allow a greater age"
)


class _Socket(aiohttp.ClientWebSocketResponse):
    """A client WebSocket that has its transport, and waits after each message until the transport has taken it."""

    def __init__(self, reader: Any, writer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(reader, writer, *args, **kwargs)
        writer._limit = 0  # aiohttp's client has no public option for it; the server's is writer_limit
        self.transport: asyncio.Transport = writer.transport


def _no_redirects() -> aiohttp.TraceConfig:
    """Fail a request on a redirect, which may lead to another server or out of TLS.

    `ws_connect` has no option for it.
    """

    async def refuse(_: aiohttp.ClientSession, __: object, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        redirect.response.close()
        raise endpoint.status_error(redirect.response.status, redirect.url)

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(refuse)
    return config
