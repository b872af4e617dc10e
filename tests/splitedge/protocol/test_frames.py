"""The invariant: `parse` returns a value or raises ProtocolError, never any other error."""

import contextlib
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge import errors, limits
from splitedge.protocol import frames
from splitedge.protocol.frames import Answer, Frame, Refusal
from tests.raising import raises

U64, U32, U8 = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 255)
PAYLOAD = st.binary(max_size=200)
VALUES = st.one_of(
    st.builds(Frame, U64, U8, U32, PAYLOAD),
    st.builds(Answer, U64, U32, U32, PAYLOAD),
    st.builds(Refusal, U64, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)),
)


def seal(head: bytes, payload: bytes = b"") -> bytes:
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


def head(
    magic=b"SE", version=1, kind=1, seq=7, codec=0, flags=0, reserved=0, word16=0, word20=0, reserved24=0, length=0
) -> bytes:
    return struct.pack(
        "<2sBBQBBHIIQI", magic, version, kind, seq, codec, flags, reserved, word16, word20, reserved24, length
    )


@given(VALUES)
def test_what_is_encoded_comes_back(value):
    assert frames.parse(frames.encode(value)) == value


@given(st.binary(max_size=120))
def test_any_bytes_are_a_value_or_a_protocol_error(data):
    with contextlib.suppress(errors.ProtocolError):
        frames.parse(data)


@given(PAYLOAD, U8, st.binary(min_size=32, max_size=32))
def test_any_well_summed_message_is_a_value_or_a_protocol_error(payload, kind, rest):
    start = b"SE\x01" + bytes([kind % 5]) + rest[:28]
    with contextlib.suppress(errors.ProtocolError):
        frames.parse(seal(start + struct.pack("<I", len(payload)), payload))


@given(VALUES, st.data())
def test_one_flipped_bit_is_noticed(value, data):
    message = bytearray(frames.encode(value))
    message[data.draw(st.integers(0, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(errors.ProtocolError):
        frames.parse(message)


def test_header_has_the_documented_layout():
    message = frames.encode(Frame(0x0102030405060708, 9, 0x0A0B0C0D, b"xyz"))
    assert message[:4] == b"SE\x01\x01"
    assert message[4:12] == bytes([8, 7, 6, 5, 4, 3, 2, 1])
    assert message[12] == 9
    assert message[16:20] == bytes([0x0D, 0x0C, 0x0B, 0x0A])
    assert message[20:32] == bytes(12)
    assert message[32:36] == bytes([3, 0, 0, 0])
    assert message[36:40] == zlib.crc32(b"xyz", zlib.crc32(message[:36])).to_bytes(4, "little")
    assert message[40:] == b"xyz"


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("magic", b"XX", "not-a-frame"),
        ("version", 2, "not-a-frame"),
        ("kind", 4, "frame-kind"),
        ("flags", 1, "reserved-field"),
        ("reserved", 1, "reserved-field"),
        ("reserved24", 1, "reserved-field"),
        ("word20", 1, "reserved-field"),
        ("length", 1, "payload-bytes"),
    ],
)
def test_a_wrong_field_is_named(field, value, sentence):
    with raises(errors.ProtocolError, reason=sentence):
        frames.parse(seal(head(**{field: value})))


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"3", b"{", b"\xff", b"[" * 60_000, b'"' + b"x" * limits.MAX_MESSAGE_BYTES + b'"']
)
def test_a_refusal_that_is_no_error_object_is_a_protocol_error(payload):
    with pytest.raises(errors.ProtocolError):
        frames.parse(seal(head(kind=3, length=len(payload)), payload))


def test_a_payload_over_the_limit_is_neither_made_nor_taken():
    with raises(errors.ProtocolError, reason="frame-too-large"):
        frames.encode(Frame(1, 0, 0, bytes(limits.MAX_FRAME_BYTES + 1)))
    with raises(errors.ProtocolError, reason="message-bytes"):
        frames.parse(bytes(frames.MAX_MESSAGE + 1))


def test_a_payload_is_a_view_not_a_copy():
    message = bytearray(frames.encode(Frame(1, 0, 0, b"abc")))
    frame = frames.parse(message)
    message[-1] = ord("z")
    assert frame.payload == b"abz"


@given(st.lists(st.tuples(U32, st.floats(0, 1, width=32)), max_size=20))
def test_topk_pairs_come_back(pairs):
    assert frames.unpack_topk(frames.pack_topk(pairs)) == pairs


def test_topk_of_a_ragged_payload_is_a_protocol_error():
    with raises(errors.ProtocolError, reason="answer-bytes"):
        frames.unpack_topk(bytes(9))
