"""The agent's end of the frame stream: one WebSocket at a time, dialled again when it breaks, and the account of every frame."""

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
from splitedge.link.connection import MAX_MSG_SIZE, Pump
from splitedge.protocol.flight import Flight, Stats
from splitedge.protocol.frames import HEADER_BYTES, Answer, Refusal
from splitedge.protocol.messages import Open, Opened
from splitedge.protocol.session import Event, Role, Session


class LinkState(enum.Enum):
    """Where the stream is in reaching its server."""

    NEW = "new"
    CONNECTING = "connecting"  # dialling and opening the plan
    STREAMING = "streaming"
    WAITING = "waiting"  # for the next attempt
    FAILED = "failed"  # by an error that trying again does not heal
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

    ``async with stream:`` starts dialling and does not wait for it. At most ``window`` frames (and `limits.MAX_INFLIGHT_BYTES`) are in
    flight; each is answered, refused, aged out after ``frame_age_s``, or failed, and `stats` says how many of each. When the server is away
    for more than ``max_away_s``, frames fail at once until it is back. ``ssl`` is a context from `endpoint.tls_context`; None trusts the
    system's authorities. Raises `errors.UsageError` for an address that is none, or a token that would cross a network in the clear
    (unless ``allow_insecure``). ``adaptation`` is told of every frame that is written and answered.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None,
        plan_id: str,
        *,
        topk: int = 5,
        window: int = 8,
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
        self._open = Open(plan_id, topk=topk, window=max(1, min(window, limits.MAX_WINDOW)))
        self._max_away_s, self._frame_age_s = max_away_s, frame_age_s
        self._times = {"heartbeat_s": heartbeat_s, "silence_s": silence_s}
        self._backoff = Backoff(backoff_first_s, backoff_max_s)
        self._adaptation = adaptation
        self.state = LinkState.NEW
        self.on_state: Callable[[], object] = lambda: None  # called after each change of the state
        self.error: errors.SplitEdgeError | None = None  # why the state is FAILED, or why the last connection ended
        self._flight = Flight(self._open.window)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._unsent: deque[int] = deque()  # numbers not yet sent in this session
        self._leaving: dict[int, Callable[[], object]] = {}
        self._session: Session | None = None
        self._pump: Pump | None = None
        self._away_since: float | None = None
        self._ever_open, self._opened_at = False, 0.0
        self._turn = asyncio.Lock()  # callers take room in the order in which they came
        self._changed = asyncio.Event()  # room was made, or the state changed
        self._timer: asyncio.TimerHandle | None = None
        self._runner: asyncio.Task[None] | None = None

    @property
    def stats(self) -> Stats:
        """The counts, live: copy them with `dataclasses.replace` to keep them."""
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
        finally:  # a caller that is cancelled in between leaves no task and no socket behind
            await self._shut()

    async def _shut(self) -> None:
        failed = self.state is LinkState.FAILED  # then the runner is about to end by itself
        self._enter(LinkState.CLOSED)
        self._fail_all(errors.LinkLostError("the stream was closed before the frame was answered"))
        if self._timer is not None:
            self._timer.cancel()
        assert self._runner is not None
        if self._session is not None and self._pump is not None:
            self._session.close()
            self._pump.wake()
        try:
            if failed or self._pump is not None:
                await asyncio.wait([self._runner], timeout=limits.CLOSE_TIMEOUT)
        finally:
            self._runner.cancel()
            await asyncio.wait([self._runner])
        if not self._runner.cancelled():
            self._runner.result()

    async def ready(self) -> None:
        """Wait until frames flow. Raises what `send` raises when they cannot."""
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
        """Send one frame, coded by ladder entry ``codec``, and return its answer; the wait for room in the window comes first.

        ``deadline``: when it ages out, by the event loop's clock, if not ``frame_age_s`` after it got room. ``leaving`` is called when it is first
        written to a connection.

        Raises the server's error if it refuses the frame; `errors.AgedError` if it aged out before it was sent; `errors.LinkLostError` if that was
        later, or the server is away for
        longer than ``max_away_s`` (`errors.UnreachableError` if it never was there); at once whatever no new attempt can heal:
        `errors.AuthError`, `errors.UnknownPlanError`, `errors.ProtocolError`, a certificate. A caller that is cancelled
        leaves its frame in flight; it is counted when it ends.
        """
        if len(payload) > limits.MAX_FRAME_BYTES:
            raise errors.ProtocolError(
                f"a frame of {len(payload)} bytes is over the limit of {limits.MAX_FRAME_BYTES}; use fewer bits or a later cut"
            )
        async with self._turn:
            await self._room(len(payload))
            seq = self._flight.accept(payload, codec, deadline or self._loop.time() + self._frame_age_s)
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[seq] = answer
        self._leaving[seq] = leaving
        self._unsent.append(seq)
        self._arm()
        if self._pump is not None:
            self._pump.wake()
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
        """Raise why no frame can be taken now, if so."""
        if self._runner is None or self.state is LinkState.CLOSED:
            raise errors.LinkLostError("the stream is closed; open a new one")
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
            f"the server {self._base.origin()} has been away for more than {self._max_away_s:g} s{reason}"
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
        """See to it that `_on_time` runs when the next frame ages out or the server has been away too long."""
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
            errors.LinkLostError("no answer came in time; check the network or ask for less"),
        )
        if now >= self._away_deadline():
            self._fail_all(self._away_error())
        self._changed.set()
        if self._flight:
            self._arm()

    async def _drain(self) -> None:
        """Give frames in flight `limits.CLOSE_TIMEOUT` to end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.CLOSE_TIMEOUT):
                while self._flight:
                    self._changed.clear()
                    await self._changed.wait()

    # --- the connection

    async def _run(self) -> None:
        """Dial, stream, wait and dial again, until closed or an error that does not heal."""
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
        """One connection. Whether to try another."""
        self._enter(LinkState.CONNECTING)
        try:
            await self._connection(http)
        except errors.SplitEdgeError as error:
            self.error = error
            if not endpoint.heals(error):
                self._give_up(error)
        except Exception as error:  # a defect of ours: no caller may wait for ever because of it
            self._give_up(
                errors.SplitEdgeError(f"the stream stopped on an internal error ({error!r}); please report it")
            )
            raise
        return self.state not in (LinkState.CLOSED, LinkState.FAILED)

    def _give_up(self, error: errors.SplitEdgeError) -> None:
        if self.state is not LinkState.CLOSED:
            self.error = error
            self._enter(LinkState.FAILED)
            self._fail_all(error)

    async def _connection(self, http: aiohttp.ClientSession) -> None:
        """One connection from dial to end. Raises why it ended, unless the server closed it in order."""
        ws = await self._dial(http)
        session = self._session = Session(Role.AGENT, self._loop.time(), **self._times)
        session.open(self._open)
        self._pump = Pump(ws, ws.transport, session, self._on_event, self._next_frame)
        try:
            await self._pump.run()
        finally:
            self._session = self._pump = None
            if self._adaptation is not None:
                self._adaptation.cut()
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
            if size is None:  # aged out before it was sent
                self._unsent.popleft()
            elif self._session.has_room(size):
                return self._written(self._session, self._unsent.popleft(), now)
            else:
                break
        return None

    def _written(self, session: Session, seq: int, now: float) -> bytes:
        """Frame ``seq`` as it goes out, told to whom it concerns."""
        frame = self._flight.frame(seq, now)
        if (leaving := self._leaving.pop(seq, None)) is not None:
            leaving()
        if self._adaptation is not None:
            self._sample(now)
            self._adaptation.sent(seq, frame.codec, HEADER_BYTES + len(frame.payload), now)
        return session.send(frame)

    def _tell(self, reply: Answer | Refusal, now: float) -> None:
        """Tell the adaptation of a reply; of a late one too, whose frame was on the link all the same."""
        if self._adaptation is None:
            return
        if isinstance(reply, Answer):
            self._adaptation.acked(reply.seq, now, (reply.queue_us + reply.tail_us) / 1e6)
        else:
            self._adaptation.lost(reply.seq)
        self._sample(now)

    def _sample(self, now: float) -> None:
        if self._adaptation is not None and self._pump is not None and (seen := self._pump.sample()) is not None:
            self._adaptation.tcp(seen, now)

    def _enter(self, state: LinkState) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state
        self._changed.set()
        self.on_state()


AGED: Final = "the frame waited longer than it may and was dropped; send fewer, or allow a greater age"


class _Socket(aiohttp.ClientWebSocketResponse):
    """A client's WebSocket that shows its transport and waits after each message until the transport took it."""

    def __init__(self, reader: Any, writer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(reader, writer, *args, **kwargs)
        writer._limit = 0  # aiohttp's client has no public name for it; the server's is writer_limit
        self.transport: asyncio.Transport = writer.transport


def _no_redirects() -> aiohttp.TraceConfig:
    """Ends a request at its first redirect, which may lead to another server or out of TLS; `ws_connect` has no option for it."""

    async def refuse(_: aiohttp.ClientSession, __: object, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        redirect.response.close()
        raise endpoint.status_error(redirect.response.status, redirect.url)

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(refuse)
    return config
