"""What is hostile or odd in plans, segments and pictures: the engine without a network. See tests/small_server.py for the segments."""

from __future__ import annotations

import contextlib
import hashlib
import io

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_agent.planning.plan_check import check_ladder
from edge_agent.runtime.answer_reuse import Comparison, KeptAnswer
from edge_agent.runtime.engine import Engine, frame_bytes
from splitedge import codec, errors
from splitedge.head import Head
from splitedge.head import segment as seg
from splitedge.head.answers import Answered
from splitedge.protocol.messages import Demand, Greatest, Output, Preprocess, Rung
from tests.drawn import drawn
from tests.raising import raises
from tests.segment_builder import Builder
from tests.small_server import IMAGE, TENSOR, make_plan, segment_file


@pytest.fixture(scope="module")
def engine() -> Engine:
    data = segment_file()
    return Engine(make_plan("split", data), data, Demand())


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_where_an_answer_serves_no_codec_is_chosen_and_nothing_is_coded(engine):
    kept = KeptAnswer(np.zeros(1, np.uint8), Answered(((3, 1.0),)), 296, 0.0)
    seen: list[np.ndarray] = []

    def look(tensor: np.ndarray) -> Comparison:
        seen.append(tensor)
        return Comparison(0, 0.0, tensor, 0.0, kept if len(seen) > 1 else None)

    chosen: list[int] = []

    def choose() -> int:
        chosen.append(0)
        return 0

    sent, spared = (engine.process(Image.new("RGB", (16, 16)), choose, look) for _ in range(2))
    assert (len(sent.payload), sent.reused, len(chosen)) == (256, None, 1)
    assert (spared.payload, spared.reused) == (b"", kept)
    np.testing.assert_array_equal(seen[0], sent.codes)


@pytest.mark.parametrize(
    ("mode", "output"),
    [
        ("split", Output("logits", [0])),
        ("split", Output("logits", [-10])),
        ("split", Output("logits", [1] * 9)),
        ("split", Output("tensor", [1 << 20, 1 << 20])),
        ("split", Output("tensor", [4], Greatest(1, [2, 4]))),
        ("split", Output("tensor", [4], Greatest(-1, [4, 2]))),
        ("split", Output("tensor", [5], Greatest(0, [2, 4]))),
        ("split", Output("logits", [4], Greatest(0, [2, 4]))),
        ("device", Output("logits", [11])),
        ("device", Output("tensor", [5], Greatest(0, [4, 5]))),
    ],
)
def test_a_plan_whose_output_no_answer_holds_is_refused(mode, output):
    data = segment_file(mode)
    with pytest.raises(errors.PlanError):
        Engine(make_plan(mode, data, output=output), data, Demand())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "HSV"])
def test_a_picture_of_any_colour_mode_is_prepared_or_refused(engine, mode):
    image = Image.new(mode, (30, 20))
    with contextlib.suppress(errors.InputError):
        assert len(engine.process(image).payload) == 256


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (16, 16), (17, 15), (3000, 2)])
def test_a_picture_of_any_proportion_is_prepared(engine, size):
    assert len(engine.process(Image.new("RGB", size)).payload) == 256


def test_a_sliver_that_would_be_resized_to_gigabytes_is_refused(engine):
    with raises(errors.InputError, reason="too-narrow"):
        engine.process(Image.new("L", (40_000_000, 1)))


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1)])
def test_a_sliver_is_refused_by_the_crop_that_it_must_hold_too(size):
    data = segment_file("server", Preprocess("image", [64, 64, 3], resize=1))
    with raises(errors.InputError, reason="too-narrow"):
        Engine(make_plan("server", data), data, Demand()).process(Image.new("L", size))


def test_a_decompression_bomb_is_refused_before_it_is_decoded(engine):
    bomb = encoded(Image.new("1", (8_100, 8_100)), "PNG")
    assert len(bomb) < 1_000_000
    with raises(errors.InputError, reason="too-many-pixels"):
        engine.process(bomb)


def test_the_orientation_that_a_camera_noted_is_respected(engine):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn by 90 degrees clockwise
    turned = encoded(image, "PNG", exif=exif)
    assert engine.process(turned).payload == engine.process(image.transpose(Image.Transpose.ROTATE_270)).payload
    assert engine.process(turned).payload != engine.process(image).payload


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@drawn(40)
@given(data=st.data())
def test_damaged_images_are_read_or_refused_and_nothing_else(engine, kind, data):
    good = bytearray(encoded(Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)), kind))
    for place in data.draw(st.lists(st.integers(0, len(good) - 1), max_size=6)):
        good[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(errors.InputError):
        engine.process(bytes(good[: data.draw(st.integers(0, len(good)))]))


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": 0}, {"resize": 1 << 40}, {"std": [0.0]}, {"std": [1.0, 1.0]}, {"mean": []}, {"std": [float("nan")]},
        {"mean": [float("inf")]}, {"shape": [16, 48]}, {"shape": []}, {"shape": [30000, 30000, 3]}, {"shape": [-1, -1, 3]},
        {"kind": "tensor", "shape": []}, {"kind": "tensor", "shape": [8, 8, 3]},
    ],
)  # fmt: skip
def test_impossible_preprocessing_from_a_server_is_refused(changes):
    data = segment_file()
    parsed = seg.parse(data)
    for name, value in changes.items():
        setattr(parsed.header.preprocess, name, value)
    data = seg.build(parsed.header, parsed.blob.tobytes())
    with pytest.raises((errors.PlanError, errors.SegmentError)):
        Engine(make_plan("split", data), data, Demand())


@pytest.mark.parametrize(
    ("op", "reveals"),
    [
        (seg.Reshape("r", 1, 0), True), (seg.Transpose("t", 1, 0, [1, 0, 2]), True), (seg.Pad("p", 1, 0, [0] * 4, 0), True),
        (seg.Concat("c", 1, [0], [-1]), True), (seg.Resample("r", 1, 0, 0, 0, 0, 0), True), (seg.Lut("l", 1, 0, 0), True),
        (seg.Softmax("s", 1, 0, 0, 255), True), (seg.Function("f", 1, 0, "tanh"), True),
        (seg.Linear("l", 1, 0, 8, 0, 0, 0, "none", -1), False), (seg.Mean("m", 1, 0, 0, 1), False),
    ],
)  # fmt: skip
def test_only_operators_that_mix_values_hide_the_input(op, reveals):
    header = seg.parse(segment_file("server")).header
    assert seg.reveals_input(header)
    header.ops.append(op)
    assert seg.reveals_input(header) is reveals


def test_a_codec_that_does_not_fit_the_tensor_is_refused_before_the_first_frame():
    data = segment_file()
    plan = make_plan("split", data)
    plan.ladder[0] = msgspec.structs.replace(plan.ladder[0], lo=(0.0,) * 3, scale=(1.0,) * 3)
    with raises(errors.CodecError, reason="channels-differ", channels=3):
        Engine(plan, data, Demand())


def test_memory_of_a_frame_is_counted_whatever_it_is():
    assert frame_bytes(b"12345") == 5
    assert frame_bytes(np.zeros((2, 3), np.float32)) == 24
    assert frame_bytes(Image.new("RGB", (4, 5))) == 60
    assert IMAGE.shape == [16, 16, 3]


def encoder_file(embedding_only: bool = False) -> bytes:
    """Token ids [9] to the stream [9, 24]."""
    builder = Builder([9], dtype="i32")
    x = builder.embed(builder.input, 24, vocabulary=99)
    if not embedding_only:
        builder.norm(builder.linear(builder.attention(builder.linear(x, 72), 3, ids=builder.input), 24, residual=x))
    spec = Preprocess("tensor", [9])
    parsed = builder.finish(preprocess=spec)
    answer = hashlib.sha256(Head(parsed, check_golden=False).run(seg.golden_frame(parsed.header)).tobytes()).hexdigest()
    header = builder.finish(preprocess=spec, golden=seg.Golden("seed", answer)).header
    return seg.build(header, builder.blob)


def test_token_ids_become_the_payload_of_their_float_stream():
    data = encoder_file()
    engine = Engine(make_plan("split", data), data, Demand(keep="input"))
    ids = np.array([5, 98, 3, 7, 0, 0, 0, 0, 0])
    done = engine.process(ids)
    assert done.codes.dtype == np.float32
    assert done.payload == codec.encode(done.codes, engine.plan.ladder[0])
    assert len(done.payload) == 9 * 24 // 2


def test_marks_of_padding_follow_the_codes_where_the_cut_asks_for_them():
    data = encoder_file()
    plan = make_plan("split", data)
    plan.cut.padding = 0
    done = Engine(plan, data, Demand()).process(np.array([5, 98, 3, 7, 0, 0, 0, 0, 1]))
    assert done.payload == codec.encode(done.codes, plan.ladder[0]) + b"\x0f\x01"


def test_marks_of_padding_from_a_head_that_takes_no_ids_are_refused():
    data = segment_file("split", TENSOR)
    plan = make_plan("split", data)
    plan.cut.padding = 0
    with raises(errors.PlanError, reason="other-segment"):
        Engine(plan, data, Demand())


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (np.zeros(9, np.float32), "other-frame"),
        (np.zeros(8, np.int32), "other-frame"),
        (np.full(9, 99), "token-ids"),
        (np.full(9, 1 << 32), "token-ids"),
        (np.full(9, -1), "token-ids"),
        (b"text", "no-image"),
    ],
)
def test_what_are_no_token_ids_is_refused(frame, reason):
    data = encoder_file()
    with raises(errors.InputError, reason=reason):
        Engine(make_plan("split", data), data, Demand()).process(frame)


def test_a_plan_of_another_mode_than_was_asked_for_is_refused():
    data = encoder_file()
    with raises(errors.PlanError, reason="other-mode"):
        Engine(make_plan("split", data), data, Demand(mode="server"))


def test_an_embedding_alone_does_not_keep_the_input():
    data = encoder_file(embedding_only=True)
    with raises(errors.PlanError, reason="keep-forbids"):
        Engine(make_plan("split", data), data, Demand(keep="input"))


def test_images_for_a_head_of_token_ids_are_refused():
    data = encoder_file()
    segment = seg.parse(data)
    segment.header.preprocess = Preprocess("image", [9])
    data = seg.build(segment.header, segment.blob.tobytes())
    with raises(errors.PlanError, reason="other-segment"):
        Engine(make_plan("split", data), data, Demand())


def picture_file() -> bytes:
    """A picture [4, 6, 3], as float32, to the mean of its tokens [12]."""
    builder = Builder([4, 6, 3], dtype="f32")
    x = builder.linear(builder.append(seg.Patches, [6, 12], dtype="f32", x=builder.input, size=2), 12)
    builder.append(seg.Mean, [12], dtype="f32", x=x, first=0, count=6)
    spec = Preprocess("image", [4, 6, 3], resize=8, mean=[120.0], std=[60.0])
    parsed = builder.finish(preprocess=spec)
    answer = hashlib.sha256(Head(parsed, check_golden=False).run(seg.golden_frame(parsed.header)).tobytes()).hexdigest()
    return seg.build(builder.finish(preprocess=spec, golden=seg.Golden("seed", answer)).header, builder.blob)


def test_a_picture_becomes_the_floats_that_a_transformer_takes():
    data = picture_file()
    engine = Engine(make_plan("split", data), data, Demand(keep="input"))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    values = ((pixels.astype(np.float64) - 120) / 60).astype(np.float32)
    wanted = engine.process(values).codes
    prepared, _ = engine._codes(Image.new("RGB", (12, 8), (120, 180, 0)))
    np.testing.assert_allclose(prepared, np.broadcast_to(np.float32([0, 1, -2]), (4, 6, 3)))
    assert prepared.dtype == np.float32
    assert wanted.shape == engine.process(pixels).codes.shape == (12,)
    with raises(errors.InputError, reason="not-finite"):
        engine.process(np.full((4, 6, 3), np.nan, np.float32))
    with raises(errors.InputError, reason="other-frame"):
        engine.process(np.zeros((4, 6, 3)))


@pytest.mark.parametrize(
    "rungs",
    [
        [],
        [(296, 0.1, 0.2)],
        [(296, 0.1, 0.2), (297, 0.2, 0.3)],
        [(200, 0.1, 0.2), (296, 0.2, 0.3)],
        [(296, 0.1, 0.2), (250, 0.3, 0.2), (200, 0.2, 0.3)],
        [(296, 0.1, 0.2), (200, 0.2, 1.1)],
        [(296, 0.1, 0.2), (200, float("inf"), 0.3)],
        [(296, 0.1, 0.2), (200, 0.2, float("nan"))],
        [(296, 0.1, 0.2), (0, 0.2, 0.3)],
        [(1 << 40, 0.1, 0.2), (200, 0.2, 0.3)],
    ],
)
def test_a_ladder_that_contradicts_itself_or_the_demand_is_refused(rungs):
    data = segment_file()
    plan = make_plan("split", data)
    plan.ladder = plan.ladder * max(2, len(rungs))
    plan.rungs = [
        Rung(payload_bytes=size, noise=noise, drop_points=high / 2, drop_high=high) for size, noise, high in rungs
    ]
    with raises(errors.PlanError, reason="ladder"):
        check_ladder(plan, Demand())


def test_only_the_codec_that_a_plan_begins_with_may_be_less_accurate_than_a_cheaper_one():
    plan = make_plan("split", segment_file())
    plan.ladder = plan.ladder * 3
    plan.rungs = [
        Rung(payload_bytes=296, noise=0.1, drop_points=0.1, drop_high=0.2),
        Rung(payload_bytes=250, noise=0.3, drop_points=0.3, drop_high=0.9),
        Rung(payload_bytes=200, noise=0.2, drop_points=0.2, drop_high=0.9),
    ]
    plan.codec = 1
    check_ladder(plan, Demand())
    plan.codec = 2
    with raises(errors.PlanError, reason="ladder"):
        check_ladder(plan, Demand())


def test_a_ladder_of_too_many_codecs_is_refused():
    data = segment_file()
    plan = make_plan("split", data)
    plan.ladder = plan.ladder * 17
    plan.rungs = [Rung(payload_bytes=1000 - i, noise=0.1, drop_points=0.1, drop_high=0.2) for i in range(17)]
    with raises(errors.PlanError, reason="ladder"):
        check_ladder(plan, Demand())
