"""The arithmetic of predictions, and one look at a real head."""

from __future__ import annotations

import msgspec
import pytest

from device_profiles import known, predict, schema
from device_profiles.band import pace_factor, times
from device_profiles.measurement import SHAPES, one_operator
from device_profiles.schema import Band, Origin, Shape
from splitedge.errors import ProtocolError
from splitedge.head import segment as seg
from tests.raising import raises


def _header(tensors: list[list[int]], ops: list[seg.AnyOp]) -> seg.Header:
    header = one_operator("lut", Shape(1, 1, 64, 64)).header
    return msgspec.structs.replace(header, tensors=[seg.Tensor(shape, 1.0, 0, 0) for shape in tensors], ops=ops)


def _conv(kernel: int = 1, stride: int = 1, groups: int = 1) -> seg.Conv:
    return seg.Conv("c", 1, 0, 8, 0, 0, 0, [kernel] * 2, [stride] * 2, [1, 1], [0] * 4, groups, 0, 255)


@pytest.mark.parametrize(
    ("tensors", "op", "kind", "macs", "size"),
    [
        ([[14, 14, 24], [14, 14, 48]], _conv(), "pointwise", 196 * 24 * 48, 196 * 72 + 24 * 48),
        ([[14, 14, 24], [7, 7, 48]], _conv(1, 2), "pointwise", 49 * 24 * 48, 196 * 24 + 49 * 48 + 24 * 48),
        ([[14, 14, 24], [14, 14, 24]], _conv(3, 1, 24), "depthwise", 196 * 24 * 9, 2 * 196 * 24 + 9 * 24),
        ([[14, 14, 24], [14, 14, 48]], _conv(3, 1, 24), "conv", 196 * 48 * 9, 196 * 72 + 9 * 48),
        ([[14, 14, 24], [14, 14, 48]], _conv(3, 1, 4), "conv", 196 * 48 * 54, 196 * 72 + 54 * 48),
        ([[14, 14, 1], [14, 14, 8]], _conv(3), "conv", 196 * 8 * 9, 196 * 9 + 72),
        ([[1, 1, 64], [1, 1, 10]], _conv(), "dense", 640, 74 + 640),
        ([[64], [10]], _conv(), "dense", 640, 74 + 640),
        ([[14, 14, 24], [14, 14, 24]], seg.Lut("l", 1, 0, 0), "lut", 0, 2 * 196 * 24),
        ([[14, 14, 24], [14, 14, 24]], seg.Add("a", 1, 0, 0, 1, 1, 0, 255), "add", 0, 3 * 196 * 24),
        ([[14, 14, 24], [14, 14, 24]], seg.Mul("m", 1, 0, 0, 1, 0, 255), "add", 0, 3 * 196 * 24),
        ([[4, 4, 8], [4, 4, 16]], seg.Concat("c", 1, [0, 0], [-1, -1]), "lut", 0, 16 * 32),
        ([[10], [10]], seg.Softmax("s", 1, 0, 0, 255), "add", 0, 20),
    ],
)
def test_kind_work_and_bytes_of_an_operator(tensors, op, kind, macs, size):
    header = _header(tensors, [op])
    assert predict.op_kind(op, header) == kind
    assert predict.op_macs(op, header) == macs
    assert predict.op_bytes(op, header) == size


@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_a_measured_shape_is_predicted_by_its_own_figure(profile, kind, shape):
    header = one_operator(kind, shape).header
    row = next(row for row in profile.kernels if (row.kind, row.shape) == (kind, shape))
    row.time_us *= 3
    assert predict.op_point(header.ops[0], header) == predict.kernel_point(row)
    expected = (row.time_us + profile.overhead.op_us) / 1000
    assert predict.op_ms(header.ops[0], header, profile) == pytest.approx(expected, rel=1e-3)


def test_between_measured_shapes_the_rate_lies_between(profile):
    rows = [row for row in profile.kernels if row.kind == "pointwise"]
    for row, rate in zip(rows, (5_000, 8_000, 10_000, 20_000), strict=True):
        row.time_us = row.macs / rate
    op = _conv()
    header = _header([[28, 28, 64], [28, 28, 96]], [op])
    microseconds = predict.op_ms(op, header, profile) * 1000 - profile.overhead.op_us
    assert 5_000 < predict.op_macs(op, header) / microseconds < 20_000


def test_a_head_is_the_sum_of_its_operators_and_the_call(profile):
    header = one_operator("lut", Shape(56, 56, 144, 144), chain=4).header
    one = predict.op_ms(header.ops[0], header, profile)
    assert predict.head_ms(header, profile) == pytest.approx(0.005 + 4 * one)


def test_a_head_without_operators_takes_no_time(profile):
    assert predict.head_ms(_header([[8, 8, 3]], []), profile) == 0.0


def test_windows_that_overlap_count_each_cell(profile):
    def pool(kernel):
        op = seg.Pool("p", 1, 0, "max", [kernel] * 2, [2, 2], [0] * 4, False, 1.0, 0, 255)
        return predict.op_ms(op, _header([[56, 56, 64], [28, 28, 64]], [op]), profile)

    assert pool(5) > pool(3) > pool(2)


def test_a_kind_without_measurement_is_an_error_not_a_guess(profile):
    profile.kernels = [row for row in profile.kernels if row.kind != "lut"]
    header = one_operator("lut", Shape(1, 1, 64, 64)).header
    with raises(ProtocolError, reason="not-measured"):
        predict.head_ms(header, profile)


def test_the_number_of_threads_that_took_least_time_is_chosen(profile):
    one = profile.kernels
    assert predict.best_threads(profile) == 1
    two = [msgspec.structs.replace(k, threads=2, time_us=k.time_us / 1.5) for k in one]
    four = [msgspec.structs.replace(k, threads=4, time_us=k.time_us * 1.5) for k in one]
    partial = [msgspec.structs.replace(one[0], threads=8, time_us=1e-3)]
    assert predict.best_threads(msgspec.structs.replace(profile, kernels=[*one, *two, *four, *partial])) == 2


def test_the_number_of_threads_is_explained(profile):
    one = profile.kernels
    two = [msgspec.structs.replace(k, threads=2, time_us=k.time_us / 2) for k in one]
    total = sum(k.time_us for k in one) / 1000
    text = predict.explain_threads([*one, *two], profile.machine)
    assert text == f"2: the measured kernels took {total / 2:.2f} ms together, against {total:.2f} ms on 1"
    narrow = msgspec.structs.replace(profile.machine, usable_cores=3, cpu_quota=1.5)
    assert (
        predict.explain_threads(one, narrow) == "1: this process has 3 of 4 threads of the processor, quota 1.5 cores"
    )


def _linear(rows: int, depth: int, outs: int, activation: str = "none") -> tuple[seg.Header, seg.AnyOp]:
    op = seg.Linear("l", 1, 0, 8, 0, 0, 0, activation, -1)
    return _header([[rows, depth], [rows, outs]], [op]), op


def test_a_transformers_product_costs_that_of_a_convolution_and_its_floats(profile):
    header, op = _linear(49, 64, 128)
    plain = _header([[7, 7, 64], [7, 7, 128]], [_conv()])
    ours, theirs = predict.op_ms(op, header, profile), predict.op_ms(_conv(), plain, profile)
    assert theirs < ours < 4 * theirs
    assert ours < predict.op_ms(*reversed(_linear(49, 64, 128, "gelu")), profile)
    dense = profile.kernels[[row.kind for row in profile.kernels].index("dense")]
    before = predict.op_ms(*reversed(_linear(1, 64, 128)), profile)
    dense.time_us *= 10
    assert predict.op_ms(*reversed(_linear(1, 64, 128)), profile) > before


def test_attention_grows_with_the_square_of_its_tokens(profile):
    op = seg.Attention("a", 1, 0, 4, 0.1, -1, 0)

    def ms(tokens: int) -> float:
        return predict.op_ms(op, _header([[tokens, 384], [tokens, 128]], [op]), profile)

    assert 3 < ms(256) / ms(128) < 8


def test_other_operators_of_a_transformer_cost_their_floats(profile):
    shapes = [[64, 96], [64, 96]]
    costs = [predict.op_ms(op, _header(shapes, [op]), profile) for op in (
        seg.Norm("n", 1, 0, 0, 0, 1e-5), seg.Position("p", 1, 0, 0), seg.Embed("e", 1, 0, 8, 99, 0, 0, 0)
    )]  # fmt: skip
    assert all(cost > profile.overhead.op_us / 1000 for cost in costs)
    mean = seg.Mean("m", 1, 0, 0, 64)
    assert predict.op_ms(mean, _header([[64, 96], [96]], [mean]), profile) < costs[0]


def test_attention_in_windows_costs_less_than_over_all_tokens(profile):
    def ms(windows: int, bias: int = -1) -> float:
        op = seg.WindowAttention("w", 1, 0, 4, 0.1, windows, -1, 0, bias, 1, bias, -1)
        return predict.op_ms(op, _header([[256, 384], [256, 128]], [op]), profile)

    plain = seg.Attention("a", 1, 0, 4, 0.1, -1, 0)
    assert ms(1) == predict.op_ms(plain, _header([[256, 384], [256, 128]], [plain]), profile)
    assert ms(4) < ms(1) < ms(1, bias=0)


def test_functions_and_moves_of_the_stream_cost_their_floats(profile):
    shapes = [[64, 96], [64, 96]]
    for op in (
        seg.Function("f", 1, 0, "silu"), seg.Gate("g", 1, 0, "gelu"), seg.RmsNorm("r", 1, 0, 0, 1e-5), seg.Sum("s", 1, 0, 0),
        seg.Rotary("t", 1, 0, 2, 8, 64, 0), seg.Gather("o", 1, 0, 0), seg.Quantize("q", 1, 0), seg.Dequantize("d", 1, 0),
    ):  # fmt: skip
        assert profile.overhead.op_us / 1000 < predict.op_ms(op, _header(shapes, [op]), profile) < 1


def test_without_own_timings_a_prediction_stands() -> None:
    assert predict.refined([0.0, 3.0, 7.0], {}) == (0.0, 3.0, 7.0)


def test_a_measured_head_has_its_own_time_and_the_others_are_scaled_with_it() -> None:
    assert predict.refined([0.0, 2.0, 4.0, 8.0], {3: 12.0}) == pytest.approx((0.0, 3.0, 6.0, 12.0))
    assert predict.refined([0.0, 2.0, 4.0, 8.0], {1: 1.0}) == pytest.approx((0.0, 1.0, 2.0, 4.0))


def test_a_short_head_that_took_long_does_not_condemn_a_long_one_that_was_never_tried() -> None:
    short, half = (predict.refined([1.0, 50.0, 100.0], measured)[2] for measured in ({0: 20.0}, {1: 1000.0}))
    assert short == pytest.approx(100 * (1 + 19 / 100))
    assert half == pytest.approx(100 * (1 + 19 / 2))


def test_a_head_between_two_measured_ones_lies_between_their_times() -> None:
    assert predict.refined([0.0, 2.0, 4.0, 6.0, 8.0], {1: 2.0, 3: 10.0}) == pytest.approx(
        (0.0, 2.0, 6.0, 10.0, 8 * (1 + (10 / 6 - 1) * 6 / 8))
    )


def test_timings_that_fall_where_predictions_rise_make_no_head_negative_or_endless() -> None:
    times = predict.refined([0.0, 1.0, 2.0, 3.0, 3.0], {1: 5.0, 2: 1.0, 4: 1.0})
    assert times[1:3] == (5.0, 1.0)
    assert times[3] == pytest.approx(5.0)


def test_what_an_input_takes_to_be_sent_is_its_own_time() -> None:
    assert predict.refined([0.0, 4.0], {0: 0.5}) == (0.5, 4.0)


@pytest.mark.parametrize("name", known.names())
def test_predictions_for_a_board_that_was_not_measured_count_on_the_end_that_is_asked_for(name):
    header = one_operator("conv", Shape(56, 56, 64, 64, k=3)).header
    profile = known.load(name)
    assert profile.band is not None
    assert profile.pace == "slow"
    paces = {}
    for pace, factor in (("fast", profile.band.fast), ("middle", 1.0), ("slow", profile.band.slow)):
        profile.pace = pace  # type: ignore[assignment]
        assert pace_factor(profile) == factor
        paces[pace] = predict.head_ms(header, profile)
        assert times(paces[pace], profile) == pytest.approx(
            [paces["fast"] / profile.band.fast * f for f in (profile.band.fast, 1, profile.band.slow)]
        )
    assert paces["fast"] < paces["middle"] < paces["slow"]
    assert paces["slow"] / paces["fast"] == pytest.approx(profile.band.slow / profile.band.fast)


def test_a_measured_profile_keeps_its_times_whatever_its_band_and_pace(profile):
    header = one_operator("conv", Shape(56, 56, 64, 64, k=3)).header
    plain = predict.head_ms(header, profile)
    assert times(plain, profile) is None
    spread = msgspec.structs.replace(profile, band=Band(0.9, 1.2), pace="slow")
    assert predict.head_ms(header, spread) == plain
    assert times(plain, spread) == pytest.approx((0.9 * plain, plain, 1.2 * plain))
    estimated = msgspec.structs.replace(spread, origins={"kernels": Origin("estimated", "a formula")})
    assert predict.head_ms(header, estimated) == pytest.approx(1.2 * plain)


def test_an_older_file_without_a_band_counts_as_it_is(profile):
    value = schema.to_dict(profile)
    del value["band"], value["pace"]
    loaded = schema.from_dict(value)
    assert (loaded.band, loaded.pace, pace_factor(loaded)) == (None, "slow", 1.0)


@pytest.mark.parametrize(
    "band",
    [
        {"fast": 0.0, "slow": 2.0},
        {"fast": 1.1, "slow": 2.0},
        {"fast": 0.5, "slow": 0.9},
        {"fast": 0.5, "slow": 1e9},
        {},
    ],
)
def test_a_band_that_is_none_is_refused(profile, band):
    value = schema.to_dict(profile)
    value["band"] = band
    with raises(ProtocolError, reason="malformed"):
        schema.from_dict(value)
