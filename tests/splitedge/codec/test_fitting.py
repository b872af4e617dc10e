"""Codecs fitted to whole tensors, and their payloads, through the public functions."""

from __future__ import annotations

import copy
import itertools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge import codec, errors, limits
from splitedge.codec import Codec, clip
from splitedge.codec.fitting import CODED, lloyd_max, rotation_of
from splitedge.protocol import messages
from splitedge.protocol.messages import Basis
from tests.drawn import drawn
from tests.raising import expect, raises

SHAPE = (40, 32)
MIXED = np.random.default_rng(9).normal(size=(32, 32)) * np.geomspace(0.1, 8, 32)


def samples(count=24, seed=0, shape=SHAPE):
    """Tensors whose channels are correlated and of unlike deviations, as in a transformer."""
    rng = np.random.default_rng(seed)
    made = rng.standard_t(5, (count, *shape)) @ MIXED[: shape[-1], : shape[-1]] + np.arange(shape[-1]) % 3
    return made.astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("family", codec.FAMILIES)
def test_every_family_crosses_the_network_and_its_payload_is_of_the_size_it_says(family, bits):
    made = codec.fit_samples(samples(6), family, bits)
    received = messages.decode(messages.encode(made), Codec)
    assert received == made
    for x in samples(3, seed=1):
        data = codec.encode(x, made)
        assert codec.decode(data, received, SHAPE).tobytes() == codec.decode(data, made, SHAPE).tobytes()
        assert codec.side_bytes(made, SHAPE) <= len(data) <= codec.max_bytes(made, SHAPE)
        if not made.tables:
            assert len(data) == codec.expected_bytes(made, SHAPE) == codec.max_bytes(made, SHAPE)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("family", CODED)
def test_frames_of_a_rate_take_what_packed_codes_of_those_bits_do(family, bits):
    shape = (130, 32)
    made = codec.fit_samples(samples(24, shape=shape), family, bits)
    sizes = [len(codec.encode(x, made)) for x in samples(8, seed=2, shape=shape)]
    packed = codec.packed_bytes(math.prod(shape), bits)
    assert 0.9 * packed < np.mean(sizes) < 1.02 * packed
    assert codec.expected_bytes(made, shape) == pytest.approx(np.mean(sizes), rel=0.05)


def test_what_each_stage_adds_is_seen_in_the_error():
    fitted, fresh = samples(), samples(8, seed=3)
    error = {f: codec.error(fresh, codec.fit_samples(fitted, f, 2)) for f in codec.FAMILIES}
    assert error["minmax"] > 2 * error["ds-aciq"]
    assert error["ds-aciq"] > error["lloyd-max"] > error["lloyd-max-channel"] > 3 * error["entropy"]
    assert error["mse-channel"] > error["hadamard"] > 3 * error["entropy"]
    assert error["entropy"] > 1.3 * error["pca"]


def test_more_bits_are_less_error():
    fitted, fresh = samples(), samples(8, seed=3)
    for family in ("hadamard", "hadamard-token", "entropy", "pca", "minmax-token", "mse-token"):
        widths = range(2, 5 if family in CODED else 9)  # with more, rare values beyond 127 steps are what remains
        errors_ = [codec.error(fresh, codec.fit_samples(fitted, family, bits)) for bits in widths]
        assert all(more < 1.02 * less for less, more in itertools.pairwise(errors_)), family
        assert errors_[-1] < errors_[0] / 5


@pytest.mark.parametrize("family", codec.FAMILIES)
@pytest.mark.parametrize("value", [0.0, -3.75])
def test_a_constant_comes_back(family, value):
    x = np.full((1, 5, 16), value, np.float32)
    made = codec.fit_samples(x, family, 3)
    tolerance = (
        1e-6 if not made.dynamic else 0.5 if family.startswith("aciq") else 0.01
    )  # a grid about 0 has few levels near one end
    np.testing.assert_allclose(codec.decode(codec.encode(x[0], made), made, (5, 16)), x[0], rtol=tolerance)


@pytest.mark.parametrize("family", codec.FAMILIES)
def test_nan_none_and_wrong_requests_are_refused(family):
    x = samples(2)
    x[1, 3, 3] = np.nan
    with raises(errors.CodecError, reason="not-finite", nan=1):
        codec.fit_samples(x, family, 4)
    made = codec.fit_samples(x[:1], family, 4)
    with raises(errors.CodecError, reason="not-finite", nan=1):
        codec.encode(x[1], made)
    with raises(errors.CodecError, reason="no-values"):
        codec.fit_samples(x[:0], family, 4)
    with raises(errors.CodecError, reason="bits", bits=9):
        codec.fit_samples(x[:1], family, 9)
    assert codec.encode(np.empty((0, 32), np.float32), made) == b""
    assert codec.decode(b"", made, (0, 32)).shape == (0, 32)


def test_an_unknown_family_is_refused():
    with raises(errors.CodecError, reason="unknown-codec", family="best"):
        codec.fit_samples(samples(1), "best", 4)


@pytest.mark.parametrize("family", ["hadamard", "minmax-token", "minmax-frame", "mse-token", "entropy", "pca"])
def test_values_beyond_any_sum_are_refused(family):
    x = np.full((2, 32), 3e38, np.float32)
    x[0] *= -1
    made = codec.fit_samples(samples(1), family, 4)
    try:
        data = codec.encode(x, made)
    except errors.CodecError as error:
        expect(error, errors.CodecError, reason="too-large-for-codec")
    else:
        assert np.isfinite(codec.decode(data, made, x.shape)).all()


def test_the_largest_block_that_divides_the_channels_is_rotated():
    assert [rotation_of(c) for c in (384, 768, 96, 24, 320, 5)] == [128, 128, 32, 8, 64, 0]
    for channels in (5, 24):
        x = samples(2, shape=(9, channels))
        made = codec.fit_samples(x, "hadamard", 3)
        assert codec.error(x, made) < x.var()


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("skewed", [False, True])
def test_a_range_of_least_error_within_each_row_errs_less_than_published_ones(bits, skewed):
    x = samples(8) * np.geomspace(0.01, 100, 40, dtype=np.float32)[:, None]
    x = np.abs(x) if skewed else x
    error = {f"{f}-token": codec.error(x, codec.fit_samples(x, f"{f}-token", bits)) for f in ("mse", "minmax", "aciq")}
    assert error["mse-token"] < 1.001 * min(error.values())
    assert bits > 3 or error["mse-token"] < 0.9 * error["minmax-token"]


def test_the_rows_own_ranges_follow_their_size():
    """A row and 8192 times the same are coded alike, though nothing so large was seen."""
    made = codec.fit_samples(samples(4), "mse-token", 4)
    x = samples(1, seed=1)[0]
    small, large = (codec.decode(codec.encode(v, made), made, SHAPE) for v in (x, 8192 * x))
    np.testing.assert_array_equal(8192 * small, large)
    fixed = codec.fit_samples(samples(4), "mse", 4)
    assert codec.error(8192 * x[None], made) < codec.error(8192 * x[None], fixed) / 50


def test_rows_that_span_more_than_can_be_measured_are_refused():
    with raises(errors.CodecError, reason="too-large-for-codec"):
        codec.fit_samples(np.array([[3e38, -3e38]], np.float32), "mse-token", 4)


def test_rows_of_one_value_come_back_whatever_it_is():
    x = np.array([[0.0] * 8, [0.5] * 8, [-3.0] * 8], np.float32)
    for bits in codec.BITS:
        made = codec.fit_samples(x, "mse-token", bits)
        np.testing.assert_allclose(codec.decode(codec.encode(x, made), made, x.shape), x, rtol=0.01)


@pytest.mark.parametrize(("family", "bits"), [("mse", 16), ("mse", 32), (codec.FLOAT, 8), (codec.FLOAT, 15)])
def test_sixteen_bits_and_more_are_floats_and_nothing_else_is(family, bits):
    with raises(errors.CodecError, reason="bits"):
        codec.fit_samples(samples(1), family, bits)


def test_floats_cannot_be_fitted_to_what_is_none():
    for bad in (np.nan, np.inf):
        with raises(errors.CodecError, reason="not-finite"):
            codec.fit_samples(np.full((1, 4), bad, np.float32), codec.FLOAT, 16)


def test_lloyd_max_levels_are_those_of_the_books():
    x = np.random.default_rng(0).normal(size=400_000)
    np.testing.assert_allclose(lloyd_max(clip.distribution(x), 4), [-1.510, -0.4528, 0.4528, 1.510], atol=0.02)


@pytest.mark.parametrize("bits", [16, 32])
def test_floats_go_as_they_are(bits):
    made = codec.fit_samples(samples(1), codec.FLOAT, bits)
    x = samples(1)[0]
    data = codec.encode(x, made)
    assert len(data) == codec.max_bytes(made, SHAPE) == x.size * bits // 8
    wanted = x.astype(np.float16).astype(np.float32) if bits == 16 else x
    assert codec.decode(data, made, SHAPE).tobytes() == wanted.tobytes()
    for bad in (np.nan, np.inf):
        with raises(errors.CodecError, reason="not-finite"):
            codec.encode(np.array([bad], np.float32), made)
        with raises(errors.CodecError, reason="not-finite"):
            codec.decode(np.array([bad], f"<f{bits // 8}").tobytes(), made, (1,))
    beyond = np.array([1e5, -3e38, 65504], np.float32)
    ends = [65504, -65504, 65504] if bits == 16 else beyond
    np.testing.assert_array_equal(codec.decode(codec.encode(beyond, made), made, (3,)), np.array(ends, np.float32))


@pytest.mark.parametrize("family", ["hadamard", "entropy", "minmax-token"])
def test_codes_of_an_8_bit_head_make_the_payload_of_the_tensor_that_they_stand_for(family):
    made = codec.fit_samples(samples(4), family, 2)
    codes = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    values = np.float32(0.05) * (codes.astype(np.float32) - np.float32(100))
    assert codec.encode_codes(codes, 0.05, 100, made) == codec.encode(values, made)


def test_a_codebook_without_rotation_has_tables_for_8_bit_heads():
    made = codec.fit_samples(samples(4), "lloyd-max-channel", 3)
    codes = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    values = np.float32(0.05) * (codes.astype(np.float32) - np.float32(100))
    assert codec.tables(0.05, 100, made).shape == (32, 256)
    assert codec.encode_codes(codes, 0.05, 100, made) == codec.encode(values, made)
    with raises(errors.CodecError, reason="codes-share-values"):
        codec.tables(0.05, 100, codec.fit_samples(samples(4), "hadamard", 3))


# --- hostile codecs and frames ------------------------------------------------------------------------------------------

LO, SCALE = (0.0,) * 4, (1.0,) * 4
HOSTILE = {
    "bits": ("codec-bits", Codec("x", 9, LO, SCALE)),
    "floats with a rotation": ("codec-floats", Codec("x", 16, LO, SCALE, rotation=8)),
    "a codebook of 3": ("codec-levels", Codec("x", 2, LO, SCALE, levels=(0.0, 1.0, 2.0))),
    "a codebook at 4 bits": ("codec-levels", Codec("x", 4, LO, SCALE, levels=tuple(float(k) for k in range(16)))),
    "levels that fall": ("codec-levels", Codec("x", 2, LO, SCALE, levels=(0.0, 2.0, 1.0, 3.0))),
    "levels that are not finite": ("codec-levels", Codec("x", 2, LO, SCALE, levels=(0.0, 1.0, 2.0, float("inf")))),
    "levels beyond float32": ("codec-range", Codec("x", 2, LO, (3e38,) * 4, levels=(-9.0, 1.0, 2.0, 3.0))),
    "a rotation of 7": ("codec-rotation", Codec("x", 2, LO, SCALE, rotation=7)),
    "a rotation of more than there is": ("codec-rotation", Codec("x", 2, LO, SCALE, rotation=8)),
    "a basis of another size": ("codec-basis-size", Codec("x", 2, LO, SCALE, basis=Basis((0.0,) * 5, bytes(39)))),
    "a basis of nothing": ("codec-basis-values", Codec("x", 2, LO, SCALE, basis=Basis((0.0,) * 4, bytes(32)))),
    "a basis with more components than channels": ("codec-basis-size", Codec("x", 2, LO, SCALE, basis=Basis((0.0,) * 3, b"\1" * 24))),
    "a basis around nothing": ("codec-basis-values", Codec("x", 2, LO, SCALE, basis=Basis((float("nan"),) * 4, b"\1" * 32))),
    "a basis too large": ("codec-basis-size", Codec("x", 2, (0.0,) * 1025, (1.0,) * 1025, basis=Basis((0.0,) * 1025, b"\1" * 2 * 1025**2))),
    "a basis and a rotation": ("codec-rotation", Codec("x", 2, (0.0,) * 8, (1.0,) * 8, rotation=8, basis=Basis((0.0,) * 8, b"\1" * 128))),
    "frequencies that sum to less": ("codec-tables", Codec("x", 8, LO, SCALE, tables=((4095,),), table=(0,))),
    "a frequency of 0": ("codec-tables", Codec("x", 8, LO, SCALE, tables=((4096, 0),), table=(0,))),
    "a frequency below 0": ("codec-tables", Codec("x", 8, LO, SCALE, tables=((4097, -1),), table=(0,))),
    "a table of nothing": ("codec-tables", Codec("x", 8, LO, SCALE, tables=((4096,), ()), table=(0,))),
    "a table for nobody": ("codec-tables", Codec("x", 8, LO, SCALE, tables=((4096,),), table=())),
    "a table that is not there": ("codec-tables", Codec("x", 8, LO, SCALE, tables=((4096,),), table=(0, 0, 1, 0))),
    "a table before the first": ("codec-tables", Codec("x", 8, LO, SCALE, tables=((4096,),), table=(-1,))),
    "tables of too few channels": ("codec-tables", Codec("x", 8, LO, SCALE, tables=((4096,),), table=(0, 0))),
    "too many tables": ("codec-tables", Codec("x", 8, LO, SCALE, tables=((4096,),) * (limits.MAX_TABLES + 1), table=(0,))),
    "more codes than bits": ("codec-tables", Codec("x", 2, LO, SCALE, tables=((4092, 1, 1, 1, 1),), table=(0,))),
    "tables and a codebook": ("codec-levels", Codec("x", 2, LO, SCALE, levels=(0.0, 1.0, 2.0, 3.0), tables=((4096,),), table=(0,))),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_codec_is_refused(name):
    reason, hostile = HOSTILE[name]
    for use in (codec.validate, lambda c: codec.decode(b"", c, (0,)), lambda c: codec.max_bytes(c, (4,))):
        with raises(errors.CodecError, reason=reason):
            use(hostile)


def test_a_replaced_field_takes_effect():
    made = codec.fit_samples(samples(2), "hadamard", 2)
    x = samples(1)[0]
    before = codec.encode(x, made)
    assert codec.encode(x, copy.deepcopy(made)) == before
    assert codec.encode(x, msgspec.structs.replace(made, rotation=8)) != before


FITTED = {
    f: codec.fit_samples(samples(4), f, 3)
    for f in ("minmax-token", "minmax-frame", "aciq-token", "mse-token", "hadamard-token", "entropy", "pca")
}


@drawn(150)
@given(st.sampled_from(sorted(FITTED)), st.data())
def test_any_payload_is_decoded_to_its_shape_or_refused(family, data):
    made, shape = FITTED[family], (data.draw(st.integers(0, 3)), 32)
    payload = data.draw(st.binary(max_size=codec.max_bytes(made, shape) + 3))
    try:
        y = codec.decode(payload, made, shape)
    except errors.CodecError:
        return
    assert y.shape == shape
    assert np.isfinite(y).all()


@drawn(100)
@given(st.sampled_from(sorted(FITTED)), st.data())
def test_a_damaged_payload_is_decoded_to_finite_values_or_refused(family, data):
    made, x = FITTED[family], samples(1, seed=5)[0]
    payload = bytearray(codec.encode(x, made))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        y = codec.decode(payload, made, SHAPE)
    except errors.CodecError:
        return
    assert np.isfinite(y).all()


@pytest.mark.parametrize("words", [(0x0000, 0xBF80), (0x7F80, 0x3F80), (0x0000, 0x7FC0), (0x7F7F, 0x7F7F)])
def test_ranges_that_nobody_measured_are_refused(words):
    made = codec.fit_samples(samples(1), "minmax-frame", 4)
    payload = np.array(words, "<u2").tobytes() + bytes(codec.packed_bytes(32, 4))
    with raises(errors.CodecError, reason="frame-ranges"):
        codec.decode(payload, made, (1, 32))


def test_a_shape_out_of_bounds_is_refused_before_anything_is_allocated():
    for made in FITTED.values():
        with raises(errors.CodecError, reason="too-many-values"):
            codec.decode(bytes(2), made, (1 << 40, 32))
        with raises(errors.CodecError, reason="payload-bytes", bytes=2):
            codec.decode(bytes(2), made, (1 << 22, 32))


def test_error_wants_values():
    with raises(errors.CodecError, reason="no-values"):
        codec.error(np.empty((0, 4), np.float32), Codec("minmax", 4, (0.0,), (1.0,)))
