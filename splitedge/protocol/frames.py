"""Binary messages of a session: frames, answers and refusals behind a 40-byte header
(`docs/reference/wire-protocol.md`).

`parse` returns a value or raises `errors.ProtocolError`, for any bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from splitedge import errors, limits
from splitedge.protocol import messages

HEADER_BYTES: Final = 40
MAX_MESSAGE: Final = HEADER_BYTES + limits.MAX_FRAME_BYTES  # the longest binary message

_MAGIC: Final = b"SE"
_VERSION: Final = 1
_FRAME, _ANSWER, _REFUSAL = 1, 2, 3
# magic, version, kind, number, codec, flags, reserved, word at 16, word at 20, reserved, payload length
_HEAD: Final = struct.Struct("<2sBBQBBHIIQI")
_CRC: Final = struct.Struct("<I")
_PAIR: Final = struct.Struct("<If")

Buffer = bytes | bytearray | memoryview


class Frame(msgspec.Struct, frozen=True):
    """One activation: ``payload`` is the packed codes of ladder entry ``codec`` (0..255).

    ``wait_ms``: the remaining time of the frame in milliseconds, 0 for no limit.
    """

    seq: int
    codec: int
    wait_ms: int
    payload: Buffer


class Answer(msgspec.Struct, frozen=True):
    """The tail's output for frame ``seq``, and the microseconds in the server's queue and in the tail."""

    seq: int
    queue_us: int
    tail_us: int
    payload: Buffer


class Refusal(msgspec.Struct, frozen=True):
    """Frame ``seq`` was not answered; ``error`` is ``{"code", "message", "data"}`` for `errors.from_wire`."""

    seq: int
    error: dict[str, Any]


def encode(value: Frame | Answer | Refusal) -> bytes:
    """``value`` as one binary message.

    Raises `errors.ProtocolError` if its payload exceeds `limits.MAX_FRAME_BYTES`.
    """
    match value:
        case Frame():
            return _join(_FRAME, value.seq, value.codec, value.wait_ms, 0, value.payload)
        case Answer():
            return _join(_ANSWER, value.seq, 0, value.queue_us, value.tail_us, value.payload)
        case Refusal():
            return _join(_REFUSAL, value.seq, 0, 0, 0, msgspec.json.encode(value.error))


def parse(data: Buffer) -> Frame | Answer | Refusal:
    """The value in ``data``. Its payload is a view of ``data``, not a copy. Raises `errors.ProtocolError`."""
    if not HEADER_BYTES <= len(data) <= MAX_MESSAGE:
        raise errors.ProtocolError(
            f"a binary message of {len(data)} bytes is outside {HEADER_BYTES}..{MAX_MESSAGE}", reason="message-bytes"
        )
    view = memoryview(data)
    magic, version, kind, seq, codec, flags, reserved, word16, word20, reserved24, length = _HEAD.unpack_from(view)
    if magic != _MAGIC or version != _VERSION:
        raise errors.ProtocolError(
            f"a binary message is not a frame of version {_VERSION}; run the same splitedge version on both sides",
            reason="not-a-frame",
        )
    if length != len(data) - HEADER_BYTES:
        raise errors.ProtocolError(
            f"a frame declares {length} bytes of payload and has {len(data) - HEADER_BYTES}", reason="payload-bytes"
        )
    payload = view[HEADER_BYTES:]
    if _CRC.unpack_from(view, _HEAD.size)[0] != zlib.crc32(payload, zlib.crc32(view[: _HEAD.size])):
        raise errors.ProtocolError("a frame is damaged: its CRC-32 is wrong", reason="crc")
    zero = {_FRAME: (word20,), _ANSWER: (codec,), _REFUSAL: (codec, word16, word20)}.get(kind)
    if zero is None:
        raise errors.ProtocolError(f"a frame has the unknown kind {kind}", reason="frame-kind")
    if any((*zero, flags, reserved, reserved24)):
        raise errors.ProtocolError("a reserved field of a frame is not 0", reason="reserved-field")
    if kind == _FRAME:
        return Frame(seq, codec, word16, payload)
    if kind == _ANSWER:
        return Answer(seq, word16, word20, payload)
    return Refusal(seq, messages.decode(bytes(payload), dict[str, Any], limits.MAX_MESSAGE_BYTES))


def pack_topk(pairs: Iterable[tuple[int, float]]) -> bytes:
    """(class, probability) pairs, greatest first, as the payload of an answer: u32 and float32 for each."""
    return b"".join(_PAIR.pack(index, probability) for index, probability in pairs)


def unpack_topk(payload: Buffer) -> list[tuple[int, float]]:
    """The (class, probability) pairs of `pack_topk`. Raises `errors.ProtocolError` for incomplete pairs."""
    if len(payload) % _PAIR.size:
        raise errors.ProtocolError(
            f"an answer of {len(payload)} bytes is not a list of (class, probability) pairs", reason="answer-bytes"
        )
    return [(index, probability) for index, probability in _PAIR.iter_unpack(payload)]


def _join(kind: int, seq: int, codec: int, word16: int, word20: int, payload: Buffer) -> bytes:
    if len(payload) > limits.MAX_FRAME_BYTES:
        raise errors.ProtocolError(
            f"a frame of {len(payload)} bytes exceeds the limit of {limits.MAX_FRAME_BYTES}; use fewer bits or a "
            "later cut",
            reason="frame-too-large",
        )
    head = _HEAD.pack(_MAGIC, _VERSION, kind, seq, codec, 0, 0, word16, word20, 0, len(payload))
    return b"".join((head, _CRC.pack(zlib.crc32(payload, zlib.crc32(head))), payload))
