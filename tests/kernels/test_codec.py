"""The codec's kernels equal their twins bit for bit, at awkward lengths."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import codec
from kernels import reference as ref

BLOCK = codec.BLOCK
LENGTHS = (0, 1, 2, 3, 5, 7, 8, 9, 15, 31, 63, 127, 257, 1023, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 13)
SENTINEL = 0xA5
NONE = np.zeros(0, np.float32)
NO_SIDE = np.zeros((0, 2), np.float32)


def encode(x, lo, scale, bits):
    """Payload and finite flag, with a look at the bytes around the output."""
    room = np.full((x.size * bits + 7) // 8 + 16, SENTINEL, np.uint8)
    finite = codec.encode(x, lo, ref.codec_inverse(scale), NONE, 0, bits, room[8:-8])
    assert (room[:8] == SENTINEL).all()
    assert (room[-8:] == SENTINEL).all()
    return room[8:-8].copy(), finite


def decode(data, lo, scale, bits, count):
    room = np.full(count + 8, np.pi, np.float32)
    codec.decode(data, lo, scale, NONE, NO_SIDE, 0, bits, room[4:-4])
    assert (room[:4] == np.float32(np.pi)).all()
    assert (room[-4:] == np.float32(np.pi)).all()
    return room[4:-4].copy()


def ranges(channels, bits, rng):
    lo = rng.uniform(-3, 0, channels).astype(np.float32)
    scale = (rng.uniform(1, 6, channels) / ((1 << bits) - 1)).astype(np.float32)
    scale[1::4] = 0
    return lo, scale


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("length", LENGTHS)
def test_a_range_per_tensor_equals_the_twins(length, bits):
    rng = np.random.default_rng(length)
    x = rng.normal(0, 3, length).astype(np.float32)
    lo, scale = ranges(1, bits, rng)
    codes = ref.codec_quantize(x, lo, scale, bits)
    payload, finite = encode(x, lo, scale, bits)
    assert finite
    assert payload.tobytes() == ref.pack_bits(codes, bits).tobytes()
    assert decode(payload, lo, scale, bits, length).tobytes() == ref.codec_dequantize(codes, lo, scale).tobytes()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("rows", "channels"),
    [(0, 3), (1, 2), (3, 7), (700, 3), (41, 100), (5, BLOCK + 1), (2, 3000), (3, 2 * BLOCK), (9, 192)],
)
def test_a_range_per_channel_equals_the_twins(rows, channels, bits):
    rng = np.random.default_rng(rows)
    x = rng.normal(0, 3, (rows, channels)).astype(np.float32)
    lo, scale = ranges(channels, bits, rng)
    codes = ref.codec_quantize(x, lo, scale, bits)
    payload, _ = encode(x.reshape(-1), lo, scale, bits)
    assert payload.tobytes() == ref.pack_bits(codes.reshape(-1), bits).tobytes()
    assert decode(payload, lo, scale, bits, x.size).tobytes() == ref.codec_dequantize(codes, lo, scale).tobytes()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("rows", "channels"), [(0, 1), (1, 1), (1001, 1), (2 * BLOCK + 3, 1), (700, 3), (9, 257)])
def test_eight_bit_codes_through_tables_equal_the_twins(rows, channels, bits):
    rng = np.random.default_rng(rows)
    x = rng.integers(0, 256, (rows, channels)).astype(np.uint8)
    tables = ref.codec_tables(0.05, 100, *ranges(channels, bits, rng), bits)
    expected = ref.pack_bits(tables[np.arange(channels), x].reshape(-1), bits)
    out = np.full(expected.size + 8, SENTINEL, np.uint8)
    codec.encode_codes(x.reshape(-1), tables.reshape(-1), bits, out[:-8])
    assert out.tobytes() == expected.tobytes() + bytes([SENTINEL] * 8)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("length", LENGTHS)
def test_packing_and_unpacking_equal_the_twins(length, bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, length).astype(np.uint8)
    expected = ref.pack_bits(codes, bits)
    packed = np.full(expected.size + 8, SENTINEL, np.uint8)
    codec.pack(codes, bits, packed[:-8])
    assert packed.tobytes() == expected.tobytes() + bytes([SENTINEL] * 8)
    back = np.full(length + 8, SENTINEL, np.uint8)
    codec.unpack(expected, bits, back[:-8])
    assert back.tobytes() == codes.tobytes() + bytes([SENTINEL] * 8)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_first_code_lies_in_the_lowest_bits_of_the_first_byte(bits):
    out = np.empty(2, np.uint8)
    codec.pack(np.array([1, 3], np.uint8), bits, out[: (2 * bits + 7) // 8])
    stream = int.from_bytes(out[: (2 * bits + 7) // 8].tobytes(), "little")
    assert stream == 1 | 3 << bits


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("length", [1, 7, 16, 100, BLOCK + 5])
def test_one_bad_value_anywhere_is_noticed(length, bad):
    lo = np.zeros(1, np.float32)
    for place in {0, length // 2, length - 1}:
        x = np.zeros(length, np.float32)
        x[place] = bad
        for scale, bits in ((1.0, 4), (0.0, 4), (1.0, 2), (1e30, 3), (1.0, 8)):
            assert not encode(x, lo, np.array([scale], np.float32), bits)[1]


@pytest.mark.parametrize("times", [1, 50])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_ends_of_float32_equal_the_twins(bits, times):
    """Once they are too few for a group of the vectors' loop, and then they are several."""
    big, tiny = float(np.finfo(np.float32).max), 1e-45
    x = np.array([0, -0.0, big, -big, tiny, -tiny, 1, -1, 0.5, 1.5, 2.5, 3.5, 1e30, -1e-30] * times, np.float32)
    for lo in (0.0, -big, big, tiny, -1.0):
        for scale in (0.0, tiny, 1e-38, 1.0, big / 255):
            one_lo, one_scale = np.array([lo], np.float32), np.array([scale], np.float32)
            payload, finite = encode(x, one_lo, one_scale, bits)
            assert finite
            assert payload.tobytes() == ref.pack_bits(ref.codec_quantize(x, one_lo, one_scale, bits), bits).tobytes()


@pytest.mark.parametrize("channels", [1, 3, 384])
@pytest.mark.parametrize("bits", range(2, 9))
def test_one_code_beyond_int32_changes_no_other(bits, channels):
    rng = np.random.default_rng(bits)
    x = rng.normal(0, 3, (11, channels) if channels > 1 else (4224, 1)).astype(np.float32)
    lo, scale = np.full(channels, -2, np.float32), np.full(channels, 0.7, np.float32)
    for one in (2.0**31, -(2.0**31), 2.0**30, 3e9, -3e9, 1e38):
        x[x.shape[0] // 2, -1] = one
        payload, finite = encode(x.reshape(-1), lo, scale, bits)
        assert finite
        assert payload.tobytes() == ref.pack_bits(ref.codec_quantize(x, lo, scale, bits).reshape(-1), bits).tobytes()


def test_halves_round_to_even():
    x = np.array([0.5, 1.5, 2.5, 3.5, 253.5, 254.5], np.float32)
    payload, _ = encode(x, np.zeros(1, np.float32), np.ones(1, np.float32), 8)
    assert payload.tolist() == [0, 2, 2, 4, 254, 254]
