"""The operators of a transformer equal their twins bit for bit, over awkward sizes."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from kernels import native, reference
from kernels.define import kernel
from kernels.operators import float_gemm, gemm
from splitedge.errors import InputError
from splitedge.head import Head
from splitedge.head import segment as seg
from tests import reference_head
from tests.raising import raises
from tests.segment_builder import Builder

AWKWARD = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 257)


def assert_equal_to_twin(builder: Builder, x: np.ndarray | None = None) -> None:
    segment = builder.finish()
    head = Head(segment, check_golden=False)
    tensors = list(range(len(builder.tensors)))
    x = builder.codes() if x is None else x
    expected = reference_head.run(segment, x)
    for tensor, got in zip(tensors, head.taps(x, tensors), strict=True):
        assert got.dtype == expected[tensor].dtype
        np.testing.assert_array_equal(got, expected[tensor], err_msg=f"tensor {tensor}")
    head._arena[: head.header.arena_bytes] = 0xFF  # what lies beside a tensor is no part of it: here it is NaN
    np.testing.assert_array_equal(head.run(x), expected[segment.header.output])


@pytest.mark.parametrize("inner", AWKWARD)
def test_products_of_every_width_equal_the_twin(inner: int) -> None:
    for outs in (1, 7, 16, 33, 80):
        builder = Builder([5, inner], seed=inner + outs, dtype="f32")
        builder.linear(builder.input, outs)
        builder.linear(builder.input, outs, activation="gelu", residual=1)
        assert_equal_to_twin(builder)


@pytest.mark.parametrize("rows", [*AWKWARD, 48, 49, 96])
def test_products_of_every_number_of_rows_equal_the_twin(rows: int) -> None:
    builder = Builder([rows, 20], seed=rows, dtype="f32")
    hidden = builder.linear(builder.input, 35, activation="gelu")
    builder.linear(hidden, 20, residual=builder.input)
    assert_equal_to_twin(builder)


@pytest.mark.parametrize("bits", range(2, 9))
def test_products_at_every_bit_width_equal_the_twin(bits: int) -> None:
    builder = Builder([2, 3, 45], seed=bits, dtype="f32")
    builder.linear(builder.input, 50, bits=bits)
    assert_equal_to_twin(builder)


@pytest.mark.parametrize("channels", AWKWARD)
def test_layer_norm_equals_the_twin(channels: int) -> None:
    builder = Builder([5, channels], seed=channels, dtype="f32")
    builder.norm(builder.input)
    for scale in (1e-6, 1.0, 1e6):
        assert_equal_to_twin(builder, builder.codes() * np.float32(scale) + np.float32(3))


@pytest.mark.parametrize(("heads", "size"), [(1, 1), (2, 3), (3, 8), (2, 15), (1, 33), (4, 32), (1, 64)])
@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 31, 48, 65, 127])
def test_attention_equals_the_twin(tokens: int, heads: int, size: int) -> None:
    builder = Builder([tokens], seed=tokens * heads, dtype="i32")
    stream = builder.embed(builder.input, 3 * heads * size)
    masked = builder.attention(stream, heads, ids=builder.input)
    builder.attention(stream, heads)
    builder.linear(masked, 5)
    assert_equal_to_twin(builder)


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_a_pictures_tokens_equal_the_twin(size: int, channels: int) -> None:
    builder = Builder([3 * size, 5 * size, channels], seed=size, dtype="f32")
    width = size * size * channels
    x = builder.append(seg.Patches, [15, width], dtype="f32", x=builder.input, size=size)
    x = builder.append(seg.Position, [16, width], dtype="f32", x=x, table=builder.floats(16, width))
    builder.append(seg.Mean, [1, width], dtype="f32", x=x, first=0, count=1)
    builder.append(seg.Mean, [width], dtype="f32", x=x, first=1, count=15)
    assert_equal_to_twin(builder)


def test_attention_without_a_key_is_zero() -> None:
    builder = Builder([9], dtype="i32")
    builder.attention(builder.embed(builder.input, 24), 2, ids=builder.input)
    assert_equal_to_twin(builder, np.zeros(9, np.int32))
    assert not Head(builder.finish(), check_golden=False).run(np.zeros(9, np.int32)).any()


def test_attention_does_not_depend_on_what_is_padded() -> None:
    """Keys and values of padding are not looked at, so a token's answer is that of the text alone."""
    stream = np.random.default_rng(7).normal(size=(29, 36)).astype(np.float32)
    whole, alone = (reference.attention(stream[:n], 3, 0.5, np.arange(n) < 12)[:12] for n in (29, 12))
    np.testing.assert_array_equal(whole, alone)


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("channels", [1, 15, 64, 65])
def test_embedding_equals_the_twin(channels: int, bits: int) -> None:
    builder = Builder([7], seed=channels, dtype="i32")
    builder.embed(builder.input, channels, bits=bits)
    assert_equal_to_twin(builder, np.array([0, 98, 1, 50, 98, 97, 0], np.int32))


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-31, 1e-29, 1e25, 3e38])
def test_rows_without_a_usable_range_equal_the_twin(scale: float) -> None:
    builder = Builder([4, 33], dtype="f32")
    builder.linear(builder.input, 20)
    x = builder.codes() / np.float32(8) * np.float32(scale)
    x[1] = np.abs(x[1])
    x[2] = -np.abs(x[2])
    with np.errstate(all="ignore"):
        assert_equal_to_twin(builder, x)


@pytest.mark.parametrize("kind", reference.FUNCTIONS)
def test_functions_and_gates_equal_the_twin(kind: str) -> None:
    for columns in AWKWARD:
        builder = Builder([3, 2 * columns], seed=columns, dtype="f32")
        same = builder.append(seg.Function, [3, 2 * columns], dtype="f32", x=builder.input, **{"kind": kind})
        builder.append(seg.Gate, [3, columns], dtype="f32", x=builder.input, **{"kind": kind})
        builder.append(seg.Sum, [3, 2 * columns], dtype="f32", a=same, b=builder.input)
        x = builder.codes() * np.float32(8)
        x[0, 0] = np.float32(-0.0)
        assert_equal_to_twin(builder, x)


def test_functions_are_near_the_exact_ones() -> None:
    x = np.linspace(-30, 30, 20001)
    sigmoid = 1 / (1 + np.exp(-x))
    exact = {
        "relu": np.maximum(x, 0),
        "gelu": reference.gelu(x.astype(np.float32)),
        "silu": x * sigmoid,
        "quick_gelu": x / (1 + np.exp(-1.702 * x)),
        "sigmoid": sigmoid,
        "tanh": np.tanh(x),
        "hard_swish": x * np.clip(x / 6 + 0.5, 0, 1),
    }
    assert set(exact) == set(reference.FUNCTIONS)
    for kind, values in exact.items():
        np.testing.assert_allclose(reference.function(x.astype(np.float32), kind), values, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("channels", AWKWARD)
def test_norms_without_a_mean_equal_the_twin(channels: int) -> None:
    builder = Builder([3, channels], seed=channels, dtype="f32")
    builder.rms_norm(builder.rms_norm(builder.input))
    assert_equal_to_twin(builder)


@pytest.mark.parametrize("scale", [0.5, 0.037, 1e-30, 1e30])
def test_codes_of_values_and_values_of_codes_equal_the_twin(scale: float) -> None:
    for columns in AWKWARD:
        builder = Builder([3, columns], seed=columns, dtype="f32")
        codes = builder.append(seg.Quantize, [3 * columns], 91, scale, x=builder.input)
        builder.append(seg.Dequantize, [3, columns], dtype="f32", x=codes)
        x = builder.codes() * np.float32(20 * min(scale, 1e30))
        x[0, -1] = np.inf
        assert_equal_to_twin(builder, x)


def test_a_value_that_is_no_number_becomes_the_least_code() -> None:
    builder = Builder([1, 20], dtype="f32")
    builder.append(seg.Quantize, [20], 91, 1.0, x=builder.input)
    head = Head(builder.finish(), check_golden=False)
    assert head.run(np.full((1, 20), np.nan, np.float32)).tolist() == [0] * 20
    assert head.run(np.full((1, 20), -0.0, np.float32)).tolist() == [91] * 20


@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 33, 49, 65])
@pytest.mark.parametrize("windows", [1, 2, 5])
def test_attention_within_windows_equals_the_twin(windows: int, tokens: int) -> None:
    builder = Builder([windows * tokens, 3 * 20], seed=windows * tokens, dtype="f32")
    for bias, mask in ((False, False), (True, False), (False, True), (True, True)):
        builder.window_attention(builder.input, 2, windows, bias=bias, mask=mask)
    assert_equal_to_twin(builder)


@pytest.mark.parametrize("tokens", [1, 5, 48, 97])
def test_attention_with_a_bias_and_padding_equals_the_twin(tokens: int) -> None:
    builder = Builder([tokens], seed=tokens, dtype="i32")
    stream = builder.embed(builder.input, 3 * 24)
    builder.window_attention(stream, 3, ids=builder.input)
    builder.window_attention(stream, 3, ids=builder.input, mask=False)
    assert_equal_to_twin(builder)
    assert_equal_to_twin(builder, np.zeros(tokens, np.int32))


def test_attention_in_one_window_is_attention() -> None:
    x = np.random.default_rng(3).normal(size=(30, 3 * 24)).astype(np.float32)
    np.testing.assert_array_equal(reference.window_attention(x, 2, 0.3, 1), reference.attention(x, 2, 0.3))
    pair = reference.window_attention(np.concatenate([x, 2 * x]), 2, 0.3, 2)
    np.testing.assert_array_equal(pair[:30], reference.attention(x, 2, 0.3))
    np.testing.assert_array_equal(pair[30:], reference.attention(2 * x, 2, 0.3))


def test_a_mask_excludes_tokens_as_padding_does() -> None:
    x = np.random.default_rng(4).normal(size=(9, 3 * 8)).astype(np.float32)
    x[4:, 16:] = x[3, 16:]  # the scale of values is that of all tokens
    mask = np.zeros((1, 9, 9), np.float32)
    mask[:, :, 4:] = -1e30
    found = reference.window_attention(x, 2, 0.3, 1, mask=mask)
    np.testing.assert_allclose(found, reference.attention(x, 2, 0.3, np.arange(9) < 4), atol=1e-5)


@pytest.mark.parametrize("half", [1, 2, 7, 8, 16, 17, 32])
def test_rotary_positions_equal_the_twin(half: int) -> None:
    builder = Builder([12, 4 * half + 3], seed=half, dtype="f32")
    builder.rotary(builder.input, 2, 2 * half, 4)
    builder.rotary(builder.input, 1, 2 * half, 12)
    assert_equal_to_twin(builder)


def test_rotary_positions_turn_pairs_by_their_angles() -> None:
    """Products of turned queries and keys depend on the distance of their positions."""
    angles = np.arange(6)[:, None] * np.float32(0.3) ** np.arange(4)
    cos, sin = np.tile(np.cos(angles), 2), np.tile(np.sin(angles), 2) * np.repeat([-1, 1], 4)
    table = np.stack([cos, sin], axis=1).astype(np.float32)
    q, k = np.random.default_rng(5).normal(size=(2, 8)).astype(np.float32)
    queries, keys = (reference.rotary(np.tile(v, (6, 1)), 1, table) for v in (q, k))
    products = queries @ keys.T
    for distance in range(5):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", AWKWARD)
def test_views_of_values_equal_the_twin(columns: int) -> None:
    builder = Builder([6, columns], seed=columns, dtype="f32")
    turned = builder.append(
        seg.View, [columns, 6], dtype="f32", x=builder.input, start=0, sizes=[columns, 6], steps=[1, columns]
    )
    builder.append(seg.View, [3, columns], dtype="f32", x=turned, start=1, sizes=[3, columns], steps=[2, 6])
    builder.append(seg.View, [2, 4, 6], dtype="f32", x=turned, start=0, sizes=[2, 4, 6], steps=[0, 0, 1])
    x = builder.codes()
    assert_equal_to_twin(builder, x)
    np.testing.assert_array_equal(reference.view(x, 0, [columns, 6], [1, columns]).reshape(columns, 6), x.T)


def test_gathered_rows_equal_the_twin() -> None:
    for channels in AWKWARD:
        builder = Builder([5, channels], seed=channels, dtype="f32")
        builder.gather(builder.input, 13)
        assert_equal_to_twin(builder)


def test_threads_compute_the_same_bits() -> None:
    builder = Builder([4 * 13, 3 * 24], seed=9, dtype="f32")
    turned = builder.rotary(builder.input, 6, 8, 13)
    mixed = builder.window_attention(turned, 3, 4)
    grown = builder.append(seg.Gate, [52, 12], dtype="f32", x=mixed, **{"kind": "silu"})
    builder.gather(builder.rms_norm(grown), 70)
    segment, x = builder.finish(), builder.codes()
    alone = Head(segment, check_golden=False).run(x)
    np.testing.assert_array_equal(Head(segment, check_golden=False, threads=3).run(x), alone)


def test_values_that_are_not_finite_end_in_no_crash() -> None:
    builder = Builder([3, 36], dtype="f32")
    x = builder.attention(builder.linear(builder.input, 108, activation="gelu"), 3)
    builder.linear(builder.norm(x), 20)
    head = Head(builder.finish(), check_golden=False)
    for bad in (np.nan, np.inf, -np.inf, 3e38):
        head.run(np.full((3, 36), bad, np.float32))


def test_gelu_is_within_two_millionths_of_the_exact_one() -> None:
    x = np.linspace(-9, 9, 20001).astype(np.float32)
    exact = np.array([v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(np.float64)])
    assert np.abs(reference.gelu(x) - exact).max() < 2e-6


def test_attention_is_near_the_exact_one() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 3 * 64)).astype(np.float32)
    q, k, v = (x[:, i * 64 : (i + 1) * 64].reshape(60, 2, 32).transpose(1, 0, 2).astype(np.float64) for i in range(3))
    scores = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(32))
    exact = (scores / scores.sum(axis=-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(60, 64)
    got = reference.attention(x, 2, 1 / math.sqrt(32))
    assert np.abs(got - exact).max() < 0.02 * np.abs(exact).max()


@kernel
def _pack(memory, first, column_step, k_step, n, k):  # type: ignore[no-untyped-def]
    source = float_gemm.Source(first, column_step, k_step)
    float_gemm.pack(memory.view(np.int8), source, n, k, memory.view(np.uint32), 0)


@pytest.mark.skipif(native.LIBRARY is not None, reason="compiles a kernel of its own")
@pytest.mark.parametrize("n", [1, 16, 33, 79, 130])
@pytest.mark.parametrize("k", [1, 4, 7, 32, 65])
def test_packing_at_run_time_gives_the_panels_of_packing_at_load(n: int, k: int) -> None:
    w = np.random.default_rng(n * k).integers(-127, 128, (n, k)).astype(np.int8)
    expected = gemm.pack_panels(w)
    padded = np.zeros((n, k + 8), np.int8)
    padded[:, :k] = w
    for source, column_step, k_step in ((padded, k + 8, 1), (np.ascontiguousarray(padded.T), 1, n)):
        memory = np.zeros(expected.size + -(-source.size // 4) * 4, np.uint8)
        memory[expected.size :][: source.size] = source.reshape(-1).view(np.uint8)
        _pack(memory, expected.size, column_step, k_step, n, k)
        np.testing.assert_array_equal(memory[: expected.size], expected)


def test_token_ids_that_the_model_does_not_know_are_refused() -> None:
    builder = Builder([4], dtype="i32")
    builder.embed(builder.input, 8, vocabulary=10)
    head = Head(builder.finish(), check_golden=False)
    for bad in (-1, 10):
        with raises(InputError, reason="token-ids"):
            head.run(np.array([1, 2, bad, 3], np.int32))
    with raises(InputError, reason="other-tensor"):
        head.run(np.array([1, 2, 3, 4]))


def test_the_golden_input_has_the_type_of_the_head() -> None:
    builder = Builder([40], dtype="i32")
    builder.embed(builder.input, 8, vocabulary=10)
    ids = seg.golden_frame(builder.finish().header)
    assert ids.dtype == np.int32
    assert set(ids.tolist()) == set(range(10))
    values = seg.golden_frame(Builder([5, 7], dtype="f32").finish().header)
    assert values.dtype == np.float32
    assert np.abs(values).max() <= 4
    assert seg.golden_frame(Builder([5, 7]).finish().header).dtype == np.uint8


def test_a_tensor_of_codes_is_written_as_before() -> None:
    builder = Builder([4, 4, 3])
    builder.conv(builder.input, 8)
    segment = builder.finish()
    assert b"dtype" not in msgspec.json.encode(segment.header)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_a_team_gives_the_bits_of_one_thread(threads: int) -> None:
    for tokens, heads in ((1, 1), (2, 2), (37, 3), (64, 12)):
        builder = Builder([tokens], seed=tokens, dtype="i32")
        x = builder.norm(builder.embed(builder.input, 24 * heads))
        mixed = builder.attention(builder.linear(x, 72 * heads), heads, ids=builder.input)
        builder.norm(builder.linear(mixed, 24 * heads, activation="gelu", residual=x))
        segment = builder.finish()
        alone, team = Head(segment, check_golden=False), Head(segment, check_golden=False, threads=threads)
        for _ in range(5):
            ids = builder.codes()
            np.testing.assert_array_equal(team.run(ids), alone.run(ids))
        np.testing.assert_array_equal(team.run(ids * 0), alone.run(ids * 0))
