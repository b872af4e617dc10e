"""One connection between agent and server as a state machine. Messages in, events and messages out; no sockets, no
clock.

Time is an argument (``now``, seconds on any clock that never goes back). Rules:

- `TRANSITIONS` is the complete machine, for both roles. Anything else violates the protocol.
- Bad bytes never raise. The session becomes FAILED with `error`, and the peer gets Failed. A Failed from the peer is
  not answered.
- Frame numbers ascend within a session. A repeated or lower number violates the protocol. Gaps are allowed, for frames
  that aged out unsent.
- Each frame gets exactly one answer or refusal in a session. It counts against the window until then, even if its
  sender no longer waits for it, because the window bounds the receiver's memory.
- A side sends Ping after ``heartbeat_s`` without a whole message, even while bytes of a long one arrive: the peer's own
  Ping waits behind that message. The session ends after ``silence_s`` without a byte, or after `limits.REQUEST_TIMEOUT`
  without a whole message.
- After Close the session lasts until nothing is in flight. Its receiver sends no more frames.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from typing import Any, Final

import msgspec

from splitedge import errors, limits
from splitedge.protocol import frames
from splitedge.protocol.frames import Answer, Buffer, Frame, Refusal
from splitedge.protocol.messages import (
    PROTOCOL_VERSION,
    Close,
    Failed,
    Open,
    Opened,
    Ping,
    Pong,
    SessionMessage,
    decode,
    encode,
    is_served,
)


class Role(enum.Enum):
    AGENT = "agent"
    SERVER = "server"


class State(enum.Enum):
    NEW = "NEW"
    OPENING = "OPENING"
    OPEN = "OPEN"
    CLOSING = "CLOSING"  # we sent Close
    DRAINING = "DRAINING"  # the peer sent Close
    CLOSED = "CLOSED"
    FAILED = "FAILED"


class Input(enum.Enum):
    """An input of the machine: a message sent or received, or an event of the connection."""

    OPEN = "Open"
    OPENED = "Opened"
    FRAME = "frame"
    REPLY = "answer or refusal"
    BEAT = "Ping or Pong"
    CLOSE_SENT = "Close sent"
    CLOSE_RECEIVED = "Close received"
    IDLE = "nothing in flight"
    FAIL = "Failed, bad bytes, silence"


TRANSITIONS: Final[dict[tuple[State, Input], State]] = {
    (State.NEW, Input.OPEN): State.OPENING,
    (State.NEW, Input.CLOSE_SENT): State.CLOSED,
    (State.NEW, Input.FAIL): State.FAILED,
    (State.OPENING, Input.OPENED): State.OPEN,
    (State.OPENING, Input.BEAT): State.OPENING,
    (State.OPENING, Input.CLOSE_SENT): State.CLOSED,
    (State.OPENING, Input.CLOSE_RECEIVED): State.CLOSED,
    (State.OPENING, Input.FAIL): State.FAILED,
    (State.OPEN, Input.FRAME): State.OPEN,
    (State.OPEN, Input.REPLY): State.OPEN,
    (State.OPEN, Input.BEAT): State.OPEN,
    (State.OPEN, Input.CLOSE_SENT): State.CLOSING,
    (State.OPEN, Input.CLOSE_RECEIVED): State.DRAINING,
    (State.OPEN, Input.FAIL): State.FAILED,
    # A Close may cross frames or another Close.
    (State.CLOSING, Input.FRAME): State.CLOSING,
    (State.CLOSING, Input.REPLY): State.CLOSING,
    (State.CLOSING, Input.BEAT): State.CLOSING,
    (State.CLOSING, Input.CLOSE_RECEIVED): State.DRAINING,
    (State.CLOSING, Input.IDLE): State.CLOSED,
    (State.CLOSING, Input.FAIL): State.FAILED,
    (State.DRAINING, Input.REPLY): State.DRAINING,
    (State.DRAINING, Input.BEAT): State.DRAINING,
    (State.DRAINING, Input.IDLE): State.CLOSED,
    (State.DRAINING, Input.FAIL): State.FAILED,
}

#: An event for the caller: the peer's Open or Opened, a frame to answer, or a reply to a frame.
Event = Open | Opened | Frame | Answer | Refusal

_RECEIVES: Final[dict[Role, tuple[type, ...]]] = {
    Role.AGENT: (Opened, Answer, Refusal, Ping, Pong, Failed, Close),
    Role.SERVER: (Open, Frame, Ping, Pong, Failed, Close),
}


def transition_table() -> str:
    """`TRANSITIONS` as a Markdown table: a row for each state, a column for each input."""
    rows = [["state", *(f"{i.value}" for i in Input)], ["---"] * (1 + len(Input))]
    for state in State:
        cells = [TRANSITIONS.get((state, i)) for i in Input]
        rows.append([state.value, *(cell.value if cell else "" for cell in cells)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def wire_error(error: errors.SplitEdgeError) -> dict[str, Any]:
    """``error`` for a control message: its message cut at 500 characters, without data that is large or not JSON."""
    try:
        small = len(msgspec.json.encode(error.data)) <= limits.MAX_MESSAGE_BYTES // 4
    except (TypeError, ValueError, RecursionError):
        small = False
    return {"code": error.code, "message": error.message[:500], "data": error.data if small else {}}


class Session:
    """One side of one connection.

    The caller passes input to `receive`, `heard` and `tick`, acts with `open`, `opened`, `send`, `reply`, `close`,
    `fail` and `lost`, and writes the results of `next_control`, `send` and `reply`. The session is over when `ended`;
    `error` is None after an orderly end.
    """

    def __init__(
        self, role: Role, now: float, *, heartbeat_s: float = limits.HEARTBEAT, silence_s: float = limits.SILENCE
    ) -> None:
        self.role = role
        self.state = State.NEW
        self.error: errors.SplitEdgeError | None = None
        self.broken = False  # the connection is dead: no closing handshake
        self.window = limits.MAX_WINDOW
        self._heartbeat_s, self._silence_s = heartbeat_s, silence_s
        self._started = self._last_byte = self._last_message = self._last_ping = now
        self._last_seq = -1
        self._in_flight: dict[int, int] = {}  # payload bytes by number, of frames without a reply in this session
        self._bytes_in_flight = 0
        self._controls: deque[SessionMessage] = deque()  # each kind at most once
        self._ping = False
        self._pong: int | None = None  # one only: bounds the memory for pings

    @property
    def ended(self) -> bool:
        return self.state in (State.CLOSED, State.FAILED)

    @property
    def in_flight(self) -> int:
        """Frames sent (agent) or received (server) in this session that have no reply yet."""
        return len(self._in_flight)

    # --- the agent

    def open(self, message: Open) -> None:
        """Request a stream."""
        self._move(Input.OPEN)
        self.window = message.window
        self._controls.append(message)

    def has_room(self, size: int) -> bool:
        """Whether a frame with ``size`` bytes of payload may be sent now."""
        return (
            self.state is State.OPEN
            and len(self._in_flight) < self.window
            and self._bytes_in_flight + size <= limits.MAX_INFLIGHT_BYTES
        )

    def send(self, frame: Frame) -> bytes:
        """The message of ``frame``.

        Raises `errors.ProtocolError` unless `has_room` and its number is above all earlier ones.
        """
        if not self.has_room(len(frame.payload)):
            raise errors.ProtocolError(
                "no frame may be sent now: the session is not open or its window is full", reason="window"
            )
        self._take(frame)
        return frames.encode(frame)

    # --- the server

    def opened(self) -> None:
        """Confirm the requested stream. No effect if the session has ended."""
        if not self.ended:
            self._move(Input.OPENED)
            self._controls.append(Opened(self.window, self._heartbeat_s))

    def reply(self, reply: Answer | Refusal) -> bytes:
        """The message of ``reply``. Raises `errors.ProtocolError` if its frame is not in flight."""
        message = frames.encode(reply)
        self._settle(reply.seq)
        return message

    # --- both

    def receive(self, data: Buffer | str, now: float) -> Event | None:
        """Process one message: text is control, bytes are a frame or a reply."""
        if self.ended:
            return None
        self._last_byte = self._last_message = now
        try:
            return self._receive(self._decode(data))
        except errors.SplitEdgeError as error:
            self.fail(error)
            return None

    def heard(self, now: float) -> None:
        """A byte of an incomplete message arrived."""
        self._last_byte = now

    def tick(self, now: float) -> None:
        """Advance the time: silence and a late Opened end the session, an idle one sends Ping.

        Due at `next_deadline`, no effect before.
        """
        if self.ended:
            return
        if now >= self._dead_at():
            self.lost(
                f"no byte from the peer for {now - self._last_byte:.1f} s; check the network between agent and server"
            )
        elif now >= self._open_by():
            self.fail(
                errors.LinkLostError("the server did not open the stream in time; see its log", reason="open-timeout")
            )
        elif now >= self._ping_at():
            self._last_ping = now
            self._ping = True

    def next_deadline(self) -> float:
        """When `tick` is due next."""
        return min(self._dead_at(), self._open_by(), self._ping_at())

    def next_control(self) -> str | None:
        """The next control message to write, if any. Control messages precede frames."""
        if self._controls:
            return encode(self._controls.popleft()).decode()
        if self.ended:
            return None
        if self._pong is not None:
            nonce, self._pong = self._pong, None
            return encode(Pong(nonce)).decode()
        if self._ping:
            self._ping = False
            return encode(Ping(0)).decode()
        return None

    def close(self) -> None:
        """Send no more frames; the session ends when those in flight are answered. No effect if it is closing."""
        if (self.state, Input.CLOSE_SENT) in TRANSITIONS:
            if self.state is not State.NEW:
                self._controls.append(Close())
            self._move(Input.CLOSE_SENT)
            self._rest()

    def fail(self, error: errors.SplitEdgeError) -> None:
        """End the session with ``error`` and notify the peer. No effect if it has ended."""
        if not self.ended:
            self._move(Input.FAIL)
            self.error = error
            self._controls.append(Failed(wire_error(error)))

    def lost(self, reason: str) -> None:
        """The connection is lost. No effect if the session has ended."""
        if not self.ended:
            self._move(Input.FAIL)
            self.error = errors.LinkLostError(reason)
            self.broken = True

    # --- internals

    def _dead_at(self) -> float:
        return min(self._last_byte + self._silence_s, self._last_message + limits.REQUEST_TIMEOUT)

    def _open_by(self) -> float:
        waiting = self.state is State.OPENING and self.role is Role.AGENT
        return self._started + limits.REQUEST_TIMEOUT if waiting else math.inf

    def _ping_at(self) -> float:
        return math.inf if self.state is State.NEW else max(self._last_message, self._last_ping) + self._heartbeat_s

    def _decode(self, data: Buffer | str) -> SessionMessage | Frame | Answer | Refusal:
        if isinstance(data, str):
            message: SessionMessage = decode(data, SessionMessage, limits.MAX_MESSAGE_BYTES)
            return message
        return frames.parse(data)

    def _receive(self, message: SessionMessage | Frame | Answer | Refusal) -> Event | None:
        if not isinstance(message, _RECEIVES[self.role]):
            raise errors.ProtocolError(
                f"the peer of the {self.role.value} must not send {type(message).__name__}", reason="message-kind"
            )
        match message:
            case Open():
                self._move(Input.OPEN)
                self.window = _checked(message).window
            case Opened():
                self._move(Input.OPENED)
                self.window = max(1, min(self.window, message.window))
                self._heartbeat_s = max(limits.HEARTBEAT_LEAST, min(self._heartbeat_s, message.heartbeat_s))
            case Frame():
                self._check_window(len(message.payload))
                self._take(message)
            case Answer() | Refusal():
                self._settle(message.seq)
            case Ping() | Pong():
                self._move(Input.BEAT)
                self._pong = message.nonce if isinstance(message, Ping) else self._pong
                return None
            case Failed():
                self._move(Input.FAIL)
                self.error = errors.from_wire(message.error)
                return None
            case Close():
                self._move(Input.CLOSE_RECEIVED)
                self._rest()
                return None
        return message

    def _move(self, cause: Input) -> None:
        following = TRANSITIONS.get((self.state, cause))
        if following is None:
            raise errors.ProtocolError(f"'{cause.value}' is not allowed in state {self.state.value}", reason="state")
        self.state = following

    def _check_window(self, size: int) -> None:
        if len(self._in_flight) >= self.window or self._bytes_in_flight + size > limits.MAX_INFLIGHT_BYTES:
            raise errors.ProtocolError(
                f"the agent exceeded its window of {self.window} frames and {limits.MAX_INFLIGHT_BYTES} bytes",
                reason="window-exceeded",
            )

    def _take(self, frame: Frame) -> None:
        self._move(Input.FRAME)
        if frame.seq <= self._last_seq:
            raise errors.ProtocolError(
                f"frame {frame.seq} follows frame {self._last_seq}; numbers must ascend", reason="frame-order"
            )
        self._last_seq = frame.seq
        self._in_flight[frame.seq] = len(frame.payload)
        self._bytes_in_flight += len(frame.payload)

    def _settle(self, seq: int) -> None:
        self._move(Input.REPLY)
        if seq not in self._in_flight:
            raise errors.ProtocolError(f"frame {seq} is not in flight in this session", reason="unasked-reply")
        self._bytes_in_flight -= self._in_flight.pop(seq)
        self._rest()

    def _rest(self) -> None:
        if not self._in_flight and (self.state, Input.IDLE) in TRANSITIONS:
            self._move(Input.IDLE)


def _checked(message: Open) -> Open:
    """``message`` with its window limited to ours.

    Raises `errors.ProtocolError` for another version or values out of range.
    """
    if not is_served(message.protocol):
        raise errors.ProtocolError(
            f"the agent uses protocol {message.protocol}, the server {PROTOCOL_VERSION}; run the same splitedge "
            "version on both sides",
            reason="protocol-version",
        )
    if message.window < 1 or not 0 <= message.topk <= limits.MAX_LABELS:
        raise errors.ProtocolError(
            "a stream needs a window of at least 1 and a topk from 0 on", reason="window-and-topk"
        )
    message.window = min(message.window, limits.MAX_WINDOW)
    return message
