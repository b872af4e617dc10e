"""Kernels equal their twins at the ends of float32 and of the alphabets, too: subnormals, -0.0, the largest numbers, one value, one channel."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernels import codec
from kernels import reference as ref
from kernels.codec import fused_ir, projection
from tests import ends
from tests.drawn import drawn

NONE = np.zeros(0, np.float32)
NO_SIDE = np.zeros((0, 2), np.float32)
BITS = st.integers(2, 8)
SHAPES = st.tuples(st.sampled_from([1, 2, 7, 33]), st.sampled_from([1, 2, 3, 16, 17]))


def drawn_ranges(data: st.DataObject, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """lo and a scale that is not negative, for each of ``channels`` or for all."""
    size = data.draw(st.sampled_from([1, channels]))
    return data.draw(ends.reals(size)), np.abs(data.draw(ends.reals(size)))


@drawn(150)
@given(SHAPES, BITS, st.booleans(), st.data())
def test_encoding_and_decoding(shape: tuple[int, int], bits: int, book: bool, data: st.DataObject) -> None:
    x, (lo, scale) = data.draw(ends.reals(shape)), drawn_ranges(data, shape[1])
    levels = np.sort(data.draw(ends.reals(1 << bits, 1e30))) if book and bits in fused_ir.CODEBOOKS else NONE
    chosen = levels if levels.size else None
    limits = ref.codec_thresholds(levels) if levels.size else NONE
    codes = ref.codec_quantize(x, lo, scale, bits, chosen)
    out = np.zeros((x.size * bits + 7) // 8, np.uint8)
    assert codec.encode(x.reshape(-1), lo, ref.codec_inverse(scale), limits, 0, bits, out)
    assert out.tobytes() == ref.pack_bits(codes.reshape(-1), bits).tobytes()
    back = np.empty(x.size, np.float32)
    codec.decode(out, lo, scale, levels, NO_SIDE, 0, bits, back)
    np.testing.assert_array_equal(back.reshape(shape), ref.codec_dequantize(codes, lo, scale, chosen))


@drawn(100)
@given(st.sampled_from([1, 2, 5, 40]), BITS, st.data())
def test_packing(count: int, bits: int, data: st.DataObject) -> None:
    codes = data.draw(ends.bytes_(count)) >> np.uint8(8 - bits)
    packed = np.zeros((count * bits + 7) // 8, np.uint8)
    codec.pack(codes, bits, packed)
    assert packed.tobytes() == ref.pack_bits(codes, bits).tobytes()
    back = np.zeros(count, np.uint8)
    codec.unpack(packed, bits, back)
    assert back.tobytes() == codes.tobytes() == ref.unpack_bits(packed, bits, count).tobytes()


@drawn(100)
@given(SHAPES, st.booleans(), st.data())
def test_own_ranges(shape: tuple[int, int], by_range: bool, data: st.DataObject) -> None:
    x, (lo, scale) = data.draw(ends.reals(shape)), drawn_ranges(data, 1)
    side = np.empty((shape[0], 2), np.float32)
    codec.measure(x, by_range, side)
    np.testing.assert_array_equal(side, ref.codec_side(x, by_range))
    if not np.isfinite(side).all():  # the codec refuses such a tensor
        return
    top, codes = np.float32([data.draw(ends.codes)]), np.empty(x.size, np.uint8)
    codec.quantize(x.reshape(-1), lo, scale, top, NONE, side, shape[1], codes)
    lows, scales = ref.codec_stretched(lo, scale, side)
    with np.errstate(all="ignore"):
        wanted = ref.codec_round((x - lows) * ref.codec_inverse(scales), top)
    np.testing.assert_array_equal(codes.reshape(shape), wanted)
    back = np.empty(x.size, np.float32)
    codec.dequantize(codes, lo, scale, NONE, side, shape[1], back)
    np.testing.assert_array_equal(back.reshape(shape), ref.codec_dequantize(wanted, lows, scales))


@drawn(60)
@given(st.sampled_from([8, 32]), st.sampled_from([1, 3]), st.data())
def test_rotations(size: int, blocks: int, data: st.DataObject) -> None:
    x = data.draw(ends.reals(size * blocks))
    out = np.empty_like(x)
    codec.rotate(x, size, np.float32(1), out)
    np.testing.assert_array_equal(out, ref.codec_rotate(x, size))


@drawn(60)
@given(st.sampled_from([1, 2, 5]), st.sampled_from([1, 3, 17]), st.sampled_from([1, 2, 16]), st.data())
def test_changes_of_basis(rows: int, ins: int, outs: int, data: st.DataObject) -> None:
    x, centre, matrix = (data.draw(ends.reals(shape)) for shape in ((rows, ins), (ins,), (ins, outs)))
    out = np.empty((rows, outs), np.float32)
    projection.project(x, centre, projection.panels(matrix), out)
    np.testing.assert_array_equal(out, ref.codec_project(x, centre, matrix))


@drawn(60)
@given(ends.zero_points, ends.floats(1e30), st.data())
def test_tables_for_8_bit_codes(zero: int, scale: float, data: st.DataObject) -> None:
    """Through the twin's table and value by value."""
    bits, (lo, scales) = data.draw(BITS), drawn_ranges(data, 1)
    codes = np.arange(256, dtype=np.uint8)
    tables = ref.codec_tables(abs(scale), zero, lo, scales, bits)
    values = np.array([np.float32(abs(scale)) * np.float32(int(code) - zero) for code in codes], np.float32)
    np.testing.assert_array_equal(tables[0], ref.codec_quantize(values, lo, scales, bits))
    out = np.zeros(32 * bits, np.uint8)
    codec.encode_codes(codes, tables.reshape(-1), bits, out)
    assert out.tobytes() == ref.pack_bits(tables[0], bits).tobytes()
