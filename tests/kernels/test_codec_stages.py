"""The stages of the codec beside equal steps: codebooks, rotations, ranges of a tensor's own, changes of basis and rANS equal their twins bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import codec
from kernels import reference as ref
from kernels.codec import fused_ir, hadamard, projection
from kernels.rans import static
from tests.drawn import drawn

NONE = np.zeros(0, np.float32)
NO_SIDE = np.zeros((0, 2), np.float32)
CHANNELS = 384


def ranges(channels, rng):
    lo = rng.uniform(-3, 0, channels).astype(np.float32)
    scale = rng.uniform(0.3, 2, channels).astype(np.float32)
    scale[1::5] = 0
    return lo, scale


def prepared(tables, index):
    """What `rans` takes of ``tables`` for channels ``index``."""
    first = np.cumsum([0, *[len(t) + 1 for t in tables]])[:-1].astype(np.int64)
    starts = np.concatenate([[0, *np.cumsum(t)] for t in tables]).astype(np.uint32)
    inverse = np.concatenate([[*(-(-(1 << 44) // f) for f in t), 0] for t in tables]).astype(np.uint64)
    look = np.concatenate([np.repeat(np.arange(len(t)), t) for t in tables]).astype(np.uint8)
    return first[index], starts, inverse, (np.array(index) << static.SCALE).astype(np.int64), look


@pytest.mark.parametrize("size", hadamard.SIZES)
@pytest.mark.parametrize("blocks", [1, 3, 65])
def test_a_rotation_equals_its_twin_in_place_too_and_undoes_itself(size, blocks):
    x = np.random.default_rng(size).normal(0, 3, size * blocks).astype(np.float32)
    out = np.empty_like(x)
    codec.rotate(x, size, np.float32(1), out)
    assert out.tobytes() == ref.codec_rotate(x, size).tobytes()
    codec.rotate(out, size, np.float32(1) / np.float32(size), out)
    assert out.tobytes() == ref.codec_rotate(ref.codec_rotate(x, size), size, 1 / size).tobytes()
    np.testing.assert_allclose(out, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("turn", [0, 8, 32, 128])
@pytest.mark.parametrize("rows", [1, 2, 7, 41])
@pytest.mark.parametrize("bits", range(2, 9))
def test_rotated_codes_and_codebooks_equal_the_twins(bits, rows, turn):
    rng = np.random.default_rng(rows)
    x = rng.normal(0, 3, (rows, CHANNELS)).astype(np.float32)
    turned = ref.codec_rotate(x, turn) if turn else x
    for channels in (1, CHANNELS):
        lo, scale = ranges(channels, rng)
        for levels in [NONE, np.sort(rng.normal(size=1 << bits)).astype(np.float32)][
            : 1 + (bits in fused_ir.CODEBOOKS)
        ]:
            book = levels if levels.size else None
            codes = ref.codec_quantize(turned, lo, scale, bits, book)
            out = np.zeros((x.size * bits + 7) // 8, np.uint8)
            limits = ref.codec_thresholds(levels) if levels.size else NONE
            assert codec.encode(x.reshape(-1), lo, ref.codec_inverse(scale), limits, turn, bits, out)
            assert out.tobytes() == ref.pack_bits(codes.reshape(-1), bits).tobytes()
            back = np.empty(x.size, np.float32)
            codec.decode(out, lo, scale, levels, NO_SIDE, turn, bits, back)
            values = ref.codec_dequantize(codes, lo, scale, book)
            assert back.tobytes() == (ref.codec_rotate(values, turn, 1 / turn) if turn else values).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("turn", [0, 8, 128])
def test_one_value_that_is_not_finite_is_seen_wherever_it_stands(bad, turn):
    for place in (0, 200, 2047, 2048, 5 * CHANNELS - 1, 7 * CHANNELS - 1):
        x = np.ones(7 * CHANNELS, np.float32)
        x[place] = bad
        one = np.ones(1, np.float32)
        assert not codec.encode(x, one, one, NONE, turn, 3, np.zeros(x.size, np.uint8))


@pytest.mark.parametrize("by_range", [True, False])
@pytest.mark.parametrize("each", [1, 7])
@pytest.mark.parametrize("channels", [1, 3, 16, 50])
def test_own_ranges_equal_the_twins(channels, each, by_range):
    rng = np.random.default_rng(channels)
    x = rng.normal(0.5, 3, (each * 4, channels)).astype(np.float32)
    rows = x.reshape(-1, each * channels)
    side = np.empty((len(rows), 2), np.float32)
    codec.measure(rows, by_range, side)
    assert side.tobytes() == ref.codec_side(rows, by_range).tobytes()
    if by_range:
        assert (side[:, 0] <= rows.min(axis=1)).all()
        assert (side.astype(np.float64).sum(axis=1) >= rows.max(axis=1) - 1e-6).all()
    lo, scale = ranges(channels, rng)
    top = rng.integers(0, 256, channels).astype(np.float32)
    codes = np.empty(x.size, np.uint8)
    assert codec.quantize(x.reshape(-1), lo, scale, top, NONE, side, each * channels, codes)
    lows, scales = (v[:, None, :] for v in ref.codec_stretched(lo, scale, side))
    blocks = x.reshape(len(side), each, channels)
    wanted = ref.codec_round((blocks - lows) * ref.codec_inverse(scales), top)
    assert codes.tobytes() == wanted.tobytes()
    back = np.empty(x.size, np.float32)
    codec.dequantize(codes, lo, scale, NONE, side, each * channels, back)
    assert back.tobytes() == ref.codec_dequantize(wanted, lows, scales).tobytes()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("rows", "each", "turn"), [(1, 3, 0), (9, 8, 8), (5, 40, 8), (7, 200, 0), (3, 384, 128), (2, 4104, 0)]
)
def test_rows_with_ranges_of_their_own_are_decoded_as_by_the_twins(bits, rows, each, turn):
    rng = np.random.default_rng(each)
    codes = rng.integers(0, 1 << bits, (rows, each)).astype(np.uint8)
    data, side = ref.pack_bits(codes.reshape(-1), bits), rng.uniform(0, 3, (rows, 2)).astype(np.float32)
    for channels in (1, each):
        lo, scale = ranges(channels, rng)
        for levels in [NONE, np.sort(rng.normal(size=1 << bits)).astype(np.float32)][
            : 1 + (bits in fused_ir.CODEBOOKS)
        ]:
            values = ref.codec_dequantize(codes, *ref.codec_stretched(lo, scale, side), levels if levels.size else None)
            room = np.full(codes.size + 8, np.pi, np.float32)
            codec.decode(data, lo, scale, levels, side, turn, bits, room[4:-4])
            assert room[4:-4].tobytes() == (ref.codec_rotate(values, turn, 1 / turn) if turn else values).tobytes()
            assert (room[[*range(4), *range(-4, 0)]] == np.float32(np.pi)).all()


@pytest.mark.parametrize(("rows", "ins", "outs"), [(1, 1, 1), (3, 5, 2), (7, 40, 40), (13, 96, 131), (2, 130, 64)])
def test_a_change_of_basis_equals_its_twin(rows, ins, outs):
    rng = np.random.default_rng(rows)
    x, centre, matrix = (rng.normal(0, 3, s).astype(np.float32) for s in ((rows, ins), (ins,), (ins, outs)))
    out = np.empty((rows, outs), np.float32)
    projection.project(x, centre, projection.panels(matrix), out)
    assert out.tobytes() == ref.codec_project(x, centre, matrix).tobytes()


TABLES = [[4096], [1, 4095], [2000, 96, 2000], [512] * 8, [16] * 256, [3841, *[1] * 255]]


@pytest.mark.parametrize("lanes", [1, static.LANES])
@drawn(40)
@given(
    index=st.lists(st.integers(0, len(TABLES) - 1), min_size=1, max_size=9),
    rows=st.integers(0, 30),
    seed=st.integers(0, 99),
)
def test_entropy_coding_equals_its_twin_and_comes_back(lanes, index, rows, seed):
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, len(TABLES[i]), rows) for i in index], axis=1).astype(np.uint8)
    codes[: rows // 4] = np.array([len(TABLES[i]) - 1 for i in index]).astype(np.uint8)
    base, starts, inverse, places, look = prepared(TABLES, index)
    states, room = np.zeros(lanes, np.uint32), np.zeros(codes.size + 1, np.uint16)
    used = static.encode(codes.reshape(-1), base, starts, inverse, states, room)
    words = room[room.size - used :]
    tables = [TABLES[i] for i in index]
    assert ([*states], [*words]) == ref.static_rans_encode(codes, tables, lanes)
    back = np.zeros(codes.size, np.uint8)
    assert static.decode(states, np.append(words, np.uint16(9)), base, starts, places, look, back)
    assert (
        back.tobytes()
        == codes.tobytes()
        == ref.static_rans_decode([*map(int, states)], [*map(int, words)], tables, codes.size).tobytes()
    )


@pytest.mark.parametrize("f", [1, 2, 3, 5, 7, 100, 2047, 2048, 2049, 4095, 4096])
def test_the_reciprocal_divides_exactly_up_to_the_greatest_state(f):
    most = (f << 19) - 1
    near = [0, 1, f - 1, f, most // 2, most - f, most - 1, most]
    near += [k * f + d for k in (1, 2, most // f) for d in (-1, 0, 1)]
    for x in (v for v in near if 0 <= v <= most):
        assert x * -(-(1 << 44) // f) >> 44 == x // f
        assert x * -(-(1 << 44) // f) < 1 << 64


@pytest.mark.parametrize("change", ["cut", "longer", "state", "word"])
def test_damaged_words_are_seen_or_give_codes_of_the_table(change):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, (400, 1)).astype(np.uint8)
    base, starts, inverse, places, look = prepared([[4000, 90, 6]], [0])
    states, room = np.zeros(1, np.uint32), np.zeros(codes.size + 1, np.uint16)
    words = room[room.size - static.encode(codes.reshape(-1), base, starts, inverse, states, room) :].copy()
    words = words[:-1] if change == "cut" else np.append(words, np.uint16(7)) if change == "longer" else words
    if change == "state":
        states[0] ^= np.uint32(1 << 20)
    if change == "word":
        words[3] ^= np.uint16(1)
    back = np.full(codes.size, 9, np.uint8)
    assert not static.decode(states, np.append(words, np.uint16(9)), base, starts, places, look, back)
    assert back.max() < 3
