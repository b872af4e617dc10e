"""The codec at the cut, through its public functions."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernels import reference as ref
from splitedge import codec, errors, limits
from splitedge.codec import Codec
from splitedge.protocol import messages
from tests.drawn import drawn
from tests.raising import raises

BITS = range(2, 9)
TENSORS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=40), elements=st.floats(-1e4, 1e4, width=32))


def tensor(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 2, shape).astype(np.float32)


@drawn(60)
@given(TENSORS, st.sampled_from(codec.RULES), st.sampled_from(BITS), st.booleans())
def test_a_value_inside_the_range_comes_back_within_half_a_step_and_one_outside_at_its_end(x, rule, bits, by_channel):
    fitted = (codec.fit_channels if by_channel else codec.fit)(x, rule, bits)
    payload = codec.encode(x, fitted)
    y = codec.decode(payload, fitted, x.shape)
    assert len(payload) == codec.packed_bytes(x.size, bits)
    assert y.shape == x.shape
    lo, scale = np.array(fitted.lo), np.array(fitted.scale)
    nearest = np.clip(x.astype(np.float64), lo, lo + scale * (2**bits - 1))
    rounding = 4 * np.spacing(np.float32(np.abs(lo).max() + scale.max() * 2**bits))
    assert (np.abs(y - nearest) <= scale / 2 * (1 + 1e-4) + rounding).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(1,), (5, 3), (7, 9, 11), (1, 1, 3000), (100, 100, 3)])
def test_the_payload_is_the_tight_stream_of_the_codes_channels_last(shape, bits):
    x = tensor(*shape)
    for fitted in (codec.fit(x, "aciq-gauss", bits), codec.fit_channels(x, "minmax", bits)):
        lo, scale = np.array(fitted.lo, np.float32), np.array(fitted.scale, np.float32)
        codes = ref.codec_quantize(x, lo, scale, bits)
        payload = codec.encode(x, fitted)
        assert payload == ref.pack_bits(codes.reshape(-1), bits).tobytes()
        assert codec.decode(payload, fitted, shape).tobytes() == ref.codec_dequantize(codes, lo, scale).tobytes()


def test_rows_follow_each_other_and_channels_lie_together():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    fitted = Codec("minmax", 8, (0.0,), (1.0,))
    assert codec.encode(x, fitted) == bytes(range(24))
    assert codec.encode(x.transpose(2, 0, 1), fitted) == x.transpose(2, 0, 1).astype(np.uint8).tobytes()


@pytest.mark.parametrize("rule", codec.RULES)
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e-40, 3e38])
def test_a_constant_comes_back_exactly(rule, value):
    x = np.full((3, 5), value, np.float32)
    for fitted in (codec.fit(x, rule, 3), codec.fit_channels(x, rule, 3)):
        assert set(fitted.scale) == {0.0}
        payload = codec.encode(x, fitted)
        assert payload == bytes(codec.packed_bytes(15, 3))
        assert codec.decode(payload, fitted, x.shape).tobytes() == x.tobytes()


def test_a_constant_channel_among_others_comes_back_exactly():
    x = tensor(50, 4)
    x[:, 2] = 0.3
    fitted = codec.fit_channels(x, "mse", 4)
    assert (codec.decode(codec.encode(x, fitted), fitted, x.shape)[:, 2] == x[:, 2]).all()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0), (3, 0, 7)])
def test_an_empty_tensor_is_an_empty_payload(shape):
    x = np.empty(shape, np.float32)
    for fitted in (codec.fit(x, "mse", 4), codec.fit_channels(tensor(10, 3), "minmax", 4)):
        assert codec.encode(x, fitted) == b""
        assert codec.encode_codes(x.astype(np.uint8), 0.1, 3, fitted) == b""
        assert codec.decode(b"", fitted, shape).shape == shape


def test_a_scalar_is_a_tensor_of_one_value():
    fitted = Codec("minmax", 2, (-1.0,), (1.0,))
    assert codec.decode(codec.encode(np.array(1, np.float32), fitted), fitted, ()) == 1


def test_nan_and_infinity_are_counted_in_the_error():
    x = tensor(10, 10)
    x[0, 0], x[3, 4], x[9, 9] = np.nan, np.inf, -np.inf
    with raises(errors.CodecError, reason="not-finite", nan=1, infinite=2, size=100):
        codec.encode(x, Codec("minmax", 4, (0.0,), (1.0,)))


@pytest.mark.parametrize("x", [tensor(4, 5), tensor(3), tensor(3, 2), np.array(1, np.float32)])
def test_a_tensor_with_other_channels_than_the_codec_is_refused(x):
    fitted = codec.fit_channels(tensor(9, 3)[:, [0, 1, 2, 0]], "minmax", 4)
    with raises(errors.CodecError, reason="channels-differ", channels=4):
        codec.encode(x, fitted)
    with raises(errors.CodecError, reason="channels-differ", channels=4):
        codec.encode_codes(x.astype(np.uint8), 0.1, 0, fitted)
    with raises(errors.CodecError, reason="channels-differ", channels=4):
        codec.decode(b"", fitted, x.shape)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, ">f4"])
def test_only_float32_is_encoded(dtype):
    with raises(errors.CodecError, reason="dtype"):
        codec.encode(np.ones(4, dtype), Codec("minmax", 4, (0.0,), (1.0,)))
    with raises(errors.CodecError, reason="dtype"):
        codec.encode_codes(np.ones(4, dtype), 0.1, 0, Codec("minmax", 4, (0.0,), (1.0,)))


def test_any_view_of_memory_encodes_as_its_copy():
    x = tensor(40, 7)
    fitted = codec.fit(x, "minmax", 5)
    locked = x.copy()
    locked.flags.writeable = False
    unaligned = np.frombuffer(b"?" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    for view, same in ((locked, x), (unaligned, x), (x[::2, ::3], x[::2, ::3].copy()), (np.asfortranarray(x), x)):
        assert codec.encode(view, fitted) == codec.encode(same, fitted)
    flat, codes = x.reshape(-1).copy(), np.arange(8, dtype=np.uint8)
    assert codec.encode(flat, codec.fit(flat, "minmax", 5))
    assert codec.encode_codes(codes, 0.1, 0, codec.fit(flat, "minmax", 5))
    assert x.flags.writeable
    assert flat.flags.writeable
    assert codes.flags.writeable


@pytest.mark.parametrize("bits", BITS)
def test_codes_of_an_8_bit_head_make_the_payload_of_the_tensor_that_they_stand_for(bits):
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 256, (31, 17, 5)).astype(np.uint8)
    for scale, zero_point in ((0.0235, 0), (0.1, 131), (7.3e-3, 255)):
        x = np.float32(scale) * (codes.astype(np.float32) - np.float32(zero_point))
        for rule in codec.RULES:
            for fitted in (codec.fit(x, rule, bits), codec.fit_channels(x, rule, bits)):
                assert codec.encode_codes(codes, scale, zero_point, fitted) == codec.encode(x, fitted)


def test_tables_are_made_once_for_a_scale_and_zero_point():
    fitted = codec.fit_channels(tensor(20, 6), "minmax", 4)
    first = codec.tables(0.1, 3, fitted)
    assert first.shape == (6, 256)
    assert not first.flags.writeable
    assert codec.tables(0.1, 3, fitted) is first
    assert codec.tables(0.2, 3, fitted) is not first


@pytest.mark.parametrize(
    ("scale", "zero_point"), [(0.0, 0), (-1.0, 0), (np.nan, 0), (np.inf, 0), (1e38, 0), (0.1, -1), (0.1, 256)]
)
def test_tables_of_no_8_bit_tensor_are_refused(scale, zero_point):
    with raises(errors.CodecError, reason="not-8-bit"):
        codec.tables(scale, zero_point, Codec("minmax", 4, (0.0,), (1.0,)))


def test_a_codec_cannot_change_and_many_may_be_in_use():
    x = tensor(30)
    fitted = codec.fit(x, "minmax", 4)
    before = codec.encode(x, fitted)
    with pytest.raises(AttributeError):
        fitted.bits = 5
    other = msgspec.structs.replace(fitted, lo=(fitted.lo[0] - 1,), bits=5)
    assert codec.encode(x, other) == codec.encode(x, Codec("minmax", 5, other.lo, fitted.scale)) != before
    assert codec.encode(x, fitted) == before
    many = [Codec("minmax", 8, (float(i),), (1.0,)) for i in range(100)]
    for _ in range(2):
        assert [codec.decode(b"\1", one, (1,)).item() for one in many] == [i + 1 for i in range(100)]


@pytest.mark.parametrize("data", [b"", bytes(4), bytes(6), bytes(1000)])
def test_a_payload_of_another_length_is_refused(data):
    with raises(errors.CodecError, reason="payload-bytes"):
        codec.decode(data, Codec("minmax", 4, (0.0,), (1.0,)), (3, 3))


def test_lengths_are_checked_for_every_shape_however_many_a_codec_has_had():
    made = Codec("minmax", 4, (0.0,), (1.0,))
    for _ in range(2):
        for n in range(1, 40):
            assert codec.decode(bytes((n + 1) // 2), made, (n,)).shape == (n,)
            with raises(errors.CodecError, reason="payload-bytes"):
                codec.decode(bytes((n + 1) // 2 + 1), made, (n,))


@pytest.mark.parametrize("made", [Codec("minmax", 4, (0.0,), (1.0,)), Codec("jpeg", 8, (0.0,), (1.0,), jpeg=80)])
def test_an_empty_payload_is_read_with_and_without_a_picture(made):
    assert codec.encode(np.zeros((0, 4, 3), np.float32), made) == b""
    assert codec.decode(b"", made, (0, 4, 3)).shape == (0, 4, 3)
    with raises(errors.CodecError, reason="payload-bytes"):
        codec.decode(b"1", made, (0, 4, 3))


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 20, 1 << 20), (-1, -4), (-4,), (limits.MAX_ELEMENTS + 1,)])
def test_a_shape_out_of_bounds_is_refused_before_anything_is_allocated(shape):
    with raises(errors.CodecError, reason="too-many-values"):
        codec.decode(bytes(2), Codec("minmax", 4, (0.0,), (1.0,)), shape)


@given(st.binary(max_size=60), st.lists(st.integers(-2, 12), max_size=3), st.sampled_from(BITS), st.integers(1, 4))
def test_any_payload_is_decoded_to_its_shape_or_refused(data, shape, bits, channels):
    try:
        y = codec.decode(data, Codec("minmax", bits, (0.5,) * channels, (0.1,) * channels), shape)
    except errors.CodecError:
        return
    assert y.shape == tuple(shape)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_a_payload_may_be_any_buffer(buffer):
    assert codec.decode(buffer(b"\x21\x03"), Codec("minmax", 4, (0.0,), (1.0,)), (3,)).tolist() == [1, 2, 3]


HOSTILE = [
    (1, [0.0], [1.0]),
    (9, [0.0], [1.0]),
    (-4, [0.0], [1.0]),
    (4, [], []),
    (4, [0.0], []),
    (4, [0.0], [1.0, 1.0]),
    (4, [float("nan")], [1.0]),
    (4, [0.0], [float("nan")]),
    (4, [float("inf")], [1.0]),
    (4, [0.0], [float("inf")]),
    (4, [1e39], [1.0]),
    (4, [0.0], [-1e-9]),
    (4, [0.0, 0.0], [1.0, -1.0]),
    (4, [0.0], [1e38]),
    (4, [0.0] * (limits.MAX_CHANNELS + 1), [1.0] * (limits.MAX_CHANNELS + 1)),
]


@pytest.mark.parametrize(("bits", "lo", "scale"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_codec_is_refused_wherever_it_is_used(bits, lo, scale):
    hostile = Codec("minmax", bits, tuple(lo), tuple(scale))
    uses = (
        lambda: codec.validate(hostile),
        lambda: codec.decode(b"", hostile, (0,)),
        lambda: codec.encode(np.ones(3, np.float32), hostile),
        lambda: codec.encode_codes(np.ones(3, np.uint8), 0.1, 0, hostile),
        lambda: codec.squared_error([1.0], None, hostile),
    )
    for use in uses:
        with pytest.raises(errors.CodecError):
            use()


@pytest.mark.parametrize("rule", codec.RULES)
def test_a_codec_crosses_the_network_unchanged(rule):
    x = tensor(60, 8)
    fitted = codec.fit_channels(x, rule, 3)
    received = messages.decode(messages.encode(fitted), Codec)
    codec.validate(received)
    assert received == fitted
    assert codec.encode(x, received) == codec.encode(x, fitted)


def test_squared_error_is_that_of_the_decoded_tensor():
    x = tensor(60, 8)
    for fitted in (codec.fit(x, "mse", 3), codec.fit_channels(x, "mse", 3)):
        decoded = codec.decode(codec.encode(x, fitted), fitted, x.shape)
        assert codec.squared_error(x, None, fitted) == pytest.approx(((x - decoded.astype(np.float64)) ** 2).sum())


@pytest.mark.parametrize(
    ("count", "bits", "size"), [(0, 5, 0), (1, 2, 1), (3, 3, 2), (8, 7, 7), (151_296, 4, 75_648), (9, 7, 8)]
)
def test_packed_bytes_are_tight(count, bits, size):
    assert codec.packed_bytes(count, bits) == size


def picture(h: int = 24, w: int = 32) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return np.stack([128 + 90 * np.sin((y + k * x) / 7) for k in range(1, 4)], axis=-1).round().astype(np.uint8)


def test_a_picture_goes_as_jpeg_and_comes_back_as_values():
    mean, std = [120.0, 118.0, 104.0], [58.0, 57.0, 59.0]
    made = codec.pixels(mean, std, 90)
    assert codec.work(made, (24, 32, 3)) == {"jpeg": 24 * 32 * 3}
    x = ((picture() - np.float32(mean)) / np.float32(std)).astype(np.float32)
    payload = codec.encode(x, made)
    assert payload[:2] == b"\xff\xd8"
    assert len(payload) < x.size / 2
    back = codec.decode(payload, made, x.shape)
    assert np.abs(back - x).mean() * 58 < 6
    received = messages.decode(messages.encode(made), Codec)
    np.testing.assert_array_equal(codec.decode(payload, received, x.shape), back)


def test_codes_of_pixels_make_the_same_jpeg():
    codes = picture()
    made = codec.pixels([127.0] * 3, [128.0] * 3, 80)
    x = ((codes.astype(np.float32) - np.float32(127)) / np.float32(128)).astype(np.float32)
    assert codec.encode_codes(codes, 1 / 128, 127, made) == codec.encode(x, made)


@pytest.mark.parametrize(("bits", "jpeg"), [(4, 80), (8, 101), (8, -1)])
def test_a_jpeg_of_other_bits_or_qualities_is_refused(bits, jpeg):
    with raises(errors.CodecError, reason="codec-jpeg"):
        codec.validate(Codec("jpeg", bits, (0.0,), (1.0,), jpeg=jpeg))


def test_a_frame_that_is_no_jpeg_of_the_plans_size_is_refused():
    made = codec.pixels([0.0] * 3, [1.0] * 3, 80)
    payload = codec.encode(picture().astype(np.float32), made)
    for data, shape in (
        (payload, (32, 24, 3)),
        (b"", (24, 32, 3)),
        (payload[:50], (24, 32, 3)),
        (bytes(2304), (24, 32, 3)),
    ):
        with pytest.raises(errors.CodecError):
            codec.decode(data, made, shape)
